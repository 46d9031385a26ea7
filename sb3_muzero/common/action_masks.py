"""Action masks, in sb3-contrib's convention: ``action_masks`` is True where an action is legal."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

METHOD = "action_masks"

MASK_NAMES = ("action_mask", "get_action_mask", "get_action_masks", "valid_action_mask", "valid_action_masks")
"""Names that other libraries and examples give to masks."""

LIST_NAMES = ("legal_actions", "get_legal_actions", "valid_actions")
"""Names of lists of legal actions."""


class NearMiss(NamedTuple):
    """
    What looks like masks, but is not sb3-contrib's method ``action_masks``.

    :param what: Where it was seen
    :param how: How to use it
    """

    what: str
    how: str


def _layers(env: VecEnv) -> Iterator[VecEnv]:
    """:return: The environment and what it wraps, from the outside in"""
    while isinstance(env, VecEnvWrapper):
        yield env
        env = env.venv
    yield env


def _own(layer: VecEnv, name: str) -> Any:
    """:return: The attribute of this VecEnv, ``None`` if it has none; a wrapper would answer for what it wraps"""
    if isinstance(layer, VecEnvWrapper) and inspect.getattr_static(layer, name, None) is None:
        return None
    return getattr(layer, name, None)


def _has_own_masks(layer: VecEnv) -> bool:
    return callable(_own(layer, METHOD))


def _is_native(env: VecEnv) -> bool:
    """:return: Whether it may consist of no Gym environments"""
    return not isinstance(env.unwrapped, DummyVecEnv | SubprocVecEnv)


def _asks_get_attr(env: VecEnv) -> bool:
    """:return: Whether ``has_attr`` fetches attributes. Fetching a method would end the processes of a SubprocVecEnv"""
    return type(env.unwrapped).has_attr is VecEnv.has_attr


def has_action_masks(env: VecEnv) -> bool:
    """
    :param env: Vectorized environment
    :return: Whether it has a method ``action_masks``, or its environments have one
    """
    if any(map(_has_own_masks, _layers(env))):
        return True
    try:
        if not (_is_native(env) and _asks_get_attr(env)):  # native VecEnvs may lack `get_attr`
            return env.has_attr(METHOD) and (not _asks_get_attr(env) or all(map(callable, env.get_attr(METHOD))))
    except (AttributeError, NotImplementedError):
        pass
    try:
        answers = env.env_method(METHOD)
    except (AttributeError, NotImplementedError):
        return False
    return answers is not None and len(answers) == env.num_envs and all(mask is not None for mask in answers)


def get_action_masks(env: VecEnv) -> Any:
    """
    :param env: Vectorized environment with masks; those of the outermost wrapper that has the method count, then those of the
        environments
    :return: True for legal actions, shape ``[n_envs, num_actions]``, as the environment returns them, not checked
    :raises EOFError: if the processes of a ``SubprocVecEnv`` end
    """
    for layer in filter(_has_own_masks, _layers(env)):
        return layer.action_masks()  # type: ignore[attr-defined]
    try:
        return env.env_method(METHOD)
    except (EOFError, ConnectionError) as error:
        raise type(error)(
            "The environments' processes ended when they were asked for `action_masks()`, with the error that they printed. "
            "If it is no method, " + _masker('env.get_wrapper_attr("action_masks")')
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
        found = describe(seen) if seen else "Add it, or wrap the environment in sb3_contrib.common.wrappers.ActionMasker"
        raise ValueError(f"`use_masking=True`, but the environment has no method `action_masks`. {found}")
    warn("masks", unused_masks(seen))
    return False


def unused_masks(seen: list[NearMiss]) -> str | None:
    """
    :param seen: What looks like masks
    :return: Warning that says how to use them, ``None`` if there are none
    """
    if not seen:
        return None
    return (
        f"Illegal actions are not masked, since the environment has no method `action_masks`. {describe(seen)}. "
        f"`learn(use_masking=False)` turns this warning off"
    )


def describe(seen: list[NearMiss]) -> str:
    """
    :param seen: What looks like masks, not empty
    :return: Names of all of it, and how to use the first
    """
    return f"It has {' and '.join(miss.what for miss in seen)}: {seen[0].how}"


def near_misses(env: VecEnv) -> list[NearMiss]:
    """
    :param env: Vectorized environment without a method ``action_masks``, after its reset
    :return: What looks like masks: attributes and methods, entries of the infos of its reset and of Dict observations; first
        what is used best
    """
    seen = [
        NearMiss(f"`{name}` of {type(layer).__name__}{' that is no method' if name == METHOD else ''}", _vectorized(layer))
        for layer in _layers(env)
        for name in (METHOD, *MASK_NAMES)
        if _own(layer, name) is not None
    ]
    seen += _of_environments(env, METHOD)
    seen += masks_in_infos(env, getattr(env.unwrapped, "reset_infos", None))
    keys = [name for name in (METHOD, *MASK_NAMES) if name in getattr(env.observation_space, "spaces", {})]
    seen += [NearMiss(f"{key!r} in its Dict observations", _returned(env, key)) for key in keys]
    return seen + [miss for name in (*MASK_NAMES, *LIST_NAMES) for miss in _of_environments(env, name)]


def masks_in_infos(env: VecEnv, infos: Any, at_reset: bool = True) -> list[NearMiss]:
    """
    :param env: Vectorized environment
    :param infos: Infos of its environments, shape ``[n_envs]``
    :param at_reset: Whether they are those of a reset
    :return: Masks in the infos
    """
    seen = [name for name in (METHOD, *MASK_NAMES) if infos and infos[0].get(name) is not None]
    first = "" if at_reset else "let `reset` return them in its info as `step` does, "
    return [NearMiss(f"`info[{name!r}]`", first + _returned(env, name)) for name in seen]


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


def _of_environments(env: VecEnv, name: str) -> list[NearMiss]:
    """:return: An attribute or a method of the environments and how to use it, if they have it"""
    code, note = f'env.get_wrapper_attr("{name}")', ""
    try:
        if not env.has_attr(name):
            return []
        if not _asks_get_attr(env):
            note = " (with `()` after it if it is a method)"
        elif (value := env.get_attr(name)[0]) is None:
            return []
        elif callable(value):
            needed = [part for part in inspect.signature(value).parameters.values() if part.default is part.empty]
            code += f"({', '.join(part.name for part in needed if part.kind == part.POSITIONAL_OR_KEYWORD)})"
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return []
    what = f"`{name}`{' that is no method' if name == METHOD else ''}"
    if _is_native(env):
        return [NearMiss(what, _vectorized(env.unwrapped))]
    imports = ""
    if name in LIST_NAMES:
        first, num_actions = int(env.action_space.start), int(env.action_space.n)  # type: ignore[attr-defined]
        imports = "`import numpy as np`, "
        code = f"np.isin(np.arange({first}, {first + num_actions}), {code})"
        note += ", if it lists the legal actions"
    return [NearMiss(what, _masker(code, imports) + note)]


def _masker(code: str, imports: str = "") -> str:
    """:return: How masks are used that the code gives"""
    return (
        f"wrap each environment with {imports}`from sb3_contrib.common.wrappers import ActionMasker` and "
        f"`env = ActionMasker(env, lambda env: {code})`"
    )
