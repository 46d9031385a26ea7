"""Rings that store arrays in another form than they are read in: booleans as bits, policies without their zeros."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from sb3_muzero.actions import DiscreteActions
from sb3_muzero.common.serialization import copy_into, validate_array
from sb3_muzero.replay.packing import num_bytes, pack_bits, unpack_bits

MAX_DENSE_LENGTH = 256
"""Policies over more actions are stored without their zeros."""


class CompactRing(ABC):
    """Is indexed like an array of shape ``[num_rows, n_envs, *shape]``, of which each index gives a copy."""

    stored: np.ndarray
    """The compact form, shape ``[num_rows, n_envs, ...]``. Rows that were never written take no memory."""

    @abstractmethod
    def encode(self, values: np.ndarray) -> np.ndarray:
        """
        :param values: Shape ``[..., *shape]``
        :return: Their compact form, shape ``[..., ...]``
        """

    @abstractmethod
    def decode(self, stored: np.ndarray) -> np.ndarray:
        """
        :param stored: What ``encode`` returned
        :return: The values, shape ``[..., *shape]``
        """

    @abstractmethod
    def state(self, size: int) -> Any:
        """
        :param size: Number of rows that are filled
        :return: Those rows, for ``sb3_muzero.common.serialization``
        """

    @abstractmethod
    def load_state(self, name: str, state: Any, size: int) -> None:
        """
        :param name: Name of the ring in error messages
        :param state: What ``state`` returned, of a ring of the same shape but for its number of rows
        :param size: Number of rows in it
        :raises ValueError: if it is anything else
        """

    @property
    def nbytes(self) -> int:
        """Memory of the compact form, without the records of a ``SparseRing``, in bytes."""
        return self.stored.nbytes

    def __getitem__(self, at: Any) -> np.ndarray:
        return self.decode(self.stored[at])

    def __setitem__(self, at: Any, values: Any) -> None:
        self.stored[at] = self.encode(np.asarray(values))


class BitRing(CompactRing):
    """
    Ring of boolean arrays, eight to a byte.

    :param num_rows: Steps of each environment that the ring can hold
    :param n_envs: Number of environments
    :param shape: Shape of each array
    """

    def __init__(self, num_rows: int, n_envs: int, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.stored = np.zeros((num_rows, n_envs, num_bytes(shape)), np.uint8)

    def encode(self, values: np.ndarray) -> np.ndarray:
        return pack_bits(values, self.shape)

    def decode(self, stored: np.ndarray) -> np.ndarray:
        return unpack_bits(stored, self.shape)

    def state(self, size: int) -> np.ndarray:
        return self.stored[:size]

    def load_state(self, name: str, state: Any, size: int) -> None:
        self.stored = copy_into(self.stored, validate_array(name, state, self.stored[:size]))


class SparseRing(CompactRing):
    """
    Ring of float32 vectors that are mostly zero: a record per vector with its entries other than zero, or the whole vector
    where that is smaller.

    :param num_rows: Steps of each environment that the ring can hold
    :param n_envs: Number of environments
    :param length: Length of the vectors
    """

    BYTES_BESIDE = 48
    """Memory of a record beside its entries: an object, its place in the ring, rounding."""

    def __init__(self, num_rows: int, n_envs: int, length: int) -> None:
        self.length = length
        self.whole = 4 * length
        """Size of a whole vector in bytes."""
        self.entry = np.dtype([("index", np.uint16 if length <= 1 << 16 else np.uint32), ("weight", np.float32)])
        # `bytes`: less overhead than arrays, and the garbage collector does not visit them
        self.stored = np.empty((num_rows, n_envs), dtype=object)

    def num_bytes(self, num_entries: np.ndarray) -> np.ndarray:
        """
        :param num_entries: Numbers of entries other than zero, any shape
        :return: Memory that vectors with so many take in the ring, same shape
        """
        return np.minimum(num_entries * self.entry.itemsize, self.whole) + self.BYTES_BESIDE

    def encode(self, values: np.ndarray) -> np.ndarray:
        vectors = values.reshape(-1, self.length).astype(np.float32, copy=False)
        is_entry = vectors != 0
        is_whole = is_entry.sum(axis=1) * self.entry.itemsize >= self.whole
        is_entry[is_whole] = False
        places = np.flatnonzero(is_entry)
        entries = np.empty(len(places), self.entry)
        rows, entries["index"] = np.divmod(places, self.length)
        entries["weight"] = vectors.ravel()[places]
        records = self._split(entries, np.bincount(rows, minlength=len(vectors)) * self.entry.itemsize)
        for row in np.flatnonzero(is_whole):
            records[row] = vectors[row].tobytes()
        return records.reshape(values.shape[:-1])

    @staticmethod
    def _split(joined: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """:return: ``bytes`` of the given sizes, shape ``[len(sizes)]``"""
        content, ends = joined.tobytes(), np.cumsum(sizes).tolist()
        records = np.empty(len(sizes), dtype=object)
        records[:] = [content[end - size : end] for end, size in zip(ends, sizes.tolist(), strict=True)]
        return records

    def decode(self, stored: np.ndarray) -> np.ndarray:
        stored = np.asarray(stored, dtype=object)  # also a single record
        values = np.zeros((stored.size, self.length), dtype=np.float32)
        sizes, sparse, whole = self._sorted(stored)
        is_whole = sizes == self.whole
        for row, vector in zip(np.flatnonzero(is_whole), whole, strict=True):
            values[row] = np.frombuffer(vector, np.float32)
        entries = np.frombuffer(b"".join(sparse), self.entry)
        rows = np.repeat(np.arange(len(sizes)), np.where(is_whole, 0, sizes // self.entry.itemsize))
        values[rows, entries["index"]] = entries["weight"]
        return values.reshape(*stored.shape, self.length)

    def _sorted(self, stored: np.ndarray) -> tuple[np.ndarray, list[bytes], list[bytes]]:
        """:return: Sizes of all N records in bytes, shape ``[N]``, those without zeros, and whole vectors"""
        records = [record or b"" for record in stored.ravel().tolist()]
        sizes = np.array([len(record) for record in records], dtype=np.int64)
        sparse = [record for record in records if len(record) != self.whole]
        return sizes, sparse, [record for record in records if len(record) == self.whole]

    def state(self, size: int) -> dict[str, np.ndarray]:
        sizes, sparse, whole = self._sorted(self.stored[:size])
        entries = np.frombuffer(b"".join(sparse), self.entry)
        vectors = np.frombuffer(b"".join(whole), np.float32).reshape(-1, self.length)
        return {"sizes": sizes.reshape(size, -1), "entries": entries, "vectors": vectors}

    def load_state(self, name: str, state: Any, size: int) -> None:
        like = np.empty(self.stored[:size].shape, np.int64)
        sizes = validate_array(f"{name}.sizes", state["sizes"], like, 0, self.whole).ravel()
        is_whole = sizes == self.whole
        num_entries, remainders = np.divmod(sizes[~is_whole], self.entry.itemsize)
        if remainders.any():
            raise ValueError(f"`{name}.sizes` must be {self.whole} or multiples of {self.entry.itemsize}")
        ends = np.cumsum(num_entries)
        like = np.broadcast_to(np.zeros(1, self.entry), num_entries.sum())
        entries = validate_array(f"{name}.entries", state["entries"], like)
        like = np.broadcast_to(np.float32(0), (int(is_whole.sum()), self.length))
        vectors = validate_array(f"{name}.vectors", state["vectors"], like)
        validate_array(f"{name}.entries.weight", entries["weight"], entries["weight"])
        indices = validate_array(f"{name}.entries.index", entries["index"], entries["index"], 0, self.length - 1)
        is_in_order = indices[1:] > indices[:-1]
        is_in_order[ends[(ends > 0) & (ends < len(indices))] - 1] = True  # the next entry is of another record
        if not is_in_order.all():
            raise ValueError(f"`{name}.entries.index` must increase within each record")
        records = np.empty(len(sizes), dtype=object)
        records[~is_whole] = self._split(entries, sizes[~is_whole])
        records[is_whole] = self._split(vectors, sizes[is_whole])
        self.stored[:size] = records.reshape(size, -1)


def make_rings(num_rows: int, n_envs: int, actions: DiscreteActions) -> dict[str, np.ndarray | CompactRing]:
    """
    :param num_rows: Steps of each environment that the rings can hold
    :param n_envs: Number of environments
    :param actions: The action space
    :return: Rings of what a replay buffer stores of every step, beside its observation
    """
    shape, length = (num_rows, n_envs), actions.num_candidates
    is_sparse = length > MAX_DENSE_LENGTH
    return {
        "actions": np.zeros((*shape, *actions.shape), dtype=actions.dtype),
        "rewards": np.zeros(shape, dtype=np.float32),
        "terminals": np.zeros(shape, dtype=np.bool_),
        "policies": SparseRing(*shape, length) if is_sparse else np.zeros((*shape, length), dtype=np.float32),
        "model_versions": np.zeros(shape, dtype=np.int64),
    }
