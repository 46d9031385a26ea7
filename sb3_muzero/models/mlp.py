"""Representation h, dynamics g and prediction f as small MLPs (MuZero, https://arxiv.org/abs/1911.08265)."""

import torch as th
from torch import nn

from sb3_muzero.models.base import PredictionOutput
from sb3_muzero.models.normalization import LATENT_NORMS
from sb3_muzero.search.backends.numba.translate import register


def hidden_layers(input_dim: int, net_arch: list[int], activation_fn: type[nn.Module]) -> list[nn.Module]:
    """
    ``Linear -> LayerNorm -> activation`` for each width. Layer normalisation acts alike in planning and in training.

    :param input_dim: Size of the input
    :param net_arch: Widths; may be empty
    :param activation_fn: Activation of each layer
    :return: Modules, for ``nn.Sequential``
    """
    layers: list[nn.Module] = []
    for width in net_arch:
        layers += [nn.Linear(input_dim, width), nn.LayerNorm(width), activation_fn()]
        input_dim = width
    return layers


class Representation(nn.Sequential):
    """
    h: features ``[B, features_dim]`` -> latent ``[B, latent_dim]``.

    :param features_dim: Size of the features extractor's output
    :param latent_dim: Size of the latent
    :param net_arch: Hidden widths
    :param activation_fn: Activation of the hidden layers
    :param latent_norm: Normalisation of the latent, a key of ``LATENT_NORMS``
    """

    def __init__(
        self, features_dim: int, latent_dim: int, net_arch: list[int], activation_fn: type[nn.Module], latent_norm: str
    ) -> None:
        widths = [features_dim, *net_arch]
        super().__init__(
            *hidden_layers(features_dim, net_arch, activation_fn),
            nn.Linear(widths[-1], latent_dim),
            LATENT_NORMS[latent_norm](),
        )


class Dynamics(nn.Sequential):
    """
    g: latent ``[B, latent_dim]`` and encoded action ``[B, action_dim]`` -> next latent ``[B, latent_dim]``.
    The prediction function predicts the reward from the next latent, so that all heads run once on stacked latents.

    :param latent_dim: Size of the latent
    :param action_dim: Size of an encoded action
    :param net_arch: Hidden widths
    :param activation_fn: Activation of the hidden layers
    :param latent_norm: Normalisation of the next latent, a key of ``LATENT_NORMS``
    """

    def __init__(
        self, latent_dim: int, action_dim: int, net_arch: list[int], activation_fn: type[nn.Module], latent_norm: str
    ) -> None:
        widths = [latent_dim + action_dim, *net_arch]
        super().__init__(
            *hidden_layers(widths[0], net_arch, activation_fn), nn.Linear(widths[-1], latent_dim), LATENT_NORMS[latent_norm]()
        )

    def forward(self, latent: th.Tensor, action: th.Tensor) -> th.Tensor:  # type: ignore[override]
        return super().forward(th.cat([latent, action], dim=-1))


class Prediction(nn.Module):
    """
    f: latent ``[..., latent_dim]`` -> policy, value and reward. The heads are initialized to zero: a uniform policy.

    :param latent_dim: Size of the latent
    :param num_actions: Number of actions
    :param num_bins: Bins of the value and of the reward support
    :param net_arch: Hidden widths of the trunk that the heads share
    :param activation_fn: Activation of the hidden layers
    """

    def __init__(
        self, latent_dim: int, num_actions: int, num_bins: int, net_arch: list[int], activation_fn: type[nn.Module]
    ) -> None:
        super().__init__()
        width = [latent_dim, *net_arch][-1]
        self.trunk = nn.Sequential(*hidden_layers(latent_dim, net_arch, activation_fn))
        self.policy_head = nn.Linear(width, num_actions)
        self.value_head = nn.Linear(width, num_bins)
        self.reward_head = nn.Linear(width, num_bins)
        for head in (self.policy_head, self.value_head, self.reward_head):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, latent: th.Tensor) -> PredictionOutput:
        hidden = self.trunk(latent)
        return PredictionOutput(self.policy_head(hidden), self.value_head(hidden), self.reward_head(hidden))


register(Dynamics, "sequential")
register(Prediction, "prediction")
