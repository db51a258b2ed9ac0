"""``legrad bench``: parse, call, print. Everything heavy is imported when a command runs."""

import enum
import hashlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column, Table

from legrad.checks import check_count
from legrad.choices import READOUTS
from legrad.cli import completion, paper
from legrad.cli.arguments import Device
from legrad.cli.consoles import console, plain, print_warning, stderr
from legrad.errors import InputError
from legrad.names import slug

if TYPE_CHECKING:
    from legrad.bench.benchmark import Switch
    from legrad.bench.result import Result

_INTERRUPTED = 130  # as shells have it

Model = Annotated[
    str,
    typer.Option(
        help="embedded, open_clip:ARCH/TAG, timm:NAME, ...; see `legrad models`.", autocompletion=completion.models
    ),
]
Methods = Annotated[
    str | None,
    typer.Option(
        help="Comma-separated, the first is what the others are compared with; 'all' has the black boxes too; "
        "variants are METHOD:layers=K:readout=published|native:upsampling=guided:scale=half, legrad:heads=0+3. See "
        "`legrad methods`."
    ),
]
Data = Annotated[
    str,
    typer.Option(
        help="embedded, embedded:LOW-HIGH (objects in a scene), gtsegs_ijcv.mat, a table of points (.csv), or a "
        "folder: ImageNet-S, images/ with masks/, class folders of images or sounds, "
        "ImageNet's validation set, ADE20K Sound- or Speech-Prompted."
    ),
]
Out = Annotated[str, typer.Option(help="Folder for results; the same command goes on with an interrupted run.")]
Items = Annotated[int | None, typer.Option(min=1, help="Samples per method. Default: all; 200 scenes.")]
Minutes = Annotated[
    float | None, typer.Option(min=0.01, help="Time; item counts are cut to fit, and the result says so.")
]
Layers = Annotated[str | None, typer.Option(help="As for `legrad explain`.")]
Readout = Annotated[str, typer.Option(help="As for `legrad explain`.", autocompletion=completion.of(READOUTS))]
Size = Annotated[int | None, typer.Option(min=1, help="Side of the model's input in pixels. Default: the model's own.")]
Templates = Annotated[list[str] | None, typer.Option(help="Prompt with {} for the class; repeat it for an ensemble.")]
Names = Annotated[
    Path | None,
    typer.Option(
        help="What classes are called in prompts, and what the ids in masks/ mean: .json, .csv, or 'id name' lines."
    ),
]
Images = Annotated[Path | None, typer.Option(help="Images that belong to a table of points.")]
Unit = Annotated[str | None, typer.Option(help="Of x and y in a table of points of your own: pixels | relative.")]
Classes = Annotated[Path | None, typer.Option(help="Open Images' class descriptions, or ImageNet-S's list.")]
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
    "layer-importance": "How much of a map comes from which layer, and from which head?",
    "speed": "How many images per second, next to the bare forward pass?",
}
_RENAMED = {"fingerprint": "layer-importance"}  # names of the last release, which still work
_DEFAULT_MODELS = {"audio": "embedded:speech"}
_LONGEST_NAME = 50


class _Group(typer.core.TyperGroup):
    """Builds a benchmark's command when it is called: its options are read off classes that load torch."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] in _RENAMED:
            if not ctx.resilient_parsing:  # not while a shell completes the line
                print_warning(f"`legrad bench {args[0]}` is called `legrad bench {_RENAMED[args[0]]}` now")
            args = [_RENAMED[args[0]], *args[1:]]
        name, command, rest = super().resolve_command(ctx, args)
        return name, _benchmark_command(name) if name in _ABOUT else command, rest


app = typer.Typer(
    cls=_Group,
    help="Measure methods against each other: `legrad bench all` offline, or one benchmark on data of your own.",
    no_args_is_help=True,
)


def _benchmark_command(name: str) -> Any:
    """The command of one benchmark: the options that all have, and those of its own switches."""
    from legrad.bench import registry

    switches = registry.switches(name)

    def command(**options: Any) -> None:
        values = {switch: options.pop(switch) for switch in switches}
        settings = {
            switch: value.value if isinstance(value, enum.Enum) else value
            for switch, value in values.items()
            if _differs(switches[switch], value)
        }
        _measure(name, settings, **options)

    shared = [
        parameter.replace(default=_DEFAULT_MODELS.get(name, parameter.default))
        if parameter.name == "model"
        else parameter
        for parameter in inspect.signature(_measure).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    specific = [_parameter(switch, facts) for switch, facts in switches.items()]
    # typer reads the options off the signature
    command.__signature__ = inspect.Signature([*specific, *shared])  # type: ignore[attr-defined]
    single = typer.Typer(add_completion=False)
    single.command(name, help=_ABOUT[name])(command)
    return typer.main.get_command(single)


def _parameter(name: str, switch: "Switch") -> inspect.Parameter:
    """A switch as typer wants it: values that are listed are an enum."""
    kind: Any = enum.StrEnum(name, {value: value for value in switch.allowed}) if switch.allowed else switch.kind
    default = typer.Option(None if switch.optional else switch.default, help=switch.help)
    annotation = kind | None if switch.optional else kind
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _differs(switch: "Switch", value: Any) -> bool:
    """Whether a value is to be handed on: 0.0 is the default 0, under which earlier runs are filed."""
    return value is not None and (switch.optional or value != switch.default)


def _measure(
    name: str,
    settings: Mapping[str, Any],
    *,
    model: Model = "embedded",
    methods: Methods = None,
    data: Data = "embedded",
    out: Out = "legrad-bench",
    items: Items = None,
    minutes: Minutes = None,
    layers: Layers = None,
    readout: Readout = "auto",
    size: Size = None,
    template: Templates = None,
    names: Names = None,
    images: Images = None,
    unit: Unit = None,
    classes: Classes = None,
    device: Device = "auto",
    seed: Seed = 0,
    strict: Strict = False,
) -> None:
    """Run one benchmark with its switches; the keyword arguments are the options that all benchmarks have."""
    import legrad
    from legrad.bench.classes import TEMPLATES
    from legrad.bench.data import open_data
    from legrad.bench.single import measure
    from legrad.cli.options import parse_layers
    from legrad.results.manifest import folder_path

    layer_choice, class_names, folder = parse_layers(layers), _names(names), folder_path(out)
    check_count("--seed", seed, 0)
    selection = _methods(methods)
    explained, base = settings.get("explained"), settings.get("on", name)
    samples = open_data(data, base, images=images, classes=classes, explained=explained, unit=unit, names=class_names)
    explainer = legrad.load(model, device=device.lower())
    with _Display() as display:
        result = measure(
            name,
            explainer,
            samples,
            selection,
            folder,
            items=items,
            seconds=None if minutes is None else 60 * minutes,
            settings=settings,
            layers=layer_choice,
            readout=readout,
            size=size,
            templates=tuple(template or TEMPLATES),
            names=class_names,
            seed=seed,
            strict=strict,
            progress=display.progress,
        )
    _print(result)
    _print_report(folder)
    _end([result])


def _placeholder() -> None:
    """Lists a benchmark in the help of the group; ``_Group`` calls ``_benchmark_command`` instead."""


for _name, _about in _ABOUT.items():
    app.command(_name, help=_about)(_placeholder)


@app.command("all")
def everything(
    model: Annotated[
        list[str] | None,
        typer.Option(help="Repeat it for several; each gets a folder inside --out.", autocompletion=completion.models),
    ] = None,
    data: Data = "embedded",
    out: Out = "legrad-bench",
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Few images, no black boxes; about 3 minutes on two quiet cores."),
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="However long it takes, every ablation too, both embedded models.")
    ] = False,
    steps: Annotated[
        bool,
        typer.Option("--steps", help="What is measured in pixels, every method with guided upsampling and scale too."),
    ] = False,
    names: Names = None,
    device: Device = "auto",
    seed: Seed = 0,
    strict: Strict = False,
) -> None:
    """The whole study: every benchmark on every method, about half an hour on two quiet cores."""
    import legrad
    from legrad.bench.report.comparison import headlines, metric_title, summary_sentence
    from legrad.bench.study import FULL, PARTS, QUICK, Scale, study, with_steps
    from legrad.results.manifest import folder_path

    folder = folder_path(out)
    check_count("--seed", seed, 0)
    if quick and full:
        raise InputError("--quick and --full exclude each other")
    scale = QUICK if quick else FULL if full else Scale()
    models = model or (["embedded", "embedded:map"] if full and data.startswith("embedded") else ["embedded"])
    class_names, all_results = _names(names), []
    for model_name in models:
        explainer = legrad.load(model_name, device=device.lower())
        with _Display() as display:
            results = study(
                explainer,
                data,
                folder / _model_folder(model_name),
                scale,
                names=class_names,
                seed=seed,
                strict=strict,
                progress=display.progress,
                parts=with_steps() if steps else PARTS,
            )
        console.print(f"[bold]{plain(model_name)}[/bold]")
        for content, name in headlines([result.content for result in results]):
            line = f"{metric_title(content, name)}: {summary_sentence(content, name)}"
            console.print(plain(line), soft_wrap=True, highlight=False)
        all_results += results
    _print_report(folder)
    _end(all_results)


@app.command()
def report(folder: Annotated[str, typer.Argument(help="The --out of a run.")]) -> None:
    """Markdown, CSV and figures from all results in a folder; LaTeX, PDF and SVG in paper/."""
    from legrad.results.manifest import folder_path

    _print_report(folder_path(folder))


app.command()(paper.table)


def _names(path: Path | None) -> dict[str, str] | None:
    from legrad.datasets import names

    return None if path is None else names.read(path)


def _methods(text: str | None) -> list[str]:
    """ "a,b" -> ["a", "b"]; "all" is every method; nothing -> an empty list."""
    from legrad.bench.variants import known_methods

    if text is None:
        return []
    names = list(known_methods()) if text == "all" else [part.strip() for part in text.split(",")]
    if not all(names):
        raise InputError(f"--methods takes names with commas between them, got {text!r}")
    return names


def _model_folder(model: str) -> str:
    """A folder name of its own for every model, however long the path to it is."""
    name = slug(model)
    if len(name) >= _LONGEST_NAME:
        name += f"-{hashlib.sha256(model.encode('utf-8', 'replace')).hexdigest()[:8]}"
    return name


def _end(results: "Sequence[Result]") -> None:
    """Exit status 1 where nothing at all was measured."""
    if not any(method["items"] for result in results for method in result.content["methods"].values()):
        raise typer.Exit(1)


class _Display:
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
        self._problems: set[str] = set()
        self.progress = Progress(self._started, self._advanced, self._problem)

    def __enter__(self) -> "_Display":
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
        if line in self._problems:  # by another part of a study
            return
        self._problems.add(line)
        stderr.print(f"[yellow]problem:[/yellow] {plain(line)}", soft_wrap=True, highlight=False)


def _print(result: "Result") -> None:
    """The headline numbers of one run."""
    content = result.content
    metrics = list(content["metrics"])[:4]
    table = Table(Column("method", no_wrap=True), *(content["metrics"][name]["title"] for name in metrics), "items")
    for method, record in content["methods"].items():
        cells = []
        for name in metrics:
            numbers = record["metrics"].get(name) or {"value": None}
            cells.append("" if numbers["value"] is None else f"{numbers['value']:.3f}")
        table.add_row(plain(method), *cells, str(record["items"]))
    console.print(table)
    for line in content["cuts"]:
        console.print(f"cut: {plain(line)}", soft_wrap=True, highlight=False)


def _print_report(folder: Path) -> None:
    from legrad.bench.report.page import report as write

    page = write(folder)
    console.print(f"report: {plain(str(page))}", soft_wrap=True, highlight=False)
