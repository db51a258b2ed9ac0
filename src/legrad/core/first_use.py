"""What is checked and found out at the first use of an input shape."""

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

from torch import Tensor

from legrad.core.attention import AttentionCall
from legrad.core.closed_form import PostAttention
from legrad.core.first_look import Examiner
from legrad.core.gradients import GradientCheck
from legrad.core.hooks import record
from legrad.core.memory import ran_out
from legrad.core.planning import Planner, Shortcuts
from legrad.core.positions import no_position_check, position_check, random_input
from legrad.core.readout import takes_mean_token
from legrad.core.state import evaluation_mode, exclusive
from legrad.core.truth import Instrumented, coarsest, distance, native_feature, plain_answer, tolerance, truth_check
from legrad.errors import InputError, LeGradError, UnsupportedModelError
from legrad.models.anatomy import ViTAnatomy
from legrad.models.versions import hooks_version, settings_version, weights_version

_MAX_SHAPES = 32  # of inputs that are remembered

Gradients = Literal["none", "layers", "all"]
T = TypeVar("T")


def first_that_holds(anatomies: Sequence[ViTAnatomy]) -> ViTAnatomy:
    """Which of several descriptions of one model is right: its read-out gives the model's own output, and the truth
    check and the position check pass.

    Args:
        anatomies: of one tower with the same blocks.

    Raises:
        UnsupportedModelError: none of them.
    """
    tower = anatomies[0].tower
    reason = ""
    with exclusive(anatomies[0].blocks[0]), evaluation_mode(tower, anatomies[0].call_settings):
        batch = random_input(anatomies[0])
        with record(anatomies[0].blocks) as outputs:
            expected = plain_answer(anatomies[0], batch)
        # under an autocast of its own a model computes in less than its weights' type
        limit = tolerance(coarsest(batch.dtype, expected.dtype, anatomies[0].to_tokens(outputs[-1]).dtype))
        fitting = {
            index: distance
            for index, anatomy in enumerate(anatomies)
            if (distance := _readout_distance(anatomy, outputs[-1], expected)) <= limit
        }
        for index in sorted(fitting, key=fitting.__getitem__):
            try:
                truth_check(anatomies[index], batch)
                if not no_position_check(anatomies[index]):
                    position_check(anatomies[index], batch)
            except LeGradError as error:
                reason = reason or str(error)
            else:
                return anatomies[index]
    raise UnsupportedModelError(
        f"{type(tower).__name__} has a forward pass of its own, and none of the usual ways to pool tokens describes it "
        f"({reason or 'their read-outs give other outputs'}): describe it with legrad.wrap(model, "
        "anatomy=legrad.ViTAnatomy(...)), see docs/explain-your-own-model.md"
    )


def _readout_distance(anatomy: ViTAnatomy, block_output: Any, expected: Tensor) -> float:
    """Between the native read-out of the last block's tokens and the model's output; infinite if it fails."""
    try:
        feature = native_feature(anatomy, anatomy.to_tokens(block_output))
    except Exception as error:  # one way to pool among several: it may fit nothing
        if ran_out(error):
            raise
        return math.inf
    return distance(feature, expected) if feature.shape == expected.shape else math.inf


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
        self._mean_readout_version: tuple[Any, ...] = ()
        self.shortcuts: OrderedDict[tuple[Any, ...], Shortcuts] = OrderedDict()
        self._new_hooks = False
        # by type and device: what was found out about the blocks holds for every size
        self._tails: dict[tuple[Any, ...], dict[int, PostAttention]] = {}
        self._gradients_checked: set[Gradients] = set()

    def check_mean_readout(self, anatomy: ViTAnatomy) -> None:
        """Refuse a published read-out that was made of a native one which does not read a class token or an average.

        Call it inside ``state.evaluation_mode``.

        Args:
            anatomy: of the model's own size.

        Raises:
            InputError: the head reads single patches.
        """
        version = weights_version(self._anatomy.tower)
        if version == self._mean_readout_version:
            return
        with record(anatomy.blocks) as outputs:
            plain_answer(anatomy, random_input(anatomy))
        if not takes_mean_token(anatomy, anatomy.to_tokens(outputs[-1])):
            raise InputError(
                "readout='published' feeds the mean of all tokens to the model's head, and this head reads more than a "
                "class token or an average of the patches: use readout='native', or give the anatomy a \"published\" "
                "read-out"
            )
        self._mean_readout_version = version

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
        # hooks on a block itself see what it hands on, and change no gradient inside
        inner = (child for block in self._anatomy.blocks for child in block.children())
        version = (
            weights_version(self._anatomy.tower),
            settings_version(self._anatomy.tower),
            tuple(map(hooks_version, inner)),
        )
        if version != self._version:  # trained on, loaded, rebuilt, switched: what was found out may hold no longer
            self.shortcuts.clear()
            self._tails.clear()
            self._gradients_checked.clear()
            self._new_hooks = version[:-1] == self._version[:-1]
            self._version = version
        known = key in self.shortcuts and self.shortcuts[key].first_look is None
        check_layers = gradients != "none" and "layers" not in self._gradients_checked
        if not known or check_layers:
            shortcuts = self.shortcuts[key] = Shortcuts()
            if gradients == "layers" and not anatomy.side_inputs:
                shortcuts.first_look = partial(self._look_while_explaining, shortcuts, anatomy, check_layers)
            else:
                self._look(shortcuts, anatomy, image, check_layers)
        if gradients == "all" and "all" not in self._gradients_checked:
            check = GradientCheck(anatomy)
            check.whole_model(image)
            check.require_right()
            self._gradients_checked.add("all")
        self.shortcuts.move_to_end(key)
        while len(self.shortcuts) > _MAX_SHAPES:
            self.shortcuts.popitem(last=False)
        return self.shortcuts[key]

    def _look(self, shortcuts: Shortcuts, anatomy: ViTAnatomy, image: Tensor, check_layers: bool) -> None:
        """The truth check by itself, over all tokens."""
        planner, check = Planner(anatomy), GradientCheck(anatomy)

        def inspect(layer: int, tokens: Tensor, calls: list[AttentionCall]) -> None:
            planner.visit(layer, tokens, calls)
            if check_layers:
                check.block(layer, tokens, calls)

        tokens = truth_check(anatomy, image, inspect)
        if check_layers:
            check.readouts(tokens)
            check.require_right()
        self._note(shortcuts, planner.shortcuts, anatomy, check_layers)

    def _look_while_explaining(
        self,
        shortcuts: Shortcuts,
        anatomy: ViTAnatomy,
        check_layers: bool,
        batch: Tensor,
        explaining_pass: Callable[[Examiner], tuple[T | None, Instrumented]],
    ) -> T | None:
        """The truth check inside the first pass that explains; None if that pass has to be run again.

        Whatever fails, the truth check by itself decides, and tells it.
        """
        check = GradientCheck(anatomy) if check_layers else None
        examiner = Examiner(anatomy, check, self._tails.get((batch.dtype, batch.device)))
        result: T | None = None

        def instrumented() -> Instrumented:
            nonlocal result
            result, forward = explaining_pass(examiner)
            return forward

        try:
            examiner.finish(truth_check(anatomy, batch, instrumented=instrumented))
        except Exception as error:
            if ran_out(error):
                raise
            shortcuts.token_spans.clear()
            result = None
        if result is None:
            try:
                self._look(shortcuts, anatomy, batch[:1], check_layers)
            except InputError as error:
                if self._new_hooks and error.__cause__ is not None:  # what a hook raises is its owner's
                    raise error.__cause__ from None
                raise
        else:
            self._note(shortcuts, examiner.shortcuts, anatomy, check_layers)
        return result

    def _note(self, shortcuts: Shortcuts, fresh: Shortcuts, anatomy: ViTAnatomy, check_layers: bool) -> None:
        """Remember what was found out about a shape, after the last of its checks."""
        if self._check_positions and not no_position_check(anatomy):
            position_check(anatomy, random_input(anatomy))
        if check_layers:
            self._gradients_checked.add("layers")
        self._tails.setdefault((anatomy.dtype, anatomy.device), dict(fresh.tails))
        shortcuts.tails.update(fresh.tails)
        shortcuts.first_look = None
