"""open_clip: native ViTs, CoCa's attentional pooler, and timm trunks (SigLIP, EVA02-CLIP, PE-Core, ...)."""

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from legrad.errors import InputError, LeGradError, UnsupportedModelError
from legrad.inputs.geometry import Size, pair
from legrad.models import folders, messages, network, transforms
from legrad.models.adapter import Adapter
from legrad.models.anatomy import Readout, ViTAnatomy
from legrad.models.files import check_size, read_json
from legrad.models.resizing import patch_counts, sharing_copy
from legrad.models.timm import trunk as trunks
from legrad.models.unwrap import unwrap

PRECISIONS = {None: "fp32", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
FITS = {"model": None, "squash": "squash", "pad": "longest"}


def adapt(model: nn.Module) -> Adapter | None:
    """An adapter for a CLIP, CustomTextCLIP or CoCa, or for a vision tower alone; None for anything else.

    Raises:
        UnsupportedModelError: a convolutional tower, or two poolers in a row.
    """
    from open_clip import CLIP, CoCa, CustomTextCLIP
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    if isinstance(model, CLIP | CustomTextCLIP | CoCa):
        tower = model.visual
    elif isinstance(model, VisionTransformer | TimmModel):
        tower = model
    else:
        return None
    tower = unwrap(tower)
    if isinstance(tower, VisionTransformer):
        anatomy = _native(tower)
    elif isinstance(tower, TimmModel):
        anatomy = _timm(tower)
    else:
        raise UnsupportedModelError(
            f"the vision tower {type(tower).__name__} is a convolutional network, not a vision transformer: "
            "LeGrad needs attention blocks"
        )
    return Adapter(
        model=model,
        anatomy=anatomy,
        encode_text=getattr(model, "encode_text", None) and (lambda ids: _encode_text(model, ids)),
        transform=_transforms(tower) if getattr(tower, "preprocess_cfg", None) else None,
        name=f"open_clip {type(model).__name__}",
    )


def _encode_text(model: Any, ids: Tensor) -> Tensor:
    result: Tensor = model.encode_text(ids)
    return result


def _transforms(tower: Any) -> Any:
    def transform(size: Size | None, fit: str) -> Any:
        from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

        changes = {"size": size, "resize_mode": FITS[fit]}
        config = merge_preprocess_dict(merge_preprocess_dict(PreprocessCfg(), tower.preprocess_cfg), changes)
        return image_transform_v2(PreprocessCfg(**config), is_train=False)

    return transform


def _native(visual: Any) -> ViTAnatomy:
    """open_clip's own VisionTransformer: one class token, optionally an attentional pooler (CoCa)."""
    transformer = visual.transformer
    if getattr(visual, "attn_pool_type", ""):
        raise UnsupportedModelError(
            f"attentional_pool={visual.attn_pool_type!r} (two poolers in a row) is not supported; "
            "plain attentional_pool=True is"
        )

    def to_tokens(output: Tensor) -> Tensor:
        return output if getattr(transformer, "batch_first", True) else output.transpose(0, 1)

    def project(feature: Tensor) -> Tensor:
        return feature if visual.proj is None else feature @ visual.proj

    def run(images: Tensor) -> Tensor:
        output = visual(images)
        return output[0] if isinstance(output, tuple) else output

    def native(tokens: Tensor) -> Tensor:
        return project(visual._pool(tokens)[0])

    def mean_first(tokens: Tensor) -> Tensor:
        return project(visual.ln_post(tokens.mean(1)))

    def first_query(tokens: Tensor) -> Tensor:
        return project(visual.attn_pool(tokens)[:, 0])

    has_pooler = visual.attn_pool is not None
    # the authors' CoCa code leaves the feature as it is: no ln_post, no normalisation
    published = Readout(first_query, normalize=False) if has_pooler else Readout(mean_first)
    return ViTAnatomy(
        library="open_clip",
        tower=visual,
        run=run,
        blocks=tuple(transformer.resblocks),
        image_size=pair(visual.image_size),
        patch_size=pair(visual.patch_size),
        grid=pair(visual.grid_size),
        num_prefix_tokens=1,
        readouts={"native": Readout(native), "published": published},
        default_readout=None if visual.pool_type == "tok" and not has_pooler else "native",
        output="embedding",
        at_size=lambda size: _native(_native_copy(visual, size)),
        route="pooler" if has_pooler else "self-attention",
        num_prefix_keys=1,
        to_tokens=to_tokens,
        call_settings=((transformer, "grad_checkpointing", False),),
    )


def _native_copy(visual: Any, size: Size) -> Any:
    """The same weights with the position embedding resampled for another input size (bicubic, antialiased)."""
    from timm.layers import resample_abs_pos_embed

    grid = patch_counts(size, visual.patch_size)
    copy = sharing_copy(visual)
    embedding = resample_abs_pos_embed(
        visual.positional_embedding[None], list(grid), list(visual.grid_size), num_prefix_tokens=1
    )[0]
    copy.positional_embedding = nn.Parameter(embedding, requires_grad=False)
    copy.image_size, copy.grid_size = size, grid
    return copy


def _timm(visual: Any) -> ViTAnatomy:
    """A timm trunk, followed by open_clip's projection."""
    trunk = visual.trunk
    trunks.check_plain(trunk)
    has_pooler = trunks.has_pooler(trunk)
    image_size = pair(trunk.patch_embed.img_size)  # visual.image_size does not follow trunk.set_input_size
    prefix = int(trunk.num_prefix_tokens)
    class_token = trunk.global_pool == "token"

    def at_size(size: Size) -> ViTAnatomy:
        copy = sharing_copy(visual)
        trunks.set_size(copy.trunk, size)
        copy.image_size = size
        return _timm(copy)

    return ViTAnatomy(
        library="open_clip",
        tower=visual,
        run=visual,
        blocks=tuple(trunk.blocks),
        image_size=image_size,
        patch_size=trunks.patch_size(trunk, image_size),
        grid=trunks.grid(trunk),
        num_prefix_tokens=prefix,
        readouts={
            "native": Readout(lambda tokens: visual.head(trunks.native_head(trunk, tokens))),
            "published": Readout(lambda tokens: visual.head(trunks.published_head(trunk, tokens))),
        },
        default_readout=None if class_token and not has_pooler else "native",
        output="embedding",
        at_size=at_size,
        route="pooler" if has_pooler else "self-attention",
        num_prefix_keys=trunks.pooler_prefix(trunk) if has_pooler else -1,
        call_settings=trunks.call_settings(trunk),
    )


def load(name: str, device: torch.device | str | None, dtype: torch.dtype | None) -> Adapter:
    """``ARCH/TAG`` (pretrained tag, or a checkpoint file), ``local-dir:PATH`` or ``hf-hub:ORG/REPO``."""
    import open_clip

    if dtype not in PRECISIONS:
        raise InputError(f"open_clip models load in float32, float16 or bfloat16, got {dtype}; use model.to() and wrap")
    if match := re.fullmatch(r"(local-dir|hf-hub):(.+)", name):
        architecture, tag = name, None
        path = Path(match[2]) if match[1] == "local-dir" else None
        if path is not None:
            _check_folder(path)
    else:
        architecture, _, tag = name.partition("/")
        architecture = messages.spelled(architecture, open_clip.list_models())
        tag = messages.spelled(tag, open_clip.list_pretrained_tags_by_model(architecture))
        _check_name(architecture, tag)
        name = f"{architecture}/{tag}"
        path = Path(tag) if Path(tag).is_file() else None
    try:
        with network.hub() if _asks_hub(path) else contextlib.nullcontext():
            model = open_clip.create_model(
                architecture,
                pretrained=tag,
                precision=PRECISIONS[dtype],
                device=device or "cpu",
                require_pretrained=True,
            )
            tokenizer = open_clip.get_tokenizer(architecture)
            tokenizer(["a"])
        adapter = adapt(model.eval())
        if adapter is not None and adapter.transform is not None:
            transforms.try_out(adapter.transform)
    except LeGradError:
        raise
    except Exception as error:  # broken files come out of safetensors, pickle and json in every shape
        offline = "models in the cache, 'open_clip:local-dir:PATH' and 'embedded'"
        raise messages.not_loaded("open_clip", name, error, offline, path) from error
    if adapter is None:
        raise UnsupportedModelError(f"open_clip returned a {type(model).__name__} for {name!r}, which is not known")
    return with_tokenizer(adapter, tokenizer, f"open_clip:{name}")


def _asks_hub(path: Path | None) -> bool:
    """Whether something is loaded from the hub: weights, or of a folder a tokenizer that its configuration names."""
    if path is None or not path.is_dir():
        return path is None
    config = read_json(path / "open_clip_config.json").get("model_cfg", {})
    return isinstance(config, dict) and "hf_tokenizer_name" in str(config.get("text_cfg", ""))


def _check_folder(path: Path) -> None:
    """Refuse a folder of no model, or of one that is too large, before anything is built."""
    file = path / "open_clip_config.json"
    if not file.is_file():
        raise InputError(
            f"no open_clip model in {str(path)!r}: expected a folder with open_clip_config.json"
            f"{folders.hint(str(path))}"
        )
    check_size(read_json(file), str(file))


def with_tokenizer(adapter: Adapter, tokenizer: Any, name: str) -> Adapter:
    """The adapter with one of open_clip's tokenizers, which are called with a list of texts."""
    from dataclasses import replace

    def tokenize(texts: Sequence[str]) -> Tensor:
        ids: Tensor = tokenizer(list(texts))
        return ids

    return replace(adapter, tokenize=tokenize, name=name)


def _check_name(architecture: str, tag: str) -> None:
    """Refuse unknown or unsupported names before anything is downloaded or built."""
    import open_clip

    names = open_clip.list_models()
    if architecture not in names:
        raise messages.unknown_model("open_clip", architecture, names)
    if reason := not_supported(architecture):
        raise UnsupportedModelError(f"open_clip's {architecture} is {reason}: LeGrad needs a plain vision transformer")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if not tag:
        raise InputError(f"say which weights of {architecture}: open_clip:{architecture}/TAG with TAG in {tags}")
    if tag.lower().replace("-", "_") not in tags and tag not in tags and not Path(tag).is_file():
        raise messages.unknown_weights("open_clip", tag, architecture, tags, ", or give a file")


def not_supported(architecture: str) -> str:
    """Why an architecture cannot be explained, "" if it can; from its configuration, without building it."""
    import open_clip

    vision = (open_clip.get_model_config(architecture) or {}).get("vision_cfg", {})
    trunk = vision.get("timm_model_name", "")
    if isinstance(vision.get("layers"), list):
        return "a ResNet, not a ViT"
    if trunk and not trunks.is_plain_name(trunk):
        return f"not a ViT ({trunk})"
    if vision.get("scaled_cosine_attn"):
        return "built with scaled_cosine_attn, which open_clip cannot run"
    if isinstance(vision.get("attentional_pool"), str):
        return "built with two attentional poolers in a row, which is not supported"
    return ""


def available() -> list[tuple[str, str]]:
    """All pretrained (architecture, tag) pairs as names for ``legrad.load``, each with why not, or ""."""
    import open_clip

    reasons = {name: not_supported(name) for name in open_clip.list_models()}
    return [(f"open_clip:{name}/{tag}", reasons[name]) for name, tag in open_clip.list_pretrained()]
