"""Speech synthesised with espeak-ng (``apt-get install espeak-ng``): for training and evaluation only.

A voice is an accent with a variant (formants, pitch, breath), as in ``en-us+m3``. Some accents and some variants are
held out from training.
"""

import json
import random
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from legrad.embedded.concepts import CONCEPTS, NAMES
from legrad.embedded.speech.model import LONGEST, RATE
from legrad.errors import InputError
from legrad.inputs import sounds

# "en" is the British one: "en-gb" would silently drop its variant
ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-gb-x-gbclan", "en-us-nyc", "en-029")
_VARIANTS = (
    "m1 m2 m3 m4 m5 m8 f1 f2 f3 Alex Alicia Andrea Andy Annie Denis Gene Jacky Lee Marco Michael Mike adam announcer "
    "aunty belinda benjamin boris david ed edward grandma grandpa gustave john klatt klatt2 klatt4 linda max michel "
    "norbert pablo paul pedro quincy rob robert shelby travis zac"
)
VARIANTS = tuple(_VARIANTS.split())
HELD_OUT_ACCENTS = ("en-gb-scotland", "en-gb-x-gbcwmd")
HELD_OUT_VARIANTS = ("m6", "m7", "f4", "f5", "Mario", "iven", "miguel", "victor", "klatt3", "sandro")
PHRASES = ("{}", "{}", "{}", "a {}", "the {}", "a photo of a {}", "a picture of the {}", "where is the {}")
SPEEDS = (120, 220)  # words per minute
PITCHES = (15, 85)  # of 0 to 99
ALIASES = 0.2  # share of utterances that say a synonym
Split = Literal["training", "variants", "accents"]


@dataclass(frozen=True)
class Utterance:
    """A text and the voice that says it.

    Attributes:
        concept: index of the concept in ``NAMES``.
        text: the words.
        voice: for espeak-ng, accent+variant.
        speed: words per minute.
        pitch: 0 to 99.
    """

    concept: int
    text: str
    voice: str
    speed: int
    pitch: int


def utterance(split: Split, seed: int, index: int) -> Utterance:
    """A random utterance; successive indices take the concepts in turn.

    Args:
        split: "training", or held out: "variants" are new speakers with trained accents, "accents" new speakers with
            new accents. Held-out utterances say no synonyms.
        seed: the stream.
        index: position in the stream.
    """
    rng = random.Random(f"{split} {seed} {index}")
    concept = index % len(NAMES)
    name, aliases = CONCEPTS[concept].name, CONCEPTS[concept].aliases
    if split == "training" and aliases and rng.random() < ALIASES:
        name = rng.choice(aliases)
    accent = rng.choice(HELD_OUT_ACCENTS if split == "accents" else ACCENTS)
    variant = rng.choice(VARIANTS if split == "training" else HELD_OUT_VARIANTS)
    text = _with_article(rng.choice(PHRASES), name)
    return Utterance(concept, text, f"{accent}+{variant}", rng.randint(*SPEEDS), rng.randint(*PITCHES))


def _with_article(phrase: str, name: str) -> str:
    if name[0] in "aeiou":
        phrase = phrase.replace("a {}", "an {}")
    return phrase.format(name)


def check() -> None:
    """Raise ``InputError`` if espeak-ng is not installed."""
    if shutil.which("espeak-ng") is None:
        raise InputError("speech is synthesised with espeak-ng, which is not installed: apt-get install espeak-ng")


def synthesise(utterances: Sequence[Utterance]) -> list[NDArray[np.float32]]:
    """Waveforms (samples,) at RATE Hz, trimmed of silence, at most LONGEST long, with a peak of 1.

    A phrase that is too long is repeated faster until it fits.

    Raises:
        InputError: espeak-ng is not installed, or fails.
    """
    check()
    waveforms = [
        waveform for first in range(0, len(utterances), 200) for waveform in _run(utterances[first : first + 200])
    ]
    too_long = [index for index, waveform in enumerate(waveforms) if len(waveform) > LONGEST]
    if too_long:
        faster = [replace(utterances[index], speed=round(utterances[index].speed * 1.15)) for index in too_long]
        for index, waveform in zip(too_long, synthesise(faster), strict=True):
            waveforms[index] = waveform
    return waveforms


def _run(utterances: Sequence[Utterance]) -> Iterator[NDArray[np.float32]]:
    """Start all espeak-ng processes from one shell: this process is large and slow to fork."""
    with tempfile.TemporaryDirectory() as folder:
        lines = [_command(phrase, f"{index}.wav") + " || exit 1\n" for index, phrase in enumerate(utterances)]
        process = subprocess.run(["sh"], input="".join(lines), cwd=folder, capture_output=True, text=True, check=False)
        if process.returncode != 0:
            raise InputError(f"espeak-ng failed: {process.stderr.strip()}")
        for index in range(len(utterances)):
            channels, rate, name = sounds.opened(f"{folder}/{index}.wav", RATE)
            waveform = sounds.resampled(sounds.mono(channels), rate, RATE, name)
            loud = np.abs(waveform) > 0.005 * np.abs(waveform).max()
            first, last = int(loud.argmax()), len(loud) - int(loud[::-1].argmax())
            yield np.asarray(waveform[first:last] / np.abs(waveform).max(), np.float32)


def _command(phrase: Utterance, file: str) -> str:
    """A line of shell that writes an utterance to a file."""
    voice = ["-v", phrase.voice, "-s", str(phrase.speed), "-p", str(phrase.pitch)]
    return shlex.join(["espeak-ng", *voice, "-w", file, phrase.text])


def version() -> str:
    """The version of espeak-ng, for the model card."""
    process = subprocess.run(["espeak-ng", "--version"], capture_output=True, text=True, check=True)
    return process.stdout.split("Data at")[0].strip()


class Cache:
    """Training utterances on disk, synthesised once.

    Args:
        folder: of the files, which are written if missing or of another stream.
        seed: of the stream.
        count: number of utterances.
    """

    def __init__(self, folder: Path, seed: int, count: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._waveforms, index = folder / "waveforms.i16", folder / "index.json"
        stream = {"seed": seed, "count": count}
        if not index.exists() or json.loads(index.read_text())["stream"] != stream:
            self._write(index, stream)
        content = json.loads(index.read_text())
        self.utterances = [Utterance(**fields) for fields in content["utterances"]]
        self._ends = np.cumsum(content["lengths"])
        self._samples = np.memmap(self._waveforms, np.int16, "r")

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        """The waveform of an utterance, (samples,) in [-1, 1]."""
        first = self._ends[index - 1] if index else 0
        samples = np.asarray(self._samples[first : self._ends[index]], np.float32)
        return samples / np.float32(np.iinfo(np.int16).max)

    def _write(self, index: Path, stream: dict[str, int]) -> None:
        utterances = [utterance("training", stream["seed"], i) for i in range(stream["count"])]
        lengths = []
        with self._waveforms.open("wb") as file:
            for first in range(0, len(utterances), 1000):
                for waveform in synthesise(utterances[first : first + 1000]):
                    file.write((waveform * np.iinfo(np.int16).max).astype(np.int16).tobytes())
                    lengths.append(len(waveform))
        content = {"stream": stream, "lengths": lengths, "utterances": [asdict(item) for item in utterances]}
        index.write_text(json.dumps(content), encoding="utf-8")
