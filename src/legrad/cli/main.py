"""The command line: ``legrad explain``, ``legrad models``, ``legrad doctor``. Parse, call the library, save, print.

Exit status: 0 all is well, 1 some inputs failed (or a model is not healthy), 2 nothing could be done.
"""

import io
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Column, Table

import legrad
from legrad import viz
from legrad.cli import bench
from legrad.cli.options import parse_layers, parse_size
from legrad.errors import InputError, LeGradError
from legrad.explainer import FITS, READOUTS, check_choice
from legrad.inputs import images, sounds, urls, videos
from legrad.methods import METHODS
from legrad.results.folder import Folder

app = typer.Typer(
    help="Where did the model look, for this text or this class?", no_args_is_help=True, pretty_exceptions_enable=False
)
app.add_typer(bench.app, name="bench")


# ":cat:" in a file name or a prompt is no emoji
console = Console(emoji=False)


stderr = Console(stderr=True, emoji=False)


_BATCH = 8


# by the first axis of the grid: what counts in a folder
_SUFFIXES = {"rows": images.SUFFIXES, "frames": videos.SUFFIXES, "frequency": sounds.SUFFIXES}


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"legrad {legrad.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


@app.command()
def explain(
    image: Annotated[
        list[str] | None, typer.Argument(help="Files, folders, globs or URLs. Default: a sample scene.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option("-t", "--text", help="What to look for, verbatim; repeat it.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option("--class", help="A classifier's class index or label; repeat it.")
    ] = None,
    similar: Annotated[
        list[str] | None, typer.Option(help="Another image: what looks like it in these? Repeat it.")
    ] = None,
    audio: Annotated[
        list[str] | None, typer.Option(help="A sound: where is what it names (or what makes it)? Repeat it.")
    ] = None,
    contrast: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="What speaks for A rather than B (texts or classes).")
    ] = None,
    zeroshot: Annotated[
        list[str] | None, typer.Option(help="The best-matching one of these names, for every image; repeat it.")
    ] = None,
    predicted: Annotated[bool, typer.Option("--predicted", help="The class that the classifier predicts.")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="embedded, embedded:map, open_clip:ARCH/TAG, ...: see `legrad models`. Default: embedded, and "
            "embedded:speech with --audio."
        ),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="How many of the last layers (3), or which (0,3,-1). Default: all.")
    ] = None,
    readout: Annotated[str, typer.Option(help=" | ".join(READOUTS))] = "auto",
    method: Annotated[str, typer.Option(help="legrad, a baseline or a control; see `legrad methods`.")] = "legrad",
    size: Annotated[str | None, typer.Option(help="Input size, 448 or HEIGHTxWIDTH. Default: the model's.")] = None,
    fit: Annotated[str, typer.Option(help=" | ".join(FITS))] = "model",
    per_layer: Annotated[bool, typer.Option("--per-layer", help="Add a figure with every layer.")] = False,
    out: Annotated[
        Path, typer.Option(help="Folder for the results; an earlier run's results in it are replaced.")
    ] = Path("legrad-out"),
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps, ...")] = None,
    cmap: Annotated[str, typer.Option(help="matplotlib colour map; jet for the authors' look.")] = "inferno",
) -> None:
    """Explain images (videos, sounds): overlays, figures, raw arrays and a manifest in a folder."""
    # what is wrong is told before a model is loaded
    arguments: dict[str, Any] = {
        "layers": parse_layers(layers),
        "readout": check_choice("readout", readout, READOUTS),
        "method": check_choice("method", method, list(METHODS)),
        "size": parse_size(size),
        "fit": check_choice("fit", fit, FITS),
        "keep_layers": per_layer,
    }
    viz.check_cmap(cmap)
    targets: list[Any] = [*(text or []), *map(_class, label or []), *map(legrad.Similar, similar or [])]
    targets += map(legrad.Audio, audio or [])
    if predicted:
        targets.append(legrad.PREDICTED)
    if zeroshot:
        targets.append(legrad.ZeroShot(zeroshot))
    for reference in similar or []:
        if not urls.is_url(reference) and not Path(reference).is_file():
            raise InputError(f"--similar: no such image: {reference}")
    for sound in audio or []:
        if not urls.is_url(sound) and not Path(sound).is_file():
            raise InputError(f"--audio: no such sound: {sound}")
    if image:
        list(images.expand(image, frozenset().union(*_SUFFIXES.values())))
    if not targets and not contrast:
        if image:
            raise InputError(
                "say what to look for: -t 'a photo of a dog' (repeat it), --class, --predicted, --zeroshot, --similar, "
                "--audio or --contrast"
            )
        targets = [f"a photo of a {name}" for name in legrad.embedded.sample_names()]
    if model is None:
        model = "embedded:speech" if audio else "embedded"
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
    # numbers are classes of a classifier, and texts for other models
    side = _class if explainer.anatomy.output == "logits" else str
    if contrast:
        targets.append(legrad.Contrast(side(contrast[0]), side(contrast[1])))
    folder = Folder(out, per_layer, cmap, clear=True)
    failed = _explain_all(explainer, sources, targets, arguments, folder)
    _print_results(folder)
    for problem in failed:
        _print_error(problem)
    if failed:
        raise typer.Exit(1 if folder.entries else 2)


def _sources(explainer: legrad.Explainer, model: str, given: list[str]) -> tuple[legrad.Explainer, list[str]]:
    """What to explain, and who does: of a model that sees and hears, sounds go to its audio tower."""
    kind = explainer.anatomy.axes[0]
    if not given:
        if kind == "frequency":
            raise InputError(f"{model} listens, and the sample scene is an image: say which sounds to explain")
        return explainer, [str(legrad.embedded.SAMPLE)]
    seen = images.SUFFIXES | sounds.SUFFIXES
    if kind == "rows" and all(Path(one).suffix.lower() in sounds.SUFFIXES for one in images.expand(given, seen)):
        if explainer.audio_explainer is None:
            raise InputError(
                f"{given[0]}: {model} explains images, not sounds; take --model embedded:speech, or a model of "
                "sounds such as hf:FOLDER (an Audio Spectrogram Transformer)"
            )
        explainer = explainer.audio_explainer
    return explainer, list(images.expand(given, _SUFFIXES[explainer.anatomy.axes[0]]))


def _class(text: str) -> int | str:
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def _explain_all(
    explainer: legrad.Explainer, sources: Sequence[str], targets: list[Any], arguments: dict[str, Any], folder: Folder
) -> list[str]:
    """Explain in small batches (videos and sounds one by one), saving each; returns what went wrong with single ones.

    Raises:
        InputError: no image could be explained, all for the same reason: the fault lies with targets or options.
    """
    failed: list[str] = []
    reasons: set[str] = set()
    still = explainer.anatomy.axes[0] == "rows"
    step = _BATCH if still else 1

    def attempt(batch: list[Any]) -> None:
        try:
            folder.add(explainer.explain(batch, targets, **arguments))
        except InputError as error:
            if len(batch) > 1:  # find out which one it was
                for image in batch:
                    attempt([image])
            else:
                reasons.add(str(error))
                name = batch[0].info.get(images.SOURCE) if still else batch[0]
                failed.append(str(error) if str(name) in str(error) else f"{name}: {error}")

    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        task = progress.add_task("explaining", total=len(sources))
        for start in range(0, len(sources), step):
            batch: list[Any] = []
            for source in sources[start : start + step]:
                try:
                    batch.append(images.read(source) if still else source)
                except LeGradError as error:
                    failed.append(str(error))
            if batch:
                attempt(batch)
            progress.advance(task, min(step, len(sources) - start))
    if not folder.entries and len(reasons) == 1:
        raise InputError(reasons.pop())
    return failed


def _print_error(problem: str, kind: str = "[red]error:[/red]") -> None:
    """One line, however the message was laid out."""
    stderr.print(f"{kind} {escape(' '.join(problem.split()))}", soft_wrap=True, highlight=False)


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Stands in for ``warnings.showwarning``, which would print a line of our source too."""
    _print_error(str(message), "[yellow]warning:[/yellow]")


def _print_results(folder: Folder) -> None:
    if not folder.entries:
        return
    # a name that is cut could not be copied
    table = Table(*[Column(name, overflow="fold") for name in ("image", "target", "score", "overlay")])
    names = [Path(entry["image"]).name for entry in folder.entries]
    for entry, name in zip(folder.entries, names, strict=True):
        shown = name if names.count(name) == 1 else entry["image"]
        for record in entry["targets"]:
            table.add_row(escape(shown), escape(record["target"]), f"{record['score']:.3f}", record["overlay"])
    console.print(table)
    for entry in folder.entries[:5]:
        console.print(f"figure: {escape(str(folder.root / entry['figure']))}", soft_wrap=True, highlight=False)
    if len(folder.entries) > 5:
        console.print(f"... and {len(folder.entries) - 5} more figures")
    console.print(f"all files: {escape(str(folder.manifest))}", soft_wrap=True, highlight=False)


@app.command()
def models(
    filter: Annotated[str, typer.Argument(help="StudyPart of the name, any case.")] = "",
    library: Annotated[str | None, typer.Option(help="Only this one: open_clip, timm, hf, torchvision.")] = None,
    supported: Annotated[bool, typer.Option("--supported", help="Leave out what cannot be explained.")] = False,
) -> None:
    """List what can be loaded by name, and why the rest cannot; nothing is built or downloaded."""
    from legrad.models.registry import LIBRARIES, available

    if library is not None:
        check_choice("--library", library, LIBRARIES)
    table = Table(Column("model", no_wrap=True, overflow="fold"), "verdict")
    rows = [
        (name, reason)
        for name, reason in available()
        if filter.lower() in name.lower() and library in (None, name.partition(":")[0]) and not (supported and reason)
    ]
    for name, reason in rows:
        table.add_row(
            escape(name), f"[red]not supported:[/red] {escape(reason)}" if reason else "[green]supported[/green]"
        )
    if not rows:
        raise InputError(f"no model's name contains {filter!r}{f' in library {library!r}' if library else ''}")
    console.print(table)
    console.print(
        f"{sum(not reason for _, reason in rows)} of {len(rows)} supported; also folders and the hub: "
        "open_clip:local-dir:PATH, open_clip:hf-hub:ORG/REPO, timm:local-dir:PATH, timm:hf-hub:ORG/REPO, hf:FOLDER, "
        "hf:ORG/REPO",
        soft_wrap=True,
        highlight=False,
    )


@app.command()
def methods() -> None:
    """List the methods for `legrad explain --method`: what each map is, and where it comes from."""
    table = Table(Column("method", no_wrap=True), "the map", Column("source", overflow="fold"))
    for one in METHODS.values():
        table.add_row(one.name, one.summary, one.source)
    console.print(table)


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(help="As for --model of `legrad explain`.")] = "embedded",
    size: Annotated[str | None, typer.Option(help="Input size, 448 or HEIGHTxWIDTH. Default: the model's.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps, ...")] = None,
) -> None:
    """Examine a model: what it is, how it is explained, and whether the truth check holds on a random image."""
    from legrad.doctor import examine

    report = examine(legrad.load(model, device=device), parse_size(size))
    table = Table(Column(model, style="bold"), Column("", overflow="fold"), show_header=True)
    marks = {True: "[green]✓[/green] ", False: "[red]✗[/red] ", None: ""}
    for finding in report.findings:
        table.add_row(finding.what, marks[finding.good] + escape(finding.value))
    console.print(table)
    if not report.healthy:
        raise typer.Exit(1)


def main() -> None:
    """Entry point: library errors become one line and exit status 2, warnings one line each."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: names may hold what the terminal cannot show
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            app()
    except LeGradError as error:
        _print_error(str(error))
        raise SystemExit(2) from None
