"""The record of a method: its function, what it needs of a model, and which arguments it can use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from legrad import relevance
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
        function: ``MethodInput`` -> (images, targets, layers or 1, *grid), any device. None for LeGrad and its refined
            forms, which ``core.streaming`` computes.
        reduction: which of them, where there is no function.
        needs: of the model. "gradients" need attention maps too, except for tokens.
        cost: of one image and one target, beside a plain forward pass.
        layers: what ``layers=None`` means; "none" if the method has no layers to choose from.
        native: ``readout="auto"`` is the model's own head for every model.
        clip_mean: maps of layers are signed, and the positive part is that of their mean.
        per_layer: whether there is a map for every layer, so that ``keep_layers`` makes sense.
        pooler_layers: whether layers can be chosen in models with an attentional pooler, which is read once.
        targets: whether the map depends on the target.
        readout: whether layer features are read out.
        label: what its map is called where ``targets=None``; only methods whose maps depend on no target have one.
        labels: anatomy -> names of its maps, where it has several for an image without any target; it takes none then.
        signed: whether relevance can be negative: what speaks against the target. Saliency stretches it as any map,
            from the lowest to the highest value.
        bibtex: entry of a method of one's own, for `legrad cite`; those of the library's are in ``legrad.citations``.
    """

    name: str
    summary: str
    source: str
    function: Callable[[MethodInput], Tensor] | None
    needs: Needs
    cost: str
    layers: Literal["all", "last two thirds", "last", "none"] = "none"
    per_layer: bool = False
    pooler_layers: bool = False
    targets: bool = True
    readout: bool = False
    signed: bool = False
    label: str = ""
    labels: Callable[[ViTAnatomy], Sequence[str]] | None = None
    reduction: relevance.Reduction = relevance.key_relevance
    native: bool = False
    clip_mean: bool = False
    bibtex: str = ""

    def own_labels(self, anatomy: ViTAnatomy, targets: Any) -> list[str] | None:
        """Names of the maps, where they are not the targets'; None if the targets are to be resolved.

        Args:
            anatomy: of the model.
            targets: as ``explain`` got them; None or an empty list for none.

        Raises:
            InputError: no targets for a method that needs them, or targets for one that takes none.
        """
        absent = targets is None or (isinstance(targets, list | tuple) and not targets)
        if self.labels is not None:
            if not absent:
                raise InputError(f"method {self.name!r} takes no targets: its maps are those of the heads; give None")
            return list(self.labels(anatomy))
        if not absent:
            return None
        if self.targets:
            raise InputError(
                "no targets: give at least one text, class index, embedding or callable (only methods whose maps "
                "depend on no target, such as 'raw-attention' and 'rollout', need none)"
            )
        return [self.label or self.name]

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
        if layers is None and self.layers == "last two thirds":
            return list(range(depth - max(1, round(depth * 2 / 3)), depth))
        return resolve_layers(layers, depth)

    def merge(self, layers: Sequence[Tensor]) -> Tensor:
        """The map of some layers out of theirs, equal shapes in and out."""
        mean = relevance.merge_layers(layers)
        return mean.clamp(min=0) if self.clip_mean else mean
