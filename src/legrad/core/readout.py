"""What a read-out reads: the gradients of many scores at a block's tokens, in one pass where it only reads a mean."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from legrad.core import state
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
    def mean(self) -> bool:
        """Only the mean of some rows (or a single one) matters: the gradient is the same at all of them."""
        return self.rows is not None

    def of(self, tokens: Tensor) -> Tensor:
        """The tokens that matter, (batch, rows, ...), a view."""
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
        """The feature of tokens that are all alike, as few as a read-out can be given: (batch, dim) in."""
        return self(token[:, None].expand(-1, self._copies, -1))

    def find_tokens_read(self, tokens: Tensor) -> TokenSpan:
        """Which tokens matter: found by differentiating one arbitrary direction of the feature.

        Args:
            tokens: of a block, (1, tokens, dim), at least float32.
        """
        with torch.enable_grad():
            leaf = tokens.detach().requires_grad_()
            feature = self(leaf)
            direction = torch.linspace(1, 2, feature.shape[-1]).mul_(1e4).sin_().to(feature)
            (gradient,) = torch.autograd.grad(feature @ direction, leaf)
        rows = gradient[0].abs().amax(-1).nonzero()[:, 0].tolist()
        if not rows:
            return TokenSpan(None)
        reading = TokenSpan((rows[0], rows[-1] + 1))
        seen = reading.of(gradient)
        alike = bool((seen - seen[:, :1]).abs().max() <= 1e-5 * seen.abs().max())
        return reading if alike and self.depends_on_mean_only(reading, tokens) else TokenSpan(None)

    def depends_on_mean_only(self, reading: TokenSpan, tokens: Tensor) -> bool:
        """Do copies of the mean give the same feature as the tokens, (batch, tokens, dim), at least float32?"""
        with torch.no_grad():
            feature = self(tokens)
            try:
                repeated = self._on_copies_of(reading.of(tokens).mean(1))
            except (RuntimeError, IndexError, ValueError):  # it wants all tokens, to lay them on a grid for instance
                return False
            # a norm that computes in less than the tokens' precision tells the two ways apart
            limit = 1e-11 if feature.dtype == torch.float64 else 1e-5
            return bool((repeated - feature).abs().max() <= limit * feature.abs().max())

    def grad_at_mean(self, means: Tensor, scores: Sequence[ResolvedTarget], groups: int = 1) -> Tensor:
        """d score / d mean of the tokens, for a read-out that reads no more.

        Args:
            means: (groups * batch, dim), at least float32.
            scores: the targets, for ``batch`` pictures.
            groups: several layers' worth of pictures.

        Returns:
            (groups * batch, targets, dim).

        Raises:
            InputError: a callable's result does not depend on the feature.
        """
        with torch.enable_grad():
            leaf = means.detach().requires_grad_()
            feature = self._on_copies_of(leaf)
            (found,) = gradients(scores, feature, [leaf], groups)
        # contiguous, or every product with it copies the weights
        return found.transpose(0, 1).contiguous()

    def grad_at_tokens(self, reading: TokenSpan, tokens: Tensor, scores: Sequence[ResolvedTarget]) -> Tensor:
        """d score / d tokens at the rows that matter.

        Args:
            reading: what ``find_tokens_read`` told.
            tokens: (batch, tokens, dim), at least float32.
            scores: the targets.

        Returns:
            (batch, targets, rows, dim); (batch, targets, 1, dim) if ``reading.mean``: the same at all of them.
        """
        if reading.mean:
            rows = reading.of(tokens)
            return self.grad_at_mean(rows.mean(1), scores)[:, :, None] / rows.shape[1]
        with torch.enable_grad():
            leaf = tokens.detach().requires_grad_()
            feature = self(leaf)
            (found,) = gradients(scores, feature, [leaf])
        return found.transpose(0, 1).contiguous()


def gradients(scores: Sequence[ResolvedTarget], feature: Tensor, at: Sequence[Tensor], groups: int = 1) -> list[Tensor]:
    """Of every score at what the feature was computed from.

    Args:
        scores: the targets, for ``batch`` pictures.
        feature: (groups * batch, features).
        at: tensors of its graph.
        groups: several layers' worth of pictures.

    Returns:
        (targets, *shape) for each of ``at``.
    """
    if len(scores) == groups == 1:
        return [one[None] for one in _used(torch.autograd.grad(scores[0](feature).sum(), at, allow_unused=True))]
    return vector_jacobian(feature, at, at_feature(scores, feature, groups))


def at_feature(scores: Sequence[ResolvedTarget], feature: Tensor, groups: int = 1) -> Tensor:
    """d score / d feature.

    Args:
        scores: the targets, for ``batch`` pictures.
        feature: (groups * batch, features).
        groups: several layers' worth of pictures.

    Returns:
        (targets, groups * batch, features).
    """
    with torch.enable_grad():
        leaf = feature.detach().expand(len(scores), -1, -1).contiguous().requires_grad_()
        return gradient(scored(scores, leaf.unflatten(1, (groups, -1))), leaf)


def gradient(score: Tensor, at: Tensor) -> Tensor:
    """d sum(score) / d at; rows of a batch are independent, so the sum keeps them apart."""
    found = torch.autograd.grad(score.sum(), at, retain_graph=True, allow_unused=True)[0]
    if found is None:
        raise TruthCheckError("a score does not depend on this layer's tokens or attention")
    return found


def vector_jacobian(feature: Tensor, at: Sequence[Tensor], above: Tensor) -> list[Tensor]:
    """The gradients of many functions of the feature at what it was computed from, in one backward pass.

    Args:
        feature: (batch, features).
        at: tensors of its graph.
        above: gradients at the feature, (targets, batch, features).

    Returns:
        (targets, *shape) for each of ``at``.
    """

    def back(one: Tensor, batched: bool) -> Sequence[Tensor | None]:
        return torch.autograd.grad(feature, at, one, retain_graph=True, allow_unused=True, is_grads_batched=batched)

    if len(above) > 1:
        try:
            found = back(above, batched=True)
        except RuntimeError:  # an operation that cannot be batched
            rows = [back(one, batched=False) for one in above]
            found = [None if column[0] is None else torch.stack(column) for column in zip(*rows, strict=True)]
    else:
        found = [None if one is None else one[None] for one in back(above[0], batched=False)]
    return _used(found)


def _used(found: Sequence[Tensor | None]) -> list[Tensor]:
    if any(one is None for one in found):
        raise TruthCheckError("the feature does not depend on this layer's tokens or attention")
    return [one for one in found if one is not None]
