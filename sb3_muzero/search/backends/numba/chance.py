"""The fused search with chance nodes: each simulation runs each of two programs on the rows that need it."""

import numpy as np

from sb3_muzero.common.jit import is_on_disk, njit_cached, njit_uncached
from sb3_muzero.search.backends.numba.fused import DYNAMICS, forward
from sb3_muzero.search.backends.numba.program import BLOCK, Program
from sb3_muzero.search.backends.numba.simd import FLOAT_BYTES, LANES, LANES_BYTES, rows_to_lanes
from sb3_muzero.search.kernels import expand_and_backup, initialize_roots, select_leaves, select_root_actions
from sb3_muzero.search.selection import INFINITY, ONE, ZERO
from sb3_muzero.search.state import Leaves, Roots, SearchSettings
from sb3_muzero.search.tree import ROOT_INDEX, Tree


@njit_uncached
def add_nodes(
    program: Program,
    outputs: Leaves,
    leaves: Leaves,
    is_chance: bool,
    num_rows: int,
    num_edges: int,
    node: int,
    latent_dim: int,
    latents: np.ndarray,
    parents: np.ndarray,
    rows: np.ndarray,
) -> None:
    """
    Compute the nodes of one kind that a simulation of a block adds.

    :param program: the model of this kind of node; its inputs are a latent and a one-hot action or outcome.
    :param outputs: scratch for what the program writes; holds the discount already.
    :param leaves: the simulation; receives the outputs.
    :param is_chance: the kind of the nodes.
    :param num_rows: number of rows of the block.
    :param num_edges: number of actions or outcomes of the nodes to step from.
    :param node: index of the nodes.
    :param latent_dim: size of a latent, of either kind.
    :param latents: latents of all nodes of the block. Shape ``[N + 1 or more, BLOCK, padded latent_dim]``.
    :param parents: scratch for the addresses of the parents' latents. Shape ``[BLOCK]``, int64.
    :param rows: scratch for the rows that add a node of this kind. Shape ``[BLOCK]``, int64.
    """
    count = 0
    for row in range(num_rows):
        if leaves.is_chance[row] == is_chance:
            rows[count] = row
            count += 1
    if count == 0:
        return
    buffers = program.activation_buffers
    start, row_bytes = latents.ctypes.data, latents.shape[2] * FLOAT_BYTES
    for index in range(BLOCK):
        row = rows[min(index, count - 1)]
        parents[index] = start + (leaves.parent[row] * BLOCK + row) * row_bytes
    for index in range(0, count, LANES):
        rows_to_lanes(parents, index, latent_dim, buffers.ctypes.data + index // LANES * buffers.shape[2] * LANES_BYTES)
    for index in range(count):
        for edge in range(num_edges):
            is_taken = np.float32(edge == leaves.action[rows[index]])
            buffers[0, index // LANES, latent_dim + edge, index % LANES] = is_taken
    buffer = forward(program, np.int64(DYNAMICS), count, latent_dim + num_edges, latent_dim, outputs)
    for index in range(count):
        row = rows[index]
        for unit in range(latent_dim):
            latents[node, row, unit] = buffers[buffer, index // LANES, unit, index % LANES]
        leaves.value[row] = outputs.value[index]
        leaves.reward[row] = ZERO if is_chance else outputs.reward[index]
        leaves.discount[row] = ONE if is_chance else outputs.discount[index]
        for edge in range(leaves.prior_logits.shape[1]):
            exists = edge < outputs.prior_logits.shape[1]
            leaves.prior_logits[row, edge] = outputs.prior_logits[index, edge] if exists else -INFINITY


@njit_cached
def run_chance_simulations(
    tree: Tree,
    roots: Roots,
    settings: SearchSettings,
    root_latents: np.ndarray,
    discount: float,
    program: Program,
    latents: np.ndarray,
    parents: np.ndarray,
    leaves: Leaves,
    outputs: Leaves,
    afterstate_program: Program,
    afterstate_outputs: Leaves,
    rows: np.ndarray,
    first_row: int,
    end_row: int,
) -> int:
    """
    ``run_simulations`` with chance nodes.

    :param tree: flat trees of all roots.
    :param roots: inputs and results of the search at the roots.
    :param settings: settings of the search.
    :param root_latents: latents of the roots. Shape ``[B, latent_dim]``.
    :param discount: factor from the value of the next state to the value of an afterstate.
    :param program: the model from an afterstate and an outcome to a state.
    :param latents: scratch for the latents of all nodes of a block. Shape ``[N + 1 or more, BLOCK, padded latent_dim]``.
    :param parents: scratch for the addresses of the parents' latents. Shape ``[BLOCK]``, int64.
    :param leaves: scratch for one simulation of a block, with ``E`` edges.
    :param outputs: scratch for what ``program`` writes, with ``A`` edges.
    :param afterstate_program: the model from a state and an action to an afterstate.
    :param afterstate_outputs: scratch for what ``afterstate_program`` writes, with ``C`` edges.
    :param rows: scratch. Shape ``[BLOCK]``, int64.
    :param first_row: first root to search from.
    :param end_row: last root to search from, plus one.
    :return: -1, or the first row whose root or model output is not finite, at which the search stopped.
    """
    latent_dim = root_latents.shape[1]
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
            for row in range(BLOCK):
                outputs.discount[row] = discount
            add_nodes(
                afterstate_program, afterstate_outputs, leaves, True, num_rows, settings.num_actions, simulation + 1,
                latent_dim, latents, parents, rows,
            )  # fmt: skip
            add_nodes(
                program, outputs, leaves, False, num_rows, settings.num_outcomes, simulation + 1,
                latent_dim, latents, parents, rows,
            )  # fmt: skip
            failed = expand_and_backup(tree, settings, first, num_rows, leaves)
            if failed >= 0:
                return first + failed
        select_root_actions(tree, roots, settings, first, num_rows, leaves.scores[0])
    return -1


def is_cached() -> bool:
    """
    :return: whether the compiled search is cached on disk, so that the first search does not compile.
    """
    return is_on_disk(run_chance_simulations)
