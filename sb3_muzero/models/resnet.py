"""A convolutional latent model whose latents are images themselves."""

import math

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_muzero.models.base import PredictionOutput
from sb3_muzero.models.mlp import Prediction
from sb3_muzero.models.normalization import LATENT_NORMS, ImageNorm

Shape = tuple[int, int, int]  # channels, height, width


class ConvLayers(nn.Sequential):
    """
    Layers whose results are float32, also where they compute in less.

    :param layers: Layers
    :param bf16: Whether to compute in bfloat16 where PyTorch's autocast does, on images whose channels come last
    """

    def __init__(self, *layers: nn.Module, bf16: bool) -> None:
        super().__init__(*layers)
        self.bf16 = bf16
        if bf16:
            self.to(memory_format=th.channels_last)  # type: ignore[call-overload]

    def forward(self, images: th.Tensor) -> th.Tensor:
        if not self.bf16:
            return super().forward(images)
        # Casts of the weights can't be kept: a CUDA graph may hold them
        with th.autocast(images.device.type, th.bfloat16, cache_enabled=False):
            return super().forward(images).float()


def normed_conv(in_channels: int, out_channels: int, stride: int = 1) -> list[nn.Module]:
    """
    A 3x3 convolution and its normalisation.

    :param in_channels: Channels of the input
    :param out_channels: Channels of the output
    :param stride: 2 halves the image, rounding up
    :return: Modules, for ``nn.Sequential``
    """
    return [nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False), ImageNorm(out_channels)]


class ResidualBlock(nn.Module):
    """
    Two convolutions beside a skip connection (https://arxiv.org/abs/1512.03385).

    :param num_channels: Channels of input and output
    :param activation_fn: Activation
    """

    def __init__(self, num_channels: int, activation_fn: type[nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *normed_conv(num_channels, num_channels), activation_fn(), *normed_conv(num_channels, num_channels)
        )
        self.activation = activation_fn()

    def forward(self, images: th.Tensor) -> th.Tensor:
        return self.activation(images + self.body(images))


class ConvRepresentation(nn.Sequential):
    """
    h: flattened images ``[B, C * H * W]`` -> flattened latents ``[B, latent_dim]``, which are images of ``latent_shape``.
    Halves the image until it is no larger than 10x10: 96 and 84 pixels to 6 as EfficientZero's (Appendix A), 10 not at all.
    As there, the largest of several sizes has half the channels.

    :param image_shape: Shape of the images, channel first
    :param num_channels: Channels of the latent
    :param num_blocks: Residual blocks at each size
    :param activation_fn: Activation
    :param latent_norm: Normalisation of the latent, a key of ``LATENT_NORMS``
    :param bf16: Whether to compute in bfloat16, on images whose channels come last
    """

    MAX_LATENT_SIDE = 10

    def __init__(
        self,
        image_shape: Shape,
        num_channels: int,
        num_blocks: int,
        activation_fn: type[nn.Module],
        latent_norm: str,
        bf16: bool = False,
    ) -> None:
        channels, height, width = image_shape
        layers: list[nn.Module] = [nn.Unflatten(-1, image_shape)]
        while True:
            stride = 2 if max(height, width) > self.MAX_LATENT_SIDE else 1
            height, width = math.ceil(height / stride), math.ceil(width / stride)
            is_first, is_last = len(layers) == 1, max(height, width) <= self.MAX_LATENT_SIDE
            out_channels = max(num_channels // 2, 1) if is_first and not is_last else num_channels
            convolution, norm = normed_conv(channels, out_channels, stride)
            # Normalised at once, images would all be equally bright
            layers += [convolution, activation_fn()] if is_first else [convolution, norm, activation_fn()]
            layers += [ResidualBlock(out_channels, activation_fn) for _ in range(num_blocks)]
            channels = out_channels
            if is_last:
                break
        self.latent_shape = (channels, height, width)
        super().__init__(ConvLayers(*layers, nn.Flatten(), bf16=bf16), LATENT_NORMS[latent_norm]())


def action_planes(encodings: th.Tensor, height: int, width: int, grid: tuple[int, int] | None = None) -> th.Tensor:
    """
    Actions as images (MuZero, Appendix F).

    :param encodings: One-hot encoding of each action, shape ``[num_actions, num_actions]``
    :param height: Of the images
    :param width: Of the images
    :param grid: Rows and columns of places that the actions are, row by row
    :return: For each action a plane of ones among planes of zeros, shape ``[num_actions, num_actions, height, width]``; with a
        grid one plane, of ones at the action's place, or of a finer grid as many as tell all places of a pixel apart, shape
        ``[num_actions, num_planes, height, width]``
    """
    if grid is None:
        return encodings[..., None, None].repeat(1, 1, height, width)
    factor = max(math.ceil(grid[0] / height), math.ceil(grid[1] / width))
    places = F.interpolate(encodings.reshape(len(encodings), 1, *grid), (factor * height, factor * width))
    return F.pixel_unshuffle(places, factor)


class ConvDynamics(nn.Module):
    """
    g: flattened latents and action planes ``[B, num_planes, height, width]`` -> next flattened latents.

    :param latent_shape: Shape of a latent
    :param num_planes: Planes of an encoded action, which enter as further channels, see ``action_planes``
    :param num_blocks: Residual blocks
    :param activation_fn: Activation
    :param latent_norm: Normalisation of the next latent, a key of ``LATENT_NORMS``
    :param bf16: Whether to compute in bfloat16, on images whose channels come last
    """

    def __init__(
        self,
        latent_shape: Shape,
        num_planes: int,
        num_blocks: int,
        activation_fn: type[nn.Module],
        latent_norm: str,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        self.latent_shape = latent_shape
        channels = latent_shape[0]
        self.step = ConvLayers(*normed_conv(channels + num_planes, channels), bf16=bf16)
        blocks = [ResidualBlock(channels, activation_fn) for _ in range(num_blocks)]
        self.blocks = ConvLayers(activation_fn(), *blocks, nn.Flatten(), bf16=bf16)
        self.norm = LATENT_NORMS[latent_norm]()

    def forward(self, latent: th.Tensor, action: th.Tensor) -> th.Tensor:
        images = latent.unflatten(-1, self.latent_shape)
        stepped = self.step(th.cat([images, action], dim=1))
        return self.norm(self.blocks(images + stepped))


class ConvPrediction(Prediction):
    """
    f: flattened latents ``[..., latent_dim]`` -> policy, value and reward, by a ``Prediction`` behind a convolution of one
    pixel that leaves it fewer channels (EfficientZero, Appendix A).

    :param latent_shape: Shape of a latent
    :param num_actions: Number of actions
    :param num_bins: Bins of the value and of the reward support
    :param net_arch: Hidden widths of the trunk that the heads share
    :param activation_fn: Activation of the hidden layers
    :param num_channels: Channels that are left
    :param bf16: Whether to compute in bfloat16, on images whose channels come last
    """

    def __init__(
        self,
        latent_shape: Shape,
        num_actions: int,
        num_bins: int,
        net_arch: list[int],
        activation_fn: type[nn.Module],
        num_channels: int = 16,
        bf16: bool = False,
    ) -> None:
        channels, height, width = latent_shape
        super().__init__(num_channels * height * width, num_actions, num_bins, net_arch, activation_fn)
        reduce = [nn.Conv2d(channels, num_channels, 1), ImageNorm(num_channels), activation_fn(), nn.Flatten()]
        self.trunk = ConvLayers(nn.Unflatten(-1, latent_shape), *reduce, *self.trunk, bf16=bf16)

    def forward(self, latent: th.Tensor) -> PredictionOutput:
        predicted = super().forward(latent.flatten(0, -2))
        return PredictionOutput(*(logits.unflatten(0, latent.shape[:-1]) for logits in predicted))
