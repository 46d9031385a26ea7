"""The compiled planner for models with chance."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from sb3_muzero.search.backends.numba.chance import run_chance_simulations
from sb3_muzero.search.backends.numba.compiled_model import CompiledModel
from sb3_muzero.search.backends.numba.fused import POLICY
from sb3_muzero.search.backends.numba.program import BLOCK, Program
from sb3_muzero.search.backends.numba.translate import Layer, assemble, check_fits, translate, translate_network
from sb3_muzero.search.backends.snapshot import Snapshot, UnsupportedModelError
from sb3_muzero.search.state import Leaves, Roots, SearchSettings, instantiate_leaves
from sb3_muzero.search.tree import Tree
from sb3_muzero.search.types import Array


class ChanceWorkspace(NamedTuple):
    """
    The buffers that a thread searches in, see ``run_chance_simulations``.
    """

    program: Program
    latents: np.ndarray
    parents: np.ndarray
    leaves: Leaves
    outputs: Leaves
    afterstate_program: Program
    afterstate_outputs: Leaves
    rows: np.ndarray


def translate_afterstates(model: Any, latent_dim: int, num_actions: int, visited: list[Any]) -> tuple[list[Layer], ...]:
    """
    :param model: a model with ``afterstate_dynamics``, a sequence of layers from a latent followed by a one-hot action to
        the latent of an afterstate, and ``afterstate_prediction``, which is registered as ``"prediction"`` and whose
        ``policy_head`` are the logits of the outcomes.
    :param latent_dim: size of a latent.
    :param num_actions: number of actions.
    :param visited: list to which the submodules are appended.
    :return: the layers of each section, in the order of ``fused``, of which those of other functions are empty.
    :raises UnsupportedModelError: if the compiled planner does not support the model.
    """
    latent = translate(model.afterstate_dynamics, latent_dim + num_actions, visited)
    check_fits(bool(latent) and latent[-1].width == latent_dim, model.afterstate_dynamics, latent_dim)
    prediction, chance, value = translate_network(model.afterstate_prediction, "prediction", latent_dim, visited)
    value += translate(model.value_support, value[-1].width, visited)
    return [], [], latent, [], prediction, chance, value


class CompiledChanceModel(CompiledModel):
    """
    ``CompiledModel`` with chance. Its ``dynamics`` take the latent of an afterstate followed by a one-hot outcome.

    :param model: a ``LatentModel`` with afterstates, see ``translate_afterstates``.
    :param discount: factor from the value of the next state to the value of an afterstate; its sign may be predicted.
    :param num_outcomes: number of outcomes ``C``.
    :raises UnsupportedModelError: if the compiled planner does not support the model.
    """

    def __init__(self, model: Any, discount: float, num_outcomes: int) -> None:
        super().__init__(model, discount, num_outcomes)
        self.num_outcomes = num_outcomes
        visited: list[Any] = []
        sections = translate_afterstates(model, self.latent_dim, self.num_actions, visited)
        if (width := sections[POLICY][-1].width) != num_outcomes:
            reason = f"an afterstate prediction of {width} outcomes, not {num_outcomes}, is not supported"
            raise UnsupportedModelError(f"{reason} by the compiled planner")
        layers = [layer for section in sections for layer in section]
        parameters = [t for layer in layers for t in (layer.weight, layer.bias) if t is not None]
        self._afterstate_snapshot = Snapshot(visited, parameters)
        self._afterstate_program = assemble(sections, self.latent_dim + self.num_actions)

    def is_current(self) -> bool:
        return super().is_current() and self._afterstate_snapshot.holds()

    def run_search(self, tree: Tree, roots: Roots, settings: SearchSettings, root_latent: Array) -> None:
        """See ``Backend``."""
        self.check_num_actions(settings)
        simulate = partial(run_chance_simulations, tree)
        self.run_in_threads(simulate, roots, settings, root_latent, np.float32(self.discount))

    def _make_workspace(self, num_nodes: int) -> ChanceWorkspace:
        program, latents, parents, outputs = super()._make_workspace(num_nodes)
        afterstates = self._afterstate_program
        return ChanceWorkspace(
            program,
            latents,
            parents,
            instantiate_leaves(BLOCK, max(self.num_actions, self.num_outcomes)),
            outputs,
            afterstates._replace(activation_buffers=np.zeros_like(afterstates.activation_buffers)),
            instantiate_leaves(BLOCK, self.num_outcomes),
            np.zeros(BLOCK, np.int64),
        )
