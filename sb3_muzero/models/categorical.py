"""Categorical representation of scalars for the value and reward heads."""

from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_muzero.common.numeric import is_number
from sb3_muzero.common.validation import check_integer
from sb3_muzero.search.backends.numba.translate import register


class TwoHotCrossEntropy(th.autograd.Function):
    """Cross-entropy with a two-hot target. The gradient is computed in closed form, as softmax minus target."""

    @staticmethod
    def forward(ctx: Any, logits: th.Tensor, neighbours: th.Tensor, shares: th.Tensor) -> th.Tensor:  # type: ignore[override]
        log_probs = F.log_softmax(logits, dim=-1)
        ctx.save_for_backward(log_probs, neighbours, shares)
        return -(log_probs.gather(-1, neighbours) * shares).sum(-1)

    @staticmethod
    def backward(ctx: Any, grad: th.Tensor) -> tuple[th.Tensor, None, None]:  # type: ignore[override]
        log_probs, neighbours, shares = ctx.saved_tensors
        return log_probs.exp().scatter_add_(-1, neighbours, -shares).mul_(grad.unsqueeze(-1)), None, None


class CategoricalSupport(nn.Module):
    """
    Evenly spaced bins between two bounds. A head predicts a scalar as a categorical distribution over the bins.

    Unlike MuZero (https://arxiv.org/abs/1911.08265, Appendix F), which uses bins of width 1 and an invertible transform, the
    bins are linear. By default the bounds start at zero and follow the targets (``expanded_bounds``, ``shrunk_bounds``,
    ``rescale_head``).

    :param num_bins: Number of bins, at least 2
    :param bounds: Lowest and highest scalar that can be represented, or ``None`` for an automatic range
    :raises ValueError: for fewer than 2 bins, or if the bounds are not finite and increasing
    """

    TOLERANCE = 1e-4  # for rounding errors, as a fraction of the range
    MIN_USED_FRACTION = 1 / 8
    """A support shrinks if its targets use less of it."""

    bounds: th.Tensor
    grid: th.Tensor

    def __init__(self, num_bins: int, bounds: tuple[float, float] | None = None) -> None:
        super().__init__()
        check_integer("num_bins", num_bins, 2)
        self.num_bins = num_bins
        self.auto_range = bounds is None
        low, high = (0.0, 0.0) if bounds is None else bounds
        if not (is_number(low) and is_number(high) and (self.auto_range or -float("inf") < low < high < float("inf"))):
            raise ValueError(f"The bounds of a support must be finite and increasing, got {bounds}")
        self.register_buffer("bounds", th.tensor([low, high], dtype=th.float32))
        self.register_buffer("grid", th.linspace(0.0, 1.0, num_bins), persistent=False)

    @property
    def bins(self) -> th.Tensor:
        """Scalar represented by each bin, shape ``[num_bins]``."""
        low, high = self.bounds
        return low + (high - low) * self.grid

    def expectation(self, logits: th.Tensor) -> th.Tensor:
        """
        Expected value of the predicted distribution.

        :param logits: Logits, shape ``[..., num_bins]``
        :return: Scalars, shape ``[...]``
        """
        return F.softmax(logits, dim=-1) @ self.bins

    def cross_entropy(self, logits: th.Tensor, scalars: th.Tensor) -> th.Tensor:
        """
        Cross-entropy between two-hot encoded scalars (MuZero, Appendix F) and predicted distributions. Scalars are clipped to
        the bounds; NaN gives NaN.

        :param logits: Logits, shape ``[..., num_bins]``
        :param scalars: Targets, shape ``[...]``
        :return: Cross-entropy in nats, shape ``[...]``
        """
        low, high = self.bounds
        width = (high - low).clamp(min=th.finfo(th.float32).tiny)
        position = ((scalars - low) / width).clamp(0.0, 1.0) * (self.num_bins - 1)
        lower = position.long().clamp(0, self.num_bins - 2)  # clamped for NaN
        upper_share = (position - lower).unsqueeze(-1)
        return TwoHotCrossEntropy.apply(
            logits, th.stack([lower, lower + 1], dim=-1), th.cat([1 - upper_share, upper_share], dim=-1)
        )

    def out_of_range(self, scalars: th.Tensor) -> th.Tensor:
        """
        :param scalars: Scalars, any shape
        :return: Which scalars are outside of the bounds, beyond rounding errors, same shape
        """
        low, high = self.bounds
        tolerance = self.TOLERANCE * (high - low)
        return (scalars < low - tolerance) | (scalars > high + tolerance)

    def expanded_bounds(
        self, targets: tuple[float, float], limits: tuple[float, float], headroom: float
    ) -> tuple[float, float] | None:
        """
        Compute bounds that include new targets. Headroom on the expanded side keeps expansions rare.

        :param targets: Lowest and highest new target
        :param limits: Lowest and highest possible scalar, which bound the headroom
        :param headroom: Headroom as a fraction of the new range
        :return: New bounds, or ``None`` if the bounds are fixed or already include the targets
        """
        if not self.auto_range:
            return None
        (low, high), (smallest, largest) = self.bounds.tolist(), targets
        tolerance = self.TOLERANCE * (high - low)
        if not (smallest < low - tolerance or largest > high + tolerance):
            return None
        smallest, largest = min(low, smallest), max(high, largest)
        room = headroom * (largest - smallest)
        new_low = low if smallest >= low else min(smallest, max(limits[0], smallest - room))
        new_high = high if largest <= high else max(largest, min(limits[1], largest + room))
        return new_low, new_high

    def shrunk_bounds(self, used: tuple[float, float], headroom: float) -> tuple[float, float] | None:
        """
        Compute narrower bounds, within the old ones.

        :param used: Lowest and highest recent target, or 0 if it is beyond them
        :param headroom: Headroom as a fraction of their range
        :return: New bounds, or ``None`` if the bounds are fixed, or all targets are zero or use enough of the old range
        """
        (low, high), (old_low, old_high) = used, self.bounds.tolist()
        if not (self.auto_range and 0 < high - low < self.MIN_USED_FRACTION * (old_high - old_low)):
            return None
        room = headroom * (high - low)
        return max(old_low, low - room), min(old_high, high + room)

    @th.no_grad()
    def rescale_head(self, bounds: tuple[float, float], head: nn.Linear, optimizer: th.optim.Optimizer | None = None) -> None:
        """
        Take new bounds and re-read the head's logits at the new bins, so that what it predicts stays (about) what it was,
        within both ranges. The optimizer's moments of the head follow.

        :param bounds: New lower and upper bound
        :param head: The linear layer that outputs the logits, shape ``[num_bins, hidden]``
        :param optimizer: Of the head, if it has one
        """
        old_low, old_high = self.bounds.tolist()
        if head.weight.any() or head.bias.any():  # an untrained head has nothing to keep
            new_bins = bounds[0] + (bounds[1] - bounds[0]) * self.grid
            old_width = max(old_high - old_low, th.finfo(th.float32).tiny)
            position = ((new_bins - old_low) / old_width).clamp(0.0, 1.0) * (self.num_bins - 1)
            lower = position.long().clamp(max=self.num_bins - 2)
            for parameter in (head.weight, head.bias):
                share = (position - lower).reshape(-1, *[1] * (parameter.dim() - 1))
                state = {} if optimizer is None else optimizer.state.get(parameter, {})
                moments = [value for value in state.values() if getattr(value, "shape", None) == parameter.shape]
                for rows in (parameter, *moments):
                    rows.copy_(th.lerp(rows[lower], rows[lower + 1], share))
            # Bins outside the old range start unlikely, the more so the further out they lie
            outside = (old_low - new_bins).clamp(min=0) + (new_bins - old_high).clamp(min=0)
            bin_width = (bounds[1] - bounds[0]) / (self.num_bins - 1)
            head.bias.sub_((outside / bin_width).clamp(max=6.0))
        self.bounds.copy_(th.tensor(bounds))


register(CategoricalSupport, "expectation")
