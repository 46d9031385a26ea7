"""The search over a compiled model: all simulations of all roots in one call."""

import numpy as np

from sb3_muzero.common.jit import is_on_disk, kernel
from sb3_muzero.search.backends.numba.program import BLOCK, GROUPS, WIDTH, Program, apply, layer
from sb3_muzero.search.backends.numba.simd import FLOAT_BYTES, LANES, LANES_BYTES, lanes_to_rows, rows_to_lanes
from sb3_muzero.search.kernels import conclude, grow, plant, select_leaves
from sb3_muzero.search.state import Leaves, Roots, SearchSettings
from sb3_muzero.search.tree import ROOT_INDEX, Tree

# The sections of a program
REPRESENTATION, DYNAMICS, TRUNK, POLICY, VALUE, REWARD = range(6)

NUM_ROOMS = 8
"""
One for the inputs, two for each of three functions of which one works on the other's outputs, one for a packed row.
"""


@layer
def forward(program: Program, section: int, num_rows: int, num_inputs: int, latent_dim: int, leaves: Leaves) -> int:
    """
    Compute the latents of a block of rows, and what the prediction function says of them.

    :param program: the model, with the inputs in its first room.
    :param section: what computes the latents, ``REPRESENTATION`` or ``DYNAMICS``.
    :param num_rows: number of rows, at most ``BLOCK``.
    :param num_inputs: number of inputs.
    :param latent_dim: number of units of the latents.
    :param leaves: receives prior logits, value and reward.
    :return: number of the room with the latents.
    """
    rooms = program.rooms
    latent = hidden = 0
    width = num_inputs
    for step in range(5):  # in a loop because each call of `apply` would be compiled on its own
        number = section if step == 0 else TRUNK + step - 1
        room = apply(program, number, num_rows, width, hidden, min(1 + 2 * step, 5))
        if step == 0:
            latent = hidden = room
            width = latent_dim
        elif number == TRUNK:
            hidden = room
            width = program.layers[program.sections[TRUNK + 1] - 1, WIDTH]
        for row in range(num_rows):
            group, lane = row // LANES, row % LANES
            if number == POLICY:
                for action in range(leaves.prior_logits.shape[1]):
                    leaves.prior_logits[row, action] = rooms[room, group, action, lane]
            elif number == VALUE:
                leaves.value[row] = rooms[room, group, 0, lane]
            elif number == REWARD:
                leaves.reward[row] = rooms[room, group, 0, lane]
    return latent


@kernel
def evaluate(
    program: Program,
    leaves: Leaves,
    section: int,
    inputs: np.ndarray,
    latents: np.ndarray,
    prior_logits: np.ndarray,
    values_and_rewards: np.ndarray,
) -> None:
    """
    Run the model on any number of rows.

    :param program: the model.
    :param leaves: room for a block.
    :param section: what computes the latents, ``REPRESENTATION`` or ``DYNAMICS``.
    :param inputs: its inputs. Shape ``[B, inputs]``.
    :param latents: receives the latents. Shape ``[B, latent_dim]``.
    :param prior_logits: receives the policy logits. Shape ``[B, A]``.
    :param values_and_rewards: receives the values and the rewards. Shape ``[2, B]``.
    """
    rooms = program.rooms
    batch_size, latent_dim = latents.shape
    for first in range(0, batch_size, BLOCK):
        num_rows = min(BLOCK, batch_size - first)
        for row in range(num_rows):
            for unit in range(inputs.shape[1]):
                rooms[0, row // LANES, unit, row % LANES] = inputs[first + row, unit]
        room = forward(program, section, num_rows, inputs.shape[1], latent_dim, leaves)
        for row in range(num_rows):
            for unit in range(latent_dim):
                latents[first + row, unit] = rooms[room, row // LANES, unit, row % LANES]
            for action in range(prior_logits.shape[1]):
                prior_logits[first + row, action] = leaves.prior_logits[row, action]
            values_and_rewards[0, first + row] = leaves.value[row]
            values_and_rewards[1, first + row] = leaves.reward[row]


@kernel
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
    The whole search from some of the roots, block by block, so that what a block works on stays in the cache.

    :param root_latents: latents of the roots. Shape ``[B, latent_dim]``.
    :param program: the model.
    :param latents: room for those of all nodes of a block. Shape ``[N + 1 or more, BLOCK, padded latent_dim]``.
    :param parents: room for addresses. Shape ``[BLOCK]``, int64.
    :param leaves: room for one simulation of ``BLOCK`` trees; the discount is given.
    :param first_row: the first root of those to search from.
    :param end_row: the root after the last.
    :return: the first row whose root, or an answer of the model to it, is none to search with, which ends the search, or -1.
    """
    rooms = program.rooms
    latent_dim = root_latents.shape[1]
    num_inputs = latent_dim + settings.num_actions
    latents_start, row_bytes = latents.ctypes.data, latents.shape[2] * FLOAT_BYTES
    group_bytes = rooms.shape[2] * LANES_BYTES
    for first in range(first_row, end_row, BLOCK):
        num_rows = min(BLOCK, end_row - first)
        failed = plant(tree, roots, settings, first, num_rows, leaves.scores[0])
        if failed >= 0:
            return failed
        for row in range(num_rows):
            for unit in range(latent_dim):
                latents[ROOT_INDEX, row, unit] = root_latents[first + row, unit]
        for simulation in range(settings.num_nodes - 1):
            select_leaves(tree, roots, settings, simulation, first, num_rows, leaves)
            for row in range(BLOCK):
                parents[row] = latents_start + (leaves.parent[row] * BLOCK + row) * row_bytes
            for row in range(0, num_rows, LANES):
                rows_to_lanes(parents, row, latent_dim, rooms.ctypes.data + row // LANES * group_bytes)
            for row in range(num_rows):
                for action in range(settings.num_actions):
                    is_taken = np.float32(action == leaves.action[row])
                    rooms[0, row // LANES, latent_dim + action, row % LANES] = is_taken
            room = forward(program, np.int64(DYNAMICS), num_rows, num_inputs, latent_dim, leaves)
            x = rooms.ctypes.data + room * GROUPS * group_bytes
            y = latents_start + (simulation + 1) * BLOCK * row_bytes
            for row in range(0, num_rows, LANES):
                lanes_to_rows(x + row // LANES * group_bytes, latent_dim, y + row * row_bytes, row_bytes)
            failed = grow(tree, settings, first, num_rows, leaves)
            if failed >= 0:
                return first + failed
        conclude(tree, roots, settings, first, num_rows, leaves.scores[0])
    return -1


def is_cached() -> bool:
    """
    :return: whether a compiled search is on disk, so that its first use does not have to wait for the compiler.
    """
    return is_on_disk(run_simulations)
