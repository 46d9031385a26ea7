"""A latent model of MLPs on the CPU as a ``recurrent_fn`` with which the whole search runs in compiled code."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from sb3_muzero.search import layers
from sb3_muzero.search.base import Array, RecurrentOutput, RootOutput
from sb3_muzero.search.checks import check_shape, to_float32, to_numpy
from sb3_muzero.search.kernels import Leaves, RootActions, SearchSettings, instantiate_leaves
from sb3_muzero.search.lanes import LANES
from sb3_muzero.search.simulations import DYNAMICS, NUM_ROOMS, REPRESENTATION, evaluate, run_simulations
from sb3_muzero.search.tree import Tree


class NotCompilable(Exception):
    """The model, or the state that it is in, has no equal in compiled code; says what is in the way."""


class MLPModel(Protocol):
    """
    What can be compiled. Each part is an ``nn.Linear``, an ``nn.LayerNorm``, a common activation, a sequence of such, or a
    module whose class says by an attribute ``kernel`` of its own which of these it is:

    - ``"simnorm"``: layer normalisation without parameters, then a softmax over each ``group_size`` units;
    - ``"minmax"``: each row scaled to [0, 1], where a range below ``epsilon`` counts as ``epsilon``;
    - ``"expectation"``: the mean of a softmax over bins at ``bounds[0] + (bounds[1] - bounds[0]) * grid``;
    - ``"standardize"``: ``(x - mean) / sqrt(var + 1e-8)``, clamped to ``clip`` and its negative;
    - ``"sequential"``: its children one after the other, whatever their inputs are called.

    ``dynamics`` takes the latent followed by the one-hot action. ``prediction`` declares ``"prediction"`` and has the parts
    ``trunk``, ``policy_head``, ``value_head`` and ``reward_head``; the supports turn logits into scalars.
    """

    input_norm: Any
    representation: Any
    dynamics: Any
    prediction: Any
    value_support: Any
    reward_support: Any


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


def translate(module: nn.Module, width: int | None) -> list[Layer]:
    """
    :param module: a module.
    :param width: number of its inputs, where known.
    :return: the layers that compute the same.
    :raises NotCompilable: if there are none.
    """
    kind, name = type(module), kernel_of(module)
    if name == "sequential" or getattr(kind, "forward", None) is nn.Sequential.forward:
        result: list[Layer] = []
        for child in module._modules.values():  # `children` leaves out what comes a second time
            result += translate(child, result[-1].width if result else width)  # type: ignore[arg-type]
        return result
    translator = TRANSLATORS.get(kind if name is None else name)
    if translator is None:
        raise NotCompilable(f"a {kind.__qualname__} has no compiled equal")
    return translator(module, width)


def kernel_of(module: nn.Module) -> str | None:
    """
    :param module: a module.
    :return: what its class, and not only one that it derives from, says that it computes.
    :raises NotCompilable: if hooks or a ``forward`` of its own make it compute something else.
    """
    state = module.__dict__
    if state["_forward_hooks"] or state["_forward_pre_hooks"] or "forward" in state:
        raise NotCompilable(f"the forward function of a {type(module).__qualname__} has hooks or was replaced")
    return type(module).__dict__.get("kernel")


def _linear(module: Any, width: int | None) -> list[Layer]:
    weight = module.weight
    outputs, inputs = weight.shape
    _require(width is None or width == inputs, module, width)
    return [Layer(layers.LINEAR, outputs, _checked(weight), _checked(module.bias))]


def _layer_norm(module: Any, width: int | None) -> list[Layer]:
    inputs = module.normalized_shape[-1]
    _require(module.normalized_shape == (width or inputs,), module, width)
    return [Layer(layers.LAYER_NORM, inputs, _checked(module.weight), _checked(module.bias), module.eps)]


def _simnorm(module: Any, width: int | None) -> list[Layer]:
    width = _known(module, width)
    _require(width % module.group_size == 0, module, width)
    softmax = Layer(layers.GROUP_SOFTMAX, width, constant=module.group_size)
    return [Layer(layers.LAYER_NORM, width, constant=1e-5), softmax]


def _minmax(module: Any, width: int | None) -> list[Layer]:
    return [Layer(layers.MINMAX, _known(module, width), constant=module.epsilon)]


def _standardize(module: Any, width: int | None) -> list[Layer]:
    (inputs,) = module.mean.shape
    _require(width is None or width == inputs, module, width)
    return [Layer(layers.STANDARDIZE, inputs, _checked(module.mean), _checked(module.var), module.clip)]


def _expectation(module: Any, width: int | None) -> list[Layer]:
    _require(module.grid.shape == (width,), module, width)
    return [Layer(layers.EXPECTATION, 1, _checked(module.grid), _checked(module.bounds))]


def _gelu(module: Any, width: int | None) -> list[Layer]:
    if module.approximate != "none":
        raise NotCompilable("an approximate GELU has no compiled equal")
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
    _require(width is not None, module, width)
    return width or 0


def _require(fits: bool, module: nn.Module, width: int | None) -> None:
    if not fits:
        raise NotCompilable(f"{module} does not fit {width} inputs")


def _checked(parameter: torch.Tensor | None) -> torch.Tensor | None:
    """Compiled code reads a parameter's memory as it is."""
    if parameter is not None:
        is_plain = type(parameter) in PLAIN_TENSORS and parameter.is_contiguous()
        if not (is_plain and parameter.is_cpu and parameter.dtype is torch.float32):
            raise NotCompilable(f"parameters must be contiguous float32 on cpu, got {parameter.dtype} on {parameter.device}")
    return parameter


PLAIN_TENSORS = (torch.Tensor, nn.Parameter)


class CompiledModel:
    """
    A model that plans in compiled code, as a ``recurrent_fn``. It reads the parameters where PyTorch keeps them, and checks
    where and what they are when it is made: make one for each search, it is cheap.

    :param model: the model; it may be trained on between searches.
    :param discount: factor from the value of the next state to the value of this one.
    :raises NotCompilable: if some part of it has no equal in compiled code.
    """

    def __init__(self, model: MLPModel, discount: float) -> None:
        prediction = model.prediction
        if kernel_of(prediction) != "prediction":
            raise NotCompilable(f"a {type(prediction).__qualname__} has no compiled equal")
        representation = translate(model.input_norm, None)
        representation += translate(model.representation, representation[-1].width if representation else None)
        dynamics = translate(model.dynamics, None)
        if not representation or not dynamics:
            raise NotCompilable("a representation or dynamics without layers has no compiled equal")
        self.latent_dim = representation[-1].width
        trunk = translate(prediction.trunk, self.latent_dim)
        hidden = trunk[-1].width if trunk else self.latent_dim
        policy = translate(prediction.policy_head, hidden)
        value = translate(prediction.value_head, hidden)
        reward = translate(prediction.reward_head, hidden)
        if not policy or not value or not reward:
            raise NotCompilable("a head without layers has no compiled equal")
        value += translate(model.value_support, value[-1].width)
        reward += translate(model.reward_support, reward[-1].width)
        self.num_features, self.num_actions = num_inputs(representation[0]), policy[-1].width
        _require(dynamics[-1].width == self.latent_dim, model.dynamics, self.latent_dim)
        _require(num_inputs(dynamics[0]) == self.latent_dim + self.num_actions, model.dynamics, self.latent_dim)
        self.discount = discount
        self._parts = (representation, dynamics, trunk, policy, value, reward)  # keeps the parameters alive
        self._program = assemble(self._parts, max(self.num_features, self.latent_dim + self.num_actions))

    def __call__(self, latent: Array, action: Array) -> RecurrentOutput:
        """
        One step, without a search.

        :param latent: latent states. Shape ``[B, latent_dim]``.
        :param action: actions. Shape ``[B]``.
        :return: the answer as NumPy arrays.
        """
        latent = to_float32("latent", latent, (len(latent), self.latent_dim))
        one_hot = np.eye(self.num_actions, dtype=np.float32)[to_numpy(action)]
        leaves, latents = self._evaluate(DYNAMICS, np.concatenate((latent, one_hot), axis=1))
        leaves.discount[:] = self.discount
        return RecurrentOutput(leaves.reward, leaves.discount, leaves.prior_logits, leaves.value, latents)

    def initial_inference(self, features: Array) -> RootOutput:
        """
        :param features: inputs of the representation function. Shape ``[B, num_features]``.
        :return: what the model says about the roots, as NumPy arrays.
        """
        leaves, latents = self._evaluate(REPRESENTATION, to_float32("features", features, (len(features), self.num_features)))
        return RootOutput(leaves.prior_logits, leaves.value, latents)

    def run_simulations(
        self, tree: Tree, root: RootActions, settings: SearchSettings, root_latent: Array, leaves: Leaves
    ) -> int:
        """
        Grow the trees by all simulations.

        :param tree: the trees, of which the roots are expanded.
        :param root: what selection knows at the roots.
        :param settings: the constants of the search.
        :param root_latent: latent states of the roots. Shape ``[B, latent_dim]``.
        :param leaves: room for one simulation.
        :return: the first row for which the model's answer was not finite, which ended the search, or -1.
        """
        batch_size, num_nodes = tree.node_visits.shape
        check_shape("root's prior_logits", root.invalid, (batch_size, self.num_actions))
        slots = np.empty((num_nodes, batch_size, self.latent_dim), np.float32)
        slots[0] = to_float32("root's latent", root_latent, slots.shape[1:])
        inputs = np.empty((batch_size, self.latent_dim + self.num_actions), np.float32)
        leaves.discount[:] = self.discount
        return run_simulations(tree, root, settings, self._program, slots, inputs, leaves)

    def _evaluate(self, section: int, inputs: np.ndarray) -> tuple[Leaves, np.ndarray]:
        leaves = instantiate_leaves(len(inputs), self.num_actions)
        latents = np.empty((len(inputs), self.latent_dim), np.float32)
        evaluate(self._program, section, inputs, latents, leaves)
        return leaves, latents


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
    return layers.Program(
        np.array(table, np.int64),
        np.array([layer.constant for layer in every], np.float32),
        np.array(list(ends), np.int64),
        np.zeros((NUM_ROOMS, max(max_width, *(layer.width for layer in every)), LANES), np.float32),
    )
