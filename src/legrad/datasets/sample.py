"""Data sets and their items: an image or a sound, with its label, masks and points."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from numpy.typing import NDArray

IGNORE = "ignore"  # key of ``Sample.extra``: bool (H, W), the pixels that are not evaluated


@dataclass(frozen=True, eq=False)
class Sample:
    """One item of a data set.

    Attributes:
        key: unique and stable within the data set; resumed runs find their items by it.
        image: RGB, EXIF rotation applied, in its original size (W, H); of a data set of sounds the sound's path.
        label: the true class if there is one: WordNet id, folder name or index. If there are masks too, it is a key
            of them; its mask may be empty.
        masks: class name -> bool (H, W), in the image's size.
        points: class name -> (positive (P, 2), negative (N, 2)), float64 x, y in pixels of the image: a point lies in
            the pixel (floor(x), floor(y)).
        extra: facts that only some data sets have; ``IGNORE`` is a bool (H, W) of pixels that are not evaluated.
    """

    key: str
    image: Any
    label: str | int | None = None
    masks: "Mapping[str, NDArray[Any]]" = field(default_factory=dict)
    points: "Mapping[str, tuple[NDArray[Any], NDArray[Any]]]" = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


class Dataset(Protocol):
    """A sequence of samples, read one at a time.

    Attributes:
        name: short, for tables and file names.
        facts: about the data, for result files, ready for JSON: at least ``path``, ``items`` and ``problems``
            (a list of lines: what is wrong, or is left out).
    """

    name: str
    facts: Mapping[str, Any]

    def __len__(self) -> int: ...

    def keys(self) -> Sequence[str]:
        """The key of every item, in order."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """Read one item; ``InputError`` if this one is missing or broken, ``IndexError`` beyond the end."""
        ...
