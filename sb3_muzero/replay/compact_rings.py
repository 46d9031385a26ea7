"""Rings that store arrays in another form than they are read in: booleans as bits, policies without their zeros."""

from typing import Any

import numpy as np

from sb3_muzero.common.serialization import copy_into, validate_array
from sb3_muzero.replay.packing import num_bytes, pack_bits, unpack_bits


class BitRing:
    """
    Ring of boolean arrays, eight to a byte. It is indexed like an array of shape ``[num_rows, n_envs, *shape]``, of which each
    index gives a copy. Rows that were never written take no memory.

    :param num_rows: Steps of each environment that the ring can hold
    :param n_envs: Number of environments
    :param shape: Shape of each array
    """

    def __init__(self, num_rows: int, n_envs: int, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.bits = np.zeros((num_rows, n_envs, num_bytes(shape)), np.uint8)

    @property
    def nbytes(self) -> int:
        """Memory of the full ring in bytes."""
        return self.bits.nbytes

    def __getitem__(self, at: Any) -> np.ndarray:
        return unpack_bits(self.bits[at], self.shape)

    def __setitem__(self, at: Any, values: np.ndarray) -> None:
        self.bits[at] = pack_bits(values, self.shape)

    def state(self, size: int) -> Any:
        """
        :param size: Number of rows that are filled
        :return: Those rows, for ``sb3_muzero.common.serialization``
        """
        return self.bits[:size]

    def load_state(self, name: str, state: Any, size: int) -> None:
        """
        :param name: Name of the ring in error messages
        :param state: What ``state`` returned, of a ring of the same shape but for its number of rows
        :param size: Number of rows in it
        :raises ValueError: if it is anything else
        """
        self.bits = copy_into(self.bits, validate_array(name, state, self.bits[:size]))


class SparseRing(BitRing):
    """
    Ring of float32 vectors that are mostly zero: the bits say where an entry is other than zero, and a record per vector holds
    these entries.

    :param num_rows: Steps of each environment that the ring can hold
    :param n_envs: Number of environments
    :param length: Length of the vectors
    """

    BYTES_BESIDE = 48
    """Memory of a record beside its entries: an object, its place in the ring, rounding."""

    def __init__(self, num_rows: int, n_envs: int, length: int) -> None:
        super().__init__(num_rows, n_envs, (length,))
        # `bytes`: less overhead than arrays, and the garbage collector does not visit them
        self.records = np.empty((num_rows, n_envs), dtype=object)

    @property
    def nbytes(self) -> int:
        """Memory of the full ring in bytes, but for the entries."""
        return super().nbytes + self.BYTES_BESIDE * self.records.size

    def __getitem__(self, at: Any) -> np.ndarray:
        is_entry = super().__getitem__(at)
        values = np.zeros(is_entry.shape, np.float32)
        values[is_entry] = self._entries(self.records[at])
        return values

    def __setitem__(self, at: Any, values: np.ndarray) -> None:
        vectors = values.astype(np.float32, copy=False)
        is_entry = vectors != 0
        super().__setitem__(at, is_entry)
        self.records[at] = self._split(vectors[is_entry], is_entry.sum(axis=-1))

    @staticmethod
    def _entries(records: Any) -> np.ndarray:
        """:return: The entries of one or all of these records, joined"""
        return np.frombuffer(b"".join(filter(None, np.asarray(records, dtype=object).ravel())), np.float32)

    @staticmethod
    def _split(entries: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """:return: Records of so many entries each, the shape of ``counts``"""
        content, sizes = entries.tobytes(), (counts * entries.itemsize).ravel()
        records = np.empty(sizes.size, dtype=object)
        records[:] = [content[end - size : end] for end, size in zip(np.cumsum(sizes).tolist(), sizes.tolist(), strict=True)]
        return records.reshape(np.shape(counts))

    def state(self, size: int) -> dict[str, np.ndarray]:
        return {"bits": super().state(size), "entries": self._entries(self.records[:size])}

    def load_state(self, name: str, state: Any, size: int) -> None:
        super().load_state(f"{name}.bits", state["bits"], size)
        counts = np.array([BitRing.__getitem__(self, row).sum(axis=-1) for row in range(size)])
        like = np.broadcast_to(np.float32(0), counts.sum())
        self.records[:size] = self._split(validate_array(f"{name}.entries", state["entries"], like), counts)
