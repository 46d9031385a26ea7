"""What a model says about itself: errors of the model, the search and the values, the state of the networks."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_muzero.buffers import SequenceSamples
from sb3_muzero.loss import cosine_similarity, unroll
from sb3_muzero.observation_ring import map_observations
from sb3_muzero.policies import MuZeroPolicy
from sb3_muzero.search import SearchOutput
from sb3_muzero.targets import UnrollTargets


class ModelErrors(NamedTuple):
    """
    How far what the model imagines is from what happened, by unroll depth; NaN where nothing was known at that depth.

    :param reward: Mean absolute error of the reward at depths 1..K, in reward units, shape ``[K]``
    :param value: Of the value from its n-step target at depths 0..K, in reward units, shape ``[K + 1]``
    :param policy: KL divergence of the policy from the search policy at depths 0..K, in nats, shape ``[K + 1]``
    :param consistency: One minus the cosine between imagined and observed latents at depths 1..K, shape ``[K]``
    """

    reward: np.ndarray
    value: np.ndarray
    policy: np.ndarray
    consistency: np.ndarray


@th.no_grad()
def model_errors(policy: MuZeroPolicy, samples: SequenceSamples, targets: UnrollTargets) -> ModelErrors:
    """
    :param policy: Its online model is looked at
    :param samples: The sequences
    :param targets: Their targets
    :return: Errors by unroll depth
    """
    model = policy.latent_model
    latents, predicted = unroll(policy, samples, augment=False)
    observed = policy.represent(map_observations(lambda part: part[1:], samples.observations))
    values = model.value_support.expectation(predicted.value_logits)
    rewards = model.reward_support.expectation(predicted.reward_logits[1:])
    log_targets = targets.policies.clamp(min=1e-30).log()
    divergence = (targets.policies * (log_targets - F.log_softmax(predicted.policy_logits, dim=-1))).sum(-1)
    errors = (
        ((rewards - targets.rewards).abs(), targets.reward_weights),
        ((values - targets.values).abs(), targets.value_weights),
        (divergence, (targets.policies.sum(-1) > 0).float()),
        (1 - cosine_similarity(latents[1:], observed), targets.latent_weights),
    )
    return ModelErrors(*(((error * known).sum(1) / known.sum(1)).numpy(force=True) for error, known in errors))


class PolicyImprovement(NamedTuple):
    """
    Search against prior, means over decisions.

    :param divergence: KL divergence of the improved policy from the prior, in nats
    :param agreement: Share of decisions whose likeliest action is the same in both
    :param prior_entropy: In nats
    :param improved_entropy: In nats
    """

    divergence: float
    agreement: float
    prior_entropy: float
    improved_entropy: float


def policy_improvement(search: SearchOutput) -> PolicyImprovement:
    """
    :param search: Result of a search
    :return: What it changed
    """
    prior, improved = search.tree.children_prior_probs[:, 0], search.action_weights
    log_prior, log_improved = (np.log(np.maximum(policy, np.finfo(np.float32).tiny)) for policy in (prior, improved))
    return PolicyImprovement(
        divergence=float((improved * (log_improved - log_prior)).sum(-1).mean()),
        agreement=float((prior.argmax(-1) == improved.argmax(-1)).mean()),
        prior_entropy=float(-(prior * log_prior).sum(-1).mean()),
        improved_entropy=float(-(improved * log_improved).sum(-1).mean()),
    )


def effective_rank(latents: th.Tensor) -> float:
    """
    Exponential of the entropy of the singular values' shares (Roy and Vetterli, 2007, Definition 2), of latents around their
    mean: how many directions they make use of.

    :param latents: Shape ``[B, latent_dim]``
    :return: From 1, or 0 where all are alike, to the smaller of both sizes
    """
    singular = th.linalg.svdvals((latents - latents.mean(0)).double())
    if singular.sum() < 1e-12:
        return 0.0
    shares = singular / singular.sum()
    return float(th.special.entr(shares).sum().exp())


def dormant_share(
    model: nn.Module, activation_fn: type[nn.Module], run: Callable[[], object], threshold: float = 0.025
) -> float:
    """
    Share of a model's hidden units that hardly ever act: whose mean activation is at most ``threshold`` of their layer's
    (Sokar et al., https://arxiv.org/abs/2302.12902, Definition 3.1).

    :param model: Module whose activations are looked at
    :param activation_fn: What counts as one
    :param run: Runs the model
    :param threshold: Share of the layer's mean
    :return: From 0 to 1; NaN for a model without such activations
    """
    sums: dict[nn.Module, th.Tensor] = {}

    def add(module: nn.Module, _: object, output: th.Tensor) -> None:
        units = output.abs().movedim(1 if output.dim() == 4 else -1, -1).flatten(0, -2).sum(0)  # a channel is one of images
        sums[module] = sums.get(module, 0.0) + units

    handles = [module.register_forward_hook(add) for module in model.modules() if isinstance(module, (activation_fn, nn.ReLU))]
    try:
        with th.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    if not sums:
        return float("nan")
    return float(th.cat([total <= threshold * total.mean() for total in sums.values()]).float().mean())


def discounted_returns(rewards: np.ndarray, gamma: float, last_value: float = 0.0) -> np.ndarray:
    """
    :param rewards: Of an episode, shape ``[T]``
    :param gamma: Discount factor
    :param last_value: Value of the state after the last step, 0 where that is terminal
    :return: What was earned from each step on, shape ``[T]``
    """
    returns = np.empty(len(rewards))
    for step in range(len(rewards) - 1, -1, -1):
        last_value = rewards[step] + gamma * last_value
        returns[step] = last_value
    return returns
