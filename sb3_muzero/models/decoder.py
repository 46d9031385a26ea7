"""Decoders that reconstruct observations or rendered frames from latent states. What they learn does not reach the model."""

from collections.abc import Callable

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from torch import nn
from torch.nn import functional as F


class Decoder(nn.Module):
    """
    MLP that maps latent states to vectors, or to images with pixels in [0, 1].

    :param latent_dim: Size of a latent state
    :param shape: Shape of what is decoded; of images channels first
    :param is_image: Whether that is images
    :param hidden_dim: Width of the two hidden layers
    :param device: Device
    """

    mean: th.Tensor
    scale: th.Tensor

    def __init__(
        self,
        latent_dim: int,
        shape: tuple[int, ...],
        is_image: bool,
        hidden_dim: int = 256,
        device: th.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.shape = shape
        self.is_image = is_image
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, hidden_dim), nn.LayerNorm(hidden_dim), nn.ReLU(),
            nn.Linear(hidden_dim, hidden_dim), nn.LayerNorm(hidden_dim), nn.ReLU(),
            nn.Linear(hidden_dim, int(th.Size(shape).numel())),
        )  # fmt: skip
        self.register_buffer("mean", th.zeros(shape, dtype=th.float64))
        self.register_buffer("scale", th.ones(shape, dtype=th.float64))
        self.to(device)

    def forward(self, latents: th.Tensor) -> th.Tensor:
        """
        :param latents: Latent states, shape ``[..., latent_dim]``
        :return: What is decoded from them, shape ``[..., *shape]``
        """
        decoded = self.layers(latents).unflatten(-1, self.shape)
        return decoded.sigmoid() if self.is_image else self.mean + self.scale * decoded

    def fit_latents(self, latents: th.Tensor, targets: th.Tensor, num_updates: int, batch_size: int = 256) -> None:
        """
        Train the decoder.

        :param latents: Latent states, shape ``[N, latent_dim]``
        :param targets: What is to be decoded from them, shape ``[N, *shape]``
        :param num_updates: Number of gradient updates
        :param batch_size: Batch size
        """
        latents = latents.detach()
        if not self.is_image:
            self.mean.copy_(targets.mean(0))
            self.scale.copy_(targets.std(0).clamp(min=1e-6))
        optimizer = th.optim.AdamW(self.parameters(), lr=1e-3)
        for _ in range(num_updates):
            batch = th.randint(len(targets), (batch_size,), device=targets.device)
            decoded = self.layers(latents[batch]).unflatten(-1, self.shape)
            if self.is_image:
                loss = F.binary_cross_entropy_with_logits(decoded, targets[batch])
            else:
                loss = F.mse_loss(decoded, ((targets[batch] - self.mean) / self.scale).float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


class DecoderProbe(Decoder):
    """
    Decoder of observations. For stacked frames it decodes the newest frame, for images pixels in [0, 1].

    :param represent: Maps raw observations, shape ``[B, *obs_shape]``, to latent states, shape ``[B, latent_dim]``. It is not
        trained
    :param observation_space: Observation space
    :param device: Device of ``represent``
    :param frame_stack: Number of frames stacked along the first axis of an observation
    :param hidden_dim: Width of the two hidden layers
    :raises ValueError: if observations are neither vectors nor channels-first images
    """

    def __init__(
        self,
        represent: Callable[[th.Tensor], th.Tensor],
        observation_space: spaces.Space,
        device: th.device | str = "cpu",
        frame_stack: int = 1,
        hidden_dim: int = 256,
    ) -> None:
        space = observation_space
        is_image = is_image_space(space) and is_image_space_channels_first(space)  # type: ignore[arg-type]
        if not isinstance(space, spaces.Box) or not (is_image or len(space.shape) == 1):
            raise ValueError(f"A decoder needs observations that are vectors or images with channels first, got {space}")
        num_newest = space.shape[0] // frame_stack
        latent_dim = encode(represent, th.as_tensor(space.sample()[None], device=device)).shape[-1]
        super().__init__(latent_dim, (num_newest, *space.shape[1:]), is_image, hidden_dim, device)
        self.represent = represent
        self.num_newest = num_newest

    def newest(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: Raw observations, shape ``[B, *obs_shape]``
        :return: Newest frames, the targets of the decoder, shape ``[B, *shape]``
        """
        newest = observations[:, -self.num_newest :]
        return newest.float() / 255 if self.is_image else newest.double()

    def fit(self, observations: th.Tensor, held_out: th.Tensor, num_updates: int = 2_000, batch_size: int = 256) -> float:
        """
        Train the decoder.

        :param observations: Raw observations for training, shape ``[N, *obs_shape]``
        :param held_out: Raw observations of other episodes, shape ``[M, *obs_shape]``
        :param num_updates: Number of gradient updates
        :param batch_size: Batch size
        :return: Explained variance of the held-out observations, at most 1. For vectors, the mean over all entries that vary
        """
        targets = self.newest(observations)
        self.fit_latents(encode(self.represent, observations), targets, num_updates, batch_size)
        latents, new_targets = encode(self.represent, held_out), self.newest(held_out)
        with th.no_grad():
            errors = (self(latents) - new_targets).square().mean(0)
            variances = (new_targets - targets.mean(0)).square().mean(0)
            if self.is_image:
                return float(1 - errors.mean() / variances.mean().clamp(min=1e-12))
            varies = variances > 1e-8 * self.scale.square().clamp(min=1e-12)
            return float((1 - errors / variances)[varies].mean()) if varies.any() else 0.0


@th.no_grad()
def encode(represent: Callable[[th.Tensor], th.Tensor], observations: th.Tensor) -> th.Tensor:
    """
    :param represent: Maps raw observations to latent states
    :param observations: Raw observations, shape ``[N, *obs_shape]``
    :return: Latent states, shape ``[N, latent_dim]``
    """
    return th.cat([represent(part) for part in observations.split(1024)])


def to_rgb(images: np.ndarray) -> np.ndarray:
    """
    :param images: From 0 to 1, shape ``[N, channels, height, width]``
    :return: Shape ``[N, height, width, 3]``: one channel in grey, three in RGB, any other number in a colour for each
    """
    images = np.moveaxis(images, 1, -1)
    channels = images.shape[-1]
    if channels == 1:
        return images.repeat(3, axis=-1)
    if channels == 3:
        return images
    hues = np.arange(channels) / channels * 6
    wheel = np.stack([np.abs(hues - 3) - 1, 2 - np.abs(hues - 2), 2 - np.abs(hues - 4)], axis=1).clip(0, 1)
    return (images[..., None] * wheel).max(-2)


def psnr(frame: np.ndarray, reference: np.ndarray, peak: float = 1.0) -> float:
    """
    :param frame: Frame of any shape
    :param reference: Frame of the same shape
    :param peak: Largest value of a pixel
    :return: Peak signal-to-noise ratio in dB, infinite for equal frames
    """
    error = np.square(frame.astype(np.float64) - reference).mean()
    return float(10 * np.log10(peak**2 / error)) if error > 0 else float("inf")
