"""Warnings about runs that would not do what their users expect: endless episodes, and next to no updates."""

import math
import warnings

import numpy as np
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_muzero.common.time_limits import MAX_EPISODE_STEPS, has_time_limit

FEW_UPDATES = 0.01
"""Gradient updates per environment step below which there is a warning."""

WRAP_IT = "if its episodes may not end by themselves, wrap it in `gymnasium.wrappers.TimeLimit(env, max_episode_steps=...)`"


class RunWarnings:
    """Gives one warning on each topic."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def warn(self, topic: str, message: str | None) -> None:
        """
        :param topic: What it is about
        :param message: The warning, ``None`` for none
        """
        if message is not None and topic not in self._given:
            self._given.add(topic)
            warnings.warn(message)

    def check_time_limit(self, env: VecEnv | None) -> None:
        """
        Warn of a registered single-player task without time limit.

        :param env: Training environments, of which those in this process are looked at
        """
        for single in env.unwrapped.envs if env is not None and type(env.unwrapped) is DummyVecEnv else []:
            task = single.unwrapped
            if task.spec is not None and not getattr(task, "two_player", False) and not has_time_limit(single):
                self.warn(
                    "time limit",
                    f"`env` {task.spec.id} has no time limit: {WRAP_IT}. SB3's `evaluate_policy` and `EvalCallback` wait "
                    f"until episodes end",
                )

    def check_episode_steps(self, steps: np.ndarray) -> None:
        """
        Warn of an episode that does not end.

        :param steps: Steps of the running episodes, shape ``[n_envs]``
        """
        if steps.max() >= MAX_EPISODE_STEPS:
            self.warn(
                "episode steps",
                f"An episode of environment {steps.argmax()} has not ended after {steps.max()} steps: {WRAP_IT}",
            )

    def check_updates(self, model: OffPolicyAlgorithm, total_timesteps: int, reset_num_timesteps: bool) -> None:
        """
        Warn of fewer than one update per 100 environment steps, unless ``gradient_steps=0`` asks for none.

        :param model: Model that is about to learn
        :param total_timesteps: Environment steps that it learns for
        :param reset_num_timesteps: Whether steps are counted from 0, so that ``learning_starts`` are among them
        """
        assert isinstance(model.train_freq, TrainFreq)
        (frequency, unit), updates = model.train_freq, model.gradient_steps
        steps = frequency * model.n_envs if unit == TrainFrequencyUnit.STEP else 1  # the least that an episode can have
        rollouts = math.ceil(total_timesteps / steps) if total_timesteps < float("inf") else total_timesteps
        learning = max(rollouts * steps - model.learning_starts, 0) if reset_num_timesteps else total_timesteps
        if 0 < updates < FEW_UPDATES * steps:
            message = (
                f"The settings leave fewer than one update per 100 environment steps: `train_freq={frequency}` counts a step "
                f"of all {model.n_envs} environments as one, so `gradient_steps={updates}` follow {steps} environment steps. "
                f"Set `gradient_steps={steps // 4}` for one update per 4 environment steps, `gradient_steps=-1` for one per "
                f"step{', or a smaller `train_freq`' if updates >= FEW_UPDATES * model.n_envs else ''}"
            )
        elif updates != 0 and learning * (updates / steps if updates > 0 else 1) < FEW_UPDATES * total_timesteps:
            message = (
                f"`learn({total_timesteps})` makes hardly any updates, since they begin after `learning_starts="
                f"{model.learning_starts}` steps: learn for more steps, or set a smaller `learning_starts`. Each call counts "
                f"its steps from 0 unless it has `reset_num_timesteps=False`"
            )
        else:
            return
        self.warn("updates", message)
