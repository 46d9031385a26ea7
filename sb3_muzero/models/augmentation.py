"""Data augmentation of images."""

import torch as th
from torch import nn
from torch.nn import functional as F


class ImageAugmentation(nn.Module):
    """
    Random shift and random intensity, drawn independently for each image (DrQ, https://arxiv.org/abs/2004.13649,
    Section 3.1; EfficientZero, https://arxiv.org/abs/2111.00210, Appendix A).

    :param shift: Maximum shift in pixels, with replicate padding
    :param intensity: Standard deviation of the brightness factor ``1 + intensity * noise``; the noise is a standard normal
        clipped to [-2, 2]
    :raises ValueError: if the shift is not an integer, or an argument is negative or infinite
    """

    def __init__(self, shift: int, intensity: float) -> None:
        super().__init__()
        if not (isinstance(shift, int) and shift >= 0):
            raise ValueError(f"`random_shift` must be an integer and at least 0, got {shift!r}")
        if not 0 <= intensity < float("inf"):
            raise ValueError(f"`random_intensity` must be at least 0 and finite, got {intensity}")
        self.shift = shift
        self.intensity = intensity

    def forward(self, images: th.Tensor) -> th.Tensor:
        """
        :param images: Shape ``[B, C, H, W]``
        :return: Augmented images, same shape
        """
        batch_size, _, height, width = images.shape
        if self.shift > 0:
            padded = F.pad(images, [self.shift] * 4, mode="replicate")
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view, [B, C, shifts, shifts, H, W]
            top, left = th.randint(2 * self.shift + 1, (2, batch_size), device=images.device)
            images = windows[th.arange(batch_size, device=images.device), :, top, left]
        if self.intensity > 0:
            noise = th.randn(batch_size, 1, 1, 1, device=images.device).clamp(-2, 2)
            images = images * (1 + self.intensity * noise)
        return images
