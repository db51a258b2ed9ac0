"""The methods in words, without torch: for lists and help."""

from typing import Any, NamedTuple

from legrad.plugins import names_of

GROUP = "legrad.methods"  # of entry points


class About(NamedTuple):
    """What a map is, in one sentence, and the paper."""

    summary: str
    source: str


ABOUT = {
    "legrad": About(
        "positive part of the layer scores' gradients at the attention maps, mean over heads, queries, layers",
        "Bousselham et al., ICCV 2025, arXiv:2404.03214",
    ),
    "legrad-centred": About(
        "LeGrad of what exceeds the mean gradient of each attention row, last two thirds of the layers, own head",
        "ours, after Bousselham et al., ICCV 2025",
    ),
    "legrad-simplex": About(
        "gradients at the attention maps as far as a softmax can follow, positive part of the mean over layers",
        "ours, after Bousselham et al., ICCV 2025",
    ),
    "legrad-norelu": About(
        "LeGrad without the positive part (ablation)",
        "Bousselham et al., ICCV 2025, arXiv:2404.03214",
    ),
    "raw-attention": About(
        "the last layer's attention to the patches, mean over heads",
        "as in Abnar and Zuidema, ACL 2020, arXiv:2005.00928",
    ),
    "rollout": About(
        "product over the layers of attention, mean over heads, half mixed with the identity",
        "Abnar and Zuidema, ACL 2020, arXiv:2005.00928",
    ),
    "gradcam": About(
        "tokens entering the last block, channels weighted by their mean gradient, positive part",
        "Selvaraju et al., ICCV 2017, arXiv:1610.02391, with tokens for feature maps",
    ),
    "attentioncam": About(
        "the last layer's attention, heads weighted by their mean gradient, positive part",
        "the Grad-CAM baseline of Chefer et al., CVPR 2021, arXiv:2012.09838",
    ),
    "gradient-attention": About(
        "positive part of the last layer's attention times its gradient, mean over heads",
        "one layer of Chefer et al., ICCV 2021, arXiv:2103.15679",
    ),
    "chefercam": About(
        "rollout of the positive part of attention times gradient",
        "Chefer et al., ICCV 2021, arXiv:2103.15679",
    ),
    "lrp": About(
        "relevance of the embedded patches by the rules of AttnLRP",
        "Achtibat et al., ICML 2024, arXiv:2402.05602",
    ),
    "partial-lrp": About(
        "relevance of the last layer's attention by the rules of AttnLRP, positive part, mean over heads",
        "rules of Achtibat et al., ICML 2024, arXiv:2402.05602; read as in Chefer et al., CVPR 2021, arXiv:2012.09838",
    ),
    "grad-eclip": About(
        "values weighted by the gradient at the head outputs and by the similarity of queries and keys",
        "Zhao et al., ICML 2024, arXiv:2502.18816",
    ),
    "maskclip": About(
        "every patch's own score, from the values of the last attention",
        "Zhou et al., ECCV 2022, arXiv:2112.01071",
    ),
    "textspan": About(
        "every patch's direct contribution to the feature through attention, along the target",
        "Gandelsman et al., ICLR 2024, arXiv:2310.05916",
    ),
    "rise": About(
        "mean score of randomly masked images in which a patch is visible",
        "Petsiuk et al., BMVC 2018, arXiv:1806.07421",
    ),
    "occlusion": About(
        "how much the score falls when a patch is covered",
        "Zeiler and Fergus, ECCV 2014, arXiv:1311.2901",
    ),
    "random": About(
        "noise, seeded by the image",
        "control",
    ),
    "uniform": About(
        "one everywhere",
        "control",
    ),
    "centre": About(
        "a Gaussian in the middle",
        "control",
    ),
    "edges": About(
        "strength of the image's edges",
        "control",
    ),
}
"""In the order of `legrad methods`; what is computed stands in the ``Method`` of the same name."""


def about(name: str) -> dict[str, Any]:
    """The first fields of the ``Method`` of this name."""
    return {"name": name, **ABOUT[name]._asdict()}


def listed() -> dict[str, About]:
    """``ABOUT`` with the methods that other packages bring by entry points; those take torch to load."""
    if not names_of(GROUP):
        return ABOUT
    from legrad.methods.registry import all_methods

    return {name: About(method.summary, method.source) for name, method in all_methods().items()}
