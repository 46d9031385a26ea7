"""The default backend for models with chance: each simulation calls each of two functions for the roots where it is needed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sb3_muzero.search.backends.latents import NumpyLatents, instantiate_latents
from sb3_muzero.search.backends.torch import ModelFunction, TorchBackend, check_output_class
from sb3_muzero.search.checks import check_latent, check_setting
from sb3_muzero.search.state import Leaves, Roots, SearchSettings
from sb3_muzero.search.types import AfterstateOutput, ChanceModel, RecurrentOutput


def count_outcomes(model: ChanceModel, roots: Roots, root_latent: Any) -> int:
    """
    :param model: the model.
    :param roots: roots.
    :param root_latent: latent states of the roots. Shape ``[B, ...]``.
    :return: number of outcomes, which the model says or the first root's afterstate shows.
    :raises ValueError: unless there is at least one.
    """
    if model.num_outcomes is not None:
        return check_setting("num_outcomes", model.num_outcomes)
    legal = roots.action_masks.reshape(roots.value.size, -1)[0].argmax(keepdims=True)
    first = np.zeros(1, np.int64)
    with torch.inference_mode():
        inputs = instantiate_latents(root_latent, 1).read(first, legal, first)
        output = model.afterstate_fn(*inputs)
    check_output_class("afterstate_fn", output, AfterstateOutput)
    logits = output.chance_logits
    shape = tuple(getattr(logits, "shape", ()))
    if len(shape) != 2 or shape[1] == 0:
        allowed = "must be an array of shape [B, C] with at least one outcome"
        raise ValueError(f"afterstate_fn's chance_logits {allowed}, got {list(shape) or type(logits).__name__}")
    return shape[1]


def write_outputs(leaves: Leaves, rows: np.ndarray, logits: np.ndarray, value: np.ndarray, reward: Any, discount: Any) -> None:
    """
    :param leaves: one simulation; receives the outputs.
    :param rows: trees that they are for. Shape ``[R]``, int64.
    :param logits: logits of the nodes' actions or outcomes. Shape ``[R, A]`` or ``[R, C]``.
    :param value: values of the nodes. Shape ``[R]``.
    :param reward: rewards of the steps. Shape ``[R]``, or a number.
    :param discount: discounts of the steps. Shape ``[R]``, or a number.
    """
    leaves.reward[rows], leaves.discount[rows], leaves.value[rows] = reward, discount, value
    leaves.prior_logits[rows] = -np.inf
    leaves.prior_logits[rows, : logits.shape[1]] = logits


class ChanceBackend(TorchBackend):
    """
    Searches with a model with chance in PyTorch or NumPy.

    :param model: the model.
    :param roots: roots.
    :param root_latent: latent states of the roots. Shape ``[B, ...]``.
    """

    def __init__(self, model: ChanceModel, roots: Roots, root_latent: Any) -> None:
        self.model = model
        self.num_outcomes = count_outcomes(model, roots, root_latent)

    def evaluator(self, root_latent: Any, settings: SearchSettings) -> Callable[[int, Leaves], None]:
        """
        :param root_latent: latent states of the roots.
        :param settings: settings of the search.
        :return: ``evaluate(node, leaves)``, which computes the nodes that a simulation adds and writes them into ``leaves``.
        """
        act = ModelFunction("afterstate_fn", self.model.afterstate_fn, AfterstateOutput, settings.num_outcomes)
        step = ModelFunction("chance_fn", self.model.chance_fn, RecurrentOutput, settings.num_actions)
        states = instantiate_latents(root_latent, settings.num_nodes, "chance_fn", "the root's")
        kept: list[NumpyLatents] = []  # of the afterstates, whose structure the first ones show

        def add_afterstates(node: int, leaves: Leaves, rows: np.ndarray) -> None:
            inputs = states.read(leaves.parent[rows], leaves.action[rows], rows)
            output = act(*inputs)
            if not kept:  # the first simulation adds an afterstate to every root
                check_latent(output.latent, rows.size, "afterstate_fn's latent")
                kept.append(instantiate_latents(output.latent, settings.num_nodes, "afterstate_fn", "the first one"))
            kept[0].write(node, output.latent, rows)
            chance_logits, value = kept[0].to_host(output)
            write_outputs(leaves, rows, chance_logits, value, 0.0, 1.0)

        def add_states(node: int, leaves: Leaves, rows: np.ndarray) -> None:
            inputs = kept[0].read(leaves.parent[rows], leaves.action[rows], rows)
            output = step(*inputs)
            states.write(node, output.latent, rows)
            reward, discount, prior_logits, value = states.to_host(output)
            write_outputs(leaves, rows, prior_logits, value, reward, discount)

        def evaluate(node: int, leaves: Leaves) -> None:
            for add, is_added in ((add_afterstates, leaves.is_chance), (add_states, ~leaves.is_chance)):
                if (rows := np.flatnonzero(is_added)).size:
                    add(node, leaves, rows)

        return evaluate
