"""``legrad explain``: what its options mean, and the loop over images."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Column, Table

import legrad
from legrad.choices import FITS, READOUTS, check_choice
from legrad.cli.consoles import console, print_error, stderr
from legrad.cli.options import parse_layers, parse_size
from legrad.errors import InputError, LeGradError

if TYPE_CHECKING:
    from legrad.explainer import Explainer
    from legrad.results.folder import Folder

_BATCH = 8


Images = Annotated[list[str] | None, typer.Argument(help="Files, folders, globs or URLs. Default: a sample scene.")]
Texts = Annotated[list[str] | None, typer.Option("-t", "--text", help="What to look for, verbatim; repeat it.")]
Labels = Annotated[list[str] | None, typer.Option("--class", help="A classifier's class index or label; repeat it.")]
References = Annotated[list[str] | None, typer.Option(help="Another image: what looks like it in these? Repeat it.")]
Sounds = Annotated[
    list[str] | None, typer.Option(help="A sound: where is what it names (or what makes it)? Repeat it.")
]
Pair = Annotated[
    tuple[str, str] | None, typer.Option(metavar="A B", help="What speaks for A rather than B (texts or classes).")
]
Names = Annotated[
    list[str] | None, typer.Option(help="The best-matching one of these names, for every image; repeat it.")
]
Predicted = Annotated[bool, typer.Option("--predicted", help="The class that the classifier predicts.")]
Model = Annotated[
    str | None,
    typer.Option(
        help="embedded, embedded:map, open_clip:ARCH/TAG, ...: see `legrad models`. Default: embedded, and "
        "embedded:speech with --audio."
    ),
]
Layers = Annotated[str | None, typer.Option(help="How many of the last layers (3), or which (0,3,-1). Default: all.")]
Readout = Annotated[str, typer.Option(help=" | ".join(READOUTS))]
MethodName = Annotated[str, typer.Option(help="legrad, a baseline or a control; see `legrad methods`.")]
Size = Annotated[str | None, typer.Option(help="Input size, 448 or HEIGHTxWIDTH. Default: the model's.")]
FitName = Annotated[str, typer.Option(help=" | ".join(FITS))]
ValueRange = Annotated[
    tuple[float, float] | None,
    typer.Option(metavar="LOW HIGH", help="Values that become black and white, such as 0 4095. Default: the file's."),
]
PerLayer = Annotated[bool, typer.Option("--per-layer", help="Add a figure with every layer.")]
Out = Annotated[Path, typer.Option(help="Folder for the results; an earlier run's results in it are replaced.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps, ...")]
ColourMap = Annotated[str, typer.Option(help="matplotlib colour map; jet for the authors' look.")]


def explain(
    image: Images = None,
    text: Texts = None,
    label: Labels = None,
    similar: References = None,
    audio: Sounds = None,
    contrast: Pair = None,
    zeroshot: Names = None,
    predicted: Predicted = False,
    model: Model = None,
    layers: Layers = None,
    readout: Readout = "auto",
    method: MethodName = "legrad",
    size: Size = None,
    fit: FitName = "model",
    value_range: ValueRange = None,
    per_layer: PerLayer = False,
    out: Out = Path("legrad-out"),
    device: Device = None,
    cmap: ColourMap = "inferno",
) -> None:
    """Explain images (videos, sounds): overlays, figures, raw arrays and a manifest in a folder."""
    # check the arguments before loading the model
    arguments: dict[str, Any] = {
        "layers": parse_layers(layers),
        "readout": check_choice("readout", readout, READOUTS),
        "size": parse_size(size),
        "fit": check_choice("fit", fit, FITS),
        "keep_layers": per_layer,
    }
    from legrad import viz
    from legrad.inputs import depth
    from legrad.methods import METHODS
    from legrad.results.folder import Folder

    arguments["method"] = check_choice("method", method, list(METHODS))
    viz.check_cmap(cmap)
    depth.checked(value_range)
    _check_files(image or [], similar or [], audio or [])
    targets: list[Any] = [*(text or []), *map(_class, label or []), *map(legrad.Similar, similar or [])]
    targets += map(legrad.Audio, audio or [])
    if predicted:
        targets.append(legrad.PREDICTED)
    if zeroshot:
        targets.append(legrad.ZeroShot(zeroshot))
    if not targets and not contrast:
        if image:
            raise InputError(
                "say what to look for: -t 'a photo of a dog' (repeat it), --class, --predicted, --zeroshot, --similar, "
                "--audio or --contrast"
            )
        targets = [f"a photo of a {name}" for name in legrad.embedded.sample_names()]
    model = model or ("embedded:speech" if audio else "embedded")
    explainer = legrad.load(model, device=device)
    if audio and explainer.adapter.audio_encoder is None:
        raise InputError(
            "--audio is for models that embed sounds in the space of their images, such as embedded:speech; "
            f"{model} does not"
        )
    explainer, sources = _sources(explainer, model, image or [])
    if label and explainer.anatomy.output != "logits":
        other = "use -t" if explainer.anatomy.output == "embedding" else "it has no head: use --similar"
        raise InputError(f"--class needs a classifier, which {model} is not; {other}")
    if contrast:
        # numbers are classes of a classifier, and texts for other models
        side = _class if explainer.anatomy.output == "logits" else str
        targets.append(legrad.Contrast(side(contrast[0]), side(contrast[1])))
    folder = Folder(out, clear=True)

    def save(batch: list[Any]) -> None:
        explainer.explain(batch, targets, **arguments).save(folder, per_layer, cmap)

    still = explainer.anatomy.axes[0] == "rows"
    if not still:  # images are read before, with the same range
        arguments["value_range"] = value_range
    problems = _in_batches(save, sources, still, value_range)
    _print_results(folder)
    for problem in problems:
        print_error(problem)
    if problems:
        raise typer.Exit(1 if folder.entries else 2)


def _check_files(image: list[str], similar: list[str], audio: list[str]) -> None:
    """Raise ``InputError`` for files that are not there."""
    from legrad.inputs import images, urls

    for option, what, paths in (("--similar", "image", similar), ("--audio", "sound", audio)):
        for path in paths:
            if not urls.is_url(path) and not Path(path).is_file():
                raise InputError(f"{option}: no such {what}: {path}")
    if image:
        list(images.expand(image, frozenset().union(*_suffixes().values())))


def _suffixes() -> dict[str, frozenset[str]]:
    """First axis of the grid -> which files count in a folder."""
    from legrad.inputs import images, sounds, videos

    return {"rows": images.SUFFIXES, "frames": videos.SUFFIXES, "frequency": sounds.SUFFIXES}


def _sources(explainer: "Explainer", model: str, arguments: list[str]) -> "tuple[Explainer, list[str]]":
    """What to explain, and who does: of a model of images and sounds, sounds go to its audio tower."""
    from legrad.inputs import images, sounds

    kind = explainer.anatomy.axes[0]
    if not arguments:
        if kind == "frequency":
            raise InputError(f"{model} listens, and the sample scene is an image: say which sounds to explain")
        return explainer, [str(legrad.embedded.SAMPLE)]
    files = images.expand(arguments, images.SUFFIXES | sounds.SUFFIXES)
    if kind == "rows" and all(Path(path).suffix.lower() in sounds.SUFFIXES for path in files):
        if explainer.audio_explainer is None:
            raise InputError(
                f"{arguments[0]}: {model} explains images, not sounds; take --model embedded:speech, or a model of "
                "sounds such as hf:FOLDER (an Audio Spectrogram Transformer)"
            )
        explainer = explainer.audio_explainer
    return explainer, list(images.expand(arguments, _suffixes()[explainer.anatomy.axes[0]], tell=True))


def _class(text: str) -> int | str:
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def _in_batches(
    save: Callable[[list[Any]], None], sources: Sequence[str], still: bool, value_range: tuple[float, float] | None
) -> list[str]:
    """Read images and hand them on in small batches; returns what went wrong with single ones.

    Args:
        save: explains a batch and saves the result.
        sources: paths and URLs.
        still: images, which are read here; videos and sounds are handed on one by one, as paths.
        value_range: of images, see ``Explainer.explain``.

    Raises:
        InputError: no image could be explained, all for the same reason: the fault lies with targets or options.
    """
    from legrad.inputs import images, urls

    problems: list[str] = []
    reasons: set[str] = set()
    saved = 0
    step = _BATCH if still else 1

    def attempt(batch: list[Any]) -> None:
        nonlocal saved
        try:
            save(batch)
            saved += len(batch)
        except InputError as error:
            if len(batch) > 1:  # find out which one it was
                for image in batch:
                    attempt([image])
            else:
                reasons.add(str(error))
                name = batch[0].info.get(images.SOURCE) if still else urls.shown(batch[0])
                problems.append(str(error) if str(name) in str(error) else f"{name}: {error}")

    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        task = progress.add_task("explaining", total=len(sources))
        for start in range(0, len(sources), step):
            batch: list[Any] = []
            for source in sources[start : start + step]:
                try:
                    batch.append(images.read(source, value_range=value_range) if still else source)
                except LeGradError as error:
                    problems.append(str(error))
            if batch:
                attempt(batch)
            progress.advance(task, min(step, len(sources) - start))
    if not saved and len(reasons) == 1:
        raise InputError(reasons.pop())
    return problems


def _print_results(folder: "Folder") -> None:
    if not folder.entries:
        return
    # a name that is cut could not be copied
    table = Table(*[Column(name, overflow="fold") for name in ("image", "target", "score", "overlay")])
    names = [Path(entry["image"]).name for entry in folder.entries]
    for entry, name in zip(folder.entries, names, strict=True):
        title = name if names.count(name) == 1 else entry["image"]
        for record in entry["targets"]:
            table.add_row(escape(title), escape(record["target"]), f"{record['score']:.3f}", record["overlay"])
    console.print(table)
    for entry in folder.entries[:5]:
        console.print(f"figure: {escape(str(folder.root / entry['figure']))}", soft_wrap=True, highlight=False)
    if len(folder.entries) > 5:
        console.print(f"... and {len(folder.entries) - 5} more figures")
    console.print(f"all files: {escape(str(folder.manifest))}", soft_wrap=True, highlight=False)
