"""Preprocessing of observations, and features extractors for small images and Dict observations."""

import warnings
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_muzero.common.validation import DISCRETE_SPACES

MAX_EXACT_INTEGER = 2**24
"""Largest integer up to which float32 holds all."""


class Preprocessor:
    """
    SB3's preprocessing, for observations with any number of batch axes.

    :param observation_space: Observation space
    :param normalize_images: Whether to divide images by 255
    :param channels_last: Whether to move the last of an observation's three axes to the front
    :param keeps_float64: Whether to convert the parts of which ``needs_float64`` is true to float64 instead of float32
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        normalize_images: bool = True,
        channels_last: bool = False,
        keeps_float64: bool = False,
    ) -> None:
        self.observation_space = observation_space
        self.normalize_images = normalize_images
        self.channels_last = channels_last
        self.keeps_float64 = keeps_float64
        self._checked_precision = False

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
        if self.keeps_float64 and needs_float64(space):
            return flat.double().reshape(len(flat), *(space.shape or (1,)))
        preprocessed: Any = preprocess_obs(flat, space, normalize_images=self.normalize_images)
        preprocessed = preprocessed.reshape(len(flat), *(preprocessed.shape[1:] or (1,)))
        return preprocessed.movedim(-1, 1).contiguous() if self.channels_last else preprocessed

    def check_precision(self, obs: PyTorchObs) -> None:
        """
        Warn, once, of observations whose differences float32 does not hold. They are not checked again.

        :param obs: Raw observations of a training batch, shape ``[B, *obs_shape]``, or a dictionary of them
        """
        if self._checked_precision:
            return
        self._checked_precision = True
        whole, parts = self.observation_space, obs if isinstance(obs, dict) else {"": obs}
        for key, space in whole.items() if isinstance(whole, spaces.Dict) else [("", whole)]:
            if isinstance(space, spaces.Box) and not (self.keeps_float64 and needs_float64(space)):
                deviation, mean = th.std_mean(parts[key].double().reshape(len(parts[key]), -1), dim=0)
                is_lost = (mean.abs() > MAX_EXACT_INTEGER) & (deviation > 0) & (deviation < 1e-5 * mean.abs())
                for i in is_lost.nonzero()[:1].flatten().tolist():
                    what = f"Observations{f' {key!r}' * bool(key)} around {mean[i]:.6g} differ by {deviation[i]:.2g} only"
                    remedy = f"subtract {mean[i]:.6g} from them in the environment, in float64"
                    warnings.warn(f"{what}, which is lost in float32: {remedy}")


def needs_float64(space: spaces.Space) -> bool:
    """
    :param space: Observation space, or part of one
    :return: Whether it holds float64 or integers, and allows numbers beyond 2 ** 24, whose differences float32 does not hold
    """
    if not isinstance(space, spaces.Box) or space.dtype in (np.float16, np.float32):
        return False
    return bool(np.abs([space.low, space.high], dtype=np.float64).max() > MAX_EXACT_INTEGER)


class CenteredFeatures(nn.Module):
    """
    Features relative to a constant, the mean of the first training batch. Numbers that are large compared to their
    differences, such as time stamps, keep these differences in float32.

    :param features_extractor: Features extractor, which returns float64
    """

    origin: th.Tensor

    def __init__(self, features_extractor: BaseFeaturesExtractor) -> None:
        super().__init__()
        self.features_extractor = features_extractor
        self.register_buffer("origin", th.zeros(features_extractor.features_dim, dtype=th.float64))

    def center(self, observations: PyTorchObs, is_first: th.Tensor) -> None:
        """
        :param observations: Preprocessed observations of a training batch
        :param is_first: Whether it is the first one, which sets the constant; a scalar
        """
        self.origin.lerp_(self.features_extractor(observations).mean(0), is_first.double())

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        return (self.features_extractor(observations) - self.origin).float()


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
