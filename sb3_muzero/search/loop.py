"""What all searches share: reading the root states, building the trees by a backend, and summarizing the result."""

from typing import Any, Protocol

import numpy as np

from sb3_muzero.search.backends.torch import TorchBackend
from sb3_muzero.search.checks import check_action_masks, check_count, check_real, check_root_latent, to_float32
from sb3_muzero.search.state import NODE_SCOPE, TREE_SCOPE, Roots, SearchSettings
from sb3_muzero.search.tree import ROOT_INDEX, Tree, flatten, instantiate_tree
from sb3_muzero.search.types import RecurrentFn, RootOutput, SearchOutput

POSITIVE = (1e-30, 1e18)
"""Range of positive settings: the kernels compute in float32, divide by these numbers and multiply by two of them."""

QVALUE_SCOPES = {"node": NODE_SCOPE, "tree": TREE_SCOPE}


class Backend(Protocol):
    """What runs the simulations of a search. A ``recurrent_fn`` that has this method is its own backend."""

    def run_search(self, tree: Tree, roots: Roots, settings: SearchSettings, root_latent: Any) -> None:
        """
        Run all simulations and select the root actions.

        :param tree: flat trees, uninitialized; receive the search trees.
        :param roots: roots; receive the results of the search.
        :param settings: settings of the search.
        :param root_latent: latent states of the roots.
        :raises ValueError: if the roots or an output of the model are invalid.
        """


def common_settings(
    num_simulations: Any, num_actions: int, max_depth: Any, qvalue_scope: Any, min_qvalue_range: Any
) -> tuple[int, int, int, int, float]:
    """
    :param num_simulations: number of simulations.
    :param num_actions: number of actions.
    :param max_depth: maximum number of edges from the root to a leaf; None for no limit.
    :param qvalue_scope: "node" or "tree".
    :param min_qvalue_range: minimum range to divide Q values by.
    :return: the first fields of ``SearchSettings``, which all searches have in common.
    :raises ValueError: naming the setting, what was given and what is allowed.
    """
    num_simulations = check_count("num_simulations", num_simulations)
    if qvalue_scope not in QVALUE_SCOPES:
        raise ValueError(f"`qvalue_scope` must be one of {sorted(QVALUE_SCOPES)}, got {qvalue_scope!r}")
    max_depth = num_simulations if max_depth is None else check_count("max_depth", max_depth)
    min_qvalue_range = check_real("min_qvalue_range", min_qvalue_range, *POSITIVE)
    return num_simulations + 1, num_actions, QVALUE_SCOPES[qvalue_scope], max_depth, min_qvalue_range


def read_root(root: RootOutput, action_masks: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Check the types and shapes of the roots; the backend checks the numbers.

    :param root: the model's output for the root states.
    :param action_masks: True for legal actions; None if all are legal. Shape ``[B, A]``.
    :return: prior logits ``[B, A]`` and values ``[B]`` as float32, and action masks ``[B, A]``, on the host.
    :raises ValueError: naming the field and what is wrong.
    """
    if not isinstance(root, RootOutput):
        raise ValueError(f"root must be a RootOutput, got a {type(root).__name__}")
    shape = tuple(getattr(root.prior_logits, "shape", ()))
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"root's prior_logits must be of shape [B, A] with at least one root and action, got {list(shape)}")
    check_root_latent(root.latent, shape[0])
    prior_logits = to_float32("root's prior_logits", root.prior_logits, shape)
    value = to_float32("root's value", root.value, shape[:1])
    masks = ~np.zeros(shape, np.bool_) if action_masks is None else check_action_masks(action_masks, *shape)
    return prior_logits, value, masks


def build_trees(roots: Roots, settings: SearchSettings, recurrent_fn: RecurrentFn, root_latent: Any) -> Tree:
    """
    Run the simulations by the backend of the model.

    :param roots: roots; receive the results of the search.
    :param settings: settings of the search.
    :param recurrent_fn: the model.
    :param root_latent: latent states of the roots.
    :return: the search trees.
    """
    tree = instantiate_tree(roots.value.size, settings.num_nodes, settings.num_actions)
    backend = recurrent_fn if hasattr(recurrent_fn, "run_search") else TorchBackend(recurrent_fn)
    backend.run_search(flatten(tree), roots, settings, root_latent)
    return tree


def summarize(tree: Tree, action: np.ndarray, action_weights: np.ndarray) -> SearchOutput:
    """
    :param tree: search trees.
    :param action: selected actions. Shape ``[B]``.
    :param action_weights: policy targets. Shape ``[B * A]``.
    :return: the result of the search.
    """
    return SearchOutput(
        action=action,
        action_weights=action_weights.reshape(len(action), -1),
        visit_counts=tree.children_visits[:, ROOT_INDEX],
        qvalues=tree.children_qvalues[:, ROOT_INDEX],
        value=tree.node_values[:, ROOT_INDEX],
        tree=tree,
    )
