"""Unroll targets against the definition, written out."""

import numpy as np
import pytest
import torch as th

from sb3_muzero.learning.targets import n_step_returns, needs_bootstrap, unroll_targets
from sb3_muzero.replay.sequences import SequenceSamples

GAMMA = 0.9


def random_samples(length: int, terminated: bool, unroll: int, n: int, horizon: int) -> tuple[SequenceSamples, th.Tensor]:
    th.manual_seed(length)
    obs = th.zeros(unroll + 1, 1, 1)
    state_values = th.randn(length + 1)
    samples = SequenceSamples(
        observations=obs,
        bootstrap_observations=obs,
        actions=th.zeros(unroll, 1, dtype=th.long),
        rewards=th.randn(unroll + n, 1) * (th.arange(unroll + n) < length).unsqueeze(-1),
        policies=th.full((unroll + 1, 1, 2), 0.5) * (th.arange(unroll + 1) < length).reshape(-1, 1, 1),
        action_masks=None,
        lengths=th.tensor([length]),
        terminated=th.tensor([terminated]),
        horizons=th.tensor([horizon]),
        weights=th.ones(1),
        ids=np.zeros((unroll + 1, 1), int),
        model_versions=np.zeros((unroll + 1, 1), int),
    )
    return samples, th.stack([state_values[min(k + horizon, length)] for k in range(unroll + 1)]).unsqueeze(-1)


@pytest.mark.parametrize("horizon", [1, 3, 4])
@pytest.mark.parametrize("terminated", [True, False])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 6, 7])
def test_targets_equal_their_definition(length, terminated, horizon):
    unroll, n = 3, 4
    samples, bootstrap = random_samples(length, terminated, unroll, n, horizon)
    needed = needs_bootstrap(samples)
    targets = unroll_targets(samples, bootstrap * needed, GAMMA)
    rewards = samples.rewards[:, 0].tolist()
    for k in range(unroll + 1):
        inside = k < length
        assert targets.value_weights[k, 0] == float(inside or terminated)
        steps = min(horizon, max(length - k, 0))
        value = sum(GAMMA**i * rewards[k + i] for i in range(steps))
        at_terminal = terminated and k + steps >= length
        assert needed[k, 0] == (not at_terminal)
        if not at_terminal:
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


@pytest.mark.parametrize("terminated", [True, False])
def test_reanalyzed_values_take_the_place_of_returns_before_the_end(terminated):
    unroll, length = 3, 2
    samples, bootstrap = random_samples(length, terminated, unroll, 4, 1)
    values, known = th.tensor([[10.0], [11.0], [12.0], [13.0]]), th.tensor([[True], [False], [True], [True]])
    reanalyzed = samples._replace(reanalyzed_values=values, has_reanalyzed_value=known)
    targets = unroll_targets(reanalyzed, bootstrap, GAMMA)
    returns = unroll_targets(samples, bootstrap, GAMMA)
    assert targets.values[:, 0].tolist() == [10.0, *returns.values[1:, 0].tolist()]
    assert th.equal(targets.value_weights, returns.value_weights)


def test_two_step_chain():
    """s0 -(+1)-> s1 -(+2)-> terminal: the values are 1 + gamma * 2, 2, 0."""
    values = n_step_returns(th.tensor([[1.0], [2.0], [0.0], [0.0]]), th.zeros(3, 1), th.tensor([2]), th.tensor([2]), GAMMA)
    assert values[:, 0].tolist() == pytest.approx([1 + GAMMA * 2, 2.0, 0.0])


def test_reward_for_ever_keeps_its_value():
    for horizon in (1, 3, 5):
        value = n_step_returns(th.ones(5, 1), th.full((1, 1), 10.0), th.tensor([5]), th.tensor([horizon]), GAMMA)
        assert value.item() == pytest.approx(10.0, rel=1e-5), "reward 1 for ever: 1 / (1 - gamma)"


def test_each_sequence_has_its_own_horizon():
    rewards, bootstrap = th.tensor([[1.0], [2.0], [4.0]]).repeat(1, 3), th.full((1, 3), 100.0)
    values = n_step_returns(rewards, bootstrap, th.tensor([3, 3, 3]), th.tensor([1, 2, 3]), GAMMA)
    assert values[0].tolist() == pytest.approx([1 + 90, 1 + 1.8 + 81, 1 + 1.8 + 3.24 + 72.9])
