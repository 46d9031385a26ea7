"""Command-line arguments in RL Zoo's notation."""

import argparse
import ast
import functools
import pydoc
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym

MODEL_HELP = (
    "checkpoint or folder of checkpoints (ResumableCheckpointCallback), which run no code, or zip file of MuZero.save, which "
    "is unpickled and can run any code: open zip files of your own only"
)
"""What commands say of the model that they take."""

Wrapper = str | dict[str, Any]
"""A wrapper as RL Zoo's settings have it: its dotted name, or a dictionary of its name and its keyword arguments."""


def key_value(text: str) -> tuple[str, Any]:
    """
    Argument type for ``argparse``.

    :param text: ``key=value``
    :return: The key, and the value as a Python literal, or as a string if it is not a literal
    :raises argparse.ArgumentTypeError: if there is no ``=``
    """
    key, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"must be key=value, got {text!r}")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def wrapper_class(wrappers: Wrapper | Sequence[Wrapper]) -> Callable[[gym.Env], gym.Env]:
    """
    Convert RL Zoo's ``env_wrapper`` to the ``wrapper_class`` of ``make_vec_env``.

    :param wrappers: Wrappers, innermost first, each its dotted name or ``{name: keyword arguments}``
    :return: Function that applies the wrappers
    :raises ValueError: for a name that can't be imported, and for a dictionary of several names
    """
    found: list[Any] = []
    for wrapper in [wrappers] if isinstance(wrappers, (str, dict)) else wrappers:
        named = wrapper if isinstance(wrapper, dict) else {wrapper: None}
        if len(named) != 1:
            raise ValueError(f"`env_wrapper` must be a list to have several wrappers, got {named}")
        ((name, kwargs),) = named.items()
        try:
            located: Any = pydoc.locate(name)
        except pydoc.ErrorDuringImport as error:
            raise ValueError(f"{name} can't be imported: {error}") from error
        if located is None:
            raise ValueError(f"there is no {name}: it must be the dotted name of a class")
        found.append(functools.partial(located, **(kwargs or {})))
    return lambda env: functools.reduce(lambda inner, outer: outer(inner), found, env)
