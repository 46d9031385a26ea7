"""How much memory a full replay buffer takes."""

import warnings
from typing import TYPE_CHECKING

import numpy as np
import psutil

from sb3_muzero.replay.compact_rings import SparseRing
from sb3_muzero.replay.ring import take
from sb3_muzero.replay.serialization import OPTIONAL_RINGS, RINGS

if TYPE_CHECKING:
    from sb3_muzero.replay.replay_buffer import SequenceReplayBuffer

BYTES_OF_PRIORITY, BYTES_OF_BUCKET = 32, 8
MAX_EXAMPLES = 100


def check_memory(buffer: "SequenceReplayBuffer") -> bool:
    """
    Warn if the full buffer takes more memory than is available.

    :param buffer: A replay buffer with steps, whose arrays take no memory beyond these
    :return: Whether there was a warning
    """
    capacity, bytes_of_step = buffer.index.capacity, step_bytes(buffer)
    room = psutil.virtual_memory().available + buffer.size() * buffer.n_envs * bytes_of_step
    if (needed := capacity * bytes_of_step) <= room:
        return False
    fitting = int(room / bytes_of_step)
    fitting -= fitting % 10 ** max(len(str(fitting)) - 2, 0)
    warnings.warn(
        f"With `buffer_size={capacity}` a full replay buffer takes {needed / 1e9:.2f}GB, and this system has "
        f"{room / 1e9:.2f}GB of memory available, in which `buffer_size={fitting}` fits"
    )
    return True


def step_bytes(buffer: "SequenceReplayBuffer") -> float:
    """
    :param buffer: A replay buffer with steps, which tell how many actions are legal and how often episodes end
    :return: Memory that a step takes in the full buffer, in bytes
    """
    observations, capacity = buffer.observations, buffer.index.capacity
    rings = [observations.frames, observations.slots, *(getattr(buffer, name) for name in RINGS + OPTIONAL_RINGS)]
    total = sum(ring.nbytes for ring in rings if ring is not None) / capacity
    total += BYTES_OF_PRIORITY * (buffer.priority_exponent > 0) + BYTES_OF_BUCKET * (buffer.reward_bonus is not None)
    total += observations.frames.nbytes / capacity * observations.ends[: buffer.size()].mean()
    if isinstance(buffer.policies, SparseRing):
        ids = buffer.index.stored()
        places = buffer.index.places(ids[:: -(-len(ids) // MAX_EXAMPLES)])
        num_entries = np.count_nonzero(take(buffer.policies, places), axis=-1)
        if not num_entries.any():  # without searches so far, and all actions as likely as not
            num_entries = np.array([buffer.action_type.num_candidates])
            num_entries = num_entries if buffer.action_masks is None else take(buffer.action_masks, places).sum(axis=-1)
        total += 4 * num_entries[num_entries > 0].mean()
    return total
