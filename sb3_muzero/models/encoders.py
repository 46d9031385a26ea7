"""Preprocessing of observations, and features extractors for small images and Dict observations."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_muzero.common.validation import DISCRETE_SPACES


class Preprocessor:
    """
    SB3's preprocessing, for observations with any number of batch axes.

    :param observation_space: Observation space
    :param normalize_images: Whether to divide images by 255
    """

    def __init__(self, observation_space: spaces.Space, normalize_images: bool = True) -> None:
        self.observation_space = observation_space
        self.normalize_images = normalize_images

    def batch_shape(self, obs: PyTorchObs) -> th.Size:
        """
        :param obs: Raw observations, shape ``[..., *obs_shape]``, or a dictionary of them
        :return: Shape of the batch axes
        """
        part: Any = obs
        space: Any = self.observation_space
        if isinstance(space, spaces.Dict):
            key = next(iter(space))
            part, space = part[key], space[key]
        return part.shape[: part.dim() - len(space.shape)]

    def __call__(self, obs: PyTorchObs) -> PyTorchObs:
        """
        :param obs: Raw observations, shape ``[..., *obs_shape]``, or a dictionary of them
        :return: Preprocessed observations with flattened batch axes, shape ``[B, ...]``
        """
        if isinstance(self.observation_space, spaces.Dict):
            return {key: self._preprocess_part(obs[key], space) for key, space in self.observation_space.items()}  # type: ignore
        return self._preprocess_part(obs, self.observation_space)  # type: ignore[arg-type]

    def _preprocess_part(self, obs: th.Tensor, space: spaces.Space) -> th.Tensor:
        if isinstance(space, DISCRETE_SPACES) and np.any(space.start):
            # th.full, since a CUDA graph can't contain copies to the GPU
            starts = [th.full((), int(start), device=obs.device) for start in np.ravel(space.start)]
            obs = obs - th.stack(starts).view(np.shape(space.start))
        flat = obs.reshape(-1, *space.shape)  # type: ignore[misc]
        preprocessed = preprocess_obs(flat, space, normalize_images=self.normalize_images)
        return preprocessed.reshape(len(flat), *(preprocessed.shape[1:] or (1,)))  # type: ignore[union-attr]


class GridCNN(BaseFeaturesExtractor):
    """
    CNN with one 3x3 convolution, from MinAtar's DQN (https://arxiv.org/abs/1903.03176, Section 4), for images that are too
    small for SB3's ``NatureCNN``.

    :param observation_space: Space of channels-first images
    :param features_dim: Number of features of a final linear layer. By default there is none, and the features are the
        flattened activations
    :param num_channels: Number of channels of the convolution
    """

    def __init__(self, observation_space: spaces.Box, features_dim: int | None = None, num_channels: int = 16) -> None:
        channels, height, width = observation_space.shape
        num_activations = num_channels * height * width
        super().__init__(observation_space, features_dim or num_activations)
        layers: list[nn.Module] = [nn.Conv2d(channels, num_channels, 3, padding=1), nn.ReLU(), nn.Flatten()]
        if features_dim is not None:
            layers += [nn.Linear(num_activations, features_dim), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layers(observations)


def cnn_for(shape: tuple[int, ...]) -> type[GridCNN] | type[NatureCNN]:
    """
    :param shape: Shape of the images, ``(C, H, W)``
    :return: ``NatureCNN``, or ``GridCNN`` if a side has less than the 36 pixels that ``NatureCNN`` requires
    """
    return NatureCNN if min(shape[1:]) >= 36 else GridCNN


class MultiInputExtractor(CombinedExtractor):
    """
    SB3's ``CombinedExtractor`` for images of any size: a CNN for each image, all other observations flattened, concatenated.
    The attribute ``learned_features`` contains for each feature whether it is computed by a CNN.

    :param observation_space: Dict space
    :param cnn_output_dim: Number of features of each image
    :param normalized_image: Whether images are already normalized, so that any Box with three axes is an image space
    """

    def __init__(self, observation_space: spaces.Dict, cnn_output_dim: int = 256, normalized_image: bool = False) -> None:
        parts: list[nn.Module] = []
        learned_features: list[bool] = []
        for space in observation_space.values():
            if isinstance(space, spaces.Box) and is_image_space(space, normalized_image=normalized_image):
                if cnn_for(space.shape) is GridCNN:
                    parts.append(GridCNN(space, cnn_output_dim))
                else:
                    parts.append(NatureCNN(space, cnn_output_dim, normalized_image))
                learned_features += [True] * cnn_output_dim
            else:
                parts.append(nn.Flatten())
                learned_features += [False] * get_flattened_obs_dim(space)
        BaseFeaturesExtractor.__init__(self, observation_space, len(learned_features))
        self.learned_features = learned_features
        self.keys = list(observation_space)
        self.parts = nn.ModuleList(parts)  # a ModuleDict does not accept all keys

    def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        return th.cat([part(observations[key]) for key, part in zip(self.keys, self.parts, strict=True)], dim=1)
