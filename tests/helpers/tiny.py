"""Tiny random models of every kind, and what the tests compare them by."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from legrad import AudioEncoder

TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
VISION = {"image_size": 32, "layers": 4, "width": 64, "head_width": 32, "patch_size": 8}


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """No weight is zero or one by initialisation: biases, norms and LayerScale have to matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            if parameter.ndim >= 2:
                parameter.add_(0.02 * noise)
            else:
                parameter.add_(0.1 * noise)
    return model.eval()


def clip(seed: int = 0, text: dict[str, Any] | None = None, **vision: Any) -> nn.Module:
    """A native open_clip CLIP; ``quick_gelu`` and keywords of the vision tower."""
    from open_clip import CLIP

    torch.manual_seed(seed)
    quick_gelu = vision.pop("quick_gelu", False)
    model = CLIP(32, {**VISION, **vision}, {**TEXT, **(text or {})}, quick_gelu=quick_gelu)
    return randomised(model, seed)


def coca(seed: int = 0, **vision: Any) -> nn.Module:
    from open_clip import CoCa

    torch.manual_seed(seed)
    pooler = {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 6, "output_tokens": True}
    model = CoCa(
        32,
        multimodal_cfg={**TEXT, "mlp_ratio": 4},
        text_cfg={**TEXT, "embed_cls": True, "output_tokens": True},
        vision_cfg={**VISION, "layers": 3, **pooler, **vision},
    )
    return randomised(model, seed)


def timm_clip(
    name: str, seed: int = 0, pool: str = "", proj: str = "", kwargs: dict[str, Any] | None = None, size: int = 32
) -> nn.Module:
    """open_clip's CustomTextCLIP around a shrunk timm trunk."""
    import timm
    from open_clip import CustomTextCLIP
    from open_clip.timm_model import TimmModel

    torch.manual_seed(seed)
    model = CustomTextCLIP(32, {**VISION, "layers": 1}, TEXT)
    tower = TimmModel.__new__(TimmModel)
    nn.Module.__init__(tower)
    classes = 32 if not proj else 0
    head = {"num_classes": classes, **({"global_pool": pool} if pool else {})}
    tower.trunk = timm.create_model(name, **head, **(kwargs or {}))
    tower.head = nn.Sequential()
    if proj == "linear":
        tower.head.append(nn.Linear(tower.trunk.num_features, 32, bias=False))
    tower.image_size = (size, size)
    model.visual = tower
    return randomised(model, seed)


SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
THIN = {**SMALL, "embed_dim": 32, "num_heads": 2}  # as wide as the text tower: no projection

# name -> builder; every kind of tower that the open_clip adapter knows
TOWERS: dict[str, Callable[[], nn.Module]] = {
    "clip": clip,
    "clip-quickgelu": lambda: clip(quick_gelu=True),
    "clip-layerscale": lambda: clip(ls_init_value=0.5),
    "clip-no-ln-pre": lambda: clip(no_ln_pre=True),
    "clip-avg": lambda: clip(pool_type="avg"),
    "clipa": lambda: clip(pool_type="avg", final_ln_after_pool=True, no_ln_pre=True),
    "clip-custom-blocks": lambda: clip(qk_norm=True, scale_heads=True, scale_attn_inner=True, scale_fc=True),
    "coca": coca,
    "siglip": lambda: timm_clip("vit_base_patch16_siglip_224", proj="none", kwargs=THIN),
    "siglip2": lambda: timm_clip("vit_base_patch16_siglip_224", pool="map", proj="none", kwargs=THIN, seed=3),
    "eva02-clip": lambda: timm_clip("eva02_base_patch16_clip_224", pool="token", kwargs=SMALL),
    "pe-core": lambda: timm_clip("vit_pe_core_base_patch16_224", kwargs={**SMALL, "attn_pool_num_heads": 4}),
    "mobileclip-b": lambda: timm_clip("vit_base_mci_224", kwargs={"img_size": 64, "depth": 2}, size=64),
    "vitamin": lambda: timm_clip("vitamin_small_224", proj="linear", kwargs={"img_size": 64, "depth": 2}, size=64),
    "vit-registers": lambda: timm_clip("vit_base_patch16_reg4_gap_256", kwargs=SMALL),
    "vit-token-registers": lambda: timm_clip(
        "vit_small_patch14_reg4_dinov2", pool="token", proj="linear", kwargs=SMALL
    ),
}


def ear() -> nn.Module:
    """The embedded speech tower, untrained, with texts of its own to choose from."""
    from legrad.embedded.speech import model as speech

    tower = randomised(speech.build())
    texts = torch.randn(tower.texts.shape, generator=torch.Generator().manual_seed(0))
    tower.texts.copy_(torch.nn.functional.normalize(texts, dim=-1))
    return tower


def tokenizer(texts: list[str]) -> torch.Tensor:
    """Eight ids per text, out of its characters; the last is the largest, where the tower pools."""
    ids = torch.zeros(len(texts), 8, dtype=torch.long)
    for row, text in enumerate(texts):
        # every seventh letter goes into the same id, so that nothing is cut
        codes = [1 + sum(map(ord, text[start::7])) % 60 for start in range(min(7, len(text)))]
        ids[row, : len(codes)] = torch.tensor(codes)
        ids[row, len(codes)] = 63
    return ids


def hearing(rate: int = 8000, heard: list[int] | None = None) -> Any:
    """An ear for ``clip``: 32 features out of how long and how loud a waveform is; ``heard`` notes its samples."""
    directions = torch.randn(2, 32, generator=torch.Generator().manual_seed(7))

    def encode(waveforms: Any) -> torch.Tensor:
        if heard is not None:
            heard.extend(map(len, waveforms))
        facts = [[len(one) / rate, float(abs(one).mean())] for one in waveforms]
        return torch.tensor(facts) @ directions

    return AudioEncoder(rate, encode)


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Assert that nothing about the model changed, also if the block raises."""

    def state() -> dict[str, Any]:
        return {
            "training": [m.training for m in model.modules()],
            "requires_grad": [p.requires_grad for p in model.parameters()],
            "grad": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
            "ids": [id(p) for p in model.parameters()],
            "hooks": [
                len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()
            ],
            "attributes": [sorted(k for k in vars(m) if not k.startswith("_")) for m in model.modules()],
            "forwards": [m.__dict__.get("forward") for m in model.modules()],
            "checkpointing": [getattr(m, "grad_checkpointing", None) for m in model.modules()],
            "fused": [getattr(m, "fused_attn", None) for m in model.modules()],
            "sizes": [getattr(m, "grid_size", None) for m in model.modules()],
            "autograd": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
            "rng": torch.get_rng_state().tolist(),
            "function_modes": torch._C._len_torch_function_stack(),
        }

    before, weights = state(), copy.deepcopy(model.state_dict())
    try:
        yield
    finally:
        after = state()
        for key, value in before.items():
            if key == "grad":
                pairs = zip(value, after[key], strict=True)
                assert all((a is None and b is None) or torch.equal(a, b) for a, b in pairs), ".grad changed"
            else:
                assert value == after[key], f"{key} changed"
        for name, value in model.state_dict().items():
            # some libraries leave parameters uninitialised, NaN included
            assert torch.allclose(value, weights[name], rtol=0, atol=0, equal_nan=True), f"{name} changed"
