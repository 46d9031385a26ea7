"""The learned model as an environment, in which any algorithm of Stable-Baselines3 can be trained."""

from sb3_muzero.imagination.decoding import fit_decoder, fit_renderer
from sb3_muzero.imagination.env import ImaginedEnv
from sb3_muzero.imagination.reactive import ReactiveAgent, as_real
from sb3_muzero.imagination.vec_env import ImaginedVecEnv

__all__ = ["ImaginedEnv", "ImaginedVecEnv", "ReactiveAgent", "as_real", "fit_decoder", "fit_renderer"]
