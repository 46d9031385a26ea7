"""Logs errors of the model, the effect of the search and the calibration of values during training."""

import time
from collections import deque

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_muzero.analysis.diagnostics import ModelErrors, discounted_returns, measure, value_figures
from sb3_muzero.common.callback_checks import check_callback
from sb3_muzero.common.random_state import random_state_kept
from sb3_muzero.common.validation import check_integer
from sb3_muzero.muzero import MuZero
from sb3_muzero.search import SearchOutput


class DiagnosticsCallback(BaseCallback):
    """
    Callback for logging diagnostics of the model, the search and the values, which
    ``sb3_muzero.analysis.diagnostics.METRICS`` explains. It does not affect training: the same seed gives the same parameters
    with and without it. ``model_error/*`` is written to files but not printed; ``time/diagnostics_share`` is the fraction of
    the time that diagnostics take.

    :param log_freq: Environment steps between two measurements
    :param batch_size: Number of sequences of each measurement
    :param unroll_steps: Depth K of ``model_error``; beyond the model's own ``unroll_steps`` it shows how many steps ahead
        planning is reliable
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    """

    NUM_EPISODES = 100  # latest episodes, whose returns values are compared with
    MAX_STEPS = 10_000  # latest steps of each

    model: MuZero

    def __init__(self, log_freq: int = 5_000, batch_size: int = 256, unroll_steps: int = 5, verbose: int = 0) -> None:
        super().__init__(verbose)
        for name, given in (("log_freq", log_freq), ("batch_size", batch_size), ("unroll_steps", unroll_steps)):
            check_integer(name, given)
        self.log_freq = log_freq
        self.batch_size = batch_size
        self.unroll_steps = unroll_steps
        self.timesteps: list[int] = []
        self.errors: list[ModelErrors] = []
        # Of each episode, root values and the returns that followed
        self.episodes: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=self.NUM_EPISODES)
        self._measured: MuZero | None = None
        self.last_search: SearchOutput | None = None

    def _init_callback(self) -> None:
        check_callback(self, MuZero, "log_freq")

    def _on_training_start(self) -> None:
        if self.num_timesteps == 0 or self.model is not self._measured:  # a run of its own
            self.timesteps.clear()
            self.errors.clear()
            self.episodes.clear()
            self._next = self.num_timesteps + self.log_freq
        self._measured = self.model
        self._running: list[deque[tuple[float, ...]]] = [
            deque(maxlen=self.MAX_STEPS) for _ in range(self.training_env.num_envs)
        ]
        self._started, self._seconds = time.perf_counter(), 0.0

    def _on_step(self) -> bool:
        start = time.perf_counter()
        decision = self.locals["buffer_actions"]  # the Decision that SB3 hands on to the replay buffer
        search, model = decision.search, self.model
        signs = model.collector.turns.signs(decision.to_play, self.locals["dones"]) if model.predict_turns else None
        self.last_search = search or self.last_search
        num_envs = len(self._running)
        values = np.full(num_envs, np.nan) if search is None else search.improved_value
        discounts = np.full(num_envs, model.discount) if signs is None else model.gamma * signs
        rewards = self.locals["rewards"].tolist()
        for env, step in enumerate(zip(values.tolist(), rewards, discounts.tolist(), strict=True)):
            self._running[env].append(step)
        for env in np.flatnonzero(self.locals["dones"]).tolist():
            self._end_episode(env)
        self._seconds += time.perf_counter() - start
        return True

    def _end_episode(self, env: int) -> None:
        values, rewards, discounts = np.array(self._running[env]).T
        self._running[env].clear()
        info = self.locals["infos"][env]
        last_value = 0.0
        if info.get("TimeLimit.truncated", False):
            obs, _ = self.model.policy.obs_to_tensor(info["terminal_observation"])
            with th.no_grad():
                last_value = self.model.policy.predict_values(obs).item()
        returns = discounted_returns(rewards, discounts, last_value)
        searched = ~np.isnan(values)
        if searched.any():
            self.episodes.append((values[searched], returns[searched]))

    def _on_rollout_end(self) -> None:
        # Not in `_on_step`, which is called before the step is stored
        if self.num_timesteps < self._next or self.num_timesteps <= self.model.learning_starts:
            return
        self._next = self.num_timesteps + self.log_freq
        start = time.perf_counter()
        with random_state_kept():
            self._measure()
        self._seconds += time.perf_counter() - start
        self.logger.record("time/diagnostics_share", self._seconds / (time.perf_counter() - self._started))

    def _measure(self) -> None:
        errors, figures = measure(self.model, self.batch_size, self.unroll_steps)
        self.timesteps.append(self.num_timesteps)
        self.errors.append(errors)
        for name, by_depth in errors._asdict().items():
            first = self.unroll_steps + 1 - len(by_depth)
            for depth, error in enumerate(by_depth.tolist(), start=first):
                if np.isfinite(error):  # no episode may be that long
                    self.logger.record(f"model_error/{name}_{depth}", error, exclude="stdout")
        if self.episodes:
            figures |= value_figures(*map(np.concatenate, zip(*self.episodes, strict=True)))
        for name, value in figures.items():
            self.logger.record(f"diagnostics/{name}", value)
