"""What the diagnostics say is true, checked where the truth is known."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import TinyEnv, differences, snapshot, tiny_envs, tiny_model
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import EveryNTimesteps
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from sb3_muzero.analysis.diagnostics import (
    discounted_returns,
    dormant_share,
    effective_rank,
    measure,
    model_errors,
    policy_improvement,
    value_figures,
)
from sb3_muzero.analysis.plotting import plot_search_tree
from sb3_muzero.analysis.recording import play
from sb3_muzero.callbacks import DiagnosticsCallback
from sb3_muzero.learning.losses import muzero_loss
from sb3_muzero.search import RecurrentOutput, RootOutput
from sb3_muzero.search.planner import Planner


class CountingEnv(gym.Env):
    """A state that counts up to its end, and pays what it counts to."""

    observation_space = spaces.Box(-100.0, 100.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, length: int = 6, terminates: bool = True) -> None:
        self.length, self.terminates = length, terminates

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.array([0.0], np.float32), {}

    def step(self, action):
        self.count += 1
        end = self.count == self.length
        return np.array([self.count], np.float32), float(self.count), end and self.terminates, end and not self.terminates, {}


def logged(model, callback, steps) -> dict[str, float]:
    """Everything that a run logged last."""
    seen: dict[str, float] = {}
    dump = Logger.dump

    def keep(self, step=0):
        seen.update(self.name_to_value)
        dump(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Logger, "dump", keep)
        model.learn(steps, callback=callback, log_interval=1)
    return seen


@pytest.mark.parametrize("kind", ["plain", "normalized", "masked", "priorities", "images"])
def test_a_run_is_the_same_with_and_without(kind):
    def trained(callback):
        env = tiny_envs(2)
        settings = {}
        if kind == "normalized":
            env = VecNormalize(env)
        if kind == "masked":
            env = DummyVecEnv([MaskedEnv] * 2)
        if kind == "images":  # which are changed at random in the loss
            env = tiny_envs(2, observation_space=spaces.Box(0, 255, (8, 8, 1), np.uint8))
            settings = {"policy": "CnnPolicy", "policy_kwargs": {"random_shift": 2}}
        if kind == "priorities":
            settings = {"replay_buffer_kwargs": {"priority_exponent": 0.6}}
        return snapshot(tiny_model(env, **settings).learn(80, callback=callback))

    class MaskedEnv(TinyEnv):
        def action_masks(self):
            return np.array([True, self.steps % 2 == 0, True])

    callback = DiagnosticsCallback(log_freq=10, batch_size=16)
    with_it, without = trained(callback), trained(None)
    assert len(callback.timesteps) >= 3
    assert differences(with_it, without) == []


def test_errors_are_those_of_each_depth():
    """One sequence at a time, by hand."""
    model = tiny_model(tiny_envs(2)).learn(60)
    samples = model.sample(16, 4)
    targets = model.learner.targets(samples)
    errors = model_errors(model.policy, samples, targets)
    policy, latent_model = model.policy, model.policy.latent_model
    sums = {name: np.zeros((5, 2)) for name in errors._fields}
    with th.no_grad():
        for i in range(16):
            latent = policy.represent(samples.observations[0, i : i + 1])
            for depth in range(5):
                if depth > 0:
                    action = latent_model.action_encoder(samples.actions[depth - 1, i : i + 1])
                    latent, reward_logits = latent_model.dynamics(latent, action)
                said = latent_model.prediction(latent)
                value = latent_model.value_support.expectation(said.value_logits).item()
                log_policy = said.policy_logits[0].log_softmax(-1)
                found = {}
                if depth > samples.lengths[i]:  # the episode is over
                    continue
                if targets.value_weights[depth, i] > 0:
                    found["value"] = abs(value - targets.values[depth, i].item())
                target = targets.policies[depth, i]
                if target.sum() > 0:
                    found["policy"] = sum(
                        p * (np.log(p) - q) for p, q in zip(target.tolist(), log_policy.tolist(), strict=True) if p > 0
                    )
                if depth > 0 and targets.reward_weights[depth - 1, i] > 0:
                    reward = latent_model.reward_support.expectation(reward_logits).item()
                    found["reward"] = abs(reward - targets.rewards[depth - 1, i].item())
                if depth > 0 and targets.latent_weights[depth - 1, i] > 0:
                    observed = policy.represent(samples.observations[depth, i : i + 1])
                    found["consistency"] = 1 - th.cosine_similarity(latent, observed).item()
                for name, error in found.items():
                    sums[name][depth] += error, 1
    for name, by_depth in errors._asdict().items():
        expected = sums[name][-len(by_depth) :]
        np.testing.assert_allclose(by_depth, expected[:, 0] / expected[:, 1], rtol=2e-4, atol=1e-5, err_msg=name)


def test_equal_candidates_count_once():
    model = tiny_model(TinyEnv(action_space=spaces.MultiDiscrete([3, 4, 5]))).learn(40)
    samples = model.sample(8, 2)
    one, (first, second) = th.eye(8)[0].expand_as(samples.policies), th.tensor([[0, 0, 0], [2, 3, 4]])
    same = samples._replace(candidates=first.expand_as(samples.candidates), policies=one)
    np.testing.assert_allclose(model_errors(model.policy, same, model.learner.targets(same)).policy, 0, atol=1e-6)
    both = same._replace(candidates=th.where(th.arange(8).unsqueeze(1) % 2 == 0, first, second).expand_as(same.candidates))
    found = model_errors(model.policy, both, model.learner.targets(both)).policy[0]
    with th.no_grad():
        logits = model.policy.latent_model.initial_inference(both.observations[0]).prior_logits
    log_probs = model.policy.actions.distribution(logits).log_prob(th.stack((first, second)).expand(8, -1, -1))
    np.testing.assert_allclose(found, -log_probs.log_softmax(-1)[:, 0].mean(), rtol=1e-4)


def test_policy_improvement_by_hand():
    model = tiny_model(tiny_envs(2)).learn(60)
    obs = model.replay_buffer.sample(8, unroll_steps=1, n_steps=1).observations[0]
    search = model.policy.plan(obs, deterministic=True)
    with th.no_grad():
        prior = model.policy.latent_model.prediction(model.policy.represent(obs)).policy_logits.softmax(-1)
    improved = th.as_tensor(search.action_weights)
    gain = policy_improvement(search)
    categorical = th.distributions.Categorical
    both = th.distributions.kl_divergence(categorical(improved), categorical(prior))
    assert gain["policy_kl"] == pytest.approx(both.mean().item(), abs=1e-4)
    assert gain["prior_entropy"] == pytest.approx(categorical(prior).entropy().mean().item(), abs=1e-4)
    assert gain["search_entropy"] == pytest.approx(categorical(improved).entropy().mean().item(), abs=1e-4)
    assert gain["agreement"] == (prior.argmax(-1) == improved.argmax(-1)).float().mean().item()


def test_effective_rank():
    generator = th.Generator().manual_seed(0)
    directions = th.linalg.qr(th.randn(20, 5, generator=generator)).Q
    # Equal shares of five directions around some mean
    coefficients = th.linalg.qr(th.randn(400, 6, generator=generator) - 0.0).Q[:, :5]
    coefficients = th.linalg.qr(coefficients - coefficients.mean(0)).Q
    assert effective_rank(coefficients @ directions.T + 3.0) == pytest.approx(5.0, abs=0.01)
    assert effective_rank(th.ones(30, 4)) == 0.0


def test_dormant_share():
    """Two of four units never act; a third that acts 200 times less than the fourth counts too, 10 times less not."""
    layer = nn.Linear(1, 4, bias=True)
    model = nn.Sequential(layer, nn.ReLU())
    with th.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(th.tensor([1.0, -1.0, -1.0, 0.005]))
    assert dormant_share(model, nn.ReLU, lambda: model(th.zeros(7, 1))) == 0.75
    with th.no_grad():
        layer.bias.copy_(th.tensor([1.0, -1.0, -1.0, 0.1]))
    assert dormant_share(model, nn.ReLU, lambda: model(th.zeros(7, 1))) == 0.5
    assert np.isnan(dormant_share(layer, nn.ReLU, lambda: layer(th.zeros(7, 1))))
    assert not model[1]._forward_hooks  # nothing is left behind

    image_model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU())  # a channel is a unit
    with th.no_grad():
        image_model[0].bias.copy_(th.tensor([1.0, -1.0]))
        image_model[0].weight.zero_()
    assert dormant_share(image_model, nn.ReLU, lambda: image_model(th.zeros(3, 1, 5, 5))) == 0.5


def test_dead_units_are_seen_in_every_network():
    model = tiny_model(tiny_envs(1)).learn(60)
    samples = model.sample(16, 3)
    networks = model.policy.latent_model
    count = dormant_share(networks, nn.ReLU, lambda: networks.unroll(samples.observations[0], samples.actions))
    for part in (networks.representation, networks.dynamics, networks.prediction.trunk):
        norm = next(module for module in part.modules() if isinstance(module, nn.LayerNorm))
        with th.no_grad():
            norm.weight.zero_()
            norm.bias.fill_(-1.0)
        before, count = (
            count,
            dormant_share(networks, nn.ReLU, lambda: networks.unroll(samples.observations[0], samples.actions)),
        )
        assert count > before


def test_discounted_returns():
    np.testing.assert_allclose(discounted_returns(np.array([1.0, 2.0, 3.0]), 0.5, 8.0), [1 + 1 + 0.75 + 1, 2 + 1.5 + 2, 3 + 4])


@pytest.mark.parametrize("terminates", [True, False])
def test_values_are_compared_with_what_followed(terminates):
    model = tiny_model(DummyVecEnv([lambda: CountingEnv(6, terminates)] * 2), gamma=0.9, learning_starts=10)
    callback = DiagnosticsCallback(log_freq=20, batch_size=16)
    model.learn(120, callback=callback)
    returns = discounted_returns(np.arange(1.0, 7.0), 0.9)
    for values, realised in list(callback.episodes)[2:]:  # episodes that were searched throughout
        assert len(values) == len(realised) == 6
        beyond = realised - returns  # what the value promises behind a time limit, discounted
        if terminates:
            np.testing.assert_allclose(beyond, 0, atol=1e-6)
        else:
            np.testing.assert_allclose(beyond, beyond[-1] * 0.9 ** np.arange(5, -1, -1), atol=1e-5)
            assert beyond[-1] > 0
    values, realised = map(np.concatenate, zip(*callback.episodes, strict=True))
    known = value_figures(np.array([1.0, 2.0, 4.0]), np.array([0.0, 2.0, 1.0]))
    assert known == {"value_bias": pytest.approx(4 / 3), "value_correlation": pytest.approx(0.3273, abs=1e-4)}
    callback._measure()  # of the same episodes
    assert model.logger.name_to_value["diagnostics/value_bias"] == pytest.approx((values - realised).mean())


def two_arms(latent: np.ndarray, action: np.ndarray) -> RecurrentOutput:
    """The first action pays 1, the other one nothing, and the episode ends."""
    nothing = np.zeros(len(action), np.float32)
    return RecurrentOutput((action == 0).astype(np.float32), nothing, np.zeros((len(action), 2)), nothing, latent)


def test_values_are_those_of_the_policy_not_of_all_actions_that_were_tried(monkeypatch):
    """Sequential Halving tries both arms equally often (a mean of 0.53), while the policy takes the one that pays 1."""

    def root_inference(self, model, obs):
        return RootOutput(np.zeros((len(obs), 2)), np.ones(len(obs)), np.zeros(len(obs))), two_arms

    monkeypatch.setattr(Planner, "root_inference", root_inference)
    model = tiny_model(TinyEnv(action_space=spaces.Discrete(2), length=1), num_simulations=16)
    said = logged(model, DiagnosticsCallback(log_freq=20, batch_size=16), 100)
    assert said["search/root_value"] == pytest.approx(1.0, abs=0.01)
    assert said["diagnostics/value_bias"] == pytest.approx(0.0, abs=0.05)
    episode = play(model, model.get_env(), 1, 1, deterministic=True).episodes[0]
    assert episode.root_values.tolist() == pytest.approx([1.0], abs=0.01)
    assert "value 0.997" in plot_search_tree(model.policy.plan(th.zeros(1, 3), deterministic=True)).axes[0].get_title("left")


def test_everything_is_logged():
    model = tiny_model(tiny_envs(2), replay_buffer_kwargs={"priority_exponent": 0.6})
    said = logged(model, DiagnosticsCallback(log_freq=20, batch_size=16, unroll_steps=2), 100)
    depths = {"reward": (1, 2), "value": (0, 1, 2), "policy": (0, 1, 2), "consistency": (1, 2)}
    expected = {f"model_error/{name}_{depth}" for name, known in depths.items() for depth in known}
    losses = ("policy", "entropy", "value", "reward", "consistency")
    names = ["policy_kl", "agreement", "prior_entropy", "search_entropy", "value_bias", "value_correlation", "effective_rank"]
    names += ["dormant_units", "replay_coverage", *(f"grad_norm_{loss}" for loss in losses)]
    expected |= {f"diagnostics/{name}" for name in names} | {"time/diagnostics_share"}
    assert expected == {name for name in said if name.startswith(("model_error/", "diagnostics/")) or "diagnostics" in name}
    assert all(np.isfinite(said[name]) for name in expected)
    assert 0 < said["diagnostics/replay_coverage"] <= 1


def test_priorities_in_effect():
    """One of a hundred steps with all the priority: coverage 0.01."""
    model = tiny_model(tiny_envs(1), replay_buffer_kwargs={"priority_exponent": 1.0}).learn(100)
    model.replay_buffer.sampler.priorities.update(np.arange(100), np.r_[1.0, np.full(99, 1e-9)])
    callback = DiagnosticsCallback(batch_size=4)
    callback.init_callback(model)
    callback._measure()
    assert model.logger.name_to_value["diagnostics/replay_coverage"] == pytest.approx(0.01, rel=1e-3)


def test_gradient_norms_are_of_weighted_losses_as_trained():
    model = tiny_model(tiny_envs(2), reward_coef=0.0, consistency_coef=3.0, unroll_steps=2).learn(60)
    np.random.seed(0)
    _, figures = measure(model, 64, 5)
    np.random.seed(0)
    model.sample(64, 5)
    samples = model.sample(64, 2)
    model.policy.optimizer.zero_grad()
    (
        3.0
        * muzero_loss(model.policy.latent_model, model.policy.actions, samples, model.learner.targets(samples)).losses[
            "consistency"
        ]
    ).backward()
    gradients = [p.grad for p in model.policy.latent_model.parameters() if p.grad is not None]
    assert figures["grad_norm_consistency"] == pytest.approx(float(th.stack([g.norm() for g in gradients]).norm()), rel=1e-4)
    assert figures["grad_norm_reward"] == 0.0 < figures["grad_norm_value"]


def test_the_search_that_is_measured_obeys_masks(monkeypatch):
    class MaskedEnv(TinyEnv):
        def action_masks(self):
            return np.array([True, False, True])

    model = tiny_model(DummyVecEnv([MaskedEnv])).learn(60)
    plan, weights = model.policy.plan, []

    def watched(*args, **kwargs):
        weights.append(plan(*args, **kwargs))
        return weights[-1]

    monkeypatch.setattr(model.policy, "plan", watched)
    measure(model, 16, 2)
    assert weights[0].action_weights[:, 1].max() == 0.0


class SharedActivation(BaseFeaturesExtractor):
    """One activation module behind layers of two widths, the first of which is not trained."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 16)
        activation = nn.ReLU()
        self.layers = nn.Sequential(nn.Linear(3, 8), activation, nn.Linear(8, 16), activation)
        self.layers[0].requires_grad_(False)

    def forward(self, observations):
        return self.layers(observations)


@pytest.mark.parametrize(
    "kwargs", [{"features_extractor_class": SharedActivation}, {"activation_fn": partial(nn.LeakyReLU, 0.1)}]
)
def test_networks_of_other_makes(kwargs):
    model = tiny_model(tiny_envs(1), policy_kwargs=kwargs)
    said = logged(model, DiagnosticsCallback(log_freq=20, batch_size=8), 60)
    assert 0 <= said["diagnostics/dormant_units"] < 1


def test_a_second_run_begins_anew_and_a_continued_one_goes_on():
    callback = DiagnosticsCallback(log_freq=20, batch_size=8)
    model = tiny_model(tiny_envs(2)).learn(80, callback=callback)
    first = list(callback.timesteps)
    model.learn(40, callback=callback, reset_num_timesteps=False)
    assert callback.timesteps[: len(first)] == first and len(callback.timesteps) > len(first)
    assert callback.timesteps == sorted(callback.timesteps)
    tiny_model(tiny_envs(1)).learn(60, callback=callback)
    assert callback.timesteps[0] < first[-1] and len(callback.errors) == len(callback.timesteps) <= 3
    assert len(callback.episodes) <= 6


def test_many_short_runs_are_measured_as_a_long_one():
    callback = DiagnosticsCallback(log_freq=50, batch_size=8)
    model = tiny_model(tiny_envs(1))
    for part in range(5):
        model.learn(40, callback=callback, reset_num_timesteps=part == 0)
    assert len(callback.timesteps) == 3


def test_bad_input():
    with pytest.raises(ValueError, match="can't be in EveryNTimesteps: give it its own `log_freq`"):
        tiny_model(tiny_envs(1)).learn(1, callback=EveryNTimesteps(10, DiagnosticsCallback()))
    with pytest.raises(ValueError, match="`log_freq` must be an integer of at least 1, got 0"):
        DiagnosticsCallback(log_freq=0)
    with pytest.raises(ValueError, match="made for MuZero, got DQN"):
        DQN("MlpPolicy", "CartPole-v1").learn(1, callback=DiagnosticsCallback())
