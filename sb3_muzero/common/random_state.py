"""States of all random generators that SB3 seeds."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th

from sb3_muzero.common.serialization import validate_array, validate_number


def random_state() -> dict[str, Any]:
    """:return: States of all random generators that SB3 seeds"""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    return {
        "numpy": {"kind": kind, "keys": keys, "rest": [position, has_gauss, gauss]},
        "python": {"version": version, "internal": np.array(internal, np.uint64), "gauss": gauss_next},
        "torch": th.get_rng_state(),
        "cuda": th.cuda.get_rng_state_all() if th.cuda.is_initialized() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """
    :param state: What ``random_state`` gave
    :raises ValueError: for one that no generator can be in: from zeros alone follow zeros for ever
    """
    mersenne_twister = np.empty(624, np.uint32)
    keys, rest, python = state["numpy"]["keys"], state["numpy"]["rest"], state["python"]
    validate_array("numpy's random state", keys, mersenne_twister)
    validate_number("numpy's place in its random state", rest[0], int, 0, len(mersenne_twister))
    if not (keys[1:].any() and python["internal"][1:-1].any() and state["torch"].any()):
        raise ValueError("random states must not be zero")
    np.random.set_state((state["numpy"]["kind"], keys, *rest))
    random.setstate((python["version"], tuple(int(word) for word in python["internal"]), python["gauss"]))
    th.set_rng_state(state["torch"])
    for device, kept in enumerate(state["cuda"][: th.cuda.device_count()]):
        th.cuda.set_rng_state(kept, device)


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """:return: Context that leaves all random generators as they were"""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
