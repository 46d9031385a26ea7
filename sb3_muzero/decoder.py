"""A probe that reads observations off latents, to watch what a model imagines. It never trains the model."""

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from torch import nn
from torch.nn import functional as F

from sb3_muzero.policies import MuZeroPolicy


class DecoderProbe(nn.Module):
    """
    A small MLP from latents to observations: of stacked frames the newest one, of images from 0 to 1.

    :param policy: Whose latents are read, and left as they are
    :param frame_stack: How many frames an observation consists of along its first axis
    :param hidden_dim: Width of the two hidden layers
    :raises ValueError: for observations other than vectors and images with their channels first
    """

    def __init__(self, policy: MuZeroPolicy, frame_stack: int = 1, hidden_dim: int = 256) -> None:
        super().__init__()
        space = policy.observation_space
        self.is_image = is_image_space(space) and is_image_space_channels_first(space)  # type: ignore[arg-type]
        if not isinstance(space, spaces.Box) or not (self.is_image or len(space.shape) == 1):
            raise ValueError(f"A decoder needs observations that are vectors or images with channels first, got {space}")
        self.policy = [policy]  # not a submodule, whose parameters would be the probe's
        self.num_newest = space.shape[0] // frame_stack
        self.shape = (self.num_newest, *space.shape[1:])
        size = int(th.Size(self.shape).numel())
        latent_dim = policy.represent(th.as_tensor(space.sample()[None], device=policy.device)).shape[-1]
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, hidden_dim), nn.LayerNorm(hidden_dim), nn.ReLU(),
            nn.Linear(hidden_dim, hidden_dim), nn.LayerNorm(hidden_dim), nn.ReLU(),
            nn.Linear(hidden_dim, size),
        )  # fmt: skip
        self.register_buffer("mean", th.zeros(self.shape))
        self.register_buffer("scale", th.ones(self.shape))
        self.to(policy.device)

    mean: th.Tensor
    scale: th.Tensor

    def newest(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: As stored, shape ``[B, *obs_shape]``
        :return: What is decoded of them, shape ``[B, *shape]``
        """
        newest = observations[:, -self.num_newest :].float()
        return newest / 255 if self.is_image else newest

    def forward(self, latents: th.Tensor) -> th.Tensor:
        """
        :param latents: Shape ``[..., latent_dim]``
        :return: Observations, shape ``[..., *shape]``
        """
        decoded = self.layers(latents).unflatten(-1, self.shape)
        return decoded.sigmoid() if self.is_image else self.mean + self.scale * decoded

    def fit(self, observations: th.Tensor, num_updates: int = 2_000, batch_size: int = 256, seed: int = 0) -> float:
        """
        Learn from observations that the policy encodes, nine tenths of them.

        :param observations: As stored, shape ``[N, *obs_shape]``
        :param num_updates: Gradient updates
        :param batch_size: Observations in each
        :param seed: Which of them
        :return: Share of the variance that is read off the latents of the other tenth; at most 1
        """
        with th.no_grad():
            latents = th.cat([self.policy[0].represent(part) for part in observations.split(1024)])
            targets = self.newest(observations)
            if not self.is_image:
                self.mean.copy_(targets.mean(0))
                self.scale.copy_(targets.std(0).clamp(min=1e-6))
        generator = th.Generator().manual_seed(seed)
        order = th.randperm(len(targets), generator=generator)
        num_held_out = max(len(targets) // 10, 1)
        held_out, known = order[:num_held_out], order[num_held_out:]
        optimizer = th.optim.AdamW(self.parameters(), lr=1e-3)
        for _ in range(num_updates):
            batch = known[th.randint(len(known), (batch_size,), generator=generator)]
            decoded = self.layers(latents[batch]).unflatten(-1, self.shape)
            if self.is_image:
                loss = F.binary_cross_entropy_with_logits(decoded, targets[batch])
            else:
                loss = F.mse_loss(decoded, (targets[batch] - self.mean) / self.scale)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with th.no_grad():
            error = (self(latents[held_out]) - targets[held_out]).square().mean()
            variance = (targets[held_out] - targets.mean(0)).square().mean()
        return float(1 - error / variance.clamp(min=1e-12))


def to_rgb(images: th.Tensor) -> th.Tensor:
    """
    :param images: From 0 to 1, shape ``[N, channels, height, width]``
    :return: Shape ``[N, height, width, 3]``: one channel in grey, three in RGB, any other number in a colour for each
    """
    channels = images.shape[1]
    if channels == 1:
        return images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    if channels == 3:
        return images.permute(0, 2, 3, 1)
    hues = th.arange(channels, device=images.device) / channels * 6
    wheel = th.stack([(hues - 3).abs() - 1, 2 - (hues - 2).abs(), 2 - (hues - 4).abs()], dim=1).clamp(0, 1)
    return (images[..., None] * wheel[:, None, None]).amax(1)
