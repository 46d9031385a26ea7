"""Which steps a ring of transitions holds, and where."""

import numpy as np


def flat(ring: np.ndarray) -> np.ndarray:
    """
    :param ring: Shape ``[num_rows, n_envs, ...]``
    :return: A view of it, shape ``[num_rows * n_envs, ...]``
    """
    return ring.reshape(-1, *ring.shape[2:])


def take(ring: np.ndarray, places: np.ndarray) -> np.ndarray:
    """
    What ``flat(ring)[places]`` is, in a fraction of the time.

    :param ring: Shape ``[num_rows, n_envs, ...]``
    :param places: See ``StepIndex.places``, any shape
    :return: A copy, shape ``[*places.shape, ...]``
    """
    return flat(ring).take(places, axis=0, mode="clip")


class StepIndex:
    """
    Ids of the steps in a ring, where every environment has its own write position.

    The n-th step of environment e has the id ``n * n_envs + e``; the step after it in the same environment has that id plus
    ``n_envs``. A step lies at place ``id % (num_rows * n_envs)`` of the flattened arrays until its environment overwrites it.
    No id is used twice.

    :param num_rows: Steps of each environment that the ring can hold
    :param n_envs: Number of environments
    :param context: Steps before a step that are needed to read it: in a full ring the oldest ones are unreadable
    :param first: Smallest id, a multiple of ``num_rows * n_envs``
    """

    def __init__(self, num_rows: int, n_envs: int, context: int = 0, first: int = 0) -> None:
        self.num_rows = num_rows
        self.n_envs = n_envs
        self.capacity = num_rows * n_envs
        self.context = context
        self.first = first + np.arange(n_envs, dtype=np.int64)
        """Smallest id of each environment, shape ``[n_envs]``."""
        self.ends = self.first.copy()
        """Id of each environment's next step, shape ``[n_envs]``."""
        self._update()

    def _update(self) -> None:
        self.begins = np.maximum(self.ends - self.capacity, self.first)
        """Id of each environment's oldest step, shape ``[n_envs]``."""
        self.lengths = (self.ends - self.begins) // self.n_envs
        """Number of steps of each environment that are stored, shape ``[n_envs]``."""
        self.num_readable = self.lengths - self.context * (self.lengths == self.num_rows)
        """Number of steps of each environment, its newest ones, where a sequence can start, shape ``[n_envs]``."""

    def cleared(self, num_rows: int) -> "StepIndex":
        """
        :param num_rows: Steps of each environment that the new ring can hold
        :return: Index of an empty ring, whose ids are all new
        """
        num_steps = int(self.ends.max()) // self.n_envs
        first = -(-num_steps // num_rows) * num_rows * self.n_envs
        return StepIndex(num_rows, self.n_envs, self.context, first)

    @property
    def num_written(self) -> np.ndarray:
        """Number of steps of each environment that were ever written, shape ``[n_envs]``."""
        return (self.ends - self.first) // self.n_envs

    @num_written.setter
    def num_written(self, num_written: np.ndarray) -> None:
        self.ends = self.first + num_written * self.n_envs
        self._update()

    def append(self, ids: np.ndarray) -> None:
        """
        :param ids: Ids that follow on ``ends``, those of one environment in their order, shape ``[N]``
        """
        self.ends[ids % self.n_envs] = ids + self.n_envs
        self._update()

    def places(self, ids: np.ndarray) -> np.ndarray:
        """
        :param ids: Any shape
        :return: Where the steps lie in the flattened arrays
        """
        return ids % self.capacity

    def ids_at(self, places: np.ndarray) -> np.ndarray:
        """
        :param places: Where steps are stored in the flattened arrays, any shape
        :return: Their ids
        """
        newest = self.ends[places % self.n_envs] - self.n_envs
        return newest - (newest - places) % self.capacity

    def stored(self) -> np.ndarray:
        """:return: Ids of all steps, the oldest step of each environment first, shape ``[lengths.sum()]``"""
        ages, envs = np.nonzero(np.arange(self.lengths.max())[:, None] < self.lengths)
        return self.begins[envs] + ages * self.n_envs

    def unreadable(self) -> np.ndarray:
        """:return: Ids of the stored steps where no sequence can start, any order"""
        ids = self.begins + np.arange(self.context)[:, None] * self.n_envs
        return ids[:, self.lengths == self.num_rows].ravel()

    def is_stored(self, ids: np.ndarray) -> np.ndarray:
        """
        :param ids: Shape ``[B]``
        :return: Whether the steps have not been overwritten, shape ``[B]``
        """
        envs = ids % self.n_envs
        return (self.begins[envs] <= ids) & (ids < self.ends[envs])

    def is_readable(self, ids: np.ndarray) -> np.ndarray:
        """
        :param ids: Shape ``[B]``
        :return: Whether a sequence can start there, shape ``[B]``
        """
        envs = ids % self.n_envs
        return (self.ends[envs] - self.num_readable[envs] * self.n_envs <= ids) & (ids < self.ends[envs])
