"""Read-outs: which tokens one depends on, and the gradients of many scores at a block's tokens.

Where a read-out depends on the mean of its tokens only, the gradient is the same at all of them, and that of the mean
is computed on a few copies of it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from legrad.core import state
from legrad.core.memory import ran_out
from legrad.core.score import ResolvedTarget, scored
from legrad.errors import TruthCheckError
from legrad.models.anatomy import Readout, ViTAnatomy


@dataclass(frozen=True)
class TokenSpan:
    """Which tokens a read-out depends on.

    Attributes:
        rows: first and last + 1 of those whose mean is all that it reads; None if it reads more than a mean.
    """

    rows: tuple[int, int] | None

    @property
    def only_mean(self) -> bool:
        """Whether it depends on the mean of some rows only (or on a single row): the same gradient at all of them."""
        return self.rows is not None

    def select(self, tokens: Tensor) -> Tensor:
        """The tokens that the read-out depends on, (batch, rows, ...), a view."""
        return tokens if self.rows is None else tokens[:, slice(*self.rows)]


class Reader:
    """One read-out of a model, evaluated and differentiated in at least float32.

    Args:
        anatomy: the model's.
        readout: one of its read-outs.
    """

    def __init__(self, anatomy: ViTAnatomy, readout: Readout) -> None:
        self._readout = readout
        self._in_float = state.InFloat(anatomy.tower, anatomy.blocks)
        self._copies = anatomy.num_prefix_tokens + 1

    def __call__(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, dim) -> (batch, features)."""
        return self._in_float(self._readout, tokens)

    def _on_copies_of(self, token: Tensor) -> Tensor:
        """The feature of copies of one token, (batch, dim), as few as a read-out accepts."""
        return self(token[:, None].expand(-1, self._copies, -1))

    def find_tokens_read(self, tokens: Tensor) -> TokenSpan:
        """Which tokens the read-out depends on, by differentiating one arbitrary direction of its feature.

        Args:
            tokens: of a block, (1, tokens, dim), at least float32.
        """
        gradient = _direction_gradient(self, tokens)
        rows = _nonzero_rows(gradient).tolist()
        if not rows:
            return TokenSpan(None)
        span = TokenSpan((rows[0], rows[-1] + 1))
        grad_rows = span.select(gradient)
        equal = bool((grad_rows - grad_rows[:, :1]).abs().max() <= 1e-5 * grad_rows.abs().max())
        return span if equal and self.depends_on_mean_only(span, tokens) else TokenSpan(None)

    def depends_on_mean_only(self, span: TokenSpan, tokens: Tensor) -> bool:
        """Do copies of the span's mean give the same feature as the tokens, (batch, tokens, dim), at least float32?"""
        with torch.no_grad():
            feature = self(tokens)
            try:
                repeated = self._on_copies_of(span.select(tokens).mean(1))
            except (RuntimeError, IndexError, ValueError) as error:
                if ran_out(error):
                    raise
                # it needs all tokens, to lay them on a grid for instance
                return False
            # missed where a norm computes in less than the tokens' precision: the two ways round differently there
            limit = 1e-11 if feature.dtype == torch.float64 else 1e-5
            return bool((repeated - feature).abs().max() <= limit * feature.abs().max())

    def grad_at_mean(self, means: Tensor, scores: Sequence[ResolvedTarget], groups: int = 1) -> Tensor:
        """d score / d mean of the tokens, for a read-out that reads no more.

        Args:
            means: (groups * batch, dim), at least float32.
            scores: the targets, for ``batch`` images.
            groups: how many layers' tokens lie in the batch one after another.

        Returns:
            (groups * batch, targets, dim).

        Raises:
            InputError: a callable's result does not depend on the feature.
        """
        with torch.enable_grad():
            leaf = means.detach().requires_grad_()
            feature = self._on_copies_of(leaf)
            (grad_means,) = gradients(scores, feature, [leaf], groups)
        # contiguous, or every product with it copies the weights
        return grad_means.transpose(0, 1).contiguous()

    def grad_at_tokens(self, span: TokenSpan, tokens: Tensor, scores: Sequence[ResolvedTarget]) -> Tensor:
        """d score / d tokens at the rows that the read-out depends on.

        Args:
            span: the result of ``find_tokens_read``.
            tokens: (batch, tokens, dim), at least float32.
            scores: the targets.

        Returns:
            (batch, targets, rows, dim); (batch, targets, 1, dim) if ``span.only_mean``: the same at all of them.
        """
        if span.only_mean:
            rows = span.select(tokens)
            return self.grad_at_mean(rows.mean(1), scores)[:, :, None] / rows.shape[1]
        with torch.enable_grad():
            leaf = tokens.detach().requires_grad_()
            feature = self(leaf)
            (grad_tokens,) = gradients(scores, feature, [leaf])
        return grad_tokens.transpose(0, 1).contiguous()


def takes_mean_token(anatomy: ViTAnatomy, tokens: Tensor) -> bool:
    """Whether the native head can be asked about one token: it reads prefix tokens and the mean of the patches, or
    averages over the patches what it computes of each.

    Args:
        anatomy: the model's.
        tokens: of the last block, (1, tokens, dim).
    """
    head = anatomy.readouts["native"].function
    first, last = anatomy.num_prefix_tokens, anatomy.num_prefix_tokens + math.prod(anatomy.grid)
    tokens = tokens[:, :last].to(torch.promote_types(tokens.dtype, torch.float32))
    in_float = state.InFloat(anatomy.tower, anatomy.blocks)
    moved = tokens.clone()
    for patch, sign in ((first, 1), (last - 1, -1)):  # the mean stays
        moved[:, patch] += sign * tokens[:, first:last].flip(2).mean(1)
    with torch.no_grad():
        try:
            feature = in_float(head, tokens)
            limit = 1e-4 * feature.abs().max()
            if bool((in_float(head, moved) - feature).abs().max() <= limit):
                copies = tokens.mean(1, keepdim=True).expand(-1, first + 1, -1)
                return in_float(head, copies).shape == feature.shape
            each = tokens[0, first:last, None].expand(-1, first + 1, -1)
            return bool((in_float(head, each).mean(0) - feature).abs().max() <= limit)
        except (RuntimeError, LookupError, ValueError):  # it needs all tokens, to lay them on a grid for instance
            return False


def rows_read(read: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """Indices of the tokens that a read-out depends on: of the class token, of all patches, ...

    Args:
        read: the read-out, (batch, tokens, dim) -> (batch, features).
        tokens: of a block, (1, tokens, dim), at least float32.
    """
    gradient = _direction_gradient(read, tokens)
    return _nonzero_rows(gradient) if bool(gradient.any()) else _rows_with_effect(read, tokens)


def _rows_with_effect(read: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """The same for a read-out that hands on no gradient (quantised): change one token at a time."""
    with torch.no_grad():
        feature, effects = read(tokens), []
        for row in range(tokens.shape[1]):
            perturbed = tokens.clone()
            perturbed[:, row] = -perturbed[:, row]
            effects.append((read(perturbed) - feature).norm())
    effect = torch.stack(effects)
    # numbers that are rounded together feel each other a little
    return (effect > 0.02 * effect.max()).nonzero()[:, 0]


def _direction_gradient(read: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """The gradient of one arbitrary direction of the feature, which no symmetry of the read-out cancels."""
    with torch.enable_grad():
        leaf = tokens.detach().requires_grad_()
        feature = read(leaf)
        direction = (
            torch.linspace(1, 2, feature.shape[-1], device="cpu", dtype=torch.float32).mul_(1e4).sin_().to(feature)
        )
        if not feature.requires_grad or lacks_derivative(feature):
            return torch.zeros_like(leaf)
        (grad,) = torch.autograd.grad(feature @ direction, leaf, allow_unused=True)
    return torch.zeros_like(leaf) if grad is None else grad


def is_without_derivative(node: Any) -> bool:
    """Whether a node of a graph stands for an operation without a derivative, such as a product of a quantised layer;
    differentiating it would warn."""
    return node is not None and node.name().rpartition("::")[2] in ("WarnNotImplemented", "NotImplemented")


def lacks_derivative(tensor: Tensor) -> bool:
    """Whether there is an operation without a derivative in the graph of a tensor."""
    nodes: list[Any] = [tensor.grad_fn]
    known_nodes: set[Any] = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in known_nodes:
            continue
        known_nodes.add(node)
        if is_without_derivative(node):
            return True
        nodes += [inner for inner, _ in node.next_functions]
    return False


def _nonzero_rows(gradient: Tensor) -> Tensor:
    return gradient[0].abs().amax(-1).nonzero()[:, 0]


def scaled_for_half(
    gradient: Tensor, dtype: torch.dtype, batch_dims: int, precision: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """A gradient in the model's dtype, and the scale that what follows from it linearly has to be divided by.

    For half precision each image's (and target's) gradient is brought near 1 by a power of two: dividing by it later is
    exact, also after the formula's positive part.

    Args:
        gradient: at least float32.
        dtype: of the model.
        batch_dims: leading dimensions with a scale of their own.
        precision: in which it is propagated, if in less than ``dtype``.

    Returns:
        The scaled gradient, and the scale, broadcastable to it: 1 if the dtype is the gradient's, or the gradient zero.
    """
    if gradient.dtype == (precision or dtype):
        return gradient, gradient.new_ones([1] * gradient.ndim)
    largest = gradient.abs().flatten(batch_dims).amax(-1)
    exponent = torch.where(largest > 0, -largest.clamp(min=1e-38).log2().floor(), 0)
    scale = exponent.exp2().reshape(*largest.shape, *[1] * (gradient.ndim - batch_dims))
    return (gradient * scale).to(dtype), scale


def gradients(
    scores: Sequence[ResolvedTarget], feature: Tensor, inputs: Sequence[Tensor], groups: int = 1
) -> list[Tensor]:
    """d score / d input, of every score at every tensor.

    Args:
        scores: the targets, for ``batch`` images.
        feature: (groups * batch, features).
        inputs: tensors of its graph.
        groups: how many layers' tokens lie in the batch one after another.

    Returns:
        (targets, *shape) for each of ``inputs``.
    """
    if len(scores) == groups == 1:
        grads = _all_used(torch.autograd.grad(scores[0](feature).sum(), inputs, allow_unused=True))
        return [grad[None] for grad in grads]
    return vector_jacobian(feature, inputs, grad_at_feature(scores, feature, groups))


def grad_at_feature(scores: Sequence[ResolvedTarget], feature: Tensor, groups: int = 1) -> Tensor:
    """d score / d feature.

    Args:
        scores: the targets, for ``batch`` images.
        feature: (groups * batch, features).
        groups: how many layers' tokens lie in the batch one after another.

    Returns:
        (targets, groups * batch, features).
    """
    with torch.enable_grad():
        leaf = feature.detach().expand(len(scores), -1, -1).contiguous().requires_grad_()
        return gradient(scored(scores, leaf.unflatten(1, (groups, -1))), leaf)


def gradient(score: Tensor, tensor: Tensor) -> Tensor:
    """d sum(score) / d tensor; rows of a batch are independent, so the sum keeps them apart."""
    (grad,) = torch.autograd.grad(score.sum(), tensor, retain_graph=True, allow_unused=True)
    if grad is None:
        raise TruthCheckError("a score does not depend on this layer's tokens or attention")
    return grad


def vector_jacobian(feature: Tensor, inputs: Sequence[Tensor], grad_feature: Tensor) -> list[Tensor]:
    """The gradients of many functions of the feature at what it was computed from, in one backward pass.

    Args:
        feature: (batch, features).
        inputs: tensors of its graph.
        grad_feature: gradients at the feature, (targets, batch, features).

    Returns:
        (targets, *shape) for each of ``inputs``.
    """

    def backward(grad: Tensor, batched: bool) -> Sequence[Tensor | None]:
        return torch.autograd.grad(
            feature, inputs, grad, retain_graph=True, allow_unused=True, is_grads_batched=batched
        )

    grads: Sequence[Tensor | None]
    if len(grad_feature) > 1:
        try:
            grads = backward(grad_feature, batched=True)
        except RuntimeError as error:  # an operation that cannot be batched
            if ran_out(error):
                raise
            per_target = [backward(grad, batched=False) for grad in grad_feature]
            columns = zip(*per_target, strict=True)
            grads = [None if column[0] is None else torch.stack(column) for column in columns]
    else:
        grads = [None if grad is None else grad[None] for grad in backward(grad_feature[0], batched=False)]
    return _all_used(grads)


def _all_used(grads: Sequence[Tensor | None]) -> list[Tensor]:
    if any(grad is None for grad in grads):
        raise TruthCheckError("the feature does not depend on this layer's tokens or attention")
    return [grad for grad in grads if grad is not None]
