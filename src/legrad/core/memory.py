"""How much goes into one pass: chosen from free memory, halved when it was too much after all.

All estimates of memory stand here: of LeGrad's streaming pass, of methods that keep the graph of the whole model, and
of a plain forward pass. They are rough upper bounds.
"""

import errno
import gc
import itertools
import logging
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil
import torch
from torch import nn

from legrad.checks import brief, whole_number
from legrad.errors import InputError, LeGradError, warn
from legrad.models.anatomy import ViTAnatomy

_logger = logging.getLogger(__name__)

# images of one pass at most, by device: larger batches are not faster
_MAX_IMAGES = {"cuda": 256}
_MAX_IMAGES_ELSEWHERE = 32
_MAX_TEXTS = 256  # of one pass of the text tower
_ACTIVATIONS = 8  # of a chunk inside a layer that are alive at once
_HEADS = 16  # of models that write attention out, roughly
_HEAD_DIM = 64  # of all others, roughly
_MAPS = 5  # attention maps of one layer, in float32, that a method on attention maps holds at once
# in messages of CPU allocators, CUDA and its libraries, MPS, and C++
_ALLOCATION_FAILED = (
    "out of memory",
    "allocate memory",
    "not enough memory",
    "failed to allocate",
    "invalid buffer size",
    "status_alloc_failed",
    "bad_alloc",
)
_GRAPH = 2  # bytes of a whole graph beside those that its blocks keep: 1.3 measured, 1.6 with the rules of LRP


class Budget:
    """Images and targets per pass.

    Args:
        anatomy: for the input's size.
        targets: how many there are.
        layers: how many are explained.
        memory: "auto", or bytes that explaining may take beyond the model.

    Attributes:
        images: per pass.
        targets: per pass.
        max_numel: most numbers per activation that a chunk inside a layer may hold.
        keep_until_answer: there is room to keep what all layers need until the model's answer is known.
    """

    def __init__(self, anatomy: ViTAnatomy, targets: int, layers: int, memory: str | int) -> None:
        budget = allowed_bytes(anatomy.device, memory)
        block = block_bytes(anatomy)
        max_images = _MAX_IMAGES.get(anatomy.device.type, _MAX_IMAGES_ELSEWHERE)
        self.images = max(1, min(max_images, budget // block.working))
        self.targets = targets
        self.max_numel = max(1, budget // (_ACTIVATIONS * 4))
        # what is kept for every layer leaves room for enough images to keep the matrix products efficient
        images_with_layers = budget // (block.working + layers * block.backward)
        self.keep_until_answer = images_with_layers >= min(8, self.images)
        self._images_until_answer = min(self.images, images_with_layers)
        self._warned = False

    def images_per_pass(self, needs_answer: bool) -> int:
        """Images per pass; ``needs_answer`` if targets wait for the model's answer."""
        return self._images_until_answer if needs_answer and self.keep_until_answer else self.images

    def halve(self, images: int, needs_answer: bool, error: BaseException) -> None:
        """After a pass over ``images`` images ran out of memory: do with less, and say so once.

        Raises:
            LeGradError: there is nothing left to halve.
        """
        self.max_numel = max(1, self.max_numel // 2)
        self.images = min(self.images, images)
        if needs_answer and self.keep_until_answer:
            self.keep_until_answer = False
        elif images > 1:
            self.images = images // 2
        elif self.targets > 1:
            self.targets = self.targets // 2
        else:
            raise LeGradError(
                "out of memory with one image and one target; try a smaller size=, half precision, or a device with "
                "more memory"
            ) from error
        _logger.info(
            "out of memory with %d images: going on with at most %d, %d targets", images, self.images, self.targets
        )
        if not self._warned:
            self._warned = True
            warn("out of memory: going on with smaller chunks. memory= (bytes) chooses them small from the start")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def check_memory(memory: Any) -> Literal["auto"] | int:
    """The value of an argument; raises ``InputError`` unless it is "auto" or a positive number of bytes."""
    if isinstance(memory, str) and memory == "auto":
        return "auto"
    number = whole_number(memory)
    if number is None or number <= 0:
        raise InputError(f"memory is 'auto' or a positive whole number of bytes, got {brief(memory)}")
    return number


def images_per_forward(anatomy: ViTAnatomy) -> int:
    """Images of one plain forward pass, within half of the free memory."""
    return Budget(anatomy, 1, 1, "auto").images


def images_per_whole_pass(anatomy: ViTAnatomy, graph: bool, memory: str | int) -> int:
    """Images of one pass of a method that looks at attention maps.

    Args:
        anatomy: for the input's size.
        graph: whether the method keeps the graph of all blocks.
        memory: "auto" (half of what is free), or bytes.
    """
    block = block_bytes(anatomy)
    heads = max(1, block.dim // _HEAD_DIM)
    maps = _MAPS * heads * block.tokens**2 * torch.float32.itemsize
    per_image = block.working + maps + (_GRAPH * len(anatomy.blocks) * block.backward if graph else 0)
    return max(1, allowed_bytes(anatomy.device, memory) // per_image)


def texts_per_forward(model: nn.Module, tower: nn.Module, tokens: int, memory: str | int) -> int:
    """Texts of one pass of the text tower, estimated from the shapes of the weights outside the vision tower.

    Args:
        model: the whole model.
        tower: its vision tower.
        tokens: of each text.
        memory: "auto" (half of what is free), or bytes.
    """
    others = {id(weight) for weight in tower.parameters()}
    others |= {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    weights = [weight for weight in model.parameters() if weight.ndim == 2 and id(weight) not in others]
    dim = max((min(weight.shape) for weight in weights), default=tokens)
    # a classifier over the vocabulary is no hidden layer
    hidden = min(8 * dim, max((max(weight.shape) for weight in weights), default=dim))
    size = max((weight.dtype.itemsize for weight in weights), default=4)
    maps = 3 * max(1, dim // _HEAD_DIM) * tokens**2 * torch.float32.itemsize
    per_text = tokens * (3 * hidden + 10 * dim) * size + maps
    device = next(itertools.chain(model.parameters(), model.buffers())).device
    return max(1, min(_MAX_TEXTS, allowed_bytes(device, memory) // per_text))


class BlockBytes(NamedTuple):
    """Memory of one image in one block.

    Attributes:
        working: bytes that are alive while the block is worked on, at least 1.
        backward: bytes that the block keeps for its backward pass.
        tokens: how many, prefix included.
        dim: of a token.
    """

    working: int
    backward: int
    tokens: int
    dim: int


def block_bytes(anatomy: ViTAnatomy) -> BlockBytes:
    """Estimate what an image takes in a block, from the shapes of the first block's weights."""
    tokens = math.prod(anatomy.grid) + anatomy.num_prefix_tokens
    shapes = [weight.shape for weight in anatomy.blocks[0].parameters() if weight.ndim == 2]
    hidden = max((max(shape) for shape in shapes), default=tokens)
    dim = max((min(shape) for shape in shapes), default=tokens)
    size = anatomy.dtype.itemsize
    maps = 3 * _HEADS * tokens**2 * size if anatomy.attention == "softmax" else 0
    return BlockBytes(
        working=tokens * (3 * hidden + 10 * dim) * size + maps + 1,
        backward=tokens * (2 * hidden + 6 * dim) * size + maps,
        tokens=tokens,
        dim=dim,
    )


def allowed_bytes(device: torch.device, memory: str | int) -> int:
    """Bytes that a pass may take: ``memory`` itself, or half of what is free for "auto"."""
    return memory if isinstance(memory, int) else free_bytes(device) // 2


def free_bytes(device: torch.device) -> int:
    """Memory that could be allocated now; on the CPU also within the limit of the control group (containers)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    available = int(psutil.virtual_memory().available)
    in_group = _bytes_left_in_control_group(Path("/sys/fs/cgroup"))
    return max(0, available if in_group is None else min(available, in_group))


def _bytes_left_in_control_group(group: Path) -> int | None:
    """Of version 2; None without a limit, and where there are no control groups."""
    try:
        limit = (group / "memory.max").read_text().strip()
        return int(limit) - int((group / "memory.current").read_text()) if limit.isdigit() else None
    except (OSError, ValueError):
        return None


def ran_out(error: BaseException) -> bool:
    """Is this an allocation that failed? By type or, where a device has no type of its own, by its text."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _ALLOCATION_FAILED)
