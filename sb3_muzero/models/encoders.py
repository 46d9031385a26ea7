"""From observations to features: preprocessing, and features extractors for small images."""

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
    SB3's preprocessing of observations with any number of batch axes.

    :param observation_space: Observation space
    :param normalize_images: Whether to divide images by 255
    """

    def __init__(self, observation_space: spaces.Space, normalize_images: bool = True) -> None:
        self.observation_space = observation_space
        self.normalize_images = normalize_images

    def batch_shape(self, obs: PyTorchObs) -> th.Size:
        """
        :param obs: Observations as stored, shape ``[..., *obs_shape]``, or a dictionary of such
        :return: Their batch axes
        """
        part: Any = obs
        space: Any = self.observation_space
        if isinstance(space, spaces.Dict):
            key = next(iter(space))
            part, space = part[key], space[key]
        return part.shape[: part.dim() - len(space.shape)]

    def __call__(self, obs: PyTorchObs) -> PyTorchObs:
        """
        :param obs: Observations as stored, shape ``[..., *obs_shape]``, or a dictionary of such
        :return: Preprocessed observations with all batch axes in one, shape ``[B, ...]``
        """
        if isinstance(self.observation_space, spaces.Dict):
            return {key: self._preprocess_part(obs[key], space) for key, space in self.observation_space.items()}  # type: ignore
        return self._preprocess_part(obs, self.observation_space)  # type: ignore[arg-type]

    def _preprocess_part(self, obs: th.Tensor, space: spaces.Space) -> th.Tensor:
        if isinstance(space, DISCRETE_SPACES):
            if np.any(space.start):  # number by number, since nothing can be copied to a GPU inside of a CUDA graph
                starts = [th.full((), int(start), device=obs.device) for start in np.ravel(space.start)]
                obs = obs - th.stack(starts).view(np.shape(space.start))
        flat = obs.reshape(-1, *space.shape)  # type: ignore[misc]
        preprocessed = preprocess_obs(flat, space, normalize_images=self.normalize_images)
        return preprocessed.reshape(len(flat), *(preprocessed.shape[1:] or (1,)))  # type: ignore[union-attr]


class GridCNN(BaseFeaturesExtractor):
    """
    One layer of 3x3 convolutions, for images that are too small for SB3's ``NatureCNN``: that of MinAtar's DQN
    (https://arxiv.org/abs/1903.03176, Section 4). By default no linear layer follows, since its units tend to die.

    :param observation_space: Images, channel first
    :param features_dim: Number of features of a final linear layer; by default the features are the flattened activations
    :param num_channels: Channels of the convolutions
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
    :param shape: Shape of images, channel first
    :return: ``NatureCNN``, or ``GridCNN`` where a side has less than the 36 pixels that it needs
    """
    return NatureCNN if min(shape[1:]) >= 36 else GridCNN


class MultiInputExtractor(CombinedExtractor):
    """
    SB3's ``CombinedExtractor`` for images of any size: convolutions for each image, everything else flattened, concatenated.
    ``learned_features`` tells for each feature whether a layer computes it; the policy standardizes the others fully.

    :param observation_space: Dict space
    :param cnn_output_dim: Number of features of each image
    :param normalized_image: Whether images are already scaled, so that any Box of three axes is one. Set by the policy
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
        self.parts = nn.ModuleList(parts)  # SB3's ModuleDict refuses many a name

    def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        return th.cat([part(observations[key]) for key, part in zip(self.keys, self.parts, strict=True)], dim=1)
