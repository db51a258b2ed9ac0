"""Make the spoken samples that ship with the package: ``python -m training.spoken_samples``.

The objects of the sample scene, named by voices that the speech tower was not trained on.
"""

import wave
from pathlib import Path

import numpy as np

from legrad.embedded import SPOKEN, sample_names
from legrad.embedded.concepts import NAMES
from legrad.embedded.speech.model import RATE
from legrad.embedded.speech.synthesis import Utterance, synthesise

VOICES = ("en-us+m7", "en-us+f5", "en-gb-scotland+m6", "en-gb-scotland+f4")
_PAUSE = RATE // 20  # samples of silence before and behind


def write(folder: Path) -> None:
    """One NAME.wav per object: PCM of 16 bits, mono, which needs no other library to be read."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sample_names()
    said = [Utterance(NAMES.index(name), name, voice, 160, 50) for name, voice in zip(names, VOICES, strict=True)]
    for name, waveform in zip(names, synthesise(said), strict=True):
        samples = np.pad(np.round(waveform * 0.8 * np.iinfo(np.int16).max).astype("<i2"), _PAUSE)
        with wave.open(str(folder / f"{name}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes(samples.tobytes())


if __name__ == "__main__":
    write(SPOKEN)
