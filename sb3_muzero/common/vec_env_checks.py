"""Along which axes of their observations environments stack frames and have channels, and where SB3 takes them for others."""

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecTransposeImage, unwrap_vec_wrapper


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
