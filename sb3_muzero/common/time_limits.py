"""Time limits of tasks: whether there is one, and one for evaluations of tasks without."""

from typing import Any

import gymnasium as gym

from sb3_muzero.common.vec_env_checks import wrapper_attr

MAX_EPISODE_STEPS = 10_000
"""Steps after which there is a warning of an episode, and after which evaluations truncate it if its task has no limit."""

NAMES = ("max_episode_steps", "_max_episode_steps", "max_steps", "max_num_frames_per_episode")
"""Names of time limits: Gymnasium's, those of its ``TimeLimit``, MiniGrid's and Atari's."""


def has_time_limit(env: Any) -> bool:
    """
    :param env: An environment
    :return: Whether it, one of its wrappers or one of the arguments that it was made with is known to limit its episodes
    """
    spec = env.unwrapped.spec
    found = [wrapper_attr(env, name) for name in NAMES]
    return any([*found, *(spec.kwargs.get(name) for name in NAMES if spec is not None)])


def time_limit_kwargs(env_id: str) -> dict[str, int]:
    """
    :param env_id: Id of a registered environment
    :return: Argument for ``gymnasium.make`` that gives a task without time limit one, for evaluations; empty for other tasks
    """
    try:
        spec = gym.spec(env_id)
    except gym.error.Error:  # whoever makes the environment says why
        return {}
    is_limited = spec.max_episode_steps is not None or any(map(spec.kwargs.get, NAMES))
    return {} if is_limited else {"max_episode_steps": MAX_EPISODE_STEPS}
