"""Normalization of latent states, features and images. No layer depends on the other samples of a batch."""

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_muzero.search.backends.numba.translate import register


class SimNorm(nn.Module):
    """
    Simplicial normalization: layer normalization, then a softmax over each group of units
    (TD-MPC2, https://arxiv.org/abs/2310.16828, Section 3.1).

    :param group_size: Number of units per group, a divisor of the latent size
    """

    def __init__(self, group_size: int = 8) -> None:
        super().__init__()
        self.group_size = group_size

    def forward(self, latent: th.Tensor) -> th.Tensor:
        # Faster than F.softmax over a short axis. exp does not overflow: layer normalization bounds its input by
        # sqrt(latent_dim)
        groups = F.layer_norm(latent, latent.shape[-1:]).exp().unflatten(-1, (-1, self.group_size))
        return (groups * groups.sum(-1, keepdim=True).reciprocal()).flatten(-2)


class MinMaxNorm(nn.Module):
    """
    Scale each latent state to [0, 1] (MuZero, Appendix G).

    :param epsilon: Lower bound of the range that is divided by
    """

    def __init__(self, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, latent: th.Tensor) -> th.Tensor:
        low, high = latent.amin(-1, keepdim=True), latent.amax(-1, keepdim=True)
        return (latent - low) / (high - low).clamp(min=self.epsilon)


LATENT_NORMS: dict[str, type[nn.Module]] = {"simnorm": SimNorm, "minmax": MinMaxNorm, "none": nn.Identity}


class RunningNorm(nn.Module):
    """
    Normalize each feature with a running mean and variance, which only ``update_statistics`` changes.

    :param num_features: Number of features
    :param clip: Max absolute value of normalized features
    :param min_momentum: Lower bound of the weight of a new batch, so that the statistics keep tracking the data
    :param min_var: Lower bound of the running variance, a number or a tensor of shape ``[num_features]``
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
        Update the statistics with a batch (parallel variance, Chan et al., 1979).

        :param features: Features, shape ``[B, num_features]``
        """
        self.count.add_(len(features))
        share = (len(features) / self.count).clamp(min=self.min_momentum)
        var, mean = th.var_mean(features, dim=0, correction=0)
        delta = mean - self.mean
        self.mean.lerp_(mean, share)
        self.var.lerp_(var, share).addcmul_(delta, (mean - self.mean) * share).clamp_(min=self.min_var)

    def forward(self, features: th.Tensor) -> th.Tensor:
        return ((features - self.mean) * (self.var + 1e-8).rsqrt()).clamp(-self.clip, self.clip)


class ImageNorm(nn.GroupNorm):
    """
    Normalize each image: ``nn.GroupNorm`` with one group, which keeps the channels-last memory format.

    :param num_channels: Number of channels
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__(1, num_channels)

    def forward(self, images: th.Tensor) -> th.Tensor:
        if images.is_contiguous():
            return super().forward(images)
        channels_last = images.permute(0, 2, 3, 1)
        # Autocast would return float32
        with th.autocast(images.device.type, enabled=False):
            normed = F.layer_norm(channels_last, channels_last.shape[1:], eps=self.eps)
            normed = th.addcmul(self.bias.to(images.dtype), normed, self.weight.to(images.dtype))
        return normed.permute(0, 3, 1, 2)


register(SimNorm, "simnorm")
register(MinMaxNorm, "minmax")
register(RunningNorm, "standardize")
