"""Reads sequences from a replay buffer."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecNormalize

from sb3_muzero.common.pytree import tree_map
from sb3_muzero.replay.observation_store import parts_of
from sb3_muzero.replay.ring import take
from sb3_muzero.replay.sequences import SequenceSamples

if TYPE_CHECKING:
    from sb3_muzero.replay.replay_buffer import SequenceReplayBuffer


def read_sequences(
    buffer: "SequenceReplayBuffer",
    ids: np.ndarray,
    unroll_steps: int,
    n_steps: int,
    env: VecNormalize | None = None,
    horizons: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    bonus_coef: float = 0.0,
) -> SequenceSamples:
    """
    :param buffer: A replay buffer
    :param ids: Stored steps that the sequences start at, shape ``[B]``
    :param unroll_steps: Steps K that the model is unrolled over
    :param n_steps: Steps n of the value targets
    :param env: Normalises observations and rewards, which are stored as they came
    :param horizons: Each sequence's own n, at most ``n_steps``, shape ``[B]``
    :param weights: Importance weights, shape ``[B]``
    :param bonus_coef: Coefficient of the buffer's ``reward_bonus``
    :return: The sequences
    """
    index, batch_size = buffer.index, len(ids)
    n_steps = min(n_steps, buffer.size())  # a sequence is no longer than that
    horizons = np.minimum(n_steps, n_steps if horizons is None else horizons) + np.zeros_like(ids)
    offsets = np.arange(unroll_steps + n_steps)[:, None]
    positions = offsets[: unroll_steps + 1]
    steps = ids + offsets * index.n_envs
    places = index.places(steps)
    # A sequence ends with its episode, or with the newest step
    ends = (take(buffer.observations.slots, places) > 0) | (steps >= index.ends[ids % index.n_envs] - index.n_envs)
    ends[-1] = True
    lengths = ends.argmax(axis=0) + 1
    inside = offsets < lengths
    beyond = ~inside[: unroll_steps + 1]

    seen = np.concatenate([np.broadcast_to(positions, (len(positions), batch_size)), positions + horizons])
    observations = read_observations(buffer, np.minimum(seen, lengths), ids, env)
    actions = take(buffer.actions, places[:unroll_steps])
    actions[beyond[:-1]] = buffer.action_type.sample(actions.shape[:2])[beyond[:-1]]
    rewards = buffer._normalize_reward(take(buffer.rewards, places), env)
    if bonus_coef > 0:
        rewards = rewards + buffer.bonus.of(steps, bonus_coef, env)
    masks, signs, shown = buffer.action_masks, buffer.turn_signs, places[: unroll_steps + 1]
    policies = take(buffer.policies, shown)
    policies[beyond] = 0.0
    candidates = None if buffer.candidates is None else take(buffer.candidates, shown).astype(buffer.action_type.dtype)
    arrays: dict[str, np.ndarray | None] = {
        "actions": actions,
        "rewards": (rewards * inside).astype(np.float32),
        "policies": policies,
        "candidates": candidates,
        "action_masks": None if masks is None else take(masks, shown) | beyond[..., None],
        "lengths": lengths,
        "terminated": take(buffer.terminals, places[lengths - 1, np.arange(batch_size)]),
        "horizons": horizons,
        "weights": (np.ones(batch_size) if weights is None else weights).astype(np.float32),
        "turn_signs": None if signs is None else take(signs, places) * inside,
    }
    # None of these arrays shares memory with the ring
    tensors: Any = {name: None if array is None else buffer.to_torch(array, copy=False) for name, array in arrays.items()}
    return SequenceSamples(
        observations=tree_map(lambda part: part[: unroll_steps + 1], observations),
        bootstrap_observations=tree_map(lambda part: part[unroll_steps + 1 :], observations),
        ids=steps[: unroll_steps + 1],
        model_versions=take(buffer.model_versions, shown),
        **tensors,
    )


def read_observations(
    buffer: "SequenceReplayBuffer", positions: np.ndarray, ids: np.ndarray, env: VecNormalize | None = None
) -> Any:
    """
    :param buffer: A replay buffer
    :param positions: See ``ObservationRing.at``
    :param ids: The same
    :param env: Normalises observations, which are stored as they came
    :return: What ``ObservationRing.at`` returns, as tensors on the buffer's device, or a dictionary of them
    """
    stored = buffer.observations
    if buffer.device.type == "cuda" and stored.frame_stack > 1 and (env is None or not env.norm_obs):
        return stacked_on_device(buffer, positions, ids)
    if env is not None and env.norm_obs and stored.frame_stack > 1 and env.observation_space.shape != stored.shape:
        # `VecFrameStack` around `VecNormalize`: frames were normalized one by one, and there are zeros before the first
        places = stored.places(positions, ids)
        frames = np.asarray(env.normalize_obs(stored.fetch(places)))
        frames[places == stored.place_of_zeros] = 0.0
        return buffer.to_torch(frames.reshape(*positions.shape, *stored.shape), copy=False)
    parts = buffer._normalize_obs(parts_of(stored.at(positions, ids)), env)
    return tree_map(lambda part: buffer.to_torch(part, copy=False), parts)


def stacked_on_device(buffer: "SequenceReplayBuffer", positions: np.ndarray, ids: np.ndarray) -> th.Tensor:
    """Stacks share frames, and each frame is copied to the GPU once."""
    distinct, where = np.unique(buffer.observations.places(positions, ids), return_inverse=True)
    frames = buffer.to_torch(buffer.observations.fetch(distinct), copy=False)
    stacks = frames.index_select(0, buffer.to_torch(where.reshape(-1), copy=False))
    return stacks.reshape(*positions.shape, *buffer.observations.shape)
