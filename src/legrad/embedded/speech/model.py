"""The speech tower: a small spectrogram transformer (AST, Gong et al., arXiv:2104.01778) into the text space.

A timm vision transformer reads the log-mel spectrogram as an image of one channel, (frequency, time), with the lowest
frequency in row 0. Clips are aligned so that names end at the same place; after the last block a linear head has
separate weights for every token, which learns in a fraction of the steps of a class token or a mean. The mel filters
are a buffer in the weights, computed by transformers for training, so that inference needs torch alone.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from legrad.atomic import draft_of
from legrad.embedded.concepts import NAMES
from legrad.embedded.model import EMBED_DIM
from legrad.inputs.spectrograms import Spectrogram

WEIGHTS = Path(__file__).parent.parent / "data" / "speech.safetensors"
RATE = 16_000  # Hz
WINDOW, HOP = 400, 160  # samples: 25 ms and 10 ms
BINS = WINDOW // 2 + 1
MELS, FRAMES = 64, 128
SAMPLES = FRAMES * HOP  # 1.28 s
LONGEST = 30_720  # samples, 1.92 s: of a whole phrase, of which the clip holds the end
TRAILING_SAMPLES = 8 * HOP  # samples of the clip after the last loud one
_SMOOTH = 5  # hops
TEMPERATURE = 0.05  # of the softmax over the cosines with all texts
DYNAMICS = 6.0  # decades of power below a clip's loudest cell; what is fainter counts as silence
TRUNK: dict[str, Any] = {"patch_size": (32, 8), "embed_dim": 128, "depth": 4, "num_heads": 4}
TOKENS = (MELS // TRUNK["patch_size"][0]) * (FRAMES // TRUNK["patch_size"][1])


class SpeechTower(nn.Module):
    """Waveforms -> embeddings in the space of the embedded model's images and texts.

    Attributes:
        mel_filters: (spectrum bins, mel filters).
        trunk: timm's vision transformer, its final norm included.
        head: all tokens, concatenated -> the predicted embedding.
        texts: (concepts, EMBED_DIM), the text embeddings of all concepts, normalised.
    """

    mel_filters: Tensor
    texts: Tensor
    window: Tensor

    def __init__(self) -> None:
        from timm.models.vision_transformer import VisionTransformer

        super().__init__()
        self.register_buffer("mel_filters", torch.zeros(BINS, MELS))
        self.register_buffer("texts", torch.zeros(len(NAMES), EMBED_DIM))
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.trunk = VisionTransformer(
            img_size=(MELS, FRAMES),
            in_chans=1,
            num_classes=0,
            global_pool="",
            class_token=False,
            **TRUNK,
        )
        self.head = nn.Linear(TOKENS * TRUNK["embed_dim"], EMBED_DIM)

    def spectrograms(self, waveforms: Tensor) -> Tensor:
        """Log-mel spectrograms relative to the loudest cell of each, so that the volume has no effect.

        Args:
            waveforms: (clips, SAMPLES) at RATE Hz.

        Returns:
            (clips, FRAMES, MELS) in [0, 2]; 0 is silence.
        """
        # one frame per hop, centred on the first sample of the hop
        padded = F.pad(waveforms, (WINDOW // 2, WINDOW // 2 - HOP))
        spectrum = torch.stft(padded, WINDOW, HOP, window=self.window, center=False, return_complex=True)
        power = spectrum.abs().square().transpose(1, 2) @ self.mel_filters
        decades = power.clamp(min=1e-20).log10()
        relative = (decades - decades.amax((1, 2), keepdim=True)).clamp(min=-DYNAMICS)
        return relative * (2 / DYNAMICS) + 2

    def forward(self, spectrograms: Tensor) -> Tensor:
        """(clips, FRAMES, MELS) -> (clips, EMBED_DIM), not normalised: the expected text embedding."""
        return self._expected_text(self.predict(spectrograms))

    def predict(self, spectrograms: Tensor) -> Tensor:
        """(clips, FRAMES, MELS) -> the head's prediction, (clips, EMBED_DIM), which the training loss takes."""
        tokens: Tensor = self.trunk.forward_features(spectrograms.transpose(1, 2)[:, None])
        prediction: Tensor = self.head(tokens.flatten(1))
        return prediction

    def read_out(self, tokens: Tensor) -> Tensor:
        """The output of the last block, (clips, TOKENS, width) -> the embedding, (clips, EMBED_DIM)."""
        return self._expected_text(self.head(self.trunk.norm(tokens).flatten(1)))

    def _expected_text(self, prediction: Tensor) -> Tensor:
        """The mean of all texts, weighted by the softmax of training: closer to the right one than the prediction."""
        cosines = F.normalize(prediction, dim=-1) @ self.texts.T
        return (cosines / TEMPERATURE).softmax(-1) @ self.texts

    def hear(self, waveforms: Sequence[NDArray[np.float32]]) -> Tensor:
        """Mono waveforms (samples,) at RATE Hz, of any lengths -> (waveforms, EMBED_DIM).

        Only SAMPLES of each are used: its end, see ``window_of``.
        """
        clips = torch.from_numpy(np.stack([window_of(waveform) for waveform in waveforms]))
        return self(self.spectrograms(clips.to(self.mel_filters)))

    def spectrogram(self, waveform: NDArray[np.float32]) -> Spectrogram:
        """The spectrogram of one waveform (samples,) as ``hear`` computes it, with its frequencies and times."""
        clip = torch.from_numpy(window_of(waveform))[None].to(self.mel_filters)
        hertz = torch.linspace(0, RATE / 2, BINS, device="cpu").to(self.mel_filters)
        centres = (hertz @ self.mel_filters) / self.mel_filters.sum(0)
        with torch.no_grad():
            values = self.spectrograms(clip)[0].cpu()
        start = start_of(waveform)
        skipped, first = max(0, -start) // HOP, max(0, start)
        frames = min(FRAMES - skipped, -(-(len(waveform) - first) // HOP))
        return Spectrogram(values, frames, HOP / RATE, first / RATE, tuple(centres.tolist()), skipped)


def window_of(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """SAMPLES of a waveform, whose last loud sound ends TRAILING_SAMPLES samples before the end of the window.

    So the tower need not learn names at every position; in the phrases a name comes last. Silence is added where the
    waveform ends.
    """
    start = start_of(waveform)
    padded = np.pad(waveform, (max(0, -start), max(0, start + SAMPLES - len(waveform))))
    return padded[max(0, start) :][:SAMPLES]


def start_of(waveform: NDArray[np.float32]) -> int:
    """Index of the window's first sample, negative if silence comes first.

    A hop is loud if its level in decibels is closer to the maximum than to the 10 % quantile.
    """
    hops = np.pad(waveform, (0, -len(waveform) % HOP)).reshape(-1, HOP)
    power = np.convolve(np.square(hops, dtype=np.float64).mean(1), np.full(_SMOOTH, 1 / _SMOOTH), "same")
    level = np.log10(np.maximum(power, power.max() * 10**-DYNAMICS))
    loud = level > (level.max() + np.quantile(level, 0.1)) / 2
    return (len(loud) - int(loud[::-1].argmax())) * HOP + TRAILING_SAMPLES - SAMPLES


def build() -> SpeechTower:
    """A tower with random weights, and mel filters by transformers, rounded to half precision as in the file."""
    from transformers.audio_utils import mel_filter_bank

    tower = SpeechTower()
    filters = mel_filter_bank(BINS, MELS, 40.0, RATE / 2, RATE, mel_scale="slaney")
    tower.mel_filters.copy_(torch.from_numpy(filters).half())
    return tower


def save(tower: SpeechTower, path: Path, card: dict[str, Any]) -> None:
    """Write half-precision weights with the model card in the file's metadata, atomically."""
    weights = {name: value.detach().half().contiguous().clone() for name, value in tower.state_dict().items()}
    with draft_of(path) as draft:
        save_file(weights, draft, metadata={"card": json.dumps(card)})
        draft.chmod(0o644)


def load(path: Path = WEIGHTS) -> SpeechTower:
    """The tower in float32 and evaluation mode."""
    tower = SpeechTower()
    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - not a dict
    tower.load_state_dict(weights)
    return tower.eval()


def card(path: Path = WEIGHTS) -> dict[str, Any]:
    """The model card that training wrote into the file: data, steps, time, scores."""
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["card"])
