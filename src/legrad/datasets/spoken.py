"""The embedded models' scenes with the names of their objects spoken, by voices that were not trained on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from legrad.datasets.sample import Sample
from legrad.embedded import SPOKEN
from legrad.embedded.concepts import NAMES
from legrad.embedded.rendering import TRAINING_SEEDS
from legrad.embedded.rendering import scene as render
from legrad.errors import InputError

Voices = Literal["samples", "espeak"]


class SpokenScenes:
    """Held-out scenes; every sample has the masks of its objects, and in ``extra["clips"]`` their spoken names.

    Args:
        seed: the stream of scenes; not one that was trained on.
        objects: smallest and largest number of objects in a scene.
        count: how many scenes there are.
        voices: "samples": scenes of the objects whose names ship with the package as clips. "espeak": of all 200,
            spoken by espeak-ng (which must be installed) in new voices.

    Raises:
        InputError: a seed that was trained on, or a number out of range.

    Attributes:
        classes: all 200 names.
    """

    def __init__(
        self, seed: int = 1, objects: tuple[int, int] = (2, 4), count: int = 10_000, voices: Voices = "samples"
    ) -> None:
        if seed < 0 or seed in TRAINING_SEEDS:
            raise InputError(f"seed {seed} cannot be used: it is negative, or the embedded model was trained on it")
        clips = {path.stem: str(path) for path in sorted(SPOKEN.glob("*.wav"))}
        limit = len(clips) if voices == "samples" else 8
        if not 1 <= objects[0] <= objects[1] <= limit or count < 1:
            raise InputError(
                f"objects is (smallest, largest) with 1 <= smallest <= largest <= {limit}, and count at least 1, "
                f"got {objects} and {count}"
            )
        self.name = "embedded"
        self.classes = NAMES
        self._seed, self._objects, self._count = seed, objects, count
        self._clips = clips if voices == "samples" else None
        self.facts: Mapping[str, Any] = {
            "path": "embedded",
            "items": count,
            "problems": [],
            "scenes": "legrad.embedded.scenes, held out",
            "prompt": "speech",
            "voices": f"shipped clips: {', '.join(clips)}" if voices == "samples" else "espeak-ng, new voices",
            "seed": seed,
            "objects": list(objects),
        }

    def __len__(self) -> int:
        return self._count

    def keys(self) -> Sequence[str]:
        """Names of the scenes, in order."""
        return [f"spoken-{self._seed}-{index}" for index in range(len(self))]

    def files(self, index: int) -> list[Path]:
        """The clips that ship; scenes are drawn by the code."""
        return [Path(clip) for clip in (self._clips or {}).values()]

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        among = None if self._clips is None else [NAMES.index(name) for name in self._clips]
        scene = render(self._seed, index, objects=self._objects, among=among)
        clips: Mapping[str, Any] = self._clips or _synthesise(scene.names, self._seed, index)
        return Sample(
            f"spoken-{self._seed}-{index}",
            Image.fromarray(scene.image),
            masks=dict(zip(scene.names, scene.masks, strict=True)),
            extra={"clips": {name: clips[name] for name in scene.names}},
        )


def _synthesise(names: Sequence[str], seed: int, index: int) -> dict[str, Any]:
    """Name -> (waveform (samples,), rate in Hz), each in another voice."""
    from legrad.embedded.speech import synthesis
    from legrad.embedded.speech.model import RATE

    # the utterances of a stream take the concepts in turn
    places = [NAMES.index(name) + len(NAMES) * index for name in names]
    utterances = [synthesis.utterance("variants", seed, place) for place in places]
    return {name: (waveform, RATE) for name, waveform in zip(names, synthesis.synthesise(utterances), strict=True)}
