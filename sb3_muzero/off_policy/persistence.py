"""What an off-policy algorithm keeps in files: its attributes, its replay buffer of sequences and its counters."""

import copy
import io
import pathlib
import warnings
from collections.abc import Iterable
from typing import Any, ClassVar

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv

from sb3_muzero.collector import Collector
from sb3_muzero.common.serialization import atomic_write, load_npz, save_npz, validate_number, with_suffix
from sb3_muzero.common.vec_env_checks import frames_in_observation, normalized_frames
from sb3_muzero.exploration.count_bonus import CountBonus
from sb3_muzero.exploration.warmup import WarmUp
from sb3_muzero.replay.replay_buffer import SequenceReplayBuffer
from sb3_muzero.replay.ring import flat
from sb3_muzero.replay.serialization import saved_frame_stack


class PersistentAlgorithm(OffPolicyAlgorithm):
    """
    Off-policy algorithm with a ``SequenceReplayBuffer``. Files are written atomically, and replay buffers are loaded without
    running code. ``load`` unpickles, as SB3's does, which can run any code: load files of your own only. Checkpoints of
    ``ResumableCheckpointCallback`` run none, see ``sb3_muzero.checkpointing.load_model``.
    """

    replay_buffer: SequenceReplayBuffer
    collector: Collector
    warmup: WarmUp
    uses_action_masks: bool
    two_player: bool | None
    _unfinished_rollout: tuple[int, int]

    COUNTERS: ClassVar[dict[str, type]] = {
        "num_timesteps": int, "_num_timesteps_at_start": int, "_total_timesteps": float, "_n_updates": int,
        "_current_progress_remaining": float, "_episode_num": int, "_logged_at": int, "uses_action_masks": bool,
        "two_player": bool,
    }  # fmt: skip
    """What a resumed run goes on with."""

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
        if "action_kwargs" in self.replay_buffer_kwargs:
            raise ValueError("`replay_buffer_kwargs` must not have `action_kwargs`, which belong to `policy_kwargs`")
        action_kwargs = self.policy_kwargs.get("action_kwargs")
        candidates = {} if action_kwargs is None else {"action_kwargs": action_kwargs}
        buffer: Any = (given or SequenceReplayBuffer)(
            self.buffer_size,
            self.observation_space,
            self.action_space,
            device=self.device,
            n_envs=self.n_envs,
            **(stacked | candidates | self.replay_buffer_kwargs),
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
        counters = {name.lstrip("_"): getattr(self, name) for name in self.COUNTERS}
        return counters | {"unfinished_rollout": list(self._unfinished_rollout)}

    def load_state(self, state: dict[str, Any]) -> None:
        """
        :param state: What ``state`` returned
        :raises ValueError: if a counter is invalid
        """
        for name, kind in self.COUNTERS.items():
            key = name.lstrip("_")
            setattr(self, name, validate_number(key, state[key], kind, 0 if kind is int else -float("inf")))
        steps, episodes = state["unfinished_rollout"]
        self._unfinished_rollout = validate_number("steps", steps, int, 0), validate_number("episodes", episodes, int, 0)

    def _excluded_save_params(self) -> list[str]:
        parts = ["collector", "learner", "reanalyzer"]
        of_this_run = ["symmetries", "time_split", "_acted_at", "interrupted", "after_learning", "checkpoint_folders"]
        of_this_run += ["_checked_settings", "_use_masking", "run_warnings", "_log_every"]
        return [*super()._excluded_save_params(), *parts, *of_this_run]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], []
