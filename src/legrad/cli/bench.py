"""``legrad bench``: parse, call, print. Everything heavy is imported when a command runs."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column, Table

from legrad.cli.consoles import console, stderr
from legrad.errors import InputError

if TYPE_CHECKING:
    from legrad.bench.result import Result

app = typer.Typer(
    help="Measure methods against each other: `legrad bench all` offline, or one benchmark on data of your own.",
    no_args_is_help=True,
)
_INTERRUPTED = 130  # as shells have it

Model = Annotated[str, typer.Option(help="embedded, open_clip:ARCH/TAG, timm:NAME, ...; see `legrad models`.")]
Data = Annotated[
    str,
    typer.Option(
        help="embedded, embedded:LOW-HIGH (objects in a scene), gtsegs_ijcv.mat, a table of points (.csv), or a "
        "folder: ImageNet-S, images/ with masks/, class folders of images or sounds, "
        "ImageNet's validation set, ADE20K Sound- or Speech-Prompted."
    ),
]
Out = Annotated[Path, typer.Option(help="Folder for results; the same command goes on with an interrupted run.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps, ...")]
Names = Annotated[
    Path | None,
    typer.Option(
        help="What classes are called in prompts, and what the ids in masks/ mean: .json, .csv, or 'id name' lines."
    ),
]
Seed = Annotated[int, typer.Option(help="Of the order of items, and of the bootstrap.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first problem of an item, a method or the data.")]

_ABOUT = {
    "segmentation": "Does the map cover the object, and nothing else? Pixel accuracy, mIoU, mAP.",
    "openvocab": "Asked for a thing by name, does the map light up at labelled points? p-mIoU.",
    "perturbation": "Does the model need the pixels that the map calls relevant? Accuracy curves, insertion, deletion.",
    "localisation": "Does the map fall on the one thing asked for? Pointing game, energy, prompt-swap.",
    "sanity": "Does a map change when parameters are shuffled, or nonsense is asked?",
    "presence": "Does a map's strength tell what is there from what is not? AUROC.",
    "audio": "Asked by a sound or a spoken word, does the map fall on what is heard? mIoU, mAP.",
    "ablation": "LeGrad's own switches: number of layers, read-out, ReLU, heads; scored by another benchmark (--on).",
    "fingerprint": "How much of a map comes from which layer, and from which head?",
    "speed": "How many images per second, next to the bare forward pass?",
}


def _single(
    name: str,
) -> Callable[..., None]:
    def command(
        model: Model = "embedded:speech" if name == "audio" else "embedded",
        methods: Annotated[
            str | None,
            typer.Option(
                help="Comma-separated, the first is what the others are compared with; 'all' has the black boxes too; "
                "variants are METHOD:layers=K:readout=published|native, legrad:heads=0+3. See `legrad methods`."
            ),
        ] = None,
        data: Data = "embedded",
        out: Out = Path("legrad-bench"),
        items: Annotated[int | None, typer.Option(min=1, help="Samples per method. Default: all; 200 scenes.")] = None,
        minutes: Annotated[
            float | None, typer.Option(min=0.01, help="Time; item counts are cut to fit, and the result says so.")
        ] = None,
        layers: Annotated[str | None, typer.Option(help="As for `legrad explain`.")] = None,
        readout: Annotated[str, typer.Option(help="As for `legrad explain`.")] = "auto",
        size: Annotated[
            int | None, typer.Option(min=1, help="Side of the model's input in pixels. Default: the model's own.")
        ] = None,
        template: Annotated[
            list[str] | None, typer.Option(help="Prompt with {} for the class; repeat it for an ensemble.")
        ] = None,
        names: Names = None,
        images: Annotated[Path | None, typer.Option(help="Images that belong to a table of points.")] = None,
        unit: Annotated[
            str | None, typer.Option(help="Of x and y in a table of points of your own: pixels | relative.")
        ] = None,
        classes: Annotated[
            Path | None, typer.Option(help="Open Images' class descriptions, or ImageNet-S's list.")
        ] = None,
        explained: Annotated[str | None, typer.Option(help="predicted | truth; perturbation: both, too.")] = None,
        geometry: Annotated[
            str | None, typer.Option(help="segmentation: squash | crop | prs_compat; audio: crop | squash.")
        ] = None,
        timing: Annotated[
            str | None,
            typer.Option(help="audio: basic (the whole clip) | advanced (the spoken word, widened by 0.2 s)."),
        ] = None,
        prompt: Annotated[str | None, typer.Option(help="audio: audio | text, to ask by names for comparison.")] = None,
        threshold: Annotated[
            float | None,
            typer.Option(
                help="openvocab: of the min-maxed map, default 0.5. segmentation: none, results have the mean and 0.5."
            ),
        ] = None,
        tolerance: Annotated[float | None, typer.Option(help="localisation: pixels beside the mask.")] = None,
        fill: Annotated[str | None, typer.Option(help="perturbation: black | mean | blur.")] = None,
        patch: Annotated[int | None, typer.Option(help="perturbation: side of what is erased as one.")] = None,
        ties: Annotated[str | None, typer.Option(help="perturbation: index | random.")] = None,
        on: Annotated[str | None, typer.Option(help="ablation: the benchmark that scores it.")] = None,
        device: Device = None,
        seed: Seed = 0,
        strict: Strict = False,
    ) -> None:
        import legrad
        from legrad.bench import registry
        from legrad.bench.data import open_data
        from legrad.bench.runner import Limits, run
        from legrad.bench.subject import TEMPLATES
        from legrad.cli.options import parse_layers

        wanted, given = parse_layers(layers), _names(names)
        samples = open_data(
            data, on or name, images=images, classes=classes, explained=explained, unit=unit, names=given
        )
        explainer = legrad.load(model, device=device)
        switches = {
            "explained": explained,
            "geometry": geometry,
            "timing": timing,
            "prompt": prompt,
            "threshold": threshold,
            "tolerance": tolerance,
            "fill": fill,
            "patch": patch,
            "ties": ties,
            "on": on,
        }
        subject = registry.subject(
            name,
            explainer,
            samples,
            layers=wanted,
            readout=readout,
            names=given,
            templates=tuple(template or TEMPLATES),
            size=size,
        )
        anatomy = subject.explainer.anatomy
        benchmark = registry.build(name, anatomy, switches)
        if items is None and samples.name == "embedded":
            items = _SCENES
        with _Shown() as shown:
            result = run(
                benchmark,
                subject,
                samples,
                _methods(methods) or registry.methods(name, anatomy),
                out,
                Limits(items, seconds=None if minutes is None else 60 * minutes),
                seed,
                strict,
                shown.progress,
            )
        _print(result)
        _print_report(out)
        _end([result])

    # typer reads the options off the signature; the help is the first line
    command.__doc__ = _ABOUT[name]
    command.__signature__ = inspect.signature(command)  # type: ignore[attr-defined]
    return command


_SCENES = 200

for _name in _ABOUT:
    app.command(_name)(_single(_name))


@app.command("all")
def everything(
    model: Annotated[
        list[str] | None, typer.Option(help="Repeat it for several; each gets a folder inside --out.")
    ] = None,
    data: Data = "embedded",
    out: Out = Path("legrad-bench"),
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Few images, no black boxes; about 3 minutes on two quiet cores."),
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="However long it takes, every ablation too, both embedded models.")
    ] = False,
    names: Names = None,
    device: Device = None,
    seed: Seed = 0,
    strict: Strict = False,
) -> None:
    """The whole study: every benchmark on every method, about half an hour on two quiet cores."""
    import legrad
    from legrad.bench.report.standing import headlines, named, sentence
    from legrad.bench.study import FULL, QUICK, Scale, study
    from legrad.results.folder import slug

    if quick and full:
        raise InputError("--quick and --full exclude each other")
    scale = QUICK if quick else FULL if full else Scale()
    chosen = model or (["embedded", "embedded:map"] if full and data.startswith("embedded") else ["embedded"])
    given, measured = _names(names), []
    for one in chosen:
        explainer = legrad.load(one, device=device)
        with _Shown() as shown:
            results = study(
                explainer, data, out / slug(one), scale, names=given, seed=seed, strict=strict, progress=shown.progress
            )
        console.print(f"[bold]{escape(one)}[/bold]")
        for content, name in headlines([result.content for result in results]):
            line = f"{named(content, name)}: {sentence(content, name)}"
            console.print(escape(line), soft_wrap=True, highlight=False)
        measured += results
    _print_report(out)
    _end(measured)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="The --out of a run.")]) -> None:
    """Markdown, CSV and figures from all results in a folder."""
    _print_report(folder)


def _names(path: Path | None) -> dict[str, str] | None:
    from legrad.datasets import names

    return None if path is None else names.read(path)


def _methods(text: str | None) -> list[str]:
    """ "a,b" -> ["a", "b"]; "all" is every method; nothing -> an empty list."""
    from legrad.bench.variants import known_methods

    if text is None:
        return []
    return list(known_methods()) if text == "all" else [part.strip() for part in text.split(",") if part.strip()]


def _end(results: "Sequence[Result]") -> None:
    """Exit status 1 where nothing at all was measured."""
    if not any(one["items"] for result in results for one in result.content["methods"].values()):
        raise typer.Exit(1)


class _Shown:
    """A bar for items, a line for every problem, once; Ctrl-C ends the command in one line."""

    def __init__(self) -> None:
        from legrad.bench.runner import Progress

        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=stderr,
            transient=True,
            disable=not stderr.is_terminal,
        )
        self._task: Any = None
        self._told: set[str] = set()
        self.progress = Progress(self._started, self._advanced, self._problem)

    def __enter__(self) -> "_Shown":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._bar.stop()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            stderr.print("interrupted; the same command goes on where this one stopped")
            raise typer.Exit(_INTERRUPTED)

    def _started(self, name: str, total: int) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(name, total=total)

    def _advanced(self, items: int) -> None:
        self._bar.advance(self._task, items)

    def _problem(self, line: str) -> None:
        if line in self._told:  # by another part of a study
            return
        self._told.add(line)
        stderr.print(f"[yellow]problem:[/yellow] {escape(line)}", soft_wrap=True, highlight=False)


def _print(result: "Result") -> None:
    """The headline numbers of one run."""
    content = result.content
    shown = list(content["metrics"])[:4]
    table = Table(Column("method", no_wrap=True), *(content["metrics"][name]["title"] for name in shown), "items")
    for method, one in content["methods"].items():
        cells = []
        for name in shown:
            numbers = one["metrics"].get(name) or {"value": None}
            cells.append("" if numbers["value"] is None else f"{numbers['value']:.3f}")
        table.add_row(escape(method), *cells, str(one["items"]))
    console.print(table)
    for line in content["cuts"]:
        console.print(f"cut: {escape(line)}", soft_wrap=True, highlight=False)


def _print_report(folder: Path) -> None:
    from legrad.bench.report.page import report as write

    page = write(folder)
    console.print(f"report: {escape(str(page))}", soft_wrap=True, highlight=False)
