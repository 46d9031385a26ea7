"""Policy classes of MuZero."""

from sb3_muzero.policies.image_policies import CnnPolicy, ImagePolicy, MultiInputPolicy, ResNetPolicy
from sb3_muzero.policies.muzero_policy import MlpPolicy, MuZeroPolicy

__all__ = ["CnnPolicy", "ImagePolicy", "MlpPolicy", "MuZeroPolicy", "MultiInputPolicy", "ResNetPolicy"]
