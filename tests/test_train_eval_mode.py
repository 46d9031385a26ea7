"""Layers that behave differently in training: acting never trains them, and the target network never trains at all."""

from typing import Any

import numpy as np
import pytest
import torch as th
from conftest import cartpole_observations, differences, scramble, tiny_envs, tiny_model
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn


class BatchNormDropout(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__(observation_space, get_flattened_obs_dim(observation_space))
        self.layers = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(self.features_dim), nn.Dropout(0.5))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layers(observations)


def batch_norm_model(env: Any = "CartPole-v1", **kwargs: Any):
    return tiny_model(env, policy_kwargs={"features_extractor_class": BatchNormDropout}, **kwargs)


def statistics(network: nn.Module) -> dict[str, th.Tensor]:
    found = {name: value.clone() for name, value in network.state_dict().items() if "running" in name or "tracked" in name}
    assert len(found) == 3
    return found


@pytest.mark.parametrize("n_envs", [1, 3])
def test_collecting_with_search_leaves_running_statistics_alone(n_envs):
    model = batch_norm_model(tiny_envs(n_envs), learning_starts=0, gradient_steps=0)
    before = statistics(model.policy.latent_model)
    model.policy.set_training_mode(True)
    model.learn(30)
    assert differences(before, statistics(model.policy.latent_model)) == []


def test_collecting_between_updates_leaves_running_statistics_alone(monkeypatch):
    model = batch_norm_model(learning_starts=0, train_freq=8)
    plan, changed = model.policy.plan, []

    def watched(*args, **kwargs):
        before = statistics(model.policy.latent_model)
        found = plan(*args, **kwargs)
        changed.extend(differences(before, statistics(model.policy.latent_model)))
        return found

    monkeypatch.setattr(model.policy, "plan", watched)
    start = statistics(model.policy.latent_model)
    model.learn(40)
    assert changed == []
    assert differences(start, statistics(model.policy.latent_model)), "training must move them"


@pytest.mark.parametrize("deterministic", [False, True])
def test_predicting_leaves_running_statistics_alone_and_drops_nothing(deterministic):
    model = scramble(batch_norm_model())
    model.learn(40)
    before = statistics(model.policy.latent_model)
    model.policy.set_training_mode(True)
    observations = cartpole_observations()
    actions, _ = model.predict(observations, deterministic=deterministic)
    assert differences(before, statistics(model.policy.latent_model)) == []
    if deterministic:
        for _ in range(3):
            model.policy.set_training_mode(True)
            np.testing.assert_array_equal(actions, model.predict(observations, deterministic=True)[0])


def test_the_target_network_stays_in_evaluation_mode():
    model = batch_norm_model(target_update_interval=10_000)
    target = model.policy.latent_model_target
    before = statistics(target)
    model.learn(60)
    model.policy.set_training_mode(True)
    assert not any(module.training for module in target.modules())
    assert all(module.training for module in model.policy.latent_model.modules())
    assert differences(before, statistics(target)) == []
    model.policy.set_training_mode(False)
    assert not any(module.training for module in model.policy.modules())


def test_the_target_network_takes_over_running_statistics():
    model = batch_norm_model(target_update_interval=1).learn(60)
    policy = model.policy
    assert differences(statistics(policy.latent_model), statistics(policy.latent_model_target)) == []


def test_updates_run_in_training_mode(monkeypatch):
    model = batch_norm_model(learning_starts=0)
    modes = []
    extractor = model.policy.latent_model.features_extractor
    extractor.register_forward_hook(lambda module, inputs, output: modes.append((module.training, th.is_grad_enabled())))
    model.learn(20)
    assert (True, True) in modes, "the loss reads the extractor in training mode"
    assert (False, False) in modes, "the search reads it in evaluation mode"
    assert (False, True) not in modes
