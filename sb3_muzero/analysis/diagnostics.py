"""
Diagnostics of a model: errors of its predictions, effect of the search, calibration of values, state of the networks.

All are computed from sequences that are sampled as in training: with priorities, and with bonuses for novelty added to the
rewards, where there are any.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_muzero.actions.distributions import MASKED_LOGIT
from sb3_muzero.actions.sampled import log_shares
from sb3_muzero.checkpointing.settings import constructor_arguments
from sb3_muzero.common.pytree import tree_map
from sb3_muzero.learning.losses import cosine_similarity, muzero_loss
from sb3_muzero.learning.targets import UnrollTargets
from sb3_muzero.muzero import MuZero
from sb3_muzero.policies import MuZeroPolicy
from sb3_muzero.replay.samplers import PrioritizedSampler
from sb3_muzero.replay.sequences import SequenceSamples
from sb3_muzero.search import SearchOutput

METRICS = {
    "model_error/reward": "Mean absolute error of the predicted reward after k unrolled steps. Should be small against the "
    "size of rewards; an error that grows with k means that the dynamics lose what rewards depend on.",
    "model_error/value": "Mean absolute error of the predicted value from its target after k unrolled steps. Should fall "
    "during training and grow little with k; a high error at k = 0 means noisy returns, or a value that is not learned.",
    "model_error/policy": "KL(search policy || predicted policy) after k unrolled steps, in nats. Should be below 0.1 late in "
    "training; a high value at k = 0 means that stored search results contradict each other (`reanalyze_ratio`).",
    "model_error/consistency": "One minus the cosine similarity of predicted and encoded latents. Should be below 0.1; near 1 "
    "the dynamics do not predict the next observation.",
    "policy_kl": "KL(search policy || prior policy), in nats. Should fall during training; 0 from the "
    "beginning means that values are flat and that the search does not change the policy.",
    "agreement": "Fraction of states in which prior and search policy have the same most likely action. Should be above 0.7 "
    "late in training; near 1 / number of actions the network does not learn the search policy.",
    "prior_entropy": "Entropy of the prior policy, in nats. Near 0 while returns are low, the policy has "
    "collapsed (`ent_coef`).",
    "search_entropy": "Entropy of the search policy, in nats. If it equals the entropy of the prior, the search does not "
    "change the policy.",
    "value_bias": "Mean difference of root values (of the improved policy) and the discounted returns that followed. Should "
    "be small against their size; far above 0, values are overestimated (bonuses for novelty and priorities count, too).",
    "value_correlation": "Correlation of root values and the discounted returns that followed. Should be above 0.5; near 0, "
    "the search plans with noise.",
    "effective_rank": "Effective dimension of the latents (Roy and Vetterli, 2007). If it falls to a few, the representation "
    "collapses.",
    "dormant_units": "Fraction of hidden units that are almost never active (https://arxiv.org/abs/2302.12902). Above 0.5 a "
    "layer has died; observations may need normalization.",
    "replay_coverage": "Effective fraction of the stored steps under prioritized sampling, (sum p)^2 / (n sum p^2). Below "
    "0.05 the same few steps are sampled again and again.",
    "grad_norm": "Gradient norm of each weighted loss, without reanalysis. A loss whose norm is ten times that of the others "
    "dominates the representation.",
}
"""What each figure is, which values are healthy, and what others mean."""


class ModelErrors(NamedTuple):
    """
    Errors of the model's predictions by unroll depth, up to the end of episodes; NaN for depths without a target.

    :param reward: Mean absolute error of the reward at depths 1..K, in reward units, shape ``[K]``
    :param value: Of the value from its n-step target at depths 0..K, in reward units, shape ``[K + 1]``
    :param policy: KL divergence of the policy from the search policy at depths 0..K, in nats, shape ``[K + 1]``
    :param consistency: One minus the cosine of predicted and encoded latents at depths 1..K, shape ``[K]``
    """

    reward: np.ndarray
    value: np.ndarray
    policy: np.ndarray
    consistency: np.ndarray


@th.no_grad()
def model_errors(policy: MuZeroPolicy, samples: SequenceSamples, targets: UnrollTargets) -> ModelErrors:
    """
    :param policy: Policy, whose online model is evaluated
    :param samples: Sequences
    :param targets: Their targets
    :return: Errors by unroll depth
    """
    model = policy.latent_model
    predicted = model.unroll(tree_map(lambda part: part[0], samples.observations), samples.actions)
    observed = policy.represent(tree_map(lambda part: part[1:], samples.observations))
    values = model.value_support.expectation(predicted.value_logits)
    rewards = model.reward_support.expectation(predicted.reward_logits)
    log_targets = targets.policies.clamp(min=1e-30).log()
    log_policies = policy.actions.distribution(predicted.policy_logits).log_prob(samples.candidates)
    if samples.candidates is not None:  # equal ones are one action, whose weight the first has
        log_policies = log_policies.masked_fill(log_shares(samples.candidates) == -th.inf, MASKED_LOGIT)
    divergence = (targets.policies * (log_targets - F.log_softmax(log_policies, dim=-1))).sum(-1)
    inside = (th.arange(len(values), device=samples.lengths.device).unsqueeze(-1) <= samples.lengths).float()
    errors = (
        ((rewards - targets.rewards).abs(), targets.reward_weights),
        ((values - targets.values).abs(), targets.value_weights),
        (divergence, (targets.policies.sum(-1) > 0).float()),
        (1 - cosine_similarity(predicted.latents[1:], observed), targets.latent_weights),
    )
    known_errors = ((error, known * inside[-len(known) :]) for error, known in errors)
    return ModelErrors(*(((error * known).sum(1) / known.sum(1)).numpy(force=True) for error, known in known_errors))


def policy_improvement(search: SearchOutput) -> dict[str, float]:
    """
    :param search: Result of a search
    :return: How it changed the policy: ``policy_kl``, ``agreement``, ``prior_entropy`` and ``search_entropy``, means over
        decisions, see ``METRICS``
    """
    prior, improved = search.tree.children_prior_probs[:, 0], search.action_weights
    log_prior, log_improved = (np.log(np.maximum(policy, np.finfo(np.float32).tiny)) for policy in (prior, improved))
    return {
        "policy_kl": float((improved * (log_improved - log_prior)).sum(-1).mean()),
        "agreement": float((prior.argmax(-1) == improved.argmax(-1)).mean()),
        "prior_entropy": float(-(prior * log_prior).sum(-1).mean()),
        "search_entropy": float(-(improved * log_improved).sum(-1).mean()),
    }


def effective_rank(latents: th.Tensor) -> float:
    """
    Effective dimension of latents: the exponential of the entropy of the normalized singular values (Roy and Vetterli, 2007,
    Definition 2) of centred latents.

    :param latents: Shape ``[B, latent_dim]``
    :return: From 1 to ``min(B, latent_dim)``, or 0 if all latents are equal
    """
    singular = th.linalg.svdvals((latents - latents.mean(0)).double())
    if singular.sum() < 1e-12:
        return 0.0
    shares = singular / singular.sum()
    return float(th.special.entr(shares).sum().exp())


def dormant_share(model: nn.Module, activation: type[nn.Module], run: Callable[[], object], threshold: float = 0.025) -> float:
    """
    Fraction of dormant hidden units: those whose mean activation is at most ``threshold`` times the mean of their layer
    (Sokar et al., https://arxiv.org/abs/2302.12902, Definition 3.1).

    :param model: Module
    :param activation: Its activation function, besides ``nn.ReLU``
    :param run: Runs the model
    :param threshold: Fraction of the layer's mean
    :return: From 0 to 1; NaN for a model without such activations
    """
    sums: dict[tuple[nn.Module, int], th.Tensor] = {}  # one module may serve layers of several widths

    def add(module: nn.Module, _: object, output: th.Tensor) -> None:
        units = output.abs().movedim(1 if output.dim() == 4 else -1, -1).flatten(0, -2).sum(0)  # a channel is one of images
        layer = module, len(units)
        sums[layer] = sums.get(layer, 0.0) + units

    handles = [module.register_forward_hook(add) for module in model.modules() if isinstance(module, (activation, nn.ReLU))]
    try:
        with th.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    if not sums:
        return float("nan")
    return float(th.cat([total <= threshold * total.mean() for total in sums.values()]).float().mean())


def discounted_returns(rewards: np.ndarray, discount: float | np.ndarray, last_value: float = 0.0) -> np.ndarray:
    """
    :param rewards: Of an episode, shape ``[T]``
    :param discount: Factor from the return after a step to that before it, negative where the other player moves next; one
        for all steps, or shape ``[T]``
    :param last_value: Value of the state after the last step, 0 if that is terminal
    :return: Discounted return from each step on, shape ``[T]``
    """
    returns, discounts = np.empty(len(rewards)), np.broadcast_to(discount, len(rewards))
    for step in range(len(rewards) - 1, -1, -1):
        last_value = rewards[step] + discounts[step] * last_value
        returns[step] = last_value
    return returns


def measure(model: MuZero, batch_size: int, unroll_steps: int) -> tuple[ModelErrors, dict[str, float]]:
    """
    Compute all diagnostics that need no episodes. Draws random numbers, but trains nothing.

    :param model: Model whose replay buffer is not empty
    :param batch_size: Number of sequences
    :param unroll_steps: Depth of the model's errors
    :return: The model's errors by unroll depth, and the other figures of ``METRICS``
    """
    policy = model.policy
    policy.set_training_mode(False)
    samples = model.sample(batch_size, unroll_steps)
    targets = model.learner.targets(samples)
    roots = tree_map(lambda part: part[0], samples.observations)
    masks = None if samples.action_masks is None else samples.action_masks[0].numpy(force=True)
    figures = policy_improvement(policy.plan(roots, deterministic=True, action_masks=masks))

    with th.no_grad():
        figures["effective_rank"] = effective_rank(policy.represent(roots))
    imagine = partial(policy.latent_model.unroll, roots, samples.actions)
    figures["dormant_units"] = dormant_share(policy.latent_model, type(policy.activation_fn()), imagine)

    buffer = model.replay_buffer
    if isinstance(buffer.sampler, PrioritizedSampler) and buffer.sampler.priorities is not None:
        shares = buffer.sampler.priorities[buffer.index.places(buffer.index.stored())]
        figures["replay_coverage"] = float(shares.sum() ** 2 / (len(shares) * (shares**2).sum()))

    parameters = [parameter for parameter in policy.latent_model.parameters() if parameter.requires_grad]
    trained = model.sample(batch_size, model.unroll_steps)
    terms = muzero_loss(policy.latent_model, policy.actions, trained, model.learner.targets(trained)).losses
    for name, loss in model.learner.weighted_losses(terms).items():
        gradients = th.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        norms = [gradient.norm() for gradient in gradients if gradient is not None]
        figures[f"grad_norm_{name}"] = float(th.stack(norms).norm())
    return model_errors(policy, samples, targets), figures


def value_figures(values: np.ndarray, returns: np.ndarray) -> dict[str, float]:
    """
    :param values: Root values of the improved policy, shape ``[N]``
    :param returns: Discounted returns that followed, shape ``[N]``
    :return: ``value_bias``, and ``value_correlation`` where both vary
    """
    figures = {"value_bias": float((values - returns).mean())}
    if values.std() > 0 and returns.std() > 0:
        figures["value_correlation"] = float(np.corrcoef(values, returns)[0, 1])
    return figures


def settings_of(model: MuZero) -> dict[str, Any]:
    """
    :param model: The model
    :return: Its constructor's arguments by name, without the environment and without those that depend on the machine
    """
    others = {"policy", "tensorboard_log", "verbose", "device", "stats_window_size"}
    return {name: value for name, value in constructor_arguments(model).items() if name not in others}
