"""Supports of value and reward whose range follows the targets."""

from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_muzero.common.serialization import validate_array, validate_number

if TYPE_CHECKING:
    from sb3_muzero.policies import MuZeroPolicy

Range = tuple[float, float]


class AdaptiveSupports:
    """
    Keeps supports with an automatic range as wide as their targets, in the online and in the target model of a policy.
    """

    SHRINK_INTERVAL = 1000
    """Updates after which supports shrink to the range of their targets."""
    VALUE_HEADROOM = 1.0
    """Headroom of the value support, as a fraction of the range of the targets."""

    def __init__(self) -> None:
        self._forget()

    def update(self, policy: "MuZeroPolicy", values: Range, rewards: Range, discount: float) -> None:
        """
        Fit the supports to the targets of the next update.

        :param policy: The networks and their optimizer
        :param values: Lowest and highest value target
        :param rewards: Lowest and highest reward target
        :param discount: Discount factor, negative where the opponent moves next
        """
        self.expand(policy, values, rewards, discount)
        self.shrink(policy, values, rewards)

    def expand(self, policy: "MuZeroPolicy", values: Range, rewards: Range, discount: float) -> None:
        """
        Expand supports until they cover the targets. No value exceeds the discounted sum of the most extreme reward, so the
        value support does not grow beyond that. For the arguments see ``update``.
        """
        model, everything = policy.latent_model, (-float("inf"), float("inf"))
        self._rescale(policy, "reward", "dynamics", model.reward_support.expanded_bounds(rewards, everything, headroom=0.0))
        low, high = model.reward_support.bounds.tolist()
        if discount < 0:  # rewards of one player are losses of the other
            low, high = -max(-low, high), max(-low, high)
        horizon = 1 / (1 - abs(discount)) if abs(discount) < 1 else float("inf")
        limits = (low * horizon if low < 0 else 0.0, high * horizon if high > 0 else 0.0)
        self._rescale(policy, "value", "prediction", model.value_support.expanded_bounds(values, limits, self.VALUE_HEADROOM))

    def shrink(self, policy: "MuZeroPolicy", values: Range, rewards: Range) -> None:
        """
        Every ``SHRINK_INTERVAL`` updates, shrink supports of which the targets since then used little: after an outlier, or
        values that were overestimated, a few bins are left for all others. For the arguments see ``update``.
        """
        for name, targets in (("reward", rewards), ("value", values)):
            low, high = self._used_ranges[name]
            self._used_ranges[name] = min(low, targets[0]), max(high, targets[1])
        self._num_updates += 1
        if self._num_updates >= self.SHRINK_INTERVAL:
            ranges, model = self._used_ranges, policy.latent_model
            self._rescale(policy, "reward", "dynamics", model.reward_support.shrunk_bounds(ranges["reward"], headroom=0.0))
            # A value can be any single reward
            used = (*ranges["value"], *model.reward_support.bounds.tolist())
            used = min(used), max(used)
            self._rescale(policy, "value", "prediction", model.value_support.shrunk_bounds(used, self.VALUE_HEADROOM))
            self._forget()

    def state(self) -> dict[str, Any]:
        """:return: All but the bounds, which are in the models"""
        used = {name: np.array(used, np.float32) for name, used in self._used_ranges.items()}
        return {"used_ranges": used, "num_updates": self._num_updates}

    def load_state(self, state: dict[str, Any]) -> None:
        """:param state: What ``state`` returned"""
        for name in self._used_ranges:
            used = validate_array(f"used_ranges.{name}", state["used_ranges"][name], np.zeros(2, np.float32))
            self._used_ranges[name] = tuple(used.tolist())
        self._num_updates = validate_number("num_updates", state["num_updates"], int, 0)

    def _forget(self) -> None:
        # Lowest and highest target, or zero, of the updates since supports were last shrunk
        self._used_ranges = {name: (0.0, 0.0) for name in ("reward", "value")}
        self._num_updates = 0

    def _rescale(self, policy: "MuZeroPolicy", name: str, network: str, bounds: Range | None) -> None:
        if bounds is not None:
            for model in (policy.latent_model, policy.latent_model_target):
                support, head = getattr(model, f"{name}_support"), getattr(getattr(model, network), f"{name}_head")
                support.rescale_head(bounds, head, policy.optimizer)  # which has no moments of the target model
