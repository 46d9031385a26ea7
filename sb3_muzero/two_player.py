"""Two-player zero-sum games: whose value it is, and which positions are the same but for how the board is turned."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecEnv

from sb3_muzero.buffers import SequenceSamples


class Symmetries(NamedTuple):
    """
    Permutations under which an environment stays what it is, the identity among them: a board that is turned or mirrored.

    :param observations: Entry ``i`` of the image of a flattened observation is its entry ``observations[s, i]``,
        shape ``[S, observation size]``, int64
    :param actions: Action ``a`` does to the image what ``actions[s, a]`` does to the original, shape ``[S, num_actions]``,
        int64
    """

    observations: np.ndarray
    actions: np.ndarray


def _ask(env: VecEnv, name: str) -> Any:
    """:return: an attribute of all environments, ``None`` where they do not have it"""
    try:
        return env.get_attr(name) if env.has_attr(name) else None
    except (AttributeError, NotImplementedError):  # VecEnvs that can't be asked
        return None


def is_two_player(env: VecEnv) -> bool:
    """
    :param env: Vectorised environment
    :return: Whether each of its steps is one ply of a zero-sum game for two, who move in turn, and observation and reward are
        those of the one who moves: ``two_player = True`` says so
    :raises ValueError: if the attribute is no bool, or not the same for all
    """
    answers = _ask(env, "two_player") or [False]
    if any(answer is not answers[0] or not isinstance(answer, (bool, np.bool_)) for answer in answers):
        raise ValueError(f"`two_player` must be True or False, and the same in all environments, got {answers}")
    return bool(answers[0])


def symmetries_of(env: VecEnv) -> Symmetries | None:
    """
    :param env: Vectorised environment
    :return: What its attribute ``symmetries`` says, ``None`` if there is nothing but the identity
    :raises ValueError: if it is no ``Symmetries`` with permutations of observations and actions
    """
    answers = _ask(env, "symmetries")
    if answers is None or answers[0] is None:
        return None
    space, num_actions = env.observation_space, int(getattr(env.action_space, "n", 0))
    sizes = int(np.prod(space.shape or (0,))), num_actions
    for name, size in zip(Symmetries._fields, sizes, strict=True):
        permutations = np.asarray(getattr(answers[0], name, None))
        if permutations.ndim != 2 or not np.array_equal(
            np.sort(permutations), np.arange(size)[None].repeat(len(permutations), 0)
        ):
            raise ValueError(f"`symmetries` must hold permutations of {size} {name}, got {permutations.tolist()}")
    if len(answers[0].observations) != len(answers[0].actions):
        raise ValueError(
            f"`symmetries` must permute observations and actions alike, got {len(answers[0].observations)} and "
            f"{len(answers[0].actions)} permutations"
        )
    return answers[0] if len(answers[0].actions) > 1 else None


def turned(samples: SequenceSamples, symmetries: Symmetries, chosen: np.ndarray) -> SequenceSamples:
    """
    The same sequences on boards that are turned.

    :param samples: The sequences
    :param symmetries: Permutations of observations and actions
    :param chosen: Which of them for each sequence, shape ``[B]``
    :return: Sequences that are as likely, with their policies and masks
    """
    device = samples.actions.device
    cells = th.as_tensor(symmetries.observations[chosen], device=device)
    images = th.as_tensor(symmetries.actions[chosen], device=device)

    def permuted(array: Any, permutations: th.Tensor) -> th.Tensor:
        flat = array.flatten(2)
        return flat.gather(2, permutations.expand(len(flat), -1, -1)).reshape(array.shape)

    return samples._replace(
        observations=permuted(samples.observations, cells),
        bootstrap_observations=permuted(samples.bootstrap_observations, cells),
        actions=images.argsort(1).gather(1, samples.actions.T).T,
        policies=permuted(samples.policies, images),
        action_masks=None if samples.action_masks is None else permuted(samples.action_masks, images),
    )
