"""Actions before there is anything to plan for."""

import numpy as np


def repeated_random_actions(
    last: np.ndarray | None, n_envs: int, num_actions: int, repeat: float, action_masks: np.ndarray | None
) -> np.ndarray:
    """
    Random actions that are repeated for a while (temporally extended exploration, https://arxiv.org/abs/2006.01782).

    :param last: Those of the step before, shape ``[n_envs]``, if there are any
    :param n_envs: Number of environments
    :param num_actions: Size of the action space
    :param repeat: Steps between new actions, on average
    :param action_masks: True for legal actions, shape ``[n_envs, num_actions]``, or ``None`` if all are
    :return: Action indices, each that of the step before or a new one, shape ``[n_envs]``
    """
    if action_masks is None:
        fresh = np.random.randint(num_actions, size=n_envs)
    else:
        fresh = np.where(action_masks, np.random.rand(n_envs, num_actions), -1.0).argmax(axis=1)
    if last is None or len(last) != n_envs:
        last = fresh
    renewed = np.random.rand(n_envs) < 1 / repeat
    if action_masks is not None:
        renewed |= ~action_masks[np.arange(n_envs), last]
    return np.where(renewed, fresh, last)
