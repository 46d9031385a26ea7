"""Continuous and composite actions. The candidates of a search are drawn from the policy."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn
from torch.nn import functional as F

from sb3_muzero.actions.base import Actions
from sb3_muzero.actions.distributions import (
    MASKED_LOGIT,
    MAX_ACTION,
    FactoredCategoricalPolicy,
    Factors,
    SquashedGaussianPolicy,
)
from sb3_muzero.common.validation import check_integer
from sb3_muzero.search.backends.numba.candidates import WIDE, CandidateRules
from sb3_muzero.search.checks import check_action_masks
from sb3_muzero.search.planner import PlannerSettings
from sb3_muzero.search.sampled import Noise, SampledPlanner

BELOW_ONE = np.float32(1 - 2**-20)
"""Factor of uniform numbers, so that float32 does not round them up when a temperature is added."""


class SampledActions(Actions):
    """
    Actions that are vectors. At each node a search considers candidates that are drawn from the policy there (Sampled MuZero,
    https://arxiv.org/abs/2104.06303). At the root the first candidate is the policy's mode, and every second one is drawn with
    three times the standard deviation or temperature. Below the root all are drawn from the policy.

    The prior of a candidate is its share among those drawn. If there are no more joint actions than ``num_candidates``, the
    candidates of every node are all of them, and the prior is the policy itself.

    :param space: Action space
    :param factors: The components of an action, ``None`` for real numbers
    :param num_candidates: Number of candidates at the root
    :param num_inner_candidates: Number of candidates at each node below it, at most as many; by default 4. With more than half
        of ``num_simulations`` the search does not look further ahead than one step
    :raises ValueError: for numbers of candidates out of range
    """

    has_fixed_candidates = False

    def __init__(
        self, space: spaces.Space, factors: Factors | None, num_candidates: int = 8, num_inner_candidates: int | None = None
    ) -> None:
        super().__init__(space)
        check_integer("num_candidates", num_candidates)
        num_inner_candidates = min(4, num_candidates) if num_inner_candidates is None else num_inner_candidates
        check_integer("num_inner_candidates", num_inner_candidates)
        if num_inner_candidates > num_candidates:
            raise ValueError(
                f"`num_inner_candidates` must be at most `num_candidates`, got {num_inner_candidates} and {num_candidates}"
            )
        num_components = int(np.prod(space.shape or ()))
        self.shape = (num_components,)
        self.factors = factors
        self.has_all_candidates = factors is not None and factors.num_actions <= num_candidates
        """Whether all actions are candidates."""
        if factors is not None and self.has_all_candidates:
            num_candidates = num_inner_candidates = int(factors.num_actions)
        self.num_candidates = num_candidates
        self.num_inner_candidates = num_inner_candidates
        self.candidates = np.zeros((num_candidates, num_components), self.dtype)
        self.num_policy_outputs = 2 * num_components if factors is None else factors.num_values
        self.mask_dim = num_components if factors is None else factors.num_values
        self.rules = self.make_rules()

    def make_rules(self) -> CandidateRules:
        """:return: How compiled code draws candidates"""
        factors, is_one_hot, everything = self.factors, self.dtype == np.int64, np.zeros((0, *self.shape), np.int64)
        if factors is None:
            return CandidateRules(np.zeros(self.shape[0] + 1, np.int64), 0.0, 0.0, everything, is_one_hot)
        if self.has_all_candidates:
            everything = factors.indices(factors.all_actions(th.device("cpu"))).numpy()
        offsets = np.append(factors.offsets, factors.num_values)
        return CandidateRules(offsets, float(factors.low), float(factors.step), everything, is_one_hot)

    def is_known(self, encoder: nn.Module) -> bool:
        """See ``CandidateSampler``."""
        return type(encoder) is type(self.make_encoder())

    def make_planner(self, settings: PlannerSettings) -> SampledPlanner:
        return SampledPlanner(settings, self)

    def distribution(
        self, outputs: th.Tensor, action_masks: th.Tensor | None = None
    ) -> SquashedGaussianPolicy | FactoredCategoricalPolicy:
        if self.factors is None:
            return SquashedGaussianPolicy(outputs)
        return FactoredCategoricalPolicy(outputs, self.factors, action_masks)

    def draw_noise(self, generator: np.random.Generator, num_simulations: int, batch_size: int) -> Noise:
        """See ``CandidateSampler``."""
        nodes = (batch_size, self.num_candidates), (num_simulations, batch_size, self.num_inner_candidates)
        widths = np.ones((self.num_candidates, 1), np.float32)
        widths[0], widths[1::2] = 0.0, WIDE
        if self.factors is None:
            root, inner = (generator.standard_normal((*shape, *self.shape), np.float32) for shape in nodes)
            return Noise(widths * root, inner)
        root, inner = (generator.random((*shape, *self.shape), np.float32) * BELOW_ONE for shape in nodes)
        return Noise(widths + root, 1 + inner)

    def propose(
        self, outputs: th.Tensor, noise: th.Tensor, action_masks: th.Tensor | None = None
    ) -> tuple[th.Tensor, th.Tensor]:
        """See ``CandidateSampler``."""
        policy = self.distribution(outputs, action_masks)
        if self.factors is not None and self.has_all_candidates:
            candidates = self.factors.all_actions(outputs.device).expand(len(outputs), -1, -1)
            log_probs = policy.log_prob(candidates)
            return candidates, log_probs.masked_fill(log_probs < MASKED_LOGIT / 2, -th.inf)
        candidates = policy.sample(noise)
        missing = self.num_candidates - candidates.shape[1]
        return F.pad(candidates, (0, 0, 0, missing)), F.pad(log_shares(candidates), (0, missing), value=-th.inf)


def log_shares(candidates: th.Tensor) -> th.Tensor:
    """
    :param candidates: Candidates, shape ``[B, K, D]``
    :return: How often each was drawn, as logarithm, for the first of equal ones; minus infinity for the others. Shape
        ``[B, K]``
    """
    is_equal = (candidates.unsqueeze(-2) == candidates.unsqueeze(-3)).all(-1)
    is_repeated = is_equal.tril(-1).any(-1)
    return is_equal.sum(-1).float().log().masked_fill(is_repeated, -th.inf)


class OneHotVectors(nn.Module):
    """
    Encodes each component of an action as a one-hot vector.

    :param factors: The components
    """

    offsets: th.Tensor

    def __init__(self, factors: Factors) -> None:
        super().__init__()
        self.num_values = factors.num_values
        self.register_buffer("offsets", th.from_numpy(factors.offsets), persistent=False)

    def forward(self, actions: th.Tensor) -> th.Tensor:
        """
        :param actions: Indices of values, shape ``[B, D]``
        :return: Concatenated one-hot vectors, shape ``[B, S]``
        """
        encoded = th.zeros(len(actions), self.num_values, device=actions.device)
        return encoded.scatter_(1, actions + self.offsets, 1.0)


class BoxActions(SampledActions):
    """
    Box actions, represented by vectors in [-1, 1]. The environment gets them scaled linearly to the bounds of the space, which
    candidates reach; integers to half a number beyond them, then rounded, so that all are as likely. The policy is a squashed
    Gaussian, or with ``num_bins`` a categorical distribution over evenly spaced values for each component.

    :param space: Action space, with finite bounds
    :param num_bins: Number of values of each component, at least 2; ``None`` for a squashed Gaussian
    :param kwargs: See ``SampledActions``
    """

    dtype = np.float32

    def __init__(self, space: spaces.Box, num_bins: int | None = None, **kwargs: Any) -> None:
        factors, self.encoding_dim = None, int(np.prod(space.shape))
        if num_bins is not None:
            check_integer("num_bins", num_bins, 2)
            factors = Factors([num_bins] * self.encoding_dim, th.float32, -1.0, 2 / (num_bins - 1))
        super().__init__(space, factors, **kwargs)
        self.low, self.high = (bound.astype(np.float64) for bound in (space.low, space.high))
        self.margin = 0.0 if space.dtype.kind == "f" else 0.5
        """How far beyond the bounds actions are scaled."""

    def make_encoder(self) -> nn.Module:
        return nn.Identity()

    def to_env(self, actions: np.ndarray) -> np.ndarray:
        largest = MAX_ACTION if self.factors is None else 1.0
        actions = actions.reshape(*actions.shape[:-1], *self.space.shape).astype(np.float64)  # type: ignore[misc]
        scaled = self.low - self.margin + (actions / largest + 1) / 2 * (self.high - self.low + 2 * self.margin)
        return np.clip(np.rint(scaled) if self.margin else scaled, self.low, self.high).astype(self.space.dtype)

    def from_env(self, actions: np.ndarray) -> np.ndarray:
        largest = MAX_ACTION if self.factors is None else 1.0
        widths = np.maximum(self.high - self.low + 2 * self.margin, np.finfo(np.float64).tiny)  # bounds may be equal
        scaled = largest * (2 * (actions - self.low + self.margin) / widths - 1)
        flat = scaled.reshape(*actions.shape[: actions.ndim - len(self.space.shape)], -1)  # type: ignore[arg-type]
        return np.clip(flat, -largest, largest).astype(np.float32)  # rounding may take actions beyond the bounds

    def sample(self, shape: int | tuple[int, ...], action_masks: np.ndarray | None = None) -> np.ndarray:
        size = (*np.atleast_1d(shape), *self.shape)
        if self.factors is None:
            return np.random.uniform(-1, 1, size).astype(np.float32)
        return self.factors.values(th.from_numpy(np.random.randint(self.factors.sizes, size=size))).numpy()

    def is_legal(self, actions: np.ndarray, action_masks: np.ndarray) -> np.ndarray:
        return np.ones(len(actions), np.bool_)

    def check(self, actions: Any, batch_size: int) -> np.ndarray:
        actions = np.reshape(actions, (batch_size, *self.shape))
        if not (np.abs(actions) <= 1).all():
            raise ValueError(f"`action` must be vectors of numbers from -1 to 1, scaled to {self.space}, got {actions}")
        return actions

    def check_masks(self, action_masks: Any, batch_size: int) -> np.ndarray:
        raise ValueError(
            f"Action masks need a Discrete, MultiDiscrete or MultiBinary action space, got {self.space}; "
            f"`learn(use_masking=False)` ignores them"
        )


class CompositeActions(SampledActions):
    """
    MultiDiscrete and MultiBinary actions, and Discrete ones as their single component, represented by vectors of indices from
    0. The policy is a categorical distribution for each component. Action masks are those of sb3-contrib: the masks of all
    components, one after the other.

    :param space: Action space
    :param kwargs: See ``SampledActions``
    """

    dtype = np.int64

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary, **kwargs: Any) -> None:
        sizes: Any = np.full(space.shape, 2)
        if not isinstance(space, spaces.MultiBinary):
            sizes = space.n if isinstance(space, spaces.Discrete) else space.nvec
        self.start: Any = getattr(space, "start", 0)
        self.factors: Factors
        super().__init__(space, Factors(np.ravel(sizes)), **kwargs)
        self.encoding_dim = self.factors.num_values
        self.candidates = self.candidates.astype(np.min_scalar_type(self.factors.sizes.max() - 1))

    def make_encoder(self) -> nn.Module:
        return OneHotVectors(self.factors)

    def to_env(self, actions: np.ndarray) -> np.ndarray:
        indices = actions.reshape(*actions.shape[:-1], *self.space.shape)  # type: ignore[misc]
        return (indices + self.start).astype(self.space.dtype)

    def from_env(self, actions: np.ndarray) -> np.ndarray:
        indices = actions.astype(np.int64) - self.start
        return indices.reshape(*actions.shape[: actions.ndim - len(self.space.shape)], -1)  # type: ignore[arg-type]

    def sample(self, shape: int | tuple[int, ...], action_masks: np.ndarray | None = None) -> np.ndarray:
        if action_masks is None:
            return np.random.randint(self.factors.sizes, size=(*np.atleast_1d(shape), *self.shape))
        scores = th.from_numpy(np.where(action_masks, np.random.rand(*action_masks.shape), -1.0))
        return self.factors.padded(scores, -1.0).argmax(-1).numpy()

    def is_legal(self, actions: np.ndarray, action_masks: np.ndarray) -> np.ndarray:
        return np.all(np.take_along_axis(action_masks, actions + self.factors.offsets, axis=1), axis=1)

    def check(self, actions: Any, batch_size: int) -> np.ndarray:
        actions = np.reshape(actions, (batch_size, *self.shape))
        if not ((actions >= 0) & (actions < self.factors.sizes) & (actions == np.rint(actions))).all():
            largest = (self.factors.sizes - 1).tolist()
            raise ValueError(f"`action` must be vectors of indices from 0 to {largest}, got {actions}")
        return actions

    def check_masks(self, action_masks: Any, batch_size: int) -> np.ndarray:
        masks = check_action_masks(action_masks, batch_size, self.mask_dim)
        has_choice = np.logical_or.reduceat(masks, self.factors.offsets, axis=1)
        if not has_choice.all():
            row, component = np.argwhere(~has_choice)[0]
            raise ValueError(
                f"`action_masks` must be True for a value of each component, got none for component {component} in row {row}"
            )
        return masks
