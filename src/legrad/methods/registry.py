"""All methods by name, and one pass of any of them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from legrad.core.score import ResolvedTarget
from legrad.core.streaming import Explained
from legrad.core.truth import final_answer
from legrad.errors import InputError
from legrad.methods import ablation, attention, black_box, clip, controls, tokens
from legrad.methods.call import MethodInput
from legrad.methods.method import Method
from legrad.models.anatomy import ViTAnatomy

_AUTO_MEMORY = 2 << 30  # bytes


_CHEFER = "Chefer et al., CVPR 2021, arXiv:2012.09838"


_BACKWARD = "1 backward pass per target"


METHODS: dict[str, Method] = {
    one.name: one
    for one in (
        Method(
            "legrad",
            "positive part of the layer scores' gradients at the attention maps, mean over heads, queries, layers",
            "Bousselham et al., ICCV 2025, arXiv:2404.03214",
            None,
            "gradients",
            "1 backward pass through one block per layer and target",
            "all",
            per_layer=True,
            pooler_layers=True,
            readout=True,
        ),
        Method(
            "legrad-norelu",
            "LeGrad without the positive part (ablation)",
            "Bousselham et al., ICCV 2025, arXiv:2404.03214",
            ablation.legrad_norelu,
            "gradients",
            "as legrad",
            "all",
            per_layer=True,
            pooler_layers=True,
            readout=True,
            signed=True,
        ),
        Method(
            "raw-attention",
            "the last layer's attention to the patches, mean over heads",
            "as in Abnar and Zuidema, ACL 2020, arXiv:2005.00928",
            attention.raw_attention,
            "attention",
            "the attention map of one layer",
            "last",
            per_layer=True,
            targets=False,
        ),
        Method(
            "rollout",
            "product over the layers of attention, mean over heads, half mixed with the identity",
            "Abnar and Zuidema, ACL 2020, arXiv:2005.00928",
            attention.rollout,
            "attention",
            "the attention maps of all layers",
            "all",
            pooler_layers=True,
            targets=False,
        ),
        Method(
            "gradcam",
            "tokens entering the last block, channels weighted by their mean gradient, positive part",
            "Selvaraju et al., ICCV 2017, arXiv:1610.02391, with tokens for feature maps",
            tokens.grad_cam,
            "gradients",
            _BACKWARD,
            "last",
            per_layer=True,
            pooler_layers=True,
        ),
        Method(
            "attentioncam",
            "the last layer's attention, heads weighted by their mean gradient, positive part",
            f"the Grad-CAM baseline of {_CHEFER}",
            attention.attention_cam,
            "gradients",
            _BACKWARD,
            "last",
            per_layer=True,
        ),
        Method(
            "gradient-attention",
            "positive part of the last layer's attention times its gradient, mean over heads",
            "one layer of Chefer et al., ICCV 2021, arXiv:2103.15679",
            attention.gradient_attention,
            "gradients",
            _BACKWARD,
            "last",
            per_layer=True,
        ),
        Method(
            "chefercam",
            "rollout of the positive part of attention times gradient",
            "Chefer et al., ICCV 2021, arXiv:2103.15679",
            attention.chefer_cam,
            "gradients",
            f"{_BACKWARD}, the attention maps of all layers",
            "all",
            pooler_layers=True,
        ),
        Method(
            "lrp",
            "relevance of the embedded patches by the rules of AttnLRP",
            "Achtibat et al., ICML 2024, arXiv:2402.05602",
            tokens.lrp,
            "gradients",
            _BACKWARD,
            signed=True,
        ),
        Method(
            "partial-lrp",
            "relevance of the last layer's attention by the rules of AttnLRP, positive part, mean over heads",
            f"rules of Achtibat et al., ICML 2024, arXiv:2402.05602; read as in {_CHEFER}",
            tokens.partial_lrp,
            "gradients",
            _BACKWARD,
            "last",
            per_layer=True,
        ),
        Method(
            "grad-eclip",
            "values weighted by the gradient at the head outputs and by the similarity of queries and keys",
            "Zhao et al., ICML 2024, arXiv:2502.18816",
            clip.grad_eclip,
            "gradients",
            _BACKWARD,
            "last",
            per_layer=True,
        ),
        Method(
            "maskclip",
            "every patch's own score, from the values of the last attention",
            "Zhou et al., ECCV 2022, arXiv:2112.01071",
            clip.value_map,
            "values",
            "1 forward pass, the head on every patch",
            signed=True,
        ),
        Method(
            "textspan",
            "every patch's direct contribution to the feature through attention, along the target",
            "Gandelsman et al., ICLR 2024, arXiv:2310.05916",
            clip.decomposition,
            "gradients",
            f"{_BACKWARD} through the residual stream alone",
            "all",
            per_layer=True,
            signed=True,
        ),
        Method(
            "rise",
            "mean score of randomly masked images in which a patch is visible",
            "Petsiuk et al., BMVC 2018, arXiv:1806.07421",
            black_box.rise,
            "black box",
            "256 forward passes",
            signed=True,
        ),
        Method(
            "occlusion",
            "how much the score falls when a patch is covered",
            "Zeiler and Fergus, ECCV 2014, arXiv:1311.2901",
            black_box.occlusion,
            "black box",
            "1 forward pass per patch",
            signed=True,
        ),
        Method("random", "noise, seeded by the image", "control", controls.random, "nothing", "none", targets=False),
        Method("uniform", "one everywhere", "control", controls.uniform, "nothing", "none", targets=False),
        Method("centre", "a Gaussian in the middle", "control", controls.centre, "nothing", "none", targets=False),
        Method("edges", "strength of the image's edges", "control", controls.edges, "nothing", "none", targets=False),
    )
}


def find(method: str | Method) -> Method:
    """A method by name.

    Raises:
        InputError: no such name.
    """
    if isinstance(method, Method):
        return method
    if method not in METHODS:
        raise InputError(f"method is one of {', '.join(map(repr, METHODS))}, got {method!r}; `legrad methods` explains")
    return METHODS[method]


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

    MethodInput it inside ``state.evaluation_mode``.

    Args:
        method: see ``find``.
        anatomy: for the size of ``batch``.
        batch: (images, *anatomy.shape) in the model's dtype.
        scores: the targets.
        layers: ascending block indices.
        readout: a key of ``anatomy.readouts``.
        memory: bytes, roughly, for the graph of the whole model and for attention maps, or "auto": images go
            through in as many parts as that takes.

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
    count = _images_per_pass(method, anatomy, memory)
    for start in range(0, len(batch), count):
        rows = range(start, min(start + count, len(batch)))
        call = MethodInput(
            anatomy, batch[start : start + count], [score.rows(rows) for score in scores], layers, readout
        )
        maps.append(method.function(call).detach().cpu())
        answers.append(call.answer().detach().cpu())
    return Explained(torch.cat(maps), torch.cat(answers), list(scores))


def _images_per_pass(method: Method, anatomy: ViTAnatomy, memory: str | int) -> int:
    """How many images fit the budget, from a rough count of what a graph of all blocks and attention maps take."""
    budget = memory if isinstance(memory, int) else _AUTO_MEMORY
    if memory == "auto" and anatomy.device.type == "cuda":
        budget = torch.cuda.mem_get_info(anatomy.device)[0] // 2
    number = math.prod(anatomy.grid) + anatomy.num_prefix_tokens
    width = max((p.shape[-1] for p in anatomy.blocks[0].parameters() if p.ndim > 1), default=number)
    graph = len(anatomy.blocks) * 20 * number * width if method.needs in ("gradients", "attention") else 0
    heads = max(1, width // 64)
    bytes_per_image = 4 * (graph + 4 * heads * number * number) + (1 << 20)
    return max(1, budget // bytes_per_image)
