"""The text side of image-text models: texts to token ids to features."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from legrad.models.hf.family import pooled

# kinds of models that were trained on texts of one length, padding included
_FIXED_LENGTH = ("siglip", "siglip2", "tipsv2")
_NO_LIMIT = 100_000  # tokenizers without a limit say 1e30
# detectors and segmenters around an image-text model
_INNER = ("clip", "owlvit", "owlv2", "flava")


def _retrieval(model: Any, **ids: Tensor) -> Tensor:
    """``get_text_features`` for BLIP's retrieval model, which has no such method."""
    tokens = model.text_encoder(ids["input_ids"], ids.get("attention_mask")).last_hidden_state
    feature: Tensor = model.text_proj(tokens[:, 0])
    return feature


def encoder(model: Any) -> Callable[[Any], Tensor] | None:
    """What a tokenizer gives -> (texts, features), before any L2; None for a model without text tower."""
    inner = next((getattr(model, name) for name in _INNER if hasattr(model, name)), model)
    retrieval = hasattr(model, "text_proj")
    function = (lambda **ids: _retrieval(model, **ids)) if retrieval else getattr(inner, "get_text_features", None)
    if function is None:
        return None
    parameters = set(inspect.signature(function).parameters) | ({"input_ids", "attention_mask"} if retrieval else set())

    def encode(ids: Any) -> Tensor:
        arguments = {"input_ids": ids} if isinstance(ids, Tensor) else ids
        # tokenizers also return what this text tower does not take, token types for instance
        result = pooled(function(**{name: value for name, value in arguments.items() if name in parameters}))
        # FLAVA projects every token; its contrastive score takes the first
        return result[:, 0] if result.ndim == 3 else result

    return encode


def tokenizer(model: Any, library_tokenizer: Any) -> Callable[[Sequence[str]], Any]:
    """Texts -> token ids as in the model's training: truncated to what its text tower takes, padded as it expects.

    Args:
        model: of transformers, or any that takes the tokenizer's result.
        library_tokenizer: of transformers.
    """
    config = getattr(model, "config", None)
    positions = getattr(getattr(config, "text_config", None), "max_position_embeddings", _NO_LIMIT)
    length = min(library_tokenizer.model_max_length, positions)
    is_fixed = getattr(config, "model_type", "") in _FIXED_LENGTH
    truncation = {"truncation": True, "max_length": length} if length < _NO_LIMIT else {}

    def tokenize(texts: Sequence[str]) -> Any:
        padding = "max_length" if is_fixed else True
        return library_tokenizer(list(texts), return_tensors="pt", padding=padding, **truncation)

    return tokenize
