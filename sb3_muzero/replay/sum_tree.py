"""A sum tree: draws indices in proportion to their priorities, and changes priorities, many at a time."""

import numpy as np


class SumTree:
    """
    Complete binary tree over priorities, each inner node the sum of its two children (Prioritized Experience Replay,
    https://arxiv.org/abs/1511.05952, Appendix B.2.1). Node 1 is the root, the children of node i are 2 i and 2 i + 1.

    :param capacity: Number of priorities, all zero at first
    """

    def __init__(self, capacity: int) -> None:
        self.depth = max(capacity - 1, 1).bit_length()
        self._sums = np.zeros(2 << self.depth)

    @property
    def total(self) -> float:
        """Sum of all priorities."""
        return float(self._sums[1])

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return self._sums[indices + (1 << self.depth)]

    def update(self, indices: np.ndarray, priorities: np.ndarray) -> None:
        """
        :param indices: Whose priorities change, shape ``[B]``; where one occurs twice, its last priority counts
        :param priorities: At least 0, shape ``[B]``
        """
        nodes = indices + (1 << self.depth)
        self._sums[nodes] = priorities
        for _ in range(self.depth):
            nodes = nodes >> 1
            self._sums[nodes] = self._sums[2 * nodes] + self._sums[2 * nodes + 1]

    def find(self, masses: np.ndarray) -> np.ndarray:
        """
        Where the running sum of the priorities first exceeds each mass.

        :param masses: From 0 to ``total``, shape ``[B]``
        :return: Indices, never one of priority 0 while there is another, shape ``[B]``
        """
        masses = np.array(masses, dtype=np.float64)
        nodes = np.ones(len(masses), dtype=np.int64)
        for _ in range(self.depth):
            nodes *= 2
            left = self._sums[nodes]
            # Rounding must not lead to a node without mass
            goes_right = (masses >= left) & (self._sums[nodes + 1] > 0)
            masses -= left * goes_right
            nodes += goes_right
        return nodes - (1 << self.depth)
