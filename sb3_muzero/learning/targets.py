"""Unroll targets: pure functions from sampled sequences to what the model should predict at each unroll step."""

from typing import NamedTuple

import torch as th

from sb3_muzero.replay.sequences import SequenceSamples


class UnrollTargets(NamedTuple):
    """
    What the model should predict at unroll positions 0..K. Weights are 1 where a target is known and 0 where it is not.

    :param policies: Search policies, shape ``[K + 1, B, num_actions]``; all zero where there is no target
    :param values: n-step returns, shape ``[K + 1, B]``
    :param value_weights: Shape ``[K + 1, B]``
    :param rewards: Of the steps that lead to positions 1..K, shape ``[K, B]``
    :param reward_weights: Shape ``[K, B]``
    :param latent_weights: Whether positions 1..K were observed, shape ``[K, B]``
    """

    policies: th.Tensor
    values: th.Tensor
    value_weights: th.Tensor
    rewards: th.Tensor
    reward_weights: th.Tensor
    latent_weights: th.Tensor


def needs_bootstrap(samples: SequenceSamples) -> th.Tensor:
    """
    Positions whose value target bootstraps from the target network: all but those that reach a terminal state before.

    :param samples: The sequences
    :return: Boolean, shape ``[K + 1, B]``
    """
    positions = th.arange(len(samples.policies), device=samples.lengths.device).unsqueeze(-1)
    return ~(samples.terminated & (positions + samples.horizons >= samples.lengths))


def n_step_returns(
    rewards: th.Tensor, bootstrap_values: th.Tensor, lengths: th.Tensor, horizons: th.Tensor, discount: float
) -> th.Tensor:
    r"""
    Discounted n-step returns (MuZero, Section 3), cut short where the sequence ends:
    :math:`z_k = \sum_{i=0}^{m-1} \gamma^i u_{k+i} + \gamma^m v_{k+m}` with :math:`m = \min(h, length - k)` and
    ``discount`` for :math:`\gamma`.

    :param rewards: Zero beyond the end, shape ``[K + n, B]``
    :param bootstrap_values: Value of position ``min(k + h, length)``, 0 for a terminal state, shape ``[K + 1, B]``
    :param lengths: Steps in each sequence, shape ``[B]``
    :param horizons: Steps h of each sequence's returns, from 1 to n, shape ``[B]``
    :param discount: Discount factor, negative where each reward is that of the player who moves
    :return: Returns at positions 0..K, shape ``[K + 1, B]``; beyond a terminal state 0, beyond another end meaningless
    """
    num_positions = len(bootstrap_values)
    steps = th.arange(len(rewards) - num_positions + 1, device=rewards.device)
    discounts = discount**steps * (steps < horizons.unsqueeze(-1))
    reward_sums = (rewards.unfold(0, len(steps), 1) * discounts).sum(-1)
    steps_left = lengths - th.arange(num_positions, device=rewards.device).unsqueeze(-1)
    return reward_sums + discount ** th.minimum(steps_left.clamp(min=0), horizons) * bootstrap_values


def movers_returns(samples: SequenceSamples, bootstrap_values: th.Tensor, discount: float) -> th.Tensor:
    """
    ``n_step_returns`` where the sequences say who moves: of each position's mover, who need not be the other one of the two
    at the next. Rewards and values are added up as those of the player who moves at position 0.

    :param samples: The sequences
    :param bootstrap_values: See ``n_step_returns``
    :param discount: Discount factor, negative where each reward is that of the player who moves
    :return: Returns at positions 0..K, shape ``[K + 1, B]``
    """
    if samples.turn_signs is None:
        return n_step_returns(samples.rewards, bootstrap_values, samples.lengths, samples.horizons, discount)
    num_positions = len(bootstrap_values)
    signs = th.cat([th.ones_like(samples.turn_signs[:1]), samples.turn_signs]).cumprod(0).float()
    positions = th.arange(num_positions, device=signs.device).unsqueeze(-1)
    values = bootstrap_values * signs.gather(0, th.minimum(positions + samples.horizons, samples.lengths))
    returns = n_step_returns(samples.rewards * signs[:-1], values, samples.lengths, samples.horizons, abs(discount))
    return returns * signs[:num_positions]


def unroll_targets(samples: SequenceSamples, bootstrap_values: th.Tensor, discount: float) -> UnrollTargets:
    """
    All targets of an unroll. A terminal state is absorbing: beyond it value and reward are 0, and that is trained.
    Beyond a truncation nothing is known, so nothing is trained.

    :param samples: The sequences
    :param bootstrap_values: Target network's values of ``samples.bootstrap_observations``, 0 where they are not needed
        (``needs_bootstrap``), shape ``[K + 1, B]``
    :param discount: Discount factor, negative where each reward is that of the player who moves
    :return: Targets with their weights
    """
    unroll_steps = len(samples.actions)
    values = movers_returns(samples, bootstrap_values, discount)
    positions = th.arange(unroll_steps + 1, device=values.device).unsqueeze(-1)
    if samples.reanalyzed_values is not None and samples.has_reanalyzed_value is not None:
        is_replaced = samples.has_reanalyzed_value & (positions < samples.lengths)
        values = th.where(is_replaced, samples.reanalyzed_values, values)
    known = (positions < samples.lengths) | samples.terminated
    stepped = positions[1:] <= samples.lengths
    return UnrollTargets(
        policies=samples.policies,
        values=values,
        value_weights=known.float(),
        rewards=samples.rewards[:unroll_steps],
        reward_weights=(stepped | samples.terminated).float(),
        latent_weights=stepped.float(),
    )
