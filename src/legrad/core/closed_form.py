"""The common block's tail in closed form: from the gradient at the block's tokens to the gradient at its head outputs.

The tail of a pre-norm block is what follows its attention, all of it token by token:

    x = x + scale1 * (O Wo^T + bo)                      O: head outputs
    z = x + scale2 * (m W2^T + b2)                      m = act(h), or act(h_1) * h_2 in gated MLPs
    h_k = norm(x) W_k^T + b_k

With g = ds/dz (one vector for all tokens where the read-out averages them) the chain rule leaves

    u    = (scale2 * g) W2
    ds/dh_k = u * dm/dh_k                               the derivative is shared by all targets
    ds/dO = (scale1 * (g + norm'(sum_k ds/dh_k W_k))) Wo

The plain form computes just that. For many targets the folded form merges W_k, the norm's backward and Wo into one
matrix: LayerNorm has norm'(y) = (C (gamma * y) - x_hat mean(gamma * y * x_hat)) / sigma with C the subtraction of the
mean, and sum(gamma * y * x_hat) = sum_k ds/dh_k . (h_k - c_k), where c_k = W_k beta + b_k. Hence with
Wo' = diag(scale1) Wo

    ds/dO = g Wo' + sum_k (u * dm/dh_k / sigma) F_k - (x_hat Wo') (sum_k (u * dm/dh_k / sigma) . (h_k - c_k)) / dim
    F_k   = W_k diag(gamma) C Wo'                       (hidden, heads * head_dim)

``planning`` recognises a tail by the modules that ran, and uses it only after comparing both forms with autograd: the
structure is guessed, the result is not.
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
ACTIVATION_FUNCTIONS: dict[str, Function] = {"silu": F.silu}


# of the largest value; two correct ways of computing the same differ by less
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 3e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class PostAttention:
    """A block's tail: the names of its parts among the block's modules.

    Names, so that it holds for every copy of the block.

    Attributes:
        out: output projection; None where ``nn.MultiheadAttention`` keeps it to itself.
        scale1: LayerScale after it, or None.
        norm: the norm before the MLP.
        linears: first linear layers of the MLP, in the order in which they run.
        act: its activation, a module's name or a key of ``ACTIVATION_FUNCTIONS``.
        gate: None for m = act(h); else which half of the hidden features goes through the activation.
        fc2: last linear layer.
        scale2: LayerScale after it, or None.
        structure: of the block, to notice that it was rebuilt.
        foldable: the folded form holds too.
        confirmed: which comparisons of ``confirm`` held at the first use, and are made in every pass therefore.
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
    confirmed: tuple[bool, bool, bool] = (False, False, False)

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
    module_ids = {id(module) for module in call.before} | {id(module_call.module) for module_call in call.after}
    # they run without being called
    in_attention = {
        id(inner)
        for module in block.modules()
        if isinstance(module, nn.MultiheadAttention)
        for inner in module.modules()
    }
    leaves = [module for module in block.modules() if not list(module.children()) and list(module.parameters())]
    return all(id(module) in module_ids | in_attention for module in leaves)


def split_hidden(hidden: Sequence[Tensor], width: int) -> list[Tensor]:
    """One or two tensors of ``width`` features; both halves may come out of one linear layer."""
    if len(hidden) == 1 and hidden[0].shape[-1] == 2 * width:
        return list(hidden[0].chunk(2, dim=-1))
    return list(hidden)


def activation_product(act: Function, gate: int | None, hidden: Sequence[Tensor]) -> Tensor:
    """What enters the MLP's last linear layer."""
    return act(hidden[0]) if gate is None else act(hidden[gate]) * hidden[1 - gate]


class Scratch:
    """Buffers that serve one layer after another: on the CPU new memory costs a page fault every 4 KB, as much time as
    the arithmetic that it is needed for."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: torch.Size, like: Tensor) -> Tensor:
        """An uninitialised tensor, valid until the same name is taken again."""
        buffer, count = self._buffers.get(name), shape.numel()
        if buffer is None or buffer.numel() < count or buffer.dtype != like.dtype:
            buffer = self._buffers[name] = like.new_empty(count)
        return buffer[:count].view(shape)


def _activation_backward(act: Function, hidden: Tensor, grad_output: Tensor, buffer: Tensor) -> Tensor:
    """act'(hidden) * grad_output, elementwise, perhaps in the buffer; ``grad_output`` is broadcast."""
    grad_output = grad_output.expand_as(hidden)
    if isinstance(act, nn.GELU):
        # one kernel; autograd would run the activation once more
        return torch.ops.aten.gelu_backward.grad_input(
            grad_output, hidden, approximate=act.approximate, grad_input=buffer
        )
    with torch.enable_grad():
        leaf = hidden.detach().requires_grad_()
        return torch.autograd.grad(act(leaf), leaf, grad_output)[0]


def _product_backward(
    act: Function, gate: int | None, hidden: Sequence[Tensor], grad_product: Tensor, buffers: Sequence[Tensor]
) -> list[Tensor]:
    """dm/dh_k * grad_product, elementwise, with a buffer for every k."""
    if gate is None:
        return [_activation_backward(act, hidden[0], grad_product, buffers[0])]
    activated = _activation_backward(act, hidden[gate], grad_product, buffers[gate]).mul_(hidden[1 - gate])
    multiplied = torch.mul(act(hidden[gate]), grad_product, out=buffers[1 - gate])
    return [activated, multiplied] if gate == 0 else [multiplied, activated]


def activations(tail: PostAttention, block: nn.Module, call: AttentionCall) -> list[Tensor]:
    """The norm's input and the first linear layers' outputs.

    Raises:
        TruthCheckError: not each of them ran once.
    """
    watched = tail.watched(block)
    module_calls = [item for item in call.after if any(item.module is module for module in watched)]
    if [id(item.module) for item in module_calls] != list(map(id, watched)):
        raise TruthCheckError(
            f"{type(block).__name__} did not run the modules that it ran at its first use: its forward depends on "
            "something else than its input"
        )
    norm_call, *linear_calls = module_calls
    return [norm_call.input, *(item.output for item in linear_calls)]


def activation_of(tail: PostAttention, block: nn.Module) -> Any:
    """The activation of a tail's MLP."""
    return ACTIVATION_FUNCTIONS[tail.act] if tail.act in ACTIVATION_FUNCTIONS else block.get_submodule(tail.act)


@dataclass(frozen=True)
class TailWeights:
    """The parameters of a block's tail; looked up for every pass, so never stale.

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


def tail_weights(tail: PostAttention, block: nn.Module, call: AttentionCall) -> TailWeights:
    """Look up the parameters of a block's tail."""

    def parameter(name: str | None) -> Tensor | None:
        return None if name is None else next(block.get_submodule(name).parameters()).detach()

    linears: list[Any] = [block.get_submodule(name) for name in tail.linears]
    fc2: Any = block.get_submodule(tail.fc2)
    out: Any = call.projection if tail.out is None else block.get_submodule(tail.out).weight
    inner = _rows([linear.weight.detach() for linear in linears], fc2.in_features)
    biases = [None if linear.bias is None else linear.bias.detach() for linear in linears]
    if len(biases) < len(inner):
        biases = [None] * 2 if biases[0] is None else list(biases[0].chunk(2))
    act = activation_of(tail, block)
    return TailWeights(
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


def fold(weights: TailWeights, multiplied: bool = True) -> Folded:
    """Merge the matrices of a tail.

    Costs (hidden * dim * heads * head_dim) multiply-adds, as much as 4 * dim tokens through these layers;
    ``multiplied=False`` leaves F_k two matrices, for a single use.
    """
    norm = weights.norm
    centred = "rms" not in type(norm).__name__.lower()
    gamma, beta = (getattr(norm, name, None) for name in ("weight", "bias"))
    eps = next((getattr(norm, name) for name in ("eps", "variance_epsilon") if getattr(norm, name, None)), 1e-6)
    out = weights.out if weights.scale1 is None else weights.scale1[:, None] * weights.out
    right = out - out.mean(0) if centred else out
    if gamma is not None:
        right = gamma.detach()[:, None] * right
    offsets: list[Tensor | float] = []
    for matrix, bias in zip(weights.inner, weights.biases, strict=True):
        offset: Tensor | float = 0.0 if beta is None else matrix @ beta.detach()
        offsets.append(offset if bias is None else bias + offset)
    inner = [(matrix @ right,) if multiplied else (matrix, right) for matrix in weights.inner]
    return Folded(out, inner, offsets, float(eps), centred)


class TailDerivative:
    """The derivative of a tail at some rows of some images, which all targets share.

    It holds the MLP's derivative and the norm's statistics.

    Args:
        weights: the tail's.
        folded: use the folded form.
        norm_input: (batch, rows, dim).
        hidden: outputs of the first linear layers, (batch, rows, features).
        scratch: holds intermediate results until the next derivative.
    """

    def __init__(
        self,
        weights: TailWeights,
        folded: Folded | None,
        norm_input: Tensor,
        hidden: Sequence[Tensor],
        scratch: Scratch,
    ) -> None:
        self._weights, self._folded, self._norm_input, self._scratch = weights, folded, norm_input, scratch
        self._hidden = split_hidden(hidden, weights.outer.shape[1])
        self._slopes: list[Tensor] = []
        if folded is not None:
            x = norm_input.to(torch.promote_types(norm_input.dtype, torch.float32))
            x = x - x.mean(-1, keepdim=True) if folded.centred else x
            inverse_sigma = (x.square().mean(-1, keepdim=True) + folded.eps).rsqrt()
            # x_hat Wo'
            self._unit = (x * inverse_sigma).to(norm_input.dtype) @ folded.out
            # dm/dh_k / sigma
            self._slopes = self._product_backward(inverse_sigma.to(norm_input.dtype), "slope")
            # (dm/dh_k / sigma) * (h_k - c_k)
            self._offset_slopes = [
                torch.sub(h, offset, out=buffer).mul_(slope)
                for slope, h, offset, buffer in zip(
                    self._slopes, self._hidden, folded.offsets, self._buffers("offset slope"), strict=True
                )
            ]

    def _buffers(self, name: str) -> list[Tensor]:
        return [self._scratch.take(f"{name} {k}", h.shape, h) for k, h in enumerate(self._hidden)]

    def _product_backward(self, grad_product: Tensor, name: str) -> list[Tensor]:
        weights = self._weights
        return _product_backward(weights.act, weights.gate, self._hidden, grad_product, self._buffers(name))

    def _grad_hidden(self, u: Tensor) -> Iterator[Tensor]:
        """u * slope_k for several targets, (batch, targets, rows, hidden), each valid until the next one."""
        for slope in self._slopes:
            shape = torch.Size((*u.shape[:2], *slope.shape[1:]))
            yield torch.mul(u, slope[:, None], out=self._scratch.take("grad hidden", shape, slope))

    def head_gradient(self, grad_tokens: Tensor) -> Tensor:
        """The gradient at the head outputs, ds/dO.

        Args:
            grad_tokens: g = ds/dz, (batch, targets, rows, dim), or (batch, targets, 1, dim) if it is the same for all
                rows.

        Returns:
            (batch, targets, rows, heads * head_dim).
        """
        scale2 = self._weights.scale2
        return self.combined(grad_tokens, grad_tokens if scale2 is None else grad_tokens * scale2)

    def combined(self, grad_sum: Tensor, grad_mlp: Tensor) -> Tensor:
        """The same from the gradients at the norm's input (without the MLP's share) and at the MLP's output."""
        u = grad_mlp @ self._weights.outer
        return self._plain_form(grad_sum, u) if self._folded is None else self._folded_form(self._folded, grad_sum, u)

    def _plain_form(self, g: Tensor, u: Tensor) -> Tensor:
        weights = self._weights
        if u.shape[1] == 1:
            grad_hidden: Iterable[Tensor] = (h[:, None] for h in self._product_backward(u[:, 0], "grad hidden"))
        else:
            self._slopes = self._slopes or self._product_backward(u.new_ones(()), "slope")
            grad_hidden = self._grad_hidden(u)
        grad_norm = _total([h @ matrix for h, matrix in zip(grad_hidden, weights.inner, strict=True)])
        with torch.enable_grad():
            # once per target, so that one backward pass does
            leaf = self._norm_input.detach()[:, None].expand_as(grad_norm).contiguous().requires_grad_()
            (grad_sum,) = torch.autograd.grad(weights.norm(leaf), leaf, grad_norm)
        grad_sum.add_(g)
        return (grad_sum if weights.scale1 is None else grad_sum.mul_(weights.scale1)) @ weights.out

    def _folded_form(self, folded: Folded, g: Tensor, u: Tensor) -> Tensor:
        pairs = zip(self._grad_hidden(u), folded.inner, strict=True)
        head_grad = _total([functools.reduce(torch.matmul, matrices, h) for h, matrices in pairs])
        if u.shape[2] == 1:
            products = [slopes @ u[:, :, 0].transpose(1, 2) for slopes in self._offset_slopes]
            inner = _total(products).transpose(1, 2)[..., None]
        else:
            inner = _total([(slopes[:, None] * u).sum(-1, keepdim=True) for slopes in self._offset_slopes])
        head_grad.addcmul_(self._unit[:, None].expand_as(head_grad), inner, value=-1 / folded.out.shape[0])
        return head_grad.add_(g @ folded.out)


def fold_holds(weights: TailWeights, folded: Folded, norm_input: Tensor, hidden: Sequence[Tensor]) -> bool:
    """Does the folded form give what the plain one gives, for the shares of the residual and of the MLP apart? Of a few
    rows: the norm's input, (1, rows, dim), and the outputs of the first linear layers, (1, rows, features)."""
    wave = torch.linspace(0, 1e3, norm_input.numel(), device=norm_input.device, dtype=torch.float32).sin_()
    gradient = wave.reshape(norm_input.shape).to(norm_input)[:, None]
    zeros = torch.zeros_like(gradient)
    forms = [TailDerivative(weights, form, norm_input, hidden, Scratch()) for form in (None, folded)]
    for shares in ((gradient, zeros), (zeros, gradient)):
        expected, merged = (form.combined(*shares) for form in forms)
        # a comparison with NaN is False, and NaN must not pass
        if not bool((merged - expected).abs().max() <= LIMITS[norm_input.dtype] * expected.abs().max()):
            return False
    return True


def _total(terms: list[Tensor]) -> Tensor:
    """Their sum, in place of the first."""
    total = terms[0]
    for term in terms[1:]:
        total = total.add_(term)
    return total
