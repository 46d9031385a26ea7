"""Count-based exploration: a bonus for regions of the observation space that were visited rarely."""

from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_muzero.common.serialization import validate_array, validate_number


def as_features(observations: np.ndarray) -> np.ndarray:
    """
    :param observations: Shape ``[N, *obs_shape]``, records for a Dict space
    :return: All their numbers, shape ``[N, num_features]``
    """
    parts = [observations] if observations.dtype.names is None else [observations[name] for name in observations.dtype.names]
    flat = [part.reshape(len(observations), -1) for part in parts]
    return flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)


class CountBonus:
    """
    Bonus of one over the square root of the visits (#Exploration, https://arxiv.org/abs/1611.04717). Integers are counted as
    they are. Real numbers are standardised and fall into cells; where there are more than ``max_axes`` of them, as many
    random projections do. All cells share a hash table of ``num_buckets`` counts.

    :param observation_space: Observation space
    :param cell_width: Side of a cell, in standard deviations of what ``fit`` sees
    :param max_axes: Largest number of axes of a cell
    """

    num_buckets = 1 << 18
    _STATE = ("_mean", "_scale", "counts", "_sum_of_bonuses", "_num_visits")

    def __init__(self, observation_space: spaces.Space, cell_width: float = 1.0, max_axes: int = 4) -> None:
        self.cell_width = cell_width
        constants = np.random.default_rng(0)  # of the hash, not of the agent
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
        # n visits of one place have n bonuses of 1 / sqrt(n)
        self._sum_of_bonuses, self._num_visits = 0.0, 0

    def fit(self, observations: np.ndarray) -> None:
        """
        Take the units of the cells from observations, once: counts do not follow cells that move.

        :param observations: Shape ``[N, *obs_shape]``
        """
        if self._is_real.any():
            features = as_features(observations)[:, self._is_real].astype(np.float64)
            self._mean = features.mean(axis=0)
            deviations = features.std(axis=0)
            # Features that do not vary yet keep the environment's own unit
            self._scale = 1 / (self.cell_width * np.where(deviations > 1e-6, deviations, 1.0))

    def state(self) -> dict[str, Any]:
        """:return: Units and counts, for ``sb3_muzero.common.serialization``"""
        return {name: getattr(self, name) for name in self._STATE}

    def load_state(self, state: dict[str, Any]) -> None:
        """
        :param state: What ``state`` returned
        :raises ValueError: if it is anything else
        """
        for name in ("_mean", "_scale"):
            setattr(self, name, validate_array(f"bonus.{name}", state[name], getattr(self, name)))
        self.counts = validate_array("bonus.counts", state["counts"], self.counts, low=0, high=2**53)
        self._num_visits = validate_number("bonus._num_visits", state["_num_visits"], int, low=0)
        self._sum_of_bonuses = validate_number("bonus._sum_of_bonuses", state["_sum_of_bonuses"], float)

    def bucket_ids(self, observations: np.ndarray) -> np.ndarray:
        """
        :param observations: Shape ``[N, *obs_shape]``
        :return: Indices of their counts, shape ``[N]``
        """
        features = as_features(observations)
        cells = features[:, ~self._is_real].astype(np.int64)
        if self._is_real.any():
            real = (features[:, self._is_real] - self._mean) * self._scale
            real = np.floor(real if self._axes is None else real @ self._axes).clip(-(2.0**62), 2.0**62)
            cells = np.concatenate([real.astype(np.int64), cells], axis=1)
        hashes = (cells * self._factors).sum(axis=1).view(np.uint64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # the finaliser of SplitMix64
            hashes = (hashes ^ (hashes >> np.uint64(shift))) * np.uint64(factor)
        return (hashes >> np.uint64(32)).astype(np.int64) % self.num_buckets

    def update_counts(self, observations: np.ndarray) -> np.ndarray:
        """
        Count observations.

        :param observations: Shape ``[N, *obs_shape]``
        :return: Their bucket ids, shape ``[N]``
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
        How much rarer observations are than those of the average visit. If every bonus were positive, the end of an episode
        would cost all bonuses to come, and the agent would avoid a goal that ends it.

        :param bucket_ids: Of observations that were counted, any shape
        :return: One over the square root of the visits, less its mean over all visits so far, same shape
        """
        return 1 / np.sqrt(np.maximum(self.counts[bucket_ids], 1)) - self._sum_of_bonuses / max(self._num_visits, 1)
