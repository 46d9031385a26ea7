"""What happened: SB3's [time, env] ring of transitions with search statistics, read as sequences to unroll over."""

import warnings
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecNormalize

from sb3_muzero.common.pytree import tree_map
from sb3_muzero.common.serialization import copy_into, validate_array, validate_number
from sb3_muzero.common.validation import MAX_MAGNITUDE
from sb3_muzero.exploration.count_bonus import VisitCounts
from sb3_muzero.replay.observation_store import ArrayOrDict, ObservationRing, parts_of, read_ring
from sb3_muzero.replay.sum_tree import SumTree


class SequenceSamples(NamedTuple):
    """
    Sequences of one episode each. Position ``k`` is the state after ``k`` steps from the sampled one; a sequence has
    ``lengths`` steps, and its last position is the state where it ends (episode end or newest data).
    K = ``unroll_steps``, n = ``n_steps``, h = the sequence's own horizon.

    :param observations: At positions 0..K, the end repeated beyond it, shape ``[K + 1, B, *obs_shape]`` (a Dict of such)
    :param bootstrap_observations: At positions h..h+K, the end repeated beyond it, shape ``[K + 1, B, *obs_shape]``
    :param actions: Action indices of steps 0..K-1, uniformly random beyond the end, shape ``[K, B]``
    :param rewards: Of steps 0..K+n-1, zero beyond the end, shape ``[K + n, B]``, with n no more than there are stored
    :param policies: Search policies at positions 0..K, zero where there was no search, shape ``[K + 1, B, num_actions]``
    :param action_masks: True for legal actions at positions 0..K, for all of them from the end on, shape
        ``[K + 1, B, num_actions]``; ``None`` where every action always was
    :param lengths: Steps in the sequence, from 1 to K + n, shape ``[B]``
    :param terminated: Whether the sequence ends in a terminal state, shape ``[B]``
    :param horizons: Steps of the value targets before they bootstrap, from 1 to n, shape ``[B]``
    :param weights: Importance weights of prioritised sampling, at most 1, shape ``[B]``
    :param starts: Ring row and environment of the first step, shape ``[2, B]``
    :param model_versions: What ``store_search`` was told with the policy at position 0, shape ``[B]``
    :param reanalyzed_values: Values that take the place of n-step returns, shape ``[K + 1, B]``; ``None`` for none
    :param has_reanalyzed_value: Where they do, at positions before the end, shape ``[K + 1, B]``
    """

    observations: PyTorchObs
    bootstrap_observations: PyTorchObs
    actions: th.Tensor
    rewards: th.Tensor
    policies: th.Tensor
    action_masks: th.Tensor | None
    lengths: th.Tensor
    terminated: th.Tensor
    horizons: th.Tensor
    weights: th.Tensor
    starts: np.ndarray
    model_versions: np.ndarray
    reanalyzed_values: th.Tensor | None = None
    has_reanalyzed_value: th.Tensor | None = None

    def policy_age(self, num_updates: int) -> th.Tensor:
        """
        :param num_updates: Gradient updates so far
        :return: Mean age of the policy targets at position 0, in gradient updates, a scalar
        """
        searched = (self.policies[0].sum(-1) > 0).numpy(force=True)
        age = np.mean(num_updates - self.model_versions[searched]) if searched.any() else 0.0
        return th.tensor(age, dtype=th.float32, device=self.policies.device)


class SequenceReplayBuffer(ReplayBuffer):
    """
    Ring of transitions, in SB3's layout, that also keeps the search's result for each decision.

    Every observation is stored once, in its own dtype (``ObservationRing``). Termination and truncation stay apart.
    Arrays are allocated when the first transition arrives, and only filled rows are saved.

    :param buffer_size: Number of transitions over all environments
    :param observation_space: Observation space
    :param action_space: Action space
    :param device: PyTorch device of the samples
    :param n_envs: Number of parallel environments
    :param optimize_memory_usage: Accepted for SB3's calling convention; observations are always stored once
    :param recent_fraction: Share of the stored transitions, the newest ones, from which seven of eight sequences start; the
        eighth may start anywhere, so that a rare success is not forgotten. What a beginner did makes good states look bad for
        as long as it is sampled much: of 6 trial seeds of CartPole-v1 one was not solved in 9000 steps with a share of 1, all
        within 7000 with 0.75. Without the eighth one of 5 seeds of Acrobot-v1 ended at the worst return
    :param priority_exponent: Sequences start in proportion to their first transition's priority to this power
        (https://arxiv.org/abs/1511.05952); 0 for uniform sampling. With priorities ``recent_fraction`` is of no effect
    :param importance_exponent: Of the importance weights that correct for priorities, from 0 to 1; a float or a function of
        the progress remaining (from 1 to 0)
    :param frame_stack: How many frames an observation of ``VecFrameStack`` consists of; each is stored once
    :raises ValueError: for an argument outside of its range
    """

    action_space: spaces.Discrete
    observations: ObservationRing  # type: ignore[assignment]

    MIN_PRIORITY_FRACTION = 1e-3  # that counts for a priority, as a share of the largest one so far

    MIN_TRANSITIONS_FOR_BONUS = 256  # transitions that tell how wide a region is
    MAX_TRANSITIONS_FOR_CELLS = 10_000  # transitions that it is told from

    _RINGS = ("actions", "rewards", "policies", "root_values", "model_versions", "bucket_ids", "terminals")

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Discrete,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        recent_fraction: float = 0.75,
        priority_exponent: float = 0.0,
        importance_exponent: float | Schedule = 0.4,
        frame_stack: int = 1,
    ) -> None:
        if not 0 < recent_fraction <= 1:
            raise ValueError(f"`recent_fraction` must be above 0 and at most 1, got {recent_fraction}")
        if not 0 <= priority_exponent < float("inf"):
            raise ValueError(f"`priority_exponent` must be at least 0 and finite, got {priority_exponent}")
        if not 0 <= FloatSchedule(importance_exponent)(1.0) <= 1:
            raise ValueError(f"`importance_exponent` must be between 0 and 1, got {importance_exponent}")
        self.recent_fraction = recent_fraction
        self.priority_exponent = priority_exponent
        self.importance_exponent = FloatSchedule(importance_exponent)
        rows = max(buffer_size // n_envs, 1)
        if not isinstance(frame_stack, int):
            raise ValueError(f"`frame_stack` must be an integer, got {frame_stack!r}")
        if frame_stack != 1:
            length = (observation_space.shape or (0,))[0] if isinstance(observation_space, spaces.Box) else 0
            if frame_stack < 1 or length < 1 or length % frame_stack != 0:
                raise ValueError(
                    f"`frame_stack` must be 1 or divide the first axis of a Box, got {frame_stack} for {observation_space}"
                )
            if rows <= frame_stack:
                raise ValueError(
                    f"`buffer_size` must be above `frame_stack` ({frame_stack}) for each of {n_envs} environments, "
                    f"got {buffer_size}"
                )
        self.frame_stack = frame_stack
        # Not those of ReplayBuffer, which allocates every observation twice
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs)
        self.buffer_size = rows
        self.reset()

    def reset(self) -> None:
        super().reset()
        self._allocated = False
        self._search: tuple[np.ndarray, np.ndarray, int] | None = None
        self._new_masks: np.ndarray | None = None
        # Allocated when the first masks come
        self.action_masks: np.ndarray | None = None
        self._visits: VisitCounts | None = None
        self._largest_error = 0.0
        # Mean size of the rewards other than zero, and their number
        self._reward_size = 1.0
        self._num_rewards = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.size() * self.n_envs} of {self.buffer_size * self.n_envs} transitions)"

    def _allocate(self) -> None:
        shape = (self.buffer_size, self.n_envs)
        self.observations = ObservationRing(self.observation_space, *shape, frame_stack=self.frame_stack)
        self.actions = np.zeros(shape, dtype=np.int64)
        self.rewards = np.zeros(shape, dtype=np.float32)
        self.policies = np.zeros((*shape, int(self.action_space.n)), dtype=np.float32)
        self.root_values = np.zeros(shape, dtype=np.float32)
        self.model_versions = np.zeros(shape, dtype=np.int64)
        self.bucket_ids = np.zeros(shape, dtype=np.int64)
        self.priorities = SumTree(self.buffer_size * self.n_envs) if self.priority_exponent > 0 else None
        self.terminals = np.zeros(shape, dtype=np.bool_)
        self._allocated = True
        needed = self.observations.frames.nbytes + sum(getattr(self, name).nbytes for name in self._RINGS)
        if needed > (available := psutil.virtual_memory().available):
            warnings.warn(
                f"A full replay buffer takes {needed / 1e9:.2f}GB, and this system has {available / 1e9:.2f}GB of memory "
                f"available: `buffer_size` may have to be smaller"
            )

    def store_search(self, policies: np.ndarray, root_values: np.ndarray, model_version: int) -> None:
        """
        Keep the search results that belong to the transitions of the next ``add``. Steps without search store zeros.

        :param policies: Improved policies, shape ``[n_envs, num_actions]``
        :param root_values: Search values of the roots, shape ``[n_envs]``
        :param model_version: Age of the model that searched, in gradient updates
        """
        self._search = policies, root_values, model_version

    def store_action_masks(self, action_masks: np.ndarray) -> None:
        """
        Keep the masks that belong to the transitions of the next ``add``. In steps without masks every action is legal.

        :param action_masks: True for legal actions, shape ``[n_envs, num_actions]``
        """
        self._new_masks = action_masks

    def update_search(self, starts: np.ndarray, policies: np.ndarray, root_values: np.ndarray, model_version: int) -> None:
        """
        Replace search results by newer ones.

        :param starts: Ring row and environment of each step, as in ``SequenceSamples``, shape ``[2, B]``
        :param policies: Improved policies, shape ``[B, num_actions]``
        :param root_values: Search values of the roots, shape ``[B]``
        :param model_version: Age of the model that searched, in gradient updates
        """
        rows, envs = starts
        self.policies[rows, envs], self.root_values[rows, envs] = policies, root_values
        self.model_versions[rows, envs] = model_version

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
        errors = np.maximum(errors, self.MIN_PRIORITY_FRACTION * (self._largest_error or 1.0))
        self.priorities.update(starts[0] * self.n_envs + starts[1], errors**self.priority_exponent)

    def add(
        self,
        obs: ArrayOrDict,
        next_obs: ArrayOrDict,
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
        :raises ValueError: for actions that there are not, with nothing stored
        """
        action, num_actions = np.reshape(action, self.n_envs), int(self.action_space.n)
        if not ((action >= 0) & (action < num_actions)).all():
            raise ValueError(f"`action` must be indices from 0 to {num_actions - 1}, got {action}")
        if not self._allocated:
            self._allocate()
        row = self.pos
        successors = self.observations.add(obs, next_obs)
        self.terminals[row] = False
        self.actions[row] = action
        self.rewards[row] = reward
        sizes = np.abs(reward[reward != 0])
        self._num_rewards += len(sizes)
        self._reward_size += (sizes - self._reward_size).sum() / max(self._num_rewards, 1)
        search = (0.0, 0.0, 0) if self._search is None else self._search
        self.policies[row], self.root_values[row], self.model_versions[row] = search
        self._search = None
        if self._new_masks is not None and self.action_masks is None:
            self.action_masks = np.ones(self.policies.shape, dtype=np.bool_)
        if self.action_masks is not None:
            self.action_masks[row] = True if self._new_masks is None else self._new_masks
        self._new_masks = None
        if self._visits is not None:
            self.bucket_ids[row] = self._visits.update_counts(successors)
        if self.priorities is not None:
            leaves = row * self.n_envs + np.arange(self.n_envs)
            self.priorities.update(leaves, np.full(self.n_envs, (self._largest_error or 1.0) ** self.priority_exponent))
            if self.full and self.frame_stack > 1:
                self._forget_lost_rows(row + 1)
        for env in np.flatnonzero(done).tolist():
            self.observations.end_episode(env)
            self.terminals[row, env] = not infos[env].get("TimeLimit.truncated", False)

        self.pos = (row + 1) % self.buffer_size
        self.full = self.full or self.pos == 0

    def _forget_lost_rows(self, oldest_row: int) -> None:
        """Set priorities of zero for the oldest rows of a full ring, whose stacks' frames before are gone."""
        assert self.priorities is not None
        rows = (oldest_row + np.arange(self.frame_stack - 1)) % self.buffer_size
        leaves = (rows[:, None] * self.n_envs + np.arange(self.n_envs)).ravel()
        self.priorities.update(leaves, np.zeros(len(leaves)))

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
            oldest = self.frame_stack - 1 if self.full else 0  # the frames before the oldest ones are gone
            num_recent = int(np.ceil(self.recent_fraction * (size - oldest)))
            ages = np.random.randint(size - num_recent, size, size=batch_size)  # 0: the oldest
            num_anywhere = batch_size // 8
            ages[:num_anywhere] = np.random.randint(oldest, size, size=num_anywhere)
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
            There is none before ``MIN_TRANSITIONS_FOR_BONUS`` transitions are stored
        :return: The sequences
        """
        starts = self.observations.oldest_row + ages
        n_steps = min(n_steps, self.size())  # a sequence is no longer than that
        horizons = np.minimum(n_steps, n_steps if horizons is None else horizons) + np.zeros_like(ages)
        weights = np.ones(len(ages)) if weights is None else weights
        steps = np.arange(unroll_steps + n_steps)[:, None]
        # A sequence ends with its episode, or where the data end
        ends = read_ring(self.observations.ends, starts + steps, envs) | (ages + steps >= self.size() - 1)
        ends[-1] = True
        lengths = ends.argmax(axis=0) + 1
        inside = steps < lengths

        positions = steps[: unroll_steps + 1]
        both_observations = self._observations(
            np.minimum(
                np.concatenate([np.broadcast_to(positions, (len(positions), len(ages))), positions + horizons]), lengths
            ),
            starts,
            envs,
            env,
        )
        actions = np.where(
            inside[:unroll_steps],
            read_ring(self.actions, starts + steps[:unroll_steps], envs),
            np.random.randint(0, int(self.action_space.n), size=(unroll_steps, len(ages))),
        )
        rewards = self._normalize_reward(read_ring(self.rewards, starts + steps, envs), env)
        if novelty_coef > 0 and self.size() * self.n_envs >= self.MIN_TRANSITIONS_FOR_BONUS:
            unit = self._normalize_reward(np.array(self._reward_size), env) if self._num_rewards > 0 else 1.0
            rewards = rewards + novelty_coef * unit * self._novelty(starts + steps, envs)
        policies = read_ring(self.policies, starts + positions, envs)
        before_end = inside[: unroll_steps + 1, :, None]
        action_masks = None
        if self.action_masks is not None:
            action_masks = self.to_torch(read_ring(self.action_masks, starts + positions, envs) | ~before_end, copy=False)
        terminals = read_ring(self.terminals, starts + lengths - 1, envs)
        # None of these arrays shares memory with the ring
        return SequenceSamples(
            observations=tree_map(lambda part: part[: unroll_steps + 1], both_observations),
            bootstrap_observations=tree_map(lambda part: part[unroll_steps + 1 :], both_observations),
            actions=self.to_torch(actions, copy=False),
            rewards=self.to_torch((rewards * inside).astype(np.float32), copy=False),
            policies=self.to_torch(policies * before_end, copy=False),
            action_masks=action_masks,
            lengths=self.to_torch(lengths, copy=False),
            terminated=self.to_torch(terminals, copy=False),
            horizons=self.to_torch(horizons, copy=False),
            weights=self.to_torch(weights.astype(np.float32), copy=False),
            starts=np.stack([starts % self.buffer_size, envs]),
            model_versions=read_ring(self.model_versions, starts, envs),
        )

    def _observations(self, positions: np.ndarray, starts: np.ndarray, envs: np.ndarray, env: VecNormalize | None) -> Any:
        """:return: What ``ObservationRing.at`` gives, normalised and on the buffer's device"""
        if self.device.type == "cuda" and self.frame_stack > 1 and (env is None or not env.norm_obs):
            return self._stacked_on_device(positions, starts, envs)
        parts = self._normalize_obs(parts_of(self.observations.at(positions, starts, envs)), env)
        return tree_map(lambda part: self.to_torch(part, copy=False), parts)

    def _stacked_on_device(self, positions: np.ndarray, starts: np.ndarray, envs: np.ndarray) -> th.Tensor:
        """
        Stacks share frames, and each is to travel to a GPU once: 256 sequences of Atari's frames take 5 ms to an H100, where
        whole stacks took 64.
        """
        distinct, where = np.unique(self.observations.places(positions, starts, envs), return_inverse=True)
        frames = self.to_torch(self.observations.fetch(distinct), copy=False)
        stacks = frames.index_select(0, self.to_torch(where.reshape(-1), copy=False))
        return stacks.reshape(*positions.shape, *self.observations.shape)

    def _novelty(self, rows: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """:return: How new the steps' successors are, shape of ``rows``"""
        if self._visits is None:  # the cells are made for what there is, which mostly is the warm-up
            self._visits = VisitCounts(self.observation_space)
            oldest, stored = self.observations.oldest_row, self.size() * self.n_envs
            some = np.linspace(0, stored - 1, min(stored, self.MAX_TRANSITIONS_FOR_CELLS)).astype(np.int64)
            some_rows, some_envs = np.divmod(some, self.n_envs)
            self._visits.fit(self.observations.at(np.zeros_like(some), oldest + some_rows, some_envs))
            every_env = np.arange(self.n_envs)
            for row in range(oldest, oldest + self.size()):
                successors = self.observations.at(np.ones_like(every_env), np.full_like(every_env, row), every_env)
                self.bucket_ids[row % self.buffer_size] = self._visits.update_counts(successors)
        return self._visits.bonus(read_ring(self.bucket_ids, rows, envs))

    def to_torch(self, array: np.ndarray, copy: bool = True) -> th.Tensor:
        """
        :param array: Array
        :param copy: Whether the tensor must not share memory with it
        :return: Tensor on the buffer's device; a GPU fetches it while the CPU goes on
        """
        if self.device.type == "cuda":
            return th.from_numpy(array).pin_memory().to(self.device, non_blocking=True)
        return super().to_torch(array, copy)

    def state(self) -> dict[str, Any]:
        """:return: All that is stored, as a tree (``sb3_muzero.common.serialization``), filled rows only"""
        size = self.size()
        state: dict[str, Any] = {name: getattr(self, name) for name in self._counters()} | {"shape": self._shape()}
        if self._allocated:
            state |= {name: getattr(self, name)[:size] for name in self._RINGS}
            state["observations"] = self.observations.state(size)
            state["action_masks"] = None if self.action_masks is None else self.action_masks[:size]
            state["priorities"] = None if self.priorities is None else self.priorities[np.arange(size * self.n_envs)]
            state["priority_exponent"] = self.priority_exponent
            state["visits"] = None if self._visits is None else self._visits.state()
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """
        :param state: What ``state`` gave, read from a file: its arrays may become this buffer's own
        :raises ValueError: if it is of other spaces, environments or frames, or its numbers can't be, naming them
        """
        mine, theirs = self._shape(), state.get("shape")
        if not isinstance(theirs, dict) or theirs.keys() != mine.keys():
            raise ValueError(f"This is no replay buffer, but holds {sorted(state)}")
        for name in mine:
            if name != "buffer_size" and repr(mine[name]) != repr(theirs[name]):  # which may be anything
                raise ValueError(f"The replay buffer must be of `{name}` {mine[name]}, got one of {theirs[name]!r:.200}")
        try:
            # What no array can be is not left to NumPy, which would not say what is wrong
            self.buffer_size = validate_number("buffer_size", theirs["buffer_size"], int, low=1, high=2**40)
            self.reset()
            if "observations" in state:
                self._allocate()
                self._load_rings(state)
            for name, (kind, low, high) in self._counters().items():
                setattr(self, name, validate_number(name, state[name], kind, low, high))
            if self._allocated and (self.pos, self.full) != (self.observations.next_row, self.observations.full):
                raise ValueError(f"`pos` and `full` must be those of the observations, got {self.pos} and {self.full}")
        except (LookupError, TypeError, AttributeError, OverflowError, MemoryError) as error:
            raise ValueError(f"This is no replay buffer: {error!r}") from error

    def _counters(self) -> dict[str, tuple[type, float, float]]:
        """:return: Kinds of the counters, and their bounds"""
        last = self.buffer_size - 1 if self._allocated else 0
        sizes = {
            "_largest_error": (float, 0, MAX_MAGNITUDE**2),
            "_reward_size": (float, 0, MAX_MAGNITUDE),
            "_num_rewards": (int, 0, 2**53),
        }
        return {"pos": (int, 0, last), "full": (bool, 0, int(self._allocated)), **sizes}

    def _load_rings(self, state: dict[str, Any]) -> None:
        num_actions = int(self.action_space.n)
        size = (
            self.buffer_size if state["full"] is True else validate_number("pos", state["pos"], int, 0, self.buffer_size - 1)
        )
        bounds: dict[str, tuple[float, float]] = {
            "actions": (0, num_actions - 1),
            "policies": (0, 1.001),
            "model_versions": (0, 2**53),
        }
        bounds |= {"rewards": (-MAX_MAGNITUDE, MAX_MAGNITUDE), "root_values": (-(MAX_MAGNITUDE**2), MAX_MAGNITUDE**2)}
        bounds["bucket_ids"] = (0, VisitCounts.TABLE_SIZE - 1)
        for name in self._RINGS:
            ring = getattr(self, name)
            setattr(self, name, copy_into(ring, validate_array(name, state[name], ring[:size], *bounds.get(name, ()))))
        self.observations.load_state(state["observations"], size)
        if state["action_masks"] is not None:
            masks = np.ones(self.policies.shape, dtype=np.bool_)
            self.action_masks = copy_into(masks, validate_array("action_masks", state["action_masks"], masks[:size]))
        if self.priorities is not None:
            stored, known = np.arange(size * self.n_envs), state["priorities"]
            powers = np.ones(len(stored))
            if known is not None:
                powers = validate_array("priorities", known, powers, low=0)
                exponent = validate_number("priority_exponent", state["priority_exponent"], float, np.finfo(float).tiny)
                if exponent != self.priority_exponent:
                    powers = powers ** (self.priority_exponent / exponent)
            self.priorities.update(stored, powers)
            if known is None and self.observations.full:
                self._forget_lost_rows(self.observations.next_row)
            if len(stored) > 0 and not 0 < self.priorities.total < np.inf:
                raise ValueError(f"`priorities` must have a sum above 0 and finite, got {self.priorities.total}")
        if state["visits"] is not None:
            self._visits = VisitCounts(self.observation_space)
            self._visits.load_state(state["visits"])

    def _shape(self) -> dict[str, Any]:
        """:return: What another buffer must have in common, and how many rows this one has"""
        spaces_ = {"observation_space": str(self.observation_space), "action_space": str(self.action_space)}
        return {**spaces_, "n_envs": self.n_envs, "frame_stack": self.frame_stack, "buffer_size": self.buffer_size}
