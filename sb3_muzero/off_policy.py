"""SB3's OffPolicyAlgorithm with a replay buffer of sequences: how it is made, kept in files and filled."""

import contextlib
import copy
import io
import pathlib
import time
import warnings
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutReturn, TrainFreq
from stable_baselines3.common.vec_env import VecEnv

from sb3_muzero.collector import Collector, validate_step
from sb3_muzero.common.log_interval import parse_log_interval
from sb3_muzero.common.progress_bar import MuZeroProgressBar
from sb3_muzero.common.rollout import CompletedRollout
from sb3_muzero.common.run_warnings import RunWarnings
from sb3_muzero.common.serialization import atomic_write, load_npz, save_npz, validate_number, with_suffix
from sb3_muzero.common.time_split import TimeSplit
from sb3_muzero.common.validation import check_finite
from sb3_muzero.common.vec_env_checks import frames_in_observation, normalized_frames
from sb3_muzero.exploration.count_bonus import CountBonus
from sb3_muzero.exploration.warmup import WarmUp
from sb3_muzero.replay.replay_buffer import SequenceReplayBuffer
from sb3_muzero.replay.ring import flat
from sb3_muzero.replay.serialization import saved_frame_stack
from sb3_muzero.search import is_cached

SelfAlgorithm = TypeVar("SelfAlgorithm", bound="SequenceOffPolicyAlgorithm")


class SequenceOffPolicyAlgorithm(OffPolicyAlgorithm):
    """
    Off-policy algorithm that learns from sequences of a ``SequenceReplayBuffer``. Files are written atomically, and replay
    buffers are loaded without running code. See ``MuZero`` for the arguments.
    """

    replay_buffer: SequenceReplayBuffer
    collector: Collector
    two_player: bool | None

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
        self._warned_of_missing_masks = False
        self._checked_settings: list[Any] = []
        # Called when ``learn`` ends, however it does
        self.after_learning = contextlib.ExitStack()
        # Folders with checkpoints of this run, and its steps when it was last saved there or resumed
        self.checkpoint_folders: dict[pathlib.Path, int] = {}

    def _make_replay_buffer(self, num_frames: int | None = None) -> SequenceReplayBuffer:
        """
        :param num_frames: How many frames an observation consists of; by default the environments are asked
        :return: An empty replay buffer
        :raises ValueError: for a ``replay_buffer_class`` of another algorithm
        """
        given = self.replay_buffer_class
        if given is not None and not (isinstance(given, type) and issubclass(given, SequenceReplayBuffer)):
            raise ValueError(f"`replay_buffer_class` must be a SequenceReplayBuffer, got {given}")
        num_frames = frames_in_observation(self.env) if num_frames is None else num_frames
        stacked = {"frame_stack": num_frames} if num_frames > 1 else {}
        buffer: Any = (given or SequenceReplayBuffer)(
            self.buffer_size,
            self.observation_space,
            self.action_space,
            device=self.device,
            n_envs=self.n_envs,
            **(stacked | self.replay_buffer_kwargs),
        )
        if buffer.reward_bonus is None:
            buffer.reward_bonus = CountBonus
        if self.env is not None and normalized_frames(self.env) not in (1, buffer.frame_stack):
            raise ValueError(
                f"`replay_buffer_kwargs` must leave `frame_stack` at {num_frames} where `VecFrameStack` is around "
                f"`VecNormalize`, got {buffer.frame_stack}"
            )
        return buffer

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        As SB3's. The replay buffer stores each frame of a stack once: if the environments stack another number of frames, an
        empty buffer is replaced.

        :param env: The environment for learning a policy
        :param force_reset: Whether training begins with a reset
        :raises ValueError: for other spaces or another number of environments, and for another number of stacked frames than
            those that the replay buffer holds
        """
        super().set_env(env, force_reset)
        assert self.env is not None
        self.collector.set_env(self.env)
        buffer: SequenceReplayBuffer | None = getattr(self, "replay_buffer", None)
        num_frames = self.replay_buffer_kwargs.get("frame_stack", frames_in_observation(self.env))
        if buffer is None or (buffer.size() == 0 and buffer.frame_stack != num_frames):
            self.replay_buffer = self._make_replay_buffer()
        elif buffer.frame_stack not in (1, num_frames):
            raise ValueError(
                f"`env` must stack {buffer.frame_stack} frames as those did that filled the replay buffer, got {num_frames}; "
                f"call `model.replay_buffer.reset()` to discard its transitions"
            )

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        if progress_bar:
            callbacks = callback if isinstance(callback, list) else [callback]
            converted = [part if isinstance(part, BaseCallback) else ConvertCallback(part) for part in callbacks]
            callback = CallbackList([*converted, MuZeroProgressBar(compiles=not is_cached())])
        return super()._init_callback(callback)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        *args: Any,
        **kwargs: Any,
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
        log_episodes, self._log_every = parse_log_interval(log_interval)
        with contextlib.ExitStack() as self.after_learning:
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
            rollout.raise_error()
        if rollout.continues:
            self._unfinished_rollout = (0, 0)
        self._log_if_due()
        return rollout.result()

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
        obs = self._last_original_obs
        statistics = buffer_action.statistics(model_version=self._n_updates)
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

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save all the attributes of the object and the model parameters in a zip-file. An existing file stays whole until the
        new one is on disk.

        :param path: path to the file where the rl agent should be saved
        :param exclude: name of parameters that should be excluded in addition to the default ones
        :param include: name of parameters that might be excluded but should be included anyway
        """
        path = with_suffix(path, ".zip")
        if not isinstance(path, pathlib.Path):
            return super().save(path, exclude, include)
        if path.is_dir():
            warnings.warn(f"Path '{path}' is a folder. Will save instead to {path}_2")
            path = path.with_name(f"{path.name}_2")
        with atomic_write(path) as file:
            super().save(file, exclude, include)

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """
        Save the replay buffer, in a format that runs no code when it is loaded (``sb3_muzero.common.serialization``).

        :param path: Path to the file where the replay buffer should be saved; folders are created, and ``.pkl`` is added to a
            name without suffix, as SB3 does
        """
        save_npz(with_suffix(path, ".pkl"), self.replay_buffer.state())

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """
        Load what ``save_replay_buffer`` saved. The buffer takes the file's size, and keeps its other settings. A model without
        environments also takes the file's number of stacked frames.

        :param path: Path to the replay buffer.
        :param truncate_last_traj: Not used: running episodes always end as truncated
        :raises ValueError: for another kind of file, a damaged one, other spaces or another number of environments;
            the buffer stays as it is then
        """
        state, known = load_npz(with_suffix(path, ".pkl")), getattr(self, "replay_buffer", None)
        if known is None or (self.env is None and known.size() == 0):
            buffer = self._make_replay_buffer(saved_frame_stack(state) if self.env is None else None)
        else:
            buffer = copy.copy(known)
        buffer.load_state(state)
        buffer.device = self.device
        self.replay_buffer = buffer
        self._last_obs = None  # no step of the running episodes is in it
        if buffer.size() > 0:
            self.warmup = WarmUp()
            stored = buffer.index.places(buffer.index.stored())
            self.warmup.update_from(flat(buffer.rewards)[stored], flat(buffer.terminals)[stored])

    def state(self) -> dict[str, Any]:
        """:return: Counters and properties of the environment, for ``checkpointing``"""
        return {
            "num_timesteps": self.num_timesteps,
            "num_timesteps_at_start": self._num_timesteps_at_start,
            "total_timesteps": self._total_timesteps,
            "progress_remaining": self._current_progress_remaining,
            "n_updates": self._n_updates,
            "episode_num": self._episode_num,
            "unfinished_rollout": list(self._unfinished_rollout),
            "logged_at": self._logged_at,
            "uses_action_masks": self.uses_action_masks,
            "two_player": self.two_player,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """
        :param state: What ``state`` returned
        :raises ValueError: if a counter is invalid
        """
        self.num_timesteps = validate_number("num_timesteps", state["num_timesteps"], int, 0)
        self._num_timesteps_at_start = validate_number("num_timesteps_at_start", state["num_timesteps_at_start"], int, 0)
        self._total_timesteps = validate_number("total_timesteps", state["total_timesteps"], float)
        self._current_progress_remaining = validate_number("progress_remaining", state["progress_remaining"], float)
        self._n_updates = validate_number("n_updates", state["n_updates"], int, 0)
        self._episode_num = validate_number("episode_num", state["episode_num"], int, 0)
        steps, episodes = state["unfinished_rollout"]
        self._unfinished_rollout = validate_number("steps", steps, int, 0), validate_number("episodes", episodes, int, 0)
        self._logged_at = validate_number("logged_at", state["logged_at"], int, 0)
        self.uses_action_masks = validate_number("uses_action_masks", state["uses_action_masks"], bool)
        self.two_player = validate_number("two_player", state["two_player"], bool)

    def _excluded_save_params(self) -> list[str]:
        parts = ["collector", "learner", "reanalyzer"]
        of_this_run = ["symmetries", "time_split", "_acted_at", "interrupted", "after_learning", "checkpoint_folders"]
        of_this_run += ["_checked_settings", "_warned_of_missing_masks", "run_warnings", "_log_every"]
        return [*super()._excluded_save_params(), *parts, *of_this_run]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], []
