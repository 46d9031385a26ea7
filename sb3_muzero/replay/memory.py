"""How much memory a full replay buffer takes."""

import warnings
from typing import TYPE_CHECKING

import numpy as np
import psutil

from sb3_muzero.replay.compact_rings import SparseRing, make_rings
from sb3_muzero.replay.observation_store import ObservationRing
from sb3_muzero.replay.packing import num_bytes
from sb3_muzero.replay.ring import StepIndex, take
from sb3_muzero.replay.sequences import SearchStatistics

if TYPE_CHECKING:
    from sb3_muzero.replay.replay_buffer import SequenceReplayBuffer

BYTES_OF_PRIORITY, BYTES_OF_BUCKET = 32, 8
MAX_EXAMPLES = 100


class MemoryCheck:
    """
    Warns, once, if the full buffer takes more memory than is available: before the first steps are stored, or when there are
    ``NUM_STEPS``, which tell how many actions are legal and how often episodes end.
    """

    NUM_STEPS = 1000

    def __init__(self) -> None:
        self._is_done = False
        self._has_warned = False

    def before(self, buffer: "SequenceReplayBuffer", search: SearchStatistics) -> None:
        """
        :param buffer: The replay buffer
        :param search: What the search found at the steps that are about to be stored
        """
        capacity, num_stored = buffer.index.capacity, buffer.size() * buffer.n_envs
        if self._is_done or 0 < num_stored < min(self.NUM_STEPS, capacity):
            return
        bytes_of_step = step_bytes(buffer, examples(buffer) if num_stored > 0 else search)
        needed = capacity * bytes_of_step
        room = psutil.virtual_memory().available + num_stored * bytes_of_step
        if needed > room and not self._has_warned:
            self._has_warned = True
            fitting = int(room / bytes_of_step)
            fitting -= fitting % 10 ** max(len(str(fitting)) - 2, 0)
            warnings.warn(
                f"With `buffer_size={capacity}` a full replay buffer takes {needed / 1e9:.2f}GB, and this system has "
                f"{room / 1e9:.2f}GB of memory available, in which `buffer_size={fitting}` fits"
            )
        self._is_done = num_stored > 0


def examples(buffer: "SequenceReplayBuffer") -> SearchStatistics:
    """
    :param buffer: A replay buffer with steps
    :return: What it holds of some of them
    """
    ids = buffer.index.stored()
    places = buffer.index.places(ids[:: -(-len(ids) // MAX_EXAMPLES)])
    masks, candidates = (None if ring is None else take(ring, places) for ring in (buffer.action_masks, buffer.candidates))
    return SearchStatistics(0, take(buffer.policies, places), candidates, action_masks=masks)


def step_bytes(buffer: "SequenceReplayBuffer", search: SearchStatistics) -> float:
    """
    :param buffer: A replay buffer
    :param search: What searches found at some steps
    :return: Memory that a step takes in the full buffer, in bytes
    """
    length = buffer.action_type.num_candidates
    observations = ObservationRing(buffer.observation_space, StepIndex(1, 1), buffer.frame_stack)
    rings = make_rings(1, 1, buffer.action_type)
    total: float = observations.frames.nbytes + observations.slots.nbytes + sum(ring.nbytes for ring in rings.values())
    total += BYTES_OF_PRIORITY if buffer.priority_exponent > 0 else 0
    total += BYTES_OF_BUCKET if buffer.reward_bonus is not None else 0
    weights, masks, candidates = search.weights, search.action_masks, search.candidates
    total += 0 if masks is None else num_bytes((length,))
    total += 0 if candidates is None else candidates[0].nbytes
    if isinstance(policies := rings["policies"], SparseRing):
        num_entries = np.array([length]) if masks is None else masks.sum(axis=-1)
        if weights is not None and weights.any():
            num_entries = np.count_nonzero(weights[weights.any(axis=-1)], axis=-1)
        total += policies.num_bytes(num_entries).mean()
    if buffer.size() > 0:
        total += observations.frames.nbytes * buffer.observations.ends[: buffer.size()].mean()
    return total
