"""A digest that tells the weights of models apart."""

import hashlib

import torch


def weights_digest(model: torch.nn.Module) -> str:
    """Tells weights apart: a digest of every parameter's and buffer's name, type, shape and values.

    No sums: their last digits depend on the number of threads.
    """
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
