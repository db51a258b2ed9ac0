"""Methods that weigh the tokens themselves."""

from collections.abc import Callable

import torch
from torch import Tensor

from legrad.methods import backward_rules
from legrad.methods.call import MethodInput
from legrad.methods.catalogue import about
from legrad.methods.method import Method
from legrad.methods.whole_pass import Pass, forward, layer_maps


def grad_cam(call: MethodInput) -> Tensor:
    """Grad-CAM with tokens for feature maps: channels weighted by their mean gradient over the patches, positive part.

    The tokens are those that enter a block (after the last block only the class token has a gradient); in models with
    an attentional pooler those that leave it.
    """
    graph = forward(call)
    entering = graph.anatomy.route == "self-attention"
    tokens = [graph.tokens(layer, entering) for layer in call.layers]
    results = []
    for target in range(len(call.scores)):
        gradients = graph.required_gradients(target, [tensor for tensor, _ in tokens])
        maps = [_cam(graph, *pair, gradient) for pair, gradient in zip(tokens, gradients, strict=True)]
        results.append(torch.stack(maps, 1))
    return torch.stack(results, 1)


GRAD_CAM = Method(
    **about("gradcam"),
    function=grad_cam,
    needs="gradients",
    cost="1 backward pass per target",
    layers="last",
    per_layer=True,
    pooler_layers=True,
)


def _cam(graph: Pass, tensor: Tensor, to_tokens: Callable[[Tensor], Tensor], gradient: Tensor) -> Tensor:
    """(batch, *grid) of one layer, from the model's own tensor and the function that lays it out as tokens."""
    tokens, gradient = (to_tokens(layout).to(gradient.dtype) for layout in (tensor.detach(), gradient))
    patches = graph.patches(tokens.shape[1])
    weight = gradient[:, patches].mean(1, keepdim=True)
    return graph.on_grid((weight * tokens).sum(-1).clamp(min=0))


def lrp(call: MethodInput) -> Tensor:
    """Relevance of the tokens that enter the first block, summed over channels, by the rules of AttnLRP; signed.

    It stops at the embedded patches, positions included, and does not go on to pixels.
    """
    graph = _relevance_pass(call)
    tensor, to_tokens = graph.tokens(0, entering=True)
    results = []
    for target in range(len(call.scores)):
        (gradient,) = graph.required_gradients(target, [tensor])
        relevance = to_tokens(tensor.detach()).to(gradient.dtype) * to_tokens(gradient)
        results.append(graph.on_grid(relevance.sum(-1)))
    return torch.stack(results, 1)[:, :, None]


LRP = Method(
    **about("lrp"),
    function=lrp,
    needs="gradients",
    cost="1 backward pass per target",
    signed=True,
)


def partial_lrp(call: MethodInput) -> Tensor:
    """Relevance of the attention map by the rules of AttnLRP: positive part, mean over heads, row(s) of the head."""
    # products share evenly; where attention is fused the half of A is still to be taken
    share = 0.5 if call.anatomy.attention == "fused" else 1.0
    return layer_maps(_relevance_pass(call), lambda a, g, patches: (share * a * g).clamp(min=0).mean((1, 2)))


PARTIAL_LRP = Method(
    **about("partial-lrp"),
    function=partial_lrp,
    needs="gradients",
    cost="1 backward pass per target",
    layers="last",
    per_layer=True,
)


def _relevance_pass(call: MethodInput) -> Pass:
    return forward(call, backward_rules.LRP, backward_rules.attend, frozen_norm=True)
