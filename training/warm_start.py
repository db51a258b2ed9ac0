"""The attention-pooled model's first weights, taken from the class-token model.

Blocks, patch and position embeddings and the text tower map one to one. The pooler is new: it begins as what the class
token did in its last block, with the class token of the average image as its query.
"""

from typing import Any

import torch
from torch import Tensor, nn

from legrad.embedded import model as embedded

ORIGIN = (
    "embeddings, blocks and text tower are copied one to one, without the class token; the pooler starts "
    "as a copy of the class token's path through the last block, for the class token of an average training image"
)
_BLOCK = {
    "norm1": "ln_1",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj": "attn.out_proj",
    "norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


@torch.no_grad()
def warm_start(source: Any, images: Tensor) -> Any:
    """An attention-pooled model out of a class-token model of the full image size.

    Args:
        source: an embedded model of kind "token".
        images: (B, 3, H, W) inputs over which the class token is averaged.

    Returns:
        A model of kind "map", in train mode.
    """
    visual = source.visual
    model: Any = embedded.build(source.vocab_size, visual.image_size[0], "map")
    trunk = model.visual.trunk
    model.text.load_state_dict({name: source.state_dict()[name] for name in model.text.state_dict()})
    model.logit_scale.copy_(source.logit_scale)
    model.logit_bias.copy_(source.logit_bias)
    trunk.patch_embed.proj.weight.copy_(visual.conv1.weight)
    trunk.pos_embed.copy_(visual.positional_embedding[None, 1:])
    trunk.norm_pre.load_state_dict(visual.ln_pre.state_dict())
    for block, old in zip(trunk.blocks, visual.transformer.resblocks, strict=True):
        block.load_state_dict(_renamed(old.state_dict()))
    last = visual.transformer.resblocks[-1]
    trunk.norm.load_state_dict(last.ln_1.state_dict())
    _copy_class_token_path(trunk.attn_pool, last, _class_token(visual, images))
    # the norm behind the class token, without its bias and up to a factor: cosine similarity sees none
    weight = visual.ln_post.weight[:, None] * visual.proj
    model.visual.head.proj.weight.copy_((weight - weight.mean(0)).T)
    return model


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An open_clip block's weights under timm's names."""
    names = {old: new for new, old in _BLOCK.items()}
    return {
        next(names[old] + name.removeprefix(old) for old in names if name.startswith(old)): value
        for name, value in state.items()
    }


def _class_token(visual: Any, images: Tensor) -> Tensor:
    """The class token (width,) before the last block, averaged over images."""
    found: list[Tensor] = []
    last = visual.transformer.resblocks[-1]
    handle = last.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    try:
        visual(images)
    finally:
        handle.remove()
    return found[0][:, 0].mean(0)


def _copy_class_token_path(pool: Any, block: Any, class_token: Tensor) -> None:
    """Attention, norm and the strongest hidden units of a block's MLP; the class token is query and residual."""
    query, key_value = block.attn.in_proj_weight.tensor_split([len(class_token)])
    query_bias, key_value_bias = block.attn.in_proj_bias.tensor_split([len(class_token)])
    pool.latent.copy_(block.ln_1(class_token))
    _fill(pool.q, query, query_bias)
    _fill(pool.kv, key_value, key_value_bias)
    _fill(pool.proj, block.attn.out_proj.weight, block.attn.out_proj.bias + class_token)
    pool.norm.load_state_dict(block.ln_2.state_dict())
    first, second = block.mlp.c_fc, block.mlp.c_proj
    strength = first.weight.norm(dim=1) * second.weight.norm(dim=0)
    units = strength.topk(pool.mlp.fc1.out_features).indices
    _fill(pool.mlp.fc1, first.weight[units], first.bias[units])
    _fill(pool.mlp.fc2, second.weight[:, units], second.bias)


def _fill(layer: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
