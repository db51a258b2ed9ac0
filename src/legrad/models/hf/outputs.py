"""How image models of transformers answer a plain call: the ``answer`` of a ``Family``, and how tokens are pooled."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from legrad.models.hf.family import pooled

Options = dict[str, Any]  # keyword arguments of the call, besides the images


def embedding(model: Any, images: Tensor, options: Options) -> Tensor:
    """Of an image-text model: (batch, features), before any L2."""
    return pooled(model.get_image_features(images, **options))


def projected(model: Any, images: Tensor, options: Options) -> Tensor:
    """Of a vision tower with a projection: (batch, features)."""
    embeddings: Tensor = model(images, **options).image_embeds
    return embeddings


def logits(model: Any, images: Tensor, options: Options) -> Tensor:
    """Of a classifier: (batch, classes)."""
    answer: Tensor = model(images, **options).logits
    return answer


def feature(pool: Callable[[Tensor], Tensor]) -> Callable[[Any, Tensor, Options], Tensor]:
    """The pooled output of a model without head; ``pool`` of the tokens where the model does not pool."""

    def answer(model: Any, images: Tensor, options: Options) -> Tensor:
        output = model(images, **options)
        pooler_output = getattr(output, "pooler_output", None)
        return pool(output.last_hidden_state) if pooler_output is None else pooler_output

    return answer


def class_token(tokens: Tensor) -> Tensor:
    """(batch, tokens, dim) -> (batch, dim): the first token."""
    return tokens[:, 0]


def mean(tokens: Tensor) -> Tensor:
    """(batch, tokens, dim) -> (batch, dim) of all tokens."""
    return tokens.mean(1)


def mean_of_patches(tokens: Tensor) -> Tensor:
    """(batch, tokens, dim) -> (batch, dim) of all tokens but the class token."""
    return tokens[:, 1:].mean(1)


class_token_feature = feature(class_token)
