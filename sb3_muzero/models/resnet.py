"""Representation, dynamics and prediction functions as residual networks with convolutional latent states."""

import math

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_muzero.common.validation import check_integer
from sb3_muzero.models.base import DynamicsOutput, PredictionOutput
from sb3_muzero.models.mlp import Prediction, hidden_layers, zero_linear
from sb3_muzero.models.normalization import LATENT_NORMS, ImageNorm

Shape = tuple[int, int, int]  # (C, H, W)


class ConvLayers(nn.Sequential):
    """
    Sequential layers with float32 output.

    :param layers: Layers
    :param bf16: Whether to use bfloat16 autocast and the channels-last memory format
    """

    def __init__(self, *layers: nn.Module, bf16: bool) -> None:
        super().__init__(*layers)
        self.bf16 = bf16
        if bf16:
            self.to(memory_format=th.channels_last)  # type: ignore[call-overload]

    def forward(self, images: th.Tensor) -> th.Tensor:
        if not self.bf16:
            return super().forward(images)
        # A CUDA graph must not refer to cached casts of the weights
        with th.autocast(images.device.type, th.bfloat16, cache_enabled=False):
            return super().forward(images).float()


def normed_conv(in_channels: int, out_channels: int, stride: int = 1) -> list[nn.Module]:
    """
    Create a 3x3 convolution followed by normalization.

    :param in_channels: Number of input channels
    :param out_channels: Number of output channels
    :param stride: Stride of the convolution
    :return: Modules, for ``nn.Sequential``
    """
    return [nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False), ImageNorm(out_channels)]


class ResidualBlock(nn.Module):
    """
    Residual block with two convolutions (https://arxiv.org/abs/1512.03385).

    :param num_channels: Number of channels
    :param activation_fn: Activation function
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
    Representation function h: flattened images ``[B, C * H * W]`` -> flattened latent states ``[B, latent_dim]``, which are
    images of ``latent_shape``. Strided convolutions halve the resolution until it is at most 10x10; 96x96 becomes 6x6 as in
    EfficientZero (https://arxiv.org/abs/2111.00210, Appendix A). The first of several resolutions has half the channels.

    :param image_shape: Shape of the images, ``(C, H, W)``
    :param num_channels: Number of channels of the latent state
    :param num_blocks: Number of residual blocks per resolution
    :param activation_fn: Activation function
    :param latent_norm: Normalization of the latent state, a key of ``LATENT_NORMS``
    :param bf16: Whether to use bfloat16 autocast and the channels-last memory format
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
        check_integer("num_channels", num_channels)
        check_integer("num_blocks", num_blocks, 0)
        channels, height, width = image_shape
        layers: list[nn.Module] = [nn.Unflatten(-1, image_shape)]
        while True:
            stride = 2 if max(height, width) > self.MAX_LATENT_SIDE else 1
            height, width = math.ceil(height / stride), math.ceil(width / stride)
            is_first, is_last = len(layers) == 1, max(height, width) <= self.MAX_LATENT_SIDE
            out_channels = max(num_channels // 2, 1) if is_first and not is_last else num_channels
            convolution, norm = normed_conv(channels, out_channels, stride)
            # No normalization after the first convolution, which would remove the brightness of the image
            layers += [convolution, activation_fn()] if is_first else [convolution, norm, activation_fn()]
            layers += [ResidualBlock(out_channels, activation_fn) for _ in range(num_blocks)]
            channels = out_channels
            if is_last:
                break
        self.latent_shape = (channels, height, width)
        super().__init__(ConvLayers(*layers, nn.Flatten(), bf16=bf16), LATENT_NORMS[latent_norm]())


def action_planes(encodings: th.Tensor, height: int, width: int, grid: tuple[int, int] | None = None) -> th.Tensor:
    """
    Encode actions as image planes (MuZero, Appendix F).

    :param encodings: One-hot encoding of each action, shape ``[num_actions, num_actions]``
    :param height: Height of the planes
    :param width: Width of the planes
    :param grid: Rows and columns of a grid over the image with one cell per action, row by row; ``None`` for none
    :return: Planes of each action, shape ``[num_actions, num_planes, height, width]``. Without a grid there is one constant
        plane per action, in one-hot encoding. With a grid one plane contains ones in the action's cell; a grid that is finer
        than the planes is folded into several planes
    """
    if grid is None:
        return encodings[..., None, None].repeat(1, 1, height, width)
    factor = max(math.ceil(grid[0] / height), math.ceil(grid[1] / width))
    places = F.interpolate(encodings.reshape(len(encodings), 1, *grid), (factor * height, factor * width))
    return F.pixel_unshuffle(places, factor)


class ConstantPlanes(nn.Module):
    """
    Repeats each number of an encoded action over an image plane.

    :param height: Height of the planes
    :param width: Width of the planes
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, encoded: th.Tensor) -> th.Tensor:
        return encoded[..., None, None].expand(*encoded.shape, self.height, self.width)


def flat_trunk(
    image_shape: Shape, num_channels: int, net_arch: list[int], activation_fn: type[nn.Module], bf16: bool
) -> tuple[ConvLayers, int]:
    """
    Create the layers before a head that reads a flattened image: a 1x1 convolution that reduces the number of channels
    (EfficientZero, Appendix A), and hidden layers.

    :param image_shape: Shape of the image, ``(C, H, W)``
    :param num_channels: Number of channels after the 1x1 convolution
    :param net_arch: Widths of the hidden layers
    :param activation_fn: Activation function
    :param bf16: Whether to use bfloat16 autocast and the channels-last memory format
    :return: Layers, and the size of their output
    """
    channels, height, width = image_shape
    widths = [num_channels * height * width, *net_arch]
    reduce = [nn.Conv2d(channels, num_channels, 1), ImageNorm(num_channels), activation_fn(), nn.Flatten()]
    hidden = hidden_layers(widths[0], net_arch, activation_fn)
    return ConvLayers(nn.Unflatten(-1, image_shape), *reduce, *hidden, bf16=bf16), widths[-1]


class ConvDynamics(nn.Module):
    """
    Dynamics function g: flattened latent states ``[B, latent_dim]`` and action planes ``[B, num_planes, height, width]`` ->
    flattened next latent states ``[B, latent_dim]`` and reward.

    :param latent_shape: Shape of a latent state, ``(C, H, W)``
    :param num_planes: Number of planes of an encoded action, which are concatenated to the channels, see ``action_planes``
    :param num_bins: Number of bins of the reward support
    :param num_blocks: Number of residual blocks
    :param net_arch: Widths of the hidden layers before the reward head
    :param activation_fn: Activation function
    :param latent_norm: Normalization of the next latent state, a key of ``LATENT_NORMS``
    :param num_channels: Number of channels after the 1x1 convolution before the reward head
    :param bf16: Whether to use bfloat16 autocast and the channels-last memory format
    """

    def __init__(
        self,
        latent_shape: Shape,
        num_planes: int,
        num_bins: int,
        num_blocks: int,
        net_arch: list[int],
        activation_fn: type[nn.Module],
        latent_norm: str,
        num_channels: int = 16,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        self.latent_shape = latent_shape
        channels = latent_shape[0]
        self.step = ConvLayers(*normed_conv(channels + num_planes, channels), bf16=bf16)
        blocks = [ResidualBlock(channels, activation_fn) for _ in range(num_blocks)]
        self.blocks = ConvLayers(activation_fn(), *blocks, nn.Flatten(), bf16=bf16)
        self.norm = LATENT_NORMS[latent_norm]()
        self.reward_trunk, width = flat_trunk(latent_shape, num_channels, net_arch, activation_fn, bf16)
        self.reward_head = zero_linear(width, num_bins)

    def forward(self, latent: th.Tensor, action: th.Tensor) -> DynamicsOutput:
        images = latent.unflatten(-1, self.latent_shape)
        features = self.blocks(images + self.step(th.cat([images, action], dim=1)))
        return DynamicsOutput(self.norm(features), self.reward_head(self.reward_trunk(features)))


class ConvPrediction(Prediction):
    """
    Prediction function f: flattened latent states ``[..., latent_dim]`` -> policy and value.

    :param latent_shape: Shape of a latent state, ``(C, H, W)``
    :param num_actions: Number of actions
    :param num_bins: Number of bins of the value support
    :param net_arch: Widths of the hidden layers, which the heads share
    :param activation_fn: Activation function
    :param num_channels: Number of channels after the 1x1 convolution
    :param bf16: Whether to use bfloat16 autocast and the channels-last memory format
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
        trunk, width = flat_trunk(latent_shape, num_channels, net_arch, activation_fn, bf16)
        super().__init__(width, num_actions, num_bins, [], activation_fn)
        self.trunk = trunk

    def forward(self, latent: th.Tensor) -> PredictionOutput:
        predicted = super().forward(latent.flatten(0, -2))
        return PredictionOutput(*(logits.unflatten(0, latent.shape[:-1]) for logits in predicted))
