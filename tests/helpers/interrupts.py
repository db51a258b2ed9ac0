"""Ctrl-C at every point where Python looks for signals: on entering and leaving a function.

A profile function sees these points and raises ``KeyboardInterrupt`` at one of them, as a signal's handler would.
Instead of a sample ``LEGRAD_INTERRUPTS=places`` tries every place in the code once, ``LEGRAD_INTERRUPTS=all`` every
point of a call.
"""

import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

EVENTS = ("call", "return", "c_call", "c_return")


def places(function: Callable[[], Any]) -> tuple[int, list[int]]:
    """How many points a call has, and the first point of each place in the code."""
    seen, first = 0, {}

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal seen
        if event in EVENTS and frame.f_code.co_filename != __file__:
            first.setdefault((frame.f_code, frame.f_lineno, event), seen)
            seen += 1

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return seen, list(first.values())


def interrupted(function: Callable[[], Any], point: int) -> str:
    """Call the function and interrupt it at one point.

    Returns:
        Where that was; "" if the call ended before.

    Raises:
        AssertionError: something else than the interrupt came out.
    """
    seen, where = -1, ""

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal seen, where
        if event not in EVENTS or frame.f_code.co_filename == __file__:
            return
        seen += 1
        if seen == point:
            sys.setprofile(None)
            code = frame.f_code
            name = getattr(argument, "__qualname__", "") if event.startswith("c_") else ""
            where = f"{os.path.basename(code.co_filename)}:{frame.f_lineno} {code.co_qualname} {event} {name}"
            raise KeyboardInterrupt

    sys.setprofile(profile)
    try:
        function()
    except KeyboardInterrupt:
        return where
    except BaseException as error:
        sys.setprofile(None)
        raise AssertionError(f"interrupted at {where}: {type(error).__name__}: {error}") from error
    finally:
        sys.setprofile(None)
    return f"{where} (swallowed)" if where else ""


def sample(function: Callable[[], Any], size: int) -> Sequence[int]:
    """Points of a call to try: about ``size`` of its places, or as many as the environment says."""
    total, first = places(function)
    wanted = os.environ.get("LEGRAD_INTERRUPTS")
    if wanted == "all":
        return range(total)
    return first if wanted == "places" else first[:: max(1, len(first) // size)]


def state(model: torch.nn.Module) -> dict[str, Any]:
    """Whatever an interrupt might leave behind."""
    from legrad.core import state as core_state
    from legrad.core import undo

    tensors = [tensor for m in model.modules() for tensor in (*m._parameters.values(), *m._buffers.values())]
    return {
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._forward_pre_hooks_with_kwargs))
            for m in model.modules()
        ],
        "training": [m.training for m in model.modules()],
        "attributes": [sorted(k for k in vars(m)) for m in model.modules()],
        "tensors": [(id(tensor), getattr(tensor, "dtype", None)) for tensor in tensors],
        "fused": [getattr(m, "fused_attn", None) for m in model.modules()],
        "checkpointing": [getattr(m, "grad_checkpointing", None) for m in model.modules()],
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "modes": torch._C._len_torch_function_stack(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "inside": len(core_state._fused_switch.inside),
        "borrowed": (len(undo._thread.borrowed), undo._thread.open_calls),
        "rng": hash(tuple(torch.get_rng_state().tolist())),
        "locked": [bool(lock._is_owned()) for lock in list(core_state._locks.values())],
    }


def held_elsewhere(lock: Any) -> bool:
    """Whether a lock cannot be had by another thread."""
    had: list[bool] = []

    def take() -> None:
        had.append(lock.acquire(timeout=0.2))
        if had[0]:
            lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return not had[0]
