"""Actions before there is anything to plan for."""

import numpy as np

from sb3_muzero.actions import DiscreteActions


def repeated_random_actions(
    actions: DiscreteActions, last: np.ndarray | None, n_envs: int, repeat: float, action_masks: np.ndarray | None
) -> np.ndarray:
    """
    Random actions that are repeated for a while (temporally extended exploration, https://arxiv.org/abs/2006.01782).

    :param actions: The action space
    :param last: Actions of the step before, shape ``[n_envs, *action_shape]``, if there are any
    :param n_envs: Number of environments
    :param repeat: Steps between new actions, on average
    :param action_masks: True for legal actions, shape ``[n_envs, num_actions]``, or ``None`` if all are
    :return: Actions, each that of the step before or a new one, shape ``[n_envs, *action_shape]``
    """
    drawn = actions.sample(n_envs, action_masks)
    if last is None or len(last) != n_envs:
        last = drawn
    renewed = np.random.rand(n_envs) < 1 / repeat
    if action_masks is not None:
        renewed |= ~actions.is_legal(last, action_masks)
    return np.where(renewed.reshape(-1, *[1] * len(actions.shape)), drawn, last)
