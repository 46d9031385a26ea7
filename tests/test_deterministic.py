"""A seed makes a run repeatable to the bit."""

import numpy as np
import pytest
from conftest import differences, sequences_of, snapshot, tiny_envs, tiny_model
from gymnasium import spaces


def run(seed: int | None, env: str | None = None, **kwargs):
    n_envs = kwargs.pop("n_envs", 1)
    vec_env = env or tiny_envs(n_envs, observation_space=kwargs.pop("observation_space", spaces.Discrete(4)))
    model = tiny_model(vec_env, seed=seed, **kwargs).learn(72)
    return snapshot(model), sequences_of(model.replay_buffer, np.arange(20), np.zeros(20, int), 5, 1)


@pytest.mark.parametrize("search", ["gumbel", "puct"])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_same_seed_gives_the_same_parameters_and_data(search, n_envs):
    np.random.seed(1)
    first, past = run(5, search=search, n_envs=n_envs)
    np.random.seed(2)  # what went before must not matter
    second, same_past = run(5, search=search, n_envs=n_envs)
    assert differences(first, second) == []
    assert differences(past[0], same_past[0]) == []
    assert differences(past.policies, same_past.policies) == []


def test_same_seed_on_a_gymnasium_environment():
    first, _ = run(3, env="CartPole-v1")
    second, _ = run(3, env="CartPole-v1")
    assert differences(first, second) == []


def test_different_seeds_differ():
    first, past = run(5)
    second, other_past = run(6)
    assert any("latent_model." in where for where in differences(first, second))
    assert differences(past.observations, other_past.observations)


def test_without_a_seed_runs_differ():
    assert differences(run(None)[0], run(None)[0])


def test_set_random_seed_repeats_training_that_follows():
    results = []
    for _ in range(2):
        model = tiny_model(tiny_envs(), seed=0)
        np.random.seed(len(results))
        model.set_random_seed(11)
        results.append(snapshot(model.learn(60)))
    assert differences(*results) == []
