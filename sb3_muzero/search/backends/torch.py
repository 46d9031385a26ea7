"""The default backend: the model is a Python function of tensors or NumPy arrays, called once per simulation for all roots."""

from collections.abc import Callable
from typing import Any

import torch

from sb3_muzero.search.backends.latents import instantiate_latents
from sb3_muzero.search.checks import check_dense, check_leaves, check_numbers, check_roots
from sb3_muzero.search.kernels import expand_and_backup, initialize_roots, select_leaves, select_root_actions
from sb3_muzero.search.state import Leaves, Roots, SearchSettings, instantiate_leaves
from sb3_muzero.search.tree import Tree
from sb3_muzero.search.types import RecurrentOutput


def check_output_class(name: str, output: Any, output_class: Any) -> None:
    """
    :param name: name of a function of the model.
    :param output: its output.
    :param output_class: named tuple that it must be.
    :raises ValueError: if it is not, or if its tensors are not dense.
    """
    if not isinstance(output, output_class):
        article = "an" if output_class.__name__[0] in "AEIOU" else "a"
        raise ValueError(f"{name} must return {article} {output_class.__name__}, got a {type(output).__name__}")
    for field, part in output._asdict().items():
        check_dense(f"{name}'s {field}", part)


class ModelFunction:
    """
    A function of the model whose outputs are checked, but for latents and for what the numbers are.

    :param name: name of the function, for messages.
    :param function: the function.
    :param output_class: named tuple of its outputs, of which the latents are the last.
    :param num_edges: number of logits of a node.
    """

    def __init__(self, name: str, function: Callable[[Any, Any], Any], output_class: Any, num_edges: int) -> None:
        self.name, self.function, self.output_class = name, function, output_class
        fields = output_class._fields[:-1]
        self.shapes = [(f"{name}'s {field}", (num_edges,) if field.endswith("logits") else ()) for field in fields]
        self.is_known = False

    def __call__(self, latent: Any, action: Any) -> Any:
        """
        :param latent: latents of ``R`` nodes.
        :param action: actions or outcomes. Shape ``[R]``, int64.
        :return: the output of the function.
        :raises ValueError: if it is not of its class, or a field not of its shape or not of real numbers.
        """
        output = self.function(latent, action)
        if not (self.is_known and isinstance(output, self.output_class)):
            check_output_class(self.name, output, self.output_class)
            self.is_known = True
        (size,) = action.shape
        for (name, shape), numbers in zip(self.shapes, output, strict=False):
            check_numbers(name, numbers, (size, *shape))
        return output


class TorchBackend:
    """
    Searches with a model in PyTorch or NumPy.

    :param recurrent_fn: the model.
    """

    def __init__(self, recurrent_fn: Callable[[Any, Any], RecurrentOutput]) -> None:
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
        leaves = instantiate_leaves(num_roots, settings.num_edges)
        if initialize_roots(tree, roots, settings, 0, num_roots, leaves.scores[0]) >= 0:
            check_roots(roots, settings)
        with torch.inference_mode():
            evaluate = self.evaluator(root_latent, settings)
            for simulation in range(settings.num_nodes - 1):
                select_leaves(tree, roots, settings, simulation, 0, num_roots, leaves)
                evaluate(simulation + 1, leaves)
                if expand_and_backup(tree, settings, 0, num_roots, leaves) >= 0:
                    check_leaves(leaves, settings)
        select_root_actions(tree, roots, settings, 0, num_roots, leaves.scores[0])

    def evaluator(self, root_latent: Any, settings: SearchSettings) -> Callable[[int, Leaves], None]:
        """
        :param root_latent: latent states of the roots.
        :param settings: settings of the search.
        :return: ``evaluate(node, leaves)``, which computes the nodes that a simulation adds and writes them into ``leaves``.
        """
        step = ModelFunction("recurrent_fn", self.recurrent_fn, RecurrentOutput, settings.num_actions)
        latents = self.latents = instantiate_latents(root_latent, settings.num_nodes)

        def evaluate(node: int, leaves: Leaves) -> None:
            output = step(*latents.read(leaves.parent, leaves.action))
            latents.write(node, output.latent)
            leaves.reward[:], leaves.discount[:], leaves.prior_logits[:], leaves.value[:] = latents.to_host(output)

        return evaluate
