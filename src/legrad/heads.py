"""LeGrad head by head: the map of every attention head, and the maps of some of them.

    from legrad import heads

    heads.head_relevance(explainer, "photo.jpg", "a photo of a dog")         # (images, targets, layers, heads, *grid)
    explainer.explain("photo.jpg", "a photo of a dog", method=heads.of_heads([0, 3]))
    explainer.explain("photo.jpg", method="raw-attention:heads=each")        # a map of attention for every head

The mean over heads and layers is LeGrad's own map. A head's number says nothing across layers: head 3 of one block has
nothing to do with head 3 of the next. So ``of_heads`` also chooses by what the heads do.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from torch import Tensor

from legrad.checks import brief
from legrad.choices import Fit, ReadoutName
from legrad.errors import InputError, warn
from legrad.inputs.prepare import Images
from legrad.methods.heads import CHOICES, EVERY_HEAD, num_heads, of_heads
from legrad.models.anatomy import ViTAnatomy
from legrad.targets.kinds import Targets

if TYPE_CHECKING:
    from legrad.results.explanation import Explanation

__all__ = ["CHOICES", "Explains", "head_relevance", "num_heads", "of_heads"]


class Explains(Protocol):
    """An ``Explainer``, or whatever explains with its arguments."""

    @property
    def explain(self) -> Callable[..., "Explanation"]:
        """As ``Explainer.explain``."""
        ...


def head_relevance(
    explainer: Explains,
    images: Images,
    targets: Targets,
    layers: int | Sequence[int] | None = None,
    readout: "ReadoutName" = "auto",
    size: int | Sequence[int] | None = None,
    fit: Fit = "model",
    memory: Literal["auto"] | int = "auto",
    inputs: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Relevance of every head of every layer.

    >>> explainer = legrad.load("embedded")
    >>> legrad.heads.head_relevance(explainer, next(legrad.embedded.scenes(1)).image, "a cow").shape
    torch.Size([1, 1, 6, 4, 12, 12])

    Args:
        explainer: of any model whose heads can be told apart; the heads are those of the explained attention, in models
            with an attentional pooler the pooler's.
        images, targets, layers, readout, size, fit, memory, inputs: as ``Explainer.explain`` takes them.

    Returns:
        (images, targets, layers, heads, *grid), raw, non-negative, on the CPU. The mean over the heads is
        ``Explanation.layer_relevance``, the mean over layers and heads ``Explanation.relevance``.

    Raises:
        UnsupportedModelError: a model that folds its heads into the batch.
        InputError, TruthCheckError: as ``Explainer.explain``.
    """
    if not callable(getattr(explainer, "explain", None)):
        raise InputError(f"head_relevance takes what legrad.load or legrad.wrap gave, got {brief(explainer)}")
    defaults: dict[str, Any] = {"readout": "auto", "size": None, "fit": "model", "memory": "auto", "inputs": None}
    values: dict[str, Any] = {"readout": readout, "size": size, "fit": fit, "memory": memory, "inputs": inputs}
    # a default is not handed on: whatever explains may have its own, as the benchmark's model under test
    arguments = {name: value for name, value in values.items() if value is not defaults[name]}
    explanation = explainer.explain(images, targets, layers=layers, method=EVERY_HEAD, keep_layers=True, **arguments)
    assert explanation.layer_relevance is not None
    return explanation.layer_relevance.unflatten(2, (len(explanation.layers), -1))


def count(anatomy: ViTAnatomy) -> int:
    """Deprecated name of ``num_heads``."""
    warn("legrad.heads.count is called num_heads now", DeprecationWarning)
    return num_heads(anatomy)
