"""Attention taps: torch-function modes that see every attention of a thread while they are entered.

A mode sees ``F.scaled_dot_product_attention``, or ``softmax`` where a model writes attention out, whatever module calls
it: no module is patched, and fused attention stays on. ``AttentionTap`` makes the head output O a leaf and keeps V, all
that dS/dA = (dS/dO) V^T needs; ``WholeTap`` keeps queries and keys too, for methods that need the map A itself;
``ValuesTap`` lets attention hand on its values. ``hooks`` says when a tap is entered.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from legrad.errors import UnsupportedModelError
from legrad.relevance import attention_gradient

Kind = Literal["fused", "softmax"]

# torch functions -> what to call instead, with the same value and another derivative
Replacements = Mapping[Any, Callable[..., Any]]

_PROBED_QUERIES = 4
_SOFTMAX = (torch.softmax, F.softmax, Tensor.softmax)


@dataclass(frozen=True)
class ModuleCall:
    """A module's first argument and its output; with their graph if the pass verifies, else detached."""

    module: nn.Module
    input: Any
    output: Any


@dataclass
class AttentionCall:
    """One attention inside a block: what is needed to form dS/dA = (dS/dO) V^T.

    Attributes:
        output: O, the head outputs, (batch, heads, queries, head_dim), part of the graph of what follows; without heads
            where the model folds them into the batch. For eager attention the map A itself.
        value: V, (batch, heads, keys, head_dim), detached; repeated along heads for grouped queries. None for eager
            attention.
        keep: bool mask broadcastable to (batch, heads, queries, keys), None if all keys are visible.
        mismatch: largest relative difference between O and an explicit softmax(QK^T)V on a few queries; None unless
            the tap was asked to verify.
        projection, projection_bias: of the output projection where ``nn.MultiheadAttention`` hides it: (dim, heads *
            head_dim) and (dim,), or None.
        before: the watched modules that ran in the block before its first attention.
        after: those that ran between this attention and the next one or the block's end, in order.
        modules: if the pass verifies, all calls of modules inside the block, in the order in which they ended.
        arguments: if the pass verifies, (args, kwargs) of the block, copied; where the block is only watched, what the
            pass keeps of its input.
    """

    output: Tensor
    value: Tensor | None
    keep: Tensor | None
    mismatch: float | None = None
    projection: Tensor | None = None
    projection_bias: Tensor | None = None
    before: list[nn.Module] = field(default_factory=list)
    after: list[ModuleCall] = field(default_factory=list)
    modules: list[ModuleCall] = field(default_factory=list)
    arguments: Any = None


class AttentionTap(TorchFunctionMode):
    """Sees every attention of this thread while it is entered, and collects the calls.

    ``nn.MultiheadAttention`` hides its inner attention from a mode, so its functional form is re-expressed here.

    Args:
        kind: "fused" sees scaled-dot-product attention, "softmax" every softmax, for models that write attention out.
        verify: recompute a few rows of every attention explicitly.
        differentiate: make O a leaf and switch gradients on; else only look.
    """

    def __init__(self, kind: Kind = "fused", verify: bool = False, differentiate: bool = True) -> None:
        super().__init__()
        self.calls: list[AttentionCall] = []
        self.before: list[nn.Module] = []
        self.modules: list[ModuleCall] = []
        self.arguments: Any = None
        self._kind = kind
        self._verify = verify
        self._differentiate = differentiate

    def __exit__(self, *error: Any) -> None:
        """Leave the mode, once: an interrupt may have come after an earlier attempt."""
        if self in _get_current_function_mode_stack():
            super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._kind == "softmax":
            return self._softmax(func(*args, **kwargs)) if func in _SOFTMAX else func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return self._multi_head(*args, **kwargs)
        return func(*args, **kwargs)

    def _softmax(self, attention: Tensor) -> Tensor:
        if not attention.requires_grad:
            attention = attention.detach().requires_grad_()
        mismatch = float((attention.detach().float().sum(-1) - 1).abs().max()) if self._verify else None
        self._note(AttentionCall(attention, None, None, mismatch))
        torch.set_grad_enabled(True)
        return attention

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if query.ndim not in (3, 4):
            raise UnsupportedModelError(
                f"expected attention on (batch, heads, tokens, head_dim) tensors, got a query of shape "
                f"{tuple(query.shape)}: this attention layout is not supported"
            )
        output = F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
        if self._differentiate and not output.requires_grad:
            output = output.detach().requires_grad_()
        with torch.no_grad():
            groups = query.shape[1] // value.shape[1] if query.ndim == 4 else 1
            # each group of query heads shares one value head
            head_value = value.detach() if groups == 1 else value.detach().repeat_interleave(groups, dim=1)
            keep = _visible(attn_mask, is_causal, query, key)
            call = AttentionCall(output, head_value, keep)
            if self._verify:
                head_key = key if groups == 1 else key.repeat_interleave(groups, dim=1)
                call.mismatch = _mismatch(query, head_key, call, attn_mask, scale)
        self._note(call)
        if self._differentiate:
            torch.set_grad_enabled(True)
        return output

    def _note(self, call: AttentionCall) -> None:
        call.before, call.modules, call.arguments = self.before, self.modules, self.arguments
        self.calls.append(call)

    def _multi_head(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        embed_dim_to_check: int,
        num_heads: int,
        in_proj_weight: Tensor | None,
        in_proj_bias: Tensor | None,
        bias_k: Tensor | None,
        bias_v: Tensor | None,
        add_zero_attn: bool,
        dropout_p: float,
        out_proj_weight: Tensor,
        out_proj_bias: Tensor | None,
        training: bool = True,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        use_separate_proj_weight: bool = False,
        q_proj_weight: Tensor | None = None,
        k_proj_weight: Tensor | None = None,
        v_proj_weight: Tensor | None = None,
        static_k: Tensor | None = None,
        static_v: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """``F.multi_head_attention_forward`` through ``_attention``; inputs are (tokens, batch, dim)."""
        unsupported = {
            "bias_k": bias_k is not None,
            "bias_v": bias_v is not None,
            "add_zero_attn": add_zero_attn,
            "static_k": static_k is not None,
            "static_v": static_v is not None,
            "unbatched input": query.ndim != 3,
        }
        if any(unsupported.values()):
            names = ", ".join(name for name, is_present in unsupported.items() if is_present)
            raise UnsupportedModelError(f"nn.MultiheadAttention with {names} is not supported")
        # batch-first from here on: one large projection instead of many small ones
        is_self_attention = key is query and value is query
        q, k, v = (t.transpose(0, 1) for t in (query, key, value))
        if use_separate_proj_weight:
            weights = (q_proj_weight, k_proj_weight, v_proj_weight)
            biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
            q, k, v = (F.linear(t, w, b) for t, w, b in zip((q, k, v), weights, biases, strict=True))  # type: ignore[arg-type]
        elif is_self_attention:
            q, k, v = F.linear(q, in_proj_weight, in_proj_bias).chunk(3, dim=-1)  # type: ignore[arg-type]
        else:
            biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
            parts = zip((q, k, v), in_proj_weight.chunk(3), biases, strict=True)  # type: ignore[union-attr]
            q, k, v = (F.linear(t, w, b) for t, w, b in parts)
        q, k, v = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        mask = _merge_masks(attn_mask, key_padding_mask, num_heads, q.dtype)
        causal = is_causal and mask is None
        output = self._attention(q, k, v, mask, dropout_p if training else 0.0, causal)
        if self.calls:
            self.calls[-1].projection = out_proj_weight.detach()
            self.calls[-1].projection_bias = None if out_proj_bias is None else out_proj_bias.detach()
        result = F.linear(output.transpose(1, 2).flatten(2), out_proj_weight, out_proj_bias).transpose(0, 1)
        if not need_weights:
            return result, None
        attention = _softmax_attention(q, k, mask, None)
        return result, attention.mean(1) if average_attn_weights else attention


def _merge_masks(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, heads: int, dtype: torch.dtype
) -> Tensor | None:
    """MHA's two masks (True or -inf hides) as one additive mask, broadcastable to (batch, heads, queries, keys)."""

    def additive(mask: Tensor) -> Tensor:
        if mask.dtype != torch.bool:
            return mask.to(dtype)
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask, float("-inf"))

    merged = None
    if attn_mask is not None:
        merged = additive(attn_mask)
        if merged.ndim == 3:
            merged = merged.unflatten(0, (-1, heads))
    if key_padding_mask is not None:
        padding = additive(key_padding_mask)[:, None, None]
        merged = padding if merged is None else merged + padding
    return merged


def _visible(mask: Tensor | None, causal: bool, query: Tensor, key: Tensor) -> Tensor | None:
    """Where attention may flow, a bool mask with as many dimensions as the query; None if everywhere."""
    if causal:
        shape = (*[1] * (query.ndim - 2), query.shape[-2], key.shape[-2])
        return torch.ones(shape, dtype=torch.bool, device=query.device).tril()
    if mask is None:
        return None
    # libraries write "hidden" as -inf or as the lowest number of the type
    keep = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return None if bool(keep.all()) else keep[(None,) * (query.ndim - keep.ndim)]


def _softmax_attention(query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Attention written out, (batch, heads, queries, keys)."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    logits = query @ key.transpose(-2, -1) * scale
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(-1)


def _mismatch(query: Tensor, key: Tensor, call: AttentionCall, mask: Tensor | None, scale: float | None) -> float:
    """Relative distance of the captured O from softmax(QK^T)V on the first queries: does V belong to this O?"""
    if mask is None and call.keep is not None:  # causal
        mask = call.keep
    rows = slice(0, _PROBED_QUERIES)
    if mask is not None and mask.shape[-2] > 1:
        mask = mask[..., rows, :]
    assert call.value is not None
    dtype = torch.promote_types(query.dtype, torch.float32)
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(dtype)
    attention = _softmax_attention(query[..., rows, :].to(dtype), key.to(dtype), mask, scale)
    expected = attention @ call.value.to(dtype)
    output = call.output[..., rows, :].to(dtype)
    return float((expected - output).abs().max() / expected.abs().max().clamp(min=1e-30))


@dataclass
class Attention:
    """One attention of a pass that keeps its graph, see ``graph``.

    Attributes:
        output: O, (batch, heads, queries, head_dim), part of the graph; for eager attention the map A itself.
        query, key, value: detached, (batch, heads, tokens, head_dim), keys and values repeated for grouped queries;
            None for eager attention.
        mask: as the model gave it: additive, or bool with True where attention may flow.
        scale: of the logits; None stands for 1 / sqrt(head_dim).
    """

    output: Tensor
    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    mask: Tensor | None = None
    scale: float | None = None

    def probabilities(self) -> Tensor:
        """The map A written out, (batch, heads, queries, keys), detached, at least float32."""
        dtype = torch.promote_types(self.output.dtype, torch.float32)
        if self.query is None or self.key is None:
            return _with_heads(self.output.detach().to(dtype))
        mask = self.mask if self.mask is None or self.mask.dtype == torch.bool else self.mask.to(dtype)
        return _with_heads(_softmax_attention(self.query.to(dtype), self.key.to(dtype), mask, self.scale))

    def sensitivity(self, output_grad: Tensor, rows: Tensor | slice) -> Tensor:
        """dS/dA = (dS/dO) V^T of some query rows, (batch, heads, rows, keys), at least float32."""
        dtype = torch.promote_types(output_grad.dtype, torch.float32)
        gradient = _with_heads(output_grad.to(dtype))[:, :, rows]
        return attention_gradient(gradient, None if self.value is None else _with_heads(self.value.to(dtype)))


def _with_heads(tensor: Tensor) -> Tensor:
    return tensor[:, None] if tensor.ndim == 3 else tensor


class WholeTap(AttentionTap):
    """Keeps queries and keys too, and replaces functions by others with the same value and another derivative."""

    def __init__(self, kind: Kind, replacements: Replacements, attend: Callable[..., Tensor]) -> None:
        super().__init__(kind)
        self.attentions: list[Attention] = []
        self._replacements = replacements
        self._attend = attend

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._replacements and torch.is_grad_enabled():
            return self._replacements[func](*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)

    def _softmax(self, attention: Tensor) -> Tensor:
        self.attentions.append(Attention(_in_graph(attention)))
        return self.attentions[-1].output

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        output = self._attend(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        output = _in_graph(output)
        q, k, v = (_repeated(t.detach(), query) for t in (query, key, value))
        mask = _visible(None, True, query, key) if is_causal else attn_mask
        self.attentions.append(Attention(output, q, k, v, mask, scale))
        return output


def _in_graph(tensor: Tensor) -> Tensor:
    """The tensor itself, or a leaf where parameters are frozen and nothing before it has a graph."""
    return tensor if tensor.requires_grad or not torch.is_grad_enabled() else tensor.detach().requires_grad_()


def _repeated(tensor: Tensor, query: Tensor) -> Tensor:
    """Keys or values repeated for grouped queries: each group of query heads shares one key and value head."""
    if query.ndim != 4 or tensor.shape[1] == query.shape[1]:
        return tensor
    return tensor.repeat_interleave(query.shape[1] // tensor.shape[1], dim=1)


class ValuesTap(AttentionTap):
    """Replaces attention by the identity: every token attends to itself alone, so attention hands on its values."""

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.calls.append(AttentionCall(value, value, None))
        return _repeated(value, query)


class ShiftTap(AttentionTap):
    """Adds something to what one of the attentions hands on, and only that.

    Args:
        kind: as for ``AttentionTap``.
        index: of the attention, in the order in which they run.
        shift: added to the head outputs, or to the map where attention is written out.
    """

    def __init__(self, kind: Kind, index: int, shift: Tensor) -> None:
        super().__init__(kind, differentiate=False)
        self._left, self._shift = index, shift

    def _softmax(self, attention: Tensor) -> Tensor:
        return self._shifted(attention)

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self._shifted(F.scaled_dot_product_attention(query, key, value, *args, **kwargs))

    def _shifted(self, output: Tensor) -> Tensor:
        self._left -= 1
        return output + self._shift.to(output) if self._left == -1 else output
