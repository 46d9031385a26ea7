"""A bonus for exploration on stored rewards, which follows the present visit counts."""

from typing import Any, Protocol

import numpy as np
from stable_baselines3.common.vec_env import VecNormalize

from sb3_muzero.common.serialization import copy_into, validate_array, validate_number
from sb3_muzero.replay.observation_store import ObservationRing
from sb3_muzero.replay.ring import NewSteps, flat, take


class RewardBonus(Protocol):
    """A bonus that depends on how often the agent has been where: ``exploration.count_bonus.CountBonus`` is one."""

    num_buckets: int
    """Bucket ids are smaller."""

    def fit(self, observations: np.ndarray) -> None:
        """
        Forget all counts.

        :param observations: Stored ones, to learn their scale from, shape ``[N, *obs_shape]``, records for a Dict space
        """

    def update_counts(self, observations: np.ndarray) -> np.ndarray:
        """
        :param observations: New ones, shape ``[N, *obs_shape]``, records for a Dict space
        :return: Their bucket ids, shape ``[N]``
        """

    def bonus(self, bucket_ids: np.ndarray) -> np.ndarray:
        """
        :param bucket_ids: Of observations that were counted, any shape
        :return: Bonus of the steps that led there, same shape
        """

    def state(self) -> dict[str, Any]:
        """:return: All that was counted, for ``sb3_muzero.common.serialization``"""

    def load_state(self, state: dict[str, Any]) -> None:
        """
        :param state: What ``state`` returned
        :raises ValueError: if it is anything else
        """


class StoredBonus:
    """
    Connects a bonus with the steps of a ring: keeps the bucket of each step, so that the bonus of an old step is what it is
    by now, and the mean size of the rewards other than zero, which is the bonus's unit.

    Counting begins when the bonus is first asked for; what is stored by then is counted, too. The bonus is fitted again, and
    all that is stored is counted again, whenever the number of steps so far has doubled: the agent has come further.

    :param bonus: Has counted nothing yet
    :param observations: Observations of the ring
    """

    MIN_TRANSITIONS = 256
    """There is no bonus before that many are stored."""
    MIN_TRANSITIONS_FOR_REFIT = 1000
    """Before that many steps, the bonus is fitted only once."""
    MAX_TRANSITIONS_FOR_FIT = 10_000
    MAX_BYTES_FOR_FIT = 1 << 23
    """Of observations as they came; the bonus computes with eight bytes for each of their numbers."""

    def __init__(self, bonus: RewardBonus | None, observations: ObservationRing) -> None:
        self.bonus = bonus
        self.observations = observations
        self.bucket_ids: np.ndarray | None = None
        """Shape ``[num_rows, n_envs]``; ``None`` until counting begins."""
        # Number of steps so far at which the bonus is fitted again
        self._next_fit = 0
        # Mean size of the rewards other than zero, and their number
        self._reward_size = 1.0
        self._num_rewards = 0

    def add(self, steps: NewSteps, next_observations: np.ndarray, rewards: np.ndarray) -> None:
        """
        :param steps: The N new steps
        :param next_observations: Those after the steps, shape ``[N, *obs_shape]``, records for a Dict space
        :param rewards: Shape ``[N]``
        """
        sizes = np.abs(rewards[rewards != 0])
        self._num_rewards += len(sizes)
        self._reward_size += (sizes - self._reward_size).sum() / max(self._num_rewards, 1)
        if self.bucket_ids is not None:
            assert self.bonus is not None
            self.bucket_ids[steps.at] = self.bonus.update_counts(next_observations)

    def of(self, ids: np.ndarray, coef: float, env: VecNormalize | None) -> np.ndarray | float:
        """
        :param ids: Steps, any shape
        :param coef: Coefficient of the bonus
        :param env: Normalises rewards
        :return: What to add to the steps' rewards, same shape
        :raises ValueError: if the buffer has no ``reward_bonus``
        """
        if self.bonus is None:
            raise ValueError("`bonus_coef` above 0 needs a replay buffer with a `reward_bonus`")
        index = self.observations.index
        if index.lengths.sum() < self.MIN_TRANSITIONS:
            return 0.0
        num_steps = int(index.num_written.sum())
        if self.bucket_ids is None or num_steps >= self._next_fit:
            self.bucket_ids = self._count_stored(self.bonus)
            self._next_fit = max(2 * num_steps, self.MIN_TRANSITIONS_FOR_REFIT)
        unit: Any = 1.0
        if self._num_rewards > 0:
            unit = np.array(self._reward_size)
            unit = unit if env is None else env.normalize_reward(unit).astype(np.float32)
        return coef * unit * self.bonus.bonus(take(self.bucket_ids, index.places(ids)))

    def _count_stored(self, bonus: RewardBonus) -> np.ndarray:
        """:return: Bucket ids of all stored steps, shape ``[num_rows, n_envs]``, after fitting to what is stored"""
        index, observations = self.observations.index, self.observations
        ids = index.stored()
        observation_bytes = observations.packing.given.itemsize * observations.frame_stack
        num_fitted = min(len(ids), self.MAX_TRANSITIONS_FOR_FIT, max(self.MAX_BYTES_FOR_FIT // observation_bytes, 1))
        some = ids[np.linspace(0, len(ids) - 1, num_fitted).astype(np.int64)]
        bonus.fit(observations.at(np.zeros_like(some), some))
        bucket_ids = np.zeros((index.num_rows, index.n_envs), dtype=np.int64)
        for first in range(0, len(ids), 256):  # few enough that copies of images are small
            steps = ids[first : first + 256]
            flat(bucket_ids)[index.places(steps)] = bonus.update_counts(observations.at(np.ones_like(steps), steps))
        return bucket_ids

    def state(self) -> dict[str, Any]:
        """:return: All that is to be saved, for ``sb3_muzero.common.serialization``"""
        state: dict[str, Any] = {"reward_size": self._reward_size, "num_rewards": self._num_rewards}
        if self.bucket_ids is not None:
            assert self.bonus is not None
            state["bucket_ids"] = self.bucket_ids[: self.observations.index.lengths.max()]
            state["next_fit"] = self._next_fit
            state["counts"] = self.bonus.state()
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """
        :param state: What ``state`` returned; the observations must be loaded before
        :raises ValueError: if it is anything else
        """
        self._reward_size = validate_number("reward_size", state["reward_size"], float, low=0)
        self._num_rewards = validate_number("num_rewards", state["num_rewards"], int, low=0)
        if "counts" in state and self.bonus is not None:
            self.bonus.load_state(state["counts"])
            self._next_fit = validate_number("next_fit", state["next_fit"], int, low=1)
            index = self.observations.index
            bucket_ids = np.zeros((index.num_rows, index.n_envs), dtype=np.int64)
            like, high = bucket_ids[: index.lengths.max()], self.bonus.num_buckets - 1
            self.bucket_ids = copy_into(bucket_ids, validate_array("bucket_ids", state["bucket_ids"], like, 0, high))
