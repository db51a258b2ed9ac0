"""``legrad explain``: what its options mean, and the loop over images."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Column, Table

import legrad
from legrad.atomic import WriteError
from legrad.checks import check_texts
from legrad.choices import FITS, READOUTS, check_choice
from legrad.cli.consoles import console, plain, print_error, print_warning, stderr
from legrad.cli.options import parse_layers, parse_size
from legrad.errors import InputError, LeGradError

if TYPE_CHECKING:
    from legrad.explainer import Explainer
    from legrad.results.explanation import Explanation
    from legrad.results.folder import Folder

_BATCH = 8
_ASK = (
    "say what to look for: -t 'a photo of a dog' (repeat it), --class, --predicted, --zeroshot, --similar, --audio or "
    "--contrast"
)
_INTERRUPTED = 130  # as shells have it


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
Out = Annotated[
    str, typer.Option(help="Folder for the results; those of an earlier run are replaced, files of yours never.")
]
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
    out: Out = "legrad-out",
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
    from legrad.inputs import depth, urls
    from legrad.methods import METHODS, find
    from legrad.results.folder import Folder
    from legrad.results.manifest import folder_path
    from legrad.results.save import save_images
    from legrad.results.view import Style

    arguments["method"] = kind = find(method)
    arguments["value_range"] = value_range = depth.checked(value_range)
    style, root = Style(cmap=cmap), folder_path(out)
    _check_files(image or [], similar or [], audio or [])
    for option, texts in {"--text": text, "--class": label, "--zeroshot": zeroshot, "--contrast": contrast}.items():
        if texts:
            check_texts(option, texts)
    targets = _targets(text or [], label or [], similar or [], audio or [], zeroshot or [], predicted)
    if not targets and not contrast and kind.targets:
        if image:
            targetless = ", ".join(name for name in METHODS if not METHODS[name].targets)
            raise InputError(f"{_ASK}; only {targetless} (--method) need no target")
        targets = [f"a photo of a {name}" for name in legrad.embedded.sample_names()]
    model = model or ("embedded:speech" if audio else "embedded")
    explainer = legrad.load(model, device=device)
    _check_model(explainer, model, bool(audio), bool(label))
    results = _results_in(root) if image else frozenset()
    explainer, sources = _sources(explainer, model, image or [])
    sources = _without_results(sources, image or [], results)
    if contrast:
        # numbers are classes of a classifier, and texts for other models
        side = _class if explainer.anatomy.output == "logits" else str
        targets.append(legrad.Contrast(side(contrast[0]), side(contrast[1])))

    def explain_batch(batch: list[Any]) -> "Explanation":
        return explainer.explain(batch, targets or None, **arguments)

    def save(explanation: "Explanation", index: int) -> None:
        save_images(explanation, folder, [index], style, per_layer)

    _print_left_out(image or [], explainer.anatomy.axes[0], results)
    folder = Folder(root, clear=True)
    problems = _all_in(folder, explain_batch, save, sources, explainer.anatomy.axes[0] == "rows", value_range)
    _print_results(folder)
    if len(problems) > 1 and not folder.entries and len({problem for _, problem in problems}) == 1:
        raise InputError(problems[0][1])  # the fault lies with targets or options
    for source, problem in problems:
        url = urls.safe_url(source)
        print_error(problem if url in problem else f"{url}: {problem}")
    if problems:
        raise typer.Exit(1 if folder.entries else 2)


def _all_in(folder: "Folder", *arguments: Any) -> list[tuple[str, str]]:
    """``_in_batches`` with the folder open; what ends the run is one line."""
    try:
        with folder:
            return _in_batches(*arguments)
    except WriteError as error:
        if not folder.entries:
            raise
        print_error(str(error))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        count = len(folder.entries)
        print_error(f"{count} images are in {folder.root}; earlier results, if there were any, stay", "interrupted:")
        raise typer.Exit(_INTERRUPTED) from None


def _targets(
    texts: list[str], labels: list[str], similar: list[str], audio: list[str], names: list[str], predicted: bool
) -> list[Any]:
    targets: list[Any] = [*texts, *map(_class, labels), *map(legrad.Similar, similar), *map(legrad.Audio, audio)]
    if predicted:
        targets.append(legrad.PREDICTED)
    if names:
        targets.append(legrad.ZeroShot(names))
    return targets


def _check_model(explainer: "Explainer", model: str, audio: bool, label: bool) -> None:
    """Raise ``InputError`` for a model that does not know such targets."""
    if audio and explainer.adapter.audio_encoder is None:
        raise InputError(
            "--audio is for models that embed sounds in the space of their images, such as embedded:speech; "
            f"{model} does not"
        )
    if label and explainer.anatomy.output != "logits":
        other = "use -t" if explainer.anatomy.output == "embedding" else "it has no head: use --similar"
        raise InputError(f"--class needs a classifier, which {model} is not; {other}")


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
    return explainer, list(images.expand(arguments, _suffixes()[explainer.anatomy.axes[0]]))


def _print_left_out(folders: list[str], kind: str, results: frozenset[Path]) -> None:
    """What else is in folders than what is explained; results of an earlier run are clear."""
    from legrad.inputs import images

    for folder in folders:
        note = images.left_out(folder, _suffixes()[kind], results)
        if note is not None:
            print_error(note, "[yellow]note:[/yellow]")


def _results_in(root: Path) -> frozenset[Path]:
    """What an earlier run wrote into a folder."""
    from legrad.atomic import fits
    from legrad.results.manifest import Manifest, manifest_path

    if not root.is_dir():
        return frozenset()
    path, folder = manifest_path(root), root.resolve()
    manifest = Manifest.read(path)
    if manifest is None:
        return frozenset()
    return frozenset(
        [folder / path.name, *(folder / name for name in manifest.files if fits(root / name, manifest.files[name]))]
    )


def _without_results(sources: list[str], arguments: list[str], results: frozenset[Path]) -> list[str]:
    """What an earlier run wrote is not explained with the images in its folder, unless it is named itself."""
    named = frozenset(arguments)
    sources_left = [source for source in sources if source in named or Path(source).resolve() not in results]
    if not sources_left:
        raise InputError(
            f"these images are results of an earlier run, such as {sources[0]}; name those to be explained"
        )
    if len(sources_left) < len(sources):
        print_warning(f"{len(sources) - len(sources_left)} images are results of an earlier run and left out")
    return sources_left


def _class(text: str) -> int | str:
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def _in_batches(
    explain: "Callable[[list[Any]], Explanation]",
    save: "Callable[[Explanation, int], None]",
    sources: Sequence[str],
    still: bool,
    value_range: tuple[float, float] | None,
) -> list[tuple[str, str]]:
    """Read images, explain and save them in small batches; whatever is wrong with one does not stop the others.

    Args:
        explain: explains a batch.
        save: saves one image of it.
        sources: paths and URLs.
        still: images, which are read here; videos and sounds are handed on one by one, as paths.
        value_range: of images, see ``Explainer.explain``.

    Returns:
        (source, what went wrong with it).

    Raises:
        WriteError: the results cannot be written, which would be so for all others too.
    """
    from legrad.inputs import images

    problems: list[tuple[str, str]] = []
    step = _BATCH if still else 1

    def attempt(batch: list[tuple[str, Any]]) -> None:
        try:
            explanation = explain([image for _, image in batch])
        except Exception as error:
            if len(batch) == 1:
                problems.append((batch[0][0], _line(error)))
            else:  # find out which one it was
                for item in batch:
                    attempt([item])
            return
        for index, (source, _) in enumerate(batch):
            try:
                save(explanation, index)
            except WriteError:
                raise
            except Exception as error:
                problems.append((source, _line(error)))

    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        task = progress.add_task("explaining", total=len(sources))
        for start in range(0, len(sources), step):
            batch: list[tuple[str, Any]] = []
            for source in sources[start : start + step]:
                try:
                    batch.append((source, images.read(source, value_range=value_range) if still else source))
                except Exception as error:
                    problems.append((source, _line(error)))
            if batch:
                attempt(batch)
            progress.advance(task, min(step, len(sources) - start))
    return problems


def _line(error: Exception) -> str:
    """An error of ours, or one of another kind with its name: one image must not end the work on all others."""
    return str(error) if isinstance(error, LeGradError) else f"{type(error).__name__}: {error}"


def _print_results(folder: "Folder") -> None:
    if not folder.entries:
        return
    # a name that is cut could not be copied
    table = Table(*[Column(name, overflow="fold") for name in ("image", "target", "score", "overlay")])
    names = [Path(entry["image"]).name for entry in folder.entries]
    for entry, name in zip(folder.entries, names, strict=True):
        title = name if names.count(name) == 1 else entry["image"]
        for record in entry["targets"]:
            table.add_row(plain(title), plain(record["target"]), f"{record['score']:.3f}", record["overlay"])
    console.print(table)
    for entry in folder.entries[:5]:
        console.print(f"figure: {plain(str(folder.root / entry['figure']))}", soft_wrap=True, highlight=False)
    if len(folder.entries) > 5:
        console.print(f"... and {len(folder.entries) - 5} more figures")
    console.print(f"all files: {plain(str(folder.manifest))}", soft_wrap=True, highlight=False)
