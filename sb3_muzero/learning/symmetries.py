"""Symmetries of an environment: boards that may be rotated or mirrored."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_muzero.common.vec_env_checks import ask_environments
from sb3_muzero.replay.sequences import SequenceSamples


class Symmetries(NamedTuple):
    """
    Permutations under which the dynamics of an environment are invariant, including the identity: rotations and reflections
    of a board.

    :param observations: Under symmetry ``s``, entry ``i`` of a flattened observation becomes its entry ``observations[s, i]``,
        shape ``[S, observation_size]``, int64
    :param actions: After symmetry ``s``, action ``a`` corresponds to the original action ``actions[s, a]``, shape
        ``[S, num_actions]``, int64
    """

    observations: np.ndarray
    actions: np.ndarray

    def sample(self, batch_size: int) -> np.ndarray:
        """:return: Indices of symmetries, drawn from NumPy's global generator, shape ``[batch_size]``"""
        return np.random.randint(len(self.actions), size=batch_size)


def symmetries_of(env: VecEnv) -> Symmetries | None:
    """
    :param env: Vectorized environment
    :return: Its attribute ``symmetries``; ``None`` if it has none, or only the identity
    :raises ValueError: if the attribute is not a ``Symmetries`` of valid permutations including the identity, or if a wrapper
        changes the observations
    """
    symmetries = ask_environments(env, "symmetries")[0]
    if symmetries is None:
        return None
    (own_space,) = env.get_attr("observation_space", indices=0)
    if own_space != env.observation_space or not isinstance(own_space, spaces.Box):
        raise ValueError(
            f"`symmetries` require the Box observations of the environment itself, {own_space}, got {env.observation_space}: "
            f"they must not be stacked, transposed (images need their channels first) or normalized (set `norm_obs=False`)"
        )
    if not isinstance(env.action_space, spaces.Discrete):
        raise ValueError(f"`symmetries` require a Discrete action space, got {env.action_space}")
    sizes = int(np.prod(own_space.shape)), int(env.action_space.n)
    for name, size in zip(Symmetries._fields, sizes, strict=True):
        permutations = np.asarray(getattr(symmetries, name, None))
        identity = np.arange(size)
        is_permuted = permutations.ndim == 2 and permutations.shape[1] == size and (np.sort(permutations) == identity).all()
        if not is_permuted or not (permutations == identity).all(1).any():
            raise ValueError(
                f"`symmetries` must hold permutations of {size} {name}, the identity among them, got {permutations}"
            )
    if len(symmetries.observations) != len(symmetries.actions):
        raise ValueError(
            f"`symmetries` must permute observations and actions alike, got {len(symmetries.observations)} and "
            f"{len(symmetries.actions)} permutations"
        )
    return symmetries if len(symmetries.actions) > 1 else None


def apply_symmetries(samples: SequenceSamples, symmetries: Symmetries, chosen: np.ndarray) -> SequenceSamples:
    """
    Transform sequences by symmetries of the environment.

    :param samples: The sequences
    :param symmetries: Permutations of observations and actions
    :param chosen: Index of the symmetry of each sequence, shape ``[B]``
    :return: Transformed sequences, with their policies or candidates, and masks
    """
    device = samples.actions.device
    cells = th.as_tensor(symmetries.observations[chosen], device=device)
    images = th.as_tensor(symmetries.actions[chosen], device=device)

    def permuted(array: Any, permutations: th.Tensor) -> th.Tensor:
        flat = array.flatten(2)
        return flat.gather(2, permutations.expand(len(flat), -1, -1)).reshape(array.shape)

    def moved(actions: th.Tensor) -> th.Tensor:
        of_sequence = actions.transpose(0, 1)
        return images.argsort(1).gather(1, of_sequence.flatten(1)).reshape(of_sequence.shape).transpose(0, 1)

    candidates = samples.candidates
    return samples._replace(
        observations=permuted(samples.observations, cells),
        bootstrap_observations=permuted(samples.bootstrap_observations, cells),
        actions=moved(samples.actions),
        policies=permuted(samples.policies, images) if candidates is None else samples.policies,
        candidates=None if candidates is None else moved(candidates),
        action_masks=None if samples.action_masks is None else permuted(samples.action_masks, images),
    )
