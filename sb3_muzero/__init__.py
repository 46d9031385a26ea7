"""MuZero for Stable-Baselines3."""

from importlib.metadata import version

from sb3_muzero.muzero import MuZero
from sb3_muzero.policies import CnnPolicy, MlpPolicy, MultiInputPolicy, ResNetPolicy

__version__ = version("sb3_muzero")

__all__ = ["CnnPolicy", "MlpPolicy", "MuZero", "MultiInputPolicy", "ResNetPolicy", "__version__"]
