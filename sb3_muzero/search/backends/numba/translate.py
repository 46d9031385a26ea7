"""Translation of PyTorch modules into the layers of a compiled program, which reads their parameters in place."""

from collections.abc import Callable
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from sb3_muzero.search.backends.numba import program
from sb3_muzero.search.backends.numba.fused import NUM_ACTIVATION_BUFFERS
from sb3_muzero.search.backends.numba.simd import LANES
from sb3_muzero.search.backends.snapshot import UnsupportedModelError, check_forward
from sb3_muzero.search.state import rounded_up

PLAIN_TENSORS = (torch.Tensor, nn.Parameter)


class Layer(NamedTuple):
    """
    One layer of a program.

    :param code: code of the layer in ``program``.
    :param width: number of outputs.
    :param weight: first parameter, if any.
    :param bias: second parameter, if any.
    :param constant: constant of the layer, if any.
    """

    code: int
    width: int
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    constant: float = 0.0


Translator = Callable[[Any, int], list[Layer]]
"""``translator(module, number of inputs or 0 where unknown) -> layers``."""

PYTORCH_LAYERS = (
    nn.Linear, nn.LayerNorm, nn.Identity, nn.Flatten, nn.ReLU, nn.Tanh, nn.SiLU, nn.ELU, nn.GELU, nn.LeakyReLU, nn.Sigmoid,
    nn.Mish,
)  # fmt: skip

_REGISTRY: dict[type[nn.Module], str] = {layer: layer.__name__.lower() for layer in PYTORCH_LAYERS}


def register(module_class: type[nn.Module], kind: str) -> None:
    """
    Tell the compiled planner what the modules of a class compute. A subclass, which may compute something else, has to be
    registered itself.

    :param module_class: class of the modules.
    :param kind: what they compute:

        - ``"simnorm"``: layer normalisation without parameters, then a softmax over each ``group_size`` units;
        - ``"minmax"``: each row scaled to [0, 1], with ranges clamped to at least ``epsilon``;
        - ``"standardize"``: ``(x - mean) / sqrt(var + 1e-8)``, clamped to [``-clip``, ``clip``];
        - ``"expectation"``: expected value of a softmax over bins at ``bounds[0] + (bounds[1] - bounds[0]) * grid``;
        - ``"sequential"``: its children one after the other, whatever the signature of ``forward`` is;
        - ``"dynamics"``: ``latent_head`` and ``reward_head`` of the output of ``trunk``;
        - ``"prediction"``: ``policy_head`` and ``value_head`` of the output of ``trunk``;
        - or a layer of PyTorch, a key of ``TRANSLATORS``.
    :raises ValueError: for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {sorted(KINDS)}, got {kind!r}")
    _REGISTRY[module_class] = kind


def kind_of(module: nn.Module) -> str | None:
    """
    :param module: a module.
    :return: the kind that its class is registered as, if any.
    :raises UnsupportedModelError: if it has hooks or a replaced ``forward``.
    """
    check_forward(module)
    return _REGISTRY.get(type(module))


def translate(module: nn.Module, width: int, visited: list[nn.Module]) -> list[Layer]:
    """
    :param module: a module.
    :param width: number of its inputs, or 0 where unknown.
    :param visited: list to which the module and its submodules are appended.
    :return: layers that compute the same.
    :raises UnsupportedModelError: if there are none.
    """
    kind = kind_of(module)
    visited.append(module)
    if kind == "sequential" or getattr(type(module), "forward", None) is nn.Sequential.forward:
        result: list[Layer] = []
        for child in module._modules.values():  # `children` skips repeated modules
            result += translate(child, result[-1].width if result else width, visited)  # type: ignore[arg-type]
        return result
    translator = TRANSLATORS.get(kind or "")
    if translator is None:
        raise UnsupportedModelError(f"{type(module).__qualname__} is not supported by the compiled planner")
    layers = translator(module, width)
    if layers:
        inputs = num_inputs(layers[0])
        check_fits(0 < inputs == (width or inputs), module, width)
    return layers


def translate_network(module: Any, kind: str, width: int, visited: list[nn.Module]) -> list[list[Layer]]:
    """
    :param module: a module with a trunk and heads.
    :param kind: the kind that its class must be registered as, a key of ``HEADS``.
    :param width: number of its inputs.
    :param visited: list to which the module and its submodules are appended.
    :return: layers of the trunk, of which there may be none, and of each head.
    :raises UnsupportedModelError: if there are none for the module, or for a head.
    """
    if kind_of(module) != kind:
        raise UnsupportedModelError(f"{type(module).__qualname__} is not supported by the compiled planner")
    visited.append(module)
    trunk = translate(module.trunk, width, visited)
    hidden = trunk[-1].width if trunk else width
    sections = [trunk, *(translate(getattr(module, head), hidden, visited) for head in HEADS[kind])]
    if not all(sections[1:]):
        raise UnsupportedModelError("a head without layers is not supported by the compiled planner")
    return sections


def _linear(module: Any, width: int) -> list[Layer]:
    return [Layer(program.LINEAR, len(module.weight), _readable(module.weight), _readable(module.bias))]


def _layer_norm(module: Any, width: int) -> list[Layer]:
    inputs = prod(module.normalized_shape)
    return [Layer(program.LAYER_NORM, inputs, _readable(module.weight), _readable(module.bias), module.eps)]


def _simnorm(module: Any, width: int) -> list[Layer]:
    check_fits(width % module.group_size == 0, module, width)
    softmax = Layer(program.GROUP_SOFTMAX, width, constant=module.group_size)
    return [Layer(program.LAYER_NORM, width, constant=1e-5), softmax]


def _standardize(module: Any, width: int) -> list[Layer]:
    return [Layer(program.STANDARDIZE, len(module.mean), _readable(module.mean), _readable(module.var), module.clip)]


def _expectation(module: Any, width: int) -> list[Layer]:
    return [Layer(program.EXPECTATION, 1, _readable(module.grid), _readable(module.bounds))]


def _gelu(module: Any, width: int) -> list[Layer]:
    if module.approximate != "none":
        raise UnsupportedModelError("the approximate GELU is not supported by the compiled planner")
    return [Layer(program.GELU, width)]


def _elementwise(code: int, constant: str = "") -> Translator:
    """:return: translator of modules with this code, whose constant is the attribute of this name"""
    return lambda module, width: [Layer(code, width, constant=getattr(module, constant) if constant else 0.0)]


TRANSLATORS: dict[str, Translator] = {
    "linear": _linear,
    "layernorm": _layer_norm,
    "identity": lambda module, width: [],
    "flatten": lambda module, width: [],
    **{name: _elementwise(getattr(program, name.upper())) for name in ("relu", "tanh", "silu", "sigmoid", "mish")},
    "elu": _elementwise(program.ELU, "alpha"),
    "gelu": _gelu,
    "leakyrelu": _elementwise(program.LEAKY_RELU, "negative_slope"),
    "simnorm": _simnorm,
    "minmax": _elementwise(program.MINMAX, "epsilon"),
    "standardize": _standardize,
    "expectation": _expectation,
}
HEADS = {"dynamics": ("reward_head", "latent_head"), "prediction": ("policy_head", "value_head")}
"""Names of the heads that read the output of the trunk."""

KINDS = {*TRANSLATORS, *HEADS, "sequential"}


def check_fits(fits: bool, module: nn.Module, width: int) -> None:
    """
    :param fits: whether a module takes inputs of this width.
    :param module: the module.
    :param width: number of inputs.
    :raises UnsupportedModelError: if it does not.
    """
    if not fits:
        raise UnsupportedModelError(f"{module} with {width} inputs is not supported by the compiled planner")


def _readable(parameter: torch.Tensor | None) -> torch.Tensor | None:
    """Compiled code reads a parameter's memory as it is."""
    if parameter is not None:
        is_plain = type(parameter) in PLAIN_TENSORS and parameter.is_contiguous()
        if not (is_plain and parameter.is_cpu and parameter.dtype is torch.float32):
            given = f"{parameter.dtype} on {parameter.device}"
            raise UnsupportedModelError(f"parameters must be contiguous float32 on cpu, got {given}")
    return parameter


def num_inputs(layer: Layer) -> int:
    """
    :param layer: a layer.
    :return: number of its inputs.
    """
    if layer.code in (program.LINEAR, program.EXPECTATION) and layer.weight is not None:
        return layer.weight.shape[-1]
    return layer.width


def assemble(sections: tuple[list[Layer], ...], max_inputs: int) -> program.Program:
    """
    :param sections: layers of each section.
    :param max_inputs: largest number of inputs of a section.
    :return: the program.
    """
    layers = [layer for section in sections for layer in section]
    table = [
        (layer.code, layer.width, *(0 if tensor is None else tensor.data_ptr() for tensor in (layer.weight, layer.bias)))
        for layer in layers
    ]
    ends = accumulate((len(section) for section in sections), initial=0)
    width = rounded_up(max(max_inputs, *(layer.width for layer in layers)))
    return program.Program(
        np.array(table, np.int64),
        np.array([layer.constant for layer in layers], np.float32),
        np.array(list(ends), np.int64),
        np.zeros((NUM_ACTIVATION_BUFFERS, program.GROUPS, width, LANES), np.float32),
    )
