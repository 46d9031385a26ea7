"""Unroll targets against the definition, written out."""

import numpy as np
import pytest
import torch as th

from sb3_muzero.buffers import SequenceSamples
from sb3_muzero.targets import n_step_returns, unroll_targets

GAMMA = 0.9


def random_samples(length: int, terminated: bool, unroll: int, n: int) -> tuple[SequenceSamples, th.Tensor]:
    th.manual_seed(length)
    rewards = th.randn(unroll + n, 1) * (th.arange(unroll + n) < length).unsqueeze(-1)
    policies = th.full((unroll + 1, 1, 2), 0.5) * (th.arange(unroll + 1) < length).reshape(-1, 1, 1)
    state_values = th.randn(length + 1)
    bootstrap = th.stack([state_values[min(k + n, length)] for k in range(unroll + 1)]).unsqueeze(-1)
    obs = th.zeros(unroll + 1, 1, 1)
    actions = th.zeros(unroll, 1, dtype=th.long)
    return SequenceSamples(
        obs, obs, actions, rewards, policies, th.tensor([length]), th.tensor([terminated]), np.zeros((2, 1), int)
    ), bootstrap


@pytest.mark.parametrize("terminated", [True, False])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 6, 7])
def test_targets_equal_their_definition(length, terminated):
    unroll, n = 3, 4
    samples, bootstrap = random_samples(length, terminated, unroll, n)
    targets = unroll_targets(samples, bootstrap, GAMMA)
    rewards = samples.rewards[:, 0].tolist()
    for k in range(unroll + 1):
        inside = k < length
        assert targets.value_weights[k, 0] == float(inside or terminated)
        steps = min(n, max(length - k, 0))
        value = sum(GAMMA**i * rewards[k + i] for i in range(steps))
        if not (terminated and k + steps >= length):
            value += GAMMA**steps * bootstrap[k, 0].item()
        if inside or terminated:
            assert targets.values[k, 0].item() == pytest.approx(value, abs=1e-5)
        if not inside:
            assert targets.policies[k].abs().sum() == 0
    for k in range(1, unroll + 1):
        happened = k <= length
        assert targets.reward_weights[k - 1, 0] == float(happened or terminated)
        assert targets.rewards[k - 1, 0].item() == pytest.approx(rewards[k - 1] if happened else 0.0)
        assert targets.latent_weights[k - 1, 0] == float(happened)


def test_two_step_chain():
    """s0 -(+1)-> s1 -(+2)-> terminal: the values are 1 + gamma * 2, 2, 0, whatever the bootstrap says."""
    values = n_step_returns(
        th.tensor([[1.0], [2.0], [0.0], [0.0]]), th.full((3, 1), 99.0), th.tensor([2]), th.tensor([True]), GAMMA
    )
    assert values[:, 0].tolist() == pytest.approx([1 + GAMMA * 2, 2.0, 0.0])


def test_truncation_bootstraps_where_termination_does_not():
    rewards, bootstrap = th.ones(5, 1), th.full((1, 1), 10.0)
    truncated = n_step_returns(rewards, bootstrap, th.tensor([5]), th.tensor([False]), GAMMA)
    terminated = n_step_returns(rewards, bootstrap, th.tensor([5]), th.tensor([True]), GAMMA)
    assert truncated.item() == pytest.approx(10.0, rel=1e-5), "reward 1 for ever: 1 / (1 - gamma)"
    assert terminated.item() == pytest.approx(np.sum(GAMMA ** np.arange(5)), rel=1e-5)
