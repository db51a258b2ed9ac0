"""Prompted by a sound or a spoken word: ADE20K Sound- and Speech-Prompted, with DenseAV's scorer."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from legrad.bench.benchmark import Metric, switch
from legrad.bench.model import ModelUnderTest
from legrad.bench.summaries import Item, Summary, mean
from legrad.datasets import ADE20KPrompted, Dataset, Sample
from legrad.embedded.speech import synthesis
from legrad.errors import InputError
from legrad.inputs import sounds
from legrad.metrics import audio
from legrad.metrics.bootstrap import Statistic
from legrad.metrics.framing import frame_image, frame_mask
from legrad.metrics.ranges import is_flat
from legrad.targets.kinds import Audio

WIDENED = 0.2  # seconds on both sides of a spoken word, as published
_TABLES = 64  # one for every method and normalisation of a run


class _Prompts(tuple[Item, ...]):
    """Items that are told apart by being the same objects: comparing their content would take longer than its use."""

    def __hash__(self) -> int:
        return hash(tuple(map(id, self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Prompts) and tuple(map(id, self)) == tuple(map(id, other))


@functools.lru_cache(_TABLES)
def _table(items: _Prompts, normalisation: audio.Normalisation) -> audio.Table:
    """Both metrics of a normalisation need the same sorted pixels."""
    return audio.Table(
        [[audio.Prompted.from_json(prompt) for prompt in item["prompts"]] for item in items], normalisation
    )


def _pooled(metric: Literal["map", "miou"], normalisation: audio.Normalisation) -> Summary:
    def of(items: Sequence[Item]) -> Statistic:
        table = _table(_Prompts(items), normalisation)
        return table.map if metric == "map" else table.miou

    return of


def prevalence(items: Sequence[Item]) -> Statistic:
    """Share of a class's pixels that are its own, mean over classes: mAP, and least mIoU, of a map without contrast."""
    return _table(_Prompts(items), "dataset").prevalence


@dataclass(frozen=True)
class AudioPrompted:
    """Every prompt of an image is one map against one mask; all prompts of a class are pooled.

    Attributes:
        timing: "basic": the whole clip is heard. "advanced": the spoken word, which DenseAV's code does for speech.
        prompt: "audio", or "text" to ask by the class's name instead, for comparison.
        geometry: "crop": image and mask, short side to S, then the centre, as published. "squash": both.
    """

    timing: Literal["basic", "advanced"] = field(
        default="basic", metadata=switch(f"Hear the whole clip, or the spoken word alone, widened by {WIDENED} s.")
    )
    prompt: Literal["audio", "text"] = field(
        default="audio", metadata=switch("Ask by the clip, or by the class's name, for comparison.")
    )
    geometry: Literal["crop", "squash"] = field(default="crop", metadata=switch("How image and mask become square."))
    name: ClassVar[str] = "audio"
    batch: ClassVar[int] = 8
    question: ClassVar[str] = "Asked by a sound or a spoken word, does the map fall on what is heard?"
    reading: ClassVar[str] = (
        "All pixels of all prompts of a class are pooled; AP is their average precision, IoU the best of 20 "
        "thresholds, chosen for each class on the evaluated data itself; both are means over classes. Pooled pixels: "
        "scale matters: scores are stretched over the whole data set, as DenseAV's code does, or image by image, "
        "as LeGrad's maps usually are. Chance is the share of pixels that are the object's."
    )
    metrics: ClassVar[Mapping[str, Metric]] = {
        "miou": Metric("mIoU", _pooled("miou", "dataset"), "higher", "stretched over the data set", prevalence),
        "map": Metric("mAP", _pooled("map", "dataset"), "higher", "stretched over the data set", prevalence),
        "miou_image": Metric("mIoU, per image", _pooled("miou", "image"), "higher", "stretched by itself", prevalence),
        "map_image": Metric("mAP, per image", _pooled("map", "image"), "higher", "stretched by itself", prevalence),
        "flat": Metric("flat maps", mean(lambda item: item["flat"]), None, "share of maps without contrast"),
    }

    def protocol(self) -> Mapping[str, Any]:
        """Switches and conventions."""
        return {
            **asdict(self),
            "normalisation": "dataset and image",
            "AP": "exact, pixels of all prompts of a class pooled",
            "IoU": f"best of {audio.THRESHOLDS} thresholds from the class's least to its greatest score, strict >",
            "mean": "over classes",
            "intervals": f"bootstrap over items; scores by {audio.BINS} quantiles, thresholds of all the data",
            "widened": WIDENED if self.timing == "advanced" else None,
            "resolution": "the model's input",
        }

    def prepare(self, model: ModelUnderTest, data: Dataset) -> None:
        """The model must hear, unless texts ask, which need names; words need their times, voices who speaks."""
        if self.prompt == "audio" and not model.hears:
            raise InputError(
                "this model embeds no sounds in the space of its images; take one that does, such as "
                "--model embedded:speech, or ask by names: --prompt text"
            )
        if self.timing == "advanced" and data.facts.get("prompt") == "sound":
            raise InputError("a prompt that is a sound has no time of a word; leave --timing basic")
        voices = str(data.facts.get("voices", ""))
        if self.timing == "advanced" and voices:
            raise InputError("these clips hold the word alone and no time of it; leave --timing basic")
        if voices.startswith("espeak-ng"):
            synthesis.check()
        numbered = isinstance(data, ADE20KPrompted) and not model.settings["names"]
        if self.prompt == "text" and numbered and str(data[0].label).isdecimal():
            raise InputError(
                f"the classes of {data.name} are numbers, which are no prompts: give their names with --names FILE, or "
                "ask by the clips (--prompt audio)"
            )

    def measure(self, model: ModelUnderTest, samples: Sequence[Sample], method: str) -> list[dict[str, Any]]:
        """ "prompts": ``Prompted`` of every clip, and "flat", the share of maps without contrast."""
        clips = [_clips(sample) for sample in samples]
        targets = [
            [self._target(model, sample, name, clip) for name, clip in clips_by_name.items()]
            for sample, clips_by_name in zip(samples, clips, strict=True)
        ]
        images = [frame_image(sample.image, model.size, self.geometry) for sample in samples]
        scores = []
        for sample, names, maps in zip(samples, clips, model.grids(images, targets, method), strict=True):
            masks = [frame_mask(sample.masks[name], model.size, self.geometry) for name in names]
            prompts = [
                audio.Prompted(name, relevance.numpy(), mask)
                for name, relevance, mask in zip(names, maps, masks, strict=True)
            ]
            flat = sum(is_flat(prompt.relevance) for prompt in prompts) / len(prompts)
            scores.append({"prompts": [prompt.to_json() for prompt in prompts], "flat": flat})
        return scores

    def _target(self, model: ModelUnderTest, sample: Sample, name: str, clip: Any) -> Any:
        if self.prompt == "text":
            return model.classes.target(name)
        # the same clip in another image is not heard, or warned of, again
        which = clip if isinstance(clip, str) else f"{sample.key}, {name}"
        timing = sample.extra.get("timing") if self.timing == "advanced" else None
        return model.heard((which, str(timing)), lambda: self._heard(sample, clip))

    def _heard(self, sample: Sample, clip: Any) -> Audio:
        """The clip, or its part with the spoken word."""
        if self.timing == "basic":
            return Audio(clip)
        timing = sample.extra.get("timing")
        if timing is None:
            raise InputError(f"{sample.key} does not say when its word is spoken; take --timing basic")
        waveform, rate, _ = sounds.opened(clip, 0)
        start, end = max(0.0, timing[0] - WIDENED), min(waveform.shape[1] / rate, timing[1] + WIDENED)
        return Audio((waveform, rate), start=start, end=end)


def _clips(sample: Sample) -> dict[str, Any]:
    """What ``Audio`` takes, by the class that it stands for.

    Raises:
        InputError: a sample without a clip.
    """
    clips = dict(sample.extra.get("clips", {}))
    if "audio" in sample.extra:
        clips[str(sample.label)] = sample.extra["audio"]
    if not clips:
        raise InputError(f"{sample.key} has no clip")
    return clips
