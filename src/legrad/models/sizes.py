"""Copies of a tower for other input sizes, kept while the tower stays as it is."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from legrad.inputs.geometry import Size
from legrad.models.versions import checksum, hooks_version, settings_version, weights_version

_MAX_COPIES = 4


class SizedCopies:
    """The last few copies that were asked for; they share the tower's weights, and keep their own positions.

    Args:
        tower: of the model.
        make: (height, width) -> an anatomy with a copy of the tower, or with the tower itself.
    """

    def __init__(self, tower: nn.Module, make: Callable[[Size], Any]) -> None:
        self._tower, self._make = tower, make
        self._copies: OrderedDict[Size, tuple[Any, dict[str, tuple[float, float]], Any]] = OrderedDict()

    def at(self, size: Size) -> Any:
        """The anatomy for an input size; made anew if the tower changed in any way since."""
        version = weights_version(self._tower), settings_version(self._tower), hooks_version(self._tower)
        entry = self._copies.get(size)
        if (
            entry is None
            or entry[0] != version
            or any(
                name not in self._tensors() or checksum(self._tensors()[name]) != numbers
                for name, numbers in entry[1].items()
            )
        ):
            anatomy = self._make(size)
            self._copies[size] = version, self._not_shared(anatomy.tower), anatomy
        self._copies.move_to_end(size)
        while len(self._copies) > _MAX_COPIES:
            self._copies.popitem(last=False)
        return self._copies[size][2]

    def _tensors(self) -> dict[str, Tensor]:
        return dict([*self._tower.named_parameters(), *self._tower.named_buffers()])

    def _not_shared(self, copy: nn.Module) -> dict[str, tuple[float, float]]:
        """Checksums of the tower's tensors that a copy has its own of: writing on them changes the tower only."""
        tensors = dict([*copy.named_parameters(), *copy.named_buffers()])
        return {name: checksum(tensor) for name, tensor in self._tensors().items() if tensors.get(name) is not tensor}
