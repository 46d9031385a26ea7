"""SB3's ring of transitions with search statistics, read as sequences to unroll over."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecNormalize

from sb3_muzero.actions import make_actions
from sb3_muzero.common.pytree import tree_leaves, tree_map
from sb3_muzero.replay.compact_rings import BitRing, SparseRing
from sb3_muzero.replay.memory import check_memory
from sb3_muzero.replay.observation_store import ArrayOrDict, ObservationRing, check_frame_stack
from sb3_muzero.replay.reading import read_sequences
from sb3_muzero.replay.reward_bonus import RewardBonus, StoredBonus
from sb3_muzero.replay.ring import NewSteps, StepIndex
from sb3_muzero.replay.samplers import PrioritizedSampler, RecentSampler
from sb3_muzero.replay.sequences import SearchStatistics, SequenceSamples
from sb3_muzero.replay.serialization import OPTIONAL_RINGS, buffer_state, load_buffer_state


class SequenceReplayBuffer(ReplayBuffer):
    """
    Ring of transitions with the search's result for each decision. Like SB3's ``ReplayBuffer`` it takes one transition of each
    environment (``add``), and also whole episodes (``add_episode``): every environment has its own write position. Arrays are
    allocated with the first transition. Observations are stored once (``ObservationRing``), so there is no
    ``optimize_memory_usage``.

    ``pos``, ``full`` and ``size()`` are those of the environment with the most steps; without ``add_episode`` all have equally
    many, as in SB3.

    :param buffer_size: Number of transitions over all environments
    :param observation_space: Observation space
    :param action_space: Action space
    :param device: PyTorch device of the samples
    :param n_envs: Number of parallel environments
    :param handle_timeout_termination: Whether an episode that a time limit ends (``TimeLimit.truncated``) is not terminated:
        its value targets bootstrap from the last observation. With ``False`` it counts as terminated
    :param recent_fraction: See ``RecentSampler``, which samples where there are no priorities
    :param priority_exponent: See ``PrioritizedSampler``; 0 for no priorities
    :param importance_exponent: See ``PrioritizedSampler``
    :param frame_stack: How many frames an observation of ``VecFrameStack`` consists of; each is stored once
    :param action_kwargs: See ``make_actions``
    :param reward_bonus: Makes the bonus that ``sample`` can add to rewards, from the observation space: a class such as
        ``CountBonus``
    :raises ValueError: for an argument outside of its range
    """

    observations: ObservationRing  # type: ignore[assignment]
    terminals: np.ndarray
    policies: np.ndarray | SparseRing
    model_versions: np.ndarray

    MAX_DENSE_LENGTH = 256
    """Policies over more actions are stored without their zeros."""
    MEMORY_CHECK_STEPS = 1000
    """Steps that tell how much memory a full buffer takes, besides the first one."""

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        handle_timeout_termination: bool = True,
        recent_fraction: float = 0.75,
        priority_exponent: float = 0.0,
        importance_exponent: float | Schedule = 0.4,
        frame_stack: int = 1,
        reward_bonus: Callable[[spaces.Space], RewardBonus] | None = None,
        action_kwargs: dict[str, Any] | None = None,
    ) -> None:
        # ReplayBuffer's own would allocate every observation twice
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs)
        self.buffer_size = max(buffer_size // n_envs, 1)
        check_frame_stack(frame_stack, observation_space, self.buffer_size)
        self.handle_timeout_termination = handle_timeout_termination
        self.recent_fraction = recent_fraction
        self.priority_exponent = priority_exponent
        self.importance_exponent = importance_exponent
        self.frame_stack = frame_stack
        self.reward_bonus = reward_bonus
        self.action_kwargs = action_kwargs or {}
        self.action_type = make_actions(action_space, action_kwargs)
        self.index = StepIndex(self.buffer_size, n_envs, context=frame_stack - 1)
        self.reset()

    def reset(self) -> None:
        """Forget all transitions."""
        self.index = self.index.cleared(self.buffer_size)
        self.update_position()
        self._allocated = False
        # Allocated when the first ones come
        self.action_masks: BitRing | None = None
        self.candidates: np.ndarray | None = None
        self.turn_signs: np.ndarray | None = None
        # Stored steps at which it is checked whether the full buffer fits
        self._next_memory_check: float = 1
        recent = RecentSampler(self.recent_fraction)
        prioritized = PrioritizedSampler(self.priority_exponent, self.importance_exponent)
        self.sampler: RecentSampler = prioritized if self.priority_exponent > 0 else recent

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.index.lengths.sum()} of {self.index.capacity} transitions)"

    def allocate(self) -> None:
        """Allocate the arrays, which take no memory before they are filled."""
        self.observations = ObservationRing(self.observation_space, self.index, self.frame_stack)
        shape, actions = (self.buffer_size, self.n_envs), self.action_type
        self.actions = np.zeros((*shape, *actions.shape), dtype=actions.dtype)
        self.rewards = np.zeros(shape, dtype=np.float32)
        self.terminals = np.zeros(shape, dtype=np.bool_)
        is_sparse, length = actions.num_candidates > self.MAX_DENSE_LENGTH, actions.num_candidates
        self.policies = SparseRing(*shape, length) if is_sparse else np.zeros((*shape, length), dtype=np.float32)
        self.model_versions = np.zeros(shape, dtype=np.int64)
        self.bonus = StoredBonus(self.reward_bonus and self.reward_bonus(self.observation_space), self.observations)
        if not actions.has_fixed_candidates:
            self.candidates = self.make_optional_ring("candidates")
        self._allocated = True

    def optional_fill(self, name: str) -> np.ndarray:
        """
        :param name: ``action_masks``, ``candidates`` or ``turn_signs``
        :return: What stands in that ring for a step without any: all actions are legal, all are candidates in their order,
            the other player is to move
        """
        if name == "turn_signs":
            return np.array(-1, np.int8)
        return np.ones(self.action_type.mask_dim, np.bool_) if name == "action_masks" else self.action_type.candidates

    def make_optional_ring(self, name: str) -> Any:
        """
        :param name: ``action_masks``, ``candidates`` or ``turn_signs``
        :return: The ring without any of them
        """
        fill, shape = self.optional_fill(name), (self.buffer_size, self.n_envs)
        ring = BitRing(*shape, fill.shape) if name == "action_masks" else np.zeros((*shape, *fill.shape), fill.dtype)
        ring[: self.size()] = fill  # what is beyond takes no memory before it is written
        return ring

    def update_position(self) -> None:
        """Make SB3's ``pos`` and ``full`` follow the index."""
        num_written = int(self.index.ends.max() - self.index.first[0]) // self.n_envs
        self.full = num_written >= self.buffer_size
        self.pos = num_written % self.buffer_size

    def add(  # type: ignore[override]
        self,
        obs: ArrayOrDict,
        next_obs: ArrayOrDict,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
        search: SearchStatistics | None = None,
    ) -> None:
        """
        Store one transition per environment, the successor of the one before unless an episode ended or was ``cut``.

        :param obs: Observations, shape ``[n_envs, *obs_shape]``
        :param next_obs: Their successors, the final observation where the episode ended
        :param action: Actions as ``Actions`` represents them, Discrete ones from 0, shape ``[n_envs, *action_shape]``
        :param reward: Rewards, shape ``[n_envs]``
        :param done: Whether the episode ended, shape ``[n_envs]``
        :param infos: ``TimeLimit.truncated`` tells a truncation from a termination
        :param search: What the search found at ``obs``; none by default
        :raises ValueError: for actions that are not in the action space, with nothing stored
        """
        action = self.action_type.check(action, self.n_envs)
        done = np.asarray(done, np.bool_)
        truncated = [self.handle_timeout_termination and info.get("TimeLimit.truncated", False) for info in infos]
        terminated = done & np.logical_not(truncated)
        steps = self.index.next_row()
        self._store(steps, obs, next_obs, action, reward, terminated, search or SearchStatistics())
        self.observations.end_episodes(steps.ids[done])

    def add_episode(
        self,
        observations: ArrayOrDict,
        actions: np.ndarray,
        rewards: np.ndarray,
        terminated: bool,
        search: SearchStatistics | None = None,
        env: int | None = None,
    ) -> None:
        """
        Store an episode of T steps, of one that is longer than an environment's ring the newest. An episode that ``add`` has
        not completed in that environment is cut.

        :param observations: All of them, the final one too, shape ``[T + 1, *obs_shape]``
        :param actions: Actions as ``Actions`` represents them, shape ``[T, *action_shape]``
        :param rewards: Rewards, shape ``[T]``
        :param terminated: Whether the episode terminated, else it was truncated
        :param search: What the searches found at the observations but the final one; none by default
        :param env: Whose ring takes the episode; by default the one that has been written the fewest steps
        :raises ValueError: for an episode without steps, or actions that are not in the action space, with nothing stored
        """
        if len(rewards) == 0:
            raise ValueError("The episode must have at least one step")
        actions = self.action_type.check(actions, len(rewards))
        sizes = {len(part) for part in search or () if isinstance(part, np.ndarray)}
        if not sizes <= {len(rewards)}:
            raise ValueError(f"`search` must be of the {len(rewards)} steps of the episode, got {sorted(sizes)}")
        lengths = {len(part) for part in tree_leaves(observations)}
        if lengths != {len(rewards) + 1}:
            raise ValueError(f"`observations` must be one more than the {len(rewards)} rewards, got {sorted(lengths)}")
        env = int(self.index.num_written.argmin()) if env is None else env
        if self._allocated:
            self.observations.cut(env)
        num_steps = min(len(rewards), self.buffer_size)
        begun = tree_map(lambda part: np.asarray(part)[-num_steps - 1 : -1], observations)
        followed = tree_map(lambda part: np.asarray(part)[-num_steps:], observations)
        searched = tree_map(lambda part: part[-num_steps:] if np.ndim(part) > 0 else part, search or SearchStatistics())
        terminals = np.zeros(num_steps, dtype=np.bool_)
        terminals[-1] = terminated or not self.handle_timeout_termination
        steps = self.index.next_of(env, num_steps)
        self._store(steps, begun, followed, actions[-num_steps:], np.asarray(rewards)[-num_steps:], terminals, searched)
        self.observations.end_episodes(steps.ids[-1:])

    def _store(
        self,
        steps: NewSteps,
        observations: ArrayOrDict,
        next_observations: ArrayOrDict,
        actions: np.ndarray,
        rewards: np.ndarray,
        terminals: np.ndarray,
        search: SearchStatistics,
    ) -> None:
        if not self._allocated:
            self.allocate()
        records = self.observations.write(steps, observations, next_observations)
        at = steps.at
        self.actions[at] = actions
        self.rewards[at] = rewards
        self.terminals[at] = terminals
        self.policies[at] = np.zeros(self.action_type.num_candidates) if search.weights is None else search.weights
        self.model_versions[at] = search.model_version
        for name in OPTIONAL_RINGS:
            given = getattr(search, name)
            if getattr(self, name) is None and given is not None:
                setattr(self, name, self.make_optional_ring(name))
            if (ring := getattr(self, name)) is not None:
                ring[at] = self.optional_fill(name) if given is None else given
        self.bonus.add(steps, records, rewards)
        self.index.append(steps)
        self.sampler.add(self.index, steps.ids)
        self.update_position()
        if (stored := self.size() * self.n_envs) >= self._next_memory_check:
            last = min(self.MEMORY_CHECK_STEPS, self.index.capacity)
            self._next_memory_check = float("inf") if check_memory(self) or stored >= last else last

    def update_search(
        self, ids: np.ndarray, weights: np.ndarray, model_version: int, candidates: np.ndarray | None = None
    ) -> None:
        """
        Replace search results by newer ones. Steps that have been overwritten, or were stored before ``reset`` or
        ``load_state``, are left out.

        :param ids: Steps, as in ``SequenceSamples``, shape ``[B]``
        :param weights: Policy targets, shape ``[B, num_candidates]``
        :param model_version: Gradient updates of the model that searched
        :param candidates: Actions that the search considered, shape ``[B, num_candidates, *action_shape]``; ``None`` for all
            actions in their order
        """
        is_stored = self.index.is_stored(ids)
        if not is_stored.any():
            return
        at = np.divmod(self.index.places(ids[is_stored]), self.n_envs)
        self.policies[at] = weights[is_stored]
        self.model_versions[at] = model_version
        if candidates is not None and self.candidates is None:
            self.candidates = self.make_optional_ring("candidates")
        if self.candidates is not None:
            self.candidates[at] = self.optional_fill("candidates") if candidates is None else candidates[is_stored]

    def update_priorities(self, ids: np.ndarray, errors: np.ndarray) -> None:
        """
        Set the priorities of prioritised sampling, if there are any. Steps that have been overwritten, or were stored before
        ``reset`` or ``load_state``, are left out.

        :param ids: Steps, as in ``SequenceSamples``, shape ``[B]``
        :param errors: How wrong the value was, in any unit, at least 0, shape ``[B]``
        :raises ValueError: for an error that is negative or not finite
        """
        self.sampler.update_priorities(self.index, ids, errors)

    def cut(self) -> None:
        """End all running episodes where they are, as truncated: the environments are about to be reset."""
        if self._allocated:
            self.observations.cut()

    def sample(  # type: ignore[override]
        self,
        batch_size: int,
        env: VecNormalize | None = None,
        *,
        unroll_steps: int,
        n_steps: int,
        n_steps_half_life: float = float("inf"),
        bonus_coef: float = 0.0,
        progress_remaining: float = 1.0,
    ) -> SequenceSamples:
        """
        Draw sequences that start where the sampler says.

        :param batch_size: Number of sequences B
        :param env: Normalises observations and rewards, which are stored as they came
        :param unroll_steps: Steps K that the model is unrolled over
        :param n_steps: Steps n of the value targets
        :param n_steps_half_life: Transitions stored since, after which a sequence's value targets have half as many steps
        :param bonus_coef: Coefficient of the ``reward_bonus``, see ``StoredBonus``
        :param progress_remaining: From 1 to 0, for ``importance_exponent``
        :return: The sequences
        """
        ids, weights = self.sampler.sample(self.index, batch_size, progress_remaining)
        stored_since = self.index.ends[ids % self.n_envs] - self.n_envs - ids
        horizons = np.maximum((n_steps * 0.5 ** (stored_since / n_steps_half_life)).round().astype(np.int64), 1)
        return read_sequences(self, ids, unroll_steps, n_steps, env, horizons, weights, bonus_coef)

    def to_torch(self, array: np.ndarray, copy: bool = True) -> th.Tensor:
        """SB3's, but for GPUs the copy is asynchronous."""
        if self.device.type == "cuda":
            return th.from_numpy(array).pin_memory().to(self.device, non_blocking=True)
        return super().to_torch(array, copy)

    def state(self) -> dict[str, Any]:
        """:return: All that is stored, for ``sb3_muzero.common.serialization``"""
        return buffer_state(self)

    def load_state(self, state: dict[str, Any]) -> None:
        """:param state: What ``state`` returned, see ``load_buffer_state``"""
        load_buffer_state(self, state)
