"""Properties of vectorized environments: stacked frames, image axes, two-player games."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecTransposeImage, unwrap_vec_normalize, unwrap_vec_wrapper

from sb3_muzero.common.validation import schedule_values


def frames_in_observation(env: VecEnv | None) -> int:
    """
    :param env: Training environments
    :return: Number of frames that ``VecFrameStack`` stacks along the first axis of an observation, 1 without frame stacking
    :raises ValueError: if images were stacked along another axis than their channels, see ``check_channels``
    """
    if env is None or (stacking := unwrap_vec_wrapper(env, VecFrameStack)) is None:
        return 1
    check_channels(env, stacking)
    space, num_frames = env.observation_space, stacking.stacked_obs.n_stack
    is_stacked = isinstance(space, spaces.Box) and (len(space.shape) == 1 or is_image_space(space))
    return num_frames if is_stacked and space.shape[0] % num_frames == 0 else 1  # type: ignore[index]


def normalized_frames(env: VecEnv) -> int:
    """
    :param env: Vectorized environment
    :return: How many frames that were normalized one by one each observation consists of: those of a ``VecFrameStack`` around
        ``VecNormalize``, else 1
    :raises ValueError: if wrappers around ``VecNormalize`` change the shape of what it has normalized in any other way
    """
    normalize, stacking = unwrap_vec_normalize(env), unwrap_vec_wrapper(env, VecFrameStack)
    if normalize is None or not normalize.norm_obs or _shapes(env.observation_space) == _shapes(normalize.observation_space):
        return 1
    if stacking is not None and _shapes(stacking.venv.observation_space) == _shapes(normalize.observation_space):
        num_frames = stacking.stacked_obs.n_stack
        if env.observation_space == stacking.observation_space and frames_in_observation(env) == num_frames:
            return num_frames
    raise ValueError(
        f"Wrappers around `VecNormalize` change the shape of the observations that it normalizes to "
        f"{_shapes(env.observation_space)}: use `VecNormalize(VecFrameStack(env, ...))`, and `VecNormalize("
        f"VecTransposeImage(env))` for images whose channels come last"
    )


def _shapes(space: spaces.Space) -> Any:
    return {key: part.shape for key, part in space.items()} if isinstance(space, spaces.Dict) else space.shape


def check_channels(env: VecEnv, stacking: VecFrameStack) -> None:
    """
    Check that ``VecFrameStack`` and ``VecTransposeImage`` agree on the channel axis, which SB3 guesses from the shape.

    :param env: Training environments
    :param stacking: Their frame stack wrapper
    :raises ValueError: if images were stacked along another axis
    """
    transposing = unwrap_vec_wrapper(env, VecTransposeImage)
    is_transposed = bool(transposing and not transposing.skip and unwrap_vec_wrapper(transposing, VecFrameStack))
    if not is_transposed and env.observation_space != stacking.observation_space:
        return  # a custom wrapper has changed the images
    stacks = stacking.stacked_obs
    for stack in stacks.sub_stacked_observations.values() if isinstance(stacks.observation_space, spaces.Dict) else [stacks]:
        space = stack.stacked_observation_space
        if is_image_space(space) and stack.channels_first == is_transposed:
            stacked, seen = ("first", "last") if stack.channels_first else ("last", "first")
            raise ValueError(
                f"VecFrameStack stacked images along their {stacked} axis, but SB3 takes those of shape {space.shape} for "
                f"channels-{seen}: use channels-first images, wrapped in `VecTransposeImage(env, skip=True)` if necessary"
            )


def check_axes(env: VecEnv | None) -> None:
    """
    Check that SB3 did not transpose channels-first images. It takes the smallest axis for the channels.

    :param env: Environments of a convolutional policy
    :raises ValueError: if images whose second axis is the smallest were treated as channels-last
    """
    if env is None or (transposing := unwrap_vec_wrapper(env, VecTransposeImage)) is None or transposing.skip:
        return
    shape = transposing.venv.observation_space.shape or ()
    if len(shape) == 3 and np.argmin(shape) == 1:
        raise ValueError(
            f"`env` has images of shape {shape}, which SB3 takes for channels-last although their second axis is the "
            f"smallest: if the channels come first, wrap it in `VecTransposeImage(env, skip=True)`, else transpose its images"
        )


def wrapper_attr(env: gym.Env, name: str) -> Any:
    """
    :param env: An environment
    :param name: Name of an attribute
    :return: Its value in the outermost wrapper that has it, or the environment; ``None`` without it
    """
    try:
        return env.get_wrapper_attr(name)
    except AttributeError:
        return None


def ask_environments(env: VecEnv, name: str) -> list[Any]:
    """
    :param env: Vectorized environment
    :param name: Name of an attribute
    :return: Its value in each environment; a list of ``None`` unless all environments have the attribute
    """
    try:
        # get_attr on a missing attribute would terminate the processes of a SubprocVecEnv
        return env.get_attr(name) if env.has_attr(name) else [None] * env.num_envs
    except (AttributeError, NotImplementedError):  # a VecEnv without get_attr
        return [None] * env.num_envs


def check_two_player(
    env: VecEnv, two_player: bool | None, uses_action_masks: bool, has_symmetries: bool, novelty_coef: Any
) -> None:
    """
    :param env: Training environments
    :param two_player: Whether the model was created for a two-player game
    :param uses_action_masks: Whether training uses action masks
    :param has_symmetries: Whether the environment has symmetries
    :param novelty_coef: Coefficient of the exploration bonus, or its schedule
    :raises ValueError: for settings that two-player games do not support, and if the environment does not match the model
    """
    if two_player != (found := is_two_player(env)):
        raise ValueError(f"The model was created with `two_player={two_player}`, but the environment has `two_player={found}`")
    normalize = unwrap_vec_normalize(env)
    if (two_player or has_symmetries) and normalize is not None and normalize.norm_obs:
        raise ValueError("`VecNormalize` scales each cell of a board differently: set `norm_obs=False`")
    if two_player and not uses_action_masks:
        raise ValueError(
            "Two-player games require action masks: the environment needs a method `action_masks`, and `use_masking` must "
            "not be False"
        )
    if two_player and any(coef > 0 for _, coef in schedule_values(novelty_coef)):
        raise ValueError("`novelty_coef` must be 0 in a two-player game")


def is_two_player(env: VecEnv) -> bool:
    """
    Read the attribute ``two_player`` of the environments. If it is True, each step is one ply of a two-player zero-sum game,
    and observations and rewards are from the perspective of the player to move.

    :param env: Vectorized environment
    :return: Value of ``two_player``, False if it is missing
    :raises ValueError: if it is not a bool, or differs between environments
    """
    answers = [False if answer is None else answer for answer in ask_environments(env, "two_player")]
    if any(answer is not answers[0] or not isinstance(answer, bool) for answer in answers):
        raise ValueError(f"`two_player` must be True or False, and the same in all environments, got {answers}")
    if answers[0] and not isinstance(env.action_space, spaces.Discrete):
        raise ValueError(f"Two-player games require a Discrete action space, got {env.action_space}")
    return answers[0]
