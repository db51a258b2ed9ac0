"""Sounds as targets: checked clips -> embeddings, for models that embed sounds in the space of their images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from legrad.inputs import sounds
from legrad.models.anatomy import ViTAnatomy

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class AudioEncoder:
    """How a model embeds sounds in the space of its images.

    Attributes:
        rate: sampling rate of what it hears, in Hz.
        encode: mono waveforms (samples,), float32 in [-1, 1], of any lengths -> (waveforms, features), which need not
            be normalised.
        tower: the module behind ``encode`` where it is no part of the explained model: it moves along with the model.
        shortest: how long a sound lasts at least, in seconds.
        longest: the longest sound that it is made for, in seconds; None for any. A longer one is warned of.
    """

    rate: int
    encode: "Callable[[Sequence[NDArray[np.float32]]], Tensor]"
    tower: nn.Module | None = None
    shortest: float = sounds.SHORTEST
    longest: float | None = None


Size = tuple[int, int]


@dataclass(frozen=True)
class Adapter:
    """What a library knows about one of its models.

    Attributes:
        model: the whole model.
        anatomy: its vision tower.
        tokenize: texts -> token ids, a tensor or anything with ``.to(device)``; None if unknown.
        encode_text: what ``tokenize`` gives -> (texts, features), None without a text tower.
        transform: (size or None, fit) -> an image transform made of torchvision-style steps, or a
            ``geometry.Preprocessing``; None if unknown.
        labels: class names in the order of the logits, None if unknown.
        audio_adapter: the model's audio tower, which can be explained by itself; None if there is none.
        unpack: a batch of the library's own processor -> one tensor per input, for layouts of its own; else None.
        audio_encoder: how the model embeds sounds in the space of its images, None if it does not.
        name: how the model was asked for.
    """

    model: nn.Module
    anatomy: ViTAnatomy
    tokenize: Callable[[Sequence[str]], Any] | None = None
    encode_text: Callable[[Any], Tensor] | None = None
    transform: Callable[[Size | None, str], Any] | None = None
    labels: tuple[str, ...] | None = None
    unpack: Callable[[Mapping[str, Any]], list[Tensor]] | None = None
    audio_encoder: AudioEncoder | None = None
    name: str = ""
    audio_adapter: "Adapter | None" = None
