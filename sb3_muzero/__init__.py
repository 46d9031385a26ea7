"""MuZero for Stable-Baselines3."""

from importlib.metadata import version

from sb3_muzero.muzero import MuZero
from sb3_muzero.policies import MlpPolicy

__version__ = version("sb3_muzero")

__all__ = ["MlpPolicy", "MuZero", "__version__"]
