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
    New search results for stored steps: the arguments of the buffer's ``update_search``.

    :param ids: The steps, as in ``SequenceSamples``, shape ``[B]``
    :param weights: Policy targets, shape ``[B, num_candidates]``
    :param model_version: Gradient updates of the model that searched
    :param candidates: Actions that the search considered, ``None`` for all actions in their order
    """

    ids: np.ndarray
    weights: np.ndarray
    model_version: int
    candidates: np.ndarray | None = None


class Reanalyzer:
    """
    Searches the first step of sequences again. Where the horizon of the value target is a single step, the value of the new
    policy replaces the one-step return.

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
        batch_size = samples.actions.shape[1]
        count = round(ratio * batch_size)
        if count == 0:
            return samples, None
        chosen = np.random.permutation(batch_size)[:count]
        observations = tree_map(lambda part: part[:, chosen], samples.observations)
        roots = tree_map(lambda part: part[0], observations)
        masks = None if samples.action_masks is None else samples.action_masks[0, chosen].numpy(force=True)
        target = self.policy.latent_model_target
        search = self.policy.plan(roots, deterministic=True, model=target, action_masks=masks)

        device = samples.policies.device
        policies, model_versions = samples.policies.clone(), samples.model_versions.copy()
        policies[0, chosen] = th.as_tensor(search.action_weights, device=device)
        model_versions[chosen] = model_version
        candidates = samples.candidates
        if candidates is not None and search.candidates is not None:
            candidates = candidates.clone()
            candidates[0, chosen] = th.as_tensor(search.candidates, device=device)
        values, known = th.zeros(policies.shape[:2], device=device), th.zeros(policies.shape[:2], dtype=th.bool, device=device)
        single_step = (samples.horizons[chosen] == 1).numpy(force=True)
        replaced = chosen[single_step]
        if len(replaced) > 0:
            values[0, replaced] = th.as_tensor(search.improved_value[single_step], device=device)
            successors = tree_map(lambda part: part[1:, single_step], observations)
            values[1:, replaced] = target.predict_values(successors).squeeze(-1)
            known[:, replaced] = True
        reanalyzed = samples._replace(
            policies=policies,
            model_versions=model_versions,
            candidates=candidates,
            reanalyzed_values=values,
            has_reanalyzed_value=known,
        )
        return reanalyzed, SearchUpdate(samples.ids[chosen], search.action_weights, model_version, search.candidates)
