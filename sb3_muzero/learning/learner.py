"""One gradient update: targets, loss, optimizer, target network."""

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch as th
from torch import nn

from sb3_muzero.common.pytree import tree_map
from sb3_muzero.common.serialization import validate_number
from sb3_muzero.learning.losses import LossOutput, muzero_loss
from sb3_muzero.learning.supports import AdaptiveSupports
from sb3_muzero.learning.targets import UnrollTargets, needs_bootstrap, unroll_targets
from sb3_muzero.replay.sequences import SequenceSamples

if TYPE_CHECKING:
    from sb3_muzero.policies import MuZeroPolicy


class LearnerSettings(NamedTuple):
    """
    Settings of the updates.

    :param discount: Factor from the value of the next state to that of this one; negative where the opponent moves next
    :param loss_coefs: Coefficient of each loss
    :param max_grad_norm: Maximum norm of the gradient
    :param tau: Soft update coefficient of the target network
    :param target_update_interval: Updates between two updates of the target network
    """

    discount: float
    loss_coefs: Mapping[str, float]
    max_grad_norm: float
    tau: float
    target_update_interval: int


class UpdateResult(NamedTuple):
    """
    Result of one gradient update.

    :param scalars: Scalar tensors to log
    :param value_errors: Absolute errors of the value at position 0, shape ``[B]``
    """

    scalars: dict[str, th.Tensor]
    value_errors: np.ndarray


class Learner:
    """
    Updates the networks of a policy from sequences. Independent of environments and of the replay buffer.

    :param policy: The networks and their optimizer
    :param settings: Settings of the updates, which may be replaced at any time
    """

    MAX_SKIPPED_UPDATES = 10
    """Non-finite updates in a row after which training fails."""
    _NUMBERS = ("skipped_updates", "skipped_in_a_row")

    def __init__(self, policy: "MuZeroPolicy", settings: LearnerSettings) -> None:
        self.policy = policy
        self.settings = settings
        self.skipped_updates = self.skipped_in_a_row = 0
        self.supports = AdaptiveSupports()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters of the optimizer."""
        return [parameter for group in self.policy.optimizer.param_groups for parameter in group["params"]]

    def update(self, samples: SequenceSamples, num_updates: int, step: int) -> UpdateResult | None:
        """
        :param samples: The sequences
        :param num_updates: Updates before this one
        :param step: Environment steps so far, for messages
        :return: What to log, or ``None`` if the update was skipped because a target, the loss or a gradient is not finite
        :raises FloatingPointError: after ``MAX_SKIPPED_UPDATES`` skipped updates in a row
        """
        policy, support = self.policy, self.policy.latent_model.value_support
        policy.latent_model.update_statistics(tree_map(lambda part: part[0], samples.observations))
        targets = self.targets(samples)
        known_values = targets.values[targets.value_weights > 0]
        # Extremes are NaN if a target is
        extremes = th.stack([*known_values.aminmax(), *targets.rewards.aminmax()]).tolist()
        if not all(map(math.isfinite, extremes)):
            self._skip("value or reward target", num_updates, step)
            return None
        self.supports.update(policy, (extremes[0], extremes[1]), (extremes[2], extremes[3]), self.settings.discount)
        clipped = support.out_of_range(known_values).float().mean()

        parameters = self.parameters
        output, loss, gradients = self.backward(samples, targets)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        grad_norm = nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        if not math.isfinite(loss + grad_norm):
            broken = [name for name, term in output.losses.items() if not bool(term.isfinite())]
            self._skip(f"{' and '.join(broken)} loss" if broken else "gradient", num_updates, step)
            return None
        self.skipped_in_a_row = 0
        policy.optimizer.step()
        value_error = output.value_errors.mean()
        policy.value_error.lerp_(value_error, 1 / min(num_updates + 1, 100))
        if (num_updates + 1) % self.settings.target_update_interval == 0:
            policy.update_target(self.settings.tau)

        scalars = {"loss": loss, **{f"{name}_loss": term for name, term in output.losses.items()}}
        scalars |= {"value_error": value_error, "grad_norm": grad_norm, "value_target_clipped": clipped}
        # Stacked, which copies them: a CUDA graph overwrites them in the next update
        scalars = dict(zip(scalars, th.stack([*scalars.values()]), strict=True))
        return UpdateResult(scalars, output.value_errors.numpy(force=True))

    def _skip(self, cause: str, num_updates: int, step: int) -> None:
        self.skipped_updates += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= self.MAX_SKIPPED_UPDATES:
            raise FloatingPointError(
                f"Update {num_updates} (step {step}): non-finite {cause}, in {self.skipped_in_a_row} updates in a row; try a "
                f"lower `learning_rate`"
            )
        warnings.warn(f"Skipping update {num_updates} (step {step}): non-finite {cause}")

    def targets(self, samples: SequenceSamples) -> UnrollTargets:
        """
        :param samples: The sequences
        :return: Targets of the unroll, with the target network's values
        """
        return unroll_targets(samples, self._bootstrap_values(samples), self.settings.discount)

    @th.no_grad()
    def _bootstrap_values(self, samples: SequenceSamples) -> th.Tensor:
        needed, model = needs_bootstrap(samples), self.policy.latent_model_target
        observations = samples.bootstrap_observations
        if needed.device.type == "cuda":  # no synchronization, and always the same shapes
            predict = self.policy.planner.cuda_graphed("values", model.predict_values, (observations,), model)
            return th.where(needed, predict(observations).squeeze(-1), 0.0)
        values = th.zeros(needed.shape, device=needed.device)
        values[needed] = model.predict_values(tree_map(lambda part: part[needed], observations)).squeeze(-1)
        return values

    def weighted_losses(self, losses: Mapping[str, th.Tensor]) -> dict[str, th.Tensor]:
        """
        :param losses: Terms of the loss
        :return: Each times its coefficient
        """
        return {name: self.settings.loss_coefs[name] * loss for name, loss in losses.items()}

    def backward(
        self, samples: SequenceSamples, targets: UnrollTargets
    ) -> tuple[LossOutput, th.Tensor, list[th.Tensor | None]]:
        """
        :param samples: The sequences
        :param targets: Their targets
        :return: Terms of the loss, the loss and its gradients, all of which the next call may overwrite
        """
        model, parameters = self.policy.latent_model, self.parameters

        def backward(read: dict[str, Any], targets: UnrollTargets) -> tuple[LossOutput, th.Tensor, list[th.Tensor | None]]:
            output = muzero_loss(model, self.policy.actions, samples._replace(**read), targets)
            loss: th.Tensor = sum(self.weighted_losses(output.losses).values())  # type: ignore[assignment]
            self.policy.optimizer.zero_grad()
            loss.backward()
            return tree_map(th.Tensor.detach, output), loss.detach(), [parameter.grad for parameter in parameters]

        # All tensors of `samples` that the loss reads: a CUDA graph sees no others
        read = {"observations": samples.observations, "actions": samples.actions, "weights": samples.weights}
        optional = ("action_masks", "candidates", "turn_signs")
        read |= {name: tensor for name in optional if (tensor := getattr(samples, name)) is not None}
        # No graph without a GPU, nor of overridden losses, whose constants are unknown
        if not samples.weights.is_cuda or type(self).weighted_losses is not Learner.weighted_losses:
            return backward(read, targets)
        constants = (*self.settings.loss_coefs.values(), *map(id, parameters))
        return self.policy.planner.cuda_graphed("backward", backward, (read, targets), model, *constants)(read, targets)

    def loss_is_finite(self, samples: SequenceSamples) -> bool:
        """
        :param samples: The sequences
        :return: Whether the loss and its gradients are finite; computing them changes no parameter
        """
        _, loss, gradients = self.backward(samples, self.targets(samples))
        norm = nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
        return bool((loss + norm).isfinite())

    def state(self) -> dict[str, Any]:
        """:return: What a resumed run goes on with, besides the policy's own state"""
        return {**{name: getattr(self, name) for name in self._NUMBERS}, "supports": self.supports.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """:param state: What ``state`` returned"""
        for name in self._NUMBERS:
            setattr(self, name, validate_number(name, state[name], int, 0))
        self.supports.load_state(state["supports"])
