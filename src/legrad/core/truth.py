"""The truth check: do the captured attentions and tokens reproduce what the model computes?"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from legrad.checks import first_line
from legrad.core import attention, hooks, state
from legrad.core.memory import ran_out
from legrad.errors import InputError, LeGradError, TruthCheckError
from legrad.models.anatomy import Readout, ViTAnatomy, readouts_given
from legrad.models.functions import description

ATTENTION_NAMES = {"fused": "scaled-dot-product attentions", "softmax": "softmax attentions"}


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def native_feature(anatomy: ViTAnatomy, tokens: Tensor) -> Tensor:
    """The native head on block tokens, before L2, at least float32: (batch, features)."""
    native = anatomy.readouts["native"].function
    return state.InFloat(anatomy.tower, anatomy.blocks)(native, at_least_float32(tokens))


def plain_answer(anatomy: ViTAnatomy, batch: Tensor) -> Tensor:
    """The model's own output, (batch, features), its errors told as what they are: the model's.

    Raises:
        InputError: the model fails on this input.
    """
    return _answer(lambda: anatomy.run(batch), anatomy, f"the model's own forward fails on {_input(batch)}", batch)


def _answer(function: Callable[[], Tensor], anatomy: ViTAnatomy, what: str, batch: Tensor) -> Tensor:
    """The result of a function of the model; its own errors, but not those of memory, become an ``InputError``."""
    try:
        return function()
    except LeGradError:
        raise
    except Exception as error:
        if ran_out(error):
            raise
        raise InputError(f"{what}: {first_line(error)}{_hint(anatomy, batch)}") from error


def _input(batch: Tensor) -> str:
    return f"an input {tuple(batch.shape)} of {str(batch.dtype).removeprefix('torch.')}"


def _hint(anatomy: ViTAnatomy, batch: Tensor) -> str:
    """What may be wrong with the model or its anatomy."""
    types: dict[torch.dtype, str] = {}
    for name, parameter in anatomy.tower.named_parameters():
        if parameter.is_floating_point():
            types.setdefault(parameter.dtype, name)
    if len(types) > 1:
        listing = ", ".join(f"{str(dtype).removeprefix('torch.')} (first: {name})" for dtype, name in types.items())
        return f"; its parameters are of several types, {listing}: bring them to one, model.to(dtype)"
    convolutions = (module for module in anatomy.tower.modules() if isinstance(module, torch.nn.Conv2d))
    first = next(convolutions, None)
    if first is not None and batch.ndim == 4 and first.in_channels != batch.shape[1]:
        height, width = anatomy.image_size
        return f"; it takes {first.in_channels} channels: shape=({first.in_channels}, {height}, {width}) in its anatomy"
    return ""


def final_answer(anatomy: ViTAnatomy, output: Tensor) -> Tensor:
    """The model's own answer in at least float32, L2-normalised as the native read-out says: usually embeddings and
    features are, logits are not.

    Args:
        anatomy: the model's.
        output: of ``anatomy.run``, (batch, features).

    Returns:
        (batch, features).
    """
    output = at_least_float32(output)
    return F.normalize(output, dim=-1) if anatomy.readouts["native"].normalize else output


def with_raw_features(anatomy: ViTAnatomy) -> ViTAnatomy:
    """The same model whose read-outs and answers are not normalised."""
    user_readouts = readouts_given(anatomy.readouts)
    readouts = {name: Readout(readout.function, normalize=False) for name, readout in user_readouts.items()}
    return replace(anatomy, readouts=readouts)


def coarsest(*dtypes: torch.dtype) -> torch.dtype:
    """The type in which the fewest digits are kept: under an autocast of its own a model computes in less than its
    weights' type."""
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def tolerance(dtype: torch.dtype) -> float:
    """How much two computations of the same may differ, over the largest value."""
    return 3e-2 if dtype in (torch.float16, torch.bfloat16) else 1e-4


def distance(output: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value."""
    output, expected = at_least_float32(output.detach()), at_least_float32(expected.detach())
    return float((output - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def check_same_output(output: Tensor, expected: Tensor, what: str, dtype: torch.dtype) -> None:
    """Raise ``TruthCheckError`` if two outputs differ by more than the tolerance of the model's dtype."""
    difference = distance(output, expected) if output.shape == expected.shape else math.inf
    # a comparison with NaN is False, and NaN must not pass
    if not difference <= tolerance(dtype):
        raise TruthCheckError(
            f"{what} differs from the model's own output by {difference:.2g} of its largest value (shapes "
            f"{tuple(output.shape)} and {tuple(expected.shape)}): this model is not what its anatomy says"
        )


def check_calls(anatomy: ViTAnatomy, calls: list[attention.AttentionCall], where: str) -> None:
    """Raise ``TruthCheckError`` unless exactly the declared attentions fired."""
    if len(calls) != anatomy.attentions:
        kind = (
            'written out with softmax (attention="softmax" in the anatomy)' if anatomy.attention == "fused" else "fused"
        )
        raise TruthCheckError(
            f"{where} ran {len(calls)} {ATTENTION_NAMES[anatomy.attention]}, expected {anatomy.attentions}: its "
            "attention bypasses F.scaled_dot_product_attention (its own implementation, a scripted module), or is of "
            f"another kind, such as {kind}"
        )


def block_name(anatomy: ViTAnatomy, layer: int) -> str:
    """A block, for messages."""
    return f"block {layer} ({type(anatomy.blocks[layer]).__name__})"


class Instrumented(NamedTuple):
    """What an instrumented forward gave.

    Attributes:
        output: the model's own, (images, features).
        tokens: of the last block, (images, tokens, dim), detached.
        precision: the coarsest type in which something was computed.
    """

    output: Tensor
    tokens: Tensor
    precision: torch.dtype


def truth_check(
    anatomy: ViTAnatomy,
    batch: Tensor,
    inspect: Callable[[int, Tensor, list[attention.AttentionCall]], None] | None = None,
    instrumented: Callable[[], Instrumented] | None = None,
) -> Tensor:
    """Compare a plain forward with the instrumented one, block by block if they differ, and every tapped attention
    with an explicit softmax on a few queries.

    Call it inside ``state.evaluation_mode``.

    Args:
        anatomy: for the size of ``batch``.
        batch: (images, *anatomy.shape) in the model's dtype; usually one image.
        inspect: called as ``inspect(layer, tokens, attention_calls)`` for every block of the self-attention route that
            passed, with its graph.
        instrumented: runs the instrumented forward, by default one that only checks. Of its images the first is
            compared.

    Returns:
        The last block's tokens, (images, tokens, dim), detached.

    Raises:
        TruthCheckError: says what differs, and where first.
    """
    # where nothing but a pooler is tapped, the pass that explains is a plain forward, looked at
    looked_at = instrumented is not None and anatomy.route == "pooler"
    expected = None if looked_at else plain_answer(anatomy, batch[:1])
    output, tokens, precision = _instrumented(anatomy, batch, inspect) if instrumented is None else instrumented()
    limit = tolerance(precision)
    # in other company a device may round differently
    if not (
        expected is None
        or distance(output[:1], expected) <= limit
        or (len(batch) > 1 and distance(output, plain_answer(anatomy, batch)) <= limit)
    ):
        raise TruthCheckError(f"instrumented and plain forward differ, {_first_difference(anatomy, batch, limit)}")
    what = f"the native read-out fails on the last block's tokens {tuple(tokens.shape)}"
    native = _answer(lambda: native_feature(anatomy, tokens), anatomy, what, batch)
    check_same_output(native, output, "the native read-out of the last block's tokens", precision)
    return tokens


def check_mismatch(calls: Sequence[attention.AttentionCall], where: str, precision: torch.dtype) -> None:
    """Raise ``TruthCheckError`` unless every attention of a pass that verifies is what was captured of it."""
    for index, call in enumerate(calls):
        if call.mismatch is None or not call.mismatch <= tolerance(precision):
            raise TruthCheckError(
                f"attention {index} of {where}: head outputs differ from softmax(QK^T)V by {call.mismatch:.2g} of "
                "the largest value: values, mask, scale or head order were not captured as the model uses them"
            )


def check_pooler(anatomy: ViTAnatomy, layer: int, tokens: Tensor, precision: torch.dtype) -> None:
    """Raise ``TruthCheckError`` unless the attentional pooler gives the same on a block's tokens when it is tapped."""
    where = f"the attentional pooler on {block_name(anatomy, layer)}"
    feature, calls = hooks.tapped(lambda: native_feature(anatomy, tokens), anatomy.attention, verify=True)
    check_same_output(feature, native_feature(anatomy, tokens), f"{where}, tapped,", precision)
    check_calls(anatomy, calls, where)
    check_mismatch(calls, where, precision)


def _instrumented(
    anatomy: ViTAnatomy,
    batch: Tensor,
    inspect: Callable[[int, Tensor, list[attention.AttentionCall]], None] | None,
) -> Instrumented:
    """One that only checks, see ``truth_check``."""
    precision = batch.dtype

    def visit(layer: int, output: Any, calls: list[attention.AttentionCall]) -> bool:
        nonlocal precision
        where = block_name(anatomy, layer)
        precision = coarsest(precision, anatomy.to_tokens(output).dtype, *(call.output.dtype for call in calls))
        if anatomy.route == "pooler":
            check_pooler(anatomy, layer, anatomy.to_tokens(output), precision)
        else:
            check_calls(anatomy, calls, where)
            check_mismatch(calls, where, precision)
        if anatomy.to_tokens(output).ndim != 3:
            raise InputError(
                f"to_tokens gives {description(anatomy.to_tokens(output))} of what {where} returned, expected (batch, "
                "tokens, dim): give the anatomy to_tokens"
            )
        if inspect is not None and anatomy.route == "self-attention":
            inspect(layer, anatomy.to_tokens(output), calls)
        return False

    all_layers = range(len(anatomy.blocks))
    in_blocks = anatomy.attention if anatomy.route == "self-attention" else None
    instrumented = hooks.StreamingForward(anatomy.blocks, all_layers, visit, in_blocks, verify=True)
    output, last = instrumented.run(lambda: anatomy.run(batch))
    return Instrumented(output, anatomy.to_tokens(last), precision)


def _first_difference(anatomy: ViTAnatomy, batch: Tensor, limit: float) -> str:
    """Where the instrumented forward leaves the plain one."""
    all_layers = range(len(anatomy.blocks))
    with hooks.record(anatomy.blocks) as plain_outputs:
        anatomy.run(batch)
    tapped_tokens: dict[int, Tensor] = {}

    def visit(layer: int, output: Any, calls: list[attention.AttentionCall]) -> bool:
        tapped_tokens[layer] = anatomy.to_tokens(output).detach()
        return True

    in_blocks = anatomy.attention if anatomy.route == "self-attention" else None
    hooks.StreamingForward(anatomy.blocks, all_layers, visit, in_blocks).run(lambda: anatomy.run(batch))
    for layer in all_layers:
        difference = distance(tapped_tokens[layer], anatomy.to_tokens(plain_outputs[layer]))
        if not difference <= limit:
            return f"first at {block_name(anatomy, layer)}, by {difference:.2g} of the largest value"
    return "but only after the last block: the tower's result is not a function of the blocks' tokens alone"
