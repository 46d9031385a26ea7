"""Functions of a model as CUDA graphs, which replay many small kernel launches as one."""

import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch as th
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map_only

from sb3_muzero.search.backends.snapshot import Snapshot, UnsupportedModelError

MAX_GRAPHS = 8
"""Graphs to keep for each function; each has its own memory."""

ONE_AT_A_TIME = threading.RLock()
"""
PyTorch captures one graph at a time and replays none meanwhile, because all graphs share the random number generator. Other
threads must not draw random numbers on the GPU during a capture. Reentrant, because a signal handler may plan.
"""


class CudaGraph:
    """
    A function for inputs of fixed shapes as a CUDA graph. It reads parameters and buffers in place, so the model can be
    trained further. Each call overwrites the output of the previous one.

    :param function: Function to capture; it must not synchronise with the GPU
    :param inputs: Nests of tensors on a GPU, of the shapes to capture the graph for
    :raises RuntimeError: if the function cannot be captured
    """

    WARM_UP = 3
    """Calls before the capture, in which libraries choose their algorithms."""

    def __init__(self, function: Callable, inputs: tuple) -> None:
        self.device = tensors_of(inputs)[0].device
        self.graph = th.cuda.CUDAGraph()
        with ONE_AT_A_TIME, th.inference_mode(False), th.cuda.device(self.device):
            static = tree_map_only(th.Tensor, th.clone, inputs)
            stream = th.cuda.Stream()
            stream.wait_stream(th.cuda.current_stream())
            with th.cuda.stream(stream), th.random.fork_rng([self.device]):  # a resumed run captures again
                for _ in range(self.WARM_UP):
                    function(*static)
            th.cuda.current_stream().wait_stream(stream)
            with th.cuda.graph(self.graph, capture_error_mode="thread_local"):  # other threads may synchronise
                self.output = function(*static)
        self.inputs = tensors_of(static)

    def __call__(self, *inputs: Any) -> Any:
        for static, given in zip(self.inputs, tensors_of(inputs), strict=True):
            static.copy_(given)
        with ONE_AT_A_TIME, th.cuda.device(self.device):
            self.graph.replay()
        return self.output


class CudaGraphs:
    """
    The CUDA graphs of one function of a model, one for each of the last ``MAX_GRAPHS`` shapes of its inputs. They are captured
    again when the model's structure changes.

    Only models of modules from PyTorch, SB3 and this package are captured: these do not synchronise with the GPU and depend on
    nothing but their tensors and constants. Models with other modules, or with hooks, run without a graph.
    """

    KNOWN = ("torch.nn.modules.", "stable_baselines3.common.torch_layers", "sb3_muzero.")

    def __init__(self) -> None:
        self._snapshot: Snapshot | None = None
        self._used: list[nn.Module] = []
        self._graphs: dict[Any, Callable] = {}

    def get(self, function: Callable, inputs: tuple, used: Sequence[nn.Module], *constants: Any) -> Callable:
        """
        :param function: The function
        :param inputs: Its next inputs, nests of tensors
        :param used: All modules that it uses
        :param constants: All other numbers that it depends on
        :return: The graph, or the function itself if it cannot be captured or the inputs are not on a GPU
        """
        tensors, structure = tree_flatten(inputs)
        if not all(tensor.is_cuda for tensor in tensors):
            return function
        if self._snapshot is None or self._used != list(used) or not self._snapshot.holds():
            modules = [module for part in used for module in part.modules()]
            if not all(type(module).__module__.startswith(self.KNOWN) for module in modules):
                return function
            try:
                self._snapshot, self._used, self._graphs = Snapshot(modules, []), list(used), {}
            except UnsupportedModelError:
                return function
        parameters = [parameter for part in used for parameter in part.parameters()]
        if any(map(has_backward_hooks, [*parameters, *self._snapshot.modules])):
            return function
        trained = tuple(parameter.requires_grad for parameter in parameters)
        shapes = tuple((tuple(tensor.shape), tensor.dtype, tensor.device) for tensor in tensors)
        key = (repr(structure), shapes, trained, *constants)
        known = key in self._graphs
        self._graphs[key] = self._graphs.pop(key) if known else self._capture(function, inputs)
        while len(self._graphs) > MAX_GRAPHS:
            del self._graphs[next(iter(self._graphs))]  # the least recently used
        return self._graphs[key]

    def _capture(self, function: Callable, inputs: tuple) -> Callable:
        try:
            return CudaGraph(function, inputs)
        except RuntimeError as error:
            warnings.warn(f"Running without a CUDA graph, because it could not be captured: {error}")
            return function


class CudaGraphCache(threading.local):
    """
    The CUDA graphs of all functions of a policy. Each thread has its own, because a graph overwrites its previous output;
    use long-lived threads, since each captures the graphs again. Copies and pickles start empty.
    """

    def __init__(self) -> None:
        self.of_thread: dict[tuple[str, str], CudaGraphs] = defaultdict(CudaGraphs)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()


def has_backward_hooks(part: Any) -> bool:
    """
    :param part: A module or a parameter
    :return: Whether it has backward hooks, which a graph would not call
    """
    names = ("_backward_hooks", "_backward_pre_hooks", "_post_accumulate_grad_hooks")
    return any(getattr(part, name, None) for name in names)


def tensors_of(inputs: tuple) -> list[th.Tensor]:
    """
    :param inputs: Nests of tensors
    :return: Their leaves
    """
    return tree_flatten(inputs)[0]
