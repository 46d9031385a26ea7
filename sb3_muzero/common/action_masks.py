"""Action masks, in sb3-contrib's convention: ``action_masks`` is True where an action is legal."""

from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.vec_env import VecEnv

MISSING_MASKS = (
    "The model was trained with action masks, but `predict` was given none: it may choose illegal actions. Pass "
    "`action_masks`, and evaluate with sb3_contrib's MaskableEvalCallback and common.maskable.evaluation"
)


def has_action_masks(env: VecEnv) -> bool:
    """
    :param env: Vectorized environment
    :return: Whether the environments have a method ``action_masks``; False for a VecEnv without ``has_attr``
    """
    try:
        return is_masking_supported(env)
    except (AttributeError, NotImplementedError):
        return False


def should_use_masks(env: VecEnv, use_masking: bool | None) -> bool:
    """
    :param env: Vectorized environment
    :param use_masking: Whether to use its masks, ``None`` if it has any
    :return: Whether to use its masks
    :raises ValueError: if there are none to use
    """
    supported = has_action_masks(env)
    if use_masking and not supported:
        raise ValueError(
            "`use_masking=True`, but the environment has no method `action_masks`: "
            "add it, or wrap the environment in sb3_contrib.common.wrappers.ActionMasker"
        )
    return supported if use_masking is None else use_masking
