"""MuZero for Stable-Baselines3."""

from importlib.metadata import version

from sb3_muzero.cnn_policies import CnnPolicy, MultiInputPolicy, ResNetPolicy
from sb3_muzero.muzero import MuZero
from sb3_muzero.policies import MlpPolicy

__version__ = version("sb3_muzero")

__all__ = ["CnnPolicy", "MlpPolicy", "MuZero", "MultiInputPolicy", "ResNetPolicy", "__version__"]
