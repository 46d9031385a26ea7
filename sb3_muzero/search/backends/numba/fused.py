"""Search and model fused in one compiled function, which runs all simulations of all roots in one call."""

import numpy as np

from sb3_muzero.common.jit import is_on_disk, njit_cached, njit_inline, njit_uncached
from sb3_muzero.search.backends.numba.program import BLOCK, GROUPS, WIDTH, ZERO, Program, apply
from sb3_muzero.search.backends.numba.simd import FLOAT_BYTES, LANES, LANES_BYTES, lanes_to_rows, rows_to_lanes
from sb3_muzero.search.kernels import expand_and_backup, initialize_roots, select_leaves, select_root_actions
from sb3_muzero.search.state import Leaves, Roots, SearchSettings
from sb3_muzero.search.tree import ROOT_INDEX, Tree

# The sections of a program in the order in which they run. A step skips ``REPRESENTATION``, with which a root begins.
# ``DYNAMICS`` and ``PREDICTION`` are the trunks of their networks and may be empty. ``TURN`` may be missing.
DYNAMICS, REWARD, LATENT, REPRESENTATION, PREDICTION, POLICY, VALUE, TURN = range(8)

NUM_ACTIVATION_BUFFERS = 8
"""One for the inputs; two each for trunks, latents and other heads; one for ``linear_of_one_row``."""
TRUNK_BUFFER, LATENT_BUFFER, HEAD_BUFFER = 1, 3, 5


@njit_uncached
def forward(program: Program, section: int, num_rows: int, num_inputs: int, latent_dim: int, leaves: Leaves) -> int:
    """
    Compute latents and predictions for a block of rows.

    :param program: the model, with the inputs in its first activation buffer.
    :param section: first section to run, ``DYNAMICS`` for a step or ``REPRESENTATION`` for roots, which have no rewards.
    :param num_rows: number of rows, at most ``BLOCK``.
    :param num_inputs: number of inputs.
    :param latent_dim: size of a latent.
    :param leaves: receives prior logits, values and rewards; the program may turn the signs of its discounts.
    :return: index of the activation buffer with the latents.
    """
    buffers = program.activation_buffers
    latent = hidden = 0
    width = num_inputs
    for number in range(section, program.sections.size - 1):  # one call site of `apply`: each is compiled separately
        if number == REPRESENTATION and section != REPRESENTATION:
            continue
        if number == PREDICTION or number == TURN:
            hidden, width = latent, latent_dim
        is_trunk = number == DYNAMICS or number == PREDICTION
        is_latent = number == LATENT or number == REPRESENTATION
        target = TRUNK_BUFFER if is_trunk else LATENT_BUFFER if is_latent else HEAD_BUFFER
        buffer = apply(program, number, num_rows, width, hidden, target)
        if is_latent:
            latent = buffer
        elif is_trunk and buffer != hidden:  # has layers
            hidden = buffer
            width = program.layers[program.sections[number + 1] - 1, WIDTH]
        for row in range(num_rows):
            group, lane = row // LANES, row % LANES
            if number == POLICY:
                for action in range(leaves.prior_logits.shape[1]):
                    leaves.prior_logits[row, action] = buffers[buffer, group, action, lane]
            elif number == VALUE:
                leaves.value[row] = buffers[buffer, group, 0, lane]
            elif number == REWARD:
                leaves.reward[row] = buffers[buffer, group, 0, lane]
            elif number == TURN:
                gamma = abs(leaves.discount[row])
                leaves.discount[row] = gamma if buffers[buffer, group, 0, lane] > ZERO else -gamma
    return latent


@njit_cached
def evaluate(
    program: Program,
    leaves: Leaves,
    section: int,
    inputs: np.ndarray,
    latents: np.ndarray,
    prior_logits: np.ndarray,
    scalars: np.ndarray,
) -> None:
    """
    Run the model on any number of rows.

    :param program: the model.
    :param leaves: scratch for a block of rows; holds the discount already.
    :param section: first section to run, ``DYNAMICS`` or ``REPRESENTATION``.
    :param inputs: inputs of the section. Shape ``[B, inputs]``.
    :param latents: receives the latents. Shape ``[B, latent_dim]``.
    :param prior_logits: receives the policy logits. Shape ``[B, A]``.
    :param scalars: receives the values and, of steps, the rewards and the discounts. Shape ``[3, B]``.
    """
    buffers = program.activation_buffers
    batch_size, latent_dim = latents.shape
    for first in range(0, batch_size, BLOCK):
        num_rows = min(BLOCK, batch_size - first)
        for row in range(num_rows):
            for unit in range(inputs.shape[1]):
                buffers[0, row // LANES, unit, row % LANES] = inputs[first + row, unit]
        buffer = forward(program, section, num_rows, inputs.shape[1], latent_dim, leaves)
        for row in range(num_rows):
            for unit in range(latent_dim):
                latents[first + row, unit] = buffers[buffer, row // LANES, unit, row % LANES]
            for action in range(prior_logits.shape[1]):
                prior_logits[first + row, action] = leaves.prior_logits[row, action]
            scalars[0, first + row] = leaves.value[row]
            scalars[1, first + row] = leaves.reward[row]
            scalars[2, first + row] = leaves.discount[row]


@njit_inline
def read_parents(
    latents: np.ndarray, parents: np.ndarray, leaves: Leaves, num_rows: int, latent_dim: int, buffers: np.ndarray
) -> None:
    """
    Copy the latents of the nodes to step from into the first activation buffer.

    :param latents: latents of all nodes of a block. Shape ``[N + 1 or more, BLOCK, padded latent_dim]``.
    :param parents: scratch for the addresses of the parents' latents. Shape ``[BLOCK]``, int64.
    """
    start, row_bytes = latents.ctypes.data, latents.shape[2] * FLOAT_BYTES
    for row in range(BLOCK):
        parents[row] = start + (leaves.parent[row] * BLOCK + row) * row_bytes
    for row in range(0, num_rows, LANES):
        rows_to_lanes(parents, row, latent_dim, buffers.ctypes.data + row // LANES * buffers.shape[2] * LANES_BYTES)


@njit_inline
def write_latents(latents: np.ndarray, node: int, num_rows: int, latent_dim: int, buffers: np.ndarray, buffer: int) -> None:
    """
    Copy latents from an activation buffer.

    :param latents: latents of all nodes of a block. Shape ``[N + 1 or more, BLOCK, padded latent_dim]``.
    :param node: the node that each row has reached.
    """
    row_bytes, group_bytes = latents.shape[2] * FLOAT_BYTES, buffers.shape[2] * LANES_BYTES
    x = buffers.ctypes.data + buffer * GROUPS * group_bytes
    y = latents.ctypes.data + node * BLOCK * row_bytes
    for row in range(0, num_rows, LANES):
        lanes_to_rows(x + row // LANES * group_bytes, latent_dim, y + row * row_bytes, row_bytes)


@njit_cached
def run_simulations(
    tree: Tree,
    roots: Roots,
    settings: SearchSettings,
    root_latents: np.ndarray,
    program: Program,
    latents: np.ndarray,
    parents: np.ndarray,
    leaves: Leaves,
    first_row: int,
    end_row: int,
) -> int:
    """
    Run the whole search for a range of roots, block by block, so that the data of a block stays in the processor's cache.

    :param tree: flat trees of all roots.
    :param roots: inputs and results of the search at the roots.
    :param settings: settings of the search.
    :param root_latents: latents of the roots. Shape ``[B, latent_dim]``.
    :param program: the model.
    :param latents: scratch for the latents of all nodes of a block. Shape ``[N + 1 or more, BLOCK, padded latent_dim]``.
    :param parents: scratch for the addresses of the parents' latents. Shape ``[BLOCK]``, int64.
    :param leaves: scratch for one simulation of a block; holds the discount already.
    :param first_row: first root to search from.
    :param end_row: last root to search from, plus one.
    :return: -1, or the first row whose root or model output is not finite, at which the search stopped.
    """
    buffers = program.activation_buffers
    latent_dim = root_latents.shape[1]
    num_inputs = latent_dim + settings.num_actions
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
            for row in range(num_rows):
                for action in range(settings.num_actions):
                    is_taken = np.float32(action == leaves.action[row])
                    buffers[0, row // LANES, latent_dim + action, row % LANES] = is_taken
            buffer = forward(program, np.int64(DYNAMICS), num_rows, num_inputs, latent_dim, leaves)
            write_latents(latents, simulation + 1, num_rows, latent_dim, buffers, buffer)
            failed = expand_and_backup(tree, settings, first, num_rows, leaves)
            if failed >= 0:
                return first + failed
        select_root_actions(tree, roots, settings, first, num_rows, leaves.scores[0])
    return -1


def is_cached() -> bool:
    """
    :return: whether the compiled search is cached on disk, so that the first search does not compile.
    """
    return is_on_disk(run_simulations)
