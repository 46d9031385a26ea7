"""The compiled planner: a latent model of MLPs on the CPU, with which the whole search runs in compiled code."""

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from sb3_muzero.search.backends.numba.fused import DYNAMICS, POLICY, REPRESENTATION, evaluate, run_simulations
from sb3_muzero.search.backends.numba.program import BLOCK, Program
from sb3_muzero.search.backends.numba.translate import Layer, assemble, check_fits, num_inputs, translate, translate_network
from sb3_muzero.search.backends.snapshot import Snapshot, UnsupportedModelError
from sb3_muzero.search.checks import check_leaves, check_roots, to_float32, to_numpy
from sb3_muzero.search.state import Leaves, Roots, SearchSettings, instantiate_leaves, rounded_up
from sb3_muzero.search.tree import Tree
from sb3_muzero.search.types import Array, RecurrentOutput, RootOutput


class Workspace(NamedTuple):
    """
    The buffers that a thread searches in.

    :param program: the model, with its own activation buffers.
    :param latents: latents of all nodes of a block. Shape ``[N + 1 or more, BLOCK, padded latent_dim]``.
    :param parents: addresses of the parents' latents. Shape ``[BLOCK]``.
    :param leaves: one simulation of a block.
    """

    program: Program
    latents: np.ndarray
    parents: np.ndarray
    leaves: Leaves

    @property
    def outputs(self) -> Leaves:
        """What the program writes."""
        return self.leaves


def translate_model(model: Any, visited: list[Any], action_dim: int | None = None) -> tuple[list[Layer], ...]:
    """
    The parts of a model may be ``nn.Linear``, ``nn.LayerNorm``, common activations, sequences of these, and modules whose
    class is known to ``translate.register``, which those of ``dynamics`` and ``prediction`` must be, as ``"dynamics"`` and
    ``"prediction"``. The trunk of ``dynamics`` takes the latent followed by the encoded action.

    :param model: a ``LatentModel``.
    :param visited: list to which the model and its submodules are appended.
    :param action_dim: size of an encoded action; None for one-hot vectors of all actions.
    :return: the layers of each section, in the order of ``fused``.
    :raises UnsupportedModelError: if the compiled planner does not support the model.
    """
    visited.append(model)
    representation = translate(model.input_norm, 0, visited)
    representation += translate(model.representation, representation[-1].width if representation else 0, visited)
    if not representation:
        raise UnsupportedModelError("a representation without layers is not supported by the compiled planner")
    latent_dim = representation[-1].width
    prediction, policy, value = translate_network(model.prediction, "prediction", latent_dim, visited)
    dynamics, reward, latent = translate_network(
        model.dynamics, "dynamics", latent_dim + (action_dim or policy[-1].width), visited
    )
    check_fits(latent[-1].width == latent_dim, model.dynamics, latent_dim)
    value += translate(model.value_support, value[-1].width, visited)
    reward += translate(model.reward_support, reward[-1].width, visited)
    turn = [] if model.turn_head is None else [translate(model.turn_head, latent_dim, visited)]
    return dynamics, reward, latent, representation, prediction, policy, value, *turn


class CompiledModel:
    """
    A model whose searches run in compiled code, as a ``recurrent_fn``. It reads the parameters in place, so the model may be
    trained between searches; ``is_current`` says whether the model's structure is still the same.

    :param model: a ``LatentModel``.
    :param discount: factor from the value of the next state to the value of this one; its sign may be predicted.
    :param action_dim: see ``translate_model``.
    :raises UnsupportedModelError: if the compiled planner does not support it.
    """

    def __init__(self, model: Any, discount: float, action_dim: int | None = None) -> None:
        visited: list[Any] = []
        sections = translate_model(model, visited, action_dim)
        representation, policy = sections[REPRESENTATION], sections[POLICY]
        self.model = model
        self.discount = discount
        self.num_features, self.latent_dim = num_inputs(representation[0]), representation[-1].width
        self.num_actions = policy[-1].width  # of a policy that candidates are drawn from, its number of outputs
        self.action_dim = action_dim or self.num_actions
        layers = [layer for section in sections for layer in section]
        self._snapshot = Snapshot(visited, [t for layer in layers for t in (layer.weight, layer.bias) if t is not None])
        self._program = assemble(sections, max(self.num_features, self.latent_dim + self.action_dim))
        self._workspaces: list[Any] = []

    def is_current(self) -> bool:
        """
        :return: whether nothing about the model has changed since translation except for the numbers in its tensors.
        """
        return self._snapshot.holds()

    def __call__(self, latent: Array, action: Array) -> RecurrentOutput:
        """
        One step of the model.

        :param latent: latent states. Shape ``[B, latent_dim]``.
        :param action: actions. Shape ``[B]``.
        :return: the model's output as NumPy arrays.
        """
        latent = to_float32("latent", latent, (len(latent), self.latent_dim))
        one_hot = np.eye(self.action_dim, dtype=np.float32)[to_numpy(action)]
        inputs = np.concatenate((latent, one_hot), axis=1)
        latents, prior_logits, (value, reward, discount) = self._evaluate(DYNAMICS, inputs)
        return RecurrentOutput(reward, discount, prior_logits, value, latents)

    def initial_inference(self, features: Array) -> RootOutput:
        """
        :param features: inputs of the representation function. Shape ``[B, num_features]``.
        :return: the roots as NumPy arrays.
        """
        inputs = to_float32("features", features, (len(features), self.num_features))
        latents, prior_logits, (value, *_) = self._evaluate(REPRESENTATION, inputs)
        return RootOutput(prior_logits, value, latents)

    def run_search(self, tree: Tree, roots: Roots, settings: SearchSettings, root_latent: Array) -> None:
        """
        Run all simulations, in as many threads as PyTorch uses. Each thread has its own blocks of roots, so the result does
        not depend on the number of threads.

        :param tree: flat trees, uninitialized; receive the search trees.
        :param roots: roots; receive the results of the search.
        :param settings: settings of the search.
        :param root_latent: latent states of the roots. Shape ``[B, latent_dim]``.
        :raises ValueError: if the roots or an output of the model are not finite.
        """
        self.check_num_actions(settings)
        self.run_in_threads(partial(run_simulations, tree), roots, settings, root_latent)

    def check_num_actions(self, settings: SearchSettings) -> None:
        """
        :param settings: settings of a search.
        :raises ValueError: if its roots have another number of actions than the model.
        """
        if settings.num_actions != self.num_actions:
            raise ValueError(f"root's prior_logits must be of {self.num_actions} actions, got {settings.num_actions}")

    def run_in_threads(
        self, simulate: Callable[..., int], roots: Roots, settings: SearchSettings, root_latent: Array, *inputs: Any
    ) -> None:
        """
        :param simulate: compiled function that searches from a range of roots, after its first argument.
        :param roots: roots; receive the results of the search.
        :param settings: settings of the search.
        :param root_latent: latent states of the roots. Shape ``[B, latent_dim]``.
        :param inputs: further arguments of the function, before the workspace.
        :raises ValueError: if the roots or an output of the model are not finite.
        """
        batch_size = roots.value.size
        root_latents = to_float32("root's latent", root_latent, (batch_size, self.latent_dim))

        def search(first_row: int, end_row: int) -> None:
            workspace = self._take_workspace(settings.num_nodes)
            workspace.leaves.discount[:] = self.discount
            row = simulate(roots, settings, root_latents, *inputs, *workspace, first_row, end_row)
            if row >= 0:
                check_roots(roots, settings)
                first = row - row % BLOCK
                check_leaves(Leaves(*(array[: batch_size - first] for array in workspace.leaves)), settings, first)
            self._workspaces.append(workspace)

        num_blocks = -(-batch_size // BLOCK)
        num_threads = min(torch.get_num_threads(), num_blocks)
        if num_threads == 1:
            search(0, batch_size)
            return
        ends = [min(num_blocks * (thread + 1) // num_threads * BLOCK, batch_size) for thread in range(num_threads)]
        with ThreadPoolExecutor(num_threads) as threads:
            list(threads.map(search, [0, *ends[:-1]], ends))

    def _evaluate(self, section: int, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """:return: latents ``[B, latent_dim]``, policy logits ``[B, A]``, values, rewards and discounts ``[3, B]``"""
        batch_size = len(inputs)
        latents = np.empty((batch_size, self.latent_dim), np.float32)
        prior_logits = np.empty((batch_size, self.num_actions), np.float32)
        scalars = np.empty((3, batch_size), np.float32)
        workspace = self._take_workspace(0)
        workspace.outputs.discount[:] = self.discount
        evaluate(workspace.program, workspace.outputs, section, inputs, latents, prior_logits, scalars)
        self._workspaces.append(workspace)
        return latents, prior_logits, scalars

    def _take_workspace(self, num_nodes: int) -> Any:
        """:return: buffers for a search with this many nodes, which no other thread uses until they are put back"""
        with contextlib.suppress(IndexError):
            if len((workspace := self._workspaces.pop()).latents) >= num_nodes:
                return workspace
        return self._make_workspace(num_nodes)

    def _make_workspace(self, num_nodes: int) -> Any:
        return Workspace(
            self._program._replace(activation_buffers=np.zeros_like(self._program.activation_buffers)),
            np.zeros((num_nodes, BLOCK, rounded_up(self.latent_dim)), np.float32),
            np.zeros(BLOCK, np.int64),
            instantiate_leaves(BLOCK, self.num_actions),
        )
