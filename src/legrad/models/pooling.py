"""Ways in which vision transformers pool their last tokens, for models whose type does not say which is theirs.

MAE, RETFound and their like pool inside ``forward_features``, drop one norm and bring another; others copied the code
of a library and changed it. Each way is an anatomy of its own; the model's own output tells which is right.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from legrad.models.anatomy import Readout, ViTAnatomy, published
from legrad.models.checks import holds_matrix

Function = Callable[[Tensor], Tensor]

# names of the norms behind the blocks, and of what follows the pooled feature
_NORMS, _HEADS = ("norm", "fc_norm", "cls_norm"), ("forward_head", "head")


def candidates(anatomy: ViTAnatomy) -> list[ViTAnatomy]:
    """The anatomy with each of the usual read-outs in place of its own.

    Args:
        anatomy: of a tower with timm's names: ``norm`` or ``fc_norm``, and ``head``.
    """
    return [
        replace(
            anatomy,
            readouts={
                "native": Readout(function),
                "published": Readout(published(function, anatomy.num_prefix_tokens)),
            },
            default_readout=None if reads_class_token else "native",
            output=output,
            at_size=_at_size(anatomy, index),
        )
        for index, (function, reads_class_token, output) in enumerate(_functions(anatomy))
    ]


def _at_size(anatomy: ViTAnatomy, index: int) -> Any:
    if anatomy.at_size is None:
        return None
    return lambda size: candidates(anatomy.at(size))[index]


def _functions(anatomy: ViTAnatomy) -> Iterator[tuple[Function, bool, Any]]:
    """Read-out, whether it reads a class token, and the kind of its result."""
    tower: Any = anatomy.tower
    kind = "logits" if holds_matrix(getattr(tower, "head", None)) else "feature"
    norms = [norm for norm in (getattr(tower, name, None) for name in _NORMS) if isinstance(norm, nn.Module)]
    tails = [tail for tail in (getattr(tower, name, None) for name in _HEADS) if callable(tail)]
    for pool, reads_class_token in _pools([*norms, nn.Identity()], anatomy.num_prefix_tokens):
        for tail in tails:
            yield _composed(pool, tail), reads_class_token, kind
        yield pool, reads_class_token, "feature"


def _composed(pool: Function, tail: Function) -> Function:
    return lambda tokens: tail(pool(tokens))


def _pools(norms: Sequence[nn.Module], prefix: int) -> Iterator[tuple[Function, bool]]:
    for norm in norms:
        if prefix:
            yield _class_token(norm), True
        for start in dict.fromkeys((prefix, 0)):
            yield _norm_of_mean(norm, start), False
            yield _mean_of_norms(norm, start), False


def _class_token(norm: nn.Module) -> Function:
    return lambda tokens: norm(tokens)[:, 0]


def _norm_of_mean(norm: nn.Module, start: int) -> Function:
    return lambda tokens: norm(tokens[:, start:].mean(1))


def _mean_of_norms(norm: nn.Module, start: int) -> Function:
    return lambda tokens: norm(tokens)[:, start:].mean(1)
