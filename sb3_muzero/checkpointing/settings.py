"""The constructor's arguments in a file, from which no code is run."""

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

# What settings may consist of besides plain values: reading a file makes none but these
CLASSES = (th.nn.Module, th.optim.Optimizer, BaseBuffer)
SCHEDULES = {schedule.__name__: schedule for schedule in (ConstantSchedule, LinearSchedule)}
MISSING = "missing"


def encode(setting: Any) -> Any:
    """
    :param setting: Value of a constructor's argument
    :return: It as a tree; what can't be made again without running code becomes ``{"missing": what it was}``
    """
    if setting is None or isinstance(setting, bool | int | float | str):
        return setting
    for kind, plain in ((np.bool_, bool), (np.integer, int), (np.floating, float)):
        if isinstance(setting, kind):
            return plain(setting)
    if isinstance(setting, Path):
        return str(setting)
    if isinstance(setting, TrainFreq):
        return encode((setting.frequency, setting.unit.value))
    if isinstance(setting, FloatSchedule):
        return encode(setting.value_schedule)
    if isinstance(setting, th.device):
        return str(setting)
    if isinstance(setting, tuple | list):
        return {"tuple" if isinstance(setting, tuple) else "list": [*map(encode, setting)]}
    if isinstance(setting, dict) and all(isinstance(key, str) for key in setting):
        return {"dict": {key: encode(value) for key, value in setting.items()}}
    if type(setting) in SCHEDULES.values():
        return {"schedule": type(setting).__name__, "state": vars(setting)}
    if isinstance(setting, type) and issubclass(setting, CLASSES) and "<locals>" not in setting.__qualname__:
        return {"class": [setting.__module__, setting.__qualname__]}
    return {MISSING: repr(setting)}


def is_missing(tree: Any) -> bool:
    """
    :param tree: What ``encode`` gave
    :return: Whether something in it can't be made again without running code
    """
    if not isinstance(tree, dict):
        return False
    content: Any
    kind, content = next(iter(tree.items()), ("", ()))
    parts = {"tuple": content, "list": content, "dict": content.values() if kind == "dict" else ()}
    return kind == MISSING or any(map(is_missing, parts.get(kind, ())))


def decode(tree: Any, name: str) -> Any:
    """
    :param tree: What ``encode`` gave
    :param name: The argument
    :return: The setting
    :raises ValueError: for one that is missing, or whose class is not there or none of ``CLASSES``
    """
    if not isinstance(tree, dict):
        return tree
    ((kind, content), *rest) = tree.items()
    if kind == MISSING:
        raise ValueError(f"`{name}` was {content}, which cannot be serialized; pass it to `resume({name}=...)`")
    if kind in ("tuple", "list"):
        parts = [decode(part, name) for part in content]
        return tuple(parts) if kind == "tuple" else parts
    if kind == "dict":
        return {key: decode(part, name) for key, part in content.items()}
    if kind == "schedule":
        schedule = SCHEDULES[content].__new__(SCHEDULES[content])
        schedule.__dict__.update(rest[0][1])
        return schedule
    module, qualname = content
    found: Any = sys.modules.get(module)  # reading a file must not import what nobody has asked for
    for part in qualname.split("."):
        found = getattr(found, "__dict__", {}).get(part)  # nor may it ask a module that imports what it is asked for
    if not isinstance(found, type) or not issubclass(found, CLASSES):
        raise ValueError(f"`{name}` was {module}.{qualname}, which is not there: import it first, or give it again")
    return found


def constructor_arguments(model: MuZero) -> dict[str, Any]:
    """
    :param model: A model
    :return: Arguments of its constructor as they are now, without the environment
    """
    names = {"policy": "policy_class", "stats_window_size": "_stats_window_size"}
    without = {"env", "_init_setup_model"}
    own = inspect.signature(type(model)).parameters.values()
    several = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    arguments = [parameter.name for parameter in own if parameter.kind not in several]
    if len(arguments) < len(own):  # a subclass that hands on the others
        arguments += [name for name in inspect.signature(MuZero).parameters if name not in arguments]
    return {name: getattr(model, names.get(name, name)) for name in arguments if name not in without}
