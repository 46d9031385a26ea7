"""How often logs are written."""

from typing import Any

from sb3_muzero.common.numeric import is_integer

MAX_STEPS_WITHOUT_LOG = 2_000
"""Environment steps without the end of an episode after which a log is written all the same."""


def parse_log_interval(log_interval: Any) -> tuple[int | None, float]:
    """
    :param log_interval: Argument of ``learn``: a number of episodes, a tuple of a number and its unit, "step" or "episode", or
        ``None`` for no logs
    :return: Episodes between two logs, ``None`` to count no episodes, and environment steps after which the next log is due
    :raises ValueError: for anything else
    """
    if log_interval is None:
        return None, float("inf")
    is_pair = isinstance(log_interval, tuple) and len(log_interval) == 2
    number, unit = log_interval if is_pair else (log_interval, "episode")
    if not is_integer(number) or number < 1 or unit not in ("step", "episode"):
        raise ValueError(
            "`log_interval` must be a number of episodes of at least 1, a tuple of a number and its unit like "
            f'`(1000, "step")` or `(4, "episode")`, or None for no logs, got {log_interval!r}'
        )
    return (None, number) if unit == "step" else (number, MAX_STEPS_WITHOUT_LOG)
