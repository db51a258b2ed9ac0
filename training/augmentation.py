"""What happens to speech between mouth and model: another pace, a room, a microphone, noise, a place in the clip."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from legrad.embedded.speech.model import FRAMES, LONGEST, MELS, RATE

CHANNELS, NOISES = 384, 64  # how many different ones are kept ready
NOISE_SECONDS = 8
DRY = 0.5  # share of channels without a room
QUIET = 0.4  # share of clips without noise
SNR = (6.0, 40.0)  # dB, of the others
PACE = (0.9, 1.1)  # changes pitch and formants too, as another speaker would
MASKED = (8, 6)  # at most so many mel bands and frames are blanked (SpecAugment, Park et al., arXiv:1904.08779)
_FFT = 36_864  # room for the echo behind a clip; a product of small primes
_REVERBERATION = (0.1, 0.6)  # seconds until an echo has faded by 60 dB
_TONE = 6.0  # dB that a microphone may take or give


class Augmenter:
    """Distorts clips; its rooms, microphones and noises depend on the seed alone.

    Args:
        seed: of the channels and noises.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])
        self._channels = torch.stack([torch.from_numpy(_channel(rng)) for _ in range(CHANNELS)])
        self._noises = np.stack([_noise(rng) for _ in range(NOISES)])

    def placed(self, waveforms: Sequence[NDArray[np.float32]], rng: np.random.Generator) -> Tensor:
        """Every waveform at another pace and at a random place of its clip, (clips, LONGEST)."""
        clips = np.zeros((len(waveforms), LONGEST), np.float32)
        for clip, waveform in zip(clips, waveforms, strict=True):
            length = min(LONGEST, int(len(waveform) / rng.uniform(*PACE)))
            first = int(rng.integers(LONGEST - length + 1))
            clip[first : first + length] = np.interp(
                np.linspace(0, len(waveform) - 1, length), np.arange(len(waveform)), waveform
            )
        return torch.from_numpy(clips)

    def recorded(self, waveforms: Sequence[NDArray[np.float32]], rng: np.random.Generator) -> list[NDArray[np.float32]]:
        """Every waveform as a recording of its own: distorted, with more or less before and behind it."""
        clips = self.placed(waveforms, rng)
        found = []
        for clip, spoken in zip(self.heard(clips, rng).numpy(), clips.numpy() != 0, strict=True):
            first, last = int(spoken.argmax()), LONGEST - int(spoken[::-1].argmax())
            found.append(clip[int(rng.integers(first + 1)) : int(rng.integers(last, LONGEST + 1))])
        return found

    def heard(
        self, clips: Tensor, rng: np.random.Generator, snr: tuple[float, float] = SNR, quiet: float = QUIET
    ) -> Tensor:
        """Clips (clips, LONGEST) in a random room, through a random microphone, with noise in all but a share."""
        chosen = torch.from_numpy(rng.integers(CHANNELS, size=len(clips)))
        spectra = torch.fft.rfft(clips, _FFT) * self._channels[chosen]
        clips = torch.fft.irfft(spectra, _FFT)[:, :LONGEST]
        starts = rng.integers(self._noises.shape[1] - LONGEST, size=len(clips))
        rows = rng.integers(NOISES, size=len(clips))
        noises = np.stack([self._noises[row, start : start + LONGEST] for row, start in zip(rows, starts, strict=True)])
        levels = 10 ** (-torch.from_numpy(rng.uniform(*snr, len(clips))).float() / 20)
        levels[torch.from_numpy(rng.random(len(clips)) < quiet)] = 0
        # of the speech, not of the silence around it
        speech = clips.abs() > 0.05 * clips.abs().amax(1, keepdim=True)
        power = (clips.square() * speech).sum(1) / speech.sum(1)
        return clips + (levels * power.sqrt())[:, None] * torch.from_numpy(noises)

    def masked(self, spectrograms: Tensor, rng: np.random.Generator) -> Tensor:
        """Spectrograms (clips, FRAMES, MELS) with a band and a stretch of time blanked in each."""
        spectrograms = spectrograms.clone()
        for one in spectrograms:
            bands, frames = (int(rng.integers(most + 1)) for most in MASKED)
            band, frame = int(rng.integers(MELS - bands)), int(rng.integers(FRAMES - frames))
            one[:, band : band + bands] = 0
            one[frame : frame + frames] = 0
        return spectrograms


def _channel(rng: np.random.Generator) -> NDArray[np.complex64]:
    """Spectrum of a synthetic impulse response: the direct sound, a decaying tail of noise, a tone control."""
    response = np.zeros(_FFT, np.float64)
    response[0] = 1
    if rng.random() > DRY:
        fading = rng.uniform(*_REVERBERATION)
        length = min(_FFT - LONGEST, int(fading * RATE))
        time = np.arange(length) / RATE
        tail = rng.standard_normal(length) * 10 ** (-3 * time / fading)
        tail[: int(rng.uniform(0.002, 0.02) * RATE)] = 0  # the first wall is some way off
        direct_to_echo = 10 ** (rng.uniform(-3, 15) / 20)
        response[:length] += tail / (np.sqrt(np.square(tail).sum()) * direct_to_echo)
    # gains at a few frequencies, an octave apart
    octaves = np.log2(np.maximum(np.fft.rfftfreq(_FFT, 1 / RATE), 60) / 60)
    gains = rng.uniform(-_TONE, _TONE, 9)
    tone = 10 ** (np.interp(octaves, np.arange(9), gains) / 20)
    return np.asarray(np.fft.rfft(response) * tone, np.complex64)


def _noise(rng: np.random.Generator) -> NDArray[np.float32]:
    """Noise of unit power, of a colour between white and brown, that swells and fades."""
    count = NOISE_SECONDS * RATE
    frequencies = np.maximum(np.fft.rfftfreq(count, 1 / RATE), 40)
    spectrum = np.fft.rfft(rng.standard_normal(count)) * frequencies ** -rng.uniform(0, 1)
    noise = np.fft.irfft(spectrum, count)
    swelling = np.interp(np.arange(count), np.linspace(0, count, 4 * NOISE_SECONDS), rng.uniform(0.5, 1.5, 32))
    noise *= swelling
    return np.asarray(noise / noise.std(), np.float32)
