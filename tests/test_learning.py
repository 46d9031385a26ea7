"""MuZero learns what it must on tasks whose answer is known."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_muzero import MuZero
from sb3_muzero.learning.losses import muzero_loss
from sb3_muzero.learning.supports import AdaptiveSupports
from sb3_muzero.learning.targets import unroll_targets

QUICK = {"learning_starts": 100, "batch_size": 32, "train_freq": 2, "num_simulations": 8, "seed": 0, "device": "cpu"}


class ConstantReward(gym.Env):
    """Reward 1 for ever and an observation that shows no time; ``ends_after`` steps it terminates."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)

    def __init__(self, ends_after: float = np.inf) -> None:
        self.ends_after = ends_after

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.ones(2, dtype=np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.ones(2, dtype=np.float32), 1.0, self.steps >= self.ends_after, False, {}


class Chain(gym.Env):
    """Action 1 walks from s0 to s1 (reward 1) and from s1 to the end (reward 2); action 0 ends at once with reward 0."""

    observation_space = spaces.Discrete(2)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = 0
        return 0, {}

    def step(self, action):
        walked, self.state = action == 1, self.state + 1
        return min(self.state, 1), float(self.state) * walked, not walked or self.state == 2, False, {}


class Bandit(gym.Env):
    """One state, four arms, one step."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Discrete(4)
    rewards = (0.1, -0.3, 0.7, 0.2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        return np.zeros(1, dtype=np.float32), self.rewards[action], True, False, {}


class Guess(gym.Env):
    """Random numbers, of which the last one's sign says which of two actions is rewarded and which one punished."""

    observation_space = spaces.Box(-1, 1, (4,))
    action_space = spaces.Discrete(2)

    def _show(self):
        self.obs = self.np_random.uniform(-1, 1, 4).astype(np.float32)
        return self.obs

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._show(), {}

    def step(self, action):
        reward = 1.0 if (self.obs[3] > 0) == (action == 1) else -1.0
        return self._show(), reward, False, False, {}


def value_of(model: MuZero, obs: np.ndarray) -> float:
    tensor, _ = model.policy.obs_to_tensor(np.asarray(obs))
    with th.no_grad():
        return model.policy.predict_values(tensor).item()


def test_truncation_bootstraps_and_termination_does_not():
    """Only a correct target gives V = 1 / (1 - 0.9) = 10 when a time limit cuts after 5 steps."""
    settings = {**QUICK, "gamma": 0.9, "n_steps": 5, "target_update_interval": 20}
    cut = MuZero("MlpPolicy", TimeLimit(ConstantReward(), 5), **settings).learn(1600)
    ended = MuZero("MlpPolicy", ConstantReward(ends_after=5), **settings).learn(1600)
    assert value_of(cut, np.ones(2)) == pytest.approx(10.0, abs=0.7)
    # The same observation after 0..4 steps is worth 4.1, 3.4, 2.7, 1.9 and 1: 2.6 on average
    assert value_of(ended, np.ones(2)) == pytest.approx(2.63, abs=0.5)


@pytest.mark.parametrize(("search", "num_simulations"), [("gumbel", 8), ("puct", 50)])
def test_bandit(search, num_simulations):
    """PUCT with 8 simulations settles on any arm: it found the best on 2 of 7 seeds."""
    model = MuZero("MlpPolicy", Bandit(), search=search, **{**QUICK, "num_simulations": num_simulations}).learn(800)
    obs = np.zeros(1, dtype=np.float32)
    assert model.predict(obs, deterministic=True)[0] == 2
    plan = model.policy.plan(th.zeros(1, 1), deterministic=True)
    assert plan.action_weights[0].argmax() == 2 and plan.action_weights[0, 2] > 0.8
    assert plan.qvalues[0, 2] == pytest.approx(0.7, abs=0.1)


def test_two_step_chain():
    model = MuZero("MlpPolicy", Chain(), gamma=0.9, **QUICK).learn(1500)
    assert model.predict(np.array([0, 1]), deterministic=True)[0].tolist() == [1, 1]
    plan = model.policy.plan(th.tensor([0, 1]), deterministic=True)
    assert plan.qvalues[:, 1] == pytest.approx([1 + 0.9 * 2, 2.0], abs=0.25)
    assert evaluate_policy(model, model.get_env(), 5)[0] == 3.0


def test_a_reward_is_learned_that_the_next_observation_does_not_tell():
    """Beside a consistency loss, which makes the next latent that of the next observation."""
    env = TimeLimit(Guess(), 50)
    model = MuZero("MlpPolicy", env, seed=1, learning_starts=2_000, num_simulations=2, device="cpu").learn(2_000)
    for update in range(500):
        model.learner.update(model.sample(64, 3), update, 2_000)
    samples, latent_model = model.sample(256, 3), model.policy.latent_model
    with th.no_grad():
        unrolled = latent_model.unroll(samples.observations[0], samples.actions)
        rewards = latent_model.reward_support.expectation(unrolled.reward_logits[0])
    assert (rewards - samples.rewards[0]).abs().mean() < 0.6  # 1 if nothing is known


@pytest.mark.parametrize(("network", "name"), [("prediction", "value"), ("dynamics", "reward")])
def test_the_optimizers_moments_follow_a_support_that_expands(network, name):
    model = MuZero("MlpPolicy", "CartPole-v1", **{**QUICK, "learning_starts": 60}).learn(100)
    latent_model, state = model.policy.latent_model, model.policy.optimizer.state
    head, support = latent_model.get_submodule(f"{network}.{name}_head"), getattr(latent_model, f"{name}_support")
    old_bins, old = support.bins.numpy(), state[head.bias]["exp_avg"].numpy().copy()
    assert old.any()
    wide = tuple((10 * support.bounds).tolist())
    model.learner.supports.expand(model.policy, wide, wide if name == "reward" else (0.0, 0.0), model.discount)
    assert support.bounds[1] > old_bins[-1]
    expected = np.interp(support.bins.numpy(), old_bins, old)
    np.testing.assert_allclose(state[head.bias]["exp_avg"].numpy(), expected, atol=1e-4 * np.abs(old).max())


class OutlierFirst(Bandit):
    """The very first reward is a million."""

    seen = False

    def step(self, action):
        obs, reward, *rest = super().step(action)
        reward, self.seen = reward if self.seen else 1e6, True
        return obs, reward, *rest


def test_an_outlier_does_not_make_the_bins_useless_for_ever(monkeypatch):
    monkeypatch.setattr(AdaptiveSupports, "SHRINK_INTERVAL", 50)
    model = MuZero("MlpPolicy", OutlierFirst(), buffer_size=200, **QUICK).learn(150)
    assert model.policy.latent_model.value_support.bounds[1] > 1e6 - 1
    model.learn(1500, reset_num_timesteps=False)
    for latent_model in (model.policy.latent_model, model.policy.latent_model_target):
        for support in (latent_model.value_support, latent_model.reward_support):
            assert -2 < support.bounds[0] <= -0.29 and 0.69 <= support.bounds[1] < 2
    obs = np.zeros(1, dtype=np.float32)
    assert model.predict(obs, deterministic=True)[0] == 2 and value_of(model, obs) == pytest.approx(0.7, abs=0.6)


def test_a_support_shrinks_only_if_all_targets_of_an_interval_used_little_of_it():
    model = MuZero("MlpPolicy", "CartPole-v1", **QUICK)
    supports, policy, support = AdaptiveSupports(), model.policy, model.policy.latent_model.reward_support
    small, large, interval = (-1.0, 0.5), (3.0, 100.0), supports.SHRINK_INTERVAL
    supports.expand(policy, large, large, model.discount)
    supports.expand(policy, small, small, model.discount)
    for update in range(3 * interval):
        targets = large if update == 7 else (0.0, 0.0) if interval <= update < 2 * interval else small
        supports.shrink(policy, targets, targets)
        used_little = update == 3 * interval - 1
        assert support.bounds.tolist() == ([-1.0, 0.5] if used_little else [-1.0, 100.0]), "zeros alone leave it as it is"
        if update == 10:  # as a resumed run does
            state, supports = supports.state(), AdaptiveSupports()
            supports.load_state(state)


def test_frozen_batch_overfits_to_the_entropy_floor():
    """Every loss term of one batch falls to the least a perfect model can have: the entropy of its targets."""
    model = MuZero("MlpPolicy", "CartPole-v1", unroll_steps=3, **{**QUICK, "learning_starts": 60})
    model.learn(200)
    policy = model.policy
    samples = model.replay_buffer.sample(8, unroll_steps=3, n_steps=5)
    targets = unroll_targets(samples, th.zeros(4, 8), model.gamma)
    values, rewards = (tuple(th.stack(part.aminmax()).tolist()) for part in (targets.values, targets.rewards))
    model.learner.supports.expand(policy, values, rewards, model.discount)

    def two_hot_entropy(support, scalars):
        share = ((scalars - support.bounds[0]) / (support.bounds[1] - support.bounds[0]) * (support.num_bins - 1)) % 1
        return th.special.entr(share) + th.special.entr(1 - share)

    step_weights = th.tensor([1.0, 1 / 3, 1 / 3, 1 / 3]).unsqueeze(-1)
    supports = policy.latent_model.value_support, policy.latent_model.reward_support
    floors = (
        (step_weights * th.special.entr(targets.policies).sum(-1)).sum(0).mean(),
        (step_weights * two_hot_entropy(supports[0], targets.values) * targets.value_weights).sum(0).mean(),
        (step_weights[1:] * two_hot_entropy(supports[1], targets.rewards) * targets.reward_weights).sum(0).mean(),
        th.zeros(()),
    )
    optimizer = th.optim.Adam(policy.latent_model.parameters(), lr=3e-3)
    annealing = th.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=600)
    for _ in range(600):
        losses = muzero_loss(policy.latent_model, policy.actions, samples, targets).losses
        optimizer.zero_grad()
        sum(loss for name, loss in losses.items() if name != "entropy").backward()
        optimizer.step()
        annealing.step()
    for name, floor in zip(("policy", "value", "reward", "consistency"), floors, strict=True):
        assert floor - 1e-4 <= losses[name].item() <= floor + 0.1, name


def test_entropy_keeps_what_the_search_would_rule_out():
    policies = []
    for ent_coef in (0.0, 10.0):
        model = MuZero("MlpPolicy", Bandit(), ent_coef=ent_coef, **QUICK).learn(800)
        latent = model.policy.represent(th.zeros(1, 1))
        policies.append(model.policy.latent_model.prediction(latent).policy_logits.softmax(-1)[0].detach())
    assert policies[0][2] > 0.5 and policies[0].argmax() == 2
    assert 0.25 < policies[1][2] < 0.35 and policies[1].argmax() == 2


def test_every_position_of_a_sequence_is_searched_again_and_stored():
    """What a search of each observation alone finds, at all positions before the end."""
    model = MuZero("MlpPolicy", "CartPole-v1", n_steps=1, **{**QUICK, "learning_starts": 100}).learn(200)
    samples = model.sample(64, 3)
    reanalyzed, update = model.reanalyzer(samples, 1.0, 77)
    model.replay_buffer.update_search(*update)
    policies, target = model.replay_buffer.policies, model.policy.latent_model_target
    for k in range(4):
        is_step = (samples.lengths > k).numpy()
        found = model.policy.plan(samples.observations[k], deterministic=True, model=target)
        np.testing.assert_allclose(reanalyzed.policies[k][is_step], found.action_weights[is_step], atol=1e-5)
        np.testing.assert_allclose(reanalyzed.reanalyzed_values[k][is_step], found.improved_value[is_step], atol=1e-3)
        assert not reanalyzed.policies[k][~is_step].any()
        stored = policies[samples.ids[k][is_step]].squeeze(1)
        np.testing.assert_allclose(stored, found.action_weights[is_step], atol=1e-5)
        assert (model.replay_buffer.model_versions[samples.ids[k][is_step]] == 77).all()


def test_fresh_values_are_those_of_acting_well_where_returns_are_those_of_random_actions():
    """Nothing but random actions in the buffer: one step of the optimal policy is worth more than one of theirs."""
    values = []
    for reanalyze_ratio in (0.0, 1.0):
        settings = {**QUICK, "learning_starts": 400, "gradient_steps": 0, "target_update_interval": 20}
        model = MuZero("MlpPolicy", Chain(), gamma=0.9, n_steps=1, reanalyze_ratio=reanalyze_ratio, **settings).learn(400)
        model.train(gradient_steps=500, batch_size=32)
        values.append(model.policy.predict_values(th.tensor([0, 1])).flatten().tolist())
    assert values[0] == pytest.approx([0.5 * (1 + 0.9 * 1), 0.5 * 2], abs=0.6), "half of the actions go on"
    assert values[1] == pytest.approx([1 + 0.9 * 2, 2.0], abs=0.25)


@pytest.mark.parametrize("exponent", [-10, 13])
def test_the_unit_of_the_rewards_does_not_matter(exponent):
    """In a power of two it changes not even the rounding: CartPole is learned by the same actions."""
    taken = []
    for unit in (1.0, 2.0**exponent):
        env = gym.wrappers.TransformReward(gym.make("CartPole-v1"), lambda reward, unit=unit: reward * unit)
        model = MuZero("MlpPolicy", env, **QUICK).learn(600)
        taken.append(model.replay_buffer.actions[:600])
    np.testing.assert_array_equal(*taken)


@pytest.mark.parametrize("scale", [pytest.param(1e-3, marks=pytest.mark.slow), 1e4])
def test_rewards_of_any_scale(scale):
    env = gym.wrappers.TransformReward(Chain(), lambda reward: reward * scale)
    model = MuZero("MlpPolicy", env, gamma=0.9, **QUICK).learn(1500)
    assert model.predict(np.array([0, 1]), deterministic=True)[0].tolist() == [1, 1]
    assert value_of(model, np.array([1])) == pytest.approx(2.0 * scale, rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_cartpole(seed):
    model = MuZero("MlpPolicy", "CartPole-v1", seed=seed, device="cpu").learn(15_000)
    assert evaluate_policy(model, model.get_env(), 20)[0] >= 475


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_cartpole_with_rewards_of_any_scale(scale):
    env = gym.wrappers.TransformReward(gym.make("CartPole-v1"), lambda reward: reward * scale)
    model = MuZero("MlpPolicy", env, seed=0, device="cpu").learn(10_000)
    assert evaluate_policy(model, Monitor(gym.make("CartPole-v1")), 20)[0] >= 475


@pytest.mark.slow
def test_frozen_lake():
    env = gym.make("FrozenLake-v1", is_slippery=False)
    model = MuZero("MlpPolicy", env, seed=0, device="cpu").learn(10_000)
    assert evaluate_policy(model, model.get_env(), 5)[0] == 1.0


class CombinationLock(gym.Env):
    """
    Each of ``length`` states has one action that goes on, at a small cost; the other leads back to the start. The last state
    is the goal.
    """

    action_space = spaces.Discrete(2)

    def __init__(self, length: int = 10) -> None:
        self.length = length
        self.observation_space = spaces.Discrete(length)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = 0
        return 0, {}

    def step(self, action):
        self.state = self.state + 1 if action == self.state % 2 else 0
        opened = self.state == self.length - 1
        return self.state, opened - 0.02 * (self.state > 0), opened, False, {}


@pytest.mark.parametrize(("novelty_coef", "opens"), [(10.0, True), (0.0, False)])
def test_novelty_opens_what_random_actions_do_not(novelty_coef, opens):
    env = TimeLimit(CombinationLock(), 40)
    model = MuZero("MlpPolicy", env, novelty_coef=novelty_coef, **{**QUICK, "batch_size": 64}).learn(1000)
    assert (model.replay_buffer.rewards[:1000].max() > 0) == opens


@pytest.mark.parametrize("novelty_coef", [0.0, 1.0])
def test_novelty_is_something_to_plan_for_before_any_reward(novelty_coef):
    env = TimeLimit(CombinationLock(length=1000), 40)
    env = gym.wrappers.TransformReward(env, lambda reward: 0.0)
    model = MuZero("MlpPolicy", env, novelty_coef=novelty_coef, **QUICK).learn(160)
    searched = model.replay_buffer.policies[:160].sum(axis=-1) > 0
    assert not searched[:100].any() and (searched[100:].all() if novelty_coef else not searched.any())


def test_reanalysis_gives_the_steps_it_meets_the_present_models_policy():
    model = MuZero("MlpPolicy", Bandit(), reanalyze_ratio=0.5, gradient_steps=0, **{**QUICK, "learning_starts": 300}).learn(
        300
    )
    buffer = model.replay_buffer
    assert not buffer.policies[:300].any(), "a random warm-up leaves no policy targets"
    model.train(gradient_steps=1, batch_size=32)
    searched = buffer.policies[:300].sum(axis=-1) > 0
    assert 1 <= searched.sum() <= 16
    np.testing.assert_array_equal(buffer.model_versions[:300].flatten(), 0)
    model.train(gradient_steps=60, batch_size=32)
    assert buffer.model_versions[:300].max() == 60, "searched before the last of 61 updates"
    assert 0 <= model.logger.name_to_value["train/policy_age"] <= 60
    target = model.policy.latent_model_target
    present = model.policy.plan(th.zeros(1, 1), deterministic=True, model=target).action_weights[0]
    model.reanalyze_ratio = 1.0
    model.train(gradient_steps=1, batch_size=256)
    newest = buffer.policies[:300][np.abs(buffer.policies[:300] - present).sum(axis=-1) < 0.2]
    assert len(newest) > 100
