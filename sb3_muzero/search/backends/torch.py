"""The default backend: the model is a Python function of tensors or NumPy arrays, called once per simulation for all roots."""

from typing import Any

import numpy as np
import torch

from sb3_muzero.common.pytree import tree_leaves, tree_map
from sb3_muzero.search.checks import check_dense, check_leaves, check_numbers, check_roots, check_shape, named_leaves, to_numpy
from sb3_muzero.search.kernels import expand_and_backup, initialize_roots, select_leaves, select_root_actions
from sb3_muzero.search.state import Leaves, Roots, SearchSettings, instantiate_leaves
from sb3_muzero.search.tree import Tree
from sb3_muzero.search.types import RecurrentFn, RecurrentOutput


class TorchBackend:
    """
    Searches with a model in PyTorch or NumPy.

    :param recurrent_fn: the model.
    """

    def __init__(self, recurrent_fn: RecurrentFn) -> None:
        self.recurrent_fn = recurrent_fn

    def run_search(self, tree: Tree, roots: Roots, settings: SearchSettings, root_latent: Any) -> None:
        """
        Run all simulations and select the root actions.

        :param tree: flat trees, uninitialized; receive the search trees.
        :param roots: roots; receive the results of the search.
        :param settings: settings of the search.
        :param root_latent: latent states of the roots: an array, a tensor, or a nest of such. Shape ``[B, ...]``.
        :raises ValueError: if the roots or an output of the model are invalid.
        """
        num_roots = roots.value.size
        leaves = instantiate_leaves(num_roots, settings.num_actions)
        if initialize_roots(tree, roots, settings, 0, num_roots, leaves.scores[0]) >= 0:
            check_roots(roots, settings)
        with torch.inference_mode():
            kind = TorchLatents if isinstance(tree_leaves(root_latent)[0], torch.Tensor) else NumpyLatents
            latents = self.latents = kind(root_latent, settings.num_nodes)
            for simulation in range(settings.num_nodes - 1):
                select_leaves(tree, roots, settings, simulation, 0, num_roots, leaves)
                self._evaluate(latents, simulation, leaves)
                if expand_and_backup(tree, settings, 0, num_roots, leaves) >= 0:
                    check_leaves(leaves)
        select_root_actions(tree, roots, settings, 0, num_roots, leaves.scores[0])

    def _evaluate(self, latents: "NumpyLatents", simulation: int, leaves: Leaves) -> None:
        """Step from ``leaves.parent`` with ``leaves.action``, store the latents and write the rest into ``leaves``."""
        output = self.recurrent_fn(*latents.read(leaves.parent, leaves.action))
        if not isinstance(output, RecurrentOutput):
            raise ValueError(f"recurrent_fn must return a RecurrentOutput, got a {type(output).__name__}")
        if simulation == 0:
            for field, part in output._asdict().items():
                check_dense(f"recurrent_fn's {field}", part)
        for name in ("reward", "discount", "prior_logits", "value"):
            check_numbers(f"recurrent_fn's {name}", getattr(output, name), getattr(leaves, name).shape)
        latents.write(simulation + 1, output.latent)
        leaves.reward[:], leaves.discount[:], leaves.prior_logits[:], leaves.value[:] = latents.to_host(output)


class NumpyLatents:
    """
    The latents of all nodes, each an array or a nest of arrays. Each leaf has slots of shape ``[N + 1, B, ...]``.

    The output of simulation ``t`` always goes to slot ``t + 1``. If a depth limit makes the simulation evaluate an existing
    leaf again, that slot is never read, because the search does not step from such a leaf.

    :param root_latent: latent states of the roots. Shape ``[B, ...]``.
    :param num_nodes: number of nodes ``N + 1``.
    """

    def __init__(self, root_latent: Any, num_nodes: int) -> None:
        self.root_latent = root_latent
        leaves = named_leaves("latent", root_latent)
        self.rows = np.arange(len(next(iter(leaves.values()))))
        self.slots = {name: self._allocate((num_nodes, *leaf.shape), leaf) for name, leaf in leaves.items()}
        # The same memory with one row for each node of each tree
        self.nodes = [slots.reshape(num_nodes * self.rows.size, *slots.shape[2:]) for slots in self.slots.values()]
        for name, leaf in leaves.items():
            self.slots[name][0] = leaf

    def read(self, node: np.ndarray, action: np.ndarray) -> tuple[Any, Any]:
        """
        :param node: a node of each tree. Shape ``[B]``, int64.
        :param action: actions. Shape ``[B]``, int64.
        :return: latents of the nodes and actions, as arrays of the roots' kind.
        """
        index = node * self.rows.size + self.rows
        return self._nest([nodes.take(index, axis=0) for nodes in self.nodes]), action.copy()

    def write(self, slot: int, latent: Any) -> None:
        """
        :param slot: slot to write to.
        :param latent: latents. Shape ``[B, ...]``.
        :raises ValueError: if they are not nested as the roots', or not of their kind and shape.
        """
        leaves = named_leaves("latent", latent)
        if leaves.keys() != self.slots.keys():
            raise ValueError(f"recurrent_fn's latent must be nested as the root's, {[*self.slots]}, got {[*leaves]}")
        for name, leaf in leaves.items():
            slots = self.slots[name]
            check_shape(f"recurrent_fn's {name}", leaf, tuple(slots.shape[1:]))
            self._check_type(f"recurrent_fn's {name}", leaf, slots)
            slots[slot] = leaf

    def to_host(self, output: RecurrentOutput) -> list[np.ndarray]:
        """
        :param output: output of the model.
        :return: its fields except for the latents on the host.
        """
        return [to_numpy(column) for column in output[:-1]]

    def _nest(self, leaves: list[Any]) -> Any:
        """:return: the leaves, nested as the roots' latent"""
        remaining = iter(leaves)
        return tree_map(lambda _: next(remaining), self.root_latent)

    def _allocate(self, shape: tuple[int, ...], like: Any) -> Any:
        return np.empty(shape, like.dtype)

    def _check_type(self, name: str, leaf: Any, slots: np.ndarray) -> None:
        if not isinstance(leaf, np.ndarray) or not np.can_cast(leaf.dtype, slots.dtype, casting="same_kind"):
            raise ValueError(f"{name} must be a NumPy array of {slots.dtype} as the root's, got {leaf.dtype}")


class TorchLatents(NumpyLatents):
    """The same for tensors. On an accelerator, each simulation costs one transfer to it and one back."""

    def __init__(self, root_latent: Any, num_nodes: int) -> None:
        self.device = tree_leaves(root_latent)[0].device
        super().__init__(root_latent, num_nodes)

    def read(self, node: np.ndarray, action: np.ndarray) -> tuple[Any, torch.Tensor]:
        index = node * self.rows.size + self.rows
        selected = torch.from_numpy(np.stack((index, action))).to(self.device)
        return self._nest([nodes.index_select(0, selected[0]) for nodes in self.nodes]), selected[1]

    def to_host(self, output: RecurrentOutput) -> list[np.ndarray]:
        if self.device.type == "cpu":
            return super().to_host(output)
        columns = [torch.as_tensor(column, device=self.device).float() for column in output[:-1]]
        packed = to_numpy(torch.cat([column.reshape(self.rows.size, -1) for column in columns], dim=1))
        return [packed[:, 0], packed[:, 1], packed[:, 2:-1], packed[:, -1]]

    def _allocate(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        return torch.empty(shape, dtype=like.dtype, device=like.device)

    def _check_type(self, name: str, leaf: Any, slots: Any) -> None:
        if not isinstance(leaf, torch.Tensor) or not torch.can_cast(leaf.dtype, slots.dtype):
            raise ValueError(f"{name} must be a tensor of {slots.dtype} as the root's, got {leaf.dtype}")
