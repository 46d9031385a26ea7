"""The latent model: what every representation, dynamics and prediction network is used through."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_muzero.common.pytree import tree_map
from sb3_muzero.models.categorical import CategoricalSupport
from sb3_muzero.models.encoders import Preprocessor
from sb3_muzero.models.normalization import RunningNorm
from sb3_muzero.search.types import RecurrentOutput, RootOutput


class PredictionOutput(NamedTuple):
    """
    Output of the prediction function f; ``...`` are the batch axes.

    :param policy_logits: Shape ``[..., num_actions]``
    :param value_logits: Over the value support, shape ``[..., num_bins]``
    :param reward_logits: Over the reward support, of the transition that led to the latent, shape ``[..., num_bins]``
    """

    policy_logits: th.Tensor
    value_logits: th.Tensor
    reward_logits: th.Tensor


def scale_gradient(tensor: th.Tensor, scale: float) -> th.Tensor:
    """
    :param tensor: Any shape
    :param scale: Factor of its gradient
    :return: The same values
    """
    return th.lerp(tensor.detach(), tensor, scale)


class LatentModel(nn.Module):
    """
    The three networks of MuZero and the supports of their value and reward. A latent is a tensor, or a pytree of tensors.

    :param preprocessor: Preprocessing of observations
    :param features_extractor: Preprocessed observations -> features ``[B, features_dim]``
    :param input_norm: Normalization of the features, ``nn.Identity`` for none
    :param representation: Normalized features -> latent ``[B, latent_dim]``
    :param action_encoder: Action indices ``[B]`` -> encoded actions ``[B, ...]``
    :param dynamics: Latent and encoded action -> next latent
    :param prediction: Latent -> ``PredictionOutput``; with an automatic range of the support it needs the linear layers
        ``value_head`` and ``reward_head``
    :param value_support: Bins of the value, in the environment's reward units
    :param reward_support: Bins of the reward
    :param augmentation: Random changes of preprocessed observations, for the loss
    :raises ValueError: if a support has an automatic range and the prediction function lacks its linear layer
    """

    def __init__(
        self,
        preprocessor: Preprocessor,
        features_extractor: nn.Module,
        input_norm: nn.Module,
        representation: nn.Module,
        action_encoder: nn.Module,
        dynamics: Callable[[Any, th.Tensor], Any],
        prediction: Callable[[Any], PredictionOutput],
        value_support: CategoricalSupport,
        reward_support: CategoricalSupport,
        augmentation: nn.Module | None = None,
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
        for support, head in ((value_support, "value_head"), (reward_support, "reward_head")):
            if support.auto_range and not isinstance(getattr(prediction, head, None), nn.Linear):
                raise ValueError(
                    f"A support with an automatic range needs `{head}`, a torch.nn.Linear, on the prediction function"
                )

    def features(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: Observations as stored, shape ``[..., *obs_shape]``, or a dictionary of such
        :return: Features before their normalization, with all batch axes in one, shape ``[B, features_dim]``
        """
        return self.features_extractor(self.preprocess(obs))

    @th.no_grad()
    def update_statistics(self, obs: PyTorchObs) -> None:
        """
        Update the running statistics of the input normalization with a batch of training data.

        :param obs: Observations as stored, shape ``[..., *obs_shape]``
        """
        if isinstance(self.input_norm, RunningNorm):
            self.input_norm.update_statistics(self.features(obs))

    def represent(self, obs: PyTorchObs, augment: bool = False) -> Any:
        """
        Representation function h.

        :param obs: Observations as stored, shape ``[..., *obs_shape]``, or a dictionary of such
        :param augment: Whether to change images at random
        :return: Latents, shape ``[..., latent_dim]``
        """
        preprocessed = self.preprocess(obs)
        if augment and self.augmentation is not None:
            preprocessed = self.augmentation(preprocessed)
        latents = self.representation(self.input_norm(self.features_extractor(preprocessed)))
        return tree_map(lambda part: part.unflatten(0, self.preprocess.batch_shape(obs)), latents)

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: Observations as stored, shape ``[..., *obs_shape]``
        :return: Values of the prediction function, shape ``[..., 1]``
        """
        return self.value_support.expectation(self.prediction(self.represent(obs)).value_logits).unsqueeze(-1)

    def initial_inference(self, obs: PyTorchObs) -> RootOutput:
        """
        :param obs: Observations to plan from, shape ``[B, *obs_shape]``
        :return: What the search needs to know of its roots
        """
        latent = self.represent(obs)
        predicted = self.prediction(latent)
        return RootOutput(predicted.policy_logits, self.value_support.expectation(predicted.value_logits), latent)

    def recurrent_inference(self, latent: Any, action: th.Tensor, discount: float) -> RecurrentOutput:
        """
        :param latent: Latents, shape ``[B, latent_dim]``
        :param action: Action indices, shape ``[B]``
        :param discount: Factor from the value of the next state to that of this one
        :return: What the search needs to know of the step
        """
        next_latent = self.dynamics(latent, self.action_encoder(action))
        predicted = self.prediction(next_latent)
        reward = self.reward_support.expectation(predicted.reward_logits)
        return RecurrentOutput(
            reward,
            th.full_like(reward, discount),
            predicted.policy_logits,
            self.value_support.expectation(predicted.value_logits),
            next_latent,
        )

    def unroll(self, obs: PyTorchObs, actions: th.Tensor, augment: bool = False) -> tuple[Any, PredictionOutput]:
        """
        Unroll the model from observations. Only the K calls of the dynamics follow one another; the heads run once, on all
        latents. The gradient is halved where a latent enters the next call of the dynamics, not where its own heads read it
        (MuZero, Appendix G).

        :param obs: Observations at position 0, shape ``[B, *obs_shape]``
        :param actions: Indices of the actions taken from there, shape ``[K, B]``
        :param augment: Whether images are changed at random first
        :return: Latents at positions 0..K, shape ``[K + 1, B, latent_dim]``, and the prediction function's output for them
        """
        latents = [self.represent(obs, augment)]
        for action in actions:
            scaled = tree_map(lambda part: scale_gradient(part, 0.5), latents[-1])
            latents.append(self.dynamics(scaled, self.action_encoder(action)))
        stacked = tree_map(lambda *parts: th.stack(parts), *latents)
        return stacked, self.prediction(stacked)
