"""Policies for images, alone or among the parts of a Dict: convolutions before an MLP model, or a convolutional model."""

import operator
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_muzero.actions import ActionTable, make_actions
from sb3_muzero.models.augmentation import ImageAugmentation
from sb3_muzero.models.encoders import MultiInputExtractor, cnn_for
from sb3_muzero.models.resnet import ConvDynamics, ConvPrediction, ConvRepresentation, action_planes
from sb3_muzero.policies.muzero_policy import MuZeroPolicy


def image_shape(observation_space: spaces.Space, normalize_images: bool) -> tuple[int, int, int]:
    """
    :param observation_space: Observation space
    :param normalize_images: Whether the policy scales images: else any array of three axes may be one
    :return: Shape of its images, channel first
    :raises ValueError: if it is one of other than images, or of float ones with their channels last
    """
    if not is_image_space(observation_space, normalized_image=not normalize_images) or len(observation_space.shape or ()) != 3:
        raise ValueError(
            f"`observation_space` must be images for a convolutional policy, uint8 from 0 to 255 with three axes (or a Box of "
            f"three axes with `normalize_images=False`), got {observation_space}; MlpPolicy takes any Box"
        )
    channels, height, width = observation_space.shape  # type: ignore[misc]
    if not normalize_images and width < min(channels, height):  # SB3 transposes images of uint8 only
        raise ValueError(f"`observation_space` must have images with the channels first, got {observation_space.shape}")
    return channels, height, width


def checked_grid(given: Any, num_actions: int) -> tuple[int, int]:
    """:raises ValueError: for other than the rows and columns of as many places as there are actions"""
    try:
        rows, columns = map(operator.index, given)
    except (TypeError, ValueError):
        rows = columns = 0
    if min(rows, columns) < 1 or rows * columns != num_actions:
        raise ValueError(
            f"`action_grid` must be the rows and columns of as many places as there are actions, {num_actions}, got {given!r}"
        )
    return rows, columns


class ImagePolicy(MuZeroPolicy):
    """What policies for images have in common. See ``CnnPolicy`` for its arguments."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        *,
        random_shift: int | None = None,
        random_intensity: float = 0.05,
        **kwargs: Any,
    ) -> None:
        self.image_shape = image_shape(observation_space, kwargs.get("normalize_images", True))
        self.random_shift = min(self.image_shape[1:]) // 20 if random_shift is None else random_shift
        self.random_intensity = random_intensity
        if self.random_shift >= min(self.image_shape[1:]):
            raise ValueError(
                f"`random_shift` must be below the images' shorter side, got {random_shift} for {self.image_shape}"
            )
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def make_augmentation(self) -> nn.Module:
        return ImageAugmentation(self.random_shift, self.random_intensity)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        return data | {"random_shift": self.random_shift, "random_intensity": self.random_intensity}


class CnnPolicy(ImagePolicy):
    """
    Policy class of MuZero for images. Convolutions encode the observation; what follows, and with it planning, is the MLP
    model of ``MuZeroPolicy``, which on the CPU plans in compiled code.

    The features extractor is ``NatureCNN`` by default, or ``GridCNN`` where a side of the images has less than 36 pixels.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param random_shift: Largest shift of the images that the loss sees, in pixels; by default one in 20 of their shorter side
    :param random_intensity: Standard deviation of the factor around 1 that they are multiplied by
    :param kwargs: See ``MuZeroPolicy``, which is ``MlpPolicy``
    :raises ValueError: for an observation space of other than images
    """

    @staticmethod
    def default_features_extractor(observation_space: spaces.Space) -> type[BaseFeaturesExtractor]:
        return cnn_for(observation_space.shape or ())


class ResNetPolicy(ImagePolicy):
    """
    Policy class of MuZero for images with residual networks, whose latents are images too (MuZero, Appendix F; EfficientZero,
    https://arxiv.org/abs/2111.00210, Appendix A). It plans in PyTorch and is made for a GPU.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param num_channels: Channels of the latent
    :param num_blocks: Residual blocks of the dynamics, and at each size of the representation
    :param action_grid: Rows and columns of places in the image that the actions are, row by row: ``(1, 7)`` for seven columns.
        By default they are no places, and convolutions do not see which part of the image an action is about. With a grid
        images are not shifted by default
    :param net_arch: Hidden widths of the heads' trunk, ``[64]`` by default
    :param latent_norm: Normalisation of latents: "minmax" or "none"
    :param bf16: Whether to compute in bfloat16 where PyTorch's autocast does, on images whose channels come last, as tensor
        cores like it
    :param kwargs: See ``CnnPolicy``, but for those of ``UNUSED``
    :raises ValueError: for an observation space of other than images, or a setting that is of no use here
    """

    UNUSED = ("latent_dim", "representation_class", "dynamics_class", "prediction_class", "features_extractor_class",
              "features_extractor_kwargs", "norm_obs")  # fmt: skip

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        *,
        num_channels: int = 32,
        num_blocks: int = 1,
        action_grid: tuple[int, int] | None = None,
        latent_norm: str = "minmax",
        bf16: bool = False,
        **kwargs: Any,
    ) -> None:
        if useless := sorted(set(self.UNUSED) & kwargs.keys()):
            raise ValueError(f"ResNetPolicy has no use for {useless}; `num_channels` and `num_blocks` size it")
        if latent_norm == "simnorm":
            raise ValueError("`latent_norm` of a ResNetPolicy must be 'minmax' or 'none', got 'simnorm'")
        if num_channels < 1 or num_blocks < 0:
            raise ValueError(f"`num_channels` must be at least 1 and `num_blocks` 0, got {num_channels} and {num_blocks}")
        self.num_channels = num_channels
        self.num_blocks = num_blocks
        self.action_grid = (
            None if action_grid is None else checked_grid(action_grid, make_actions(action_space).num_candidates)
        )
        if action_grid is not None:
            kwargs.setdefault("random_shift", 0)  # places would not move along
        self.bf16 = bf16
        super().__init__(observation_space, action_space, lr_schedule, latent_norm=latent_norm, norm_obs=False, **kwargs)

    def make_networks(self, features_dim: int) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
        body: dict[str, Any] = {
            "num_blocks": self.num_blocks,
            "activation_fn": self.activation_fn,
            "latent_norm": self.latent_norm,
            "bf16": self.bf16,
        }
        representation = ConvRepresentation(self.image_shape, self.num_channels, **body)
        shape = representation.latent_shape
        planes = action_planes(self.actions.encodings(), *shape[1:], self.action_grid)
        return (
            representation,
            ActionTable(planes),
            ConvDynamics(shape, planes.shape[1], **body),
            ConvPrediction(
                shape, self.actions.num_candidates, self.num_bins, self.net_arch, self.activation_fn, bf16=self.bf16
            ),
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data = {name: value for name, value in data.items() if name not in self.UNUSED}
        own = ("num_channels", "num_blocks", "action_grid", "bf16")
        return data | {name: getattr(self, name) for name in own}


class MultiInputPolicy(MuZeroPolicy):
    """Policy class of MuZero for Dict observations. See ``MuZeroPolicy`` for its arguments."""

    @staticmethod
    def default_features_extractor(observation_space: spaces.Space) -> type[BaseFeaturesExtractor]:
        if not isinstance(observation_space, spaces.Dict):
            raise ValueError(f"`observation_space` must be a Dict for MultiInputPolicy, got {observation_space}")
        return MultiInputExtractor
