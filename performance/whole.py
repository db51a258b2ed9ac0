"""Measure what a person at the keyboard waits for: ``python -m performance.whole``, a quarter of an hour on two cores.

Start of the command line, explaining and saving, images per second from files, memory of a large image. Random weights
and random images; contenders take turns. Samples are written to ``docs/performance/whole.json``, tables to ``whole.md``
beside it, which ``python -m performance --render`` puts into the page.
"""

import json
import os
import pty
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from performance import memory
from performance.cases import B16, Case
from performance.results import GB
from performance.sampling import Spread, interleave
from performance.store import ROOT, machine, revision
from performance.tables import Table, markdown
from performance.workloads import build

FOLDER = ROOT / "docs" / "performance"
LIBRARIES = (
    "import torch, torchvision, open_clip, timm.layers, safetensors.torch, psutil, PIL.Image, rich.progress, typer, "
    "matplotlib.figure, matplotlib.colors, matplotlib.cm, matplotlib.backends.backend_agg"
)
SIZES = {"0.3 MP": (480, 640), "12 MP": (3000, 4000)}
# (size, images, prompts, format): what is explained and saved
SAVES = (
    *(("0.3 MP", images, prompts, "png") for images, prompts in ((1, 1), (1, 4), (1, 16), (10, 1), (10, 4), (10, 16))),
    ("0.3 MP", 100, 1, "png"),
    *(("12 MP", 1, prompts, "png") for prompts in (1, 4, 16)),
    ("12 MP", 1, 4, "jpg"),
    ("12 MP", 1, 4, "webp"),
    ("12 MP", 10, 1, "png"),
    ("12 MP", 10, 4, "jpg"),
)
FILES = 256  # of the rate
LARGE = (8660, 11547)  # pixels: 100 megapixels


def image_file(path: Path, size: tuple[int, int], seed: int = 0) -> Path:
    """A JPEG with smooth random content, and some noise as cameras have it."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3), np.uint8))
    pixels = np.asarray(small.resize(size[::-1], Image.Resampling.BILINEAR)).astype(np.int16)
    noise = rng.integers(-4, 5, (*size, 1), np.int16)
    Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(path, quality=92)
    return path


# -- commands -----------------------------------------------------------------------------------------------------


def run_python(*arguments: str) -> None:
    """A fresh interpreter, its output thrown away."""
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Explain:
    """``legrad explain`` with stderr on a terminal; remembers when the first sign of life was seen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.first: list[float] = []

    def __call__(self) -> None:
        """Run it to its end."""
        master, slave = pty.openpty()
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "legrad.cli", "explain", "-t", "a dog", "--out", str(self.folder), "--overwrite"],
            stdout=subprocess.DEVNULL,
            stderr=slave,
            env={**os.environ, "TERM": "xterm", "PYTHONWARNINGS": "ignore"},
        )
        os.close(slave)
        os.read(master, 1)
        self.first.append(time.perf_counter() - start)
        try:
            while os.read(master, 1 << 16):
                pass
        except OSError:  # the other end is closed
            pass
        os.close(master)
        if process.wait():
            raise RuntimeError(f"legrad explain ended with {process.returncode}")


def commands(rounds: int) -> dict[str, list[float]]:
    """Seconds of every command, and until the first sign of ``legrad explain``; one round of all after the other."""
    with tempfile.TemporaryDirectory() as folder:
        explain = Explain(Path(folder, "out"))
        contenders: dict[str, Callable[[], None]] = {
            "import torch": lambda: run_python("-c", "import torch"),
            "legrad --help": lambda: run_python("-m", "legrad.cli", "--help"),
            "legrad --version": lambda: run_python("-m", "legrad.cli", "--version"),
            "legrad methods": lambda: run_python("-m", "legrad.cli", "methods"),
            "libraries": lambda: run_python("-c", LIBRARIES),
            "legrad explain": explain,
        }
        samples, _ = interleave(contenders, rounds, 0)
    return {**samples, "spinner": explain.first[1:]}


# -- in this process ----------------------------------------------------------------------------------------------


def explainer_and_targets(prompts: int) -> tuple[Any, Any, Any]:
    """ViT-B/16 with random weights, as many targets, and its bare forward pass of one image."""
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2

    import legrad

    workload = build(Case("time", "ours", B16, prompts=prompts), torch.device("cpu"))
    transform = image_transform_v2(PreprocessCfg(size=224, mean=(0.5,) * 3, std=(0.5,) * 3), is_train=False)
    return legrad.wrap(workload.model, transform=transform), workload.targets, workload.bare


def saves(rounds: int) -> list[dict[str, Any]]:
    """Seconds of explaining files, of the same tensors (the model's share), and of saving, by turns."""
    explainer, all_targets, _ = explainer_and_targets(16)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        paths = {
            name: [str(image_file(Path(folder, f"{name}-{i}.jpg"), size, i)) for i in range(10)]
            for name, size in SIZES.items()
        }
        for name, images, prompts, form in SAVES:
            files, targets = (paths[name] * 10)[:images], all_targets[:prompts]
            tensor = explainer.prepare(files).tensor
            kept: list[Any] = []

            def explain(files: Any = files, targets: Any = targets, kept: list[Any] = kept) -> None:
                kept[:] = [explainer.explain(files, targets)]

            def save(kept: list[Any] = kept, form: str = form) -> None:
                with tempfile.TemporaryDirectory(dir=folder) as out:
                    kept[0].save(out, format=form)

            calls = {
                "model": lambda tensor=tensor, targets=targets: explainer.explain(tensor, targets),
                "explain": explain,
                "save": save,
            }
            once = images * prompts > 10 or (name == "12 MP" and images * prompts > 4)
            samples, first = interleave(calls, 0, 0) if once else interleave(calls, rounds, 0)
            if once:  # the warm-up is the reading: what is measured was used before, with other numbers
                samples = {key: [value] for key, value in first.items()}
            rows.append({"size": name, "images": images, "prompts": prompts, "format": form, "seconds": samples})
    return rows


def rate() -> dict[str, float]:
    """Seconds of 256 files, and of their tensors."""
    explainer, targets, _ = explainer_and_targets(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(image_file(Path(folder, f"{index}.jpg"), SIZES["0.3 MP"], index)) for index in range(FILES)]
        tensor = explainer.prepare(paths).tensor
        explainer.explain(tensor[:32], targets)
        seconds: dict[str, list[float]] = {"tensors": [], "files": []}
        half = FILES // 2
        # halves of the tensors before and behind the files: a machine that slows down slows both
        for name, content in (("tensors", tensor[:half]), ("files", paths), ("tensors", tensor[half:])):
            start = time.perf_counter()
            explainer.explain(content, targets)
            seconds[name].append(time.perf_counter() - start)
    return {name: sum(values) for name, values in seconds.items()}


def large_image() -> dict[str, float]:
    """Bytes beyond the loaded model at the peak, of explaining and of showing an image of 100 megapixels."""
    import torch
    from PIL import Image

    import legrad

    Image.MAX_IMAGE_PIXELS = None
    device, explainer = torch.device("cpu"), legrad.load("embedded")
    kept: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        path = str(image_file(Path(folder, "large.jpg"), LARGE))
        explainer.explain(str(legrad.embedded.SAMPLE), "a dog").save(Path(folder, "warm-up"))
        before = memory.resident(device)
        calls: dict[str, Callable[[], Any]] = {
            "explain": lambda: kept.append(explainer.explain(path, ["a dog", "a cat"])),
            "save": lambda: kept[0].save(Path(folder, "out")),
            "save as jpg": lambda: kept[0].save(Path(folder, "jpg"), format="jpg"),
            "overlay": lambda: kept[0].overlay(),
            "figure": lambda: kept[0].figure(),
            "saliency": lambda: kept[0].saliency(),
        }
        return {name: memory.peak(call, device)[0] - before for name, call in calls.items()}


def large_image_alone(_: int) -> dict[str, float]:
    """``large_image`` in a process of its own."""
    order = [sys.executable, "-W", "ignore", "-m", "performance.whole", "--large"]
    done = subprocess.run(order, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


PARTS: dict[str, Callable[[int], Any]] = {
    "commands": commands,
    "large image": large_image_alone,
    "rate": lambda _: rate(),
    "saves": saves,
}


# -- tables -------------------------------------------------------------------------------------------------------


Goal = tuple[str, str, str, bool]  # case, target, measured, met


def tables(content: dict[str, Any]) -> list[Table]:
    """Targets and verdicts, commands, saving; of the parts that were measured."""
    goals: list[Goal] = []
    others: list[Table] = []
    if "commands" in content:
        goals += _command_goals(content["commands"])
        times = [
            (f"`{name}`", Spread.of(values).show(), str(len(values))) for name, values in content["commands"].items()
        ]
        others.append(("Commands, seconds", ("command", "seconds", "n"), times))
    if "rate" in content:
        share = content["rate"]["tensors"] / content["rate"]["files"]
        case = f"tensors alone / {FILES} JPEGs 640 x 480, ViT-B/16"
        goals.append((case, "at least 0.93", f"{share:.3f}", share >= 0.93))
    if "saves" in content:
        rows = [
            (
                *(str(row[name]) for name in ("size", "images", "prompts", "format")),
                *(Spread.of(row["seconds"][name]).show() for name in ("model", "explain", "save")),
            )
            for row in content["saves"]
        ]
        columns = ("image", "images", "prompts", "format", "tensors alone", "explain files", "save")
        others.append(("Explaining and saving, ViT-B/16, seconds", columns, rows))
    if "large image" in content:
        peak = max(content["large image"].values()) / GB
        goals.append(("100 megapixels, peak beyond the model", "at most 1.5 GB", f"{peak:.2f} GB", peak <= 1.5))
        memories = [(name, f"{value / GB:.2f}") for name, value in content["large image"].items()]
        title = "Memory of 100 megapixels, two prompts, embedded model"
        others.append((title, ("step", "GB beyond the model"), memories))
    targets = [(*goal[:3], "met" if goal[3] else "not met") for goal in goals]
    return [("Whole commands", ("case", "target", "measured", ""), targets), *others]


def _command_goals(seconds: dict[str, list[float]]) -> list[Goal]:
    goals: list[Goal] = []
    for name in ("legrad --help", "legrad --version", "legrad methods"):
        share = _ratio(seconds[name], seconds["import torch"])
        goals.append((f"`{name}` / `import torch`", "at most 0.2", share.show(), share.median <= 0.2))
    beyond = Spread.of([a - b for a, b in zip(seconds["legrad explain"], seconds["libraries"], strict=True)])
    spinner = Spread.of(seconds["spinner"])
    return [
        *goals,
        ("`legrad explain`, embedded, beyond its libraries", "at most 1 s", beyond.show() + " s", beyond.median <= 1),
        ("first sign of `legrad explain`", "at most 0.3 s", spinner.show() + " s", spinner.median <= 0.3),
    ]


def _ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])


def page(content: dict[str, Any], arguments: str) -> str:
    """The section: targets, what cannot be helped, all numbers."""
    first, *others = tables(content)
    code = f"Code {content['revision']}, load average at the start {content['load']:.1f}."
    smaller = [markdown(table).replace("## ", "### ") for table in others]
    return "\n\n".join([markdown(first), code, arguments, *smaller])


def main(
    rounds: Annotated[int, typer.Option(help="Of what takes turns.", min=1)] = 3,
    render: Annotated[bool, typer.Option("--render", help="Write the tables again, measure nothing.")] = False,
    folder: Annotated[Path, typer.Option(help="Where samples and tables go.")] = FOLDER,
    large: Annotated[bool, typer.Option("--large", help="The memory of a large image alone, as JSON.")] = False,
    part: Annotated[list[str] | None, typer.Option(help=f"Only this one, of {', '.join(PARTS)}; repeat it.")] = None,
) -> None:
    """Measure, and write samples and tables; what was measured before stays beside single parts."""
    if large:
        print(json.dumps(large_image()))
        return
    path, arguments = folder / "whole.json", FOLDER / "whole-arguments.md"
    known = json.loads(path.read_text()) if path.exists() and (render or part) else {}
    content = {**known, "machine": machine("cpu"), "revision": revision(), "load": os.getloadavg()[0]}
    if render:
        content = known
    else:
        folder.mkdir(parents=True, exist_ok=True)
        for name in part or PARTS:
            content[name] = PARTS[name](rounds)
            path.write_text(json.dumps(content, indent=1))
    if absent := [name for name in PARTS if name not in content]:
        print(f"not measured yet: {', '.join(absent)} (--part)")
    (folder / "whole.md").write_text(page(content, arguments.read_text().strip()) + "\n")
    print(f"wrote {folder / 'whole.md'}; python -m performance --render puts it into the page")


if __name__ == "__main__":
    typer.run(main)
