"""``explain`` in other forms: of sounds, head by head, of a stream of images."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from legrad import methods
from legrad.choices import ReadoutName
from legrad.core.state import not_compiled
from legrad.errors import UnsupportedModelError
from legrad.inputs.prepare import Images
from legrad.methods.heads import EVERY_HEAD
from legrad.results.explanation import Explanation
from legrad.results.head_maps import HeadMaps
from legrad.stream import Streams
from legrad.targets.kinds import Targets


class Convenience(Streams):
    """Calls of an ``Explainer`` that are made of ``explain``."""

    def heads(self, images: Images, targets: Targets, **options: Any) -> HeadMaps:
        """LeGrad head by head: where did each attention head of each layer look?

        >>> explainer = legrad.load("embedded")
        >>> explainer.heads(next(legrad.embedded.scenes(1)).image, "a cow", layers=2)
        HeadMaps(1 images x 1 targets, layers [4, 5], 4 heads, grid 12 x 12)

        Args:
            images, targets: as for ``explain``.
            options: as for ``explain``: layers, readout, size, fit, memory, inputs, value_range, allow_private_urls.

        Returns:
            Maps of (images, targets, layers, heads, *grid), with a ``figure`` of all heads of all layers.

        Raises:
            UnsupportedModelError: a model that folds its heads into the batch.
            InputError, TruthCheckError: as of ``explain``.
        """
        explainer: Any = self
        return HeadMaps.of(explainer.explain(images, targets, **{**options, "method": EVERY_HEAD, "keep_layers": True}))

    @not_compiled
    def explain_audio(
        self,
        sounds: Images,
        targets: Targets | None = None,
        layers: int | Sequence[int] | None = None,
        readout: ReadoutName = "auto",
        method: str | methods.Method = "legrad",
        null_target: Targets | None = None,
        null_threshold: float = 0.8,
        keep_layers: bool = False,
        memory: Literal["auto"] | int = "auto",
        inputs: Mapping[str, Tensor] | None = None,
        allow_private_urls: bool = True,
    ) -> Explanation:
        """Where in time and frequency did the model listen, for these targets?

        The same as ``explain`` for a model of sounds; of a model of images and sounds its audio tower is explained.

        Args:
            sounds: path, URL, waveform, (waveform, rate), a list of those, or spectrograms, as in ``explain``.
            targets, layers, readout, method, null_target, null_threshold, keep_layers, memory, inputs,
                allow_private_urls: as in ``explain``.

        Raises:
            UnsupportedModelError: the model has no audio tower, or none that is a transformer that we know.
        """
        whole: Any = self
        explainer = whole if whole.anatomy.axes[0] == "frequency" else whole.audio_explainer
        if explainer is None:
            raise UnsupportedModelError(
                f"{whole.name} has no audio tower that can be explained, its inputs have the axes "
                f"{', '.join(whole.anatomy.axes)}; load a model of sounds, such as an Audio Spectrogram Transformer: "
                "hf:FOLDER"
            )
        return explainer.explain(
            sounds,
            targets,
            layers=layers,
            readout=readout,
            method=method,
            null_target=null_target,
            null_threshold=null_threshold,
            keep_layers=keep_layers,
            memory=memory,
            inputs=inputs,
            allow_private_urls=allow_private_urls,
        )
