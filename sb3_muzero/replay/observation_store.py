"""Observations of a [time, env] ring, each stored once: of Dict observations a record, of stacked frames the newest."""

import warnings
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_muzero.common.serialization import copy_into, validate_array, validate_number
from sb3_muzero.common.validation import MAX_MAGNITUDE, is_in_space

UNSEEN_FRAMES = "The environments were stepped outside of training: frames that the replay buffer has not seen count as zeros"

ArrayOrDict = np.ndarray | dict[str, np.ndarray]


def stored_dtype(space: spaces.Space) -> np.dtype:
    """
    :param space: Observation space
    :return: Its dtype; a record of all parts for a Dict space
    """
    if isinstance(space, spaces.Dict):
        return np.dtype([(key, stored_dtype(part), part.shape or ()) for key, part in space.items()])
    assert space.dtype is not None
    return space.dtype


def with_shape(observations: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """
    :param observations: As environments give them
    :param shape: Theirs, but for axes of 1
    :return: With that very shape
    :raises ValueError: for any other shape
    """
    if np.squeeze(observations).shape != tuple(length for length in shape if length != 1):
        raise ValueError(
            f"Observations must have the shape {shape[1:]} that the model has them in, got {np.shape(observations)[1:]}. "
            f"Wrappers around `VecNormalize`, which SB3 puts there too, change its own: use "
            f"`VecNormalize(VecTransposeImage(env))` for images whose channels come last, and "
            f"`VecNormalize(VecFrameStack(env, ...))`"
        )
    return np.reshape(observations, shape)


def read_ring(ring: np.ndarray, rows: np.ndarray, envs: np.ndarray) -> np.ndarray:
    """
    What ``ring[rows % len(ring), envs]`` is, in a fraction of the time.

    :param ring: Anything per row and environment, shape ``[num_rows, n_envs, ...]``
    :param rows: Rows, before wrapping around, shape ``[..., B]``
    :param envs: Environments, shape ``[B]``
    :return: A copy, shape ``[..., B, *ring.shape[2:]]``
    """
    return ring.reshape(-1, *ring.shape[2:]).take(rows * ring.shape[1] + envs, axis=0, mode="wrap")


class ObservationRing:
    """
    Observations of a ring of transitions. The successor of a step is the next row's observation, and only episode ends keep a
    final observation beside the ring.

    :param observation_space: Observation space
    :param num_rows: Rows of the ring
    :param n_envs: Number of parallel environments
    :param frame_stack: How many frames an observation consists of, along its first axis, the newest one last: only that is
        stored. The frames before an episode's first are zeros, as ``VecFrameStack`` has it
    """

    def __init__(self, observation_space: spaces.Space, num_rows: int, n_envs: int, frame_stack: int = 1) -> None:
        self.space = observation_space
        self.frame_stack = frame_stack
        self.shape = () if isinstance(observation_space, spaces.Dict) else tuple(observation_space.shape or ())
        dtype = stored_dtype(observation_space)
        frame = (self.shape[0] // frame_stack, *self.shape[1:]) if frame_stack > 1 else self.shape
        self.frames = np.zeros((num_rows, n_envs, *frame), dtype=dtype)
        self.ends = np.zeros((num_rows, n_envs), dtype=np.bool_)
        # Where an end's final observation lies in `finals`, -1 elsewhere
        self.slots = np.full((num_rows, n_envs), -1, dtype=np.int64)
        self.finals = np.zeros((16, *frame), dtype=dtype)
        self._free_slots = list(range(16))
        # The newest transitions' next observations, one per environment
        self.newest = np.zeros((n_envs, *frame), dtype=dtype)
        self.next_row = 0
        self.full = False

    @property
    def oldest_row(self) -> int:
        """The first row of those in use; rows count on from it, before wrapping around."""
        return self.next_row if self.full else 0

    def add(self, observations: ArrayOrDict, successors: ArrayOrDict) -> np.ndarray:
        """
        Fill the next row.

        :param observations: As environments give them, shape ``[n_envs, *obs_shape]``
        :param successors: Those after the step, shape ``[n_envs, *obs_shape]``
        :return: The successors, as records for a Dict space
        :raises ValueError: for observations of another shape, or if the very first ones are no stacks of frames as they should
            be
        """
        begun, ended = self._records(observations), self._records(successors)
        if self.frame_stack > 1:
            if self.next_row == 0 and not self.full:
                self._check_stacks(begun, ended)
            else:
                self._begin_episodes(begun)
        row = self.next_row
        self._free_slots += self.slots[row, self.slots[row] >= 0].tolist()
        self.slots[row], self.ends[row] = -1, False
        newest_frames = (slice(None), slice(-self.frames.shape[2], None)) if self.frame_stack > 1 else ()
        self.frames[row], self.newest[:] = begun[newest_frames], ended[newest_frames]
        self.next_row = (row + 1) % len(self.frames)
        self.full = self.full or self.next_row == 0
        return ended

    def _records(self, observations: ArrayOrDict) -> np.ndarray:
        n_envs, dtype = self.frames.shape[1], self.frames.dtype
        if not isinstance(observations, dict):
            return with_shape(np.asarray(observations, dtype), (n_envs, *self.shape))
        records: Any = np.zeros(n_envs, dtype)
        for name in dtype.names or ():
            records[name] = with_shape(observations[name], records[name].shape)
        return records

    def _check_stacks(self, observations: np.ndarray, successors: np.ndarray) -> None:
        """:raises ValueError: if the very first step brings other than one new frame, or follows the same one several times"""
        length = self.frames.shape[2]
        before, shifted = observations[:, :-length], observations[:, length:]
        if not np.array_equal(shifted, successors[:, :-length]) or (before.any() and np.array_equal(before, shifted)):
            raise ValueError(
                f"`frame_stack` must be how many frames an observation consists of along its first axis, the newest one last "
                f"and zeros before an episode's first, as VecFrameStack has it; observations of shape {self.shape} are no "
                f"stacks of {self.frame_stack}. `replay_buffer_kwargs=dict(frame_stack=1)` stores them whole"
            )
        if before.any():
            warnings.warn(UNSEEN_FRAMES)

    def _begin_episodes(self, observations: np.ndarray) -> None:
        """Where stacks do not go on from the newest step, somebody else has stepped the environment: end the episode."""
        newest_row, length = self.next_row - 1, self.frames.shape[2]
        expected = np.concatenate([self.frames[newest_row], self.newest], axis=1)
        differs = (observations[:, -2 * length :] != expected).reshape(len(observations), -1).any(axis=1)
        for env in np.flatnonzero(differs & ~self.ends[newest_row]).tolist():
            self.end_episode(env)
        if observations[self.ends[newest_row], :-length].any():
            warnings.warn(UNSEEN_FRAMES)

    def end_episode(self, env: int) -> None:
        """
        Keep the newest observation as final: its step was the episode's last.

        :param env: An environment
        """
        if not self._free_slots:
            used = len(self.finals)
            self._free_slots = list(range(used, 2 * used))
            self.finals = np.concatenate([self.finals, np.zeros_like(self.finals)])
        slot = self._free_slots.pop()
        self.finals[slot] = self.newest[env]
        self.slots[self.next_row - 1, env] = slot
        self.ends[self.next_row - 1, env] = True

    def cut(self) -> None:
        """End all running episodes where they are: the environments are about to be reset."""
        if self.next_row > 0 or self.full:
            for env in np.flatnonzero(~self.ends[self.next_row - 1]).tolist():
                self.end_episode(env)

    def state(self, size: int) -> dict[str, Any]:
        """
        :param size: Rows in use, from the first one on
        :return: All that is stored, as a tree (``sb3_muzero.common.serialization``)
        """
        rings = {name: getattr(self, name)[:size] for name in ("frames", "ends", "slots")}
        kept = {name: getattr(self, name) for name in ("finals", "newest", "next_row", "full")}
        return {**rings, **kept, "free_slots": self._free_slots}

    def load_state(self, state: dict[str, Any], size: int) -> None:
        """
        :param state: What ``state`` gave, of a ring of as many rows
        :param size: Rows in use
        :raises ValueError: if it is anything else
        """
        finals = state["finals"]
        num_finals = len(finals) if isinstance(finals, np.ndarray) else 0
        like = np.empty((num_finals, *self.finals.shape[1:]), self.finals.dtype)
        self.finals = validate_array("observations.finals", finals, like).copy()
        for name, bounds in {"frames": (), "ends": (), "slots": (-1, num_finals - 1)}.items():
            ring = getattr(self, name)
            setattr(self, name, copy_into(ring, validate_array(f"observations.{name}", state[name], ring[:size], *bounds)))
        self.newest[:] = validate_array("observations.newest", state["newest"], self.newest)
        used = self.slots[self.slots >= 0].tolist()
        for frames in (self.frames[:size], self.finals[used], self.newest):
            parts = self.space.items() if isinstance(self.space, spaces.Dict) else [((), self.space)]
            for key, space in parts:
                if frames[key].dtype.kind == "f":  # of which there may be much: no copies
                    validate_array("observations", frames[key], frames[key], -MAX_MAGNITUDE, MAX_MAGNITUDE)
                elif not is_in_space(frames[key], space).all():
                    raise ValueError(f"`observations` must be of {space}")
        free = state["free_slots"]
        are_numbers = isinstance(free, list) and all(type(slot) is int for slot in free)
        if not are_numbers or sorted([*free, *used]) != list(range(num_finals)):
            raise ValueError(f"`observations.free_slots` must be those of {num_finals} that no episode's end has")
        self._free_slots = free
        self.next_row = validate_number("observations.next_row", state["next_row"], int, 0, len(self.frames) - 1)
        self.full = validate_number("observations.full", state["full"], bool)

    def at(self, positions: np.ndarray, starts: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """
        Observations after ``positions`` steps, none of them beyond the sequence's end.

        :param positions: Shape ``[..., B]``
        :param starts: Rows where the sequences start, counted on from ``oldest_row``, shape ``[B]``
        :param envs: Their environments, shape ``[B]``
        :return: As records for a Dict space, shape ``[..., B, *obs_shape]``
        """
        frames = self.fetch(self.places(positions, starts, envs))
        return frames if self.frame_stack == 1 else frames.reshape(*positions.shape, *self.shape)

    def places(self, positions: np.ndarray, starts: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """
        Where the frames of observations lie: counted through the ring, ``finals``, ``newest`` and one of zeros.

        :param positions: Steps after the starts, none of them beyond the sequence's end, shape ``[..., B]``
        :param starts: Rows where the sequences start, counted on from ``oldest_row``, shape ``[B]``
        :param envs: Their environments, shape ``[B]``
        :return: For ``fetch``; shape ``[..., B]``, and of stacks ``[..., B, frame_stack]``, oldest frame first
        """
        rows = starts + positions
        num_rows, n_envs = self.frames.shape[:2]
        finals, newest = num_rows * n_envs, num_rows * n_envs + len(self.finals)
        places = rows % num_rows * n_envs + envs
        # The row after an episode's last step belongs to the next episode, the row after the newest one to nobody
        slots = np.where(positions > 0, read_ring(self.slots, rows - 1, envs), -1)
        final = slots >= 0
        at_end = (positions > 0) & (rows % num_rows == self.next_row)
        places = np.where(final, finals + slots, np.where(at_end, newest + envs, places))
        if self.frame_stack == 1:
            return places

        stack = [places]
        same_episode = np.ones_like(final)
        for back in range(1, self.frame_stack):
            # A final observation comes after its episode's last step, any other one before a step of its episode
            ended = read_ring(self.ends, rows - back, envs) & ~(final & (back == 1))
            same_episode = same_episode & ~ended & (rows - back >= self.oldest_row)
            stack.insert(0, np.where(same_episode, (rows - back) % num_rows * n_envs + envs, newest + n_envs))
        return np.stack(stack, axis=-1)

    def fetch(self, places: np.ndarray) -> np.ndarray:
        """
        :param places: What ``places`` gave, any shape
        :return: A copy of the frames that lie there, as records for a Dict space, shape ``[*places.shape, *frame_shape]``
        """
        frame = self.frames.shape[2:]
        frames = self.frames.reshape(-1, *frame).take(places, axis=0, mode="clip")
        beside = places - self.frames.shape[0] * self.frames.shape[1]
        for source in (self.finals, self.newest, np.zeros((1, *frame), self.frames.dtype)):
            inside = (beside >= 0) & (beside < len(source))
            frames[inside] = source[beside[inside]]
            beside = beside - len(source)
        return frames


def parts_of(records: np.ndarray) -> Any:
    """
    :param records: Observations as a ring has them
    :return: A dictionary of arrays for a Dict space, what was given otherwise
    """
    names = records.dtype.names
    return records if names is None else {name: np.ascontiguousarray(records[name]) for name in names}
