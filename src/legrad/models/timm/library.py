"""timm: every vision transformer with global attention over one grid of patches."""

import contextlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from legrad.errors import InputError, LeGradError, UnsupportedModelError
from legrad.inputs.geometry import Size
from legrad.models import folders, messages, network, pooling, transforms
from legrad.models.adapter import Adapter
from legrad.models.anatomy import Readout, ViTAnatomy
from legrad.models.files import check_size, read_json
from legrad.models.timm import families
from legrad.models.timm import trunk as trunks


def adapt(model: nn.Module) -> Adapter | None:
    """An adapter for a timm model; None for a model of another library.

    Raises:
        UnsupportedModelError: a timm model that is no vision transformer.
    """
    if not any(kind.__module__.startswith("timm.models") for kind in type(model).__mro__):
        return None
    anatomy = families.describe(model)
    candidates: list[ViTAnatomy] = []
    if trunks.has_own_forward(model):
        # its head may read any tokens, so it is not asked about a mean of them
        anatomy = replace(anatomy, readouts={"native": Readout(anatomy.readouts["native"].function)})
        candidates = pooling.candidates(anatomy)
    takes_rgb = getattr(model, "pretrained_cfg", None) and anatomy.shape[0] == 3
    return Adapter(
        model=model,
        anatomy=anatomy,
        transform=_transforms(model, anatomy.image_size) if takes_rgb else None,
        labels=labels(model),
        name=f"timm {type(model).__name__}",
        candidates=tuple(candidates),
    )


def _transforms(model: Any, model_size: Size) -> Any:
    def transform(size: Size | None, fit: str) -> Any:
        from timm.data import resolve_model_data_config

        # its input_size is that of the weights; the model may have been built for another
        return transforms.transform(resolve_model_data_config(model), size or model_size, fit)

    return transform


def labels(model: Any) -> tuple[str, ...] | None:
    """Class names from the model's configuration, else ImageNet's if their number fits; None if it is no classifier."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    config = getattr(model, "pretrained_cfg", None) or {}
    count = getattr(model, "num_classes", 0)
    if not count or config.get("num_classes") != count or families.is_projection(model):
        return None
    if names := config.get("label_names"):
        descriptions = config.get("label_descriptions") or {}
        by_index = {
            int(index): name for index, name in (names.items() if isinstance(names, dict) else enumerate(names))
        }
        return tuple(str(descriptions.get(by_index.get(i), by_index.get(i, f"class {i}"))) for i in range(count))
    subset = infer_imagenet_subset(config)
    return tuple(ImageNetInfo(subset).label_descriptions()) if subset else None


def load(name: str, device: torch.device | str | None, dtype: torch.dtype | None) -> Adapter:
    """``NAME``, ``NAME.TAG``, ``local-dir:PATH`` or ``hf-hub:ORG/REPO``, with pretrained weights."""
    import timm

    source = re.fullmatch(r"(local-dir|hf-hub):(.+)", name)
    folder = None
    if source is None:
        name = _spelled(name)
        _check_name(name)
    elif source[1] == "local-dir":
        folder = Path(source[2])
        _check_folder(source[2])
    try:
        with network.hub() if folder is None else contextlib.nullcontext():
            model = timm.create_model(name, pretrained=True)
        adapter = adapt(model.to(device=device or "cpu", dtype=dtype).eval())
        if adapter is not None and adapter.transform is not None:
            transforms.try_out(adapter.transform)
    except LeGradError:
        raise
    except Exception as error:  # broken files come out of safetensors, pickle and json in every shape
        offline = "models in the cache and 'timm:local-dir:PATH'"
        raise messages.not_loaded("timm", name, error, offline, folder) from error
    assert adapter is not None
    return replace(adapter, name=f"timm:{name}")


def _check_folder(path: str) -> None:
    """Refuse folders without a supported model before anything is built."""
    file = Path(path) / "config.json"
    config = read_json(file) if file.is_file() else {}
    if not isinstance(config.get("architecture"), str):
        raise InputError(
            f"no timm model in {path!r}: expected a folder with config.json (that names an 'architecture') and weights"
            f"{folders.hint(path)}"
        )
    check_size(config, str(file))
    _check_supported(config["architecture"])


def _spelled(name: str) -> str:
    """A name in timm's own case."""
    import timm

    architecture, dot, tag = name.partition(".")
    architecture = messages.spelled(architecture, timm.list_models())
    tags = [full_name.partition(".")[2] for full_name in timm.list_pretrained(f"{architecture}.*")]
    return architecture + dot + messages.spelled(tag, tags)


def _check_name(name: str) -> None:
    """Refuse unknown or unsupported names before anything is downloaded or built."""
    import timm
    from timm.models import is_model, is_model_pretrained

    architecture, _, tag = name.partition(".")
    if not is_model(architecture):
        raise messages.unknown_model("timm", architecture, timm.list_models())
    _check_supported(architecture)
    tags = [full_name.partition(".")[2] for full_name in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise messages.unknown_weights("timm", tag, architecture, tags)
    if not is_model_pretrained(name):
        raise InputError(
            f"timm has no weights for {architecture}; build it, load yours, and use legrad.wrap(model), or save them "
            "with timm.models.save_for_hf and use 'timm:local-dir:PATH'"
        )


def _check_supported(architecture: str) -> None:
    if reason := not_supported(architecture):
        raise UnsupportedModelError(
            f"timm's {architecture} is {reason}: LeGrad needs global attention over a patch grid"
        )


def not_supported(architecture: str) -> str:
    """Why an architecture cannot be explained, "" if it can; from the registry, without building it."""
    from timm.models import is_model, model_entrypoint

    if not is_model(architecture):
        return "not known to timm"
    module = model_entrypoint(architecture).__module__.rpartition(".")[2]
    if module not in families.MODULES:
        return f"no plain vision transformer ({module})"
    if architecture.endswith("_enc"):
        return "an encoder for a language model, which returns many tokens"
    return ""


def available() -> list[tuple[str, str]]:
    """All pretrained (``timm:NAME.TAG``, why not or "")."""
    import timm

    return [(f"timm:{name}", not_supported(name.partition(".")[0])) for name in timm.list_pretrained()]
