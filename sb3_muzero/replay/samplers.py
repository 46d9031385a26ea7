"""Where sampled sequences start: at recent steps, or in proportion to priorities."""

from typing import Any

import numpy as np
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule

from sb3_muzero.common.numeric import is_number
from sb3_muzero.common.serialization import validate_array, validate_number
from sb3_muzero.common.validation import check_schedule
from sb3_muzero.replay.ring import StepIndex
from sb3_muzero.replay.sum_tree import SumTree


class RecentSampler:
    """
    Starts seven of eight sequences at the newest steps, uniformly, and the eighth at any step, so that a rare success is not
    forgotten. Steps that an early policy took make good states look bad for as long as they are sampled much.

    :param recent_fraction: Fraction of the stored steps that counts as the newest; 1 for uniform sampling
    :raises ValueError: for a fraction outside of its range
    """

    def __init__(self, recent_fraction: float) -> None:
        if not (is_number(recent_fraction) and 0 < recent_fraction <= 1):
            raise ValueError(f"`recent_fraction` must be above 0 and at most 1, got {recent_fraction!r}")
        self.recent_fraction = recent_fraction

    def sample(self, index: StepIndex, batch_size: int, progress_remaining: float) -> tuple[np.ndarray, np.ndarray]:
        """
        :param index: Steps that are stored, at least one
        :param batch_size: Number of sequences B
        :param progress_remaining: From 1 to 0
        :return: Ids of steps and their importance weights, each of shape ``[B]``
        """
        num_readable = index.num_readable
        longest, num_anywhere = int(num_readable.max()), batch_size // 8
        first_recent = longest - int(np.ceil(self.recent_fraction * longest))
        # Rows of a table with a column for each environment, the newest steps in its last row
        rows = np.random.randint(first_recent, longest, size=batch_size)
        rows[:num_anywhere] = np.random.randint(0, longest, size=num_anywhere)
        envs = np.random.randint(0, index.n_envs, size=batch_size)
        # An environment with fewer steps leaves the table's first rows empty
        while len(empty := np.flatnonzero(rows < longest - num_readable[envs])) > 0:
            rows[empty] = np.random.randint(np.where(empty < num_anywhere, 0, first_recent), longest)
            envs[empty] = np.random.randint(0, index.n_envs, size=len(empty))
        return index.ends[envs] - (longest - rows) * index.n_envs, np.ones(batch_size)

    def add(self, index: StepIndex, ids: np.ndarray) -> None:
        """
        :param index: Steps that are stored
        :param ids: The new ones among them, shape ``[N]``
        """

    def update_priorities(self, index: StepIndex, ids: np.ndarray, errors: np.ndarray) -> None:
        """
        :param index: Steps that are stored
        :param ids: Steps, some of which may have been overwritten, shape ``[B]``
        :param errors: How wrong the value was, at least 0, shape ``[B]``
        """

    def state(self, index: StepIndex) -> dict[str, Any]:
        """
        :param index: Steps that are stored
        :return: What is to be saved, for ``sb3_muzero.common.serialization``
        """
        return {}

    def load_state(self, index: StepIndex, state: dict[str, Any]) -> None:
        """
        :param index: Steps that are stored
        :param state: What ``state`` of any sampler returned
        """


class PrioritizedSampler(RecentSampler):
    """
    Starts sequences in proportion to the priority of their first step (Prioritized Experience Replay,
    https://arxiv.org/abs/1511.05952). A priority is an error to a power; new steps get the largest of the latest errors.

    :param priority_exponent: Power of the errors
    :param importance_exponent: Power of the importance weights that correct for priorities, from 0 to 1; a float or a
        function of the progress remaining
    :raises ValueError: for an exponent outside of its range
    """

    MIN_PRIORITY_FRACTION = 1e-3
    """Smaller errors count as this fraction of the largest of the latest ones."""
    LARGEST_ERROR_DECAY = 0.98
    """Factor of the largest error with each update, so that an exceptional one is forgotten after a few hundred."""

    def __init__(self, priority_exponent: float, importance_exponent: float | Schedule) -> None:
        if not (is_number(priority_exponent) and 0 <= priority_exponent < float("inf")):
            raise ValueError(f"`priority_exponent` must be at least 0 and finite, got {priority_exponent!r}")
        check_schedule("importance_exponent", importance_exponent)
        if not 0 <= FloatSchedule(importance_exponent)(1.0) <= 1:
            raise ValueError(f"`importance_exponent` must be between 0 and 1, got {importance_exponent}")
        self.priority_exponent = priority_exponent
        self.importance_exponent = FloatSchedule(importance_exponent)
        self.priorities: SumTree | None = None
        """By place in the flattened ring, 0 where no sequence can start; allocated with the first steps."""
        self._largest_error = 0.0

    def sample(self, index: StepIndex, batch_size: int, progress_remaining: float) -> tuple[np.ndarray, np.ndarray]:
        assert self.priorities is not None
        masses = (np.arange(batch_size) + np.random.rand(batch_size)) / batch_size * self.priorities.total
        places = self.priorities.find(masses)
        weights = self.priorities[places] ** -self.importance_exponent(progress_remaining)
        return index.ids_at(places), weights / weights.max()

    def add(self, index: StepIndex, ids: np.ndarray) -> None:
        self._set(index, ids, np.full(len(ids), (self._largest_error or 1.0) ** self.priority_exponent))

    def update_priorities(self, index: StepIndex, ids: np.ndarray, errors: np.ndarray) -> None:
        """:raises ValueError: for an error that is negative or not finite"""
        if not (np.isfinite(errors) & (errors >= 0)).all():
            raise ValueError(f"Priorities need errors that are finite and at least 0, got {errors}")
        is_readable = index.is_readable(ids)
        ids, errors = ids[is_readable], errors[is_readable]
        if len(ids) == 0 or self.priorities is None:
            return
        self._largest_error = max(self.LARGEST_ERROR_DECAY * self._largest_error, float(errors.max()))
        errors = np.maximum(errors, self.MIN_PRIORITY_FRACTION * (self._largest_error or 1.0))
        self.priorities.update(index.places(ids), errors**self.priority_exponent)

    def _set(self, index: StepIndex, ids: np.ndarray, priorities: np.ndarray) -> None:
        if self.priorities is None:
            self.priorities = SumTree(index.capacity)
        self.priorities.update(index.places(ids), priorities)
        if len(unreadable := index.unreadable()) > 0:
            self.priorities.update(index.places(unreadable), np.zeros(len(unreadable)))

    def state(self, index: StepIndex) -> dict[str, Any]:
        if self.priorities is None:
            return {}
        return {
            "priorities": self.priorities[index.places(index.stored())],
            "priority_exponent": self.priority_exponent,
            "largest_error": self._largest_error,
        }

    def load_state(self, index: StepIndex, state: dict[str, Any]) -> None:
        """
        Priorities that were made with another exponent are converted; without any, all steps get the same one.

        :raises ValueError: if nothing could be sampled by these priorities
        """
        ids = index.stored()
        priorities = np.ones(len(ids))
        if state:
            self._largest_error = validate_number("largest_error", state["largest_error"], float, low=0)
            priorities = validate_array("priorities", state["priorities"], priorities, low=0)
            exponent = validate_number("priority_exponent", state["priority_exponent"], float, low=np.finfo(float).tiny)
            if exponent != self.priority_exponent:
                priorities = priorities ** (self.priority_exponent / exponent)
        self._set(index, ids, priorities)
        if len(ids) > 0 and self.priorities is not None and not 0 < self.priorities.total < np.inf:
            raise ValueError(f"`priorities` must have a sum above 0 and finite, got {self.priorities.total}")
