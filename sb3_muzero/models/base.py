"""The latent model, which combines representation, dynamics and prediction functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_muzero.common.pytree import tree_map
from sb3_muzero.models.categorical import CategoricalSupport
from sb3_muzero.models.encoders import CenteredFeatures, Preprocessor
from sb3_muzero.models.normalization import RunningNorm
from sb3_muzero.search.checks import check_dense
from sb3_muzero.search.types import RecurrentOutput, RootOutput


class DynamicsOutput(NamedTuple):
    """
    Output of the dynamics function g.

    :param latent: Next latent states, shape ``[B, latent_dim]``
    :param reward_logits: Logits over the bins of the reward support, shape ``[B, num_bins]``
    """

    latent: Any
    reward_logits: th.Tensor


class PredictionOutput(NamedTuple):
    """
    Output of the prediction function f.

    :param policy_logits: Policy logits, shape ``[..., num_actions]``
    :param value_logits: Logits over the bins of the value support, shape ``[..., num_bins]``
    """

    policy_logits: th.Tensor
    value_logits: th.Tensor


class UnrollOutput(NamedTuple):
    """
    The model unrolled over K actions.

    :param latents: Latent states at positions 0..K, shape ``[K + 1, B, latent_dim]``
    :param policy_logits: Policy logits at positions 0..K, shape ``[K + 1, B, num_actions]``
    :param value_logits: Logits over the bins of the value support at positions 0..K, shape ``[K + 1, B, num_bins]``
    :param reward_logits: Logits over the bins of the reward support for the K steps, shape ``[K, B, num_bins]``
    """

    latents: Any
    policy_logits: th.Tensor
    value_logits: th.Tensor
    reward_logits: th.Tensor


def scale_gradient(tensor: th.Tensor, scale: float) -> th.Tensor:
    """
    Scale the gradient of a tensor (MuZero, Appendix G).

    :param tensor: Tensor of any shape
    :param scale: Factor of the gradient
    :return: Tensor with the same values
    """
    return th.lerp(tensor.detach(), tensor, scale)


def checked(network: str, output: Any) -> Any:
    """
    :param network: Name of a network, which may be a user's
    :param output: Its output, a pytree of tensors
    :return: The output
    :raises ValueError: for a sparse, nested, meta or quantized tensor
    """
    check_dense(f"The {network} function's output", output)
    return output


class LatentModel(nn.Module):
    """
    The representation function h, the dynamics function g and the prediction function f of MuZero
    (https://arxiv.org/abs/1911.08265, Appendix B). A latent state is a tensor or a pytree of tensors.

    :param preprocessor: Preprocessing of observations
    :param features_extractor: Maps preprocessed observations to features, shape ``[B, features_dim]``
    :param input_norm: Normalization of the features, ``nn.Identity`` for none
    :param representation: Maps normalized features to latent states, shape ``[B, latent_dim]``
    :param action_encoder: Maps action indices, shape ``[B]``, to encoded actions, shape ``[B, ...]``
    :param dynamics: Maps latent states and encoded actions to a ``DynamicsOutput``
    :param prediction: Maps latent states to a ``PredictionOutput``
    :param value_support: Support of the value, in the environment's reward units. An automatic range requires that the
        prediction function has the linear layer ``value_head``
    :param reward_support: Support of the reward. An automatic range requires that the dynamics function has the linear layer
        ``reward_head``
    :param augmentation: Data augmentation of preprocessed observations in the loss, ``None`` for none
    :param turn_head: Maps latent states to logits, shape ``[..., 1]``, that the player who made the last move moves again;
        ``None`` for a single player, or two that move in turn
    :raises ValueError: if a support has an automatic range and its linear layer is missing
    """

    def __init__(
        self,
        preprocessor: Preprocessor,
        features_extractor: nn.Module,
        input_norm: nn.Module,
        representation: nn.Module,
        action_encoder: nn.Module,
        dynamics: Callable[[Any, th.Tensor], DynamicsOutput],
        prediction: Callable[[Any], PredictionOutput],
        value_support: CategoricalSupport,
        reward_support: CategoricalSupport,
        augmentation: nn.Module | None = None,
        turn_head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.preprocess = preprocessor
        self.features_extractor = features_extractor
        self.input_norm = input_norm
        self.representation = representation
        self.action_encoder = action_encoder
        self.dynamics = dynamics
        self.prediction = prediction
        self.value_support = value_support
        self.reward_support = reward_support
        self.augmentation = augmentation
        self.turn_head = turn_head
        needed = (value_support, "prediction", "value_head"), (reward_support, "dynamics", "reward_head")
        for support, network, head in needed:
            if support.auto_range and not isinstance(getattr(getattr(self, network), head, None), nn.Linear):
                raise ValueError(
                    f"A support with an automatic range needs `{head}`, a torch.nn.Linear, on the {network} function"
                )

    def features(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: Raw observations, shape ``[..., *obs_shape]``, or a dictionary of them
        :return: Features before normalization, with flattened batch axes, shape ``[B, features_dim]``
        """
        return self.features_extractor(self.preprocess(obs))

    @th.no_grad()
    def update_statistics(self, obs: PyTorchObs) -> None:
        """
        Update the running statistics of the input normalization.

        :param obs: Raw observations of a training batch, shape ``[B, *obs_shape]``
        """
        self.preprocess.check_precision(obs)
        if isinstance(self.input_norm, RunningNorm):
            if isinstance(self.features_extractor, CenteredFeatures):
                self.features_extractor.center(self.preprocess(obs), is_first=self.input_norm.count == 0)
            self.input_norm.update_statistics(self.features(obs))

    def represent(self, obs: PyTorchObs, augment: bool = False) -> Any:
        """
        Representation function h.

        :param obs: Raw observations, shape ``[..., *obs_shape]``, or a dictionary of them
        :param augment: Whether to apply data augmentation
        :return: Latent states, shape ``[..., latent_dim]``
        """
        preprocessed = self.preprocess(obs)
        if augment and self.augmentation is not None:
            preprocessed = self.augmentation(preprocessed)
        latents = checked("representation", self.representation(self.input_norm(self.features_extractor(preprocessed))))
        return tree_map(lambda part: part.unflatten(0, self.preprocess.batch_shape(obs)), latents)

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        """
        Predict values, without search.

        :param obs: Raw observations, shape ``[..., *obs_shape]``
        :return: Values, shape ``[..., 1]``
        """
        return self.value_support.expectation(self.prediction(self.represent(obs)).value_logits).unsqueeze(-1)

    def initial_inference(self, obs: PyTorchObs) -> RootOutput:
        """
        Evaluate the root nodes of a search.

        :param obs: Raw observations, shape ``[B, *obs_shape]``
        :return: Policy logits, values and latent states of the roots
        """
        latent = self.represent(obs)
        predicted = checked("prediction", self.prediction(latent))
        return RootOutput(predicted.policy_logits, self.value_support.expectation(predicted.value_logits), latent)

    def step(self, latent: Any, encoded_action: th.Tensor) -> DynamicsOutput:
        """
        Dynamics function g.

        :param latent: Latent states, shape ``[B, latent_dim]``
        :param encoded_action: Encoded actions, shape ``[B, ...]``
        :return: Next latent states and logits of the reward
        :raises ValueError: if the dynamics function returns anything else
        """
        output = checked("dynamics", self.dynamics(latent, encoded_action))
        if not (isinstance(output, tuple) and len(output) == 2):
            raise ValueError(f"The dynamics function must return a DynamicsOutput(latent, reward_logits), got {type(output)}")
        return DynamicsOutput(*output)

    def recurrent_inference(self, latent: Any, action: th.Tensor, discount: float) -> RecurrentOutput:
        """
        Evaluate one step of the model, for the expansion of a node.

        :param latent: Latent states, shape ``[B, latent_dim]``
        :param action: Action indices, shape ``[B]``
        :param discount: Discount factor of the next state's value; negative if the opponent moves next. With a ``turn_head``
            its sign is predicted
        :return: Rewards, discounts, policy logits, values and next latent states
        """
        next_latent, reward_logits = self.step(latent, self.action_encoder(action))
        predicted = self.prediction(next_latent)
        reward = self.reward_support.expectation(reward_logits)
        discounts = th.full_like(reward, discount)
        if self.turn_head is not None:
            discounts = th.where(self.turn_head(next_latent).squeeze(-1) > 0, discounts.abs(), -discounts.abs())
        return RecurrentOutput(
            reward, discounts, predicted.policy_logits, self.value_support.expectation(predicted.value_logits), next_latent
        )

    def unroll(self, obs: PyTorchObs, actions: th.Tensor, augment: bool = False) -> UnrollOutput:
        """
        Unroll the model over a sequence of actions. The prediction function runs once, on all latent states. The gradient is
        scaled by 1/2 at the input of the dynamics function (MuZero, Appendix G), but not at that of the prediction function.

        :param obs: Raw observations at the first position, shape ``[B, *obs_shape]``
        :param actions: Action indices, shape ``[K, B]``
        :param augment: Whether to apply data augmentation
        :return: Latent states and what is predicted from them
        """
        latents, rewards = [self.represent(obs, augment)], []
        encoded = self.action_encoder(actions.flatten(0, 1)).unflatten(0, actions.shape[:2])
        for action in encoded:
            scaled = tree_map(lambda part: scale_gradient(part, 0.5), latents[-1])
            next_latent, reward_logits = self.step(scaled, action)
            latents.append(next_latent)
            rewards.append(reward_logits)
        stacked = tree_map(lambda *parts: th.stack(parts), *latents)
        return UnrollOutput(stacked, *self.prediction(stacked), th.stack(rewards))
