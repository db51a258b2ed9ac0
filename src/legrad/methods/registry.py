"""All methods by name, and one pass of any of them."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, cast

import torch
from torch import Tensor

from legrad import relevance
from legrad.checks import brief
from legrad.core.memory import images_per_whole_pass
from legrad.core.score import ResolvedTarget
from legrad.core.streaming import Explained
from legrad.core.truth import final_answer
from legrad.errors import InputError, warn
from legrad.methods import ablation, attention, black_box, clip, controls, tokens
from legrad.methods.call import MethodInput
from legrad.methods.catalogue import GROUP, about
from legrad.methods.method import Method
from legrad.models.anatomy import ViTAnatomy
from legrad.plugins import loaded, source_digest

# LeGrad itself has no function among the methods: core.streaming computes it
LEGRAD = Method(
    **about("legrad"),
    function=None,
    needs="gradients",
    cost="1 backward pass through one block per layer and target",
    layers="all",
    per_layer=True,
    pooler_layers=True,
    readout=True,
)

# LeGrad's refined forms have the settings that they were measured with
_REFINED = replace(LEGRAD, cost="as legrad", layers="last two thirds", native=True)
LEGRAD_CENTRED = replace(
    _REFINED,
    **about("legrad-centred"),
    reduction=relevance.centred_relevance,
)
LEGRAD_SIMPLEX = replace(
    _REFINED,
    **about("legrad-simplex"),
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


_LIBRARY = frozenset(_BY_NAME)


def register_method(
    method: Method | str, function: Callable[[MethodInput], Tensor] | None = None, **facts: Any
) -> Method:
    """Add a method of your own, for ``explain(method="NAME")``, ``legrad.list_methods()`` and the benchmarks.

    >>> def brightness(call):
    ...     pixels = call.batch.mean(1, keepdim=True)
    ...     return call.same_for_all_targets(torch.nn.functional.adaptive_avg_pool2d(pixels, call.anatomy.grid)[:, 0])
    >>> legrad.register_method("brightness", brightness, needs="nothing", targets=False).name
    'brightness'

    In a package: an entry point of the group "legrad.methods", which names a ``Method`` or a function.

    Args:
        method: a ``legrad.methods.Method``, or the name of one; a method of yours is replaced.
        function: ``MethodInput`` -> (images, targets, layers or 1, *grid), if a name is given.
        facts: other fields of ``Method``; by default it needs gradients, and depends on the target.

    Raises:
        InputError: an argument that cannot be used, or the name of a method of the library.
    """
    if isinstance(method, str):
        field_names = {entry.name for entry in fields(Method)} - {"name", "function"}
        unknown = next((name for name in facts if name not in field_names), None)
        if unknown is not None:
            raise InputError(f"a method has no field {unknown!r}; there are {', '.join(sorted(field_names))}")
        defaults = {"summary": "a method of your own", "source": "own", "needs": "gradients", "cost": "not known"}
        method = Method(name=method, function=function, **{**defaults, **facts})
    if not isinstance(method, Method):
        raise InputError(
            f"register_method takes a legrad.methods.Method, or a name and a function, got {brief(method)}"
        )
    if not callable(method.function):
        raise InputError(f"a method is a function of a MethodInput, got {brief(method.function)}")
    if not method.name.strip() or any(sign in method.name for sign in ":,"):
        raise InputError(f"a method's name is a text without ':' and ',', got {brief(method.name)}")
    if method.name in _LIBRARY:
        raise InputError(f"{method.name!r} is a method of the library; take another name")
    METHODS[method.name] = _BY_NAME[method.name] = method
    return method


def all_methods() -> dict[str, Method]:
    """``METHODS`` with those that other packages bring by entry points."""
    _load_entry_points()
    return METHODS


@functools.cache
def _load_entry_points() -> None:
    for name, value in loaded(GROUP):
        try:
            register_method(value) if isinstance(value, Method) else register_method(name, value)
        except InputError as error:
            warn(f"the entry point {name!r} of {GROUP} is left out: {error}")


def own_digest(method: str) -> str:
    """Changes with the source of a method of one's own; "" of the library's. Variants have their method's."""
    name = method.partition(":")[0]
    own_method = None if name in _LIBRARY else METHODS.get(name)
    return "" if own_method is None or own_method.function is None else source_digest(own_method.function)


def find(method: str | Method) -> Method:
    """A method by name.

    Raises:
        InputError: no such name.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str) or (method not in _BY_NAME and method not in all_methods()):
        raise InputError(
            f"method is one of {', '.join(map(repr, _BY_NAME))}, got {brief(method)}; `legrad methods` explains"
        )
    return _BY_NAME[method]


def list_methods() -> list[str]:
    """Names that ``explain(method=...)`` takes: LeGrad, baselines, controls, and methods of one's own.

    >>> methods = legrad.list_methods()
    >>> methods[0], "gradcam" in methods
    ('legrad', True)
    """
    return list(all_methods())


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
    maps, scored, answers = [], [], []
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
        scored.append(call.answer().detach().cpu())
        answers.append(call.feature().detach().cpu())
    return Explained(torch.cat(maps), torch.cat(scored), list(scores), torch.cat(answers))


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
