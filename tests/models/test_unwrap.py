"""Models inside the wrappers of parallel training, compilation and PEFT."""

import pytest
import torch
from helpers import limits, tiny, twin
from helpers.zoo import timm as zoo_timm
from torch import nn

import legrad

NAME = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def model():
    return zoo_timm.build(NAME)


def same(wrapped, model):
    explainer = legrad.wrap(wrapped)
    assert explainer.model is model
    x = torch.randn(1, 3, 64, 64)
    with tiny.left_as_found(wrapped):
        explanation = explainer.explain(x, 3)
    assert torch.equal(explanation.relevance, legrad.wrap(model).explain(x, 3).relevance)


def test_data_parallel(model):
    same(nn.DataParallel(model), model)


def test_distributed(model):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        same(nn.parallel.DistributedDataParallel(model), model)
    finally:
        torch.distributed.destroy_process_group()


def test_compiled_and_nested(model):
    same(nn.DataParallel(torch.compile(model, backend="eager")), model)


def test_compiled_in_place():
    """``model.compile()`` changes how a module is called, not its type."""
    model, plain = zoo_timm.build(NAME), zoo_timm.build(NAME)

    def compiled(*args):
        raise AssertionError("the compiled forward was used")

    model.blocks[0].compile(backend="eager")
    model.blocks[0]._compiled_call_impl = compiled
    x = torch.randn(1, 3, 64, 64)
    explanation = legrad.wrap(model).explain(x, 3)
    assert torch.equal(explanation.relevance, legrad.wrap(plain).explain(x, 3).relevance)
    assert model.blocks[0]._compiled_call_impl is compiled


def test_peft():
    """LoRA layers stay in place and count: the maps are those of the model with the adapter merged into its weights."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["qkv", "proj", "fc1"], init_lora_weights=False)
    bare = legrad.wrap(zoo_timm.build(NAME))
    wrapped = get_peft_model(zoo_timm.build(NAME), config).eval()
    x = torch.randn(1, 3, 64, 64)
    with tiny.left_as_found(wrapped):
        explanation = legrad.wrap(wrapped).explain(x, 3)
    merged = legrad.wrap(wrapped.merge_and_unload()).explain(x, 3)
    assert twin.distance(explanation.relevance, merged.relevance) < limits.FLOAT32
    assert twin.distance(explanation.relevance, bare.explain(x, 3).relevance) > limits.DIFFERENT


def test_scripted_models_are_refused():
    with pytest.raises(legrad.UnsupportedModelError, match=r"scripted or traced.*load_state_dict"):
        legrad.wrap(torch.jit.script(nn.Linear(2, 2)))


def test_unknown_models_name_what_was_tried():
    with pytest.raises(legrad.UnsupportedModelError, match=r"Linear .*tried: open_clip, timm, torchvision,.* clip"):
        legrad.wrap(nn.Linear(2, 2))
    with pytest.raises(legrad.InputError, match=r"LIBRARY one of .*timm, torchvision"):
        legrad.load("keras:vit")
