"""What is checked and found out at the first use of an input shape."""

import itertools
from typing import Any

from torch import Tensor

from legrad.core.planning import Planner, Shortcuts
from legrad.core.positions import no_position_check, position_check, random_input
from legrad.core.state import weights_version
from legrad.core.truth import truth_check
from legrad.errors import InputError
from legrad.models.anatomy import ViTAnatomy


class FirstUse:
    """The truth check's results for a model, remembered until its weights change.

    Args:
        anatomy: of the model's own size.
        check_positions: where the patches lie is checked too, for a user's own anatomy.

    Attributes:
        shortcuts: (shape, dtype, device, names of side inputs) of an input -> what may be computed in closed form.
    """

    def __init__(self, anatomy: ViTAnatomy, check_positions: bool = False) -> None:
        self._anatomy, self._check_positions = anatomy, check_positions
        self._weights_version: tuple[Any, ...] = ()
        self.shortcuts: dict[tuple[Any, ...], Shortcuts] = {}

    def shortcuts_for(self, image: Tensor, anatomy: ViTAnatomy) -> Shortcuts:
        """What may be computed in closed form for inputs like this one. Call it inside ``state.evaluation_mode``.

        Args:
            image: (1, *anatomy.shape) in the model's dtype.
            anatomy: for its size.

        Raises:
            TruthCheckError: the model is not what its anatomy says.
            InputError: the model was made under inference mode.
        """
        weights = itertools.chain(anatomy.blocks[0].parameters(), anatomy.blocks[0].buffers())
        if next(weights).is_inference():
            raise InputError(
                "the model was made under torch.inference_mode() and cannot be differentiated; load it outside"
            )
        key = (tuple(image.shape), image.dtype, image.device, anatomy.side_inputs)
        version = weights_version(self._anatomy.tower)
        if version != self._weights_version:  # trained on, loaded, rebuilt: what was found out may hold no longer
            self.shortcuts.clear()
            self._weights_version = version
        if key not in self.shortcuts:
            planner = Planner(anatomy)
            truth_check(anatomy, image, planner.visit)
            if self._check_positions and not no_position_check(anatomy):
                position_check(anatomy, random_input(anatomy))
            self.shortcuts[key] = planner.shortcuts
        return self.shortcuts[key]
