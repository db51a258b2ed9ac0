"""LeGrad without a part of its formula."""

from torch import Tensor

from legrad import relevance
from legrad.core.streaming import explain_batch
from legrad.core.truth import at_least_float32
from legrad.methods.call import MethodInput
from legrad.methods.catalogue import about
from legrad.methods.method import Method


def legrad_norelu(call: MethodInput) -> Tensor:
    """LeGrad without the positive part: the plain mean of dS/dA over heads and queries. Signed.

    Layers, read-outs and routes are those of LeGrad.
    """
    return legrad_with(call, _mean)


LEGRAD_NORELU = Method(
    **about("legrad-norelu"),
    function=legrad_norelu,
    needs="gradients",
    cost="as legrad",
    layers="all",
    per_layer=True,
    pooler_layers=True,
    readout=True,
    signed=True,
)


def legrad_with(call: MethodInput, reduction: relevance.Reduction) -> Tensor:
    """``core.streaming`` with another reduction than LeGrad's formula: (images, targets, layers, *grid)."""
    result = explain_batch(call.anatomy, call.batch, call.scores, call.layers, call.readout, reduction=reduction)
    call.known_scores, call.known_answer = result.scores, result.answer
    return result.relevance


def _mean(
    output_grad: Tensor,
    value: Tensor | None,
    keep: Tensor | None = None,
    queries: int | None = None,
    head_output: Tensor | None = None,
) -> Tensor:
    """Mean of dS/dA over heads and queries, (batch, targets, keys); masked entries count as zero."""
    gradient = at_least_float32(output_grad)
    value = None if value is None else at_least_float32(value)[:, None]
    if keep is None:  # the mean of products with V is the product of the mean with V
        return relevance.attention_gradient(gradient.mean(3, keepdim=True), value).mean((2, 3))
    return (relevance.attention_gradient(gradient, value) * keep[:, None]).mean((2, 3))
