"""Which steps a ring of transitions holds, and where."""

from typing import TYPE_CHECKING, NamedTuple, Union

import numpy as np

if TYPE_CHECKING:
    from sb3_muzero.replay.compact_rings import BitRing


class NewSteps(NamedTuple):
    """
    N steps that are about to be stored: the next one of each environment, or several of one environment.

    :param ids: Their ids, those of one environment in their order, shape ``[N]``
    :param at: Where they will lie in arrays of shape ``[num_rows, n_envs, ...]``: a row, or rows and environments
    :param envs: Where their environments are in arrays of shape ``[n_envs, ...]``
    """

    ids: np.ndarray
    at: int | tuple[np.ndarray, np.ndarray]
    envs: slice | np.ndarray


def flat(ring: np.ndarray) -> np.ndarray:
    """
    :param ring: Shape ``[num_rows, n_envs, ...]``
    :return: A view of it, shape ``[num_rows * n_envs, ...]``
    """
    return ring.reshape(-1, *ring.shape[2:])


def take(ring: Union[np.ndarray, "BitRing"], places: np.ndarray) -> np.ndarray:
    """
    What ``flat(ring)[places]`` is, in a fraction of the time, and of a ``BitRing``, too.

    :param ring: Shape ``[num_rows, n_envs, ...]``
    :param places: See ``StepIndex.places``, any shape
    :return: A copy, shape ``[*places.shape, ...]``
    """
    if not isinstance(ring, np.ndarray):
        return ring[np.divmod(places, ring.bits.shape[1])]
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
        # Whether all environments have been written equally many steps
        self._in_step = True

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
        self._compare_environments()

    def _compare_environments(self) -> None:
        num_written = self.num_written
        self._in_step = bool((num_written == num_written[0]).all())

    @property
    def lengths(self) -> np.ndarray:
        """Number of steps of each environment that are stored, shape ``[n_envs]``."""
        return np.minimum(self.num_written, self.num_rows)

    @property
    def begins(self) -> np.ndarray:
        """Id of each environment's oldest step, shape ``[n_envs]``."""
        return np.maximum(self.ends - self.capacity, self.first)

    @property
    def num_readable(self) -> np.ndarray:
        """Number of steps of each environment, its newest ones, where a sequence can start, shape ``[n_envs]``."""
        lengths = self.lengths
        return lengths - self.context * (lengths == self.num_rows)

    def next_row(self) -> NewSteps:
        """:return: The next step of each environment"""
        ids = self.ends.copy()
        if self._in_step:
            return NewSteps(ids, int(ids[0]) // self.n_envs % self.num_rows, slice(None))
        return NewSteps(ids, np.divmod(self.places(ids), self.n_envs), slice(None))

    def next_of(self, env: int, num_steps: int) -> NewSteps:
        """
        :param env: An environment
        :param num_steps: Number of steps N
        :return: Its next steps
        """
        ids = self.ends[env] + np.arange(num_steps) * self.n_envs
        rows, envs = np.divmod(self.places(ids), self.n_envs)
        return NewSteps(ids, (rows, envs), envs)

    def append(self, steps: NewSteps) -> None:
        """:param steps: What ``next_row`` or ``next_of`` returned, now stored"""
        self.ends[steps.envs] = steps.ids + self.n_envs
        if isinstance(steps.envs, np.ndarray):
            self._compare_environments()

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
        if self.context == 0:
            return np.zeros(0, dtype=np.int64)
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
