"""What a backend remembers of a model's structure, to notice when it has changed."""

from operator import itemgetter
from typing import Any

import torch
from torch import nn

EMPTY = torch.empty(0)
CONSTANT = (int, float, str, tuple)


class UnsupportedModelError(Exception):
    """A backend does not support the model, or the state that it is in; the message says why."""


def check_forward(module: nn.Module) -> None:
    """
    :param module: a module.
    :raises UnsupportedModelError: if it does not compute what its class says, because of hooks or of an instance attribute.
    """
    state = module.__dict__
    if state["_forward_hooks"] or state["_forward_pre_hooks"] or "forward" in state:
        name = type(module).__qualname__
        raise UnsupportedModelError(f"{name} with hooks or a replaced forward is not supported by the compiled planner")


class Snapshot:
    """
    The structure of some modules: everything except for the numbers in their tensors. Comparing it takes a tenth of the
    time of translating the modules again.

    :param modules: the modules.
    :param tensors: the tensors whose memory the backend reads.
    :raises UnsupportedModelError: if a module has hooks, or a tensor is neither a parameter nor a buffer of one of them.
    """

    def __init__(self, modules: list[nn.Module], tensors: list[torch.Tensor]) -> None:
        for module in modules:
            check_forward(module)
        self.modules = modules
        self._states = [module.__dict__ for module in modules]
        self._hooks = [state[name] for state in self._states for name in ("_forward_hooks", "_forward_pre_hooks")]
        groups = [state[name] for state in self._states for name in ("_parameters", "_buffers")]
        self._tensors = [(group, name) for group in groups for name in group]
        if not {id(tensor) for tensor in tensors} <= {id(group[name]) for group, name in self._tensors}:
            raise UnsupportedModelError("the weights of a layer are neither parameters nor buffers")
        # Views, which keep the memory alive whatever becomes of the model
        self._memory = [EMPTY if (t := group[name]) is None else t.detach() for group, name in self._tensors]
        self._children = [module._modules for module in modules if module._modules or isinstance(module, nn.Sequential)]
        self._constants = [
            (itemgetter(*names), state)
            for state in self._states
            if (names := [name for name, value in state.items() if isinstance(value, CONSTANT) and name != "training"])
        ]
        self._kept = self._read()

    def _read(self) -> tuple[list[Any], ...]:
        return (
            list(map(tuple, map(dict.values, self._children))),
            [read(state) for read, state in self._constants],
            ["forward" in state for state in self._states],
            list(map(type, self.modules)),
        )

    def holds(self) -> bool:
        """
        :return: whether nothing has changed except for the numbers in the tensors.
        """
        try:
            tensors = [EMPTY if (tensor := group[name]) is None else tensor for group, name in self._tensors]
            in_place = all(map(torch.Tensor.is_set_to, tensors, self._memory))
            return in_place and not any(self._hooks) and self._read() == self._kept
        except (KeyError, RuntimeError, ValueError):  # removed, of another type, or now an array
            return False
