"""Which actions are legal, in sb3-contrib's convention: ``action_masks`` is True where an action may be taken."""

from typing import Any

import numpy as np
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
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


def env_action_masks(env: VecEnv, num_actions: int) -> np.ndarray:
    """
    :param env: Vectorised environment with action masks
    :param num_actions: Size of the action space
    :return: Its present masks, shape ``[n_envs, num_actions]``, bool
    :raises ValueError: for masks of another shape, or without any legal action
    """
    return check_action_masks(get_action_masks(env), env.num_envs, num_actions)


def check_action_masks(action_masks: Any, batch_size: int, num_actions: int) -> np.ndarray:
    """
    :param action_masks: True (or 1) for legal actions, shape ``[B, num_actions]`` or, of a single one, ``[num_actions]``
    :param batch_size: Number of observations B
    :param num_actions: Size of the action space
    :return: The masks, shape ``[B, num_actions]``, bool
    :raises ValueError: for masks of another shape, other entries, or without any legal action
    """
    masks = np.asarray(action_masks)
    if masks.shape not in {(batch_size, num_actions)} | ({(num_actions,)} if batch_size == 1 else set()):
        raise ValueError(f"`action_masks` must have the shape {[batch_size, num_actions]}, got {list(masks.shape)}")
    if masks.dtype.kind not in "biuf" or not np.isin(masks, (0, 1)).all():
        raise ValueError(f"`action_masks` must be True where an action is legal and False elsewhere, got {action_masks}")
    masks = masks.reshape(batch_size, num_actions).astype(np.bool_)
    if not (some_legal := masks.any(axis=1)).all():
        raise ValueError(f"`action_masks` must leave an action to choose from, got none in row {int(some_legal.argmin())}")
    return masks
