"""Observations of a ring of transitions, each stored once: a record for Dict observations, the newest frame of a stack."""

import warnings
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_muzero.common.numeric import is_integer
from sb3_muzero.common.serialization import copy_into, validate_array
from sb3_muzero.common.validation import MAX_MAGNITUDE, is_in_space
from sb3_muzero.replay.packing import FramePacking, is_binary
from sb3_muzero.replay.ring import NewSteps, StepIndex, flat, take

UNSEEN_FRAMES = "The environments were stepped outside of training: frames that the replay buffer has not seen count as zeros"

ArrayOrDict = np.ndarray | dict[str, np.ndarray]


def check_frame_stack(frame_stack: int, space: spaces.Space, num_rows: int) -> None:
    """
    :param frame_stack: How many frames an observation consists of
    :param space: Observation space
    :param num_rows: Steps of each environment that the ring can hold
    :raises ValueError: for a number of frames that observations cannot consist of
    """
    if not is_integer(frame_stack):
        raise ValueError(f"`frame_stack` must be an integer, got {frame_stack!r}")
    length = (space.shape or (0,))[0] if isinstance(space, spaces.Box) else 0
    if frame_stack != 1 and (frame_stack < 1 or length < 1 or length % frame_stack != 0):
        raise ValueError(f"`frame_stack` must be 1 or divide the first axis of a Box, got {frame_stack} for {space}")
    if 1 < frame_stack >= num_rows:
        raise ValueError(
            f"`buffer_size` must be above `frame_stack` ({frame_stack}) for each environment, which has {num_rows} steps"
        )


def with_shape(observations: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """
    :param observations: As environments return them
    :param shape: Expected shape, which may differ in axes of length 1
    :return: The observations in that shape
    :raises ValueError: for any other shape
    """
    if np.shape(observations) == shape:
        return observations
    if np.squeeze(observations).shape != tuple(length for length in shape if length != 1):
        raise ValueError(
            f"Observations must have the shape {shape[1:]} of the observation space, got {np.shape(observations)[1:]}"
        )
    return np.reshape(observations, shape)


class ObservationRing:
    """
    Observations of a ring of transitions. The observation after a step is that of its environment's next step, so each is
    stored once; only the last ones of episodes are kept beside the ring.

    :param observation_space: Observation space
    :param index: Steps that are stored, which the owner of the ring keeps up to date
    :param frame_stack: How many frames an observation consists of, along its first axis, the newest one last: only that is
        stored. The frames before an episode's first are zeros, as in ``VecFrameStack``
    """

    def __init__(self, observation_space: spaces.Space, index: StepIndex, frame_stack: int = 1) -> None:
        self.space = observation_space
        self.index = index
        self.frame_stack = frame_stack
        self.shape = () if isinstance(observation_space, spaces.Dict) else tuple(observation_space.shape or ())
        frame = (self.shape[0] // frame_stack, *self.shape[1:]) if frame_stack > 1 else self.shape
        self.packing = FramePacking(observation_space, frame)
        self.frames = np.zeros((index.num_rows, index.n_envs), self.packing.stored)
        # One more than where the observation after an episode's last step lies in `finals`, 0 for other steps: zeros take no
        # memory before they are written
        self.slots = np.zeros((index.num_rows, index.n_envs), dtype=np.int32)
        self.finals = np.zeros(16, self.packing.stored)
        self._free_slots = list(range(16))
        # The observation after the newest step of each environment
        self.newest = np.zeros(index.n_envs, self.packing.stored)

    @property
    def ends(self) -> np.ndarray:
        """Whether steps are the last ones of their episodes, shape ``[num_rows, n_envs]``."""
        return self.slots > 0

    @property
    def place_of_zeros(self) -> int:
        """Where the frames before an episode's first lie, see ``places``."""
        return self.index.capacity + len(self.finals) + self.index.n_envs

    def write(self, steps: NewSteps, observations: ArrayOrDict, next_observations: ArrayOrDict) -> np.ndarray:
        """
        Store steps that are about to be appended to the index.

        :param steps: The N steps
        :param observations: As environments return them, shape ``[N, *obs_shape]``
        :param next_observations: Those after the steps, shape ``[N, *obs_shape]``
        :return: The observations after the steps, as records for a Dict space
        :raises ValueError: for observations of another shape, or if the first ones are not stacks of frames
        """
        num_steps, at = len(steps.ids), steps.at
        observed, followed = self._records(observations, num_steps), self._records(next_observations, num_steps)
        newest_frames = (slice(None), slice(-self.packing.given.shape[0], None)) if self.frame_stack > 1 else ()
        if self.frame_stack > 1:
            self._split_episodes(steps, observed, followed)
        overwritten = self.slots[at]
        self._free_slots += (overwritten[overwritten > 0] - 1).tolist()
        self.slots[at] = 0
        self.frames[at] = self.packing.pack(observed[newest_frames])
        self.newest[steps.envs] = self.packing.pack(followed[newest_frames])
        return followed

    def _records(self, observations: ArrayOrDict, num: int) -> np.ndarray:
        dtype = self.packing.given.base
        if not isinstance(observations, dict):
            return with_shape(np.asarray(observations, dtype), (num, *self.shape))
        records: Any = np.zeros(num, dtype)
        for name in dtype.names or ():
            records[name] = with_shape(observations[name], records[name].shape)
        return records

    def _split_episodes(self, steps: NewSteps, observed: np.ndarray, followed: np.ndarray) -> None:
        """
        End the episodes of environments whose stacks do not continue those of the newest step: they were stepped without
        storing it.

        :raises ValueError: if the first observations of an environment, or those of an episode, are not stacks of frames
        """
        ids, before, length = steps.ids, steps.ids - self.index.n_envs, self.packing.given.shape[0]
        is_next, is_empty = ids == self.index.ends[steps.envs], self.index.num_written[steps.envs] == 0
        was_end = self._is_end(before)
        if is_empty.any() or not is_next.all():
            self._check_stacks(observed, followed)
        stored = take(self.frames, self.index.places(before)), self.newest[steps.envs]
        expected = np.concatenate([self.packing.unpack(frames) for frames in stored], axis=1)
        differs = (observed[:, -2 * length :] != expected).reshape(len(ids), -1).any(axis=1)
        self.end_episodes(before[is_next & ~is_empty & differs & ~was_end])
        if observed[is_next & (is_empty | was_end | differs), :-length].any():
            warnings.warn(UNSEEN_FRAMES)

    def _check_stacks(self, observed: np.ndarray, followed: np.ndarray) -> None:
        """:raises ValueError: if a step brings other than one new frame, or all frames are the same"""
        length = self.packing.given.shape[0]
        before, shifted = observed[:, :-length], observed[:, length:]
        if not np.array_equal(shifted, followed[:, :-length]) or (before.any() and np.array_equal(before, shifted)):
            raise ValueError(
                f"`frame_stack` must be how many frames an observation consists of along its first axis, the newest one last "
                f"and zeros before an episode's first, as in VecFrameStack; observations of shape {self.shape} are not "
                f"stacks of {self.frame_stack}. `replay_buffer_kwargs=dict(frame_stack=1)` stores them whole"
            )

    def _is_end(self, ids: np.ndarray) -> np.ndarray:
        return take(self.slots, self.index.places(ids)) > 0

    def end_episodes(self, ids: np.ndarray) -> None:
        """
        Keep the newest observations as final ones.

        :param ids: Newest steps of some environments, the last ones of their episodes, shape ``[N]``
        """
        for step in ids.tolist():
            if not self._free_slots:
                used = len(self.finals)
                self._free_slots = list(range(used, 2 * used))
                self.finals = np.concatenate([self.finals, np.zeros_like(self.finals)])
            slot = self._free_slots.pop()
            self.finals[slot] = self.newest[step % self.index.n_envs]
            flat(self.slots)[self.index.places(step)] = slot + 1

    def cut(self, env: int | None = None) -> None:
        """
        End running episodes where they are.

        :param env: An environment; all of them by default
        """
        newest = self.index.ends - self.index.n_envs
        is_running = (self.index.lengths > 0) & ~self._is_end(newest)
        if env is not None:
            is_running &= np.arange(self.index.n_envs) == env
        self.end_episodes(newest[is_running])

    def state(self) -> dict[str, Any]:
        """:return: All that is stored, for ``sb3_muzero.common.serialization``"""
        size = self.index.lengths.max()
        slots = self.slots[:size]
        finals = self.finals[slots[slots > 0] - 1]
        return {"frames": self.frames[:size], "ends": slots > 0, "finals": finals, "newest": self.newest}

    def load_state(self, state: dict[str, Any]) -> None:
        """
        :param state: What ``state`` returned, of a ring of as many rows; the index must be loaded before
        :raises ValueError: if it is anything else
        """
        lengths = self.index.lengths
        size = lengths.max()
        frames = validate_array("observations.frames", state["frames"], self.frames[:size])
        is_end = validate_array("observations.ends", state["ends"], self.ends[:size])
        num_finals = int(is_end.sum())
        like = np.empty((num_finals, *self.finals.shape[1:]), self.finals.dtype)
        finals = validate_array("observations.finals", state["finals"], like)
        newest = validate_array("observations.newest", state["newest"], self.newest)
        self._check_numbers(finals)
        self._check_numbers(newest[lengths > 0])
        for env, length in enumerate(lengths.tolist()):
            self._check_numbers(frames[:length, env])
        self.frames = copy_into(self.frames, frames)
        self.slots[:size][is_end] = np.arange(num_finals) + 1
        self.finals = copy_into(np.zeros((max(16, num_finals), *finals.shape[1:]), finals.dtype), finals)
        self._free_slots = list(range(num_finals, len(self.finals)))
        self.newest[:] = newest

    def _check_numbers(self, frames: np.ndarray) -> None:
        parts = self.space.items() if isinstance(self.space, spaces.Dict) else [((), self.space)]
        for key, space in parts:
            if is_binary(space):  # any bits will do
                continue
            if frames[key].dtype.kind == "f":  # of which there may be much: no copies
                validate_array("observations", frames[key], frames[key], -MAX_MAGNITUDE, MAX_MAGNITUDE)
            elif not is_in_space(frames[key], space).all():
                raise ValueError(f"`observations` must be of {space}")

    def at(self, positions: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """
        Observations after ``positions`` steps, none of them beyond the sequence's end.

        :param positions: Shape ``[..., B]``
        :param ids: Steps that the sequences start at, shape ``[B]``
        :return: As records for a Dict space, shape ``[..., B, *obs_shape]``
        """
        frames = self.fetch(self.places(positions, ids))
        return frames if self.frame_stack == 1 else frames.reshape(*positions.shape, *self.shape)

    def places(self, positions: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """
        Where the frames of observations lie: counted through the ring, ``finals``, ``newest`` and one of zeros.

        :param positions: Steps after the first ones, none of them beyond the sequence's end, shape ``[..., B]``
        :param ids: Steps that the sequences start at, shape ``[B]``
        :return: For ``fetch``; shape ``[..., B]``, for stacks ``[..., B, frame_stack]``, oldest frame first
        """
        index = self.index
        envs, steps = ids % index.n_envs, ids + positions * index.n_envs
        finals, newest = index.capacity, index.capacity + len(self.finals)
        # What follows an episode's last step in the ring belongs to the next episode, and nothing follows the newest one
        slots = np.where(positions > 0, take(self.slots, index.places(steps - index.n_envs)), 0)
        is_final = slots > 0
        is_newest = (positions > 0) & (steps == index.ends[envs])
        places = np.where(is_final, finals + slots - 1, np.where(is_newest, newest + envs, index.places(steps)))
        if self.frame_stack == 1:
            return places

        stack = [places]
        zeros, begins = self.place_of_zeros, index.begins[envs]
        same_episode = np.ones_like(is_final)
        for back in range(1, self.frame_stack):
            earlier = steps - back * index.n_envs
            # A final observation comes after its episode's last step, any other one before a step of its episode
            same_episode = same_episode & ~(self._is_end(earlier) & ~(is_final & (back == 1))) & (earlier >= begins)
            stack.insert(0, np.where(same_episode, index.places(earlier), zeros))
        return np.stack(stack, axis=-1)

    def fetch(self, places: np.ndarray) -> np.ndarray:
        """
        :param places: What ``places`` returned, any shape
        :return: A copy of the frames that lie there, as records for a Dict space, shape ``[*places.shape, *frame_shape]``
        """
        frames = take(self.frames, places)
        beside = places - self.index.capacity
        for source in (self.finals, self.newest, np.zeros((1, *self.frames.shape[2:]), self.frames.dtype)):
            inside = (beside >= 0) & (beside < len(source))
            frames[inside] = source[beside[inside]]
            beside = beside - len(source)
        return self.packing.unpack(frames)


def parts_of(records: np.ndarray) -> Any:
    """
    :param records: Observations as a ring stores them
    :return: A dictionary of arrays for a Dict space, the observations themselves otherwise
    """
    names = records.dtype.names
    return records if names is None else {name: np.ascontiguousarray(records[name]) for name in names}
