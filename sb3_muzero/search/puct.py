"""MuZero search (Schrittwieser et al., "Mastering Atari, Go, chess and shogi by planning with a learned model", 2020)."""

from typing import Any

import numpy as np

from sb3_muzero.search.checks import check_generator, check_prior_logits, check_setting
from sb3_muzero.search.loop import read_root, run_search, search_settings
from sb3_muzero.search.selection import TINY
from sb3_muzero.search.state import MUZERO, instantiate_roots
from sb3_muzero.search.tree import ROOT_INDEX
from sb3_muzero.search.types import Array, RecurrentFn, RootOutput, SearchOutput


def muzero_search(
    root: RootOutput,
    recurrent_fn: RecurrentFn,
    num_simulations: int,
    *,
    action_masks: Array | None = None,
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
    Run MuZero search with PUCT from a batch of root states.

    The policy target is the fraction of visits, whatever the temperature. As in the paper, these visits follow a prior that
    contains the Dirichlet noise, so the target contains it, too; with ``dirichlet_fraction=0`` it is free of noise. The action
    is sampled in proportion to ``visits ** (1 / temperature)``.

    :param root: the model's output for the root states, with ``B`` roots and ``A`` actions.
    :param recurrent_fn: the model, called once per simulation; or an object with a ``run_search`` (see ``Backend``).
    :param num_simulations: number of simulations ``N`` per root.
    :param action_masks: True for actions that are legal at the root; None if all are legal. Shape ``[B, A]``, bool.
    :param max_depth: maximum number of edges from the root to a leaf; None for no limit.
    :param dirichlet_fraction: fraction of noise in the prior of the root; 0 for none.
    :param dirichlet_alpha: concentration of the noise, which is over the legal actions only.
    :param pb_c_init: c_1 of Eq. 2.
    :param pb_c_base: c_2 of Eq. 2.
    :param temperature: temperature that the action is sampled with. With 0 the most visited action is taken, and among several
        the one with the highest prior.
    :param qvalue_scope: rescale Q values to [0, 1] over each ``"node"`` (its value and its visited actions) or over the whole
        ``"tree"`` so far.
    :param min_qvalue_range: minimum range to divide by when rescaling, in units of reward.
    :param generator: source of the noise and of the actions; None for NumPy's global generator.
    :return: actions, policy targets, values and search trees.
    :raises ValueError: for an invalid argument or model output, naming it and what is wrong.
    """
    prior_logits, value, masks = read_root(root, action_masks)
    settings = search_settings(
        MUZERO,
        num_simulations,
        prior_logits.shape[1],
        max_depth,
        qvalue_scope=qvalue_scope,
        min_qvalue_range=min_qvalue_range,
        pb_c_init=pb_c_init,
        pb_c_base=pb_c_base,
    )
    dirichlet_fraction = check_setting("dirichlet_fraction", dirichlet_fraction)
    dirichlet_alpha = check_setting("dirichlet_alpha", dirichlet_alpha)
    temperature = check_setting("temperature", temperature)
    random = check_generator(generator)
    if dirichlet_fraction > 0.0:
        check_prior_logits("root's prior_logits", prior_logits, masks)
        probs = softmax(np.where(masks, prior_logits, -np.inf))
        noise = _sample_dirichlet(random, dirichlet_alpha, masks)
        noisy_probs = (1.0 - dirichlet_fraction) * probs + dirichlet_fraction * noise
        prior_logits = np.log(np.maximum(noisy_probs, TINY)).astype(np.float32)
    roots = instantiate_roots(prior_logits, value, masks, np.empty(0, np.float32), np.empty(0, np.int32))
    output = run_search(roots, settings, recurrent_fn, root.latent)
    root_logits = output.tree.children_prior_logits[:, ROOT_INDEX]
    return output._replace(action=_sample_by_visits(random, output.visit_counts, root_logits, temperature))


def softmax(logits: np.ndarray) -> np.ndarray:
    """
    :param logits: at least one finite per row. Shape ``[B, A]``.
    :return: probabilities. Shape ``[B, A]``.
    """
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True), dtype=np.float64)
    return weights / weights.sum(axis=-1, keepdims=True)


def _sample_dirichlet(random: Any, alpha: float, action_masks: np.ndarray) -> np.ndarray:
    """
    Sample Dirichlet noise over the legal actions of each row as normalised Gamma variables, in log space:
    Gamma(alpha) = Gamma(alpha + 1) * U ** (1 / alpha) underflows for small alpha.

    :return: probabilities, 0 for illegal actions. Shape ``[B, A]``.
    """
    shape = action_masks.shape
    log_gamma = np.log(random.standard_gamma(alpha + 1.0, shape)) - random.standard_exponential(shape) / alpha
    return softmax(np.where(action_masks, log_gamma, -np.inf))


def _sample_by_visits(random: Any, visits: np.ndarray, prior_logits: np.ndarray, temperature: float) -> np.ndarray:
    """
    :return: actions sampled in proportion to ``visits ** (1 / temperature)``. Shape ``[B]``, int64.
    """
    if temperature == 0.0:
        is_most_visited = visits == visits.max(axis=1, keepdims=True)
        return np.where(is_most_visited, prior_logits, -np.inf).argmax(axis=1)
    with np.errstate(divide="ignore", over="ignore"):
        logits = np.log(visits / visits.max(axis=1, keepdims=True)) / temperature
    return (logits + random.gumbel(size=visits.shape)).argmax(axis=1)
