"""Which actions are legal, in sb3-contrib's convention: ``action_masks`` is True where an action may be taken."""

from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.vec_env import VecEnv


def has_action_masks(env: VecEnv) -> bool:
    """
    :param env: Vectorised environment
    :return: Whether its environments have the method ``action_masks``
    """
    try:
        return is_masking_supported(env)
    except (AttributeError, NotImplementedError):  # VecEnvs that can't be asked
        return False
