"""The MuZero loss: unroll the latent model over a batch of sequences and match policy, value, reward and latents."""

from typing import NamedTuple

import torch as th
from torch.nn import functional as F

from sb3_muzero.actions import Actions
from sb3_muzero.common.pytree import tree_leaves, tree_map
from sb3_muzero.learning.targets import UnrollTargets
from sb3_muzero.models.base import LatentModel
from sb3_muzero.replay.sequences import SequenceSamples


class LossOutput(NamedTuple):
    """
    The terms of the loss, each summed over the unroll and averaged over the batch, before its coefficient.

    :param losses: Scalars: ``policy`` (cross-entropy to the search policies), ``entropy`` (negative entropy of the policy
        among legal actions, where there is a search policy), ``value`` and ``reward`` (cross-entropies on the supports),
        ``consistency`` (one minus the cosine between predicted latents and those of the observations that followed) and, where
        it is predicted who moves next, ``turn`` (binary cross-entropy)
    :param value_errors: Absolute errors of the value at position 0, without gradient, shape ``[B]``
    """

    losses: dict[str, th.Tensor]
    value_errors: th.Tensor


def cosine_similarity(a: th.Tensor, b: th.Tensor) -> th.Tensor:
    """
    Faster equivalent of PyTorch's ``cosine_similarity``.

    :param a: Shape ``[..., width]``
    :param b: Shape ``[..., width]``
    :return: Shape ``[...]``
    """
    inverse_norms = [th.linalg.vecdot(x, x).clamp(min=1e-16).rsqrt() for x in (a, b)]
    return th.linalg.vecdot(a, b) * inverse_norms[0] * inverse_norms[1]


def muzero_loss(model: LatentModel, actions: Actions, samples: SequenceSamples, targets: UnrollTargets) -> LossOutput:
    """
    The loss of MuZero (https://arxiv.org/abs/1911.08265, Appendix G, Equation 1) with EfficientZero's self-supervised
    consistency (https://arxiv.org/abs/2111.00210, Section 4.1). The loss of each unrolled step is scaled by 1/K.

    :param model: The model that is trained
    :param actions: The action space
    :param samples: The sequences
    :param targets: Their targets
    :return: Terms of the loss, before their coefficients
    """
    roots = tree_map(lambda part: part[0], samples.observations)
    predicted = model.unroll(roots, samples.actions, augment=True)

    num_positions, batch_size = predicted.value_logits.shape[:2]
    root_weights = samples.weights / batch_size
    step_weights = root_weights / len(samples.actions)
    weights = th.stack([root_weights, *[step_weights] * (num_positions - 1)])

    distribution = legal = actions.distribution(predicted.policy_logits)
    policy_loss = -(targets.policies * distribution.log_prob(samples.candidates)).sum(-1)
    if samples.action_masks is not None:  # the policy learns legality, since nodes below the root are not masked
        legal = actions.distribution(predicted.policy_logits, samples.action_masks)
    entropy = legal.entropy(targets.policies.sum(-1))
    value_loss = model.value_support.cross_entropy(predicted.value_logits, targets.values)
    reward_loss = model.reward_support.cross_entropy(predicted.reward_logits, targets.rewards)
    with th.no_grad():
        observed = model.represent(tree_map(lambda part: part[1:], samples.observations), augment=True)
        value_errors = (model.value_support.expectation(predicted.value_logits[0]) - targets.values[0]).abs()
    pairs = list(zip(tree_leaves(predicted.latents), tree_leaves(observed), strict=True))
    consistency_loss = 1 - sum(cosine_similarity(latent[1:], seen) for latent, seen in pairs) / len(pairs)

    losses = {
        "policy": (policy_loss * weights).sum(),
        "entropy": (-entropy * weights).sum(),
        "value": (value_loss * (weights * targets.value_weights)).sum(),
        "reward": (reward_loss * (step_weights * targets.reward_weights)).sum(),
        "consistency": (consistency_loss * (step_weights * targets.latent_weights)).sum(),
    }
    if model.turn_head is not None and samples.turn_signs is not None:
        signs = samples.turn_signs[: len(samples.actions)]
        same_player, known = (signs > 0).float(), (signs != 0).float()
        logits = model.turn_head(predicted.latents[1:]).squeeze(-1)
        turn_loss = F.binary_cross_entropy_with_logits(logits, same_player, reduction="none")
        losses["turn"] = (turn_loss * (step_weights * known)).sum()
    return LossOutput(losses, value_errors)
