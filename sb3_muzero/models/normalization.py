"""Normalization of latents, of the model's inputs and of images: alike in planning and in training."""

import torch as th
from torch import nn
from torch.nn import functional as F

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
    Standardize each feature by a running mean and variance. The statistics change in ``update_statistics`` only, so planning
    and training normalize alike, and they never stop following the data.

    :param num_features: Size of the features
    :param clip: Largest absolute value after scaling
    :param min_momentum: Lower bound of the weight of a new batch in the running statistics
    :param min_var: Lower bound of the running variance: a number, or a tensor of shape ``[num_features]``
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


class ImageNorm(nn.GroupNorm):
    """
    Normalises each image alone: alike in planning and in training, which batch statistics are not. ``nn.GroupNorm`` of one
    group, which on a GPU would bring the channels of channels-last images to the front, and the next convolution back.

    :param num_channels: Channels of the images
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__(1, num_channels)

    def forward(self, images: th.Tensor) -> th.Tensor:
        if images.is_contiguous():
            return super().forward(images)
        channels_last = images.permute(0, 2, 3, 1)
        # Autocast would make all that follows float32; the statistics are in any case
        with th.autocast(images.device.type, enabled=False):
            normed = F.layer_norm(channels_last, channels_last.shape[1:], eps=self.eps)
            normed = th.addcmul(self.bias.to(images.dtype), normed, self.weight.to(images.dtype))
        return normed.permute(0, 3, 1, 2)


register(SimNorm, "simnorm")
register(MinMaxNorm, "minmax")
register(RunningNorm, "standardize")
