"""All methods by name, and one pass of any of them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from legrad import relevance
from legrad.checks import brief
from legrad.core.memory import images_per_whole_pass
from legrad.core.score import ResolvedTarget
from legrad.core.streaming import Explained
from legrad.core.truth import final_answer
from legrad.errors import InputError
from legrad.methods import ablation, attention, black_box, clip, controls, tokens
from legrad.methods.call import MethodInput
from legrad.methods.method import Method
from legrad.models.anatomy import ViTAnatomy

# LeGrad itself has no function among the methods: core.streaming computes it
LEGRAD = Method(
    name="legrad",
    summary="positive part of the layer scores' gradients at the attention maps, mean over heads, queries, layers",
    source="Bousselham et al., ICCV 2025, arXiv:2404.03214",
    function=None,
    needs="gradients",
    cost="1 backward pass through one block per layer and target",
    layers="all",
    per_layer=True,
    pooler_layers=True,
    readout=True,
)

# LeGrad's refined forms have the settings that they were measured with
_REFINED = replace(
    LEGRAD, source="ours, after Bousselham et al., ICCV 2025", cost="as legrad", layers="last two thirds", native=True
)
LEGRAD_CENTRED = replace(
    _REFINED,
    name="legrad-centred",
    summary="LeGrad of what exceeds the mean gradient of each attention row, last two thirds of the layers, own head",
    reduction=relevance.centred_relevance,
)
LEGRAD_SIMPLEX = replace(
    _REFINED,
    name="legrad-simplex",
    summary="gradients at the attention maps as far as a softmax can follow, positive part of the mean over layers",
    reduction=relevance.simplex_relevance,
    clip_mean=True,
)

# in the order of `legrad methods`; each entry stands below its function
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        LEGRAD,
        LEGRAD_CENTRED,
        LEGRAD_SIMPLEX,
        ablation.LEGRAD_NORELU,
        attention.RAW_ATTENTION,
        attention.ROLLOUT,
        tokens.GRAD_CAM,
        attention.ATTENTION_CAM,
        attention.GRADIENT_ATTENTION,
        attention.CHEFER_CAM,
        tokens.LRP,
        tokens.PARTIAL_LRP,
        clip.GRAD_ECLIP,
        clip.VALUE_MAP,
        clip.DECOMPOSITION,
        black_box.RISE,
        black_box.OCCLUSION,
        controls.RANDOM,
        controls.UNIFORM,
        controls.CENTRE,
        controls.EDGES,
    )
}


# also by name: forms of these that answer another question
_BY_NAME = {**METHODS, attention.RAW_ATTENTION_BY_HEAD.name: attention.RAW_ATTENTION_BY_HEAD}


def find(method: str | Method) -> Method:
    """A method by name.

    Raises:
        InputError: no such name.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str) or method not in _BY_NAME:
        raise InputError(
            f"method is one of {', '.join(map(repr, _BY_NAME))}, got {brief(method)}; `legrad methods` explains"
        )
    return _BY_NAME[method]


def list_methods() -> list[str]:
    """Names that ``explain(method=...)`` takes: LeGrad, baselines, controls, and methods of one's own.

    >>> legrad.list_methods()[:4]
    ['legrad', 'legrad-norelu', 'raw-attention', 'rollout']
    """
    return list(METHODS)


def explain_batch(
    method: Method,
    anatomy: ViTAnatomy,
    batch: Tensor,
    scores: Sequence[ResolvedTarget],
    layers: Sequence[int],
    readout: str,
    memory: str | int = "auto",
) -> Explained:
    """Relevance by any method, and the model's own scores.

    Use it inside ``state.evaluation_mode``.

    Args:
        method: see ``find``.
        anatomy: for the size of ``batch``.
        batch: (images, *anatomy.shape) in the model's dtype.
        scores: the targets.
        layers: ascending block indices.
        readout: a key of ``anatomy.readouts``.
        memory: bytes, roughly, for the graph of the whole model and for attention maps, or "auto" (half of what is
            free): images go through in as many parts as that takes.

    Returns:
        What the streaming pass returns; one layer for methods that have none.

    Raises:
        UnsupportedModelError: the method makes no sense for this anatomy, or cannot see what it needs.
        TruthCheckError: what was captured does not reproduce the model.
    """
    assert method.function is not None, "LeGrad itself is computed by legrad.core.streaming"
    if any(score.needs_answer for score in scores):
        answer = final_answer(anatomy, anatomy.run(batch))
        scores = [score.with_answer(answer) for score in scores]
    maps, answers = [], []
    step = images_per_whole_pass(anatomy, graph=method.needs in ("gradients", "attention"), memory=memory)
    for start in range(0, len(batch), step):
        rows = range(start, min(start + step, len(batch)))
        call = MethodInput(
            anatomy.for_images(rows),
            batch[start : start + step],
            [score.rows(rows) for score in scores],
            layers,
            readout,
        )
        maps.append(_checked_maps(method, call, method.function(call)).detach().cpu())
        answers.append(call.answer().detach().cpu())
    return Explained(torch.cat(maps), torch.cat(answers), list(scores))


def _checked_maps(method: Method, call: MethodInput, maps: Any) -> Tensor:
    """What a method's function returned; raises ``InputError`` unless these are maps."""
    expected = (len(call.batch), len(call.scores), "layers", *call.anatomy.grid)
    fits = isinstance(maps, Tensor) and maps.ndim == len(expected)
    if not fits or (*maps.shape[:2], "layers", *maps.shape[3:]) != expected:
        raise InputError(
            f"method {method.name!r}: its function returns a tensor (images, targets, layers, *grid), here "
            f"({', '.join(map(str, expected))}), got {brief(maps)}"
        )
    return cast(Tensor, maps)
