"""Is a target there at all? A map has a peak for every text, also for what is not in the image.

    p = e^(k s) / (e^(k s) + N mean over the rivals of e^(k r))

s is the target's score, r are the scores that rivals get for the same image, k is the model's own temperature, and N
says how many things a target competes with. Rivals of a text are ``GENERIC`` prompts, which fit any image; rivals of a
class are the other classes (N is their number, so that p is the softmax probability).
"""

import math
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from legrad.errors import InputError

GENERIC = ("a photo", "an image", "a picture", "a photo of a", "an image of a", "a picture of a")
COMPETITORS = 100
"""How many things a text competes with: N."""
ABSENT = 0.5
"""Below this a target is taken for absent."""
GREY = 0.01
"""Below this figures grey a target out: it scores less than texts that name nothing. Of many classes: below chance."""
_TEMPERATURE = 100.0  # of cosine similarities, where CLIP's training ends

# explainer -> (version of its weights, directions of the generic prompts)
_DIRECTIONS: "weakref.WeakKeyDictionary[Any, tuple[Any, Tensor]]" = weakref.WeakKeyDictionary()


class Asker:
    """The explainer that made an explanation, as long as it lives; a copy or a pickle has none.

    Args:
        explainer: with ``embed`` and ``model``.
    """

    def __init__(self, explainer: Any = None) -> None:
        self._explainer = None if explainer is None else weakref.ref(explainer)

    def __reduce__(self) -> tuple[Any, ...]:
        return Asker, ()

    def generic(self) -> tuple[Tensor, float]:
        """Directions of the generic prompts (prompts, features), encoded once, and the model's temperature.

        Raises:
            InputError: the explainer is gone.
        """
        explainer = None if self._explainer is None else self._explainer()
        if explainer is None:
            raise InputError(
                "presence asks the model that explained about generic prompts: keep its explainer, and take presence "
                "before an explanation is saved and loaded"
            )
        from legrad.models.versions import weights_version

        version = weights_version(explainer.model)
        if explainer not in _DIRECTIONS or _DIRECTIONS[explainer][0] != version:
            _DIRECTIONS[explainer] = version, explainer.embed(list(GENERIC)).embeddings.detach().cpu()
        return _DIRECTIONS[explainer][1], temperature(explainer.model)


def temperature(model: Any) -> float:
    """What the model multiplies cosine similarities with."""
    scale = getattr(model, "logit_scale", None)
    if isinstance(scale, Tensor) and scale.numel() == 1 and bool(torch.isfinite(scale).all()):
        value = float(scale.detach())
        return math.exp(value) if 0 < value < 10 else _TEMPERATURE
    return _TEMPERATURE


class Present:
    """How sure it is that the targets of an explanation are there."""

    if TYPE_CHECKING:
        scores: Tensor
        valid: Tensor
        answers: Tensor | None
        named: Tensor | None
        asker: Any
        score_kinds: list[list[str]]

    def is_absent(self, image: int, target: int) -> bool:
        """Whether a target is so surely absent that figures grey it out; False where that is not known."""
        try:
            value = float(self.presence[image, target])
        except InputError:  # out of a file, or of an explainer that is gone
            return False
        kind = self.score_kinds[image][target] if self.score_kinds else ""
        classes = self.answers.shape[-1] if kind == "logit" and self.answers is not None else 1
        return value < min(GREY, 1 / classes)

    @property
    def presence(self) -> Tensor:
        """(images, targets) in [0, 1]: how far a target's score stands above what generic prompts get for this image.

        With the score s, the scores r of prompts that name nothing ("a photo of a", ...), and the model's own
        temperature k, p = e^(k s) / (e^(k s) + 100 mean e^(k r)): the probability that the model gives a text which
        competes with a hundred generic ones. Of a classifier's classes it is the softmax probability. NaN for targets
        that are no text or class (embeddings, images, sounds, contrasts, callables) and for targets that an image does
        not have. Below 0.5 a target is probably absent: its map shows where it would be.

        Raises:
            InputError: the explainer is gone, or the explanation came out of a file.
        """
        result = torch.full(self.scores.shape, torch.nan, dtype=torch.float64)
        named = torch.zeros_like(self.valid) if self.named is None else self.named & self.valid
        if self.answers is None:
            raise InputError(
                "this explanation does not hold the model's answers, so presence is not known: explain the image again"
            )
        if not bool(named.any()):
            return result
        answers, scores = self.answers.double(), self.scores.double()
        if any("logit" in row for row in self.score_kinds):
            result[named] = (scores - answers.logsumexp(-1, keepdim=True)).exp().clamp(max=1)[named]
            return result
        directions, factor = self.asker.generic()
        rivals = (factor * (answers @ directions.double().T)).logsumexp(-1) - math.log(len(directions))
        margin = factor * scores - rivals[:, None] - math.log(COMPETITORS)
        result[named] = margin.sigmoid()[named]
        return result
