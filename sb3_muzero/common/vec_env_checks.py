"""Questions to vectorized environments: frame stacks, image axes, two-player games."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecTransposeImage, unwrap_vec_normalize, unwrap_vec_wrapper

from sb3_muzero.common.validation import schedule_values


def frames_in_observation(env: VecEnv | None) -> int:
    """
    :param env: Training environments
    :return: How many frames each observation consists of along its first axis: those of a ``VecFrameStack``, else 1
    :raises ValueError: if SB3 takes images for channels-first that were stacked along their last axis, or the other way round,
        which it tells from their shape alone
    """
    stacking = None if env is None else unwrap_vec_wrapper(env, VecFrameStack)
    if env is None or stacking is None:
        return 1
    check_channels(env, stacking)
    space, num_frames = env.observation_space, stacking.stacked_obs.n_stack
    if not isinstance(space, spaces.Box) or not (len(space.shape) == 1 or is_image_space(space)):
        return 1
    return num_frames if space.shape[0] % num_frames == 0 else 1


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
    :param env: Environments
    :param stacking: Their wrapper that stacks frames
    :raises ValueError: if it stacked images along another axis than that of the channels, as SB3 sees them
    """
    transposing = unwrap_vec_wrapper(env, VecTransposeImage)
    is_outside = transposing is not None and unwrap_vec_wrapper(transposing, VecFrameStack) is not None
    is_transposed = transposing is not None and is_outside and not transposing.skip
    if not is_transposed and env.observation_space != stacking.observation_space:
        return  # a wrapper of the user's own has changed them
    stacks = stacking.stacked_obs
    for stack in stacks.sub_stacked_observations.values() if isinstance(stacks.observation_space, spaces.Dict) else [stacks]:
        space = stack.stacked_observation_space
        if is_image_space(space) and stack.channels_first == is_transposed:
            stacked, seen, remedy = (
                ("first", "last", "wrap them in `VecTransposeImage(env, skip=True)`")
                if stack.channels_first
                else ("last", "first", "let the environment give images whose channels come first")
            )
            raise ValueError(
                f"VecFrameStack stacked images along their {stacked} axis, but SB3 takes those of shape {space.shape} for "
                f"channels-{seen}: {remedy}"
            )


def check_axes(env: VecEnv | None) -> None:
    """
    :param env: Environments for a policy that has to know which axis is that of the channels
    :raises ValueError: if SB3, which tells by the smallest one, has taken images for channels-last whose second is smallest
    """
    transposing = None if env is None else unwrap_vec_wrapper(env, VecTransposeImage)
    if transposing is None or transposing.skip:
        return
    shape = transposing.venv.observation_space.shape or ()
    if len(shape) == 3 and np.argmin(shape) == 1:
        raise ValueError(
            f"`env` gives images of shape {shape}, which SB3 takes for channels-last although their second axis is the "
            f"smallest: if the channels come first, wrap it in `VecTransposeImage(env, skip=True)`, else transpose its images"
        )


def ask_environments(env: VecEnv, name: str) -> list[Any]:
    """
    :param env: Vectorized environment
    :param name: An attribute
    :return: Its value in each environment, ``None`` for each if they do not all have it
    """
    try:
        # A SubprocVecEnv whose environments are asked for what they do not have loses them
        return env.get_attr(name) if env.has_attr(name) else [None] * env.num_envs
    except (AttributeError, NotImplementedError):  # VecEnvs that can't be asked
        return [None] * env.num_envs


def check_two_player(
    env: VecEnv, two_player: bool | None, uses_action_masks: bool, has_symmetries: bool, novelty_coef: Any
) -> None:
    """
    :param env: Training environments
    :param two_player: Whether the model is one of two-player games
    :param uses_action_masks: Whether it is trained with action masks
    :param has_symmetries: Whether the environment has symmetries
    :param novelty_coef: Coefficient of the exploration bonus, or its schedule
    :raises ValueError: for settings that a game does not allow, or for another kind of game than before
    """
    if two_player != (given := is_two_player(env)):
        raise ValueError(f"The model is of `two_player={two_player}`, but the environment has `two_player={given}`")
    normalize = unwrap_vec_normalize(env)
    if (two_player or has_symmetries) and normalize is not None and normalize.norm_obs:
        raise ValueError("`VecNormalize` scales each cell of a board differently: set `norm_obs=False`")
    if two_player and not uses_action_masks:
        raise ValueError(
            "A two-player game must tell which moves are legal: the environment needs a method `action_masks`, and "
            "`use_masking` must not be False"
        )
    if two_player and any(coef > 0 for _, coef in schedule_values(novelty_coef)):
        raise ValueError("`novelty_coef` must be 0 in a two-player game")


def is_two_player(env: VecEnv) -> bool:
    """
    :param env: Vectorised environment
    :return: Whether each of its steps is one ply of a zero-sum game for two, who move in turn, and observation and reward are
        those of the one who moves: ``two_player = True`` says so
    :raises ValueError: if the attribute is no bool, or not the same for all
    """
    answers = [False if answer is None else answer for answer in ask_environments(env, "two_player")]
    if any(answer is not answers[0] or not isinstance(answer, bool) for answer in answers):
        raise ValueError(f"`two_player` must be True or False, and the same in all environments, got {answers}")
    return answers[0]
