"""The latent model: representation h, dynamics g and prediction f as small MLPs (MuZero, https://arxiv.org/abs/1911.08265)."""

from collections.abc import Callable
from typing import NamedTuple

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_muzero.models.categorical import CategoricalSupport
from sb3_muzero.search.backends.numba.translate import register


class SimNorm(nn.Module):
    """
    Simplicial normalisation: a softmax over each group of units (TD-MPC2, https://arxiv.org/abs/2310.16828, Section 3.1).

    :param group_size: Units per group; divides the latent size
    """

    def __init__(self, group_size: int = 8) -> None:
        super().__init__()
        self.group_size = group_size

    def forward(self, latent: th.Tensor) -> th.Tensor:
        # F.softmax takes ten times as long over so short an axis. Layer normalisation bounds what exp sees by
        # sqrt(latent_dim), which overflows from 7800 units on
        groups = F.layer_norm(latent, latent.shape[-1:]).exp().unflatten(-1, (-1, self.group_size))
        return (groups * groups.sum(-1, keepdim=True).reciprocal()).flatten(-2)


class MinMaxNorm(nn.Module):
    """Scale each latent to [0, 1] (MuZero, Appendix G); a range below ``epsilon`` counts as ``epsilon``."""

    def __init__(self, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, latent: th.Tensor) -> th.Tensor:
        low, high = latent.amin(-1, keepdim=True), latent.amax(-1, keepdim=True)
        return (latent - low) / (high - low).clamp(min=self.epsilon)


LATENT_NORMS: dict[str, type[nn.Module]] = {"simnorm": SimNorm, "minmax": MinMaxNorm, "none": nn.Identity}


class RunningNorm(nn.Module):
    """
    Scale each feature by the mean and variance of those observed in training, so that units do not matter.
    Planning and training normalise alike: the statistics change in ``update_statistics`` only. They never stop following the
    data, since an agent that learns sees ever more of its world, and the clip is far out for the same reason:
    what is ten deviations away today is where the agent goes tomorrow.

    :param num_features: Size of the features
    :param clip: Largest absolute value after scaling
    :param min_momentum: Weight of a new batch against all those before, at least
    :param min_var: Variance that a feature counts as having at least, once something was observed; one for all, or a tensor
        with each feature's own, shape ``[num_features]``
    """

    mean: th.Tensor
    var: th.Tensor
    count: th.Tensor
    min_var: th.Tensor

    def __init__(
        self, num_features: int, clip: float = 100.0, min_momentum: float = 0.01, min_var: float | th.Tensor = 0.0
    ) -> None:
        super().__init__()
        self.register_buffer("min_var", th.as_tensor(min_var), persistent=False)
        self.clip = clip
        self.min_momentum = min_momentum
        self.register_buffer("mean", th.zeros(num_features))
        self.register_buffer("var", th.ones(num_features))
        self.register_buffer("count", th.zeros(()))

    @th.no_grad()
    def update_statistics(self, features: th.Tensor) -> None:
        """
        Merge a batch into the statistics (Chan et al., parallel variance).

        :param features: Shape ``[B, num_features]``
        """
        self.count.add_(len(features))
        share = (len(features) / self.count).clamp(min=self.min_momentum)
        var, mean = th.var_mean(features, dim=0, correction=0)
        delta = mean - self.mean
        self.mean.lerp_(mean, share)
        self.var.lerp_(var, share).addcmul_(delta, (mean - self.mean) * share).clamp_(min=self.min_var)

    def forward(self, features: th.Tensor) -> th.Tensor:
        return ((features - self.mean) * (self.var + 1e-8).rsqrt()).clamp(-self.clip, self.clip)


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
    g: latent ``[B, latent_dim]`` and action index ``[B]`` -> next latent ``[B, latent_dim]``.
    The reward is read off the next latent by the prediction function, so that all heads run once on stacked latents.

    :param latent_dim: Size of the latent
    :param num_actions: Number of actions
    :param net_arch: Hidden widths
    :param activation_fn: Activation of the hidden layers
    :param latent_norm: Normalisation of the next latent, a key of ``LATENT_NORMS``
    """

    one_hot: th.Tensor

    def __init__(
        self, latent_dim: int, num_actions: int, net_arch: list[int], activation_fn: type[nn.Module], latent_norm: str
    ) -> None:
        widths = [latent_dim + num_actions, *net_arch]
        super().__init__(
            *hidden_layers(widths[0], net_arch, activation_fn), nn.Linear(widths[-1], latent_dim), LATENT_NORMS[latent_norm]()
        )
        self.num_actions = num_actions
        self.register_buffer("one_hot", th.eye(num_actions), persistent=False)

    def forward(self, latent: th.Tensor, action: th.Tensor) -> th.Tensor:  # type: ignore[override]
        return super().forward(th.cat([latent, self.one_hot.index_select(0, action)], dim=-1))


class PredictionOutput(NamedTuple):
    """
    What f says of latents; ``...`` are the batch axes.

    :param policy_logits: Shape ``[..., num_actions]``
    :param value_logits: Over the value support, shape ``[..., num_bins]``
    :param reward_logits: Over the reward support, of the transition that led to the latent, shape ``[..., num_bins]``
    """

    policy_logits: th.Tensor
    value_logits: th.Tensor
    reward_logits: th.Tensor


class Prediction(nn.Module):
    """
    f: latent ``[..., latent_dim]`` -> policy, value and reward. The heads start at zero: a uniform policy, no opinion else.

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


class LatentModel(nn.Module):
    """
    The three networks and the supports their value and reward are read on.

    :param features_extractor: Preprocessed observation -> features ``[B, features_dim]``
    :param input_norm: Normalisation of the features, ``nn.Identity`` for none
    :param representation: Normalised features -> latent ``[B, latent_dim]``
    :param dynamics: Latent and action index ``[B]`` -> next latent
    :param prediction: Latent -> ``PredictionOutput``; with a support that fits itself it needs the linear layers
        ``value_head`` and ``reward_head``
    :param value_support: Bins of the value, in the environment's reward units
    :param reward_support: Bins of the reward
    :raises ValueError: where a support fits itself and the prediction function lacks the layer to fit
    """

    def __init__(
        self,
        features_extractor: nn.Module,
        input_norm: nn.Module,
        representation: nn.Module,
        dynamics: Callable[[th.Tensor, th.Tensor], th.Tensor],
        prediction: Callable[[th.Tensor], PredictionOutput],
        value_support: CategoricalSupport,
        reward_support: CategoricalSupport,
    ) -> None:
        super().__init__()
        self.features_extractor = features_extractor
        self.input_norm = input_norm
        self.representation = representation
        self.dynamics = dynamics
        self.prediction = prediction
        self.value_support = value_support
        self.reward_support = reward_support
        for support, head in ((value_support, "value_head"), (reward_support, "reward_head")):
            if support.auto_range and not isinstance(getattr(prediction, head, None), nn.Linear):
                raise ValueError(f"A support that fits itself needs `{head}`, a torch.nn.Linear, on the prediction module")

    def represent(self, preprocessed_obs: th.Tensor | dict[str, th.Tensor]) -> th.Tensor:
        """
        :param preprocessed_obs: Output of SB3's ``preprocess_obs``, shape ``[B, ...]``
        :return: Latents, shape ``[B, latent_dim]``
        """
        return self.representation(self.input_norm(self.features_extractor(preprocessed_obs)))


register(SimNorm, "simnorm")
register(MinMaxNorm, "minmax")
register(RunningNorm, "standardize")
register(Dynamics, "sequential")
register(Prediction, "prediction")
