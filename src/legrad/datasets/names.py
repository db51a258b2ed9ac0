"""Names of classes: from a file, or, for WordNet ids, from the tables in timm and open_clip."""

import csv
import functools
import importlib
import json
import re
from collections.abc import Mapping
from typing import Any

from legrad.checks import first_line
from legrad.datasets.files import PathLike, cells, file
from legrad.errors import InputError

_WORDNET_ID = re.compile(r"n\d{8}")
_HEADERS = {"id", "index", "class", "classid", "class_id", "code", "label", "labelname", "wnid", "synset", "imageid"}


def read(path: PathLike) -> dict[str, str]:
    """Class id -> name, from a file.

    Formats: JSON, {"id": "name"}, ["name", ...] (ids "0", "1", ...) or {"0": ["n01440764", "tench"], ...}; .csv and
    .tsv with the columns id and name, with or without a header; other text with "id name" in every line, such as
    ImageNet's synset_words.txt.

    Raises:
        InputError: missing, of another form, or with an id twice.
    """
    source = file(path, "the file of class names")
    try:
        if source.suffix.lower() == ".json":
            pairs = _of_json(json.loads(source.read_text(encoding="utf-8-sig")))
        elif source.suffix.lower() == ".tsv":
            text = source.read_text(encoding="utf-8-sig").splitlines()
            pairs = _of_table([row for row in csv.reader(text, delimiter="\t") if row])
        elif source.suffix.lower() == ".csv":
            pairs = _of_table(cells(source))
        else:
            lines = source.read_text(encoding="utf-8-sig").splitlines()
            pairs = _of_table([line.split(maxsplit=1) for line in lines if line.strip()])
    except InputError:
        raise
    except RecursionError as error:
        raise InputError(f"{source} does not hold class names: it is nested too deep") from error
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{source} does not hold class names: {first_line(error)}") from error
    names = {key.strip(): name.strip() for key, name in pairs}
    if len(names) < len(pairs):
        raise InputError(f"{source} names a class twice")
    if not names or not all(names.values()):
        raise InputError(f"{source} has {'a class without a name' if names else 'no class names'}")
    return names


def _of_json(content: Any) -> list[tuple[str, str]]:
    if isinstance(content, list):
        content = dict(enumerate(content))
    if not isinstance(content, dict):
        raise ValueError("expected a JSON object or list")
    pairs = [tuple(value) if isinstance(value, list) else (str(key), value) for key, value in content.items()]
    if not all(len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in pairs):
        raise ValueError('expected {"id": "name"}, ["name"] or {"0": ["id", "name"]}')
    return pairs


def _of_table(table: list[list[str]]) -> list[tuple[str, str]]:
    if table and table[0][0].strip().lower() in _HEADERS:
        table = table[1:]
    short = [row for row in table if len(row) < 2]
    if short:
        raise ValueError(f"expected an id and a name, got the line {' '.join(short[0])!r}")
    return [(row[0], row[1]) for row in table]


def is_wordnet_id(label: str) -> bool:
    """Whether a label looks like n01440764."""
    return _WORDNET_ID.fullmatch(label) is not None


@functools.cache
def imagenet_indices() -> Mapping[str, int]:
    """WordNet id -> index of ImageNet's 1000 classes, in the usual (sorted) order, from timm."""
    info = importlib.import_module("timm.data").ImageNetInfo("imagenet-1k")
    return {wnid: index for index, wnid in enumerate(info.label_names())}


@functools.cache
def _lemmas() -> Mapping[str, str]:
    """WordNet id -> lemmas, of all 21,843 ImageNet synsets, hypernyms included."""
    info = importlib.import_module("timm.data").ImageNetInfo("imagenet-21k-goog")
    return info.label_descriptions(as_dict=True)


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """The 1000 curated class names for zero-shot prompts, by index, from open_clip."""
    return tuple(importlib.import_module("open_clip").IMAGENET_CLASSNAMES)


def of_wordnet(wnid: str, custom: Mapping[str, str] | None = None) -> str:
    """The name of a synset for a prompt.

    Args:
        wnid: such as "n01440764".
        custom: names that take precedence, see ``read``.

    Returns:
        the custom name; else the curated one of ImageNet's 1000 classes; else the first lemma of WordNet.

    Raises:
        InputError: none of them has the id.
    """
    if custom and wnid in custom:
        return custom[wnid]
    if wnid in imagenet_indices():
        return imagenet_names()[imagenet_indices()[wnid]]
    if wnid in _lemmas():
        return _lemmas()[wnid].split(",")[0].strip()
    kind = "no ImageNet synset" if is_wordnet_id(wnid) else "not a WordNet id such as n01440764"
    raise InputError(f"{wnid!r} is {kind}; give a file of class names")
