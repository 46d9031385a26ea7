"""Encoding of constructor arguments, which can be decoded without executing code from the file."""

import inspect
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from sb3_muzero.muzero import MuZero

# Only these classes are restored
CLASSES = (th.nn.Module, th.optim.Optimizer, BaseBuffer)
SCHEDULES = {schedule.__name__: schedule for schedule in (ConstantSchedule, LinearSchedule)}
MISSING = "not serializable"


def encode(setting: Any) -> Any:
    """
    :param setting: Value of a constructor argument
    :return: Encoded value, for ``save_npz``. A value that cannot be serialized becomes ``{MISSING: repr(value)}``
    """
    if isinstance(setting, TrainFreq):
        setting = (setting.frequency, setting.unit.value)
    if isinstance(setting, FloatSchedule):
        setting = setting.value_schedule
    if setting is None or isinstance(setting, bool | int | float | str | np.generic):
        return setting
    if isinstance(setting, Path | th.device):
        return str(setting)
    if isinstance(setting, tuple | list):
        return {"tuple" if isinstance(setting, tuple) else "list": [*map(encode, setting)]}
    if isinstance(setting, dict) and all(isinstance(key, str) for key in setting):
        return {"dict": {key: encode(value) for key, value in setting.items()}}
    if type(setting) in SCHEDULES.values():
        return {"schedule": [type(setting).__name__, vars(setting)]}
    if isinstance(setting, type) and issubclass(setting, CLASSES) and "<locals>" not in setting.__qualname__:
        return {"class": [setting.__module__, setting.__qualname__]}
    return {MISSING: repr(setting)}


def is_missing(tree: Any) -> bool:
    """
    :param tree: Result of ``encode``
    :return: Whether any value in it could not be serialized
    """
    if isinstance(tree, dict):
        return MISSING in tree or any(map(is_missing, tree.values()))
    return isinstance(tree, list) and any(map(is_missing, tree))


def decode(tree: Any, name: str) -> Any:
    """
    :param tree: Result of ``encode``
    :param name: Name of the argument
    :return: Value of the argument
    :raises ValueError: if the value could not be serialized, or if its class is not imported or not a subclass of ``CLASSES``
    """
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == MISSING:
        raise ValueError(f"`{name}` was {content}, which cannot be serialized; pass it to `resume({name}=...)`")
    if kind in ("tuple", "list"):
        parts = [decode(part, name) for part in content]
        return tuple(parts) if kind == "tuple" else parts
    if kind == "dict":
        return {key: decode(part, name) for key, part in content.items()}
    first, second = content
    if kind == "schedule":
        schedule = SCHEDULES[first].__new__(SCHEDULES[first])
        vars(schedule).update(second)
        return schedule
    found: Any = sys.modules.get(first)  # a file must not import modules
    for part in second.split("."):
        found = getattr(found, "__dict__", {}).get(part)  # nor call a module's __getattr__
    if not isinstance(found, type) or not issubclass(found, CLASSES):
        raise ValueError(f"`{name}` was {first}.{second}, which was not found: import it first, or pass it to `resume`")
    return found


def constructor_arguments(model: MuZero) -> dict[str, Any]:
    """
    :param model: Model
    :return: Current values of its constructor arguments, except for the environment
    """
    parameters = dict(inspect.signature(type(model)).parameters)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):  # a subclass with **kwargs
        parameters = dict(inspect.signature(MuZero).parameters) | parameters
    attributes = {"policy": "policy_class", "stats_window_size": "_stats_window_size"}
    return {
        name: getattr(model, attributes.get(name, name))
        for name, parameter in parameters.items()
        if name not in ("env", "_init_setup_model") and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }
