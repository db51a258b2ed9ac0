"""The LeGrad formula (Bousselham et al., ICCV 2025, arXiv:2404.03214) as pure functions on tensors.

    s^l   = score(read-out(Z^l))                          score of layer l, see ``models.anatomy`` and ``core.score``
    G^l   = d s^l / d A^l                                 sensitivity of the score to the layer's attention map
    E^l_j = mean over heads h, queries i of max(G^l_hij, 0)     relevance of key j in layer l
    E     = mean over the explained layers of E^l, prefix keys dropped, laid out on the patch grid

Inside a head O = A V, hence G = (d s / d O) V^T: values and the gradient at the head's output are enough, and the
attention map itself is never needed. This file is the only place that holds the formula.

Two refinements of ours stand beside it. A row of A sums to one, so what G adds to all keys of a row alike is no
evidence for any of them:

    E^l_j = mean over h, i of max(G^l_hij - mean over the visible k of G^l_hik, 0)      ``centred_relevance``
    C^l_j = mean over h, i of (G^l_hij - sum over k of A^l_hik G^l_hik)                 ``simplex_relevance``

With g = d s / d O the first is the formula with V minus its mean over the keys, the second g_hi . (v_hj - o_hi): the
part of G that the softmax can follow. C is signed, and its positive part is taken once, of the mean over the layers.
"""

import itertools
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Reduction(Protocol):
    """Gradients and values -> a value of every key; arguments as of ``key_relevance``."""

    def __call__(
        self,
        output_grad: Tensor,
        value: Tensor | None,
        keep: Tensor | None = None,
        queries: int | None = None,
        head_output: Tensor | None = None,
    ) -> Tensor:
        """(batch, targets, keys), or (batch, targets, heads, keys)."""
        ...


# Elements of one chunk: few enough to stay in the CPU's cache; many more on a GPU (True), where every chunk costs a
# launch. Fewer rows than _LEAST_ROWS make matrix products inefficient.
_CHUNK_NUMEL = {False: 1 << 19, True: 1 << 28}
_LEAST_ROWS = 64


def attention_gradient(output_grad: Tensor, value: Tensor | None) -> Tensor:
    """Sensitivity G = d score / d attention, from O = A V.

    Args:
        output_grad: d score / d O, (..., heads, queries, head_dim); G itself if ``value`` is None.
        value: V, (..., heads, keys, head_dim); None where the model builds the attention map and it was the leaf.

    Returns:
        (..., heads, queries, keys).
    """
    return output_grad if value is None else output_grad @ value.transpose(-2, -1)


def key_relevance(
    output_grad: Tensor,
    value: Tensor | None,
    keep: Tensor | None = None,
    queries: int | None = None,
    head_output: Tensor | None = None,
) -> Tensor:
    """Relevance E of every key: the mean over heads and queries of the positive part of G, in chunks.

    Args:
        output_grad: d score / d O, (batch, targets, heads, rows, head_dim), or G, see ``attention_gradient``. Rows are
            the queries where it is not zero.
        value: V, (batch, heads, keys, head_dim), or None.
        keep: bool, broadcastable to (batch, heads, rows, keys); False where attention is masked. Masked entries
            count as zero: their gradient is as large as any other's although no attention can flow there.
        queries: how many queries there are in all; default rows.
        head_output: O, (batch, heads, rows, head_dim), or A if ``value`` is None; only the simplex form looks at it.

    Returns:
        (batch, targets, keys), non-negative; at least float32, whatever the input.
    """
    dtype = torch.promote_types(output_grad.dtype, torch.float32)
    batch, targets, heads, rows, keys = output_grad.shape
    if value is not None:
        keys = value.shape[2]
    if keep is not None:
        keep = keep.expand(batch, heads, rows, keys)[:, :, None]
    total = torch.zeros(batch, targets, keys, dtype=dtype, device=output_grad.device)
    numel = _CHUNK_NUMEL[output_grad.device.type == "cuda"]
    chunk_rows = min(rows, max(_LEAST_ROWS, numel // (heads * keys)))
    chunk_targets = max(1, numel // (heads * keys * chunk_rows))
    chunk_images = max(1, chunk_targets // targets)
    chunks = itertools.product(
        range(0, batch, chunk_images), range(0, targets, chunk_targets), range(0, rows, chunk_rows)
    )
    for first_image, first_target, first_row in chunks:
        in_images = slice(first_image, first_image + chunk_images)
        in_targets = slice(first_target, first_target + chunk_targets)
        in_rows = slice(first_row, first_row + chunk_rows)
        # targets share V: to a matrix product they are further rows
        chunk_grad = output_grad[in_images, in_targets, :, in_rows].to(dtype).transpose(1, 2)
        shape = chunk_grad.shape[2:4]
        gradient = attention_gradient(chunk_grad.flatten(2, 3), None if value is None else value[in_images].to(dtype))
        # in place only on our own product: autograd may hand out one gradient twice
        positive = gradient.clamp(min=0) if value is None else gradient.clamp_(min=0)
        positive = positive.unflatten(2, shape)
        if keep is not None:
            positive *= keep[in_images, :, :, in_rows]
        total[in_images, in_targets] += positive.sum(dim=(1, 3))
    return total / (heads * (queries or rows))


def centred_relevance(
    output_grad: Tensor,
    value: Tensor | None,
    keep: Tensor | None = None,
    queries: int | None = None,
    head_output: Tensor | None = None,
) -> Tensor:
    """``key_relevance`` of what exceeds the row's mean: G_hij minus the mean of G_hik over the keys that row i sees.

    Args:
        output_grad, value, keep, queries, head_output: as for ``key_relevance``. Masked keys take no part in the mean.

    Returns:
        (batch, targets, keys), non-negative.
    """
    dtype = torch.promote_types(output_grad.dtype, torch.float32)
    if value is None:
        gradient = output_grad.to(dtype)
        visible = None if keep is None else keep[:, None].expand_as(gradient)
        return key_relevance(gradient - _mean_over_keys(gradient, visible, -1), None, keep, queries)
    value = value.to(dtype)
    if keep is None or keep.shape[2] == 1:  # all rows see the same keys
        visible = None if keep is None else keep.mT.expand_as(value)
        return key_relevance(output_grad, value - _mean_over_keys(value, visible, -2), keep, queries)
    visible = keep.expand(*value.shape[:2], -1, -1).to(dtype)
    row_mean = visible @ value / visible.sum(-1, keepdim=True).clamp(min=1)
    return key_relevance(*_less_each_rows(output_grad.to(dtype), value, row_mean), keep, queries)


def simplex_relevance(
    output_grad: Tensor,
    value: Tensor | None,
    keep: Tensor | None = None,
    queries: int | None = None,
    head_output: Tensor | None = None,
) -> Tensor:
    """Mean over heads and queries of G_hij - sum over k of A_hik G_hik = g_hi . (v_hj - o_hi), signed.

    Zero says: attending here rather than as the model does now would change nothing.

    Args:
        output_grad, value, keep, queries, head_output: as for ``key_relevance``; ``head_output`` is needed. Masked
            entries count as zero.

    Returns:
        (batch, targets, keys), signed: the positive part is taken once, of the mean over the layers.
    """
    assert head_output is not None
    dtype = torch.promote_types(output_grad.dtype, torch.float32)
    gradient, output = output_grad.to(dtype), head_output.to(dtype)
    heads, rows = gradient.shape[2:4]
    if value is None:
        difference = gradient - (output[:, None] * gradient).sum(-1, keepdim=True)
        total = (difference if keep is None else difference * keep[:, None]).sum((2, 3))
    else:
        value = value.to(dtype)
        gradient, value = _less_each_rows(gradient, value, output)
        # the sum over rows comes before the product with V
        if keep is None or keep.shape[2] == 1:
            of_keys = (gradient.sum(3, keepdim=True) @ value[:, None].mT)[:, :, :, 0]
            total = (of_keys if keep is None else of_keys * keep[:, None, :, 0]).sum(2)
        else:
            of_visible = keep.expand(*value.shape[:2], -1, -1).to(dtype)[:, None].mT @ gradient
            total = (of_visible * value[:, None]).sum((2, 4))
    return total / (heads * (queries or rows))


def _mean_over_keys(values: Tensor, visible: Tensor | None, dim: int) -> Tensor:
    if visible is None:
        return values.mean(dim, keepdim=True)
    return (values * visible).sum(dim, keepdim=True) / visible.sum(dim, keepdim=True).clamp(min=1)


def _less_each_rows(gradient: Tensor, value: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients and values whose products are g_hi . (v_hj - other_hi): a further feature holds the row's share.

    Args:
        gradient: (batch, targets, heads, rows, head_dim).
        value: (batch, heads, keys, head_dim).
        other: (batch, heads, rows, head_dim).
    """
    share = (gradient * other[:, None]).sum(-1, keepdim=True)
    return torch.cat([gradient, -share], -1), F.pad(value, (0, 1), value=1.0)


def head_relevance(
    output_grad: Tensor,
    value: Tensor | None,
    keep: Tensor | None = None,
    queries: int | None = None,
    head_output: Tensor | None = None,
) -> Tensor:
    """``key_relevance`` of every single head; their mean is that of all heads.

    Args:
        output_grad, value, keep, queries, head_output: as for ``key_relevance``.

    Returns:
        (batch, targets, heads, keys), non-negative.
    """
    batch, _, heads, _, _ = output_grad.shape
    if keep is not None:
        keep = keep.expand(batch, heads, -1, -1).flatten(0, 1)[:, None]
    if value is not None:
        value = value.flatten(0, 1)[:, None]
    # to the formula heads are further images, of a single head each
    per_head = key_relevance(output_grad.transpose(1, 2).flatten(0, 1)[:, :, None], value, keep, queries)
    return per_head.unflatten(0, (batch, heads)).transpose(1, 2)


def on_grid(relevance: Tensor, start: int, grid: Sequence[int]) -> Tensor:
    """Drop the keys that are not patches, and reshape the others to the patch grid.

    Args:
        relevance: (..., keys).
        start: index of the first patch, the number of prefix keys.
        grid: sizes of the patch grid, row-major: (rows, cols), (frames, rows, cols), ...

    Returns:
        (..., *grid).
    """
    count = int(torch.Size(grid).numel())
    return relevance[..., start : start + count].unflatten(-1, tuple(grid))


def merge_layers(layers: Sequence[Tensor]) -> Tensor:
    """Mean over layers, equal shapes in and out."""
    return torch.stack(tuple(layers)).mean(0)


def min_max(maps: Tensor, dims: int = 2) -> Tensor:
    """Stretch each map to [0, 1] over its last ``dims`` dimensions; a flat map becomes zeros, never NaN."""
    flat = maps.flatten(-dims)
    low, high = flat.amin(-1, keepdim=True), flat.amax(-1, keepdim=True)
    spread = high - low
    stretched = torch.where(spread > 0, (flat - low) / spread.masked_fill(spread == 0, 1), 0)
    return stretched.unflatten(-1, maps.shape[-dims:])


def mask_null(relevance: Tensor, null: Tensor, threshold: float, dims: int = 2) -> Tensor:
    """Zero the cells that an empty prompt finds relevant too (the authors' correction for SigLIP).

    Args:
        relevance: (..., rows, cols).
        null: relevance of the null prompt over the same layers, broadcastable to ``relevance``.
        threshold: cells whose min-maxed null relevance exceeds it become zero; a flat null map zeroes nothing.
        dims: how many dimensions the grid has.
    """
    return relevance.masked_fill(min_max(null, dims) > threshold, 0)
