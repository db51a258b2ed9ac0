"""A slow twin for any model: it knows where the blocks and the patches are, and nothing about heads or pooling.

Attention is written out in float64 and every map gets a zero added that autograd can differentiate. The read-out of an
early layer is the model itself with the later blocks skipped, so no formula of a head is repeated here: "published"
(the mean of all tokens at every place) and "native" are two ways to change what the skipped part hands on.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Maps(list[Tensor]):
    """The zeros that were added to the attention maps, in the order of the forward pass."""

    def added(self, attention: Tensor) -> Tensor:
        zero = torch.zeros_like(attention, requires_grad=True)
        self.append(zero)
        return attention + zero


@contextmanager
def written_out(softmax: bool) -> Iterator[Maps]:
    """Replace attention by its definition (or tap every softmax) and collect what was added to the maps."""
    maps = Maps()

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Any = None, *_: Any, **options: Any) -> Tensor:
        mask = options.get("attn_mask", mask)
        scale = options.get("scale")
        if options.get("enable_gqa"):
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        logits = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
        assert not options.get("is_causal"), "a vision tower with causal attention"
        if mask is not None:
            mask = mask.unflatten(0, (-1, q.shape[1])) if mask.ndim == 3 and len(mask) > len(q) else mask
            hidden = mask if mask.dtype != torch.bool else torch.zeros_like(logits).masked_fill(~mask, -torch.inf)
            logits = logits + hidden
            # masked keys carry no relevance
            return (maps.added(logits.softmax(-1)) * (hidden > -1e30)) @ v
        return maps.added(logits.softmax(-1)) @ v

    def multi_head(self: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Any:
        assert options.get("key_padding_mask") is None
        if not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (0, 0, 0) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (
            (x @ w.T + b).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        out = self.out_proj(attend(q, k, v, options.get("attn_mask")).transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), None

    originals = {"F": F.softmax, "torch": torch.softmax, "tensor": Tensor.softmax}

    def tapped(name: str) -> Callable[..., Tensor]:
        def function(x: Tensor, *args: Any, **options: Any) -> Tensor:
            return maps.added(originals["tensor"](x.double(), options.get("dim", args[0] if args else -1)))

        return function

    with ExitStack() as stack:
        # nn.TransformerEncoderLayer has a fused path of its own
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        if softmax:
            for owner, name in ((F, "F"), (torch, "torch"), (Tensor, "tensor")):
                stack.enter_context(mock.patch.object(owner, "softmax", tapped(name)))
        else:
            stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", attend))
            stack.enter_context(mock.patch.object(nn.MultiheadAttention, "forward", multi_head))
        yield maps


@dataclass
class _Run:
    """Follows one block through a forward pass: which maps are its own, and what it hands on."""

    mean: bool
    maps: Maps
    batch: int
    inside: slice = field(default_factory=lambda: slice(0))
    start: int = 0

    def entered(self, *_: Any) -> None:
        self.start = len(self.maps)

    def left(self, _module: Any, _args: Any, output: Any) -> Any:
        self.inside = slice(self.start, len(self.maps))
        return _like(_mean(_tokens(output), self.batch), output) if self.mean else None


def layer_maps(*args: Any, **options: Any) -> Tensor:
    """Relevance of every block, the mean of ``head_maps`` over the heads: (batch, layers, *grid) float64."""
    return head_maps(*args, **options).mean(2)


def head_maps(
    model: nn.Module,
    anatomy_of: Callable[[nn.Module], Any],
    batch: Tensor,
    score: Callable[[Tensor], Tensor],
    readout: str,
    identity: Sequence[str] = (),
    normalize: bool = True,
) -> Tensor:
    """Relevance of every head of every block, (batch, layers, heads, *grid) float64.

    Args:
        model: any dtype; a float64 copy is used.
        anatomy_of: model -> its anatomy for the size of ``batch``. Used: tower, run, blocks, route, attention,
            attentions, explained_attentions, num_prefix_keys, grid, keys_to_grid, output,
            call_settings; not the read-outs and not to_tokens.
        batch: input.
        score: (batch, features) float64 -> (batch,).
        readout: "native" or "published".
        identity: names of modules inside the tower that the published read-out of a pooler leaves out: final norms.
        normalize: L2-normalise embeddings and features.
    """
    anatomy = anatomy_of(copy.deepcopy(model).double().eval())
    batch = batch.double()
    anatomy.tower.requires_grad_(False)
    pooled = anatomy.route == "pooler"
    forms = _forms(anatomy, batch)
    layers = []
    for block in anatomy.blocks:
        with ExitStack() as stack:
            stack.callback(_switched(anatomy.call_settings))
            maps = stack.enter_context(written_out(anatomy.attention == "softmax"))
            mean = readout == "published" and not pooled
            run = _Run(mean, maps, len(batch))
            stack.callback(block.register_forward_pre_hook(run.entered).remove)
            stack.callback(block.register_forward_hook(run.left).remove)
            for other in _later(anatomy.tower, block):
                stack.enter_context(mock.patch.object(other, "forward", _skipping(forms[other])))
            if pooled and readout == "published":
                modules = dict(anatomy.tower.named_modules())
                for name in identity:
                    stack.enter_context(mock.patch.object(modules[name], "forward", lambda x: x))
            feature = anatomy.run(batch)
            if anatomy.output != "logits" and normalize:
                feature = feature / feature.norm(dim=-1, keepdim=True)
            fired = maps[run.inside.stop :] if pooled else maps[run.inside]
            assert len(fired) == anatomy.attentions, f"{len(fired)} attentions, expected {anatomy.attentions}"
            gradients = torch.autograd.grad(score(feature).sum(), [fired[tap] for tap in anatomy.explained_attentions])
            found = [
                torch.stack([_on_grid(anatomy, head, tap, len(batch)) for head in _keys(gradient, pooled).unbind(1)], 1)
                for tap, gradient in zip(anatomy.explained_attentions, gradients, strict=True)
            ]
            layers.append(torch.stack(found).mean(0))
    return torch.stack(layers, 1)


def _keys(gradient: Tensor, pooled: bool) -> Tensor:
    positive = (gradient if gradient.ndim == 4 else gradient[:, None]).clamp(min=0)
    return positive[:, :, 0] if pooled else positive.mean(2)


def _on_grid(anatomy: Any, keys: Tensor, tap: int, batch: int) -> Tensor:
    if anatomy.keys_to_grid is not None:
        return anatomy.keys_to_grid(keys, tap)
    count = int(torch.Size(anatomy.grid).numel())
    return keys[:, anatomy.num_prefix_keys : anatomy.num_prefix_keys + count].reshape(batch, *anatomy.grid)


def _switched(switches: Any) -> Callable[[], None]:
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in switches]
    for owner, name, value in switches:
        setattr(owner, name, value)

    def undo() -> None:
        for owner, name, value in before:
            setattr(owner, name, value)

    return undo


def _later(tower: nn.Module, block: nn.Module) -> list[nn.Module]:
    """The blocks behind this one in the list that holds them, explained or not."""
    for holder in tower.modules():
        children = list(holder.children())
        if isinstance(holder, nn.ModuleList | nn.Sequential) and any(child is block for child in children):
            return children[next(i for i, child in enumerate(children) if child is block) + 1 :]
    raise AssertionError(f"{type(block).__name__} is in no list of blocks")


def _forms(anatomy: Any, batch: Tensor) -> dict[nn.Module, Any]:
    """What every block returns in a plain forward."""
    forms: dict[nn.Module, Any] = {}
    handles = [
        block.register_forward_hook(lambda module, _args, output: forms.update({module: output}))
        for block in anatomy.tower.modules()
    ]
    with torch.no_grad():
        anatomy.run(batch)
    for handle in handles:
        handle.remove()
    return forms


def _skipping(form: Any) -> Callable[..., Any]:
    def forward(*args: Any, **options: Any) -> Any:
        return _like(args[0] if args else options["hidden_states"], form)

    return forward


def _tokens(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _like(tokens: Tensor, output: Any) -> Any:
    """Tokens in the form in which a block returns them."""
    return (tokens, *output[1:]) if isinstance(output, tuple) else tokens


def _mean(tokens: Tensor, batch: int) -> Tensor:
    """The mean of all tokens at every place of (batch, n, dim), (n, batch, dim) or (batch, rows, cols, dim)."""
    dims = (1, 2) if tokens.ndim == 4 else (1 if len(tokens) == batch else 0)
    return tokens.mean(dims, keepdim=True).expand_as(tokens)
