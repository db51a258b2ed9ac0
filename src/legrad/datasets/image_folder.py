"""Labelled images for the perturbation test: a folder per class, or ImageNet's validation set.

ImageNet's validation images may lie in class folders (``val/n01440764/ILSVRC2012_val_00000293.JPEG``, as torchvision
leaves them) or flat (``val/ILSVRC2012_val_00000293.JPEG``) beside the devkit: ``ILSVRC2012_devkit_t12.tar.gz``, the
same unpacked, or torchvision's ``meta.bin``. Nothing is downloaded, unpacked or moved.
"""

import importlib
import io
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from legrad.checks import first_line
from legrad.datasets import names
from legrad.datasets.files import PathLike, Problems, folder, image_paths, inside, refuse_empty
from legrad.datasets.sample import Sample
from legrad.errors import InputError
from legrad.inputs import images

_DEVKIT = "ILSVRC2012_devkit_t12"
_DEVKIT_BYTES = 100_000_000  # of one of its files, unpacked


class ImageFolder:
    """Images with one class each.

    ``label`` is the class folder's name, a WordNet id in ImageNet. ``extra["index"]`` is the position among ImageNet's
    1000 classes if all labels are among them, so that a subset keeps its numbers; else the position among
    the folders. ``facts["numbering"]`` says which.

    Args:
        root: a folder of class folders, or of ImageNet as torchvision takes it: with ``val/`` and, for flat images,
            the devkit.

    Attributes:
        classes: the labels, sorted.

    Raises:
        InputError: no folder, no images, or flat images without a usable devkit.
    """

    name = "image-folder"

    def __init__(self, root: PathLike) -> None:
        self._root = folder(root, "a folder of class folders")
        inner = self._root / "val"
        self._images = inner if inner.is_dir() else self._root
        problems = Problems()
        classes = sorted(p.name for p in self._images.iterdir() if p.is_dir() and not p.name.startswith("."))
        flat = image_paths(self._images)
        if flat and not any(image_paths(self._images / name, nested=True) for name in classes):
            self._items = list(zip([path.name for path in flat], _devkit_labels(self._root, len(flat)), strict=True))
        else:
            self._items = []
            for name in classes:
                paths = image_paths(self._images / name, nested=True)
                self._items += [(path.relative_to(self._images).as_posix(), name) for path in paths]
                if not paths:
                    problems.add("a class folder without images", name)
            for path in flat:
                problems.add("an image outside the class folders, left out", path.name)
        refuse_empty(self._items, self._images, "images in class folders", problems)
        self.classes = sorted({label for _, label in self._items})
        all_imagenet = all(names.is_wordnet_id(label) and label in names.imagenet_indices() for label in self.classes)
        self._indices = names.imagenet_indices() if all_imagenet else {label: i for i, label in enumerate(self.classes)}
        self.facts: Mapping[str, Any] = {
            "path": str(self._images),
            "items": len(self._items),
            "classes": len(self.classes),
            "numbering": "imagenet-1k" if all_imagenet else "folders",
            "problems": problems.lines(),
        }

    def __len__(self) -> int:
        return len(self._items)

    def keys(self) -> list[str]:
        """Paths below the folder of images."""
        return [name for name, _ in self._items]

    def files(self, index: int) -> list[Path]:
        """The files that decide about item ``index``."""
        labels = [self._root / name for name in ("meta.bin", f"{_DEVKIT}.tar.gz")]
        return [inside(self._images, self._items[index][0]), *filter(Path.is_file, labels)]

    def __getitem__(self, index: int) -> Sample:
        """Item ``index``, see ``Dataset``."""
        name, label = self._items[index]
        image = images.read(inside(self._images, name))
        return Sample(name, image, label, extra={"index": self._indices[label]})


def _devkit_labels(root: Path, count: int) -> list[str]:
    """The WordNet ids of the validation images in the order of their names."""
    if (root / "meta.bin").is_file():
        labels = _meta_bin(root / "meta.bin")
    else:
        ids, truth = _synsets(root), _devkit_file(root, "ILSVRC2012_validation_ground_truth.txt")
        try:
            labels = [ids[int(line)] for line in truth.decode("ascii").split()]
        except (ValueError, KeyError) as error:
            raise InputError(f"{root}: the devkit's ground truth is not a list of its class ids ({error})") from error
    if len(labels) != count:
        raise InputError(f"{root}: {count} validation images, but the devkit has labels for {len(labels)}")
    return labels


def _meta_bin(path: Path) -> list[str]:
    """The labels in the file that torchvision makes of the devkit."""
    try:
        _, labels = torch.load(path, weights_only=True)
        labels = [str(label) for label in labels]
    except Exception as error:  # torch.load documents no set of errors
        raise InputError(f"{path} is not the meta.bin that torchvision writes: {first_line(error)}") from error
    return labels


def _synsets(root: Path) -> dict[int, str]:
    """ILSVRC id -> WordNet id of the classes without children, out of meta.mat."""
    try:
        loadmat = importlib.import_module("scipy.io").loadmat
    except ImportError as error:
        raise InputError("the devkit's meta.mat is read with scipy: pip install 'legrad[bench]'") from error
    try:
        table = loadmat(io.BytesIO(_devkit_file(root, "meta.mat")), squeeze_me=True)["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in table.ravel() if int(row["num_children"]) == 0}
    except InputError:
        raise
    except Exception as error:  # scipy's reader raises errors of any type for a broken file
        raise InputError(f"{root}: the devkit's meta.mat cannot be read: {first_line(error)}") from error


def _devkit_file(root: Path, name: str) -> bytes:
    """A file of the devkit, which may be packed."""
    inner = f"{_DEVKIT}/data/{name}"
    archive = root / f"{_DEVKIT}.tar.gz"
    try:
        if (root / inner).is_file() and (root / inner).stat().st_size <= _DEVKIT_BYTES:
            return (root / inner).read_bytes()
        if archive.is_file():
            with tarfile.open(archive) as tar:
                member = tar.extractfile(inner)
                if member is not None and tar.getmember(inner).size <= _DEVKIT_BYTES:
                    return member.read()
    except (OSError, tarfile.TarError, KeyError, EOFError, zlib.error) as error:
        raise InputError(f"{root}: cannot read {inner} of the devkit: {first_line(error)}") from error
    raise InputError(
        f"{root} holds images without class folders; their labels are in {_DEVKIT}.tar.gz (or unpacked, or as "
        f"torchvision's meta.bin), which is not there or lacks {name}"
    )
