"""Functions of a model on a GPU whose many small launches are recorded once and replayed as one."""

import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch as th
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map_only

from sb3_muzero.search.backends.numba.translate import NotCompilable, Snapshot

MAX_GRAPHS = 8
"""Each keeps memory of its own."""

ONE_AT_A_TIME = threading.RLock()
"""
PyTorch records one graph at a time, and replays none meanwhile: all share the generator of random numbers. What another thread
launches on its own while one is recorded must not draw from it. A signal's handler may plan amid either, hence the R.
"""


class CudaGraph:
    """
    A function for inputs of fixed shapes as a CUDA graph. It reads parameters and buffers where they are, so training may go
    on. What it returns it overwrites in the next call.

    :param function: What is recorded; it must not wait for the GPU
    :param inputs: Tensors of the shapes to record for, on a GPU, in tuples and dictionaries
    :raises RuntimeError: if the function cannot be recorded
    """

    WARM_UP = 3
    """Calls before the recording, in which libraries choose their algorithms."""

    def __init__(self, function: Callable, inputs: tuple) -> None:
        self.device = tensors_of(inputs)[0].device
        self.graph = th.cuda.CUDAGraph()
        with ONE_AT_A_TIME, th.inference_mode(False), th.cuda.device(self.device):
            static = tree_map_only(th.Tensor, th.clone, inputs)
            stream = th.cuda.Stream()
            stream.wait_stream(th.cuda.current_stream())
            with th.cuda.stream(stream), th.random.fork_rng([self.device]):  # a run that resumes records again
                for _ in range(self.WARM_UP):
                    function(*static)
            th.cuda.current_stream().wait_stream(stream)
            with th.cuda.graph(self.graph, capture_error_mode="thread_local"):  # other threads may wait for the GPU
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
    The graphs of one function of a model, one for each shape of its inputs that it was last asked for, as long as the model
    stays what it is.

    Only modules of PyTorch, SB3 and this package are recorded, which are known not to wait for the GPU nor to depend on
    anything but their tensors and constants; a model with any other, or with hooks (of gradients, too), launches each
    operation on its own.
    """

    KNOWN = ("torch.nn.modules.", "stable_baselines3.common.torch_layers", "sb3_muzero.")

    def __init__(self) -> None:
        self._snapshot: Snapshot | None = None
        self._used: list[nn.Module] = []
        self._graphs: dict[Any, Callable] = {}

    def get(self, function: Callable, inputs: tuple, used: Sequence[nn.Module], *constants: Any) -> Callable:
        """
        :param function: The function
        :param inputs: What it is about to be called with: tensors and nothing else, in tuples and dictionaries
        :param used: All modules that it uses
        :param constants: All numbers besides that it depends on
        :return: The graph to replay, or the function itself where it cannot be recorded or the inputs are not on a GPU
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
            except NotCompilable:
                return function
        parameters = [parameter for part in used for parameter in part.parameters()]
        if any(map(has_backward_hooks, [*parameters, *self._snapshot.modules])):
            return function
        trained = tuple(parameter.requires_grad for parameter in parameters)
        shapes = tuple((tuple(tensor.shape), tensor.dtype, tensor.device) for tensor in tensors)
        key = (repr(structure), shapes, trained, *constants)
        known = key in self._graphs
        self._graphs[key] = self._graphs.pop(key) if known else self._record(function, inputs)
        while len(self._graphs) > MAX_GRAPHS:
            del self._graphs[next(iter(self._graphs))]  # that was not used for longest
        return self._graphs[key]

    def _record(self, function: Callable, inputs: tuple) -> Callable:
        try:
            return CudaGraph(function, inputs)
        except RuntimeError as error:
            warnings.warn(f"Every operation is launched on its own, since no CUDA graph could be recorded: {error}")
            return function


class RecordedFunctions(threading.local):
    """
    The graphs of all functions of a model. Each thread has its own, since a graph overwrites what it returned, and records
    them when it first needs them: plan in threads that stay. Deep copies and pickles begin without any.
    """

    def __init__(self) -> None:
        self.of_thread: dict[tuple[str, str], CudaGraphs] = defaultdict(CudaGraphs)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()


def has_backward_hooks(part: Any) -> bool:
    """
    :param part: A module or a parameter
    :return: Whether something looks at its gradients, which in a graph nobody could
    """
    names = ("_backward_hooks", "_backward_pre_hooks", "_post_accumulate_grad_hooks")
    return any(getattr(part, name, None) for name in names)


def tensors_of(inputs: tuple) -> list[th.Tensor]:
    """
    :param inputs: Tensors, in tuples and dictionaries
    :return: The tensors
    """
    return tree_flatten(inputs)[0]
