"""What a model's name may have been meant for: the right spelling, or why that model cannot be explained."""

import difflib
import re

_MOST = 3
_ALIASES = {
    **dict.fromkeys(("openclip", "open-clip", "open_clip_torch"), "open_clip"),
    **dict.fromkeys(("huggingface", "hugging_face", "transformers", "hub", "hf-hub", "hf_hub"), "hf"),
    **dict.fromkeys(("tv", "torch", "torchhub"), "torchvision"),
}


def hint(name: str) -> str:
    """The end of a message: ``"; did you mean 'timm:NAME'?"``, or why the model is none that can be explained.

    Nothing is built or downloaded, but the model libraries are imported.
    """
    prefix, colon, rest = name.partition(":")
    if colon and rest and prefix.lower() in _ALIASES:
        return _question([f"{_ALIASES[prefix.lower()]}:{rest}"])
    if len(name) > 200 or colon:
        return ""
    names, reasons = _of_libraries(name)
    if names:
        return _question(names)
    if reasons:
        return f"; {' and '.join(reasons)}: LeGrad needs a vision transformer with one grid of patches"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return _question([f"hf:{name}"])
    return _question(_similar(name))


def _question(names: list[str]) -> str:
    return f"; did you mean {' or '.join(map(repr, names[:_MOST]))}?" if names else ""


def _of_libraries(name: str) -> tuple[list[str], list[str]]:
    """Right spellings of a name that a library has, in any case, and why those that cannot be explained cannot."""
    import open_clip as clip_library
    import timm as timm_library

    from legrad.models import messages, open_clip, timm, torchvision

    names, reasons = [], []
    architecture, _, tag = name.removeprefix("timm/").partition("/")
    if re.fullmatch(r"(vit|rn).*", architecture.lower()) and re.fullmatch(r"\d+(px|@336px)?", tag):
        architecture, tag = f"{architecture}-{tag}".replace("@336px", "-336"), "openai"  # OpenAI's own spelling
    model = messages.spelled(architecture, clip_library.list_models())
    if tags := clip_library.list_pretrained_tags_by_model(model):
        if reason := open_clip.not_supported(model):
            reasons.append(f"open_clip's {model} is {reason}")
        else:
            best = messages.spelled(tag, tags)
            names += [f"open_clip:{model}/{weights}" for weights in ([best] if best in tags else _usual(tags))]
    trunk, _, weights = architecture.partition(".")
    trunk = messages.spelled(trunk, timm_library.list_models())
    if timm_library.is_model(trunk) and not tag:
        if reason := timm.not_supported(trunk):
            reasons.append(f"timm's {trunk} is {reason}")
        else:
            names.append(f"timm:{trunk}.{weights}" if weights else f"timm:{trunk}")
    if architecture.lower() in torchvision.architectures():
        if reason := torchvision.not_supported(architecture.lower()):
            reasons.append(f"torchvision's {architecture.lower()} is {reason}")
        else:
            names.append(f"torchvision:{architecture.lower()}")
    return names, reasons


def _usual(tags: list[str]) -> list[str]:
    """Weights of open data first, as they are the better known ones."""
    return sorted(tags, key=lambda tag: not tag.startswith(("laion2b", "webli", "datacomp_xl")))


def _similar(name: str) -> list[str]:
    """Names that can be loaded and hold this one, or are spelled nearly like it."""
    from legrad.models.registry import available

    names = [full for full, reason in available() if not reason and not full.startswith("hf:")]
    if len(letters := _letters(name)) >= 3 and (containing := [full for full in names if letters in _letters(full)]):
        return sorted(containing, key=lambda full: (full.startswith("embedded") is False, len(full)))
    by_end = {_end(full): full for full in reversed(names)}
    return [by_end[end] for end in difflib.get_close_matches(name.lower(), by_end, _MOST, 0.75)]


def _end(name: str) -> str:
    """What is left of a name without library and weights."""
    return (name.partition(":")[2] or name).partition("/")[0].partition(".")[0].lower()


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
