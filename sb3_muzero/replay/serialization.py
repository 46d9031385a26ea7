"""Serialization of what a replay buffer holds; ``sb3_muzero.common.serialization`` writes it to files."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from sb3_muzero.common.serialization import copy_into, validate_array, validate_number
from sb3_muzero.replay.compact_rings import BitRing

if TYPE_CHECKING:
    from sb3_muzero.replay.replay_buffer import SequenceReplayBuffer

RINGS = ("actions", "rewards", "terminals", "policies", "model_versions")
OPTIONAL_RINGS = ("action_masks", "candidates", "turn_signs")


def buffer_state(buffer: "SequenceReplayBuffer") -> dict[str, Any]:
    """
    :param buffer: A replay buffer
    :return: All that it holds, filled rows only
    """
    state: dict[str, Any] = {"shape": _shape(buffer), "buffer_size": int(buffer.buffer_size)}
    if buffer.size() > 0:
        rings = {name: ring for name in RINGS + OPTIONAL_RINGS if (ring := getattr(buffer, name)) is not None}
        size = buffer.size()
        state["num_written"] = buffer.index.num_written
        state["rings"] = {name: ring.state(size) if isinstance(ring, BitRing) else ring[:size] for name, ring in rings.items()}
        state["observations"] = buffer.observations.state()
        state["sampler"] = buffer.sampler.state(buffer.index)
        state["bonus"] = buffer.bonus.state()
    return state


def saved_frame_stack(state: dict[str, Any]) -> int:
    """
    :param state: What ``buffer_state`` returned, or anything else
    :return: How many frames an observation consists of, 1 if it does not say
    """
    shape = state.get("shape")
    frame_stack = shape.get("frame_stack") if isinstance(shape, dict) else None
    return frame_stack if isinstance(frame_stack, int) else 1


def load_buffer_state(buffer: "SequenceReplayBuffer", state: dict[str, Any]) -> None:
    """
    Arrays of the state may become the buffer's own. Ids of samples from before are invalid.

    :param buffer: A replay buffer, which takes over the saved ``buffer_size`` and keeps its other settings
    :param state: What ``buffer_state`` returned
    :raises ValueError: for other spaces, another number of environments or frames, or anything but a buffer's state
    """
    mine, theirs = _shape(buffer), state.get("shape")
    if not isinstance(theirs, dict) or theirs.keys() != mine.keys():
        raise ValueError(f"This is not a replay buffer, it holds {sorted(state)}")
    for name in mine:
        if repr(theirs[name]) != repr(mine[name]):  # it may be of any type
            raise ValueError(f"The replay buffer must have `{name}` {mine[name]}, but in the file it is {theirs[name]!r:.200}")
    try:
        buffer.buffer_size = validate_number("buffer_size", state["buffer_size"], int, low=1, high=2**40)
        _check_memory(buffer)
        buffer.reset()
        if "num_written" in state:
            _load_transitions(buffer, state)
    except (LookupError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise ValueError(f"This is not a replay buffer: {error!r}") from error


def _check_memory(buffer: "SequenceReplayBuffer") -> None:
    """:raises ValueError: if 4 bytes for each step of a full buffer are more than the memory available"""
    needed, available = 4 * buffer.buffer_size * buffer.n_envs, psutil.virtual_memory().available
    if needed > available:
        raise ValueError(
            f"The replay buffer's `buffer_size` {buffer.buffer_size} takes more than {needed / 1e9:.2f} GB when it is full, "
            f"and this system has {available / 1e9:.2f} GB of memory available"
        )


def _load_transitions(buffer: "SequenceReplayBuffer", state: dict[str, Any]) -> None:
    num_written = validate_array("num_written", state["num_written"], buffer.index.num_written, low=0, high=2**40)
    buffer.allocate()
    buffer.index.num_written = num_written
    buffer.update_position()
    size = buffer.size()
    for name in (*RINGS, *(name for name in OPTIONAL_RINGS if state["rings"].get(name) is not None)):
        given = state["rings"][name]
        ring = getattr(buffer, name) if name in RINGS else buffer.make_optional_ring(name)
        if isinstance(ring, BitRing):
            ring.load_state(name, given, size)
        else:
            bounds = (-1, 1) if name == "turn_signs" else ()
            validate_array(name, given, ring[:size], *bounds)
            if name in ("actions", "candidates"):
                _check_actions(name, given, buffer)
            ring = copy_into(ring, given)
        setattr(buffer, name, ring)
    buffer.observations.load_state(state["observations"])
    buffer.sampler.load_state(buffer.index, state["sampler"])
    buffer.bonus.load_state(state["bonus"])


def _check_actions(name: str, given: np.ndarray, buffer: "SequenceReplayBuffer") -> None:
    """:raises ValueError: if an action is not in the action space"""
    try:
        buffer.action_type.check(given, given.size // math.prod(buffer.action_type.shape))
    except ValueError as error:
        raise ValueError(f"`{name}` must hold actions in {buffer.action_space}: {error}") from error


def _shape(buffer: "SequenceReplayBuffer") -> dict[str, Any]:
    """:return: What another buffer must have in common"""
    both_spaces = {"observation_space": str(buffer.observation_space), "action_space": str(buffer.action_space)}
    candidates = {"action_kwargs": str(dict(sorted(buffer.action_kwargs.items())))}
    return {**both_spaces, **candidates, "n_envs": buffer.n_envs, "frame_stack": buffer.frame_stack}
