"""BibTeX of LeGrad, of the methods it is compared with, and of the data sets: ``legrad cite gradcam imagenet-s``.

The entries stand in ``references.bib``; here is which of them a name stands for.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from importlib import resources

from legrad.checks import brief
from legrad.errors import InputError

__all__ = ["DATA_SETS", "METHODS", "bibtex"]

METHODS: Mapping[str, tuple[str, ...]] = {
    "legrad": ("bousselham2025legrad",),
    "legrad-centred": ("bousselham2025legrad",),
    "legrad-simplex": ("bousselham2025legrad",),
    "legrad-norelu": ("bousselham2025legrad",),
    "raw-attention": ("abnar2020quantifying",),
    "rollout": ("abnar2020quantifying",),
    "gradcam": ("selvaraju2017gradcam",),
    "attentioncam": ("chefer2021transformer", "selvaraju2017gradcam"),
    "gradient-attention": ("chefer2021generic",),
    "chefercam": ("chefer2021generic",),
    "lrp": ("achtibat2024attnlrp",),
    "partial-lrp": ("achtibat2024attnlrp", "chefer2021transformer"),
    "grad-eclip": ("zhao2024gradeclip",),
    "maskclip": ("zhou2022maskclip",),
    "textspan": ("gandelsman2024interpreting",),
    "rise": ("petsiuk2018rise",),
    "occlusion": ("zeiler2014visualizing",),
    # controls, without a paper
    "random": (),
    "uniform": (),
    "centre": (),
    "edges": (),
}
DATA_SETS: Mapping[str, tuple[str, ...]] = {
    "imagenet": ("russakovsky2015imagenet",),
    "imagenet-segmentation": ("guillaumin2014imagenet", "russakovsky2015imagenet"),
    "imagenet-s": ("gao2023luss", "russakovsky2015imagenet"),
    "openimages-points": ("benenson2022colouring", "kuznetsova2020openimages"),
    "ade20k-prompted": ("hamilton2024denseav", "zhou2017ade20k"),
}


def bibtex(names: Sequence[str] = (), own: Mapping[str, str] | None = None) -> str:
    """BibTeX entries, each once, in the order of the names.

    >>> print(legrad.citations.bibtex(["rise"]).splitlines()[0])
    @inproceedings{petsiuk2018rise,

    Args:
        names: methods (variants such as "legrad:layers=2" too) and data sets; none for all of them.
        own: BibTeX of methods of one's own, by their names.

    Returns:
        The entries with an empty line between them; a comment for what has no paper.

    Raises:
        InputError: an unknown name.
    """
    known = {**METHODS, **DATA_SETS}
    entries, parts = _entries(), dict[str, None]()
    for name in [names] if isinstance(names, str) else names or known:
        base = name.partition(":")[0].lower() if isinstance(name, str) else name
        if own and base in own:
            parts[own[base].strip() or f"% {base}: a method of your own, without BibTeX"] = None
            continue
        if not isinstance(base, str) or base not in known:
            close = difflib.get_close_matches(str(base), known, 1)
            hint = f"did you mean {close[0]!r}? There are" if close else "there are"
            raise InputError(f"nothing to cite for {brief(name)}; {hint} {', '.join(known)}")
        for key in known[base]:
            parts[entries[key]] = None
        if not known[base] and names:
            parts[f"% {base}: a control, without a paper"] = None
    return "\n\n".join(parts)


def _entries() -> dict[str, str]:
    """Key -> entry."""
    text = resources.files(__name__).joinpath("references.bib").read_text(encoding="utf-8")
    entries = [entry.strip() for entry in re.split(r"\n(?=@)", text)]
    return {entry[entry.index("{") + 1 : entry.index(",")]: entry for entry in entries}
