"""Decoder that reconstructs observations from latent states, for visualization only."""

from collections.abc import Callable

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from torch import nn
from torch.nn import functional as F


class DecoderProbe(nn.Module):
    """
    MLP that maps latent states to observations. For stacked frames it decodes the newest frame, for images pixels in [0, 1].

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
        super().__init__()
        space = observation_space
        self.is_image = is_image_space(space) and is_image_space_channels_first(space)  # type: ignore[arg-type]
        if not isinstance(space, spaces.Box) or not (self.is_image or len(space.shape) == 1):
            raise ValueError(f"A decoder needs observations that are vectors or images with channels first, got {space}")
        self.represent = represent
        self.num_newest = space.shape[0] // frame_stack
        self.shape = (self.num_newest, *space.shape[1:])
        size = int(th.Size(self.shape).numel())
        latent_dim = self._encode(th.as_tensor(space.sample()[None], device=device)).shape[-1]
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, hidden_dim), nn.LayerNorm(hidden_dim), nn.ReLU(),
            nn.Linear(hidden_dim, hidden_dim), nn.LayerNorm(hidden_dim), nn.ReLU(),
            nn.Linear(hidden_dim, size),
        )  # fmt: skip
        self.register_buffer("mean", th.zeros(self.shape, dtype=th.float64))
        self.register_buffer("scale", th.ones(self.shape, dtype=th.float64))
        self.to(device)

    mean: th.Tensor
    scale: th.Tensor

    def newest(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: Raw observations, shape ``[B, *obs_shape]``
        :return: Newest frames, the targets of the decoder, shape ``[B, *shape]``
        """
        newest = observations[:, -self.num_newest :]
        return newest.float() / 255 if self.is_image else newest.double()

    def forward(self, latents: th.Tensor) -> th.Tensor:
        """
        :param latents: Latent states, shape ``[..., latent_dim]``
        :return: Decoded frames, shape ``[..., *shape]``
        """
        decoded = self.layers(latents).unflatten(-1, self.shape)
        return decoded.sigmoid() if self.is_image else self.mean + self.scale * decoded

    def fit(self, observations: th.Tensor, held_out: th.Tensor, num_updates: int = 2_000, batch_size: int = 256) -> float:
        """
        Train the decoder.

        :param observations: Raw observations for training, shape ``[N, *obs_shape]``
        :param held_out: Raw observations of other episodes, shape ``[M, *obs_shape]``
        :param num_updates: Number of gradient updates
        :param batch_size: Batch size
        :return: Explained variance of the held-out observations, at most 1. For vectors, the mean over all entries that vary
        """
        latents, targets = self._encode(observations), self.newest(observations)
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
        latents, new_targets = self._encode(held_out), self.newest(held_out)
        with th.no_grad():
            errors = (self(latents) - new_targets).square().mean(0)
            variances = (new_targets - targets.mean(0)).square().mean(0)
            if self.is_image:
                return float(1 - errors.mean() / variances.mean().clamp(min=1e-12))
            varies = variances > 1e-8 * self.scale.square().clamp(min=1e-12)
            return float((1 - errors / variances)[varies].mean()) if varies.any() else 0.0

    @th.no_grad()
    def _encode(self, observations: th.Tensor) -> th.Tensor:
        return th.cat([self.represent(part) for part in observations.split(1024)])
