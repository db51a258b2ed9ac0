"""How much goes into one pass: chosen from free memory, halved when it was too much after all."""

import gc
import math
import warnings
from pathlib import Path

import torch

from legrad.errors import InputError, LeGradError
from legrad.models.anatomy import ViTAnatomy

_UNKNOWN = 4 << 30  # free bytes, where nobody tells
# more pictures at once bring no more speed
_MOST_PICTURES = {"cuda": 256}
_MOST_PICTURES_ELSEWHERE = 32
_ACTIVATIONS = 8  # of a chunk inside a layer that are alive at once
_HEADS = 16  # of models that write attention out, roughly


class Budget:
    """Pictures and targets per pass.

    Args:
        anatomy: for the input's size.
        targets: how many there are.
        layers: how many are explained.
        memory: "auto", or bytes that explaining may take beyond the model.

    Attributes:
        images: pictures per pass.
        targets: targets per pass.
        defer: there is room to keep what all layers need until the model's answer is known.
        numbers: most numbers per activation that a chunk inside a layer may hold.
    """

    def __init__(self, anatomy: ViTAnatomy, targets: int, layers: int, memory: str | int) -> None:
        budget = memory if isinstance(memory, int) else free_bytes(anatomy.device) // 2
        most = _MOST_PICTURES.get(anatomy.device.type, _MOST_PICTURES_ELSEWHERE)
        working, keeping = _per_picture(anatomy)
        self.images = max(1, min(most, budget // working))
        self.targets = targets
        self.max_numel = max(1, budget // (_ACTIVATIONS * 4))
        # what is kept for every layer leaves room for enough pictures to keep the matrix products efficient
        together = budget // (working + layers * keeping)
        self.keep_until_answer = together >= min(8, self.images)
        self._warned = False
        self._deferred = min(self.images, together)

    def images_per_pass(self, late: bool) -> int:
        """Pictures per pass; ``late`` if targets wait for the model's answer."""
        return self._deferred if late and self.keep_until_answer else self.images

    def halve(self, images: int, late: bool, error: BaseException) -> None:
        """After a pass over ``images`` pictures ran out of memory: do with less, and say so once.

        Raises:
            LeGradError: there is nothing left to halve.
        """
        self.max_numel = max(1, self.max_numel // 2)
        self.images = min(self.images, images)
        if late and self.keep_until_answer:
            self.keep_until_answer = False
        elif images > 1:
            self.images = images // 2
        elif self.targets > 1:
            self.targets = self.targets // 2
        else:
            raise LeGradError(
                "out of memory with one picture and one target; try a smaller size=, half precision, or a device with "
                "more memory"
            ) from error
        if not self._warned:
            self._warned = True
            warnings.warn(
                "out of memory: going on with smaller chunks. memory= (bytes) chooses them small from the start",
                stacklevel=4,
            )
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def check_memory(memory: str | int) -> None:
    """Raise ``InputError`` unless it is "auto" or a positive number of bytes."""
    if memory != "auto" and (not isinstance(memory, int) or isinstance(memory, bool) or memory <= 0):
        raise InputError(f"memory is 'auto' or a positive number of bytes, got {memory!r}")


def images_per_forward(anatomy: ViTAnatomy) -> int:
    """Images of one plain forward pass, within half of the free memory."""
    return Budget(anatomy, 1, 1, "auto").images


def ran_out(error: BaseException) -> bool:
    """Is this an allocation that failed?"""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    texts = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def free_bytes(device: torch.device) -> int:
    """Memory that could be allocated now; on a processor also within the limit of its control group."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit.isdigit():
            found.append(int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return max(0, min(found, default=_UNKNOWN))


def _per_picture(anatomy: ViTAnatomy) -> tuple[int, int]:
    """Bytes that one block takes while it is worked on, and those that it keeps for later; rough upper bounds."""
    tokens = math.prod(anatomy.grid) + anatomy.num_prefix_tokens
    shapes = [weight.shape for weight in anatomy.blocks[0].parameters() if weight.ndim == 2]
    hidden = max((max(shape) for shape in shapes), default=tokens)
    dim = max((min(shape) for shape in shapes), default=tokens)
    size = anatomy.dtype.itemsize
    maps = 3 * _HEADS * tokens**2 * size if anatomy.attention == "softmax" else 0
    return tokens * (3 * hidden + 10 * dim) * size + maps + 1, tokens * (2 * hidden + 6 * dim) * size + maps
