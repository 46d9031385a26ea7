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


class MemoryCheck:
    """
    Compares what the full buffer takes with the memory of the system: before the first steps are stored, and once when there
    are ``NUM_STEPS``, which tell how many actions are legal and how often episodes end.

    :param buffer: A replay buffer
    """

    NUM_STEPS = 1000
    NUM_EXAMPLES = 100
    BYTES_OF_PRIORITY, BYTES_OF_BUCKET = 32, 8

    def __init__(self, buffer: "SequenceReplayBuffer") -> None:
        self.buffer = buffer
        self._is_done = False
        self._has_warned = False

    def before(self, search: SearchStatistics) -> None:
        """
        :param search: What the search found at the steps that are about to be stored
        :raises ValueError: if the system has less memory than the full buffer takes
        """
        buffer = self.buffer
        capacity, num_stored = buffer.index.capacity, buffer.size() * buffer.n_envs
        if self._is_done or 0 < num_stored < min(self.NUM_STEPS, capacity):
            return
        step_bytes = self.step_bytes(self._examples() if num_stored > 0 else search)
        memory = psutil.virtual_memory()
        needed, room = capacity * step_bytes, memory.available + num_stored * step_bytes
        takes = f"With `buffer_size={capacity}` a full replay buffer takes {needed / 1e9:.2f}GB, and this system has"
        if needed > memory.total:
            fitting = int(room / step_bytes)
            fitting -= fitting % 10 ** max(len(str(fitting)) - 2, 0)
            raise ValueError(
                f"{takes} {memory.total / 1e9:.2f}GB of memory. `buffer_size={fitting}` fits in the {room / 1e9:.2f}GB "
                f"that are available"
            )
        if needed > room and not self._has_warned:
            self._has_warned = True
            warnings.warn(f"{takes} {room / 1e9:.2f}GB of memory available: `buffer_size` may have to be smaller")
        self._is_done = num_stored > 0

    def _examples(self) -> SearchStatistics:
        """:return: What is stored of some steps"""
        buffer = self.buffer
        ids = buffer.index.stored()
        places = buffer.index.places(ids[:: -(-len(ids) // self.NUM_EXAMPLES)])
        masks, candidates = (None if ring is None else take(ring, places) for ring in (buffer.action_masks, buffer.candidates))
        return SearchStatistics(0, take(buffer.policies, places), candidates, action_masks=masks)

    def step_bytes(self, search: SearchStatistics) -> float:
        """
        :param search: What searches found at some steps
        :return: Memory that a step takes in the full buffer, in bytes
        """
        buffer, length = self.buffer, self.buffer.action_type.num_candidates
        observations = ObservationRing(buffer.observation_space, StepIndex(1, 1), buffer.frame_stack)
        rings = make_rings(1, 1, buffer.action_type)
        total: float = observations.frames.nbytes + observations.slots.nbytes + sum(ring.nbytes for ring in rings.values())
        total += self.BYTES_OF_PRIORITY if buffer.priority_exponent > 0 else 0
        total += self.BYTES_OF_BUCKET if buffer.reward_bonus is not None else 0
        weights, masks, candidates = search.weights, search.action_masks, search.candidates
        total += 0 if masks is None else num_bytes((length,))
        total += 0 if candidates is None else candidates[0].nbytes
        if isinstance(policies := rings["policies"], SparseRing):
            num_legal = np.array([length]) if masks is None else masks.sum(axis=-1)
            num_weights = np.count_nonzero(weights, axis=-1) if weights is not None and weights.any() else num_legal
            total += policies.num_bytes(num_weights[num_weights > 0]).mean()
        if buffer.size() > 0:
            ends = buffer.observations.ends[: buffer.size()]
            total += observations.frames.nbytes * ends.mean()
        return total
