"""A latent model of MLPs on the CPU as a ``recurrent_fn`` with which the whole search runs in compiled code."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from sb3_muzero.search import layers
from sb3_muzero.search.base import Array, RecurrentOutput, RootOutput
from sb3_muzero.search.checks import to_float32, to_numpy
from sb3_muzero.search.kernels import Leaves, Roots, SearchSettings, instantiate_leaves
from sb3_muzero.search.lanes import LANES
from sb3_muzero.search.layers import BLOCK
from sb3_muzero.search.models import check_answer, check_roots
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
    ``trunk``, ``policy_head``, ``value_head`` and ``reward_head``; the supports turn logits into scalars. The whole is an
    ``nn.Module`` too.
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


def translate(module: nn.Module, width: int | None, visited: list[nn.Module]) -> list[Layer]:
    """
    :param module: a module.
    :param width: number of its inputs, where known.
    :param visited: receives the module and all that it consists of.
    :return: the layers that compute the same.
    :raises NotCompilable: if there are none.
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


class Snapshot:
    """
    What some modules consist of, to notice when they no longer do; a comparison takes a tenth of the time of a translation.

    :param modules: the modules, none of which has hooks.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self._states = [module.__dict__ for module in modules]
        self._hooks = [state[name] for state in self._states for name in ("_forward_hooks", "_forward_pre_hooks")]
        self._children = [state["_modules"] for state in self._states if state["_modules"]]
        self._kept_children = [dict(children) for children in self._children]
        tensors = [state[name] for state in self._states for name in ("_parameters", "_buffers")]
        self._tensors = [(group, name) for group in tensors for name in group]
        self._constants = [(state, name) for state in self._states for name in state if name[0] != "_" and name != "training"]
        self._kept = self._read()

    def _read(self) -> tuple[list[Any], ...]:
        return (
            [None if (tensor := group[name]) is None else tensor.data_ptr() for group, name in self._tensors],
            [state[name] for state, name in self._constants],
            ["forward" in state for state in self._states],
        )

    def holds(self) -> bool:
        """
        :return: whether nothing has changed but the numbers in the tensors.
        """
        if any(self._hooks) or self._children != self._kept_children:
            return False
        try:
            return self._read() == self._kept
        except KeyError:
            return False


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


class Workspace(NamedTuple):
    """
    What a thread searches in.

    :param program: the model, with rooms of its own.
    :param latents: of all nodes of a block. Shape ``[N + 1 or more, BLOCK, padded latent_dim]``.
    :param parents: addresses of some of them. Shape ``[BLOCK]``.
    :param leaves: one simulation of a block.
    """

    program: layers.Program
    latents: np.ndarray
    parents: np.ndarray
    leaves: Leaves


def instantiate_workspace(program: layers.Program, num_nodes: int, latent_dim: int, num_actions: int) -> Workspace:
    """
    :param program: the model.
    :param num_nodes: nodes of a tree.
    :param latent_dim: units of a latent.
    :param num_actions: number of actions.
    :return: room for a search.
    """
    return Workspace(
        program._replace(rooms=np.zeros_like(program.rooms)),
        np.zeros((num_nodes, BLOCK, rounded_up(latent_dim)), np.float32),
        np.zeros(BLOCK, np.int64),
        instantiate_leaves(BLOCK, num_actions),
    )


def rounded_up(width: int) -> int:
    """
    :param width: a number of units.
    :return: the least whole number of ``LANES`` that holds them.
    """
    return -(-width // LANES) * LANES


class CompiledModel:
    """
    A model that plans in compiled code, as a ``recurrent_fn``. It reads the parameters where PyTorch keeps them, so the model
    may be trained on between searches; but ask ``is_current`` before each whether they are still there.

    :param model: the model.
    :param discount: factor from the value of the next state to the value of this one.
    :raises NotCompilable: if some part of it has no equal in compiled code.
    """

    def __init__(self, model: MLPModel, discount: float) -> None:
        prediction = model.prediction
        if kernel_of(prediction) != "prediction":
            raise NotCompilable(f"a {type(prediction).__qualname__} has no compiled equal")
        visited = [model, prediction]
        representation = translate(model.input_norm, None, visited)
        representation += translate(model.representation, representation[-1].width if representation else None, visited)
        dynamics = translate(model.dynamics, None, visited)
        if not representation or not dynamics:
            raise NotCompilable("a representation or dynamics without layers has no compiled equal")
        self.latent_dim = representation[-1].width
        trunk = translate(prediction.trunk, self.latent_dim, visited)
        hidden = trunk[-1].width if trunk else self.latent_dim
        policy = translate(prediction.policy_head, hidden, visited)
        value = translate(prediction.value_head, hidden, visited)
        reward = translate(prediction.reward_head, hidden, visited)
        if not policy or not value or not reward:
            raise NotCompilable("a head without layers has no compiled equal")
        value += translate(model.value_support, value[-1].width, visited)
        reward += translate(model.reward_support, reward[-1].width, visited)
        self.num_features, self.num_actions = num_inputs(representation[0]), policy[-1].width
        _require(dynamics[-1].width == self.latent_dim, model.dynamics, self.latent_dim)
        _require(num_inputs(dynamics[0]) == self.latent_dim + self.num_actions, model.dynamics, self.latent_dim)
        self.model = model
        self.discount = discount
        parts = (representation, dynamics, trunk, policy, value, reward)
        self._snapshot = Snapshot(visited)
        self._program = assemble(parts, max(self.num_features, self.latent_dim + self.num_actions))
        self._workspaces: list[Workspace] = []

    def is_current(self) -> bool:
        """
        :return: whether the model still is what it was when this was made, but for the numbers in its tensors.
        """
        return self._snapshot.holds()

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

    def search(self, tree: Tree, roots: Roots, settings: SearchSettings, root_latent: Array) -> None:
        """
        Grow the trees by all simulations and conclude, in as many threads as PyTorch uses. Each thread has blocks of roots of
        its own, so that the result does not depend on their number.

        :param tree: room for the trees.
        :param roots: what is given at the roots, and room for what the search says.
        :param settings: the sizes and constants of the search.
        :param root_latent: latent states of the roots. Shape ``[B, latent_dim]``.
        :raises ValueError: if the roots or an answer of the model are not finite.
        """
        batch_size = roots.value.size
        if settings.num_actions != self.num_actions:
            raise ValueError(f"root's prior_logits must be of {self.num_actions} actions, got {settings.num_actions}")
        root_latents = to_float32("root's latent", root_latent, (batch_size, self.latent_dim))

        def search(first_row: int, end_row: int) -> None:
            with self._workspace(settings.num_nodes) as workspace:
                row = run_simulations(tree, roots, settings, root_latents, *workspace, first_row, end_row)
                if row >= 0:
                    check_roots(roots, settings)
                    check_answer(workspace.leaves, row - row % BLOCK)

        num_blocks = -(-batch_size // BLOCK)
        num_threads = min(torch.get_num_threads(), num_blocks)
        if num_threads == 1:
            search(0, batch_size)
            return
        ends = [min(num_blocks * (thread + 1) // num_threads * BLOCK, batch_size) for thread in range(num_threads)]
        with ThreadPoolExecutor(num_threads) as threads:
            list(threads.map(search, [0, *ends[:-1]], ends))

    def _evaluate(self, section: int, inputs: np.ndarray) -> tuple[Leaves, np.ndarray]:
        leaves = instantiate_leaves(len(inputs), self.num_actions)
        latents = np.empty((len(inputs), self.latent_dim), np.float32)
        with self._workspace() as workspace:
            evaluate(workspace.program, section, inputs, latents, leaves)
        return leaves, latents

    @contextmanager
    def _workspace(self, num_nodes: int = 0) -> Iterator[Workspace]:
        """What a search of so many nodes works in, and no other thread meanwhile."""
        try:
            workspace = self._workspaces.pop()
        except IndexError:
            workspace = instantiate_workspace(self._program, 0, self.latent_dim, self.num_actions)
        if len(workspace.latents) < num_nodes:
            workspace = instantiate_workspace(self._program, num_nodes, self.latent_dim, self.num_actions)
        workspace.leaves.discount[:] = self.discount
        yield workspace
        self._workspaces.append(workspace)


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
        np.zeros((NUM_ROOMS, layers.GROUPS, rounded_up(max(max_width, *(layer.width for layer in every))), LANES), np.float32),
    )
