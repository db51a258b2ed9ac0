"""Steps that all training shares: learning rates, updates, checkpoints."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from legrad.atomic import draft_of

Optimizers = Sequence[torch.optim.Optimizer]


def optimizers(
    parameters: Iterable[tuple[str, nn.Parameter]],
    muon_names: Sequence[str],
    learning_rate: float,
    muon_rate: float,
    weight_decay: float,
) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for some of the matrices (half the images of AdamW for the same loss).

    Args:
        parameters: names and parameters.
        muon_names: Muon gets the matrices with one of these in their name.
        learning_rate: of AdamW.
        muon_rate: of Muon; 0 to do without it.
        weight_decay: of all parameters except vectors.
    """
    named = list(parameters)
    muon = [p for name, p in named if muon_rate and p.ndim == 2 and any(part in name for part in muon_names)]
    muon_ids = {id(p) for p in muon}
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2 and id(p) not in muon_ids], "weight_decay": weight_decay},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    result: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)]
    if muon:
        result.append(torch.optim.Muon(muon, lr=muon_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
    return result


def learning_rates(optimizers: Optimizers) -> list[list[float]]:
    """The learning rate of every parameter group of every optimizer."""
    return [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]


def update(model: nn.Module, loss: Tensor, optimizers: Optimizers, rates: list[list[float]], factor: float) -> None:
    """One step of all optimizers down the gradient of the loss, whose norm is clipped to 1.

    Args:
        model: has the parameters.
        loss: a number with its graph.
        optimizers: all of them.
        rates: their learning rates, see ``learning_rates``.
        factor: on the learning rates.
    """
    for optimizer, group_rates in zip(optimizers, rates, strict=True):
        for group, rate in zip(optimizer.param_groups, group_rates, strict=True):
            group["lr"] = rate * factor
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically: an interrupted run leaves the one before."""
    with draft_of(path) as draft:
        torch.save(state, draft)


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state in a checkpoint, on the CPU; None if there is none."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None
