"""The common block's tail in closed form: from the gradient at the block's tokens to the gradient at its head outputs.

The tail of a pre-norm block is what follows its attention, all of it token by token:

    x = x + scale1 * (O Wo^T + bo)                      O: head outputs
    z = x + scale2 * (m W2^T + b2)                      m = act(h), or act(h_1) * h_2 in gated MLPs
    h_k = norm(x) W_k^T + b_k

With g = ds/dz (one vector for all tokens where the read-out averages them) the chain rule leaves

    u    = (scale2 * g) W2
    ds/dh_k = u * dm/dh_k                               the derivative is shared by all targets
    ds/dO = (scale1 * (g + norm'(sum_k ds/dh_k W_k))) Wo

``unfolded`` computes just that. For many targets ``folded`` merges W_k, the norm's backward and Wo into one matrix:
LayerNorm has norm'(y) = (C (gamma * y) - x_hat mean(gamma * y * x_hat)) / sigma with C the subtraction of the mean, and
sum(gamma * y * x_hat) = sum_k ds/dh_k . (h_k - c_k), where c_k = W_k beta + b_k. Hence with Wo' = diag(scale1) Wo

    ds/dO = g Wo' + sum_k (u * dm/dh_k / sigma) F_k - (x_hat Wo') (sum_k (u * dm/dh_k / sigma) . (h_k - c_k)) / dim
    F_k   = W_k diag(gamma) C Wo'                       (hidden, heads * head_dim)

A tail is recognised by the modules that ran, and used only after both forms were seen to equal autograd: the structure
is guessed, the result is not.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from legrad.core import hooks
from legrad.core.attention import AttentionCall
from legrad.errors import TruthCheckError

Function = Callable[[Tensor], Tensor]


# activations that a model may call as functions; not GELU, whose two kinds could be mistaken for each other
_FUNCTIONS: dict[str, Function] = {"silu": F.silu}


@dataclass(frozen=True)
class PostAttention:
    """Where the parts of a block's tail are: names of modules inside the block.

    Names, so that it holds for every copy of the block.

    Attributes:
        out: output projection; None where ``nn.MultiheadAttention`` keeps it to itself.
        scale1: LayerScale behind it, or None.
        norm: norm in front of the MLP.
        linears: first linear layers of the MLP, in the order in which they run.
        act: its activation, a module's name or a key of ``_FUNCTIONS``.
        gate: None for m = act(h); else which half of the hidden features goes through the activation.
        fc2: last linear layer.
        scale2: LayerScale behind it, or None.
        structure: of the block, to notice that it was rebuilt.
        foldable: ``folded`` holds too.
    """

    out: str | None
    scale1: str | None
    norm: str
    linears: tuple[str, ...]
    act: str
    gate: Literal[0, 1] | None
    fc2: str
    scale2: str | None
    structure: tuple[Any, ...]
    foldable: bool = False

    def fits(self, block: nn.Module) -> bool:
        """False if the block was rebuilt since, or if somebody's hooks may change what its modules compute."""
        return self.structure == block_structure(block) and not hooks.has_foreign_hooks(block)

    def watched(self, block: nn.Module) -> list[nn.Module]:
        """The modules whose input (norm) or output (linears) is needed."""
        return [block.get_submodule(name) for name in (self.norm, *self.linears)]


def block_structure(block: nn.Module) -> tuple[Any, ...]:
    """Names and types of all modules of the block, and a forward that somebody gave it."""
    return vars(block).get("forward"), *((name, type(module)) for name, module in block.named_modules())


def all_ran(block: nn.Module, call: AttentionCall) -> bool:
    """False if there are parameters that the forward did not use, and might use another time (adapters, for one)."""
    ran = {id(module) for module in call.before} | {id(passage.module) for passage in call.behind}
    hidden = {
        id(inner)
        for module in block.modules()
        if isinstance(module, nn.MultiheadAttention)
        for inner in module.modules()
    }
    leaves = [module for module in block.modules() if not list(module.children()) and list(module.parameters())]
    return all(id(module) in ran | hidden for module in leaves)


def split_hidden(hidden: Sequence[Tensor], width: int) -> list[Tensor]:
    """One or two tensors of ``width`` features; both halves may come out of one linear layer."""
    if len(hidden) == 1 and hidden[0].shape[-1] == 2 * width:
        return list(hidden[0].chunk(2, dim=-1))
    return list(hidden)


def activation_product(act: Function, gate: int | None, hidden: Sequence[Tensor]) -> Tensor:
    """What enters the MLP's last linear layer."""
    return act(hidden[0]) if gate is None else act(hidden[gate]) * hidden[1 - gate]


class Scratch:
    """Buffers that serve one layer after another: new memory costs a processor a page fault every 4 KB, which is as
    much as the arithmetic that it is needed for."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: torch.Size, like: Tensor) -> Tensor:
        """An uninitialised tensor, valid until the same name is taken again."""
        buffer, count = self._buffers.get(name), shape.numel()
        if buffer is None or buffer.numel() < count or buffer.dtype != like.dtype:
            buffer = self._buffers[name] = like.new_empty(count)
        return buffer[:count].view(shape)


def _through_act(act: Function, hidden: Tensor, above: Tensor, buffer: Tensor) -> Tensor:
    """act'(hidden) * above, elementwise, perhaps in the buffer; ``above`` is broadcast."""
    above = above.expand_as(hidden)
    if isinstance(act, nn.GELU):
        # one pass; autograd would run the activation once more
        return torch.ops.aten.gelu_backward.grad_input(above, hidden, approximate=act.approximate, grad_input=buffer)
    with torch.enable_grad():
        leaf = hidden.detach().requires_grad_()
        return torch.autograd.grad(act(leaf), leaf, above)[0]


def _through_middle(
    act: Function, gate: int | None, hidden: Sequence[Tensor], above: Tensor, buffers: Sequence[Tensor]
) -> list[Tensor]:
    """dm/dh_k * above, elementwise, with a buffer for every k."""
    if gate is None:
        return [_through_act(act, hidden[0], above, buffers[0])]
    through = _through_act(act, hidden[gate], above, buffers[gate]).mul_(hidden[1 - gate])
    other = torch.mul(act(hidden[gate]), above, out=buffers[1 - gate])
    return [through, other] if gate == 0 else [other, through]


def activations(tail: PostAttention, block: nn.Module, call: AttentionCall) -> list[Tensor]:
    """The norm's input and the first linear layers' outputs.

    Raises:
        TruthCheckError: not each of them ran once.
    """
    watched = tail.watched(block)
    passed = [one for one in call.behind if any(one.module is module for module in watched)]
    if [id(one.module) for one in passed] != list(map(id, watched)):
        raise TruthCheckError(
            f"{type(block).__name__} did not run the modules that it ran at its first use: its forward depends on "
            "something else than its input"
        )
    return [one.output if i else one.input for i, one in enumerate(passed)]


@dataclass(frozen=True)
class Weights:
    """A block's tail with its parameters; made for one pass, so never stale.

    Attributes:
        out: Wo, (dim, heads * head_dim).
        scale1, scale2: (dim,) or None.
        norm: the module.
        inner: W_k, (hidden, dim) each.
        biases: b_k, (hidden,) or None each.
        outer: W2, (dim, hidden).
        act, gate: of the MLP.
    """

    out: Tensor
    scale1: Tensor | None
    norm: Any
    inner: list[Tensor]
    biases: list[Tensor | None]
    outer: Tensor
    scale2: Tensor | None
    act: Function
    gate: int | None


def weights(tail: PostAttention, block: nn.Module, call: AttentionCall) -> Weights:
    """Look the parts up."""

    def parameter(name: str | None) -> Tensor | None:
        return None if name is None else next(block.get_submodule(name).parameters()).detach()

    linears: list[Any] = [block.get_submodule(name) for name in tail.linears]
    fc2: Any = block.get_submodule(tail.fc2)
    out: Any = call.projection if tail.out is None else block.get_submodule(tail.out).weight
    inner = _rows([linear.weight.detach() for linear in linears], fc2.in_features)
    biases = [None if linear.bias is None else linear.bias.detach() for linear in linears]
    if len(biases) < len(inner):
        biases = [None] * 2 if biases[0] is None else list(biases[0].chunk(2))
    act: Any = _FUNCTIONS[tail.act] if tail.act in _FUNCTIONS else block.get_submodule(tail.act)
    return Weights(
        out.detach(),
        parameter(tail.scale1),
        block.get_submodule(tail.norm),
        inner,
        biases,
        fc2.weight.detach(),
        parameter(tail.scale2),
        act,
        tail.gate,
    )


def _rows(matrices: Sequence[Tensor], width: int) -> list[Tensor]:
    return [part.T for part in split_hidden([matrix.T for matrix in matrices], width)]


@dataclass(frozen=True)
class Folded:
    """The parts of a tail merged for many targets, see the head of this file.

    Attributes:
        out: Wo', (dim, heads * head_dim).
        inner: F_k, (hidden, heads * head_dim) each, as a product of one or two matrices.
        offsets: c_k, (hidden,) each.
        eps: of the norm.
        centred: LayerNorm subtracts the mean, RMSNorm does not.
    """

    out: Tensor
    inner: Sequence[tuple[Tensor, ...]]
    offsets: list[Tensor | float]
    eps: float
    centred: bool


def fold(parts: Weights, multiplied: bool = True) -> Folded:
    """Costs (hidden * dim * heads * head_dim) multiply-adds, as much as 4 * dim tokens through these layers.

    ``multiplied=False`` leaves F_k two matrices, for a single use.
    """
    norm = parts.norm
    centred = "rms" not in type(norm).__name__.lower()
    gamma, beta = (getattr(norm, name, None) for name in ("weight", "bias"))
    eps = next((getattr(norm, name) for name in ("eps", "variance_epsilon") if getattr(norm, name, None)), 1e-6)
    out = parts.out if parts.scale1 is None else parts.scale1[:, None] * parts.out
    right = out - out.mean(0) if centred else out
    if gamma is not None:
        right = gamma.detach()[:, None] * right
    offsets: list[Tensor | float] = []
    for matrix, bias in zip(parts.inner, parts.biases, strict=True):
        offset: Tensor | float = 0.0 if beta is None else matrix @ beta.detach()
        offsets.append(offset if bias is None else bias + offset)
    inner = [(matrix @ right,) if multiplied else (matrix, right) for matrix in parts.inner]
    return Folded(out, inner, offsets, float(eps), centred)


class State:
    """What all targets share: the MLP's derivative and the norm's statistics at some rows of some pictures.

    Args:
        parts: the block's.
        folded: use the folded form.
        entered: the norm's input, (batch, rows, dim).
        hidden: outputs of the first linear layers, (batch, rows, features).
        scratch: for what is needed until the next state.
    """

    def __init__(
        self, parts: Weights, folded: Folded | None, entered: Tensor, hidden: Sequence[Tensor], scratch: Scratch
    ) -> None:
        self._parts, self._folded, self._entered, self._scratch = parts, folded, entered, scratch
        self._hidden = split_hidden(hidden, parts.outer.shape[1])
        self._slopes: list[Tensor] = []
        if folded is not None:
            x = entered.to(torch.promote_types(entered.dtype, torch.float32))
            x = x - x.mean(-1, keepdim=True) if folded.centred else x
            inverse = (x.square().mean(-1, keepdim=True) + folded.eps).rsqrt()
            self._unit = (x * inverse).to(entered.dtype) @ folded.out
            self._slopes = self._through_middle(inverse.to(entered.dtype), "slope")
            self._shared = [
                torch.sub(h, offset, out=shared).mul_(slope)
                for slope, h, offset, shared in zip(
                    self._slopes, self._hidden, folded.offsets, self._buffers("shared"), strict=True
                )
            ]

    def _buffers(self, name: str) -> list[Tensor]:
        return [self._scratch.take(f"{name} {k}", h.shape, h) for k, h in enumerate(self._hidden)]

    def _through_middle(self, above: Tensor, name: str) -> list[Tensor]:
        return _through_middle(self._parts.act, self._parts.gate, self._hidden, above, self._buffers(name))

    def _sloped(self, u: Tensor) -> Iterator[Tensor]:
        """u * dm/dh_k for several targets, (batch, targets, rows, hidden), each valid until the next one."""
        for slope in self._slopes:
            shape = torch.Size((*u.shape[:2], *slope.shape[1:]))
            yield torch.mul(u, slope[:, None], out=self._scratch.take("sloped", shape, slope))

    def head_gradient(self, g: Tensor) -> Tensor:
        """ds/dO.

        Args:
            g: ds/dz, (batch, targets, rows, dim), or (batch, targets, 1, dim) if it is the same for all rows.

        Returns:
            (batch, targets, rows, heads * head_dim).
        """
        scale2 = self._parts.scale2
        return self.combined(g, g if scale2 is None else g * scale2)

    def combined(self, at_sum: Tensor, at_mlp: Tensor) -> Tensor:
        """The same from the gradients at the norm's input (without the MLP's share) and at the MLP's result."""
        u = at_mlp @ self._parts.outer
        return self._unfolded(at_sum, u) if self._folded is None else self._through_folded(self._folded, at_sum, u)

    def _unfolded(self, g: Tensor, u: Tensor) -> Tensor:
        parts = self._parts
        if u.shape[1] == 1:
            hidden: Iterable[Tensor] = (one[:, None] for one in self._through_middle(u[:, 0], "sloped"))
        else:
            self._slopes = self._slopes or self._through_middle(u.new_ones(()), "slope")
            hidden = self._sloped(u)
        below = _total([one @ matrix for one, matrix in zip(hidden, parts.inner, strict=True)])
        with torch.enable_grad():
            # once per target, so that one backward pass does
            leaf = self._entered.detach()[:, None].expand_as(below).contiguous().requires_grad_()
            (total,) = torch.autograd.grad(parts.norm(leaf), leaf, below)
        total.add_(g)
        return (total if parts.scale1 is None else total.mul_(parts.scale1)) @ parts.out

    def _through_folded(self, folded: Folded, g: Tensor, u: Tensor) -> Tensor:
        pairs = zip(self._sloped(u), folded.inner, strict=True)
        result = _total([functools.reduce(torch.matmul, product, one) for one, product in pairs])
        if u.shape[2] == 1:
            inner = _total([shared @ u[:, :, 0].transpose(1, 2) for shared in self._shared]).transpose(1, 2)[..., None]
        else:
            inner = _total([(shared[:, None] * u).sum(-1, keepdim=True) for shared in self._shared])
        result.addcmul_(self._unit[:, None].expand_as(result), inner, value=-1 / folded.out.shape[0])
        return result.add_(g @ folded.out)


def _total(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total.add_(term)
    return total
