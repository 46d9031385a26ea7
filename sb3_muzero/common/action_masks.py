"""Action masks, in sb3-contrib's convention: ``action_masks`` is True where an action is legal."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

METHOD = "action_masks"

MASK_NAMES = ("action_mask", "get_action_mask", "get_action_masks", "valid_action_mask", "valid_action_masks")
"""Names that other libraries and examples give to masks."""

LIST_NAMES = ("legal_actions", "get_legal_actions", "valid_actions")
"""Names of lists of legal actions."""

NearMisses = dict[str, str]
"""What looks like masks, but is not sb3-contrib's method ``action_masks``, and how to use it."""


def _own(env: VecEnv, name: str) -> Iterator[tuple[VecEnv, Any]]:
    """:return: The VecEnv and those it wraps, from the outside in, that have an attribute themselves, and its values"""
    while isinstance(env, VecEnvWrapper):
        if inspect.getattr_static(env, name, None) is not None:  # `getattr` would ask what it wraps
            yield env, getattr(env, name)
        env = env.venv
    if (value := getattr(env, name, None)) is not None:
        yield env, value


def _own_masks(env: VecEnv) -> Callable[[], Any] | None:
    """:return: The outermost method ``action_masks`` of the VecEnv and those it wraps"""
    return next((value for _, value in _own(env, METHOD) if callable(value)), None)


def has_action_masks(env: VecEnv) -> bool:
    """
    :param env: Vectorized environment
    :return: Whether it has a method ``action_masks``, or its environments have one
    """
    if _own_masks(env) is not None:
        return True
    with contextlib.suppress(AttributeError, NotImplementedError):  # native VecEnvs may lack any of these
        if isinstance(env.unwrapped, SubprocVecEnv):  # fetching a method would end its processes
            return env.has_attr(METHOD)
        if isinstance(env.unwrapped, DummyVecEnv):
            return all(map(callable, env.get_attr(METHOD)))
    with contextlib.suppress(AttributeError, NotImplementedError):
        answers = env.env_method(METHOD)
        return answers is not None and len(answers) == env.num_envs and all(mask is not None for mask in answers)
    return False


def get_action_masks(env: VecEnv) -> Any:
    """
    :param env: Vectorized environment with masks; those of the outermost wrapper that has the method count, then those of the
        environments
    :return: True for legal actions, shape ``[n_envs, num_actions]``, as the environment returns them, not checked
    :raises EOFError: if the processes of a ``SubprocVecEnv`` end
    """
    if (own := _own_masks(env)) is not None:
        return own()
    try:
        return env.env_method(METHOD)
    except (EOFError, ConnectionError) as error:
        raise type(error)(
            "The environments' processes ended when they were asked for `action_masks()`, with the error that they printed. "
            "If it is not a method, " + _masker('env.get_wrapper_attr("action_masks")')
        ) from error


def should_use_masks(env: VecEnv, use_masking: bool | None, warn: Callable[[str, str | None], None]) -> bool:
    """
    :param env: Vectorized environment, after its reset
    :param use_masking: Whether to use its masks, ``None`` if it has any
    :param warn: Called with a topic and a warning of masks that are not in sb3-contrib's convention, or ``None``
    :return: Whether to use its masks
    :raises ValueError: if there are none to use
    """
    if use_masking is not None and not use_masking:
        return False
    if has_action_masks(env):
        return True
    seen = near_misses(env)
    if use_masking:
        found = _describe(seen) or "Add it, or wrap the environment in sb3_contrib.common.wrappers.ActionMasker"
        raise ValueError(f"`use_masking=True`, but the environment has no method `action_masks`. {found}")
    warn("masks", unused_masks(seen))
    return False


def unused_masks(seen: NearMisses) -> str | None:
    """
    :param seen: What looks like masks
    :return: Warning that says how to use them, ``None`` if there are none
    """
    if not seen:
        return None
    return (
        f"Illegal actions are not masked, since the environment has no method `action_masks`. {_describe(seen)}. "
        f"`learn(use_masking=False)` turns this warning off"
    )


def _describe(seen: NearMisses) -> str:
    """:return: Names of all that looks like masks, and how to use the first; empty if there is nothing"""
    return f"It has {' and '.join(seen)}: {next(iter(seen.values()))}" if seen else ""


def near_misses(env: VecEnv) -> NearMisses:
    """
    :param env: Vectorized environment without a method ``action_masks``, after its reset
    :return: What looks like masks: attributes and methods, entries of the infos of its reset and of Dict observations; first
        what is used best
    """
    names = (METHOD, *MASK_NAMES)
    owners = [(name, layer) for name in names for layer, _ in _own(env, name)]
    seen = {f"`{name}` of {type(layer).__name__}{_no_method(name)}": _vectorized(layer) for name, layer in owners}
    seen |= _of_environments(env, METHOD) | masks_in_infos(env, getattr(env.unwrapped, "reset_infos", None))
    keys = [name for name in names if name in getattr(env.observation_space, "spaces", {})]
    seen |= {f"{key!r} in its Dict observations": _returned(env, key) for key in keys}
    for name in (*MASK_NAMES, *LIST_NAMES):
        seen |= _of_environments(env, name)
    return seen


def masks_in_infos(env: VecEnv, infos: Any, at_reset: bool = True) -> NearMisses:
    """
    :param env: Vectorized environment
    :param infos: Infos of its environments, shape ``[n_envs]``
    :param at_reset: Whether they are those of a reset
    :return: Masks in the infos
    """
    seen = [name for name in (METHOD, *MASK_NAMES) if infos and infos[0].get(name) is not None]
    first = "" if at_reset else "let `reset` return them in its info as `step` does, "
    return {f"`info[{name!r}]`": first + _returned(env, name) for name in seen}


def _of_environments(env: VecEnv, name: str) -> NearMisses:
    """:return: An attribute or a method of Gym environments and how to use it, if they have it"""
    code, imports, note = f'env.get_wrapper_attr("{name}")', "", ""
    try:
        if _is_native(env) or not env.has_attr(name):  # native VecEnvs may answer anything
            return {}
        if isinstance(env.unwrapped, SubprocVecEnv):
            note = " (with `()` after it if it is a method)"
        elif (value := env.get_attr(name)[0]) is None:
            return {}
        elif callable(value):
            code += "()"
    except Exception:  # of any kind, raised by a property
        return {}
    if name in LIST_NAMES:
        if not isinstance(space := env.action_space, spaces.Discrete):
            return {}
        first, num_actions = int(space.start), int(space.n)
        imports = "`import numpy as np`, "
        code = f"np.isin(np.arange({first}, {first + num_actions}), {code})"
        note += ", if it lists the legal actions"
    return {f"`{name}`{_no_method(name)}": _masker(code, imports) + note}


def _is_native(env: VecEnv) -> bool:
    """:return: Whether it may consist of no Gym environments"""
    return not isinstance(env.unwrapped, DummyVecEnv | SubprocVecEnv)


def _no_method(name: str) -> str:
    return " (not a method)" * (name == METHOD)


def _vectorized(layer: VecEnv) -> str:
    """:return: How a VecEnv has masks of its own"""
    name = type(layer).__name__
    return f"give {name}, or a VecEnvWrapper around it, a method `action_masks()` that returns shape [n_envs, num_actions]"


def _returned(env: VecEnv, key: str) -> str:
    """:return: How masks are used that ``reset`` and ``step`` return"""
    if _is_native(env):
        return _vectorized(env.unwrapped)
    argument = "" if key == MASK_NAMES[0] else f", {key!r}"
    return (
        "wrap each environment with `from sb3_muzero.envs.action_masks import ReturnedActionMasker` and "
        f"`env = ReturnedActionMasker(env{argument})`"
    )


def _masker(code: str, imports: str = "") -> str:
    """:return: How masks are used that the code gives"""
    return (
        f"wrap each environment with {imports}`from sb3_contrib.common.wrappers import ActionMasker` and "
        f"`env = ActionMasker(env, lambda env: {code})`"
    )
