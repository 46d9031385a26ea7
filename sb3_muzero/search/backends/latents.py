"""Latents of all nodes of a search, in NumPy or PyTorch."""

from typing import Any

import numpy as np
import torch

from sb3_muzero.common.pytree import tree_leaves, tree_map
from sb3_muzero.search.checks import check_shape, named_leaves, to_numpy


class NumpyLatents:
    """
    The latents of all nodes of one kind, each an array or a nest of arrays. Each leaf has slots of shape ``[N + 1, B, ...]``.

    The output of simulation ``t`` always goes to slot ``t + 1``. If a depth limit makes the simulation evaluate an existing
    leaf again, that slot is never read, because the search does not step from such a leaf.

    :param first: first latents, whose structure and types the others must have; slot 0. Shape ``[B, ...]``.
    :param num_nodes: number of nodes ``N + 1``.
    :param source: name of the function that computes the others, for messages.
    :param owner: whose the first ones are, for messages.
    """

    def __init__(self, first: Any, num_nodes: int, source: str = "recurrent_fn", owner: str = "the root's") -> None:
        self.first, self.source, self.owner = first, source, owner
        leaves = named_leaves("latent", first)
        self.names = {name: f"{source}'s {name}" for name in leaves}
        self.rows = np.arange(len(next(iter(leaves.values()))))
        self.slots = {name: self._allocate((num_nodes, *leaf.shape), leaf) for name, leaf in leaves.items()}
        # The same memory with one row for each node of each tree
        self.nodes = [slots.reshape(num_nodes * self.rows.size, *slots.shape[2:]) for slots in self.slots.values()]
        for name, leaf in leaves.items():
            self.slots[name][0] = leaf

    def read(self, node: np.ndarray, action: np.ndarray, rows: np.ndarray | None = None) -> tuple[Any, Any]:
        """
        :param node: a node of each of ``R`` trees. Shape ``[R]``, int64.
        :param action: actions or outcomes. Shape ``[R]``, int64.
        :param rows: the trees; None for all. Shape ``[R]``, int64.
        :return: latents of the nodes and actions, as arrays of the first ones' kind.
        """
        index = node * self.rows.size + (self.rows if rows is None else rows)
        return self._nest([nodes.take(index, axis=0) for nodes in self.nodes]), action.copy()

    def write(self, slot: int, latent: Any, rows: np.ndarray | None = None) -> None:
        """
        :param slot: slot to write to.
        :param latent: latents of ``R`` trees. Shape ``[R, ...]``.
        :param rows: the trees; None for all. Shape ``[R]``, int64.
        :raises ValueError: if they are not nested as the first ones, or not of their kind and shape.
        """
        leaves = named_leaves("latent", latent)
        if leaves.keys() != self.slots.keys():
            wanted = f"{self.owner}, {[*self.slots]}"
            raise ValueError(f"{self.source}'s latent must be nested as {wanted}, got {[*leaves]}")
        num_rows = self.rows.size if rows is None else rows.size
        where = slot if rows is None else (slot, rows)
        for name, leaf in leaves.items():
            slots = self.slots[name]
            check_shape(self.names[name], leaf, (num_rows, *slots.shape[2:]))
            self._check_type(self.names[name], leaf, slots)
            slots[where] = leaf

    def to_host(self, output: Any) -> list[np.ndarray]:
        """
        :param output: output of the model, as a named tuple whose last field are the latents.
        :return: its other fields on the host, which hold a number or several for each row.
        """
        return [to_numpy(column) for column in output[:-1]]

    def _nest(self, leaves: list[Any]) -> Any:
        """:return: the leaves, nested as the first latents"""
        remaining = iter(leaves)
        return tree_map(lambda _: next(remaining), self.first)

    def _allocate(self, shape: tuple[int, ...], like: Any) -> Any:
        return np.empty(shape, like.dtype)

    def _check_type(self, name: str, leaf: Any, slots: np.ndarray) -> None:
        if not isinstance(leaf, np.ndarray) or not np.can_cast(leaf.dtype, slots.dtype, casting="same_kind"):
            raise ValueError(f"{name} must be a NumPy array of {slots.dtype} as {self.owner}, got {leaf.dtype}")


class TorchLatents(NumpyLatents):
    """The same for tensors. On an accelerator, each simulation costs one transfer to it and one back."""

    def __init__(self, first: Any, num_nodes: int, source: str = "recurrent_fn", owner: str = "the root's") -> None:
        self.device = tree_leaves(first)[0].device
        super().__init__(first, num_nodes, source, owner)

    def read(self, node: np.ndarray, action: np.ndarray, rows: np.ndarray | None = None) -> tuple[Any, torch.Tensor]:
        index = node * self.rows.size + (self.rows if rows is None else rows)
        selected = torch.from_numpy(np.stack((index, action))).to(self.device)
        return self._nest([nodes.index_select(0, selected[0]) for nodes in self.nodes]), selected[1]

    def to_host(self, output: Any) -> list[np.ndarray]:
        if self.device.type == "cpu":
            return super().to_host(output)
        columns = [torch.as_tensor(column, device=self.device).float() for column in output[:-1]]
        packed = to_numpy(torch.cat([column.reshape(len(column), -1) for column in columns], dim=1))
        ends = np.cumsum([column[0].numel() for column in columns[:-1]])
        return [part.reshape(column.shape) for part, column in zip(np.split(packed, ends, axis=1), columns, strict=True)]

    def _allocate(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        return torch.empty(shape, dtype=like.dtype, device=like.device)

    def _check_type(self, name: str, leaf: Any, slots: Any) -> None:
        if not isinstance(leaf, torch.Tensor) or not torch.can_cast(leaf.dtype, slots.dtype):
            raise ValueError(f"{name} must be a tensor of {slots.dtype} as {self.owner}, got {leaf.dtype}")


def instantiate_latents(first: Any, num_nodes: int, *names: str) -> NumpyLatents:
    """
    :param first: first latents, in NumPy or PyTorch.
    :param num_nodes: number of nodes ``N + 1``.
    :param names: names for messages, see ``NumpyLatents``.
    :return: memory for the latents of all nodes.
    """
    kind = TorchLatents if isinstance(tree_leaves(first)[0], torch.Tensor) else NumpyLatents
    return kind(first, num_nodes, *names)
