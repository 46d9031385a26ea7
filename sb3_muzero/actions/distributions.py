"""Policy distributions over vectors: a squashed Gaussian, and independent categorical distributions of each component."""

import math
from functools import cache
from typing import Any

import numpy as np
import torch as th
from torch.nn import functional as F

from sb3_muzero.search.backends.numba import candidates as rules

MIN_STD, MAX_ACTION, MASKED_LOGIT = float(rules.MIN_STD), float(rules.MAX_ACTION), float(rules.MASKED_LOGIT)
WIDE, MODE_WEIGHT = float(rules.WIDE), float(rules.MODE_WEIGHT)


def log_one_minus_square_of_tanh(x: th.Tensor) -> th.Tensor:
    """
    :param x: Any shape
    :return: ``log(1 - tanh(x)**2)``, the log-derivative of tanh, accurate for large ``x``
    """
    return 2 * (math.log(2) - x - F.softplus(-2 * x))


# Constant tensors are made once, since a CUDA graph cannot copy from the host, and never in inference mode, since they could
# not be trained with later


@cache
@th.inference_mode(False)
def quadrature(device: th.device, dtype: th.dtype) -> tuple[th.Tensor, th.Tensor]:
    """
    :param device: Device of the tensors
    :param dtype: Dtype of the tensors
    :return: Nodes and weights of Gauss-Hermite quadrature for the mean under a standard normal distribution, shape ``[16]``
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(16)
    at, shares = (th.as_tensor(part, dtype=dtype, device=device) for part in (nodes, weights / weights.sum()))
    return at, shares


@cache
@th.inference_mode(False)
def layout(device: th.device, sizes: tuple[int, ...]) -> tuple[th.Tensor, th.Tensor]:
    """
    :param device: Device of the tensors
    :param sizes: Number of values of each component, shape ``[D]``
    :return: Where each component's values are in flat arrays, and what is beyond them, shape ``[D, max(sizes)]``
    """
    lengths, columns = th.tensor(sizes).unsqueeze(1), th.arange(max(sizes))
    where = (lengths.cumsum(0) - lengths + columns).clamp(max=sum(sizes) - 1)
    return where.to(device), (columns >= lengths).to(device)


@cache
@th.inference_mode(False)
def joint_indices(device: th.device, sizes: tuple[int, ...]) -> th.Tensor:
    """
    :param device: Device of the tensor
    :param sizes: Number of values of each component, shape ``[D]``
    :return: All combinations of indices of values, shape ``[prod(sizes), D]``
    """
    return th.cartesian_prod(*map(th.arange, sizes)).reshape(-1, len(sizes)).to(device)


class SquashedGaussianPolicy:
    """
    Diagonal Gaussian squashed to [-1, 1] by tanh. Before tanh the mean is ``5 tanh(x / 5)`` and the standard deviation
    ``softplus(x) + 0.1``, bounded as in EfficientZero V2 (https://arxiv.org/abs/2403.00564).

    :param outputs: Outputs for the means, then for the standard deviations, shape ``[..., 2 * D]``
    """

    def __init__(self, outputs: th.Tensor) -> None:
        mean, std = outputs.chunk(2, dim=-1)
        self.mean = 5 * th.tanh(mean / 5)
        self.std = F.softplus(std) + MIN_STD

    def sample(self, noise: th.Tensor) -> th.Tensor:
        """
        :param noise: Standard normal noise, shape ``[..., K, D]``; zeros give the mode before squashing
        :return: Actions, at most ``MAX_ACTION`` in magnitude, shape ``[..., K, D]``
        """
        mean, std = self.mean.unsqueeze(-2), self.std.unsqueeze(-2)
        return th.tanh(th.addcmul(mean, std, noise)).clamp(-MAX_ACTION, MAX_ACTION)

    def mode(self) -> th.Tensor:
        """:return: Squashed mean, shape ``[..., D]``"""
        return self.sample(th.zeros_like(self.mean).unsqueeze(-2)).squeeze(-2)

    def log_prob(self, candidates: th.Tensor) -> th.Tensor:
        """
        :param candidates: Actions, shape ``[..., K, D]``
        :return: Log-densities, shape ``[..., K]``
        """
        x = th.atanh(candidates.clamp(-MAX_ACTION, MAX_ACTION))
        mean, std = self.mean.unsqueeze(-2), self.std.unsqueeze(-2)
        log_density = -0.5 * ((x - mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)
        return (log_density - log_one_minus_square_of_tanh(x)).sum(-1)

    def entropy(self, weights: th.Tensor) -> th.Tensor:
        """
        Entropy of the Gaussian plus the expected log-derivative of tanh, by Gauss-Hermite quadrature.

        :param weights: Weights, shape ``[...]``
        :return: Weighted entropy in nats, shape ``[...]``
        """
        nodes, shares = quadrature(self.mean.device, self.mean.dtype)
        x = th.addcmul(self.mean.unsqueeze(-1), self.std.unsqueeze(-1), nodes)
        entropy = self.std.log() + 0.5 * math.log(2 * math.pi * math.e) + log_one_minus_square_of_tanh(x) @ shares
        return entropy.sum(-1) * weights


class Factors:
    """
    Components of an action, each one of a finite number of evenly spaced values.

    :param sizes: Number of values of each component, shape ``[D]``
    :param dtype: Dtype of the values
    :param low: Lowest value of each component
    :param step: Distance between two values
    """

    def __init__(self, sizes: Any, dtype: th.dtype = th.int64, low: float = 0, step: float = 1) -> None:
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.dtype, self.low, self.step = dtype, low, step
        self.offsets = np.cumsum([0, *self.sizes[:-1]])
        """Where each component's values begin in flat arrays, shape ``[D]``."""
        self.num_values = int(self.sizes.sum())
        """Length S of flat arrays over the values of all components."""
        self.num_actions = np.prod(self.sizes, dtype=float)
        """Number of joint actions."""
        self._sizes = tuple(self.sizes.tolist())

    def padded(self, flat: th.Tensor, fill: float) -> th.Tensor:
        """
        :param flat: Numbers for the values of all components, shape ``[..., S]``
        :param fill: What stands where a component has fewer values than another
        :return: The same, one row per component, shape ``[..., D, sizes.max()]``
        """
        if len(set(self._sizes)) == 1:
            return flat.unflatten(-1, (len(self._sizes), -1))
        where, beyond = layout(flat.device, self._sizes)
        return flat[..., where].masked_fill(beyond, fill)

    def values(self, indices: th.Tensor) -> th.Tensor:
        """:return: Values with these indices, same shape"""
        return (self.low + self.step * indices).to(self.dtype)

    def indices(self, values: th.Tensor) -> th.Tensor:
        """:return: Indices of these values, or of the nearest ones, same shape"""
        return values if self.dtype == th.int64 else ((values - self.low) / self.step).round().long()

    def all_actions(self, device: th.device) -> th.Tensor:
        """:return: All joint actions, shape ``[num_actions, D]``"""
        return self.values(joint_indices(device, self._sizes))


class FactoredCategoricalPolicy:
    """
    Independent categorical distributions of each component.

    :param logits: Logits of the values of all components, shape ``[..., S]``
    :param factors: The components
    :param action_masks: True for legal values, shape ``[..., S]``. By default all are legal
    """

    def __init__(self, logits: th.Tensor, factors: Factors, action_masks: th.Tensor | None = None) -> None:
        if action_masks is not None:
            logits = logits.masked_fill(~action_masks, MASKED_LOGIT)
        self.factors = factors
        self.log_probs = F.log_softmax(factors.padded(logits, MASKED_LOGIT), dim=-1)

    def sample(self, noise: th.Tensor) -> th.Tensor:
        """
        Draw each component by the inverse of its cumulative distribution.

        :param noise: Uniform numbers in [0, 1), plus the temperature of the candidate: 1 for the policy, ``WIDE`` for a
            flatter distribution, 0 for the mode. Shape ``[..., K, D]``
        :return: Actions, shape ``[..., K, D]``
        """
        indices = self.log_probs.argmax(-1).unsqueeze(-2)
        for temperature in (1.0, WIDE):
            indices = th.where(noise.floor() == temperature, self._draw(temperature, noise.frac()), indices)
        return self.factors.values(indices)

    def _draw(self, temperature: float, uniform: th.Tensor) -> th.Tensor:
        """:return: Indices of the values where the cumulative distribution exceeds the numbers, shape ``[..., K, D]``"""
        relative = self.log_probs - self.log_probs.amax(-1, keepdim=True)
        # Sums of integers do not depend on their order, so what weighs nothing adds nothing and is never drawn
        weights = ((relative / temperature).exp() * MODE_WEIGHT).nan_to_num(0.0).long()
        cumulative = weights.cumsum(-1)
        total = cumulative[..., -1:]
        targets = (uniform.mT.contiguous().double() * total).long().minimum(total - 1)
        return th.searchsorted(cumulative, targets, right=True).mT

    def mode(self) -> th.Tensor:
        """:return: Most probable action, shape ``[..., D]``"""
        return self.factors.values(self.log_probs.argmax(-1))

    def log_prob(self, candidates: Any) -> th.Tensor:
        """
        :param candidates: Actions, shape ``[..., K, D]``
        :return: Log-probabilities, shape ``[..., K]``
        """
        return self.log_probs.gather(-1, self.factors.indices(candidates).mT).sum(-2)

    def entropy(self, weights: th.Tensor) -> th.Tensor:
        """
        :param weights: Weights, shape ``[...]``
        :return: Weighted entropy in nats, shape ``[...]``
        """
        return -(self.log_probs.exp() * self.log_probs).sum((-2, -1)) * weights
