"""SB3's OffPolicyAlgorithm with a replay buffer of sequences: how it is filled."""

import contextlib
import pathlib
import time
from typing import Any, TypeVar

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.type_aliases import MaybeCallback, RolloutReturn, TrainFreq
from stable_baselines3.common.vec_env import VecEnv

from sb3_muzero.collector import validate_step
from sb3_muzero.common.action_masks import masks_in_infos, should_use_masks, unused_masks
from sb3_muzero.common.evaluation_checks import callback_warning
from sb3_muzero.common.log_interval import parse_log_interval
from sb3_muzero.common.progress_bar import MuZeroProgressBar
from sb3_muzero.common.rollout import CompletedRollout
from sb3_muzero.common.run_warnings import RunWarnings
from sb3_muzero.common.time_split import TimeSplit
from sb3_muzero.common.validation import check_finite
from sb3_muzero.common.worker_processes import naming_dead_workers
from sb3_muzero.exploration.warmup import WarmUp
from sb3_muzero.off_policy.persistence import PersistentAlgorithm
from sb3_muzero.replay.replay_buffer import SequenceReplayBuffer

SelfAlgorithm = TypeVar("SelfAlgorithm", bound="SequenceOffPolicyAlgorithm")


class SequenceOffPolicyAlgorithm(PersistentAlgorithm):
    """
    Off-policy algorithm that learns from sequences of a ``SequenceReplayBuffer``. See ``MuZero`` for the arguments.
    """

    def _init_run(self) -> None:
        self.warmup = WarmUp()
        self.uses_action_masks = False
        self.time_split = TimeSplit()
        # When the environments were given actions whose result is not yet stored, `None` between two steps
        self._acted_at: float | None = None
        # Environment steps and episodes of a rollout that a callback has ended before all of it was collected
        self._unfinished_rollout = (0, 0)
        # Environment steps when logs were last written, and after how many more they are due
        self._logged_at, self._log_every = 0, float("inf")
        self.run_warnings = RunWarnings()
        self.run_warnings.check_time_limit(self.env)
        # Whether a callback was asked to end the run
        self.interrupted = False
        # What `learn` was told
        self._use_masking: bool | None = None
        self._checked_settings: list[Any] = []
        # Called when ``learn`` ends, however it does
        self.after_learning = contextlib.ExitStack()
        # Folders with checkpoints of this run, its steps when it was last saved there or resumed, and the checkpoints then
        self.checkpoint_folders: dict[pathlib.Path, tuple[int, list[pathlib.Path]]] = {}

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        if progress_bar:
            callbacks = callback if isinstance(callback, list) else [callback]
            converted = [part if isinstance(part, BaseCallback) else ConvertCallback(part) for part in callbacks]
            policy: Any = self.policy
            callback = CallbackList([*converted, MuZeroProgressBar(compiles=not policy.planner.is_cached())])
        initialized = super()._init_callback(callback)
        self.run_warnings.warn("evaluation", callback_warning(initialized, self.two_player))
        return initialized

    def _setup_learn(
        self, total_timesteps: int, callback: MaybeCallback = None, reset_num_timesteps: bool = True, *args: Any, **kwargs: Any
    ) -> tuple[int, BaseCallback]:
        self.interrupted = False
        self.time_split = TimeSplit()
        self.run_warnings.check_updates(self, total_timesteps, reset_num_timesteps)
        if reset_num_timesteps:
            self._unfinished_rollout, self._logged_at = (0, 0), 0
        if getattr(self, "replay_buffer", None) is None:
            self.replay_buffer = self._make_replay_buffer()
        begins = reset_num_timesteps or self._last_obs is None  # the environments are about to be reset
        if begins:
            self.replay_buffer.cut()
            self.collector.reset()
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args, **kwargs)
        if begins:
            self._last_original_obs = self.collector.begin(self._last_obs)
        if self.collector.normalize is None or not self.collector.normalize.norm_obs:
            self._last_original_obs = self._last_obs
        self.collector.raw_obs = self._last_original_obs
        check_finite("observation", self._last_original_obs, self.num_timesteps, space=self.observation_space)
        assert self.env is not None
        self.uses_action_masks = should_use_masks(self.env, self._use_masking, self.run_warnings.warn)
        self.collector.use_masking = self.uses_action_masks
        return result

    def learn(  # type: ignore[override]
        self: SelfAlgorithm,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | tuple[int, str] | None = 4,
        *args: Any,
        **kwargs: Any,
    ) -> SelfAlgorithm:
        """See ``MuZero.learn``."""
        assert self.env is not None, "You must set the environment before calling learn()"
        if self._acted_at is not None:
            raise RuntimeError("`learn` must not be called in `_on_step` of a callback, but in its `_on_rollout_end`")
        log_episodes, self._log_every = parse_log_interval(log_interval)
        with naming_dead_workers(self.env), contextlib.ExitStack() as self.after_learning:
            return super().learn(total_timesteps, callback, log_episodes, *args, **kwargs)  # type: ignore[arg-type]

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, train_freq: TrainFreq, *args: Any, **kwargs: Any
    ) -> RolloutReturn:
        """
        As SB3's, but the step at which the callback ends training is stored, and the next call collects the rest of that
        rollout. After an exception in the environments they are reset, since their state is unknown.

        :return: How much was collected, and whether to go on
        """
        rollout: Any = CompletedRollout(callback, train_freq, env.num_envs, *self._unfinished_rollout)
        try:
            if rollout.frequency > 0:
                super().collect_rollouts(env, rollout, rollout, *args, **kwargs)
        except (EOFError, ConnectionError):
            if not self.interrupted:
                raise
            rollout.continues = False  # Ctrl-C has ended a SubprocVecEnv's processes, too
        finally:
            self._unfinished_rollout = (rollout.steps, rollout.episodes)
            if self._acted_at is not None:
                self._last_obs = self._acted_at = None
            if rollout.error is not None:
                raise rollout.error
        if rollout.continues:
            self._unfinished_rollout = (0, 0)
        self._log_if_due()
        return RolloutReturn(rollout.steps, rollout.episodes, rollout.continues)

    def _log_if_due(self) -> None:
        """Write log data where no end of an episode does so."""
        if self.num_timesteps - self._logged_at >= self._log_every:
            self.dump_logs()

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: Any,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """
        :param replay_buffer: Where the step is stored
        :param buffer_action: The ``Decision`` of ``_sample_action``
        :param new_obs: Observations after the step; where an episode ended, the first of the next episode
        :param reward: Rewards of the step
        :param dones: Whether an episode ended
        :param infos: Hold the ``terminal_observation`` of episodes that ended
        :raises ValueError: for observations and rewards that cannot be learned from, with nothing stored
        """
        assert self._acted_at is not None
        self.time_split["environment"] += time.perf_counter() - self._acted_at
        step = self.collector.make_step(buffer_action, new_obs, reward, dones, infos)
        validate_step(step, self.observation_space, self.num_timesteps)
        self.warmup.update(step.raw_rewards, dones, infos)
        if self._use_masking is None and not self.uses_action_masks:
            self.run_warnings.warn("masks", unused_masks(masks_in_infos(self.collector.env, infos, at_reset=False)))
        obs = self._last_original_obs
        statistics = step.statistics(model_version=self._n_updates)
        assert isinstance(replay_buffer, SequenceReplayBuffer)
        replay_buffer.add(obs, step.raw_final_obs, buffer_action.actions, step.raw_rewards, dones, infos, statistics)  # type: ignore
        self._last_obs, self._last_original_obs, self._acted_at = new_obs, step.raw_new_obs, None
        self.run_warnings.check_episode_steps(self.collector.episode_steps)

    def dump_logs(self) -> None:
        """Write log data."""
        for part, share in self.time_split.shares().items():
            self.logger.record(f"time/{part}_share", share)
        super().dump_logs()
        self._logged_at = self.num_timesteps
