"""A model of sounds under test: spectrograms stand for images, and digital silence for black."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from legrad.bench.model import ModelUnderTest
from legrad.choices import Fit
from legrad.errors import InputError, UnsupportedModelError
from legrad.explainer import Explainer
from legrad.inputs import spectrograms
from legrad.methods import Method


class Listener(ModelUnderTest):
    """As ``ModelUnderTest``; "images" are what ``explain_audio`` takes, pixels the cells of their spectrograms.

    Raises:
        UnsupportedModelError: a model that does not take spectrograms.
        InputError: a model without its feature extractor.
    """

    @staticmethod
    def check(explainer: Explainer) -> None:
        """Only models of spectrograms, with what makes a spectrogram."""
        if explainer.anatomy.axes != ("frequency", "time") or len(explainer.anatomy.shape) != 2:
            raise UnsupportedModelError("erasing time-frequency patches is for models of spectrograms")
        if explainer.adapter.transform is None:
            raise InputError("this model carries no feature extractor: give legrad.wrap(model, transform=extractor)")

    @property
    def settings(self) -> dict[str, Any]:
        """As of a ``ModelUnderTest``, and what black is."""
        return {**super().settings, "black": "the extractor's value of digital silence"}

    def explain(self, images: Sequence[Any] | Tensor, targets: Any, method: str | Method, **arguments: Any) -> Any:
        """As of a ``ModelUnderTest``; sounds are fitted by their extractor alone."""
        return super().explain(images, targets, method, **{**arguments, "fit": "model"})

    def inputs(self, images: Sequence[Any], fit: Fit = "model") -> Tensor:
        """Spectrograms (sounds, time, frequency), as the model takes them."""
        return super().inputs(images, "model")

    def pixels(self, images: Sequence[Any], fit: Fit = "model") -> Tensor:
        """Spectrograms (sounds, 1, frequency, time), 0 where there is digital silence; what was padded is not 0."""
        return (self.inputs(images) - self._silence).transpose(1, 2)[:, None]

    def seen(self, pixels: Tensor) -> Tensor:
        """``features`` of such spectrograms."""
        return self.features(pixels[:, 0].transpose(1, 2) + self._silence)

    def extents(self, images: Sequence[Any], patch: int = 1) -> list[tuple[int, int]]:
        """(frequencies, steps) that were heard, in whole patches: padding behind a short sound is never erased."""
        placements = [sound.placement for sound in self.explainer.prepare(list(images))]
        # silence in front of a sound is part of it here: erasing it changes nothing
        ends = [(place.original[0], place.original[1] + round(place.offset[1])) for place in placements]
        return [(rows // patch * patch, steps // patch * patch) for rows, steps in ends]

    @property
    def _silence(self) -> float:
        """One value for all frequencies: the logarithm has the same floor everywhere."""
        adapter = self.explainer.adapter
        assert adapter.transform is not None
        extractor = adapter.transform(None, "model")
        if hasattr(extractor, "silence"):
            return float(extractor.silence)
        silence = spectrograms.features(extractor, np.zeros(extractor.sampling_rate // 10, np.float32))
        return float(silence.values[0].min())
