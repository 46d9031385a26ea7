"""What all searches share: reading the root states, checking the settings, and running the simulations by a backend."""

from typing import Any, Protocol

import numpy as np

from sb3_muzero.search.backends.chance import ChanceBackend
from sb3_muzero.search.backends.torch import TorchBackend
from sb3_muzero.search.checks import check_action_masks, check_dense, check_latent, check_setting, to_float32
from sb3_muzero.search.state import Roots, SearchSettings
from sb3_muzero.search.tree import ROOT_INDEX, Tree, flatten, instantiate_tree
from sb3_muzero.search.types import ChanceModel, RecurrentFn, RootOutput, SearchOutput


class Backend(Protocol):
    """
    What runs the simulations of a search. A ``recurrent_fn`` that has this method is its own backend. Where the model has
    chance, it also has the number of outcomes, ``num_outcomes``.
    """

    def run_search(self, tree: Tree, roots: Roots, settings: SearchSettings, root_latent: Any) -> None:
        """
        Run all simulations and select the root actions.

        :param tree: flat trees, uninitialized; receive the search trees.
        :param roots: roots; receive the results of the search.
        :param settings: settings of the search.
        :param root_latent: latent states of the roots.
        :raises ValueError: if the roots or an output of the model are invalid.
        """


def search_settings(
    rules: tuple[int, int, int], num_simulations: Any, num_actions: int, max_depth: Any, **settings: Any
) -> SearchSettings:
    """
    :param rules: selection rules of the root and of interior nodes, and the policy target.
    :param num_simulations: number of simulations.
    :param num_actions: number of actions.
    :param max_depth: maximum number of edges from the root to a leaf; None for no limit.
    :param settings: further settings of the search, as the user gave them.
    :return: the settings, checked.
    :raises ValueError: naming the setting, what was given and what is allowed.
    """
    num_simulations = check_setting("num_simulations", num_simulations)
    max_depth = num_simulations if max_depth is None else check_setting("max_depth", max_depth)
    checked = {name: check_setting(name, value) for name, value in settings.items()}
    return SearchSettings(num_simulations + 1, num_actions, num_actions, max_depth, *rules, **checked)


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
    check_dense("root's prior_logits", root.prior_logits)
    shape = tuple(getattr(root.prior_logits, "shape", ()))
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"root's prior_logits must be of shape [B, A] with at least one root and action, got {list(shape)}")
    check_latent(root.latent, shape[0])
    prior_logits = to_float32("root's prior_logits", root.prior_logits, shape)
    value = to_float32("root's value", root.value, shape[:1])
    masks = ~np.zeros(shape, np.bool_) if action_masks is None else check_action_masks(action_masks, *shape)
    return prior_logits, value, masks


def find_backend(recurrent_fn: RecurrentFn, roots: Roots, root_latent: Any) -> Backend:
    """
    :param recurrent_fn: the model.
    :param roots: roots.
    :param root_latent: latent states of the roots.
    :return: the backend that the model brings along, or the one for its kind.
    """
    if isinstance(recurrent_fn, ChanceModel):
        return ChanceBackend(recurrent_fn, roots, root_latent)
    return recurrent_fn if hasattr(recurrent_fn, "run_search") else TorchBackend(recurrent_fn)


def run_search(roots: Roots, settings: SearchSettings, recurrent_fn: RecurrentFn, root_latent: Any) -> SearchOutput:
    """
    Run the simulations by the backend of the model.

    :param roots: roots; receive the results of the search.
    :param settings: settings of the search.
    :param recurrent_fn: the model.
    :param root_latent: latent states of the roots.
    :return: the result of the search, with the actions that the backend selected.
    """
    batch_size, num_actions = roots.value.size, settings.num_actions
    backend = find_backend(recurrent_fn, roots, root_latent)
    if num_outcomes := getattr(backend, "num_outcomes", 0):
        settings = settings._replace(num_outcomes=num_outcomes, num_edges=max(num_actions, num_outcomes))
    tree = instantiate_tree(batch_size, settings.num_nodes, settings.num_edges)
    backend.run_search(flatten(tree), roots, settings, root_latent)
    return SearchOutput(
        action=roots.action,
        action_weights=roots.action_weights.reshape(batch_size, num_actions),
        visit_counts=tree.children_visits[:, ROOT_INDEX, :num_actions],
        qvalues=tree.children_qvalues[:, ROOT_INDEX, :num_actions],
        value=tree.node_values[:, ROOT_INDEX],
        tree=tree,
    )
