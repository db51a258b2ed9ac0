"""Sounds for tests of speech that need no espeak-ng."""

import numpy as np

from legrad.embedded import SPOKEN, sample_names
from legrad.embedded.speech.model import RATE
from legrad.inputs import sounds

CLIPS = {name: SPOKEN / f"{name}.wav" for name in sample_names()}


def clip_of(name):
    """A shipped clip, (samples,) at RATE Hz."""
    return sounds.read(CLIPS[name], RATE)[0]


def tone(frequency, seconds, level=0.5):
    return (level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def chords(utterances):
    """In place of ``synthesis.synthesise``: every concept is a chord of its own."""
    return [
        tone(300 + 30 * utterance.concept, 0.3) + tone(4000 - 15 * utterance.concept, 0.3) for utterance in utterances
    ]
