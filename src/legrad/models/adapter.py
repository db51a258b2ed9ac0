"""The record of one model: its anatomy, and what its library knows of preprocessing, texts, labels and sounds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from legrad.inputs import sounds
from legrad.inputs.geometry import Size
from legrad.models.anatomy import ViTAnatomy

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class AudioEncoder:
    """How a model embeds sounds in the space of its images.

    Attributes:
        rate: sampling rate of its waveforms, in Hz.
        encode: mono waveforms (samples,), float32 in [-1, 1], of any lengths -> (waveforms, features), which need not
            be normalised.
        tower: the module behind ``encode`` where it is no part of the explained model: it moves along with the model.
        shortest: least duration of a sound, in seconds.
        longest: duration in seconds up to which it is meant to be used, None for any; a longer sound is warned of.
    """

    rate: int
    encode: "Callable[[Sequence[NDArray[np.float32]]], Tensor]"
    tower: nn.Module | None = None
    shortest: float = sounds.SHORTEST
    longest: float | None = None


@dataclass(frozen=True)
class Adapter:
    """What a library knows about one of its models.

    Attributes:
        model: the whole model.
        anatomy: its vision tower.
        tokenize: texts -> token ids, a tensor or anything with ``.to(device)``; None if unknown.
        encode_text: what ``tokenize`` gives -> (texts, features), None without a text tower.
        transform: (size or None, fit) -> an image transform made of torchvision-style steps, or a
            ``inputs.transforms.Preprocessing``; None if unknown.
        labels: class names in the order of the logits, None if unknown.
        audio_adapter: the model's audio tower, which can be explained by itself; None if there is none.
        unpack: a batch of the library's processor -> one tensor per input, where the batch is not simply a tensor; else
            None.
        audio_encoder: how the model embeds sounds in the space of its images, None if it does not.
        name: the name that ``legrad.load`` took, or library and class.
        candidates: further descriptions of a model that does not say by its type how it pools; the first of ``anatomy``
            and these that gives the model's own output is right.
        unknown_words: a text -> its words that the model has never read; None where that is not known.
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
    candidates: tuple[ViTAnatomy, ...] = ()
    unknown_words: Callable[[str], Sequence[str]] | None = None
