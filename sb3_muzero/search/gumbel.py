"""Gumbel MuZero search (Danihelka et al., "Policy improvement by planning with Gumbel", ICLR 2022)."""

import numpy as np

from sb3_muzero.search.checks import check_finite, check_generator, check_setting, to_float32
from sb3_muzero.search.loop import read_root, run_search, search_settings
from sb3_muzero.search.sequential_halving import considered_visits_table
from sb3_muzero.search.state import GUMBEL, instantiate_roots
from sb3_muzero.search.types import Array, RecurrentFn, RootOutput, SearchOutput


def gumbel_muzero_search(
    root: RootOutput,
    recurrent_fn: RecurrentFn,
    num_simulations: int,
    *,
    action_masks: Array | None = None,
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
    Run Gumbel MuZero search from a batch of root states.

    At the root, actions are sampled without replacement and compared by Sequential Halving; below the root, actions are
    selected deterministically. The policy target is the improved policy (Eq. 11). The action is the best one among the most
    visited.

    :param root: the model's output for the root states, with ``B`` roots and ``A`` actions.
    :param recurrent_fn: the model, called once per simulation; a ``ChanceModel``; or an object with a ``run_search`` (see
        ``Backend``).
    :param num_simulations: number of simulations ``N`` per root.
    :param action_masks: True for actions that are legal at the root; None if all are legal. Shape ``[B, A]``, bool.
    :param max_depth: maximum number of edges from the root to a leaf; None for no limit.
    :param root_gumbel: Gumbel noise to use instead of sampling it. Shape ``[B, A]``.
    :param gumbel_scale: scale of the sampled noise; 0 for none.
    :param max_num_considered_actions: maximum number of actions sampled at the root.
    :param value_scale: c_scale of Eq. 8.
    :param maxvisit_init: c_visit of Eq. 8.
    :param qvalue_scope: rescale Q values to [0, 1] over each ``"node"`` or over the whole ``"tree"`` so far.
    :param min_qvalue_range: minimum range to divide by when rescaling, in units of reward.
    :param generator: source of the noise; None for NumPy's global generator.
    :return: actions, policy targets, values and search trees.
    :raises ValueError: for an invalid argument or model output, naming it and what is wrong.
    """
    prior_logits, value, masks = read_root(root, action_masks)
    settings = search_settings(
        GUMBEL,
        num_simulations,
        prior_logits.shape[1],
        max_depth,
        qvalue_scope=qvalue_scope,
        min_qvalue_range=min_qvalue_range,
        max_num_considered_actions=max_num_considered_actions,
        value_scale=value_scale,
        maxvisit_init=maxvisit_init,
    )
    gumbel_scale = check_setting("gumbel_scale", gumbel_scale)
    random = check_generator(generator)
    if root_gumbel is not None:
        gumbel = to_float32("root_gumbel", root_gumbel, prior_logits.shape)
        check_finite("root_gumbel", gumbel)
    elif gumbel_scale > 0.0:
        gumbel = (gumbel_scale * random.gumbel(size=prior_logits.shape)).astype(np.float32)
    else:
        gumbel = np.zeros_like(prior_logits)
    max_num_considered = min(settings.num_actions, settings.max_num_considered_actions)
    considered_visits = considered_visits_table(max_num_considered, settings.num_nodes - 1)
    roots = instantiate_roots(prior_logits, value, masks, gumbel, considered_visits)
    return run_search(roots, settings, recurrent_fn, root.latent)
