"""What every data set gives: one image, or sound, with what is known about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from numpy.typing import NDArray

IGNORE = "ignore"  # key of ``Sample.extra``: bool (H, W), the pixels that count nowhere


@dataclass(frozen=True, eq=False)
class Sample:
    """One item of a data set.

    Attributes:
        key: unique and stable within the data set; a run is resumed by it.
        image: RGB, EXIF rotation applied, in its original size (W, H); of a data set of sounds the sound's path.
        label: the true class where there is one: WordNet id, folder name or index. If there are masks too, it is a key
            of them; its mask may be empty.
        masks: class name -> bool (H, W), in the image's size.
        points: class name -> (positive (P, 2), negative (N, 2)), float64 x, y in pixels of the image: a point lies in
            the pixel (floor(x), floor(y)).
        extra: what only some data sets know; ``IGNORE`` is a bool (H, W) of pixels that count nowhere.
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
        facts: what a result file tells about the data, ready for JSON: at least ``path``, ``items`` and ``problems``
            (a list of lines: what was found wrong, or was left out, at opening).
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
