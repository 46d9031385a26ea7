"""Rollouts that store the step at which a callback ends training, and that the next call of ``learn`` completes."""

from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit


class CompletedRollout:
    """
    Takes the places of ``callback`` and ``train_freq`` in SB3's ``collect_rollouts``, which returns before it stores the step
    at which a callback ends training. Here the callback's answer, or the exception that it raised, is held back until SB3 has
    stored the step and finds that ``frequency`` is reached.

    :param callback: The callback
    :param train_freq: How much to collect
    :param n_envs: Number of environments
    :param steps: Environment steps of this rollout before training was ended
    :param episodes: Episodes of this rollout before training was ended
    """

    def __init__(self, callback: BaseCallback, train_freq: TrainFreq, n_envs: int, steps: int, episodes: int) -> None:
        self.callback = callback
        self.train_freq = train_freq
        self.n_envs = n_envs
        self.steps = steps
        self.episodes = episodes
        self.continues = True
        self.error: BaseException | None = None  # that the callback has raised
        self.unit = train_freq.unit
        collected = steps // n_envs if self.unit == TrainFrequencyUnit.STEP else episodes
        self.frequency = max(train_freq.frequency - collected, 0)

    def on_rollout_start(self) -> None:
        """As the callback's."""
        self.callback.on_rollout_start()

    def update_locals(self, locals_: dict[str, Any]) -> None:
        """
        As the callback's.

        :param locals_: Local variables of ``collect_rollouts`` after a step
        """
        self.steps += self.n_envs
        self.episodes += int(locals_["dones"].sum())
        self.callback.update_locals({**locals_, "callback": self.callback, "train_freq": self.train_freq})

    def on_step(self) -> bool:
        """:return: True, so that SB3 stores the step"""
        try:
            self.continues = bool(self.callback.on_step())
        except BaseException as error:  # KeyboardInterrupt, too
            self.error, self.continues = error, False
        if not self.continues:
            self.frequency = 0
        return True

    def on_rollout_end(self) -> None:
        """As the callback's, unless that has ended training."""
        if self.continues:
            self.callback.on_rollout_end()
