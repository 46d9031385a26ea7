"""What environments say must be numbers to learn from."""

from typing import Any

import numpy as np

LARGEST = 1e18
"""The model computes in float32, and variances are squares."""


def check_finite(what: str, array: Any, step: int, env: int | None = None) -> None:
    """
    :param what: What the array is called
    :param array: Of all environments, shape ``[n_envs, ...]``, a dictionary of such, or of the one environment ``env``
    :param step: Environment steps so far
    :param env: The environment
    :raises ValueError: naming environment and step, before anything non-finite is stored or learned
    """
    if isinstance(array, dict):
        for key, part in array.items():
            check_finite(f"{what} {key!r}", part, step, env)
        return
    array = np.asarray(array)
    finite = np.abs(array, dtype=np.float64) <= LARGEST if array.dtype.kind == "f" else np.True_
    if not finite.all():
        if env is None:
            env = int(np.flatnonzero(~finite.reshape(len(array), -1).all(axis=1))[0])
            array = array[env]
        raise ValueError(f"Environment {env} gave a non-finite {what} (or beyond 1e18) at step {step}: {array}")
