"""LeGrad with a part left out."""

from typing import Any

import torch
from torch import Tensor

from legrad import capture, relevance
from legrad.capture import AttentionCall
from legrad.methods.calling import Call
from legrad.reading import Reader
from legrad.truth import as_float, check_calls


def legrad_norelu(call: Call) -> Tensor:
    """LeGrad without the positive part: the plain mean of dS/dA over heads and queries. Signed.

    Layers, read-outs and routes are those of LeGrad.
    """
    anatomy = call.anatomy
    reader = Reader(anatomy, anatomy.readouts[call.readout])
    pooled = anatomy.route == "pooler"
    found: dict[int, Tensor] = {}

    def visit(layer: int, output: Any, calls: list[AttentionCall]) -> None:
        tokens = anatomy.to_tokens(output)
        leaf = as_float(tokens.detach()).requires_grad_()
        if pooled:
            feature, calls = capture.tapped(lambda: reader(leaf), anatomy.attention)
        else:
            feature = reader(leaf)
        check_calls(anatomy, calls, f"block {layer} or the pooler on it")
        heads = [calls[tap] for tap in anatomy.taps]
        outputs = [one.output for one in heads]
        results = []
        for score in call.scores:
            value = score(feature).sum()
            if pooled:
                gradients = torch.autograd.grad(value, outputs, retain_graph=True)
            else:
                (above,) = torch.autograd.grad(value, leaf, retain_graph=True)
                gradients = torch.autograd.grad(tokens, outputs, above.to(tokens.dtype), retain_graph=True)
            rows = slice(0, 1) if pooled else slice(None)
            maps = [
                anatomy.on_grid(_mean(one, gradient, rows), tap, len(tokens))
                for one, gradient, tap in zip(heads, gradients, anatomy.taps, strict=True)
            ]
            results.append(relevance.merge_layers(maps))
        found[layer] = torch.stack(results, 1).detach()

    in_blocks = None if pooled else anatomy.attention
    output, _ = capture.stream(lambda: anatomy.run(call.batch), anatomy.blocks, call.layers, visit, tap=in_blocks)
    call.output = output
    return torch.stack([found[layer] for layer in call.layers], 2)


def _mean(call: AttentionCall, output_grad: Tensor, rows: slice) -> Tensor:
    """Mean of dS/dA over heads and some queries, (batch, keys); masked entries count as zero."""
    parts = [output_grad, call.value, call.keep]
    gradient, value, keep = (one[:, None] if one is not None and output_grad.ndim == 3 else one for one in parts)
    assert gradient is not None
    gradient = as_float(gradient[:, :, rows])
    value = None if value is None else as_float(value)
    if keep is None:  # the mean of products with V is the product of the mean with V
        return relevance.attention_gradient(gradient.mean(2, keepdim=True), value).mean((1, 2))
    # a mask may stand for all queries at once
    keep = keep if keep.shape[2] == 1 else keep[:, :, rows]
    return (relevance.attention_gradient(gradient, value) * keep).mean((1, 2))
