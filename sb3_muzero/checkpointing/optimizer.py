"""Save and load the state of an optimizer."""

import copy
import inspect
from typing import Any

import torch as th

from sb3_muzero.common.serialization import validate_array, validate_number


def optimizer_state(optimizer: th.optim.Optimizer) -> dict[str, Any]:
    """
    :param optimizer: Optimizer
    :return: State of each parameter, and the numbers in the parameter groups
    """
    state, own, kinds = optimizer.state_dict(), optimizer.defaults, (int, float, tuple, list)
    groups = [{name: group[name] for name in own if isinstance(group[name], kinds)} for group in state["param_groups"]]
    return {"state": {str(index): values for index, values in state["state"].items()}, "param_groups": groups}


def load_optimizer_state(optimizer: th.optim.Optimizer, state: dict[str, Any]) -> None:
    """
    Load the state of an optimizer and its hyperparameters, which may have been changed since it was created.

    :param optimizer: A new optimizer
    :param state: Result of ``optimizer_state``
    :raises ValueError: if the names, dtypes, shapes or flags differ, or if values are not finite
    """
    trial = copy.deepcopy(optimizer)
    for group in trial.param_groups:
        for parameter in group["params"]:
            parameter.grad = th.zeros_like(parameter)
    trial.step()  # creates the state with the shapes and the memory format that a fused step relies on
    new = trial.state_dict()
    loaded = {int(index): new["state"][int(index)] for index in state["state"]}
    for index, values in state["state"].items():
        own = loaded[int(index)]
        if values.keys() != own.keys():
            raise ValueError(f"the optimizer's state must have {sorted(own)}, got {sorted(values)}")
        for name, value in values.items():
            if type(value) is not type(own[name]):
                raise ValueError(f"`optimizer.{name}` must be a {type(own[name]).__name__}, got {value!r:.200}")
            if isinstance(value, th.Tensor):
                validate_array(f"optimizer.{name}", value.numpy(), own[name].numpy(force=True))
                value = own[name].copy_(value)
            own[name] = value
    groups = new["param_groups"]
    for group, numbers in zip(groups, state["param_groups"], strict=True):
        for name, value in numbers.items():
            if name not in group:
                raise ValueError(f"`optimizer.{name}` is unknown to {type(optimizer).__name__}, which has {sorted(group)}")
            group[name] = _like(f"optimizer.{name}", value, group[name])
        arguments = inspect.signature(type(optimizer)).parameters.keys() & group.keys() - {"params"}
        type(optimizer)([th.zeros(1)], **{name: group[name] for name in arguments})  # checks ranges
    optimizer.load_state_dict({"state": loaded, "param_groups": groups})


def _like(name: str, value: Any, own: Any) -> Any:
    """:return: A hyperparameter from a file, which must be a number, or as many, like the optimizer's own"""
    if isinstance(own, tuple | list):
        if not isinstance(value, tuple | list) or len(value) != len(own):
            raise ValueError(f"`{name}` must be like {own}, got {value!r:.200}")
        return tuple(_like(name, part, own_part) for part, own_part in zip(value, own, strict=True))
    if not isinstance(own, bool):
        return validate_number(name, value, float)
    if value is not own:  # as `maximize`, which is set when the optimizer is created
        raise ValueError(f"`{name}` must be {own} as in `optimizer_kwargs`, got {value!r:.200}")
    return own
