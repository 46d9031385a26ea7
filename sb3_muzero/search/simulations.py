"""The search loop over a compiled model: all simulations of all roots in one call."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from sb3_muzero.search.kernels import Leaves, RootActions, SearchSettings, grow, kernel, select_leaves
from sb3_muzero.search.lanes import LANES
from sb3_muzero.search.layers import Program, apply
from sb3_muzero.search.tree import Tree

# The sections of a program
REPRESENTATION, DYNAMICS, TRUNK, POLICY, VALUE, REWARD = range(6)

NUM_ROOMS = 7
"""One for the inputs, and two for each of three functions of which one works on the other's outputs."""


def _digest(*names: str) -> int:
    content = b"".join((Path(__file__).parent / name).read_bytes() for name in names)
    return int(sha256(content).hexdigest()[:15], 16)


# What the functions below are made from besides this file. Numba's disk cache notices changes of a function's own file only;
# but what a function refers to of an enclosing function is part of its key, so both functions refer to this.
SOURCES = _digest("kernels.py", "lanes.py", "layers.py", "tree.py")


def _compile_evaluate(sources: int) -> Any:
    @kernel
    def evaluate(program: Program, section: int, inputs: np.ndarray, latents: np.ndarray, leaves: Leaves) -> int:
        """
        Compute latents, and what the prediction function says of them.

        :param program: the model.
        :param section: what computes the latents, ``REPRESENTATION`` or ``DYNAMICS``.
        :param inputs: its inputs. Shape ``[B, inputs]``.
        :param latents: receives the latents. Shape ``[B, latent_dim]``.
        :param leaves: receives prior logits, value and reward.
        :return: of no meaning.
        """
        rooms = program.rooms
        batch_size, latent_dim = latents.shape
        num_actions = leaves.prior_logits.shape[1]
        for first in range(0, batch_size, LANES):
            num_rows = min(LANES, batch_size - first)
            for lane in range(num_rows):
                for unit in range(inputs.shape[1]):
                    rooms[0, unit, lane] = inputs[first + lane, unit]
            latent = apply(program, section, inputs.shape[1], 0, 1)
            hidden = apply(program, TRUNK, latent_dim, latent, 3)
            width = program.layers[program.sections[TRUNK + 1] - 1, 1]
            for lane in range(num_rows):
                for unit in range(latent_dim):
                    latents[first + lane, unit] = rooms[latent, unit, lane]
            policy = apply(program, POLICY, width, hidden, 5)
            for lane in range(num_rows):
                for action in range(num_actions):
                    leaves.prior_logits[first + lane, action] = rooms[policy, action, lane]
            value = apply(program, VALUE, width, hidden, 5)
            for lane in range(num_rows):
                leaves.value[first + lane] = rooms[value, 0, lane]
            reward = apply(program, REWARD, width, hidden, 5)
            for lane in range(num_rows):
                leaves.reward[first + lane] = rooms[reward, 0, lane]
        return sources

    return evaluate


def _compile_run_simulations(sources: int) -> Any:
    @kernel
    def run_simulations(
        tree: Tree,
        root: RootActions,
        settings: SearchSettings,
        program: Program,
        slots: np.ndarray,
        inputs: np.ndarray,
        leaves: Leaves,
    ) -> int:
        """
        Grow the trees by one simulation after the other.

        :param program: the model.
        :param slots: latents of all nodes, the roots' filled in. Shape ``[N + 1, B, latent_dim]``.
        :param inputs: room for inputs of the dynamics function. Shape ``[B, latent_dim + A]``.
        :param leaves: room for one simulation; the discount is given.
        :return: the first row in which the model's answer was not finite, which ends the search, or -1.
        """
        latent_dim = slots.shape[2]
        for simulation in range(slots.shape[0] - 1):
            select_leaves(tree, root, settings, simulation, leaves)
            for row in range(inputs.shape[0]):
                parent, action = leaves.parent[row], leaves.action[row]
                for unit in range(latent_dim):
                    inputs[row, unit] = slots[parent, row, unit]
                for unit in range(latent_dim, inputs.shape[1]):
                    inputs[row, unit] = np.float32(unit - latent_dim == action)
            evaluate(program, np.int64(DYNAMICS), inputs, slots[simulation + 1], leaves)
            failed = grow(tree, leaves)
            if failed >= 0:
                return failed
        return min(sources, -1)

    return run_simulations


evaluate = _compile_evaluate(SOURCES)
run_simulations = _compile_run_simulations(SOURCES)


def is_cached() -> bool:
    """
    :return: whether a compiled search is on disk, so that its first use does not have to wait for the compiler.
    """
    try:
        return bool(run_simulations._cache._cache_file._load_index())
    except Exception:  # Numba's inside may change, and this is a courtesy only
        return True
