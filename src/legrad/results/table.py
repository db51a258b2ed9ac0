"""A folder of results as a table of pandas: numbers of benchmarks, or scores of explanations."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legrad.errors import InputError
from legrad.results.manifest import Manifest, folder_path, manifest_path
from legrad.results.measured import read

if TYPE_CHECKING:
    import pandas


def load(folder: "str | os.PathLike[str]") -> "pandas.DataFrame":
    """All results of a folder in one table.

    Args:
        folder: the ``--out`` of ``legrad bench``, with those in it, or of ``legrad explain`` (``Explanation.save``).

    Returns:
        Of benchmarks a row for every result, method and metric: file, benchmark, model, data, seed, protocol, method,
        metric, title, value, low, high, difference, difference_low, difference_high, chance, items, problems. Of
        explanations a row for every image and target: image, target, score, predicted, prompt_independent, and files.

    Raises:
        InputError: no folder, no result in it, or pandas is not installed.
    """
    rows = rows_of(folder)
    try:
        import pandas
    except ImportError as error:
        raise InputError(
            "results.load makes a table of pandas: pip install 'legrad[bench]', or pip install pandas"
        ) from error
    return pandas.DataFrame(rows)


def rows_of(folder: "str | os.PathLike[str]") -> list[dict[str, Any]]:
    """The rows of the table, as dictionaries; errors as of ``load``."""
    root = folder_path(folder)
    if not root.is_dir():
        raise InputError(f"no folder {str(root)!r}; give the --out of `legrad bench` or `legrad explain`")
    rows = []
    for path in sorted(path for path in root.rglob("*.json") if not path.name.startswith(".")):
        try:
            content = read(path)
            rows += list(_of_benchmark(path.relative_to(root), content))
        except (InputError, LookupError, TypeError, AttributeError):  # of another kind, or damaged
            continue
    if not rows:
        manifest = Manifest.read(manifest_path(root))
        rows = [] if manifest is None else list(_of_explanations(root, manifest))
    if not rows:
        raise InputError(f"{root} holds no results of `legrad bench` or `legrad explain`")
    return rows


def _of_benchmark(path: Path, content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    settings = content["settings"]
    head = {
        "file": path.as_posix(),
        "benchmark": content["benchmark"],
        "model": settings["subject"]["model"],
        "data": settings["data"]["name"],
        "seed": settings["seed"],
        "protocol": json.dumps(settings["protocol"], sort_keys=True),
    }
    for method, result in content["methods"].items():
        for metric, numbers in result["metrics"].items():
            tail = {"chance": content["chance"].get(metric), "items": result["items"], "problems": result["problems"]}
            title = content["metrics"][metric]["title"]
            yield {**head, "method": method, "metric": metric, "title": title, **numbers, **tail}


def _of_explanations(root: Path, manifest: Manifest) -> Iterator[dict[str, Any]]:
    files = ("arrays", "figure", "overlay", "animation")
    for entry in manifest.entries:
        for target in entry["targets"]:
            record = {**entry, **target}
            facts = {name: record.get(name) for name in ("image", "target", "score", "predicted", "prompt_independent")}
            yield {**facts, **{name: str(root / record[name]) for name in files if name in record}}
