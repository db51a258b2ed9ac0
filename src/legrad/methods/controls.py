"""Sanity baselines that ignore the model: a method that is no better explains nothing."""

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor

from legrad.methods.call import MethodInput, mean_over_patches, require_images
from legrad.methods.catalogue import about
from legrad.methods.method import Method

_SIGMA = 0.5  # of the centre prior; 1 is the distance from the centre to an edge
_SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


def random(call: MethodInput) -> Tensor:
    """Uniform noise in [0, 1), seeded by the image's own pixels: the same image always gets the same map."""
    maps = []
    for pixels in call.batch:
        content = pixels.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
        seed = int.from_bytes(hashlib.blake2b(content, digest_size=7).digest(), "big")
        generator = torch.Generator("cpu").manual_seed(seed)
        maps.append(torch.rand(call.anatomy.grid, generator=generator, device="cpu", dtype=torch.float32))
    return call.same_for_all_targets(torch.stack(maps))


RANDOM = Method(
    **about("random"),
    function=random,
    needs="nothing",
    cost="none",
    targets=False,
)


def uniform(call: MethodInput) -> Tensor:
    """One everywhere. A flat map is returned as zeros, with a ``FlatMapWarning``."""
    return call.same_for_all_targets(torch.ones(len(call.batch), *call.anatomy.grid, device="cpu", dtype=torch.float32))


UNIFORM = Method(
    **about("uniform"),
    function=uniform,
    needs="nothing",
    cost="none",
    targets=False,
)


def centre(call: MethodInput) -> Tensor:
    """A Gaussian around the middle of the grid's last two axes."""
    rows, cols = call.anatomy.grid[-2:]
    y, x = ((2 * torch.arange(n, device="cpu", dtype=torch.float32) + 1) / n - 1 for n in (rows, cols))
    gaussian = torch.exp(-(y[:, None] ** 2 + x**2) / (2 * _SIGMA**2))
    return call.same_for_all_targets(gaussian.expand(len(call.batch), *call.anatomy.grid))


CENTRE = Method(
    **about("centre"),
    function=centre,
    needs="nothing",
    cost="none",
    targets=False,
)


def edges(call: MethodInput) -> Tensor:
    """Strength of the edges: length of the Sobel gradient of the grey image, mean over each patch."""
    require_images(call, "edges")
    grey = call.batch.to(torch.promote_types(call.batch.dtype, torch.float32)).mean(1, keepdim=True)
    sobel = torch.tensor(_SOBEL, dtype=grey.dtype, device=grey.device) / 8
    kernels = torch.stack([sobel, sobel.T])[:, None]
    gradient = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), kernels)
    return call.same_for_all_targets(mean_over_patches(call, gradient.norm(dim=1)))


EDGES = Method(
    **about("edges"),
    function=edges,
    needs="nothing",
    cost="none",
    targets=False,
)
