"""The model as the search sees it: keeps the latents of all nodes and evaluates one step per root and simulation."""

from typing import Any

import numpy as np
import torch

from sb3_muzero.search.checks import check_finite, check_numbers, check_prior_logits, check_shape, to_numpy
from sb3_muzero.search.state import Leaves, Roots, SearchSettings
from sb3_muzero.search.types import RecurrentFn, RecurrentOutput


class LatentModel:
    """
    A ``recurrent_fn`` together with the latents of every node.

    Latents lie in slots ``[N + 1, B, ...]``. The answer to simulation ``t`` always goes to slot ``t + 1``, also where a
    depth limit made the simulation evaluate an existing leaf again: such a leaf is never stepped from.

    :param recurrent_fn: the model.
    :param root_latent: latent states of the roots. Shape ``[B, ...]``.
    :param num_simulations: number of simulations.
    """

    def __init__(self, recurrent_fn: RecurrentFn, root_latent: Any, num_simulations: int) -> None:
        self.recurrent_fn = recurrent_fn
        self.latent_shape = tuple(root_latent.shape)
        self.rows = np.arange(self.latent_shape[0])
        self.slots = self._allocate((num_simulations + 1, *self.latent_shape), root_latent)
        self.slots[0] = root_latent

    def evaluate(self, simulation: int, leaves: Leaves) -> None:
        """
        Step from ``leaves.parent`` with ``leaves.action`` and write the model's answer into ``leaves``.

        :param simulation: number of the simulation.
        :param leaves: where the simulation ends.
        :raises ValueError: if the answer is not of the promised type and shapes, or not of real numbers.
        """
        output = self.recurrent_fn(*self._gather(leaves.parent * self.rows.size + self.rows, leaves.action))
        if not isinstance(output, RecurrentOutput):
            raise ValueError(f"recurrent_fn must return a RecurrentOutput, got a {type(output).__name__}")
        for name in ("reward", "discount", "prior_logits", "value"):
            check_numbers(f"recurrent_fn's {name}", getattr(output, name), getattr(leaves, name).shape)
        check_shape("recurrent_fn's latent", output.latent, self.latent_shape)
        self._store(simulation + 1, output.latent)
        reward, discount, value, prior_logits = self._to_host(output)
        leaves.reward[:] = reward
        leaves.discount[:] = discount
        leaves.value[:] = value
        leaves.prior_logits[:] = prior_logits

    def _allocate(self, shape: tuple[int, ...], like: Any) -> Any:
        return np.empty(shape, like.dtype)

    def _gather(self, slots: np.ndarray, action: np.ndarray) -> tuple[Any, Any]:
        return self.slots.reshape(-1, *self.latent_shape[1:]).take(slots, axis=0), action.copy()

    def _store(self, slot: int, latent: Any) -> None:
        if not isinstance(latent, np.ndarray) or not np.can_cast(latent.dtype, self.slots.dtype, casting="same_kind"):
            raise ValueError(
                f"recurrent_fn's latent must be a NumPy array of {self.slots.dtype} as the root's, got {latent.dtype}"
            )
        self.slots[slot] = latent

    def _to_host(self, output: RecurrentOutput) -> tuple[np.ndarray, ...]:
        return to_numpy(output.reward), to_numpy(output.discount), to_numpy(output.value), to_numpy(output.prior_logits)


class TorchLatentModel(LatentModel):
    """The same with tensors: on an accelerator each simulation costs one transfer to it and one back."""

    def _allocate(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        return torch.empty(shape, dtype=like.dtype, device=like.device)

    def _gather(self, slots: np.ndarray, action: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        selected = torch.from_numpy(np.stack((slots, action))).to(self.slots.device)
        return self.slots.flatten(0, 1).index_select(0, selected[0]), selected[1]

    def _store(self, slot: int, latent: Any) -> None:
        if not isinstance(latent, torch.Tensor) or not torch.can_cast(latent.dtype, self.slots.dtype):
            raise ValueError(f"recurrent_fn's latent must be a tensor of {self.slots.dtype} as the root's, got {latent.dtype}")
        self.slots[slot] = latent

    def _to_host(self, output: RecurrentOutput) -> tuple[np.ndarray, ...]:
        if self.slots.device.type == "cpu":
            return super()._to_host(output)
        columns = [torch.as_tensor(column, device=self.slots.device).float() for column in output[:-1]]
        packed = to_numpy(torch.cat([column.reshape(self.rows.size, -1) for column in columns], dim=1))
        return packed[:, 0], packed[:, 1], packed[:, -1], packed[:, 2:-1]


def make_latent_model(recurrent_fn: RecurrentFn, root_latent: Any, num_simulations: int) -> LatentModel:
    """
    :param recurrent_fn: the model.
    :param root_latent: latent states of the roots. Shape ``[B, ...]``.
    :param num_simulations: number of simulations.
    :return: the model for latents of this kind.
    """
    kind = TorchLatentModel if isinstance(root_latent, torch.Tensor) else LatentModel
    return kind(recurrent_fn, root_latent, num_simulations)


def check_roots(roots: Roots, settings: SearchSettings) -> None:
    """
    Say what in the model's view of the roots cannot be used.

    :param roots: the roots.
    :param settings: the sizes.
    :raises ValueError: naming the field and the row.
    """
    shape = (-1, settings.num_actions)
    check_prior_logits("root's prior_logits", roots.prior_logits.reshape(shape), roots.invalid.reshape(shape))
    check_finite("root's value", roots.value)


def check_answer(leaves: Leaves, first_row: int = 0) -> None:
    """
    Say what in the model's answer cannot be used.

    :param leaves: the answer to one simulation.
    :param first_row: the root that the first of the leaves belongs to.
    :raises ValueError: naming the field and the row.
    """
    check_finite("recurrent_fn's reward", leaves.reward, first_row)
    check_finite("recurrent_fn's discount", leaves.discount, first_row, largest=1.0)
    check_finite("recurrent_fn's value", leaves.value, first_row)
    check_prior_logits("recurrent_fn's prior_logits", leaves.prior_logits, first_row=first_row)
