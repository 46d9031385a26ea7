"""The MuZero loss: unroll the latent model over a batch of sequences and match policy, value, reward and latents."""

from typing import NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from torch.nn import functional as F

from sb3_muzero.common.pytree import tree_map
from sb3_muzero.learning.targets import UnrollTargets
from sb3_muzero.models.mlp import PredictionOutput
from sb3_muzero.policies import MuZeroPolicy
from sb3_muzero.replay.sequences import SequenceSamples


class LossTerms(NamedTuple):
    """
    Each term summed over the unroll and averaged over the batch, before its coefficient; scalars but for the last.

    :param policy: Cross-entropy to the search policies
    :param entropy: Negative entropy of the policy among legal actions, where there is a search policy
    :param value: Cross-entropy to the n-step returns on the value support
    :param reward: Cross-entropy to the rewards on the reward support
    :param consistency: Negative cosine between predicted latents and those of the observations that followed, plus one
    :param value_errors: How far the value is from its target at position 0, without gradient, shape ``[B]``
    """

    policy: th.Tensor
    entropy: th.Tensor
    value: th.Tensor
    reward: th.Tensor
    consistency: th.Tensor
    value_errors: th.Tensor


def scale_gradient(tensor: th.Tensor, scale: float) -> th.Tensor:
    """
    :param tensor: Any shape
    :param scale: What its gradient is multiplied by
    :return: The same values
    """
    return th.lerp(tensor.detach(), tensor, scale)


def cosine_similarity(a: th.Tensor, b: th.Tensor) -> th.Tensor:
    """
    PyTorch's own, in half the time.

    :param a: Shape ``[..., width]``
    :param b: Shape ``[..., width]``
    :return: Shape ``[...]``
    """
    inverse_norms = [th.linalg.vecdot(x, x).clamp(min=1e-16).rsqrt() for x in (a, b)]
    return th.linalg.vecdot(a, b) * inverse_norms[0] * inverse_norms[1]


def unroll(
    policy: MuZeroPolicy, observations: PyTorchObs, actions: th.Tensor, augment: bool = False
) -> tuple[th.Tensor, PredictionOutput]:
    """
    Imagine what follows observations. Only the K dynamics calls follow one another; every head runs once, on all latents.
    The gradient is halved where a latent enters the next dynamics call, not where its own heads read it.

    :param policy: Its online model imagines
    :param observations: What is seen, shape ``[B, *obs_shape]``
    :param actions: Indices of the actions that are taken from there, shape ``[K, B]``
    :param augment: Whether images are changed at random first
    :return: Latents at positions 0..K, shape ``[K + 1, B, latent_dim]``, and what the prediction function says of them
    """
    model = policy.latent_model
    latents = [policy.represent(observations, augment=augment)]
    for action in actions:
        latents.append(model.dynamics(scale_gradient(latents[-1], 0.5), action))
    stacked = th.stack(latents)
    return stacked, model.prediction(stacked)


def muzero_loss(policy: MuZeroPolicy, samples: SequenceSamples, targets: UnrollTargets) -> LossTerms:
    """
    The loss of MuZero (https://arxiv.org/abs/1911.08265, Appendix G, Equation 1) with EfficientZero's self-supervised
    consistency (https://arxiv.org/abs/2111.00210, Section 4.1). Unrolled steps weigh 1/K.

    :param policy: Its online model is trained
    :param samples: The sequences
    :param targets: Their targets
    :return: The terms, with gradients
    """
    model = policy.latent_model
    roots = tree_map(lambda part: part[0], samples.observations)
    latents, predicted = unroll(policy, roots, samples.actions, augment=True)

    weights = (samples.weights / latents.shape[1]).repeat(len(latents), 1)
    weights[1:] /= len(samples.actions)

    log_policies = F.log_softmax(predicted.policy_logits, dim=-1)
    policy_loss = -(targets.policies * log_policies).sum(-1)
    if samples.action_masks is not None:  # the policy itself is to learn which actions are legal, deeper in the tree
        log_policies = F.log_softmax(predicted.policy_logits.masked_fill(~samples.action_masks, -1e8), dim=-1)
    entropy_loss = (log_policies.exp() * log_policies * targets.policies.sum(-1, keepdim=True)).sum(-1)
    value_loss = model.value_support.cross_entropy(predicted.value_logits, targets.values)
    reward_loss = model.reward_support.cross_entropy(predicted.reward_logits[1:], targets.rewards)
    with th.no_grad():
        observed = policy.represent(tree_map(lambda part: part[1:], samples.observations), augment=True)
        value_errors = (model.value_support.expectation(predicted.value_logits[0]) - targets.values[0]).abs()
    consistency_loss = 1 - cosine_similarity(latents[1:], observed)

    return LossTerms(
        policy=(policy_loss * weights).sum(),
        entropy=(entropy_loss * weights).sum(),
        value=(value_loss * (weights * targets.value_weights)).sum(),
        reward=(reward_loss * (weights[1:] * targets.reward_weights)).sum(),
        consistency=(consistency_loss * (weights[1:] * targets.latent_weights)).sum(),
        value_errors=value_errors,
    )
