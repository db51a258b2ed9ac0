"""``legrad explain``: what its options mean, and the steps in order."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import legrad
from legrad.atomic import WriteError
from legrad.choices import FITS, IMAGE_FORMATS, READOUTS, UPSAMPLINGS
from legrad.cli import arguments as cli
from legrad.cli import completion, destination, output, sources
from legrad.cli.batches import explain_all
from legrad.cli.consoles import print_error
from legrad.cli.exports import Exports
from legrad.cli.notes import Notes
from legrad.cli.options import choice, method_name, parse_layers, parse_size
from legrad.cli.report import page_of
from legrad.cli.targets import HELP, TargetOptions
from legrad.cli.waiting import spinner, waits
from legrad.errors import InputError

if TYPE_CHECKING:
    from legrad.cli.destination import Destination
    from legrad.cli.sources import Source
    from legrad.explainer import Explainer
    from legrad.results.explanation import Explanation
    from legrad.results.folder import Folder
    from legrad.results.save import Contents
    from legrad.results.view import Style

_INTERRUPTED = 130  # as shells have it


@waits
def explain(
    image: cli.Images = None,
    list_file: cli.Lists = None,
    text: cli.Texts = None,
    label: cli.Labels = None,
    similar: cli.References = None,
    audio: cli.Sounds = None,
    contrast: cli.Pair = None,
    zeroshot: cli.Names = None,
    predicted: cli.Predicted = False,
    null_target: cli.NullTarget = None,
    model: cli.Model = None,
    layers: cli.Layers = None,
    readout: cli.Readout = "auto",
    method: cli.MethodName = "legrad",
    size: cli.Size = None,
    fit: cli.FitName = "model",
    value_range: cli.ValueRange = None,
    normalize: cli.Normalize = "map",
    upsampling: cli.Upsample = "bilinear",
    per_layer: cli.PerLayer = False,
    figures: cli.Figures = True,
    html: cli.Html = False,
    arrays: cli.Arrays = "yes",
    format: cli.Format = "png",
    cmap: cli.ColourMap = "inferno",
    out: cli.Out = "legrad-out",
    overwrite: cli.Overwrite = False,
    resume: cli.Resume = False,
    device: cli.Device = "auto",
    dtype: cli.Dtype = None,
    json: cli.Json = False,
    masks: cli.Masks = False,
    boxes: cli.Boxes = False,
    export: cli.Export = None,
    threshold: cli.Threshold = "half",
) -> None:
    """Explain images (videos, sounds): overlays, figures, raw arrays and a manifest in a folder."""
    # check the arguments before loading the model
    arguments: dict[str, Any] = {
        "layers": parse_layers(layers),
        "readout": choice("readout", readout, READOUTS),
        "size": parse_size(size),
        "fit": choice("fit", fit, FITS),
        "keep_layers": per_layer,
        "null_target": null_target,
    }
    from legrad.inputs import depth
    from legrad.methods import METHODS, find
    from legrad.results.save import Contents
    from legrad.results.view import Style

    arguments["method"] = kind = find(method_name(method))
    arguments["value_range"] = depth.checked(value_range)
    array_choice = choice("arrays", arrays, completion.ARRAYS)
    contents = Contents(
        format=choice("format", format, IMAGE_FORMATS),  # type: ignore[arg-type]
        figures=figures and array_choice != "only",
        overlays=array_choice != "only",
        arrays=array_choice != "no",
        per_layer=per_layer,
        scale=choice("normalize", normalize, completion.NORMALIZATIONS),  # type: ignore[arg-type]
        upsampling=choice("upsampling", upsampling, UPSAMPLINGS),  # type: ignore[arg-type]
    )
    style, exports = Style(cmap=cmap), Exports(masks, boxes, export, threshold, resume)
    asked = TargetOptions(
        text or (), label or (), similar or (), audio or (), contrast or (), zeroshot or (), predicted
    )
    asked.check()
    if html and not contents.arrays:
        raise InputError("--html shows what is in the arrays: leave --arrays no out")
    files = sources.sources(image or [], list_file or [])
    if not asked and kind.targets and not any(file.texts for file in files):
        if files:
            targetless = ", ".join(name for name in METHODS if not METHODS[name].targets)
            raise InputError(f"{HELP}; only {targetless} (--method) need no target")
        asked = TargetOptions([f"a photo of a {name}" for name in legrad.embedded.sample_names()])
    is_default = model is None
    model = model or ("embedded:speech" if audio else "embedded")
    options = _options(arguments, kind.name, contents, cmap, asked, model, dtype)
    place = destination.choose(out, overwrite, resume, options)
    explainer = legrad.load(model, device=device.lower(), dtype=dtype)
    asked.check_model(explainer, model)
    results = sources.earlier_results(files, place.root) if files else {}
    explainer, to_explain = sources.for_model(explainer, model, files, results)
    to_explain = place.unfinished(sources.without_results(to_explain, results))
    sources.print_left_out(image or [], explainer.anatomy.axes[0], results)
    exports.check(explainer.anatomy.axes[0])
    run = _Run(explainer, asked, arguments, place, contents, style, options, exports, Notes(is_default))
    run(to_explain)
    if html:
        run.add_page()
    run.tell(json)


def _options(
    arguments: dict[str, Any],
    method: str,
    contents: "Contents",
    cmap: str,
    asked: TargetOptions,
    model: str,
    dtype: str | None,
) -> dict[str, Any]:
    """What results depend on, ready for JSON: what was given, by the names of the options."""
    from dataclasses import asdict

    settings = {**arguments, **asdict(contents), **asked.record(), "method": method, "cmap": cmap, "dtype": dtype}
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    return {"model": model, **{name: value for name, value in lists.items() if value is not None}}


class _Run:
    """One run over images: explains, saves, and collects what went wrong."""

    def __init__(
        self,
        explainer: "Explainer",
        asked: TargetOptions,
        arguments: dict[str, Any],
        place: "Destination",
        contents: "Contents",
        style: "Style",
        options: dict[str, Any],
        exports: Exports,
        notes: Notes,
    ) -> None:
        self._explainer, self._arguments, self._place = explainer, arguments, place
        self._targets = asked.targets(explainer.anatomy.output)
        self._contents, self._style, self._options = contents, style, options
        self._exports, self._export_files = exports, list[Path]()
        self._folder: Folder = place.folder()
        self._notes = notes
        self._has_texts = False  # of their own, some images

    def __call__(self, files: "list[Source]") -> None:
        """Explain all files; what ends the run is one line."""
        self._has_texts = any(file.texts for file in files)
        still = self._explainer.anatomy.axes[0] == "rows"
        folder = self._folder
        try:
            with folder:
                explain_all(self._explain, self._save, self._fail, files, still, self._arguments["value_range"])
                self._export_files = self._exports.finish(folder)
                if folder.entries or (self._place.resume and folder.every_entry()):
                    folder.set_table("table", ".csv", output.table(folder.every_entry(), folder.failures))
        except WriteError as error:
            if not folder.entries:
                raise
            print_error(str(error))
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            count = len(folder.entries)
            earlier = "earlier results, if there were any, stay"
            goes_on = "the same command with --resume goes on" if count else earlier
            print_error(f"{count} images are in {folder.root}; {goes_on}", "interrupted:")
            raise typer.Exit(_INTERRUPTED) from None

    def _explain(self, files: "list[Source]", images: list[Any]) -> "Explanation":
        targets: Any = self._targets
        if self._has_texts:
            targets = [[*file.texts, *self._targets] for file in files]
            if not all(targets):
                raise InputError("the list has no text for this image; give one, or -t for all")
        return self._explainer.explain(images, targets or None, **self._arguments)

    def _save(self, explanation: "Explanation", index: int, file: "Source") -> None:
        from legrad.results.save import save_images

        self._place.tell()
        self._notes.add(explanation, index, file.path)
        save_images(
            explanation,
            self._folder,
            [index],
            self._style,
            self._contents,
            file.sub_folder,
            {"options": self._options},
            destination.note_of(file) | self._exports.of_image(explanation[index], self._folder, file.sub_folder),
        )

    def _fail(self, file: "Source", problem: str) -> None:
        from legrad.inputs import urls

        self._folder.failures.append({"image": urls.safe_url(file.path), "error": problem})

    def add_page(self) -> None:
        """Write the report, if there is anything to show."""
        if self._folder.entries or self._place.finished:
            self._export_files.append(page_of(self._folder.root))

    def tell(self, as_json: bool) -> None:
        """Print results and failures; the exit status is 1 where some images failed, 2 where all did."""
        spinner.stop()
        folder, done_before = self._folder, len(self._place.finished)
        failures = folder.failures
        self._notes.tell()
        if as_json:
            output.print_json(output.as_json(folder))
        else:
            output.print_results(folder, done_before)
            output.print_exports(folder, self._export_files)
        same = len(failures) > 1 and len({failure["error"] for failure in failures}) == 1
        if same and not folder.entries and not done_before:
            raise InputError(failures[0]["error"])  # the fault lies with targets or options
        for failure in failures:
            url, problem = failure["image"], failure["error"]
            print_error(problem if url in problem else f"{url}: {problem}")
        if failures:
            raise typer.Exit(1 if folder.entries or done_before else 2)
