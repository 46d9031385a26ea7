"""
Plans with candidates that are drawn from the policy, for actions that cannot be listed (Sampled MuZero,
https://arxiv.org/abs/2104.06303).
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from sb3_muzero.search.backends.numba.candidates import CandidateRules, is_cached
from sb3_muzero.search.backends.numba.compiled_model import CompiledModel
from sb3_muzero.search.backends.numba.sampled_model import CandidateSearch, CompiledSampledModel
from sb3_muzero.search.backends.snapshot import UnsupportedModelError
from sb3_muzero.search.backends.torch import TorchBackend
from sb3_muzero.search.checks import check_finite, to_float32, to_numpy
from sb3_muzero.search.planner import SEARCHES, Planner, PlannerSettings, check_encoder
from sb3_muzero.search.tree import ROOT_INDEX
from sb3_muzero.search.types import RecurrentOutput, RootOutput, SearchOutput


class Noise(NamedTuple):
    """
    The random numbers behind all candidates of a search, float32, on the host.

    :param root: for the root. Shape ``[B, K, D]``.
    :param inner: for the node that each simulation expands. Shape ``[N, B, K', D]``.
    """

    root: np.ndarray
    inner: np.ndarray


class CandidateSampler(Protocol):
    """What draws the candidates of a node, as many at each one; a prior logit of minus infinity marks those to leave out."""

    num_candidates: int
    num_policy_outputs: int
    encoding_dim: int
    dtype: Any
    rules: CandidateRules

    def is_known(self, encoder: Any) -> bool:
        """
        :param encoder: module that encodes actions.
        :return: whether it encodes them as ``rules`` say.
        """

    def draw_noise(self, generator: np.random.Generator, num_simulations: int, batch_size: int) -> Noise:
        """
        :param generator: source of randomness.
        :param num_simulations: number of simulations ``N``.
        :param batch_size: number of roots ``B``.
        :return: the noise of a search.
        """

    def propose(
        self, outputs: torch.Tensor, noise: torch.Tensor, action_masks: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param outputs: outputs of the policy head. Shape ``[B, num_outputs]``.
        :param noise: noise of the nodes. Shape ``[B, K, D]``.
        :param action_masks: masks of the action space; None if all actions are legal. Shape ``[B, mask_dim]``, bool.
        :return: candidates ``[B, A, *action_shape]`` and their prior logits ``[B, A]``.
        """

    def check_masks(self, action_masks: Any, batch_size: int) -> np.ndarray:
        """
        :param action_masks: True (or 1) for legal actions.
        :param batch_size: number of roots.
        :return: the masks, checked. Shape ``[B, mask_dim]``, bool.
        :raises ValueError: for masks that do not fit.
        """


class SampledPlanner(Planner):
    """
    Planner whose searches draw the candidates of each node from the policy there. A node's candidates are part of its latent,
    so the search itself sees a fixed number of actions.

    By default, Q values are rescaled over each node, and over no less than a ten-thousandth of the value error: differences
    between candidates are small beside those between states, and beside that error, which contains what the policy's own
    randomness costs.

    :param settings: settings of the searches; may be replaced between searches.
    :param sampler: draws the candidates.
    """

    QVALUE_SCOPE, MIN_RANGE = "node", 1e-4
    is_cached = staticmethod(is_cached)

    def __init__(self, settings: PlannerSettings, sampler: CandidateSampler) -> None:
        super().__init__(settings)
        self.sampler = sampler

    def search(self, model: Any, obs: Any, deterministic: bool, kwargs: dict[str, Any]) -> SearchOutput:
        """
        Noise is drawn from NumPy's global generator, once per search; a deterministic search has the same noise at each root.

        :raises ValueError: for outputs of the policy head that are too many, too few or not finite.
        """
        recurrent_fn: Any
        try:
            compiled: Any = self.compiled_model(model)
            root = compiled.initial_inference(model.features(obs))
        except UnsupportedModelError:
            compiled, root = None, self.root_output(model, obs)
        batch_size, masks = len(root.value), kwargs["action_masks"]
        name, shape = "root's output of the policy head", (batch_size, self.sampler.num_policy_outputs)
        check_finite(name, to_float32(name, root.prior_logits, shape))
        masks = None if masks is None else self.sampler.check_masks(masks, batch_size)
        state: Any = np.random.get_bit_generator()  # type: ignore[attr-defined]
        generator = np.random.default_rng(0) if deterministic else np.random.Generator(state)
        noise = self.sampler.draw_noise(generator, self.settings.num_simulations, 1 if deterministic else batch_size)
        if compiled is None:
            latent, prior_logits, recurrent_fn = self.in_pytorch(model, root, noise, masks)
        else:
            padded, prior_logits = compiled.propose_roots(root.prior_logits, noise.root, masks, len(noise.inner) + 1)
            latent, recurrent_fn = root.latent, CandidateSearch(compiled, padded, noise.inner)
        output = SEARCHES[self.settings.search](
            RootOutput(prior_logits, root.value, latent),
            recurrent_fn,
            self.settings.num_simulations,
            **(kwargs | {"action_masks": to_numpy(prior_logits > -np.inf)}),
        )
        of_nodes = recurrent_fn.candidates
        candidates = of_nodes[ROOT_INDEX].astype(self.sampler.dtype, copy=False)
        return output._replace(candidates=candidates, node_candidates=of_nodes.swapaxes(0, 1))

    def compile(self, model: Any) -> CompiledModel:
        sampler = self.sampler
        check_encoder(model.action_encoder, sampler.is_known(model.action_encoder))
        return CompiledSampledModel(model, self.settings.discount, sampler.encoding_dim, sampler.rules, sampler.num_candidates)

    def in_pytorch(
        self, model: Any, root: Any, noise: Noise, masks: np.ndarray | None
    ) -> tuple[tuple[Any, torch.Tensor], torch.Tensor, "CandidateBackend"]:
        """
        :param model: the ``LatentModel`` to search with.
        :param root: its output for the roots.
        :param noise: noise of the search.
        :param masks: masks of the roots.
        :return: latents of the roots, with their candidates ``[B, A, D]``; prior logits of these ``[B, A]``; and the
            ``recurrent_fn`` to search with.
        """
        sampler, batch_size, device = self.sampler, len(root.value), root.value.device
        root_noise, inner_noise = (torch.from_numpy(part).to(device) for part in noise)
        legal = None if masks is None else torch.from_numpy(masks).to(device)
        candidates, prior_logits = sampler.propose(root.prior_logits, root_noise.expand(batch_size, -1, -1), legal)

        def step(nodes: tuple[Any, Any], action: Any, noise: Any) -> RecurrentOutput:
            latent, candidates = nodes
            chosen = candidates[torch.arange(len(candidates), device=action.device), action]
            output = model.recurrent_inference(latent, chosen, self.settings.discount)
            candidates, prior_logits = sampler.propose(output.prior_logits, noise)
            return output._replace(prior_logits=prior_logits, latent=(output.latent, candidates))

        rows = iter(inner_noise.expand(-1, batch_size, -1, -1))
        actions = torch.zeros(batch_size, dtype=torch.int64, device=device)
        run_step = self.graphed_step(
            model, step, ((root.latent, candidates), actions, inner_noise[0].expand(batch_size, -1, -1))
        )
        backend = CandidateBackend(lambda latent, action: run_step(latent, action, next(rows)))
        return (root.latent, candidates), prior_logits, backend


class CandidateBackend(TorchBackend):
    """``TorchBackend`` where the last part of each node's latent are its candidates."""

    @property
    def candidates(self) -> np.ndarray:
        """Candidates of all nodes. Shape ``[N + 1, B, A, D]``."""
        return to_numpy([*self.latents.slots.values()][-1])
