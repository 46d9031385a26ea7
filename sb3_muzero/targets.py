"""Unroll targets: pure functions from sampled sequences to what the model should say at each unroll step."""

from typing import NamedTuple

import torch as th

from sb3_muzero.buffers import SequenceSamples


class UnrollTargets(NamedTuple):
    """
    What the model should say at unroll positions 0..K. Weights are 1 where a target is known and 0 where it is not.

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


def n_step_returns(
    rewards: th.Tensor, bootstrap_values: th.Tensor, lengths: th.Tensor, terminated: th.Tensor, gamma: float
) -> th.Tensor:
    r"""
    Discounted n-step returns (MuZero, Section 3), cut short where the sequence ends:
    :math:`z_k = \sum_{i=0}^{m-1} \gamma^i u_{k+i} + \gamma^m v_{k+m}` with :math:`m = \min(n, length - k)`.
    A terminal state has value 0; any other end (truncation, newest data) bootstraps from its own observation.

    :param rewards: Zero beyond the end, shape ``[K + n, B]``
    :param bootstrap_values: Value of position ``min(k + n, length)``, shape ``[K + 1, B]``
    :param lengths: Steps in each sequence, shape ``[B]``
    :param terminated: Whether a sequence ends in a terminal state, shape ``[B]``
    :param gamma: Discount factor
    :return: Returns at positions 0..K, shape ``[K + 1, B]``; beyond a terminal state 0, beyond another end meaningless
    """
    num_positions = len(bootstrap_values)
    n_steps = len(rewards) - num_positions + 1
    discounts = gamma ** th.arange(n_steps, dtype=rewards.dtype, device=rewards.device)
    reward_sums = rewards.unfold(0, n_steps, 1) @ discounts
    steps_left = lengths - th.arange(num_positions, device=rewards.device).unsqueeze(-1)
    steps = steps_left.clamp(0, n_steps)
    continues = ~(terminated & (steps_left <= n_steps))
    return reward_sums + continues * gamma**steps * bootstrap_values


def unroll_targets(samples: SequenceSamples, bootstrap_values: th.Tensor, gamma: float) -> UnrollTargets:
    """
    All targets of an unroll. A terminal state is absorbing: beyond it value and reward are 0, and that is trained.
    Beyond a truncation nothing is known, so nothing is trained.

    :param samples: The sequences
    :param bootstrap_values: Target network's values of ``samples.bootstrap_observations``, shape ``[K + 1, B]``
    :param gamma: Discount factor
    :return: Targets with their weights
    """
    unroll_steps = len(samples.actions)
    values = n_step_returns(samples.rewards, bootstrap_values, samples.lengths, samples.terminated, gamma)
    positions = th.arange(unroll_steps + 1, device=values.device).unsqueeze(-1)
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
