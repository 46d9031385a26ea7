"""The fused search where the candidates of each node are drawn from its policy."""

import math
from typing import NamedTuple

import numpy as np

from sb3_muzero.common.jit import is_on_disk, njit_cached, njit_inline, njit_uncached
from sb3_muzero.search.backends.numba.fused import DYNAMICS, forward, read_parents, write_latents
from sb3_muzero.search.backends.numba.program import BLOCK, Program
from sb3_muzero.search.backends.numba.simd import (
    FLOAT_BYTES,
    LANES,
    LANES_BYTES,
    exponential,
    load,
    maximum,
    minimum,
    splat,
    store,
)
from sb3_muzero.search.kernels import expand_and_backup, initialize_roots, select_leaves, select_root_actions
from sb3_muzero.search.state import Leaves, Roots, SearchSettings, rounded_up
from sb3_muzero.search.tree import ROOT_INDEX, Tree

ZERO, ONE, TWO, FIVE = np.float32(0.0), np.float32(1.0), np.float32(2.0), np.float32(5.0)
MIN_STD = np.float32(0.1)
"""Smallest standard deviation of a squashed Gaussian."""
MAX_ACTION = np.float32(0.999)
"""Largest magnitude of candidates of a squashed Gaussian, whose density is infinite at 1."""
MASKED_LOGIT = np.float32(-1e8)
"""Logit of what is illegal; finite, to avoid NaN gradients."""
WIDE = np.float32(3.0)
"""Temperature of wide proposals, which look beyond what the policy considers probable (EfficientZero V2, Appendix)."""
MODE_WEIGHT = np.float32(2.0**32)
"""Weight of a component's most probable value. Weights are rounded down to integers."""

BISECTED = 16
"""More values than these are searched by bisection, fewer are counted, which needs no branches."""


class CandidateRules(NamedTuple):
    """
    How candidates are drawn. An action has ``D`` components. It is a vector of numbers drawn from a squashed Gaussian, or of
    values drawn from a categorical distribution for each component; compiled code holds both as float32.

    :param offsets: where the values of each component begin in flat arrays over all ``S`` of them, and ``S``; zeros for a
        Gaussian. Shape ``[D + 1]``, int64.
    :param low: lowest value of a component.
    :param step: distance between two values.
    :param all_actions: all joint actions as indices of values if these are the candidates, else empty. Shape ``[J, D]``.
    :param is_one_hot: whether the dynamics function takes each component as a one-hot vector.
    """

    offsets: np.ndarray
    low: float
    step: float
    all_actions: np.ndarray
    is_one_hot: bool


class Scratch(NamedTuple):
    """
    Scratch for the distribution of a component.

    :param weights: weights of its values. Shape ``[padded S]``, float32.
    :param cumulative: sums of the weights up to each value. Shape ``[S]``, int64.
    """

    weights: np.ndarray
    cumulative: np.ndarray


def make_scratch(rules: CandidateRules) -> Scratch:
    """
    :param rules: how candidates are drawn.
    :return: enough for any component.
    """
    num_values = int(rules.offsets[-1])
    return Scratch(np.zeros(rounded_up(num_values), np.float32), np.zeros(num_values, np.int64))


@njit_inline
def draw_gaussian(outputs: np.ndarray, noise: np.ndarray, candidates: np.ndarray) -> None:
    """As ``SquashedGaussianPolicy.sample``."""
    num_drawn, dim = noise.shape
    for d in range(dim):
        x = outputs[dim + d]
        std = max(x, ZERO) + np.float32(math.log1p(math.exp(-abs(x)))) + MIN_STD
        mean = FIVE * np.float32(math.tanh(outputs[d] / FIVE))
        for k in range(num_drawn):
            candidates[k * dim + d] = mean + std * noise[k, d]
    start = candidates.ctypes.data
    for address in range(start, start + num_drawn * dim * FLOAT_BYTES, LANES_BYTES):
        x = load(address)
        squashed = splat(TWO) / (splat(ONE) + exponential(splat(ZERO) - (x + x))) - splat(ONE)
        store(address, minimum(splat(MAX_ACTION), maximum(splat(-MAX_ACTION), squashed)))


@njit_uncached
def cumulate(rules: CandidateRules, outputs: np.ndarray, mask: np.ndarray, temperature: float, scratch: Scratch) -> None:
    """
    Cumulate weights of the values of each component, which are proportional to their probabilities.

    :param rules: what the components are.
    :param outputs: logits of all values. Shape ``[S]``.
    :param mask: True for legal values; empty if all are legal. Shape ``[S]``.
    :param temperature: divides the logits; 0 for the mode alone.
    :param scratch: receives the result.
    """
    weights, num_values, inverse = scratch.weights, outputs.size, ONE / temperature
    for d in range(rules.offsets.size - 1):
        mode, best = rules.offsets[d], MASKED_LOGIT
        for value in range(rules.offsets[d], rules.offsets[d + 1]):
            if (mask.size == 0 or mask[value]) and outputs[value] > best:
                mode, best = value, outputs[value]
        for value in range(rules.offsets[d], rules.offsets[d + 1]):
            if temperature == ZERO:
                weights[value] = ZERO if value == mode else MASKED_LOGIT
            else:
                is_legal = mask.size == 0 or mask[value]
                weights[value] = (outputs[value] - best) * inverse if is_legal else MASKED_LOGIT
    start = weights.ctypes.data
    for address in range(start, start + num_values * FLOAT_BYTES, LANES_BYTES):
        store(address, exponential(load(address)) * splat(MODE_WEIGHT))
    for d in range(rules.offsets.size - 1):
        total = np.int64(0)
        for value in range(rules.offsets[d], rules.offsets[d + 1]):
            total += np.int64(weights[value]) if weights[value] > ZERO else np.int64(0)
            scratch.cumulative[value] = total


@njit_inline
def draw_values(
    rules: CandidateRules, outputs: np.ndarray, noise: np.ndarray, mask: np.ndarray, candidates: np.ndarray, scratch: Scratch
) -> None:
    """As ``FactoredCategoricalPolicy.sample``."""
    num_drawn, dim = noise.shape
    for temperature in (ZERO, ONE, WIDE):
        is_ready = False
        for k in range(num_drawn):
            if math.floor(noise[k, 0]) != temperature:
                continue
            if not is_ready:
                cumulate(rules, outputs, mask, temperature, scratch)
                is_ready = True
            for d in range(dim):
                first, last = rules.offsets[d], rules.offsets[d + 1] - 1
                total = scratch.cumulative[last]
                target = min(np.int64(np.float64(noise[k, d] - temperature) * total), total - 1)
                while last - first > BISECTED:
                    middle = (first + last) // 2
                    if scratch.cumulative[middle] > target:
                        last = middle
                    else:
                        first = middle + 1
                drawn = first - rules.offsets[d]
                for value in range(first, last):
                    drawn += scratch.cumulative[value] <= target
                candidates[k * dim + d] = np.float32(rules.low + rules.step * drawn)


@njit_inline
def log_shares(num_drawn: int, dim: int, candidates: np.ndarray, logits: np.ndarray) -> None:
    """As ``sb3_muzero.actions.sampled.log_shares``."""
    for k in range(num_drawn):
        logits[k] = ONE
        for earlier in range(k):
            is_equal = logits[earlier] > ZERO
            for d in range(dim):
                is_equal = is_equal and candidates[earlier * dim + d] == candidates[k * dim + d]
            if is_equal:
                logits[earlier] += ONE
                logits[k] = ZERO
                break
    for k in range(num_drawn):
        logits[k] = np.float32(math.log(logits[k])) if logits[k] > ZERO else np.float32(-np.inf)


@njit_inline
def list_all(rules: CandidateRules, outputs: np.ndarray, mask: np.ndarray, candidates: np.ndarray, logits: np.ndarray) -> None:
    """All joint actions, with the policy's logits; those of a component need not be normalised."""
    num_actions, dim = rules.all_actions.shape
    for j in range(num_actions):
        logits[j] = ZERO
        for d in range(dim):
            index = rules.all_actions[j, d]
            value = rules.offsets[d] + index
            candidates[j * dim + d] = np.float32(rules.low + rules.step * index)
            logits[j] += outputs[value] if mask.size == 0 or mask[value] else np.float32(-np.inf)


@njit_uncached
def propose(
    rules: CandidateRules,
    outputs: np.ndarray,
    noise: np.ndarray,
    mask: np.ndarray,
    candidates: np.ndarray,
    logits: np.ndarray,
    scratch: Scratch,
) -> None:
    """
    Draw the candidates of a node.

    :param rules: how.
    :param outputs: outputs of the policy head. Shape ``[P]``.
    :param noise: noise. Shape ``[K, D]``.
    :param mask: True for legal values; empty if all are legal. Shape ``[S]``.
    :param candidates: receives the candidates, one after the other. Shape ``[padded A * D]``.
    :param logits: receives their prior logits, minus infinity beyond those that were drawn. Shape ``[A]``.
    :param scratch: see ``make_scratch``.
    """
    if rules.all_actions.shape[0] > 0:
        list_all(rules, outputs, mask, candidates, logits)
        return
    if rules.offsets[rules.offsets.size - 1] == 0:
        draw_gaussian(outputs, noise, candidates)
    else:
        draw_values(rules, outputs, noise, mask, candidates, scratch)
    log_shares(noise.shape[0], rules.offsets.size - 1, candidates, logits)
    for k in range(noise.shape[0], logits.size):
        logits[k] = np.float32(-np.inf)


@njit_cached
def propose_roots(
    rules: CandidateRules,
    outputs: np.ndarray,
    noise: np.ndarray,
    masks: np.ndarray,
    candidates: np.ndarray,
    logits: np.ndarray,
    scratch: Scratch,
) -> None:
    """
    Draw the candidates of all roots, see ``propose``.

    :param outputs: shape ``[B, P]``.
    :param noise: shape ``[B, K, D]``, or of a single root for all.
    :param masks: shape ``[B, S]``, or ``[B, 0]``.
    :param candidates: shape ``[B, padded A * D]``.
    :param logits: shape ``[B, A]``.
    :param scratch: see ``make_scratch``.
    """
    for row in range(outputs.shape[0]):
        propose(rules, outputs[row], noise[min(row, noise.shape[0] - 1)], masks[row], candidates[row], logits[row], scratch)


@njit_uncached
def write_chosen(
    rules: CandidateRules,
    buffers: np.ndarray,
    latent_dim: int,
    leaves: Leaves,
    candidates: np.ndarray,
    first_row: int,
    num_rows: int,
) -> None:
    """
    Write the encodings of the chosen candidates behind the latents in the inputs of the dynamics function.

    :param candidates: of all nodes. Shape ``[N + 1, B, padded A * D]``.
    :param first_row: first root of the block.
    :param num_rows: number of roots in it.
    """
    dim = rules.offsets.size - 1
    for row in range(num_rows):
        group, lane, node, chosen = row // LANES, row % LANES, leaves.parent[row], leaves.action[row]
        if rules.is_one_hot:
            for value in range(rules.offsets[dim]):
                buffers[0, group, latent_dim + value, lane] = ZERO
        for d in range(dim):
            number = candidates[node, first_row + row, chosen * dim + d]
            if rules.is_one_hot:
                buffers[0, group, latent_dim + rules.offsets[d] + np.int64(number), lane] = ONE
            else:
                buffers[0, group, latent_dim + d, lane] = number


@njit_cached
def run_sampled_simulations(
    tree: Tree,
    roots: Roots,
    settings: SearchSettings,
    root_latents: np.ndarray,
    rules: CandidateRules,
    candidates: np.ndarray,
    noise: np.ndarray,
    program: Program,
    latents: np.ndarray,
    parents: np.ndarray,
    leaves: Leaves,
    outputs: Leaves,
    scratch: Scratch,
    first_row: int,
    end_row: int,
) -> int:
    """
    ``run_simulations`` with candidates that are drawn at each node.

    :param tree: flat trees of all roots.
    :param roots: inputs and results of the search at the roots.
    :param settings: settings of the search.
    :param root_latents: latents of the roots. Shape ``[B, latent_dim]``.
    :param rules: how candidates are drawn.
    :param candidates: holds the candidates of the roots, receives those of all nodes. Shape ``[N + 1, B, padded A * D]``.
    :param noise: noise of each simulation, or of a single root for all. Shape ``[N, B, K, D]``.
    :param program: the model.
    :param latents: scratch for the latents of all nodes of a block. Shape ``[N + 1 or more, BLOCK, padded latent_dim]``.
    :param parents: scratch for the addresses of the parents' latents. Shape ``[BLOCK]``, int64.
    :param leaves: scratch for one simulation of a block; holds the discount already.
    :param outputs: the same arrays, but for ``prior_logits``, which receive the outputs of the policy head.
    :param scratch: see ``make_scratch``.
    :param first_row: first root to search from.
    :param end_row: last root to search from, plus one.
    :return: -1, or the first row whose root or model output is not finite, at which the search stopped.
    """
    buffers = program.activation_buffers
    latent_dim, dim = root_latents.shape[1], rules.offsets.size - 1
    num_inputs = latent_dim + (rules.offsets[dim] if rules.is_one_hot else dim)
    nothing = roots.action_masks[:0]
    for first in range(first_row, end_row, BLOCK):
        num_rows = min(BLOCK, end_row - first)
        failed = initialize_roots(tree, roots, settings, first, num_rows, leaves.scores[0])
        if failed >= 0:
            return failed
        for row in range(num_rows):
            for unit in range(latent_dim):
                latents[ROOT_INDEX, row, unit] = root_latents[first + row, unit]
        for simulation in range(settings.num_nodes - 1):
            select_leaves(tree, roots, settings, simulation, first, num_rows, leaves)
            read_parents(latents, parents, leaves, num_rows, latent_dim, buffers)
            write_chosen(rules, buffers, latent_dim, leaves, candidates, first, num_rows)
            buffer = forward(program, np.int64(DYNAMICS), num_rows, num_inputs, latent_dim, outputs)
            write_latents(latents, simulation + 1, num_rows, latent_dim, buffers, buffer)
            for row in range(num_rows):
                drawn = noise[simulation, min(first + row, noise.shape[1] - 1)]
                of_node = candidates[simulation + 1, first + row]
                propose(rules, outputs.prior_logits[row], drawn, nothing, of_node, leaves.prior_logits[row], scratch)
            failed = expand_and_backup(tree, settings, first, num_rows, leaves)
            if failed >= 0:
                return first + failed
        select_root_actions(tree, roots, settings, first, num_rows, leaves.scores[0])
    return -1


def is_cached() -> bool:
    """
    :return: whether the compiled search is cached on disk, so that the first search does not compile.
    """
    return is_on_disk(run_sampled_simulations)
