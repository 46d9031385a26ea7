"""What goes into the replay buffer and what comes out of it."""

from typing import NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs


class SearchStatistics(NamedTuple):
    """
    What a search found at each of N observations: one per environment, or those of an episode. Without arguments there was
    no search; ``SearchStatistics(action_masks=masks)`` stands for random actions among the legal ones.

    :param model_version: Gradient updates of the model that searched
    :param weights: Policy target, probabilities of the K candidates, zero where there was no search, shape ``[N, K]``;
        ``None`` where there was none at all
    :param candidates: Actions that the search considered, shape ``[N, K, *action_shape]``; ``None`` for all actions in
        their order
    :param root_values: Values of the observations under the improved policy, shape ``[N]``; the buffer does not store them
    :param action_masks: True for legal actions, shape ``[N, num_actions]``; ``None`` if all are
    :param turn_signs: 1 where the same player is to move again after the step, -1 where the other one is, 0 where nobody knows
        since the episode ended, shape ``[N]``, int8; ``None`` for a single player, or two that move in turn
    """

    model_version: int = 0
    weights: np.ndarray | None = None
    candidates: np.ndarray | None = None
    root_values: np.ndarray | None = None
    action_masks: np.ndarray | None = None
    turn_signs: np.ndarray | None = None


class SequenceSamples(NamedTuple):
    """
    Sequences of one episode each. Position ``k`` is the state after ``k`` steps from the sampled one; a sequence has
    ``lengths`` steps, and its last position is the state where it ends (episode end or newest data).
    K = ``unroll_steps``, n = ``n_steps``, h = the sequence's own horizon.

    :param observations: At positions 0..K, the end repeated beyond it, shape ``[K + 1, B, *obs_shape]`` (a Dict of such)
    :param bootstrap_observations: At positions h..h+K, the end repeated beyond it, shape ``[K + 1, B, *obs_shape]``
    :param actions: Actions of steps 0..K-1, uniformly random beyond the end, shape ``[K, B, *action_shape]``
    :param rewards: Of steps 0..K+n-1, zero beyond the end, shape ``[K + n, B]``, with n no more than there are stored
    :param policies: Search policies at positions 0..K, zero where there was no search, shape
        ``[K + 1, B, num_candidates]``
    :param action_masks: True for legal actions at positions 0..K, for all of them from the end on, shape
        ``[K + 1, B, num_actions]``; ``None`` where every action always was
    :param lengths: Steps in the sequence, from 1 to K + n, shape ``[B]``
    :param terminated: Whether the sequence ends in a terminal state, shape ``[B]``
    :param horizons: Steps of the value targets before they bootstrap, from 1 to n, shape ``[B]``
    :param weights: Importance weights of prioritised sampling, at most 1, shape ``[B]``
    :param ids: Ids of the steps at positions 0..K, meaningless from the end on, shape ``[K + 1, B]``. A step that overwrites
        another one has an id of its own, so an answer that comes later than that changes nothing
    :param model_versions: Gradient updates of the model that searched there, meaningless from the end on, shape ``[K + 1, B]``
    :param candidates: Actions that ``policies`` weighs, shape ``[K + 1, B, num_candidates, *action_shape]``; ``None`` for all
        actions in their order
    :param reanalyzed_values: Values that replace n-step returns, shape ``[K + 1, B]``; ``None`` for none
    :param has_reanalyzed_value: Where they do, at positions before the end, shape ``[K + 1, B]``
    :param turn_signs: See ``SearchStatistics``, of steps 0..K+n-1, 0 beyond the end, shape ``[K + n, B]``, int8
    """

    observations: PyTorchObs
    bootstrap_observations: PyTorchObs
    actions: th.Tensor
    rewards: th.Tensor
    policies: th.Tensor
    action_masks: th.Tensor | None
    lengths: th.Tensor
    terminated: th.Tensor
    horizons: th.Tensor
    weights: th.Tensor
    ids: np.ndarray
    model_versions: np.ndarray
    candidates: th.Tensor | None = None
    reanalyzed_values: th.Tensor | None = None
    has_reanalyzed_value: th.Tensor | None = None
    turn_signs: th.Tensor | None = None

    def policy_age(self, num_updates: int) -> th.Tensor:
        """
        :param num_updates: Gradient updates so far
        :return: Mean age of the policy targets, in gradient updates, a scalar
        """
        searched = (self.policies.sum(-1) > 0).numpy(force=True)
        age = np.mean(num_updates - self.model_versions[searched]) if searched.any() else 0.0
        return th.tensor(age, dtype=th.float32, device=self.policies.device)
