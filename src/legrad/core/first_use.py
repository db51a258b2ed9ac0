"""What is checked and found out at the first use of an input shape."""

import itertools
from collections import OrderedDict
from typing import Any, Literal

from torch import Tensor

from legrad.core.attention import AttentionCall
from legrad.core.gradients import GradientCheck
from legrad.core.planning import Planner, Shortcuts
from legrad.core.positions import no_position_check, position_check, random_input
from legrad.core.truth import truth_check
from legrad.errors import InputError
from legrad.models.anatomy import ViTAnatomy
from legrad.models.versions import settings_version, weights_version

_MAX_SHAPES = 32  # of inputs that are remembered

Gradients = Literal["none", "layers", "all"]


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
        self._version: tuple[Any, ...] = ()
        self.shortcuts: OrderedDict[tuple[Any, ...], Shortcuts] = OrderedDict()
        self._gradients_checked: set[Gradients] = set()

    def shortcuts_for(self, image: Tensor, anatomy: ViTAnatomy, gradients: Gradients = "layers") -> Shortcuts:
        """What may be computed in closed form for inputs like this one. Call it inside ``state.evaluation_mode``.

        Args:
            image: (1, *anatomy.shape) in the model's dtype.
            anatomy: for its size.
            gradients: which ones a method uses, and which are checked therefore: "layers" from the read-outs to each
                layer's attention, "all" also through the whole model, or "none".

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
        version = weights_version(self._anatomy.tower), settings_version(self._anatomy.tower)
        if version != self._version:  # trained on, loaded, rebuilt, switched: what was found out may hold no longer
            self.shortcuts.clear()
            self._gradients_checked.clear()
            self._version = version
        check = GradientCheck(anatomy)
        check_layers = gradients != "none" and "layers" not in self._gradients_checked
        if key not in self.shortcuts or check_layers:
            planner = Planner(anatomy)

            def inspect(layer: int, tokens: Tensor, calls: list[AttentionCall]) -> None:
                planner.visit(layer, tokens, calls)
                if check_layers:
                    check.block(layer, tokens, calls)

            tokens = truth_check(anatomy, image, inspect)
            if check_layers:
                check.readouts(tokens)
                check.require_right()
                self._gradients_checked.add("layers")
            if self._check_positions and not no_position_check(anatomy):
                position_check(anatomy, random_input(anatomy))
            self.shortcuts[key] = planner.shortcuts
        if gradients == "all" and "all" not in self._gradients_checked:
            check.whole_model(image)
            check.require_right()
            self._gradients_checked.add("all")
        self.shortcuts.move_to_end(key)
        while len(self.shortcuts) > _MAX_SHAPES:
            self.shortcuts.popitem(last=False)
        return self.shortcuts[key]
