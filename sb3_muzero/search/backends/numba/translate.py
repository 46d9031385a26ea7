"""From modules of PyTorch to the table of layers that compiled code runs, which reads their parameters in place."""

from collections.abc import Callable
from itertools import accumulate
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from sb3_muzero.search.backends.numba import program as layers
from sb3_muzero.search.backends.numba.fused import NUM_ACTIVATION_BUFFERS
from sb3_muzero.search.backends.numba.simd import LANES


class UnsupportedModelError(Exception):
    """The compiled planner does not support the model; says why."""


class Layer(NamedTuple):
    """
    :param code: what it does.
    :param width: number of outputs.
    :param weight: first parameter, if any.
    :param bias: second parameter, if any.
    :param constant: its constant, if any.
    """

    code: int
    width: int
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    constant: float = 0.0


def translate(module: nn.Module, width: int | None, visited: list[nn.Module]) -> list[Layer]:
    """
    :param module: a module.
    :param width: number of its inputs, where known.
    :param visited: receives the module and all that it consists of.
    :return: the layers that compute the same.
    :raises UnsupportedModelError: if there are none.
    """
    kind, name = type(module), kernel_of(module)
    visited.append(module)
    if name == "sequential" or getattr(kind, "forward", None) is nn.Sequential.forward:
        result: list[Layer] = []
        for child in module._modules.values():  # `children` leaves out what comes a second time
            result += translate(child, result[-1].width if result else width, visited)  # type: ignore[arg-type]
        return result
    translator = TRANSLATORS.get(kind if name is None else name)
    if translator is None:
        raise UnsupportedModelError(f"a {kind.__qualname__} is not supported by the compiled planner")
    return translator(module, width)


def kernel_of(module: nn.Module) -> str | None:
    """
    :param module: a module.
    :return: what its class, and not only one that it derives from, says that it computes.
    :raises UnsupportedModelError: if hooks or a ``forward`` of its own make it compute something else.
    """
    state = module.__dict__
    if state["_forward_hooks"] or state["_forward_pre_hooks"] or "forward" in state:
        raise UnsupportedModelError(f"the forward function of a {type(module).__qualname__} has hooks or was replaced")
    return type(module).__dict__.get("kernel")


class Snapshot:
    """
    What some modules consist of, to notice when they no longer do; a comparison takes a tenth of the time of a translation.

    :param modules: the modules.
    :param tensors: those of their tensors whose memory is read.
    :raises UnsupportedModelError: if a module has hooks, or a tensor is neither a parameter nor a buffer of one of them.
    """

    def __init__(self, modules: list[nn.Module], tensors: list[torch.Tensor]) -> None:
        for module in modules:
            kernel_of(module)
        self.modules = modules
        self._states = [module.__dict__ for module in modules]
        self._hooks = [state[name] for state in self._states for name in ("_forward_hooks", "_forward_pre_hooks")]
        groups = [state[name] for state in self._states for name in ("_parameters", "_buffers")]
        self._tensors = [(group, name) for group in groups for name in group]
        if not {id(tensor) for tensor in tensors} <= {id(group[name]) for group, name in self._tensors}:
            raise UnsupportedModelError("a layer has tensors that are neither parameters nor buffers")
        # Other views of their memory, which thereby is not freed, whatever becomes of the model
        self._memory = [NOTHING if (t := group[name]) is None else t.detach() for group, name in self._tensors]
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
        :return: whether nothing has changed but the numbers in the tensors.
        """
        try:
            tensors = [NOTHING if (tensor := group[name]) is None else tensor for group, name in self._tensors]
            in_place = all(map(torch.Tensor.is_set_to, tensors, self._memory))
            return in_place and not any(self._hooks) and self._read() == self._kept
        except (KeyError, RuntimeError, ValueError):  # something is gone, of another type, or has become an array
            return False


NOTHING = torch.empty(0)
CONSTANT = (int, float, str, tuple)


def _linear(module: Any, width: int | None) -> list[Layer]:
    weight = module.weight
    outputs, inputs = weight.shape
    check_fits(width is None or width == inputs, module, width)
    return [Layer(layers.LINEAR, outputs, _checked(weight), _checked(module.bias))]


def _layer_norm(module: Any, width: int | None) -> list[Layer]:
    inputs = module.normalized_shape[-1]
    check_fits(module.normalized_shape == (width or inputs,), module, width)
    return [Layer(layers.LAYER_NORM, inputs, _checked(module.weight), _checked(module.bias), module.eps)]


def _simnorm(module: Any, width: int | None) -> list[Layer]:
    width = _known(module, width)
    check_fits(width % module.group_size == 0, module, width)
    softmax = Layer(layers.GROUP_SOFTMAX, width, constant=module.group_size)
    return [Layer(layers.LAYER_NORM, width, constant=1e-5), softmax]


def _minmax(module: Any, width: int | None) -> list[Layer]:
    return [Layer(layers.MINMAX, _known(module, width), constant=module.epsilon)]


def _standardize(module: Any, width: int | None) -> list[Layer]:
    (inputs,) = module.mean.shape
    check_fits(width is None or width == inputs, module, width)
    return [Layer(layers.STANDARDIZE, inputs, _checked(module.mean), _checked(module.var), module.clip)]


def _expectation(module: Any, width: int | None) -> list[Layer]:
    check_fits(module.grid.shape == (width,), module, width)
    return [Layer(layers.EXPECTATION, 1, _checked(module.grid), _checked(module.bounds))]


def _gelu(module: Any, width: int | None) -> list[Layer]:
    if module.approximate != "none":
        raise UnsupportedModelError("an approximate GELU is not supported by the compiled planner")
    return [Layer(layers.GELU, _known(module, width))]


def _activation(code: int, constant: str | None = None) -> Callable[[Any, int | None], list[Layer]]:
    def translator(module: Any, width: int | None) -> list[Layer]:
        return [Layer(code, _known(module, width), constant=0.0 if constant is None else getattr(module, constant))]

    return translator


TRANSLATORS: dict[type | str, Callable[[Any, int | None], list[Layer]]] = {
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    nn.Identity: lambda module, width: [],
    nn.Flatten: lambda module, width: [],
    nn.ReLU: _activation(layers.RELU),
    nn.Tanh: _activation(layers.TANH),
    nn.SiLU: _activation(layers.SILU),
    nn.ELU: _activation(layers.ELU, "alpha"),
    nn.GELU: _gelu,
    nn.LeakyReLU: _activation(layers.LEAKY_RELU, "negative_slope"),
    nn.Sigmoid: _activation(layers.SIGMOID),
    nn.Mish: _activation(layers.MISH),
    "simnorm": _simnorm,
    "minmax": _minmax,
    "standardize": _standardize,
    "expectation": _expectation,
}


def _known(module: nn.Module, width: int | None) -> int:
    check_fits(width is not None, module, width)
    return width or 0


def check_fits(fits: bool, module: nn.Module, width: int | None) -> None:
    if not fits:
        raise UnsupportedModelError(f"{module} does not fit {width} inputs")


def _checked(parameter: torch.Tensor | None) -> torch.Tensor | None:
    """Compiled code reads a parameter's memory as it is."""
    if parameter is not None:
        is_plain = type(parameter) in PLAIN_TENSORS and parameter.is_contiguous()
        if not (is_plain and parameter.is_cpu and parameter.dtype is torch.float32):
            raise UnsupportedModelError(
                f"parameters must be contiguous float32 on cpu, got {parameter.dtype} on {parameter.device}"
            )
    return parameter


PLAIN_TENSORS = (torch.Tensor, nn.Parameter)


def rounded_up(width: int) -> int:
    """
    :param width: a number of units.
    :return: the least whole number of ``LANES`` that holds them.
    """
    return -(-width // LANES) * LANES


def num_inputs(layer: Layer) -> int:
    """
    :param layer: a layer.
    :return: number of its inputs.
    """
    return layer.weight.shape[1] if layer.code == layers.LINEAR and layer.weight is not None else layer.width


def assemble(sections: tuple[list[Layer], ...], max_width: int) -> layers.Program:
    """
    :param sections: the layers of each section.
    :param max_width: the most inputs that a section has.
    :return: the program.
    """
    every = [layer for section in sections for layer in section]
    table = [
        (layer.code, layer.width, *(0 if tensor is None else tensor.data_ptr() for tensor in (layer.weight, layer.bias)))
        for layer in every
    ]
    ends = accumulate((len(section) for section in sections), initial=0)
    width = rounded_up(max(max_width, *(layer.width for layer in every)))
    return layers.Program(
        np.array(table, np.int64),
        np.array([layer.constant for layer in every], np.float32),
        np.array(list(ends), np.int64),
        np.zeros(
            (NUM_ACTIVATION_BUFFERS, layers.GROUPS, width, LANES),
            np.float32,
        ),
    )
