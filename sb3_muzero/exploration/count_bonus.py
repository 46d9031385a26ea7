"""Count-based exploration."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

from sb3_muzero.common.serialization import validate_array, validate_number


def as_features(observations: np.ndarray) -> np.ndarray:
    """
    :param observations: Observations, shape ``[N, *obs_shape]``; a structured array for a Dict space
    :return: Flattened observations, shape ``[N, num_features]``
    """
    parts = [observations] if observations.dtype.names is None else [observations[name] for name in observations.dtype.names]
    flat = [part.reshape(len(observations), -1) for part in parts]
    return flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)


MIN_IMAGE_SIDE = 10
"""Smaller ones are grids of codes, as MiniGrid's views, which come again and are counted exactly."""


def is_counted_as_image(space: spaces.Space) -> bool:
    """
    :param space: Observation space, or part of one
    :return: Whether it is a ``Box`` with three axes, of floats, or of bytes from 0 to 255 and at least ``MIN_IMAGE_SIDE`` wide
    """
    if not (isinstance(space, spaces.Box) and len(space.shape) == 3):
        return False
    return space.dtype.kind == "f" or (is_image_space(space) and sorted(space.shape)[1] >= MIN_IMAGE_SIDE)


class Cells:
    """
    Discretizes features into cells: normalized, after a random projection if there are more than ``max_axes``. What lies far
    from all that was passed to ``fit`` has cells of its own.

    :param num_features: Number of features
    :param width: Side length of a cell, in standard deviations
    :param max_axes: Maximum number of axes of a cell
    :param is_image: Whether features are pixels: those that were constant in ``fit`` are scaled as if they had changed once,
        so that an object in a new place makes a difference. Other constant features are not scaled
    :param constants: Generator of the projection
    """

    _STATE = ("_mean", "_scale", "_axis_scale")

    def __init__(self, num_features: int, width: float, max_axes: int, is_image: bool, constants: np.random.Generator) -> None:
        self.width = width
        self.is_image = is_image
        self.num_axes = min(num_features, max_axes)
        self._axes: np.ndarray | None = None
        if self.num_axes < num_features:
            self._axes = np.linalg.qr(constants.normal(size=(num_features, self.num_axes)))[0]
        self._mean, self._scale = np.zeros(num_features), np.ones(num_features)
        self._axis_scale = np.ones(self.num_axes)
        self._combine()

    def _combine(self) -> None:
        """Combine normalization and projection, so that images are not normalized pixel by pixel."""
        self._matrix = None if self._axes is None else self._scale[:, None] * self._axes
        self._offset = None if self._matrix is None else self._mean @ self._matrix

    def _positions(self, features: np.ndarray) -> np.ndarray:
        return (features - self._mean) * self._scale if self._matrix is None else features @ self._matrix - self._offset

    def fit(self, features: np.ndarray) -> None:
        """
        Compute the normalization.

        :param features: Features, shape ``[N, num_features]``
        """
        features = features.astype(np.float64)
        self._mean, deviations = features.mean(axis=0), features.std(axis=0)
        is_constant = deviations <= 1e-6
        deviations[is_constant] = np.ptp(features) / len(features) ** 0.5 or 1.0 if self.is_image else 1.0
        self._scale = 1 / deviations
        self._combine()
        if self._axes is not None:
            deviations = self._positions(features).std(axis=0)
            self._axis_scale = 1 / np.where(deviations > 1e-6, deviations, 1.0)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """
        :param features: Features, shape ``[N, num_features]``
        :return: Cells, shape ``[N, num_axes]``
        """
        positions = self._positions(features) * self._axis_scale / self.width
        return np.floor(positions).clip(-(2.0**62), 2.0**62).astype(np.int64)

    def state(self) -> dict[str, np.ndarray]:
        """:return: Normalization, for ``sb3_muzero.common.serialization``"""
        return {name: getattr(self, name) for name in self._STATE}

    def load_state(self, state: dict[str, Any]) -> None:
        """
        :param state: Result of ``state``
        :raises ValueError: for an invalid state
        """
        for name in self._STATE:
            setattr(self, name, validate_array(f"bonus.{name}", state[name], getattr(self, name)))
        self._combine()


class CountBonus:
    """
    Exploration bonus ``1 / sqrt(visit count)`` (#Exploration, https://arxiv.org/abs/1611.04717, Eq. 1). Integer features are
    counted exactly, real features and images by ``Cells``, since hardly any image is seen twice. The counts are stored in a
    hash table of size ``num_buckets``.

    :param observation_space: Observation space
    :param cell_width: Side length of a cell, in standard deviations of the observations passed to ``fit``
    :param max_axes: Maximum number of axes of a cell
    """

    num_buckets = 1 << 18

    def __init__(self, observation_space: spaces.Space, cell_width: float = 1.0, max_axes: int = 4) -> None:
        constants = np.random.default_rng(0)  # of the hash function, independent of the seed
        parts = list(observation_space.values()) if isinstance(observation_space, spaces.Dict) else [observation_space]
        sizes = [int(np.prod(part.shape or ())) for part in parts]
        is_image = np.array([is_counted_as_image(part) for part in parts])
        is_real = np.array([part.dtype is not None and part.dtype.kind == "f" for part in parts]) & ~is_image
        self._is_integer = np.repeat(~is_real & ~is_image, sizes)
        self._cells: list[tuple[np.ndarray, Cells]] = []
        """Which features are discretized together, shape ``[num_features]``, and how."""
        for among in (is_real, is_image):
            chosen = np.repeat(among, sizes)
            if chosen.any():
                self._cells.append((chosen, Cells(int(chosen.sum()), cell_width, max_axes, among is is_image, constants)))
        num_factors = sum(cells.num_axes for _, cells in self._cells) + int(self._is_integer.sum())
        self._factors = constants.integers(1, 1 << 62, size=num_factors) | 1
        self._forget()

    def _forget(self) -> None:
        self.counts = np.zeros(self.num_buckets, dtype=np.int64)
        # n visits of a bucket contribute n * 1 / sqrt(n)
        self._sum_of_bonuses, self._num_visits = 0.0, 0

    def fit(self, observations: np.ndarray) -> None:
        """
        Compute the normalization of real features and images, and forget all counts.

        :param observations: Observations, shape ``[N, *obs_shape]``
        """
        features = as_features(observations)
        for chosen, cells in self._cells:
            cells.fit(features[:, chosen])
        self._forget()

    def state(self) -> dict[str, Any]:
        """:return: Normalization and counts, for ``sb3_muzero.common.serialization``"""
        numbers = {name: getattr(self, name) for name in ("counts", "_sum_of_bonuses", "_num_visits")}
        return {"cells": [cells.state() for _, cells in self._cells], **numbers}

    def load_state(self, state: dict[str, Any]) -> None:
        """
        :param state: Result of ``state``
        :raises ValueError: for an invalid state
        """
        for i, (_, cells) in enumerate(self._cells):
            cells.load_state(state["cells"][i])
        self.counts = validate_array("bonus.counts", state["counts"], self.counts, low=0, high=2**53)
        self._num_visits = validate_number("bonus._num_visits", state["_num_visits"], int, low=0)
        self._sum_of_bonuses = validate_number("bonus._sum_of_bonuses", state["_sum_of_bonuses"], float)

    def bucket_ids(self, observations: np.ndarray) -> np.ndarray:
        """
        :param observations: Observations, shape ``[N, *obs_shape]``
        :return: Indices into ``counts``, shape ``[N]``
        """
        features = as_features(observations)
        discretized = [cells(features[:, chosen]) for chosen, cells in self._cells]
        integers = np.concatenate([*discretized, features[:, self._is_integer].astype(np.int64)], axis=1)
        hashes = (integers * self._factors).sum(axis=1).view(np.uint64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # finalizer of SplitMix64
            hashes = (hashes ^ (hashes >> np.uint64(shift))) * np.uint64(factor)
        return (hashes >> np.uint64(32)).astype(np.int64) % self.num_buckets

    def update_counts(self, observations: np.ndarray) -> np.ndarray:
        """
        Increment the visit counts.

        :param observations: Observations, shape ``[N, *obs_shape]``
        :return: Bucket ids, shape ``[N]``
        """
        bucket_ids = self.bucket_ids(observations)
        visited = np.unique(bucket_ids)
        self._sum_of_bonuses -= np.sqrt(self.counts[visited]).sum()
        np.add.at(self.counts, bucket_ids, 1)
        self._sum_of_bonuses += np.sqrt(self.counts[visited]).sum()
        self._num_visits += len(bucket_ids)
        return bucket_ids

    def bonus(self, bucket_ids: np.ndarray) -> np.ndarray:
        """
        Compute the bonus minus its mean over all visits so far. A bonus that is always positive would discourage the agent
        from reaching a goal that terminates the episode.

        :param bucket_ids: Bucket ids of counted observations, any shape
        :return: Bonus, same shape
        """
        return 1 / np.sqrt(np.maximum(self.counts[bucket_ids], 1)) - self._sum_of_bonuses / max(self._num_visits, 1)
