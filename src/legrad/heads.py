"""LeGrad head by head: the map of every attention head, and the maps of some of them.

    from legrad import heads

    heads.head_relevance(explainer, "photo.jpg", "a photo of a dog")         # (images, targets, layers, heads, *grid)
    explainer.explain("photo.jpg", "a photo of a dog", method=heads.of_heads([0, 3]))

The mean over heads and layers is LeGrad's own map. A head's number says nothing across layers: head 3 of one block has
nothing to do with head 3 of the next. So ``of_heads`` also chooses by what the heads do.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from legrad.methods.heads import CHOICES, EVERY_HEAD, count, of_heads

if TYPE_CHECKING:
    from legrad.results.explanation import Explanation

__all__ = ["CHOICES", "Explains", "count", "head_relevance", "of_heads"]


class Explains(Protocol):
    """An ``Explainer``, or whatever explains with its arguments."""

    @property
    def explain(self) -> Callable[..., "Explanation"]:
        """As ``Explainer.explain``."""
        ...


def head_relevance(explainer: Explains, images: Any, targets: Any, **arguments: Any) -> Tensor:
    """Relevance of every head of every layer.

    Args:
        explainer: of any model whose heads can be told apart; the heads are those of the explained attention, in models
            with an attentional pooler the pooler's.
        images, targets: as ``Explainer.explain`` takes them.
        arguments: ``layers``, ``readout``, ``size``, ``fit`` and ``memory``, as there.

    Returns:
        (images, targets, layers, heads, *grid), raw, non-negative, on the CPU. The mean over the heads is
        ``Explanation.layer_relevance``, the mean over layers and heads ``Explanation.relevance``.

    Raises:
        UnsupportedModelError: a model that folds its heads into the batch.
        InputError, TruthCheckError: as ``Explainer.explain``.
    """
    found = explainer.explain(images, targets, method=EVERY_HEAD, keep_layers=True, **arguments)
    assert found.layer_relevance is not None
    return found.layer_relevance.unflatten(2, (len(found.layers), -1))
