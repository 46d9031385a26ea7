"""MuZero Reanalyze: stored steps are searched again with a newer model (https://arxiv.org/abs/2104.06294)."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch as th

from sb3_muzero.common.pytree import tree_map
from sb3_muzero.replay.sequences import SequenceSamples

if TYPE_CHECKING:
    from sb3_muzero.policies import MuZeroPolicy


class SearchUpdate(NamedTuple):
    """
    New search results for N stored steps: the arguments of the buffer's ``update_search``.

    :param ids: The steps, as in ``SequenceSamples``, shape ``[N]``
    :param weights: Policy targets, shape ``[N, num_candidates]``
    :param model_version: Gradient updates of the model that searched
    :param candidates: Actions that the search considered, ``None`` for all actions in their order
    """

    ids: np.ndarray
    weights: np.ndarray
    model_version: int
    candidates: np.ndarray | None = None


class Reanalyzer:
    """
    Searches all steps of sequences again, in one batch. Where the horizon of the value target is a single step, the value of
    the new policy replaces the one-step return.

    :param policy: Policy whose target model searches
    """

    def __init__(self, policy: "MuZeroPolicy") -> None:
        self.policy = policy

    @th.no_grad()
    def __call__(
        self, samples: SequenceSamples, ratio: float, model_version: int
    ) -> tuple[SequenceSamples, SearchUpdate | None]:
        """
        :param samples: The sequences
        :param ratio: Fraction of the sequences that are searched again, drawn at random
        :param model_version: Gradient updates so far
        :return: Sequences with the new policies and values, and the update for the replay buffer, ``None`` without a search
        """
        num_positions, batch_size = samples.policies.shape[:2]
        count = round(ratio * batch_size)
        if count == 0:
            return samples, None
        chosen = np.random.permutation(batch_size)[:count]
        device = samples.policies.device
        # Beyond its end a sequence has no steps; CUDA graphs need as many roots in each search
        is_step = np.arange(num_positions)[:, None] < samples.lengths[chosen].numpy(force=True)
        is_root = is_step | samples.policies.is_cuda
        steps, where = is_step[is_root], (np.nonzero(is_step)[0], chosen[np.nonzero(is_step)[1]])
        searched = th.as_tensor(is_root, device=device)
        roots = tree_map(lambda part: part[:, chosen][searched], samples.observations)
        masks = None if samples.action_masks is None else samples.action_masks[:, chosen][searched].numpy(force=True)
        search = self.policy.plan(roots, exploration=0.0, model=self.policy.latent_model_target, action_masks=masks)

        def replaced(tensor: th.Tensor, results: np.ndarray) -> th.Tensor:
            tensor = tensor.clone()
            tensor[where] = th.as_tensor(results[steps], device=device)
            return tensor

        model_versions = samples.model_versions.copy()
        model_versions[where] = model_version
        candidates, new_candidates = samples.candidates, None if search.candidates is None else search.candidates[steps]
        if candidates is not None and search.candidates is not None:
            candidates = replaced(candidates, search.candidates)
        known = th.zeros(batch_size, dtype=th.bool, device=device)
        known[chosen] = samples.horizons[chosen] == 1
        reanalyzed = samples._replace(
            policies=replaced(samples.policies, search.action_weights),
            model_versions=model_versions,
            candidates=candidates,
            reanalyzed_values=replaced(th.zeros(samples.policies.shape[:2], device=device), search.improved_value),
            has_reanalyzed_value=known.expand(num_positions, -1),
        )
        return reanalyzed, SearchUpdate(samples.ids[where], search.action_weights[steps], model_version, new_candidates)
