"""The two searches: the same tree with different rules at the root, inside, and for what comes out."""

from typing import Any

import numpy as np
import torch

from sb3_muzero.search.backends.numba.compiled_model import CompiledModel
from sb3_muzero.search.backends.torch import check_answer, check_roots, make_latent_model
from sb3_muzero.search.checks import (
    check_count,
    check_finite,
    check_generator,
    check_invalid_actions,
    check_prior_logits,
    check_real,
    to_float32,
)
from sb3_muzero.search.kernels import TINY, expand_and_backup, initialize_roots, select_leaves, select_root_actions
from sb3_muzero.search.sequential_halving import considered_visits_table
from sb3_muzero.search.state import (
    GUMBEL,
    NODE_SCOPE,
    PUCT,
    TREE_SCOPE,
    Roots,
    SearchSettings,
    instantiate_leaves,
    instantiate_roots,
)
from sb3_muzero.search.tree import ROOT_INDEX, Tree, flatten, instantiate_tree
from sb3_muzero.search.types import Array, RecurrentFn, RootOutput, SearchOutput

POSITIVE = (1e-30, 1e18)
"""What compiled code, which computes in float32, can divide by, and multiply with twice."""
QVALUE_SCOPES = {"node": NODE_SCOPE, "tree": TREE_SCOPE}


def gumbel_muzero_search(
    root: RootOutput,
    recurrent_fn: RecurrentFn,
    num_simulations: int,
    *,
    invalid_actions: Array | None = None,
    max_depth: int | None = None,
    root_gumbel: Array | None = None,
    gumbel_scale: float = 1.0,
    max_num_considered_actions: int = 16,
    value_scale: float = 0.1,
    maxvisit_init: float = 50.0,
    qvalue_scope: str = "node",
    min_qvalue_range: float = 1e-8,
    generator: np.random.Generator | None = None,
) -> SearchOutput:
    """
    Full Gumbel MuZero (Danihelka et al., "Policy improvement by planning with Gumbel", ICLR 2022).

    Sequential Halving over actions sampled without replacement at the root, deterministic selection inside. The policy
    target is the improved policy (Eq. 11), the action the best of the most visited.

    :param root: the model's view of the states to plan from, ``B`` roots with ``A`` actions.
    :param recurrent_fn: the model; called once per simulation with ``latent [B, ...]`` and ``action [B]`` (int64).
    :param num_simulations: number of simulations ``N`` of each root.
    :param invalid_actions: True for actions that may not be taken at the root. Shape ``[B, A]``, bool.
    :param max_depth: largest number of edges from the root to a leaf; None for no limit.
    :param root_gumbel: noise to use as it is, in place of drawing it. Shape ``[B, A]``.
    :param gumbel_scale: scale of the noise to draw; with 0 none is drawn.
    :param max_num_considered_actions: number of actions that are sampled at the root, where so many are valid.
    :param value_scale: c_scale of Eq. 8.
    :param maxvisit_init: c_visit of Eq. 8.
    :param qvalue_scope: Q values are rescaled to [0, 1] over each ``"node"`` or over the whole ``"tree"`` so far.
    :param min_qvalue_range: least range to divide by when rescaling, in the units of the reward.
    :param generator: where noise is drawn from; None for NumPy's global state.
    :return: actions, policy targets, values, and the trees.
    :raises ValueError: if an argument or an answer of the model cannot be used; says which and why.
    """
    num_simulations = check_count("num_simulations", num_simulations)
    prior_logits, value, invalid = _to_host(root, invalid_actions)
    settings = SearchSettings(
        num_nodes=num_simulations + 1,
        num_actions=prior_logits.shape[1],
        rule=GUMBEL,
        qvalue_scope=_check_qvalue_scope(qvalue_scope),
        max_depth=num_simulations if max_depth is None else check_count("max_depth", max_depth),
        min_qvalue_range=check_real("min_qvalue_range", min_qvalue_range, *POSITIVE),
        max_num_considered_actions=check_count("max_num_considered_actions", max_num_considered_actions),
        value_scale=check_real("value_scale", value_scale, 0.0, POSITIVE[1]),
        maxvisit_init=check_real("maxvisit_init", maxvisit_init, 0.0, POSITIVE[1]),
    )
    gumbel_scale = check_real("gumbel_scale", gumbel_scale, 0.0, POSITIVE[1])
    random = check_generator(generator)

    if root_gumbel is not None:
        gumbel = to_float32("root_gumbel", root_gumbel, prior_logits.shape)
        check_finite("root_gumbel", gumbel)
    elif gumbel_scale > 0.0:
        gumbel = (gumbel_scale * random.gumbel(size=prior_logits.shape)).astype(np.float32)
    else:
        gumbel = np.zeros_like(prior_logits)
    max_num_considered = min(settings.num_actions, settings.max_num_considered_actions)
    considered_visits = considered_visits_table(max_num_considered, num_simulations)
    roots = instantiate_roots(prior_logits, value, invalid, gumbel, considered_visits)
    tree = _search(roots, settings, recurrent_fn, root.latent)
    return _summarize(tree, roots.action, roots.action_weights)


def muzero_search(
    root: RootOutput,
    recurrent_fn: RecurrentFn,
    num_simulations: int,
    *,
    invalid_actions: Array | None = None,
    max_depth: int | None = None,
    dirichlet_fraction: float = 0.25,
    dirichlet_alpha: float = 0.3,
    pb_c_init: float = 1.25,
    pb_c_base: float = 19652,
    temperature: float = 1.0,
    qvalue_scope: str = "node",
    min_qvalue_range: float = 1e-8,
    generator: np.random.Generator | None = None,
) -> SearchOutput:
    """
    MuZero with PUCT (Schrittwieser et al., "Mastering Atari, Go, chess and shogi by planning with a learned model", 2020).

    The policy target is the share of visits, the action is drawn in proportion to ``visits ** (1 / temperature)``.

    :param root: the model's view of the states to plan from, ``B`` roots with ``A`` actions.
    :param recurrent_fn: the model; called once per simulation with ``latent [B, ...]`` and ``action [B]`` (int64).
    :param num_simulations: number of simulations ``N`` of each root.
    :param invalid_actions: True for actions that may not be taken at the root. Shape ``[B, A]``, bool.
    :param max_depth: largest number of edges from the root to a leaf; None for no limit.
    :param dirichlet_fraction: share of noise in the root's prior; with 0 none is drawn.
    :param dirichlet_alpha: concentration of the noise, which falls on valid actions only.
    :param pb_c_init: c_1 of Eq. 2.
    :param pb_c_base: c_2 of Eq. 2.
    :param temperature: of the action; with 0 the most visited one is taken, of several the one with the highest prior,
        and nothing is drawn.
    :param qvalue_scope: Q values are normalised over each ``"node"`` (its value and visited actions) or over the whole
        ``"tree"`` so far.
    :param min_qvalue_range: least range to divide by when normalising, in the units of the reward.
    :param generator: where noise and actions are drawn from; None for NumPy's global state.
    :return: actions, policy targets, values, and the trees.
    :raises ValueError: if an argument or an answer of the model cannot be used; says which and why.
    """
    num_simulations = check_count("num_simulations", num_simulations)
    prior_logits, value, invalid = _to_host(root, invalid_actions)
    settings = SearchSettings(
        num_nodes=num_simulations + 1,
        num_actions=prior_logits.shape[1],
        rule=PUCT,
        qvalue_scope=_check_qvalue_scope(qvalue_scope),
        max_depth=num_simulations if max_depth is None else check_count("max_depth", max_depth),
        min_qvalue_range=check_real("min_qvalue_range", min_qvalue_range, *POSITIVE),
        pb_c_init=check_real("pb_c_init", pb_c_init, 0.0, POSITIVE[1]),
        pb_c_base=check_real("pb_c_base", pb_c_base, *POSITIVE),
    )
    dirichlet_fraction = check_real("dirichlet_fraction", dirichlet_fraction, 0.0, 1.0)
    dirichlet_alpha = check_real("dirichlet_alpha", dirichlet_alpha, *POSITIVE)
    temperature = check_real("temperature", temperature, 0.0)
    random = check_generator(generator)

    if dirichlet_fraction > 0.0:
        check_prior_logits("root's prior_logits", prior_logits, invalid)
        probs = softmax(np.where(invalid, -np.inf, prior_logits))
        noise = _sample_dirichlet(random, dirichlet_alpha, invalid)
        noisy_probs = (1.0 - dirichlet_fraction) * probs + dirichlet_fraction * noise
        prior_logits = np.log(np.maximum(noisy_probs, TINY)).astype(np.float32)
    roots = instantiate_roots(prior_logits, value, invalid, np.empty(0, np.float32), np.empty(0, np.int32))
    tree = _search(roots, settings, recurrent_fn, root.latent)
    visits = tree.children_visits[:, ROOT_INDEX]
    action = _sample_by_visits(random, visits, tree.children_prior_logits[:, ROOT_INDEX], temperature)
    return _summarize(tree, action, roots.action_weights)


def _check_qvalue_scope(qvalue_scope: str) -> int:
    if qvalue_scope not in QVALUE_SCOPES:
        raise ValueError(f"qvalue_scope must be one of {sorted(QVALUE_SCOPES)}, got {qvalue_scope!r}")
    return QVALUE_SCOPES[qvalue_scope]


def _to_host(root: RootOutput, invalid_actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    :return: prior logits ``[B, A]`` and values ``[B]`` as float32 and the mask ``[B, A]`` of invalid actions, on the host.
        Whether the numbers can be used the search finds out.
    """
    if not isinstance(root, RootOutput):
        raise ValueError(f"root must be a RootOutput, got a {type(root).__name__}")
    shape = tuple(getattr(root.prior_logits, "shape", ()))
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"root's prior_logits must be of shape [B, A] with at least one root and action, got {list(shape)}")
    if not isinstance(root.latent, np.ndarray | torch.Tensor) or tuple(root.latent.shape[:1]) != shape[:1]:
        given = getattr(root.latent, "shape", type(root.latent).__name__)
        raise ValueError(f"root's latent must be an array or tensor of shape [{shape[0]}, ...], got {given}")
    prior_logits = to_float32("root's prior_logits", root.prior_logits, shape)
    value = to_float32("root's value", root.value, shape[:1])
    return prior_logits, value, check_invalid_actions(invalid_actions, (shape[0], shape[1]))


def _search(roots: Roots, settings: SearchSettings, recurrent_fn: RecurrentFn, latent: Any) -> Tree:
    """Grow a tree from each root by all simulations, and select_root_actions what to do there."""
    num_rows = roots.value.size
    trees = instantiate_tree(num_rows, settings.num_nodes, settings.num_actions)
    tree = flatten(trees)
    if isinstance(recurrent_fn, CompiledModel):
        recurrent_fn.search(tree, roots, settings, latent)
        return trees
    leaves = instantiate_leaves(num_rows, settings.num_actions)
    if initialize_roots(tree, roots, settings, 0, num_rows, leaves.scores[0]) >= 0:
        check_roots(roots, settings)
    with torch.inference_mode():
        model = make_latent_model(recurrent_fn, latent, settings.num_nodes - 1)
        for simulation in range(settings.num_nodes - 1):
            select_leaves(tree, roots, settings, simulation, 0, num_rows, leaves)
            model.evaluate(simulation, leaves)
            if expand_and_backup(tree, settings, 0, num_rows, leaves) >= 0:
                check_answer(leaves)
    select_root_actions(tree, roots, settings, 0, num_rows, leaves.scores[0])
    return trees


def softmax(logits: np.ndarray) -> np.ndarray:
    """
    :param logits: at least one finite per row. Shape ``[B, A]``.
    :return: probabilities. Shape ``[B, A]``.
    """
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True), dtype=np.float64)
    return weights / weights.sum(axis=-1, keepdims=True)


def _sample_dirichlet(random: Any, alpha: float, invalid: np.ndarray) -> np.ndarray:
    """
    Dirichlet noise over the valid actions of each row, as normalised Gamma variables; their logarithms, since
    Gamma(alpha) = Gamma(alpha + 1) * U ** (1 / alpha) underflows for small alpha.

    :return: probabilities, 0 where invalid. Shape ``[B, A]``.
    """
    log_gamma = np.log(random.standard_gamma(alpha + 1.0, invalid.shape)) - random.standard_exponential(invalid.shape) / alpha
    return softmax(np.where(invalid, -np.inf, log_gamma))


def _sample_by_visits(random: Any, visits: np.ndarray, prior_logits: np.ndarray, temperature: float) -> np.ndarray:
    """
    :return: an action drawn in proportion to ``visits ** (1 / temperature)``. Shape ``[B]``, int64.
    """
    if temperature == 0.0:
        is_most_visited = visits == visits.max(axis=1, keepdims=True)
        return np.where(is_most_visited, prior_logits, -np.inf).argmax(axis=1)
    with np.errstate(divide="ignore", over="ignore"):
        logits = np.log(visits / visits.max(axis=1, keepdims=True)) / temperature
    return (logits + random.gumbel(size=visits.shape)).argmax(axis=1)


def _summarize(tree: Tree, action: np.ndarray, action_weights: np.ndarray) -> SearchOutput:
    return SearchOutput(
        action=action,
        action_weights=action_weights.reshape(len(action), -1),
        visit_counts=tree.children_visits[:, ROOT_INDEX],
        qvalues=tree.children_qvalues[:, ROOT_INDEX],
        value=tree.node_values[:, ROOT_INDEX],
        tree=tree,
    )
