"""What happened: SB3's [time, env] ring of transitions with search statistics, read as sequences to unroll over."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecNormalize

from sb3_muzero.novelty import VisitCounts
from sb3_muzero.sum_tree import SumTree


class SequenceSamples(NamedTuple):
    """
    Sequences of one episode each. Position ``k`` is the state after ``k`` steps from the sampled one; a sequence has
    ``lengths`` steps, and its last position is the state where it ends (episode end or newest data).
    K = ``unroll_steps``, n = ``n_steps``, h = the sequence's own horizon.

    :param observations: At positions 0..K, the end repeated beyond it, shape ``[K + 1, B, *obs_shape]``
    :param bootstrap_observations: At positions h..h+K, the end repeated beyond it, shape ``[K + 1, B, *obs_shape]``
    :param actions: Action indices of steps 0..K-1, uniformly random beyond the end, shape ``[K, B]``
    :param rewards: Of steps 0..K+n-1, zero beyond the end, shape ``[K + n, B]``
    :param policies: Search policies at positions 0..K, zero where there was no search, shape ``[K + 1, B, num_actions]``
    :param lengths: Steps in the sequence, from 1 to K + n, shape ``[B]``
    :param terminated: Whether the sequence ends in a terminal state, shape ``[B]``
    :param horizons: Steps of the value targets before they bootstrap, from 1 to n, shape ``[B]``
    :param weights: Importance weights of prioritised sampling, at most 1, shape ``[B]``
    :param starts: Ring row and environment of the first step, shape ``[2, B]``
    :param policy_stamps: What ``store_search`` was told with the policy at position 0, shape ``[B]``
    """

    observations: th.Tensor
    bootstrap_observations: th.Tensor
    actions: th.Tensor
    rewards: th.Tensor
    policies: th.Tensor
    lengths: th.Tensor
    terminated: th.Tensor
    horizons: th.Tensor
    weights: th.Tensor
    starts: np.ndarray
    policy_stamps: np.ndarray


class SequenceReplayBuffer(ReplayBuffer):
    """
    Ring of transitions, in SB3's layout, that also keeps the search's result for each decision.

    Every observation is stored once, in its own dtype: the successor of a step is the next row's observation,
    and only episode ends keep a final observation beside the ring. Termination and truncation stay apart.
    Arrays are allocated when the first transition arrives, and only filled rows are pickled.

    :param buffer_size: Number of transitions over all environments
    :param observation_space: Observation space
    :param action_space: Action space
    :param device: PyTorch device of the samples
    :param n_envs: Number of parallel environments
    :param optimize_memory_usage: Accepted for SB3's calling convention; observations are always stored once
    :param recent_share: Share of the stored transitions, the newest ones, from which seven of eight sequences start; the
        eighth may start anywhere, so that a rare success is not forgotten. What a beginner did makes good states look bad for
        as long as it is sampled much: of 6 trial seeds of CartPole-v1 one was not solved in 9000 steps with a share of 1, all
        within 7000 with 0.75. Without the eighth one of 5 seeds of Acrobot-v1 ended at the worst return
    :param priority_exponent: Sequences start in proportion to their first transition's priority to this power
        (https://arxiv.org/abs/1511.05952); 0 for uniform sampling. With priorities ``recent_share`` is of no effect
    :param importance_exponent: Of the importance weights that correct for priorities, from 0 to 1; a float or a function of
        the progress remaining (from 1 to 0)
    :raises ValueError: for an argument outside of its range
    """

    action_space: spaces.Discrete

    LEAST_ERROR = 1e-3  # that counts for a priority, as a share of the largest one so far

    LEAST_FOR_NOVELTY = 256  # transitions that tell how wide a region is

    _RINGS = ("observations", "actions", "rewards", "policies", "root_values", "policy_stamps", "codes", "ends", "terminals",
              "final_slots")  # fmt: skip

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Discrete,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        recent_share: float = 0.75,
        priority_exponent: float = 0.0,
        importance_exponent: float | Schedule = 0.4,
    ) -> None:
        if not 0 < recent_share <= 1:
            raise ValueError(f"`recent_share` must be above 0 and at most 1, got {recent_share}")
        if not 0 <= priority_exponent < float("inf"):
            raise ValueError(f"`priority_exponent` must be at least 0 and finite, got {priority_exponent}")
        if not 0 <= FloatSchedule(importance_exponent)(1.0) <= 1:
            raise ValueError(f"`importance_exponent` must be between 0 and 1, got {importance_exponent}")
        self.recent_share = recent_share
        self.priority_exponent = priority_exponent
        self.importance_exponent = FloatSchedule(importance_exponent)
        # One row is all that the base class may allocate: ours come with the first transition
        super().__init__(n_envs, observation_space, action_space, device, n_envs)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.obs_shape = observation_space.shape  # type: ignore[assignment]  # () for Discrete, as in `predict`
        del self.observations, self.next_observations, self.actions, self.rewards, self.dones, self.timeouts
        self.reset()

    def reset(self) -> None:
        super().reset()
        self._allocated = False
        self._search: tuple[np.ndarray, np.ndarray, int] | None = None
        self._visits: VisitCounts | None = None
        self._largest_error = 0.0
        # Mean size of the rewards other than zero, and their number
        self._reward_size = 1.0
        self._num_rewards = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.size() * self.n_envs} of {self.buffer_size * self.n_envs} transitions)"

    def _allocate(self) -> None:
        shape = (self.buffer_size, self.n_envs)
        dtype = self.observation_space.dtype
        self.observations = np.zeros((*shape, *self.obs_shape), dtype=dtype)
        self.actions = np.zeros(shape, dtype=np.int64)
        self.rewards = np.zeros(shape, dtype=np.float32)
        self.policies = np.zeros((*shape, int(self.action_space.n)), dtype=np.float32)
        self.root_values = np.zeros(shape, dtype=np.float32)
        self.policy_stamps = np.zeros(shape, dtype=np.int64)
        self.codes = np.zeros(shape, dtype=np.int64)
        self.priorities = SumTree(self.buffer_size * self.n_envs) if self.priority_exponent > 0 else None
        self.ends = np.zeros(shape, dtype=np.bool_)
        self.terminals = np.zeros(shape, dtype=np.bool_)
        # Where an end's final observation lies in `final_observations`, -1 elsewhere
        self.final_slots = np.full(shape, -1, dtype=np.int64)
        self.final_observations = np.zeros((16, *self.obs_shape), dtype=dtype)
        self._free_slots = list(range(16))
        # The newest transitions' next observations, one per environment
        self.newest_observations = np.zeros((self.n_envs, *self.obs_shape), dtype=dtype)
        self._allocated = True

    def store_search(self, policies: np.ndarray, root_values: np.ndarray, stamp: int) -> None:
        """
        Keep the search results that belong to the transitions of the next ``add``. Steps without search store zeros.

        :param policies: Improved policies, shape ``[n_envs, num_actions]``
        :param root_values: Search values of the roots, shape ``[n_envs]``
        :param stamp: Age of the model that searched, in gradient updates
        """
        self._search = policies, root_values, stamp

    def update_search(self, starts: np.ndarray, policies: np.ndarray, root_values: np.ndarray, stamp: int) -> None:
        """
        Replace search results by newer ones.

        :param starts: Ring row and environment of each step, as in ``SequenceSamples``, shape ``[2, B]``
        :param policies: Improved policies, shape ``[B, num_actions]``
        :param root_values: Search values of the roots, shape ``[B]``
        :param stamp: Age of the model that searched, in gradient updates
        """
        rows, envs = starts
        self.policies[rows, envs], self.root_values[rows, envs], self.policy_stamps[rows, envs] = policies, root_values, stamp

    def update_priorities(self, starts: np.ndarray, errors: np.ndarray) -> None:
        """
        Set the priorities of prioritised sampling.

        :param starts: Ring row and environment of each step, as in ``SequenceSamples``, shape ``[2, B]``
        :param errors: How wrong the value was, in any unit, at least 0, shape ``[B]``
        :raises ValueError: for an error that is negative or not finite
        """
        if self.priorities is None:
            return
        if not (np.isfinite(errors) & (errors >= 0)).all():
            raise ValueError(f"Priorities need errors that are finite and at least 0, got {errors}")
        self._largest_error = max(self._largest_error, float(errors.max()))
        errors = np.maximum(errors, self.LEAST_ERROR * (self._largest_error or 1.0))
        self.priorities.update(starts[0] * self.n_envs + starts[1], errors**self.priority_exponent)

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """
        Store one transition per environment, the successor of the one before unless an episode ended or was ``cut``.

        :param obs: Observations, shape ``[n_envs, *obs_shape]``
        :param next_obs: Their successors, the final observation where the episode ended
        :param action: Action indices, counted from 0, shape ``[n_envs]``
        :param reward: Rewards, shape ``[n_envs]``
        :param done: Whether the episode ended, shape ``[n_envs]``
        :param infos: ``TimeLimit.truncated`` tells a truncation from a termination
        """
        if not self._allocated:
            self._allocate()
        shape = (self.n_envs, *self.obs_shape)
        dtype = self.observation_space.dtype
        obs, next_obs = np.asarray(obs, dtype).reshape(shape), np.asarray(next_obs, dtype).reshape(shape)
        row = self.pos
        self._free_slots += self.final_slots[row, self.final_slots[row] >= 0].tolist()
        self.final_slots[row], self.ends[row], self.terminals[row] = -1, False, False

        self.observations[row] = obs
        self.newest_observations[:] = next_obs
        self.actions[row] = np.reshape(action, self.n_envs)
        self.rewards[row] = reward
        sizes = np.abs(reward[reward != 0])
        self._num_rewards += len(sizes)
        self._reward_size += (sizes - self._reward_size).sum() / max(self._num_rewards, 1)
        search = (0.0, 0.0, 0) if self._search is None else self._search
        self.policies[row], self.root_values[row], self.policy_stamps[row] = search
        self._search = None
        if self._visits is not None:
            self.codes[row] = self._visits.visit(next_obs)
        if self.priorities is not None:
            leaves = row * self.n_envs + np.arange(self.n_envs)
            self.priorities.update(leaves, np.full(self.n_envs, (self._largest_error or 1.0) ** self.priority_exponent))
        for env in np.flatnonzero(done).tolist():
            truncated = infos[env].get("TimeLimit.truncated", False)
            self._end_episode(row, env, next_obs[env], terminal=not truncated)

        self.pos = (row + 1) % self.buffer_size
        self.full = self.full or self.pos == 0

    def cut(self) -> None:
        """End all running episodes where they are, as truncated: the environments are about to be reset."""
        if self.size() > 0:
            newest = (self.pos - 1) % self.buffer_size
            for env in np.flatnonzero(~self.ends[newest]).tolist():
                self._end_episode(newest, env, self.newest_observations[env], terminal=False)

    def _end_episode(self, row: int, env: int, final_observation: np.ndarray, terminal: bool) -> None:
        if not self._free_slots:
            used = len(self.final_observations)
            self._free_slots = list(range(used, 2 * used))
            self.final_observations = np.concatenate([self.final_observations, np.zeros_like(self.final_observations)])
        slot = self._free_slots.pop()
        self.final_observations[slot] = final_observation
        self.final_slots[row, env] = slot
        self.ends[row, env] = True
        self.terminals[row, env] = terminal

    def sample(  # type: ignore[override]
        self,
        batch_size: int,
        env: VecNormalize | None = None,
        *,
        unroll_steps: int,
        n_steps: int,
        n_steps_half_life: float = float("inf"),
        novelty_coef: float = 0.0,
        progress_remaining: float = 1.0,
    ) -> SequenceSamples:
        """
        Draw sequences that start at random transitions, by their priorities or most of them at recent ones.

        :param batch_size: Number of sequences B
        :param env: Normalises observations and rewards, which are stored as they came
        :param unroll_steps: Steps K that the model is unrolled over
        :param n_steps: Steps n of the value targets
        :param n_steps_half_life: Transitions stored since, after which a sequence's value targets have half as many steps
        :param novelty_coef: See ``sequences``
        :param progress_remaining: From 1 to 0, for ``importance_exponent``
        :return: The sequences
        """
        size, weights = self.size(), None
        if self.priorities is None:
            num_recent = int(np.ceil(self.recent_share * size))
            ages = np.random.randint(size - num_recent, size, size=batch_size)  # 0: the oldest
            num_anywhere = batch_size // 8
            ages[:num_anywhere] = np.random.randint(0, size, size=num_anywhere)
            envs = np.random.randint(0, self.n_envs, size=batch_size)
        else:
            masses = (np.arange(batch_size) + np.random.rand(batch_size)) / batch_size * self.priorities.total
            leaves = self.priorities.find(masses)
            rows, envs = np.divmod(leaves, self.n_envs)
            ages = (rows - self.pos) % self.buffer_size if self.full else rows
            weights = self.priorities[leaves] ** -self.importance_exponent(progress_remaining)
            weights /= weights.max()
        horizons = n_steps * 0.5 ** ((size - 1 - ages) * self.n_envs / n_steps_half_life)
        return self.sequences(
            ages,
            envs,
            unroll_steps,
            n_steps,
            env,
            horizons=np.maximum(horizons.round().astype(np.int64), 1),
            weights=weights,
            novelty_coef=novelty_coef,
        )

    def sequences(
        self,
        ages: np.ndarray,
        envs: np.ndarray,
        unroll_steps: int,
        n_steps: int,
        env: VecNormalize | None = None,
        *,
        horizons: np.ndarray | None = None,
        weights: np.ndarray | None = None,
        novelty_coef: float = 0.0,
    ) -> SequenceSamples:
        """
        Read the sequences that start at given transitions.

        :param ages: Start of each sequence, counted from the oldest stored row, shape ``[B]``
        :param envs: Environment of each sequence, shape ``[B]``
        :param unroll_steps: Steps K that the model is unrolled over
        :param n_steps: Steps n of the value targets
        :param env: Normalises observations and rewards, which are stored as they came
        :param horizons: Each sequence's own n, at most ``n_steps``, shape ``[B]``
        :param weights: Importance weights, shape ``[B]``
        :param novelty_coef: What the first visit of a region adds to the reward, as a multiple of the mean size of the rewards
            other than zero (of 1 as long as there are none); the n-th adds ``novelty_coef / sqrt(n)``, and the mean of that
            over all visits is subtracted. The counts are those of now, so that old data do not promise novelty.
            There is none before ``LEAST_FOR_NOVELTY`` transitions are stored
        :return: The sequences
        """
        starts = (self.pos if self.full else 0) + ages
        horizons = np.full(len(ages), n_steps) if horizons is None else horizons
        weights = np.ones(len(ages)) if weights is None else weights
        steps = np.arange(unroll_steps + n_steps)[:, None]
        # A sequence ends with its episode, or where the data end
        ends = self._read(self.ends, starts + steps, envs) | (ages + steps >= self.size() - 1)
        ends[-1] = True
        lengths = ends.argmax(axis=0) + 1
        inside = steps < lengths

        positions = steps[: unroll_steps + 1]
        observations = self._observations_at(
            np.minimum(
                np.concatenate([np.broadcast_to(positions, (len(positions), len(ages))), positions + horizons]), lengths
            ),
            starts,
            envs,
        )
        actions = np.where(
            inside[:unroll_steps],
            self._read(self.actions, starts + steps[:unroll_steps], envs),
            np.random.randint(0, int(self.action_space.n), size=(unroll_steps, len(ages))),
        )
        rewards = self._normalize_reward(self._read(self.rewards, starts + steps, envs), env)
        if novelty_coef > 0 and self.size() * self.n_envs >= self.LEAST_FOR_NOVELTY:
            unit = self._normalize_reward(np.array(self._reward_size), env) if self._num_rewards > 0 else 1.0
            rewards = rewards + novelty_coef * unit * self._novelty(starts + steps, envs)
        policies = self._read(self.policies, starts + positions, envs)
        terminals = self._read(self.terminals, starts + lengths - 1, envs)
        # None of these arrays shares memory with the ring
        both_observations = self.to_torch(self._normalize_obs(observations, env), copy=False)  # type: ignore[arg-type]
        return SequenceSamples(
            observations=both_observations[: unroll_steps + 1],
            bootstrap_observations=both_observations[unroll_steps + 1 :],
            actions=self.to_torch(actions, copy=False),
            rewards=self.to_torch((rewards * inside).astype(np.float32), copy=False),
            policies=self.to_torch(policies * inside[: unroll_steps + 1, :, None], copy=False),
            lengths=self.to_torch(lengths, copy=False),
            terminated=self.to_torch(terminals, copy=False),
            horizons=self.to_torch(horizons, copy=False),
            weights=self.to_torch(weights.astype(np.float32), copy=False),
            starts=np.stack([starts % self.buffer_size, envs]),
            policy_stamps=self._read(self.policy_stamps, starts, envs),
        )

    def _novelty(self, rows: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """:return: How new the steps' successors are, shape of ``rows``"""
        if self._visits is None:  # the cells are made for what there is, which mostly is the warm-up
            self._visits = VisitCounts(self.observation_space)
            self._visits.fit(self.observations[: self.size()].reshape(-1, *self.obs_shape))
            oldest, every_env = self.pos if self.full else 0, np.arange(self.n_envs)
            for row in range(oldest, oldest + self.size()):
                successors = self._observations_at(np.ones((1, self.n_envs), int), np.full(self.n_envs, row), every_env)
                self.codes[row % self.buffer_size] = self._visits.visit(successors[0])
        return self._visits.bonus(self._read(self.codes, rows, envs))

    def _read(self, ring: np.ndarray, rows: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """
        What ``ring[rows % buffer_size, envs]`` is, in a fraction of the time.

        :param ring: One of the rings
        :param rows: Rows, before wrapping around, shape ``[..., B]``
        :param envs: Environments, shape ``[B]``
        :return: A copy, shape ``[..., B, *ring.shape[2:]]``
        """
        return ring.reshape(-1, *ring.shape[2:]).take(rows * self.n_envs + envs, axis=0, mode="wrap")

    def _observations_at(self, positions: np.ndarray, starts: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """
        Observations after ``positions`` steps, none of them beyond the sequence's end.

        :param positions: Shape ``[P, B]``
        :param starts: Rows where the sequences start, before wrapping around, shape ``[B]``
        :param envs: Their environments, shape ``[B]``
        :return: Shape ``[P, B, *obs_shape]``
        """
        rows = starts + positions
        observations = self._read(self.observations, rows, envs)
        # The row after an episode's last step belongs to the next episode, the row after the newest one to nobody
        slots = np.where(positions > 0, self._read(self.final_slots, rows - 1, envs), -1)
        final = slots >= 0
        observations[final] = self.final_observations[slots[final]]
        newest = (positions > 0) & ~final & (rows % self.buffer_size == self.pos)
        observations[newest] = self.newest_observations[np.broadcast_to(envs, rows.shape)[newest]]
        return observations

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if self._allocated:
            state.update({name: getattr(self, name)[: self.size()] for name in self._RINGS})
            if self.priorities is not None:
                state["priorities"] = self.priorities[np.arange(self.size() * self.n_envs)]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._allocated:
            filled = {name: state[name] for name in self._RINGS}
            kept = self.final_observations, self._free_slots, self.newest_observations
            self._allocate()
            self.final_observations, self._free_slots, self.newest_observations = kept
            for name, rows in filled.items():
                getattr(self, name)[: len(rows)] = rows
            if self.priorities is not None:
                self.priorities.update(np.arange(len(state["priorities"])), state["priorities"])
