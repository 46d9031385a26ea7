"""The state of an optimizer in a file."""

import copy
from typing import Any

import torch as th

from sb3_muzero.checkpointing.settings import decode, encode, is_missing
from sb3_muzero.common.serialization import validate_array


def optimizer_state(optimizer: th.optim.Optimizer) -> dict[str, Any]:
    """:return: Its state"""
    state = optimizer.state_dict()
    return {
        "state": {str(index): values for index, values in state["state"].items()},
        "param_groups": [{name: encode(value) for name, value in group.items()} for group in state["param_groups"]],
    }


def _after_a_step(optimizer: th.optim.Optimizer) -> th.optim.Optimizer:
    """:return: A copy, with a step of no gradient made"""
    trial = copy.deepcopy(optimizer)
    for group in trial.param_groups:
        for parameter in group["params"]:
            parameter.grad = th.zeros_like(parameter)
    trial.step()
    return trial


def load_optimizer_state(optimizer: th.optim.Optimizer, state: dict[str, Any]) -> None:
    """
    :param optimizer: A new one
    :param state: What ``optimizer_state`` gave
    :raises Exception: of any kind, if it does not fit or no step can be made with it
    """
    fitting = _after_a_step(optimizer).state_dict()["state"]  # compiled steps do not check what they read
    for index, values in state["state"].items():
        like = fitting[int(index)]
        if values.keys() != like.keys():
            raise ValueError(f"the optimizer must have gathered {sorted(like)}, got {sorted(values)}")
        for name, value in values.items():
            if isinstance(like[name], th.Tensor):
                as_array = value.numpy(force=True) if isinstance(value, th.Tensor) else value
                validate_array(f"the optimizer's {name}", as_array, like[name].numpy(force=True))
            elif type(value) is not type(like[name]):
                raise ValueError(f"the optimizer's {name} must be like {like[name]!r}, got {value!r}")
    new = optimizer.state_dict()["param_groups"]
    own = [group["params"] for group in new]
    if repr([decode(group["params"], "params") for group in state["param_groups"]]) != repr(own):  # False is no 0
        raise ValueError(f"the optimizer's groups must have the parameters {own}")
    groups = [
        {name: given[name] if is_missing(value) else decode(value, name) for name, value in group.items()}
        for group, given in zip(state["param_groups"], new, strict=True)
    ]
    optimizer.load_state_dict(
        {"state": {int(index): values for index, values in state["state"].items()}, "param_groups": groups}
    )
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, th.Tensor) and value.shape == parameter.shape:
                # Files know no channels-last layout, and fused steps pair numbers by where they lie
                values[name] = th.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
    if not all(parameter.isfinite().all() for group in _after_a_step(optimizer).param_groups for parameter in group["params"]):
        raise ValueError("networks and optimizer must have finite numbers")
