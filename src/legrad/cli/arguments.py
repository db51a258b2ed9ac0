"""The arguments of ``legrad explain``, as the shell takes and completes them."""

from typing import Annotated

import typer

from legrad.choices import FITS, IMAGE_FORMATS, READOUTS, UPSAMPLINGS
from legrad.cli import completion

Images = Annotated[
    list[str] | None,
    typer.Argument(
        help="Files, folders (with their sub-folders), globs or URLs; - reads a list of them. Default: a sample scene."
    ),
]
Lists = Annotated[
    list[str] | None,
    typer.Option(
        "--from",
        metavar="FILE",
        help="A list of images, one a line; or a CSV or JSONL table of images and their own texts. - is the standard "
        "input. Repeat it.",
    ),
]
Texts = Annotated[list[str] | None, typer.Option("-t", "--text", help="What to look for, verbatim; repeat it.")]
Labels = Annotated[list[str] | None, typer.Option("--class", help="A classifier's class index or label; repeat it.")]
References = Annotated[list[str] | None, typer.Option(help="Another image: what looks like it in these? Repeat it.")]
Sounds = Annotated[
    list[str] | None, typer.Option(help="A sound: where is what it names (or what makes it)? Repeat it.")
]
Pair = Annotated[
    tuple[str, str] | None,
    typer.Option(metavar="A B", help="What speaks for A rather than B: texts, classes or image files."),
]
Names = Annotated[
    list[str] | None,
    typer.Option(help="The best-matching one of these names, for every image; one name each, repeat it."),
]
Predicted = Annotated[bool, typer.Option("--predicted", help="The class that the classifier predicts.")]
NullTarget = Annotated[
    str | None, typer.Option(help="A text whose map is taken for background, such as 'a photo of a'.")
]
Model = Annotated[
    str | None,
    typer.Option(
        help="embedded, embedded:map, open_clip:ARCH/TAG, ...: see `legrad models`. Default: embedded, and "
        "embedded:speech with --audio.",
        autocompletion=completion.models,
    ),
]
Layers = Annotated[str | None, typer.Option(help="How many of the last layers (3), or which (0,3,-1). Default: all.")]
Readout = Annotated[str, typer.Option(help=" | ".join(READOUTS), autocompletion=completion.of(READOUTS))]
MethodName = Annotated[
    str,
    typer.Option(help="legrad, a baseline or a control; see `legrad methods`.", autocompletion=completion.methods),
]
Size = Annotated[str | None, typer.Option(help="Input size, 448 or HEIGHTxWIDTH. Default: the model's.")]
FitName = Annotated[str, typer.Option(help=" | ".join(FITS), autocompletion=completion.of(FITS))]
ValueRange = Annotated[
    tuple[float, float] | None,
    typer.Option(metavar="LOW HIGH", help="Values that become black and white, such as 0 4095. Default: the file's."),
]
PerLayer = Annotated[bool, typer.Option("--per-layer", help="Add a figure with every layer.")]
Out = Annotated[
    str,
    typer.Option(
        help="Folder for the results. Where earlier ones are, a new folder beside it is taken (results-2), unless "
        "--overwrite or --resume says otherwise."
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the results of an earlier run in --out; files of yours stay.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in --out: images that are finished are left out.")
]
Figures = Annotated[
    bool, typer.Option("--figures/--no-figures", help="A figure per image with all targets side by side.")
]
Format = Annotated[
    str,
    typer.Option(
        help=f"Of overlays and figures: {' | '.join(IMAGE_FORMATS)}", autocompletion=completion.of(IMAGE_FORMATS)
    ),
]
Arrays = Annotated[
    str,
    typer.Option(
        help="yes | no | only: files with raw numbers (.npz).", autocompletion=completion.of(completion.ARRAYS)
    ),
]
Normalize = Annotated[
    str,
    typer.Option(
        help="map: every map has its full range of colours; shared: the maps of an image share one, and compare; "
        "half: from the background to the peak of each map, half of it at 0.5.",
        autocompletion=completion.of(completion.NORMALIZATIONS),
    ),
]
Html = Annotated[bool, typer.Option("--html", help="Add report.html: one file with all results, to send.")]
Masks = Annotated[bool, typer.Option("--masks", help="Add a PNG with the masks of all targets.")]
Boxes = Annotated[bool, typer.Option("--boxes", help="Add a box around every part of the masks: pixels, or s and Hz.")]
Export = Annotated[
    str | None,
    typer.Option(help=f"Files for other tools, with commas between them: {', '.join(completion.EXPORTS)}."),
]
Threshold = Annotated[
    str, typer.Option(help="Of masks and boxes: half, otsu, mean, or a number from 0 to 1, see the docs on results.")
]
Upsample = Annotated[
    str,
    typer.Option(
        help="Of overlays and figures: bilinear, as published, or guided, along the contours of the image.",
        autocompletion=completion.of(UPSAMPLINGS),
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
Device = Annotated[
    str,
    typer.Option(
        help="auto (CUDA, then MPS, then CPU), cpu, cuda, mps, ...", autocompletion=completion.of(completion.DEVICES)
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help=f"Of the model: {' | '.join(completion.DTYPES)}.", autocompletion=completion.of(completion.DTYPES)
    ),
]
ColourMap = Annotated[str, typer.Option(help="matplotlib colour map; jet for the authors' look.")]
