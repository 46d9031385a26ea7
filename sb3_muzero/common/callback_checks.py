"""Whether a callback can work where it is."""

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EventCallback


def check_callback(callback: BaseCallback, algorithm: type[BaseAlgorithm], frequency: str) -> None:
    """
    :param callback: A callback that needs the start and the end of each rollout
    :param algorithm: The algorithm that it is made for
    :param frequency: Its argument that says how often it acts
    :raises ValueError: for another algorithm, and inside an ``EventCallback``, which passes on steps but no rollouts
    """
    name = type(callback).__name__
    if not isinstance(callback.model, algorithm):
        raise ValueError(f"{name} is made for {algorithm.__name__}, got {type(callback.model).__name__}")
    if isinstance(callback.parent, EventCallback):
        raise ValueError(f"{name} can't be in {type(callback.parent).__name__}: give it its own `{frequency}`")
