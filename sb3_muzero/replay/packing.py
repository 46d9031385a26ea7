"""Booleans stored as bits: of any arrays, and in the frames of observations."""

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces


def num_bytes(shape: tuple[int, ...]) -> int:
    """
    :param shape: Shape of an array of booleans
    :return: Number of bytes that its bits take
    """
    return -(-int(np.prod(shape)) // 8)


def pack_bits(flags: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """
    :param flags: Arrays of booleans, shape ``[..., *shape]``
    :param shape: Shape of each array
    :return: Their bits, uint8, shape ``[..., num_bytes]``
    """
    batch = flags.shape[: flags.ndim - len(shape)]
    return np.packbits(flags.reshape(*batch, int(np.prod(shape))), axis=-1)


def unpack_bits(bits: np.ndarray, shape: tuple[int, ...], dtype: Any = np.bool_) -> np.ndarray:
    """
    :param bits: What ``pack_bits`` returned
    :param shape: Shape of each array
    :param dtype: Dtype of the arrays, of one byte
    :return: The arrays, shape ``[..., *shape]``
    """
    flags = np.unpackbits(bits, axis=-1, count=int(np.prod(shape)))
    return flags.view(dtype).reshape(*bits.shape[:-1], *shape)


def is_binary(space: spaces.Space) -> bool:
    """
    :param space: Observation space
    :return: Whether its observations consist of zeros and ones only
    """
    return isinstance(space, spaces.MultiBinary) or space.dtype == np.bool_


class FramePacking:
    """
    How frames of observations are stored: booleans as bits, all else as it is.

    :param space: Observation space
    :param shape: Shape of a frame, ``()`` for a Dict space
    """

    def __init__(self, space: spaces.Space, shape: tuple[int, ...]) -> None:
        is_dict = isinstance(space, spaces.Dict)
        parts: dict[str, spaces.Space] = dict(space.items()) if is_dict else {"": space}  # type: ignore[attr-defined]
        shapes = {key: part.shape or () if is_dict else shape for key, part in parts.items()}
        self.binary = [key for key, part in parts.items() if is_binary(part)]
        """Parts of a Dict space that are stored as bits; of another space all (``[""]``) or nothing."""
        given = {key: np.dtype((part.dtype, shapes[key])) for key, part in parts.items()}
        stored = given | {key: np.dtype((np.uint8, (num_bytes(shapes[key]),))) for key in self.binary}
        self.given = np.dtype(list(given.items())) if is_dict else given[""]
        """Dtype and shape of a frame as environments return it; a record of all parts for a Dict space."""
        self.stored = np.dtype(list(stored.items())) if is_dict else stored[""]
        """Dtype and shape of a frame as it is stored."""

    def pack(self, frames: np.ndarray) -> np.ndarray:
        """
        :param frames: As environments return them, shape ``[..., *given.shape]``
        :return: As they are stored, shape ``[..., *stored.shape]``
        """
        return self._converted(frames, self.stored, lambda part, given: pack_bits(part, given.shape))

    def unpack(self, frames: np.ndarray) -> np.ndarray:
        """
        :param frames: As they are stored, shape ``[..., *stored.shape]``
        :return: As environments return them, shape ``[..., *given.shape]``
        """
        return self._converted(frames, self.given, lambda part, given: unpack_bits(part, given.shape, given.base))

    def _converted(self, frames: np.ndarray, dtype: np.dtype, convert: Callable[..., np.ndarray]) -> np.ndarray:
        """:return: Frames whose binary parts were converted, with this dtype"""
        if not self.binary or self.given.names is None:
            return convert(frames, self.given) if self.binary else frames
        records = np.empty(frames.shape, dtype)
        for key in self.given.names:
            records[key] = convert(frames[key], self.given[key]) if key in self.binary else frames[key]
        return records
