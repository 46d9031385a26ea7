"""A model on a GPU as a ``recurrent_fn`` whose many small launches are recorded once and replayed as one."""

import warnings
from typing import Any

import torch
from torch import nn

from sb3_muzero.search.base import RecurrentFn, RecurrentOutput
from sb3_muzero.search.translation import NotCompilable, Snapshot

MAX_GRAPHS = 8
"""Each keeps memory of its own."""


class CudaGraph:
    """
    One step for a fixed number of rows as a CUDA graph. It reads parameters and buffers where they are, so training may go on.
    What it returns it overwrites in the next step.

    :param recurrent_fn: the model; it must not wait for the GPU.
    :param latent: latent states of the shape to record for, on a GPU. Shape ``[B, ...]``.
    :raises RuntimeError: if the model cannot be recorded.
    """

    WARM_UP = 3
    """Steps before the recording, in which libraries choose their algorithms."""

    def __init__(self, recurrent_fn: RecurrentFn, latent: torch.Tensor) -> None:
        self.latent = latent.clone()
        self.action = torch.zeros(len(latent), dtype=torch.int64, device=latent.device)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(latent.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(self.WARM_UP):
                    recurrent_fn(self.latent, self.action)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self.graph):
                self.output = recurrent_fn(self.latent, self.action)

    def __call__(self, latent: torch.Tensor, action: torch.Tensor) -> RecurrentOutput:
        self.latent.copy_(latent)
        self.action.copy_(action)
        with torch.cuda.device(latent.device):
            self.graph.replay()
        return self.output


class CudaGraphs:
    """
    The graphs of one model, one for each number of rows that it was last asked for, as long as the model stays what it is.

    Only modules of PyTorch and of this package are recorded, which are known not to wait for the GPU nor to depend on anything
    but their tensors and constants; a model with any other, or with hooks, launches each operation on its own.
    """

    KNOWN = ("torch.nn.modules.", "sb3_muzero.")

    def __init__(self) -> None:
        self._snapshot: Snapshot | None = None
        self._used: list[nn.Module] = []
        self._graphs: dict[Any, RecurrentFn] = {}

    def get(self, recurrent_fn: RecurrentFn, latent: torch.Tensor, used: list[nn.Module], *constants: Any) -> RecurrentFn:
        """
        :param recurrent_fn: the model as a function.
        :param latent: latent states to step from. Shape ``[B, ...]``.
        :param used: all modules that the function uses.
        :param constants: all numbers besides that it depends on.
        :return: the graph to replay, or the function itself where it cannot be recorded.
        """
        if self._snapshot is None or self._used != used or not self._snapshot.holds():
            modules = [module for part in used for module in (part.modules() if isinstance(part, nn.Module) else [part])]
            if not all(type(module).__module__.startswith(self.KNOWN) for module in modules):
                return recurrent_fn
            try:
                self._snapshot, self._used, self._graphs = Snapshot(modules, []), used, {}
            except NotCompilable:
                return recurrent_fn
        key = (tuple(latent.shape), latent.dtype, latent.device, *constants)
        if key not in self._graphs:
            self._graphs[key] = self._record(recurrent_fn, latent)
            while len(self._graphs) > MAX_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
        return self._graphs[key]

    def _record(self, recurrent_fn: RecurrentFn, latent: torch.Tensor) -> RecurrentFn:
        try:
            return CudaGraph(recurrent_fn, latent)
        except RuntimeError as error:
            warnings.warn(f"Planning launches every operation on its own, since no CUDA graph could be recorded: {error}")
            return recurrent_fn
