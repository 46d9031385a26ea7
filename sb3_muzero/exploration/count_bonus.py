"""Count-based exploration."""

from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_muzero.common.serialization import validate_array, validate_number


def as_features(observations: np.ndarray) -> np.ndarray:
    """
    :param observations: Observations, shape ``[N, *obs_shape]``; a structured array for a Dict space
    :return: Flattened observations, shape ``[N, num_features]``
    """
    parts = [observations] if observations.dtype.names is None else [observations[name] for name in observations.dtype.names]
    flat = [part.reshape(len(observations), -1) for part in parts]
    return flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)


class CountBonus:
    """
    Exploration bonus ``1 / sqrt(visit count)`` (#Exploration, https://arxiv.org/abs/1611.04717, Eq. 1). Integer features are
    counted exactly. Real features are normalized and discretized into cells, after a random projection if there are more than
    ``max_axes``. The counts are stored in a hash table of size ``num_buckets``.

    :param observation_space: Observation space
    :param cell_width: Side length of a cell, in standard deviations of the observations passed to ``fit``
    :param max_axes: Maximum number of axes of a cell
    """

    num_buckets = 1 << 18
    _STATE = ("_mean", "_scale", "counts", "_sum_of_bonuses", "_num_visits")

    def __init__(self, observation_space: spaces.Space, cell_width: float = 1.0, max_axes: int = 4) -> None:
        self.cell_width = cell_width
        constants = np.random.default_rng(0)  # of the hash function, independent of the seed
        parts = list(observation_space.values()) if isinstance(observation_space, spaces.Dict) else [observation_space]
        sizes = [int(np.prod(part.shape or ())) for part in parts]
        is_real = [part.dtype is not None and part.dtype.kind == "f" for part in parts]
        self._is_real = np.repeat(is_real, sizes)
        num_real = int(self._is_real.sum())
        num_axes = min(num_real, max_axes)
        self._axes: np.ndarray | None = None
        if num_axes < num_real:
            self._axes = np.linalg.qr(constants.normal(size=(num_real, num_axes)))[0]
        self._factors = constants.integers(1, 1 << 62, size=num_axes + len(self._is_real) - num_real) | 1
        self._mean, self._scale = np.zeros(num_real), np.ones(num_real)
        self.counts = np.zeros(self.num_buckets, dtype=np.int64)
        # n visits of a bucket contribute n * 1 / sqrt(n)
        self._sum_of_bonuses, self._num_visits = 0.0, 0

    def fit(self, observations: np.ndarray) -> None:
        """
        Compute the normalization of real features. Existing counts become invalid.

        :param observations: Observations, shape ``[N, *obs_shape]``
        """
        if self._is_real.any():
            features = as_features(observations)[:, self._is_real].astype(np.float64)
            self._mean = features.mean(axis=0)
            deviations = features.std(axis=0)
            # Constant features are not scaled
            self._scale = 1 / (self.cell_width * np.where(deviations > 1e-6, deviations, 1.0))

    def state(self) -> dict[str, Any]:
        """:return: Normalization and counts, for ``sb3_muzero.common.serialization``"""
        return {name: getattr(self, name) for name in self._STATE}

    def load_state(self, state: dict[str, Any]) -> None:
        """
        :param state: Result of ``state``
        :raises ValueError: for an invalid state
        """
        for name in ("_mean", "_scale"):
            setattr(self, name, validate_array(f"bonus.{name}", state[name], getattr(self, name)))
        self.counts = validate_array("bonus.counts", state["counts"], self.counts, low=0, high=2**53)
        self._num_visits = validate_number("bonus._num_visits", state["_num_visits"], int, low=0)
        self._sum_of_bonuses = validate_number("bonus._sum_of_bonuses", state["_sum_of_bonuses"], float)

    def bucket_ids(self, observations: np.ndarray) -> np.ndarray:
        """
        :param observations: Observations, shape ``[N, *obs_shape]``
        :return: Indices into ``counts``, shape ``[N]``
        """
        features = as_features(observations)
        cells = features[:, ~self._is_real].astype(np.int64)
        if self._is_real.any():
            real = (features[:, self._is_real] - self._mean) * self._scale
            real = np.floor(real if self._axes is None else real @ self._axes).clip(-(2.0**62), 2.0**62)
            cells = np.concatenate([real.astype(np.int64), cells], axis=1)
        hashes = (cells * self._factors).sum(axis=1).view(np.uint64)
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
