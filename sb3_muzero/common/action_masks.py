"""Action masks, in sb3-contrib's convention: ``action_masks`` is True where an action is legal."""

from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.vec_env import VecEnv


def has_action_masks(env: VecEnv) -> bool:
    """
    :param env: Vectorized environment
    :return: Whether the environments have a method ``action_masks``; False for a VecEnv without ``has_attr``
    """
    try:
        return is_masking_supported(env)
    except (AttributeError, NotImplementedError):
        return False
