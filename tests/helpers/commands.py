"""What tests of the command line share."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo


def photo(path, size=(64, 43), seed=0, names="cow"):
    """An image; a PNG calls itself a scene with these objects, lest the embedded model be warned of in every test."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (6, 9, 3), np.uint8))
    path = Path(path)
    options = {}
    if names and path.suffix == ".png":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text("names", names)
    path.parent.mkdir(parents=True, exist_ok=True)
    small.resize(size, Image.Resampling.BICUBIC).save(path, **options)
    return path


def manifest(folder="legrad-out"):
    return json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))


def assert_error(result, *words, code=2):
    """One line on stderr that says what is wrong; nothing else."""
    status, out, err = result
    assert status == code
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
