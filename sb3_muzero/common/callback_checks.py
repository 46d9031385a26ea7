"""Checks for callbacks that depend on the start and the end of rollouts."""

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EventCallback


def check_callback(callback: BaseCallback, algorithm: type[BaseAlgorithm], frequency: str) -> None:
    """
    Check that a callback supports the algorithm and receives all events.

    :param callback: Callback to check
    :param algorithm: Supported algorithm
    :param frequency: Name of the callback's argument that sets how often it is triggered
    :raises ValueError: for another algorithm, or if the parent is an ``EventCallback``, which forwards no rollout events
    """
    name = type(callback).__name__
    if not isinstance(callback.model, algorithm):
        raise ValueError(f"{name} is made for {algorithm.__name__}, got {type(callback.model).__name__}")
    if isinstance(callback.parent, EventCallback):
        raise ValueError(f"{name} can't be in {type(callback.parent).__name__}: give it its own `{frequency}`")
