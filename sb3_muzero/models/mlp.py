"""Representation, dynamics and prediction functions as MLPs."""

import torch as th
from torch import nn

from sb3_muzero.common.validation import check_integer
from sb3_muzero.models.base import DynamicsOutput, PredictionOutput
from sb3_muzero.models.normalization import LATENT_NORMS
from sb3_muzero.search.backends.numba.translate import register


def hidden_layers(input_dim: int, net_arch: list[int], activation_fn: type[nn.Module]) -> list[nn.Module]:
    """
    Create hidden layers: ``Linear -> LayerNorm -> activation`` for each width.

    :param input_dim: Size of the input
    :param net_arch: Width of each layer
    :param activation_fn: Activation function
    :return: Modules, for ``nn.Sequential``
    :raises ValueError: for anything else than a list, and for a width that is not an integer of at least 1
    """
    if not isinstance(net_arch, list | tuple):
        raise ValueError(f"`net_arch` must be a list of widths such as [128, 128], got {net_arch}")
    layers: list[nn.Module] = []
    for width in net_arch:
        check_integer("net_arch", width)
        layers += [nn.Linear(input_dim, width), nn.LayerNorm(width), activation_fn()]
        input_dim = width
    return layers


def zero_linear(input_dim: int, output_dim: int) -> nn.Linear:
    """
    Create the linear layer of a head, whose output is zero at first.

    :param input_dim: Size of the input
    :param output_dim: Size of the output
    :return: Linear layer, initialized to zero
    """
    layer = nn.Linear(input_dim, output_dim)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Representation(nn.Sequential):
    """
    Representation function h: features ``[B, features_dim]`` -> latent states ``[B, latent_dim]``.

    :param features_dim: Size of the features extractor's output
    :param latent_dim: Size of the latent state
    :param net_arch: Widths of the hidden layers
    :param activation_fn: Activation function
    :param latent_norm: Normalization of the latent state, a key of ``LATENT_NORMS``
    """

    def __init__(
        self, features_dim: int, latent_dim: int, net_arch: list[int], activation_fn: type[nn.Module], latent_norm: str
    ) -> None:
        check_integer("latent_dim", latent_dim)
        widths = [features_dim, *net_arch]
        super().__init__(
            *hidden_layers(features_dim, net_arch, activation_fn),
            nn.Linear(widths[-1], latent_dim),
            LATENT_NORMS[latent_norm](),
        )


class Dynamics(nn.Module):
    """
    Dynamics function g: latent states ``[B, latent_dim]`` and encoded actions ``[B, action_dim]`` -> next latent states
    ``[B, latent_dim]`` and reward. The reward is read off the hidden layers, since next latent states need not tell it.

    :param latent_dim: Size of the latent state
    :param action_dim: Size of an encoded action
    :param num_bins: Number of bins of the reward support
    :param net_arch: Widths of the hidden layers, which both outputs share
    :param activation_fn: Activation function
    :param latent_norm: Normalization of the next latent state, a key of ``LATENT_NORMS``
    """

    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        num_bins: int,
        net_arch: list[int],
        activation_fn: type[nn.Module],
        latent_norm: str,
    ) -> None:
        super().__init__()
        widths = [latent_dim + action_dim, *net_arch]
        self.trunk = nn.Sequential(*hidden_layers(widths[0], net_arch, activation_fn))
        self.latent_head = nn.Sequential(nn.Linear(widths[-1], latent_dim), LATENT_NORMS[latent_norm]())
        self.reward_head = zero_linear(widths[-1], num_bins)

    def forward(self, latent: th.Tensor, action: th.Tensor) -> DynamicsOutput:
        hidden = self.trunk(th.cat([latent, action], dim=-1))
        return DynamicsOutput(self.latent_head(hidden), self.reward_head(hidden))


class Prediction(nn.Module):
    """
    Prediction function f: latent states ``[..., latent_dim]`` -> policy and value. The heads are initialized to zero, so that
    the initial policy is uniform.

    :param latent_dim: Size of the latent state
    :param num_actions: Number of actions
    :param num_bins: Number of bins of the value support
    :param net_arch: Widths of the hidden layers, which the heads share
    :param activation_fn: Activation function
    """

    def __init__(
        self, latent_dim: int, num_actions: int, num_bins: int, net_arch: list[int], activation_fn: type[nn.Module]
    ) -> None:
        super().__init__()
        width = [latent_dim, *net_arch][-1]
        self.trunk = nn.Sequential(*hidden_layers(latent_dim, net_arch, activation_fn))
        self.policy_head = zero_linear(width, num_actions)
        self.value_head = zero_linear(width, num_bins)

    def forward(self, latent: th.Tensor) -> PredictionOutput:
        hidden = self.trunk(latent)
        return PredictionOutput(self.policy_head(hidden), self.value_head(hidden))


register(Dynamics, "dynamics")
register(Prediction, "prediction")
