"""Models inside the wrappers of parallel training, ``torch.compile`` and PEFT."""

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from legrad.errors import UnsupportedModelError

# by name: timm's moving averages of weights, and DeepSpeed's engine
_WITH_MODULE = {"ModelEma", "ModelEmaV2", "ModelEmaV3", "DeepSpeedEngine"}


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside; its weights and adapters (LoRA and the like) stay where they are.

    Raises:
        UnsupportedModelError: a scripted or traced model, which shows no attention to Python.
    """
    inner: Any = model
    while (next_inner := _inner_model(inner)) is not None:
        inner = next_inner
    if isinstance(inner, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            f"{type(inner).__name__}: a scripted or traced model runs its attention outside Python, where it cannot be "
            "seen; build the original model and load the same weights (model.load_state_dict(scripted.state_dict()))"
        )
    return inner


def _inner_model(model: Any) -> Any:
    """The wrapped model, or None if the model is no wrapper that we know."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
        return model.module
    if type(model).__name__ in _WITH_MODULE and isinstance(getattr(model, "module", None), nn.Module):
        return model.module
    if type(model).__name__ == "FullyShardedDataParallel":
        raise UnsupportedModelError(
            "FullyShardedDataParallel keeps its parameters in shards, and blocks are run by their modules: gather the "
            "weights (torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict=True) and load "
            "them into the plain model"
        )
    if type(model).__name__ == "OptimizedModule" and type(model).__module__.startswith("torch._dynamo"):
        return model._orig_mod
    # by name, because PEFT's own models are subclasses of this one
    if any(kind.__name__ == "PeftModel" and kind.__module__.startswith("peft.") for kind in type(model).__mro__):
        return model.get_base_model()
    return None
