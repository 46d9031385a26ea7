"""Save and restore the states of the random number generators that SB3 seeds."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th

from sb3_muzero.common.serialization import validate_number


def random_state() -> dict[str, Any]:
    """:return: States of the global generators of NumPy, Python and PyTorch"""
    return {
        "numpy": np.random.get_state(legacy=False),
        "python": random.getstate(),
        "torch": th.get_rng_state(),
        "cuda": th.cuda.get_rng_state_all() if th.cuda.is_initialized() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """
    :param state: Result of ``random_state``
    :raises ValueError: for an invalid state
    """
    (version, words, gauss), mersenne_twister = state["python"], state["numpy"]["state"]
    validate_number("pos", mersenne_twister["pos"], int, 0, 624)  # NumPy does not check it
    if not (mersenne_twister["key"][1:].any() and any(words[1:-1]) and state["torch"].any()):
        raise ValueError("random states must not be zero")  # rejection sampling would never end
    np.random.set_state(state["numpy"])
    random.setstate((version, tuple(words), gauss))
    th.set_rng_state(state["torch"])
    for device, device_state in enumerate(state["cuda"][: th.cuda.device_count()]):
        th.cuda.set_rng_state(device_state, device)


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """:return: Context manager that restores the states of all generators on exit"""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
