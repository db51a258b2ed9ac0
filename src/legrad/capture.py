"""The only place that touches a running model: hooks, attention taps, autograd modes. It undoes everything.

``stream`` runs the model forward once. A chosen block is entered without gradients; at its first attention the head
output O becomes a fresh leaf and gradients are on until the block ends. There ``visit`` sees the block's tokens and its
attention calls, and the model goes on with detached tokens: nothing of a block survives the block. A block whose tail
is known in closed form (see ``tails``) is only watched: no gradients, a few activations noted.
"""

import contextlib
import itertools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from legrad.errors import TruthCheckError, UnsupportedModelError
from legrad.relevance import attention_gradient

Kind = Literal["fused", "softmax"]
_PROBED_QUERIES = 4
_SOFTMAX = (torch.softmax, F.softmax, Tensor.softmax)


@dataclass(frozen=True)
class Passage:
    """What went through a module: its first argument and its output; with their graph where the pass verifies."""

    module: nn.Module
    entered: Any
    left: Any


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
        projection: weight of the output projection where ``nn.MultiheadAttention`` hides it, (dim, heads * head_dim).
        before: the watched modules that ran in the block before its first attention.
        behind: those that ran between this attention and the next one or the block's end, in order.
    """

    output: Tensor
    value: Tensor | None
    keep: Tensor | None
    mismatch: float | None = None
    projection: Tensor | None = None
    before: list[nn.Module] = field(default_factory=list)
    behind: list[Passage] = field(default_factory=list)


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
        self._kind = kind
        self._verify = verify
        self._differentiate = differentiate

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
        self.calls.append(AttentionCall(attention, None, None, mismatch))
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
            seen = value.detach() if groups == 1 else value.detach().repeat_interleave(groups, dim=1)
            keep = _visible(attn_mask, is_causal, query, key)
            call = AttentionCall(output, seen, keep, before=self.before)
            if self._verify:
                shared = key if groups == 1 else key.repeat_interleave(groups, dim=1)
                call.mismatch = _mismatch(query, shared, call, attn_mask, scale)
        self.calls.append(call)
        if self._differentiate:
            torch.set_grad_enabled(True)
        return output

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
        refused = {
            "bias_k": bias_k is not None,
            "bias_v": bias_v is not None,
            "add_zero_attn": add_zero_attn,
            "static_k": static_k is not None,
            "static_v": static_v is not None,
            "unbatched input": query.ndim != 3,
        }
        if any(refused.values()):
            names = ", ".join(name for name, used in refused.items() if used)
            raise UnsupportedModelError(f"nn.MultiheadAttention with {names} is not supported")
        # batch-first from here on: one large projection instead of many small ones
        same = key is query and value is query
        q, k, v = (t.transpose(0, 1) for t in (query, key, value))
        if use_separate_proj_weight:
            weights = (q_proj_weight, k_proj_weight, v_proj_weight)
            biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
            q, k, v = (F.linear(t, w, b) for t, w, b in zip((q, k, v), weights, biases, strict=True))  # type: ignore[arg-type]
        elif same:
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
    """Relative distance of the captured O from softmax(QK^T)V on the first queries; tells if V belongs to O."""
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
    found = call.output[..., rows, :].to(dtype)
    return float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-30))


_session = threading.local()
_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_locks_guard = threading.Lock()


# hooks that only look; another pass of ours may be running outside this one
_looking: weakref.WeakSet[Callable[..., None]] = weakref.WeakSet()


def undisturbed(block: nn.Module) -> bool:
    """False if somebody's hooks or replaced forwards may change what the modules inside a block compute."""
    everywhere = nn.modules.module
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        return False
    for module in itertools.islice(block.modules(), 1, None):
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values(), *module._backward_hooks.values())
        if "forward" in vars(module) or any(hook not in _looking for hook in hooks):
            return False
    return True


def fingerprint(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Changes with every parameter or buffer that is replaced or written to (except through ``.data``)."""
    tensors = (
        tensor
        for one in module.modules()
        for tensor in (*one._parameters.values(), *one._buffers.values())
        if tensor is not None
    )
    # tensors made under inference mode keep no count
    return tuple((id(tensor), 0 if tensor.is_inference() else tensor._version) for tensor in tensors)


@contextlib.contextmanager
def exclusive(module: nn.Module) -> Iterator[None]:
    """Serialise the use of one model between threads; the same thread may enter again."""
    with _locks_guard:
        lock = _locks.setdefault(module, threading.RLock())
    with lock:
        yield


@contextlib.contextmanager
def borrowed(settings: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """Set attributes (owner, name, value) and put the old values back."""
    before: list[tuple[Any, str, Any]] = []
    try:
        for owner, name, value in settings:
            before.append((owner, name, getattr(owner, name)))
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(before):
            setattr(owner, name, value)


class _FusedOnly:
    """``nn.MultiheadAttention`` without its fast path, which writes attention out on the processor.

    At 1022 px that costs as much as the rest of a ViT-B/16. The switch is the whole process': several threads may be
    inside, the last one puts it back.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, True

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = torch.backends.mha.get_fastpath_enabled()
                torch.backends.mha.set_fastpath_enabled(False)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                torch.backends.mha.set_fastpath_enabled(self._before)


_fused_only = _FusedOnly()


@contextlib.contextmanager
def plain(model: nn.Module, settings: Iterable[tuple[Any, str, Any]] = ()) -> Iterator[None]:
    """The model in eval mode, without gradients, outside inference mode and autocast; all as before afterwards.

    Under inference mode no graph can be built, so it is left for the duration. Autocast is left so that a map depends
    on the model's own dtype only. Training flags are set one by one because ``train()`` and ``eval()`` may do more in
    a subclass. Compiled forwards (``model.compile()``) are left aside: hooks and modes need the Python of the model.
    """
    training = [(module, "training", False) for module in model.modules() if module.training]
    compiled = [
        (module, "_compiled_call_impl", None) for module in model.modules() if module._compiled_call_impl is not None
    ]
    device = next(itertools.chain(model.parameters(), model.buffers())).device.type
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device, enabled=False),
        _fused_only,
        borrowed([*training, *compiled, *settings]),
    ):
        yield


def _detached(output: Any, copy: bool = False) -> Any:
    if isinstance(output, Tensor):
        return output.detach().clone() if copy else output.detach()
    if isinstance(output, tuple):
        return tuple(_detached(one, copy) for one in output)
    return output


def stream(
    run: Callable[[], Tensor],
    blocks: Sequence[nn.Module],
    layers: Iterable[int],
    visit: Callable[[int, Any, list[AttentionCall]], bool],
    tap: Kind | None = "fused",
    verify: bool = False,
    watched: Mapping[int, Sequence[nn.Module]] | None = None,
) -> tuple[Tensor, Any]:
    """Run the model once and visit the chosen blocks as they finish.

    Call it inside ``plain``. Only the calling thread's forward is seen, and not those that ``visit`` starts.

    Args:
        run: the forward pass of the vision tower.
        blocks: all transformer blocks.
        layers: indices of the blocks to visit; each must run exactly once.
        visit: called as ``visit(layer, block_output, attention_calls)`` with gradients on; True says that it keeps the
            output: the model goes on with a copy, so that no block writes on what was kept.
        tap: the kind of attention to look at inside the blocks; None visits them with detached outputs only.
        verify: recompute a few rows of every attention explicitly, and watch every childless module of every block.
        watched: modules of a block to watch, see ``AttentionCall.behind``; such a block runs without gradients.

    Returns:
        The result of ``run`` and the (detached) output of the last block.

    Raises:
        TruthCheckError: a chosen block did not run, or ran more than once.
    """
    chosen = set(layers)
    last = len(blocks) - 1
    runs = dict.fromkeys(chosen | {last}, 0)
    final: list[Any] = []
    me = object()
    outer = getattr(_session, "current", None)
    open_taps: list[AttentionTap] = []
    handles: list[Any] = []
    watched = watched or {}
    noted: dict[int, nn.Module] = {}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if getattr(_session, "current", None) is not me or not open_taps:
            return
        tap = open_taps[-1]
        if not tap.calls:
            tap.before.append(module)
        elif args:
            through = (args[0], output) if verify else (_detached(args[0]), _detached(output))
            tap.calls[-1].behind.append(Passage(module, *through))

    _looking.add(note)

    def watch(layer: int) -> None:
        def enter(module: nn.Module, args: Any) -> None:
            if getattr(_session, "current", None) is not me:
                return
            assert tap is not None
            open_taps.append(AttentionTap(tap, verify, differentiate=layer not in watched))
            open_taps[-1].__enter__()

        def leave(module: nn.Module, args: Any, output: Any) -> Any:
            if getattr(_session, "current", None) is not me:
                return None
            runs[layer] += 1
            calls: list[AttentionCall] = []
            if tap and layer in chosen:
                finished = open_taps.pop()
                finished.__exit__(None, None, None)
                calls = finished.calls
            kept = layer == last
            try:
                if layer in chosen:
                    _session.current = None
                    with torch.enable_grad():
                        kept |= visit(layer, output, calls)
            finally:
                _session.current = me
                torch.set_grad_enabled(False)
            output = _detached(output, copy=kept)
            if layer == last:
                final[:] = [output]
            return output

        if tap and layer in chosen:
            handles.append(blocks[layer].register_forward_pre_hook(enter))
            every = [module for module in blocks[layer].modules() if not list(module.children())] if verify else []
            # blocks may share modules
            noted.update({id(module): module for module in watched.get(layer, every)})
        # prepended, so that the user's own hooks see detached outputs and run without gradients
        handles.append(blocks[layer].register_forward_hook(leave, prepend=True))

    try:
        for layer in sorted(runs):
            watch(layer)
        handles.extend(module.register_forward_hook(note) for module in noted.values())
        _session.current = me
        output = run()
    finally:
        _session.current = outer
        for handle in handles:
            handle.remove()
        while open_taps:  # an exception left a block early
            open_taps.pop().__exit__(None, None, None)
    for layer, count in runs.items():
        if count != 1:
            raise TruthCheckError(
                f"block {layer} ({type(blocks[layer]).__name__}) ran {count} times in one forward pass, expected once: "
                "its tokens cannot be explained"
            )
    return output, final[0]


def tapped(
    function: Callable[[], Tensor], kind: Kind = "fused", verify: bool = False
) -> tuple[Tensor, list[AttentionCall]]:
    """Run ``function`` with its attention tapped; gradients are on from the first attention to its end."""
    with torch.no_grad(), AttentionTap(kind, verify) as tap:
        return function(), tap.calls


@contextlib.contextmanager
def record(blocks: Sequence[nn.Module]) -> Iterator[list[Any]]:
    """The detached outputs of all blocks of the forward passes that this thread runs inside."""
    outputs: list[Any] = [None] * len(blocks)
    thread = threading.get_ident()
    handles = []

    def keep(index: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if threading.get_ident() == thread:
                outputs[index] = _detached(output)

        return hook

    try:
        handles = [block.register_forward_hook(keep(i), prepend=True) for i, block in enumerate(blocks)]
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def entering(run: Callable[[], Tensor], block: nn.Module) -> Any:
    """What enters a block in one forward pass: its first argument, detached."""
    found: list[Any] = []
    thread = threading.get_ident()

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == thread:
            found.append(_detached(args[0] if args else next(iter(kwargs.values()))))

    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        run()
    finally:
        handle.remove()
    return found[0]


class _Call(nn.Module):
    """A function of a module's parameters as a module, so that ``functional_call`` can lend it other ones."""

    def __init__(self, module: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self, tokens: Tensor) -> Tensor:
        return self.function(tokens)


class InFloat:
    """Calls functions of a module's parts in float32 at least: a half-precision module lends them float32 parameters.

    Args:
        module: the vision tower.
        blocks: modules inside it that no function uses; their parameters are left alone.
    """

    def __init__(self, module: nn.Module, blocks: Sequence[nn.Module]) -> None:
        self._module = module
        self._lent = {
            f"module.{name}": tensor.detach().float()
            for name, tensor in _outside(module, {id(block) for block in blocks})
            if tensor.dtype in (torch.float16, torch.bfloat16)
        }

    def __call__(self, function: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        """``function(tokens)``; tokens are at least float32."""
        if not self._lent:
            return function(tokens)
        result: Tensor = torch.func.functional_call(_Call(self._module, function), self._lent, (tokens,))
        return result


def _outside(module: nn.Module, inside: set[int], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers with their names, except those of some modules."""
    for tensors in (module._parameters, module._buffers):
        yield from ((prefix + name, tensor) for name, tensor in tensors.items() if tensor is not None)
    for name, child in module.named_children():
        if id(child) not in inside:
            yield from _outside(child, inside, f"{prefix}{name}.")


@dataclass
class Attention:
    """One attention of a ``whole`` pass.

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


@dataclass
class Whole:
    """One forward pass with the graph from the first block to the output.

    Attributes:
        output: what ``run`` returned.
        entered: the tokens that entered each block, as the block got them; those of block 0 are a leaf.
        left: what each block returned.
        inside: the attentions of each block.
        behind: the attentions after the last block.
    """

    output: Tensor
    entered: list[Any]
    left: list[Any]
    inside: list[list[Attention]]
    behind: list[Attention]


Replacements = Mapping[Any, Callable[..., Any]]


class _WholeTap(AttentionTap):
    """Keeps queries and keys too, and replaces functions by others with the same value and another derivative."""

    def __init__(self, kind: Kind, replacements: Replacements, attend: Callable[..., Tensor]) -> None:
        super().__init__(kind)
        self.seen: list[Attention] = []
        self._replacements = replacements
        self._attend = attend

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._replacements and torch.is_grad_enabled():
            return self._replacements[func](*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)

    def _softmax(self, attention: Tensor) -> Tensor:
        self.seen.append(Attention(_in_graph(attention)))
        return self.seen[-1].output

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
        self.seen.append(Attention(output, q, k, v, mask, scale))
        return output


def _in_graph(tensor: Tensor) -> Tensor:
    """Itself, or a leaf where parameters are frozen and nothing before it has a graph."""
    return tensor if tensor.requires_grad or not torch.is_grad_enabled() else tensor.detach().requires_grad_()


def _repeated(tensor: Tensor, query: Tensor) -> Tensor:
    """Each group of query heads shares one key and value head."""
    if query.ndim != 4 or tensor.shape[1] == query.shape[1]:
        return tensor
    return tensor.repeat_interleave(query.shape[1] // tensor.shape[1], dim=1)


def _first_replaced(
    args: tuple[Any, ...], kwargs: dict[str, Any], value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((value, *args[1:]), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): value})


def whole(
    run: Callable[[], Tensor],
    blocks: Sequence[nn.Module],
    kind: Kind = "fused",
    replacements: Replacements | None = None,
    attend: Callable[..., Tensor] = F.scaled_dot_product_attention,
    cut: Callable[[nn.Module], bool] | None = None,
) -> Whole:
    """Run the model once and keep the graph of all blocks and of what follows them, for methods that need gradients
    through the whole model. Nothing is kept but by the result.

    Call it inside ``plain``. Only the calling thread's forward is seen.

    Args:
        run: the forward pass of the vision tower.
        blocks: all transformer blocks, in order; each must run exactly once.
        kind: the kind of attention to look at.
        replacements: torch functions -> what to call instead from the first block on.
        attend: called in place of fused attention.
        cut: which direct children of blocks hand on their output without its graph.

    Raises:
        TruthCheckError: a block did not run, or ran more than once.
    """
    tap = _WholeTap(kind, replacements or {}, attend)
    entered: list[Any] = [[] for _ in blocks]
    left: list[Any] = [[] for _ in blocks]
    spans: list[slice] = [slice(0)] * len(blocks)
    thread = threading.get_ident()
    handles: list[Any] = []

    def watch(layer: int) -> None:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if threading.get_ident() != thread:
                return None
            changed = None
            if layer == 0:
                torch.set_grad_enabled(True)
                tokens = args[0] if args else next(iter(kwargs.values()))
                changed = args, kwargs = _first_replaced(args, kwargs, tokens.detach().requires_grad_())
            entered[layer].append(args[0] if args else next(iter(kwargs.values())))
            spans[layer] = slice(len(tap.seen), None)
            return changed

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if threading.get_ident() == thread:
                left[layer].append(output)
                spans[layer] = slice(spans[layer].start, len(tap.seen))

        handles.append(blocks[layer].register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(blocks[layer].register_forward_hook(leave))
        for child in blocks[layer].children():
            if cut is not None and cut(child):
                handles.append(child.register_forward_hook(lambda _module, _args, output: _detached(output)))

    try:
        for layer in range(len(blocks)):
            watch(layer)
        with torch.no_grad(), tap:
            output = run()
    finally:
        for handle in handles:
            handle.remove()
    for layer, found in enumerate(left):
        if len(found) != 1:
            raise TruthCheckError(
                f"block {layer} ({type(blocks[layer]).__name__}) ran {len(found)} times in one forward pass, expected "
                "once: its tokens cannot be explained"
            )
    return Whole(
        output,
        [found[0] for found in entered],
        [found[0] for found in left],
        [tap.seen[span] for span in spans],
        tap.seen[spans[-1].stop :],
    )


class _Values(AttentionTap):
    """Every token attends to itself alone: attention hands on its values."""

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.calls.append(AttentionCall(value, value, None))
        return _repeated(value, query)


def values_only(run: Callable[[], Tensor], block: nn.Module) -> tuple[Any, int]:
    """What a block returns when each of its tokens attends to itself alone, and how many attentions it ran.

    Call it inside ``plain``; fused attention only.
    """
    found: list[Any] = []
    tap = _Values()
    inside = contextlib.ExitStack()  # left at the block's end, or by an exception
    thread = threading.get_ident()

    def enter(module: nn.Module, args: Any) -> None:
        if threading.get_ident() == thread:
            inside.enter_context(tap)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == thread:
            inside.close()
            found.append(_detached(output))

    handles = [block.register_forward_pre_hook(enter), block.register_forward_hook(leave, prepend=True)]
    try:
        with inside:
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found[0], len(tap.calls)
