"""Maps of the authors' released code (see golden/README.md) to 1e-5, every map in every file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import limits
from helpers.tiny import TEXT

from legrad import LeWrapper

FILES = sorted(Path(__file__).parent.glob("*.npz"))


def read(path):
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    meta = json.loads(str(arrays.pop("meta")))
    state = {name[6:]: torch.from_numpy(arrays.pop(name)) for name in list(arrays) if name.startswith("state/")}
    return meta, state, {name: torch.from_numpy(value) for name, value in arrays.items()}


def build(meta, state):
    import timm
    from open_clip import CLIP, CoCa, CustomTextCLIP
    from open_clip.timm_model import TimmModel

    if meta["kind"] == "clip":
        model = CLIP(meta["embed_dim"], meta["vision_cfg"], meta["text_cfg"], quick_gelu=meta["quick_gelu"])
    elif meta["kind"] == "coca":
        model = CoCa(
            meta["embed_dim"],
            multimodal_cfg={**TEXT, "mlp_ratio": 4},
            text_cfg={**TEXT, "embed_cls": True, "output_tokens": True},
            vision_cfg=meta["vision_cfg"],
        )
    else:
        width = meta["kwargs"]["embed_dim"]
        model = CustomTextCLIP(width, {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8}, TEXT)
        tower = TimmModel.__new__(TimmModel)
        torch.nn.Module.__init__(tower)
        tower.trunk = timm.create_model(meta["timm_model"], num_classes=0, **meta["kwargs"])
        tower.head = torch.nn.Sequential()
        tower.image_size = (meta["kwargs"]["img_size"],) * 2
        model.visual = tower
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert not [name for name in missing if name.startswith("visual.")]
    return model


def test_all_six_files_are_here():
    assert len(FILES) == 6


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_published_maps(path):
    meta, state, arrays = read(path)
    model = build(meta, state)
    maps = {name: value for name, value in arrays.items() if name.startswith("map/")}
    assert maps
    for name, want in maps.items():
        start, *rest = name.removeprefix("map/").split("/")
        wrapper = LeWrapper(model, layer_index=int(start))
        if "empty_embedding" in meta:
            wrapper.empty_embedding = torch.tensor(meta["empty_embedding"]).reshape(-1, 1)
        found = wrapper.compute_legrad(
            arrays["embedding"], arrays["image"], apply_correction=rest == ["correction=True"]
        )
        assert found.shape == want.shape
        assert float((found - want).abs().max()) < limits.GOLDEN, name
