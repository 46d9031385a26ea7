"""The compiled planner where the candidates of each node are drawn from its policy."""

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from sb3_muzero.search.backends.numba.candidates import (
    CandidateRules,
    Scratch,
    make_scratch,
    propose_roots,
    run_sampled_simulations,
)
from sb3_muzero.search.backends.numba.compiled_model import CompiledModel
from sb3_muzero.search.backends.numba.program import BLOCK, Program
from sb3_muzero.search.state import Leaves, Roots, SearchSettings, instantiate_leaves, rounded_up
from sb3_muzero.search.tree import ROOT_INDEX, Tree
from sb3_muzero.search.types import Array


class SampledWorkspace(NamedTuple):
    """
    The buffers that a thread searches in, see ``run_sampled_simulations``.
    """

    program: Program
    latents: np.ndarray
    parents: np.ndarray
    leaves: Leaves
    outputs: Leaves
    scratch: Scratch


class CompiledSampledModel(CompiledModel):
    """
    ``CompiledModel`` whose policy candidates are drawn from.

    :param model: a ``LatentModel``.
    :param discount: factor from the value of the next state to the value of this one.
    :param action_dim: size of an encoded action.
    :param rules: how candidates are drawn.
    :param num_candidates: number of candidate slots of a node.
    :raises UnsupportedModelError: if the compiled planner does not support the model.
    """

    def __init__(self, model: Any, discount: float, action_dim: int, rules: CandidateRules, num_candidates: int) -> None:
        super().__init__(model, discount, action_dim)
        self.rules = rules
        self.shape = (num_candidates, rules.offsets.size - 1)
        """Numbers of candidate slots and of components of an action."""

    def propose_roots(
        self, outputs: Array, noise: np.ndarray, masks: np.ndarray | None, num_nodes: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        :param outputs: outputs of the policy head. Shape ``[B, P]``.
        :param noise: noise of the roots, or of a single one for all. Shape ``[B, K, D]``.
        :param masks: True for legal values; None if all are legal. Shape ``[B, S]``.
        :param num_nodes: number of nodes ``N + 1`` of each tree.
        :return: candidates of all nodes, padded, ``[N + 1, B, padded A * D]``, so far of the roots only, and the prior logits
            of these, ``[B, A]``, float32.
        """
        batch_size = len(outputs)
        candidates = np.zeros((num_nodes, batch_size, rounded_up(math.prod(self.shape))), np.float32)
        logits = np.empty((batch_size, self.shape[0]), np.float32)
        masks = np.empty((batch_size, 0), np.bool_) if masks is None else np.ascontiguousarray(masks)
        propose_roots(self.rules, outputs, noise, masks, candidates[ROOT_INDEX], logits, make_scratch(self.rules))
        return candidates, logits

    def _make_workspace(self, num_nodes: int) -> SampledWorkspace:
        program, latents, parents, outputs = super()._make_workspace(num_nodes)
        own = instantiate_leaves(BLOCK, self.shape[0])
        leaves = outputs._replace(prior_logits=own.prior_logits, scores=own.scores)
        return SampledWorkspace(program, latents, parents, leaves, outputs, make_scratch(self.rules))


class CandidateSearch:
    """
    One search with a ``CompiledSampledModel``, as a ``recurrent_fn``.

    :param model: the model.
    :param padded: candidates of all nodes as ``propose_roots`` returns them. Shape ``[N + 1, B, padded A * D]``.
    :param noise: noise of each simulation, or of a single root for all. Shape ``[N, B, K, D]``.
    """

    def __init__(self, model: CompiledSampledModel, padded: np.ndarray, noise: np.ndarray) -> None:
        self.model, self.padded, self.noise = model, padded, noise

    @property
    def candidates(self) -> np.ndarray:
        """Candidates of all nodes. Shape ``[N + 1, B, A, D]``."""
        shape = self.model.shape
        return self.padded[:, :, : math.prod(shape)].reshape(*self.padded.shape[:2], *shape)

    def run_search(self, tree: Tree, roots: Roots, settings: SearchSettings, root_latent: Array) -> None:
        """See ``Backend``."""
        inputs = self.model.rules, self.padded, self.noise
        self.model.run_in_threads(partial(run_sampled_simulations, tree), roots, settings, root_latent, *inputs)
