"""The record of a method: its function, what it needs of a model, and which arguments it can use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from legrad.core.layers import resolve_layers
from legrad.errors import InputError
from legrad.methods.call import MethodInput
from legrad.models.anatomy import ViTAnatomy

Needs = Literal["gradients", "attention", "values", "black box", "nothing"]


@dataclass(frozen=True)
class Method:
    """One way to explain.

    Attributes:
        name: as ``method=`` takes it.
        summary: what the map is, in one sentence.
        source: the paper.
        function: ``MethodInput`` -> (images, targets, layers or 1, *grid), any device. None for LeGrad itself, which
            ``core.streaming`` computes.
        needs: of the model. "gradients" need attention maps too, except for tokens.
        cost: of one image and one target, beside a plain forward pass.
        layers: what ``layers=None`` means; "none" if the method has no layers to choose from.
        per_layer: whether there is a map for every layer, so that ``keep_layers`` makes sense.
        pooler_layers: whether layers can be chosen in models with an attentional pooler, which is read once.
        targets: whether the map depends on the target.
        readout: whether layer features are read out.
        signed: whether relevance can be negative: what speaks against the target. Saliency stretches it as any map,
            from the lowest to the highest value.
    """

    name: str
    summary: str
    source: str
    function: Callable[[MethodInput], Tensor] | None
    needs: Needs
    cost: str
    layers: Literal["all", "last", "none"] = "none"
    per_layer: bool = False
    pooler_layers: bool = False
    targets: bool = True
    readout: bool = False
    signed: bool = False

    def check(
        self,
        anatomy: ViTAnatomy,
        layers: int | Sequence[int] | None,
        readout: str,
        null_target: Any,
        keep_layers: bool,
    ) -> None:
        """Refuse arguments that this method cannot use.

        Raises:
            InputError: names the method and the argument.
        """
        refused = {
            "readout": not self.readout and readout != "auto" and "it reads the model's own output; leave 'auto'",
            "null_target": not self.targets and null_target is not None and "its maps do not depend on a target",
            "keep_layers": not self.per_layer and keep_layers and "it has one map, not one per layer",
            "layers": layers is not None and self._why_no_layers(anatomy),
        }
        for argument, reason in refused.items():
            if reason:
                raise InputError(f"method {self.name!r} cannot use {argument}: {reason}")

    def _why_no_layers(self, anatomy: ViTAnatomy) -> str | bool:
        if self.layers == "none":
            return "it has no layers to choose from"
        if anatomy.route == "pooler" and not self.pooler_layers:
            return "this model's attentional pooler is read, once, behind the last block"
        return False

    def blocks(self, layers: int | Sequence[int] | None, depth: int) -> list[int]:
        """Ascending indices of the blocks that are explained."""
        if layers is None and self.layers in ("last", "none"):
            return [depth - 1]
        return resolve_layers(layers, depth)
