"""Backward rules: torch functions with the same value and another derivative.

Relevance propagation with these rules is gradient times input (Achtibat et al., AttnLRP, ICML 2024, arXiv:2402.05602):
linear layers by the epsilon rule with epsilon 0, which is their gradient; products of two activations share
evenly (uniform rule); activation functions and norms are identities up to a factor that is held constant; the softmax
keeps its gradient.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def layer_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """``F.layer_norm``, the standard deviation held constant."""
    dims = tuple(range(-len(normalized_shape), 0))
    centred = input - input.mean(dims, keepdim=True)
    result = centred * (centred.detach().square().mean(dims, keepdim=True) + eps).rsqrt()
    result = result if weight is None else result * weight
    return result if bias is None else result + bias


def rms_norm(input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """``F.rms_norm``, the root mean square held constant."""
    dims = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    result = input * (input.detach().square().mean(dims, keepdim=True) + eps).rsqrt()
    return result if weight is None else result * weight


def stop_gradient(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function's result without its graph: a factor of norms and activations that are written out."""

    def with_rule(*args: Any, **kwargs: Any) -> Tensor:
        return function(*args, **kwargs).detach()

    return with_rule


def activation_rule(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Activation f(x) = x * (f(x) / x), the factor held constant."""

    def with_rule(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kwargs.pop("inplace", None)
        value = function(input.detach(), *args, **kwargs)
        factor = torch.where(input == 0, 0, value / input.detach().masked_fill(input == 0, 1))
        # the value itself stays exact
        return input * factor + (value - input.detach() * factor)

    return with_rule


def half_gradient(tensor: Tensor) -> Tensor:
    """The same numbers, half the gradient."""
    return tensor / 2 + (tensor / 2).detach()


def product_rule(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Elementwise product; of two activations each gets half."""

    def with_rule(a: Any, b: Any, **kwargs: Any) -> Tensor:
        if _both_activations(a, b) and a.shape == b.shape:
            a, b = half_gradient(a), half_gradient(b)
        return function(a, b, **kwargs)

    return with_rule


def matrix_product_rule(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Matrix product; of two activations each gets half."""

    def with_rule(a: Any, b: Any, **kwargs: Any) -> Tensor:
        if _both_activations(a, b) and a.ndim == b.ndim > 2:
            a, b = half_gradient(a), half_gradient(b)
        return function(a, b, **kwargs)

    return with_rule


def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Fused attention as two products and a softmax: A and V share evenly, and of A's half Q and K each take half."""
    query, key = (half_gradient(half_gradient(tensor)) for tensor in (query, key))
    return F.scaled_dot_product_attention(query, key, half_gradient(value), *args, **kwargs)


def _both_activations(a: Any, b: Any) -> bool:
    """Whether both depend on the tokens; weights are leaves, or views of leaves with fewer dimensions."""
    return all(isinstance(t, Tensor) and t.requires_grad and not t.is_leaf and t.ndim > 2 for t in (a, b))


# with the standard deviation held constant, a norm is linear
FROZEN_NORMS: Mapping[Any, Callable[..., Tensor]] = {
    F.layer_norm: layer_norm,
    F.rms_norm: rms_norm,
    torch.rsqrt: stop_gradient(torch.rsqrt),
    Tensor.rsqrt: stop_gradient(torch.rsqrt),
}
_ACTIVATION_FUNCTIONS = (
    *(F.gelu, F.silu, F.relu, F.relu6, F.leaky_relu, F.elu, F.hardswish, F.mish, torch.relu),
    *(torch.tanh, Tensor.tanh, F.tanh),
)
LRP: Mapping[Any, Callable[..., Tensor]] = {
    **FROZEN_NORMS,
    **{function: activation_rule(function) for function in _ACTIVATION_FUNCTIONS},
    # gates of activations that are written out: x * sigmoid(1.702 x), x * (1 + erf(x / sqrt(2))) / 2
    **{
        function: stop_gradient(function)
        for function in (torch.sigmoid, Tensor.sigmoid, F.sigmoid, torch.erf, Tensor.erf)
    },
    **{function: product_rule(function) for function in (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)},
    **{
        function: matrix_product_rule(function)
        for function in (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm)
    },
}
