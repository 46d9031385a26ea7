"""Policy classes for image and Dict observations."""

import warnings
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_muzero.actions import ActionTable, DiscreteActions
from sb3_muzero.common.numeric import is_integer
from sb3_muzero.models.augmentation import ImageAugmentation
from sb3_muzero.models.encoders import MultiInputExtractor, cnn_for
from sb3_muzero.models.resnet import ConstantPlanes, ConvDynamics, ConvPrediction, ConvRepresentation, action_planes
from sb3_muzero.policies.muzero_policy import MuZeroPolicy


def check_image_space(space: spaces.Space, normalize_images: bool) -> None:
    """
    :param space: Observation space
    :param normalize_images: Whether images are normalized by the policy. If not, any Box with three axes is an image space
    :raises ValueError: unless observations are images, or boards of numbers from -1 to 1
    """
    what = "`observation_space` must be images or boards for a convolutional policy"
    if isinstance(space, spaces.Dict):
        raise ValueError(f"{what}, got {space}: use MultiInputPolicy")
    shape = space.shape or ()
    if not isinstance(space, spaces.Box | spaces.MultiBinary) or len(shape) != 3:
        remedy = "use MlpPolicy"
        if len(shape) == 2:
            remedy = f"wrap each environment in `gymnasium.wrappers.ReshapeObservation(env, {(1, *shape)})`, or {remedy}"
        raise ValueError(f"{what}, with three axes, got {space}: {remedy}")
    if normalize_images and not (is_image_space(space) or is_board_space(space)):
        raise ValueError(
            f"{what}, uint8 from 0 to 255 or numbers from -1 to 1, got {space}: "
            f"`policy_kwargs=dict(normalize_images=False)` takes the numbers as they are"
        )


def is_board_space(space: spaces.Space) -> bool:
    """
    :param space: Observation space with three axes
    :return: Whether its numbers need no normalization, since all are between -1 and 1
    """
    if isinstance(space, spaces.MultiBinary):
        return True
    return isinstance(space, spaces.Box) and bool((np.abs([space.low, space.high], dtype=np.float64) <= 1).all())


def has_channels_last(space: spaces.Space) -> bool:
    """
    :param space: Space of images or boards
    :return: Whether the last axis is the shortest, except for images, whose channels are first since SB3 transposes them
    """
    if is_image_space(space):
        return False
    rows, columns, channels = space.shape or ()
    if rows == columns < channels:
        warnings.warn(
            f"Observations of shape {space.shape} are taken for {rows} channels of {columns} x {channels} cells: if the "
            f"channels come last, use `policy_kwargs=dict(channels_last=True)`, else `channels_last=False`"
        )
    return channels < min(rows, columns)


def check_grid(grid: Any, num_actions: int) -> None:
    """
    :param grid: Rows and columns
    :param num_actions: Number of actions
    :raises ValueError: unless the grid has one cell for each action
    """
    is_pair = isinstance(grid, tuple | list) and len(grid) == 2 and all(is_integer(side) and side >= 1 for side in grid)
    if not is_pair or grid[0] * grid[1] != num_actions:
        raise ValueError(f"`action_grid` must be rows and columns of one cell per action, {num_actions}, got {grid!r}")


class ImagePolicy(MuZeroPolicy):
    """Base class of policies for images. See ``CnnPolicy`` for the arguments."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *,
        random_shift: int | None = None,
        random_intensity: float = 0.05,
        channels_last: bool | None = None,
        **kwargs: Any,
    ) -> None:
        check_image_space(observation_space, kwargs.get("normalize_images", True))
        if not is_image_space(observation_space):
            kwargs["normalize_images"] = False
        elif channels_last:
            raise ValueError("`channels_last` must not be True for images of uint8 from 0 to 255, which SB3 transposes")
        self.channels_last = has_channels_last(observation_space) if channels_last is None else channels_last
        first, second, third = observation_space.shape or ()
        self.image_shape = (third, first, second) if self.channels_last else (first, second, third)
        self.random_shift = min(self.image_shape[1:]) // 20 if random_shift is None else random_shift
        self.random_intensity = random_intensity
        if self.random_shift >= min(self.image_shape[1:]):
            raise ValueError(
                f"`random_shift` must be below the images' shorter side, got {random_shift} for {self.image_shape}"
            )
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        space = self.observation_space
        if self.channels_last or not isinstance(space, spaces.Box):
            space = spaces.Box(-np.inf, np.inf, self.image_shape)
        return self.features_extractor_class(space, **self.features_extractor_kwargs)

    def make_augmentation(self) -> nn.Module:
        return ImageAugmentation(self.random_shift, self.random_intensity)


class CnnPolicy(ImagePolicy):
    """
    Policy class of MuZero for images: a CNN features extractor, followed by the MLP model of ``MuZeroPolicy``.

    The features extractor is ``NatureCNN`` by default, or ``GridCNN`` for images with a side of less than 36 pixels.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param random_shift: Maximum random shift of images in the loss, in pixels, 1/20 of the shorter side by default
    :param random_intensity: Standard deviation of the random brightness factor in the loss
    :param channels_last: Whether the last axis of an observation holds the channels; by default if it is the shortest one.
        Images of uint8 from 0 to 255 have their channels first, since SB3 transposes them
    :param kwargs: See ``MuZeroPolicy``
    :raises ValueError: for an invalid argument, or if the observation space is not an image space
    """

    def default_features_extractor(self, observation_space: spaces.Space) -> type[BaseFeaturesExtractor]:
        return cnn_for(self.image_shape)


class ResNetPolicy(ImagePolicy):
    """
    Policy class of MuZero for images with residual networks and convolutional latent states (MuZero,
    https://arxiv.org/abs/1911.08265, Appendix F; EfficientZero, https://arxiv.org/abs/2111.00210, Appendix A). It always uses
    the PyTorch planner and is meant for GPUs.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param num_channels: Number of channels of the latent state
    :param num_blocks: Number of residual blocks in the dynamics, and per resolution in the representation
    :param action_grid: Rows and columns of a grid over the image with one cell per action, row by row: ``(1, 7)`` if each
        action chooses one of seven columns. The dynamics then receive the action's cell as an image plane, and
        ``random_shift`` is 0 by default. By default each action is encoded as a constant plane
    :param net_arch: Widths of the hidden layers before the reward head, and of those that policy and value head share,
        ``[64]`` by default
    :param latent_norm: Normalization of the latent state: "minmax" or "none"
    :param bf16: Whether to use bfloat16 autocast and the channels-last memory format
    :param kwargs: See ``CnnPolicy``, except for those in ``UNUSED``
    :raises ValueError: for an invalid or unused argument, or if the observation space is not an image space
    """

    UNUSED = ("latent_dim", "representation_class", "dynamics_class", "prediction_class", "features_extractor_class",
              "features_extractor_kwargs", "norm_obs")  # fmt: skip

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
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
            raise ValueError(f"ResNetPolicy does not use {useless}; set its size by `num_channels` and `num_blocks`")
        if latent_norm == "simnorm":
            raise ValueError("`latent_norm` of a ResNetPolicy must be 'minmax' or 'none', got 'simnorm'")
        if num_channels < 1 or num_blocks < 0:
            raise ValueError(f"`num_channels` must be at least 1 and `num_blocks` 0, got {num_channels} and {num_blocks}")
        self.num_channels = num_channels
        self.num_blocks = num_blocks
        self.action_grid = action_grid
        if action_grid is not None:
            if not isinstance(action_space, spaces.Discrete):
                raise ValueError(f"`action_grid` must be None unless the action space is Discrete, got {action_space}")
            check_grid(action_grid, int(action_space.n))
            kwargs.setdefault("random_shift", 0)  # the cells are not shifted
        self.bf16 = bf16
        super().__init__(observation_space, action_space, lr_schedule, latent_norm=latent_norm, norm_obs=False, **kwargs)

    def make_networks(self, features_dim: int) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
        shared: dict[str, Any] = {"activation_fn": self.activation_fn, "bf16": self.bf16}
        body: dict[str, Any] = {"num_blocks": self.num_blocks, "latent_norm": self.latent_norm, **shared}
        heads: dict[str, Any] = {"num_bins": self.num_bins, "net_arch": self.net_arch}
        representation = ConvRepresentation(self.image_shape, self.num_channels, **body)
        shape = representation.latent_shape
        encoder: nn.Module = nn.Sequential(self.actions.make_encoder(), ConstantPlanes(*shape[1:]))
        num_planes = self.actions.encoding_dim
        if isinstance(self.actions, DiscreteActions) or self.action_grid is not None:
            planes = action_planes(th.eye(num_planes), *shape[1:], self.action_grid)
            encoder = ActionTable(planes)
            num_planes = planes.shape[1]
        return (
            representation,
            encoder,
            ConvDynamics(shape, num_planes, **heads, **body),
            ConvPrediction(shape, self.actions.num_policy_outputs, **heads, **shared),
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        return {name: value for name, value in data.items() if name not in self.UNUSED}


class MultiInputPolicy(MuZeroPolicy):
    """Policy class of MuZero for Dict observations. See ``MuZeroPolicy`` for the arguments."""

    def default_features_extractor(self, observation_space: spaces.Space) -> type[BaseFeaturesExtractor]:
        if not isinstance(observation_space, spaces.Dict):
            raise ValueError(
                f"`observation_space` must be a Dict for MultiInputPolicy, got {observation_space}: use MlpPolicy"
            )
        return MultiInputExtractor
