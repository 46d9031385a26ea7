"""``predict`` plans, for one observation or many, and asks nothing of anybody else's random numbers."""

import random
from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import TinyEnv, cartpole_observations, differences, scramble, sequences_of, snapshot, tiny_envs, tiny_model
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_muzero.models.base import DynamicsOutput
from sb3_muzero.policies import MuZeroPolicy

SEARCHES = ["gumbel", "puct"]


@pytest.fixture(params=SEARCHES)
def model(request):
    return scramble(tiny_model(search=request.param, num_simulations=8))


def test_single_and_batched(model):
    observations = cartpole_observations()
    actions, state = model.predict(observations, deterministic=True)
    assert isinstance(actions, np.ndarray) and actions.shape == (32,) and actions.dtype == np.int64
    assert set(actions) == {0, 1} and state is None
    for observation, action in zip(observations, actions, strict=True):
        alone, _ = model.predict(observation, deterministic=True)
        assert isinstance(alone, np.ndarray | np.int64) and np.shape(alone) == ()
        assert alone == action
        assert model.action_space.contains(alone)


def test_deterministic_actions_do_not_depend_on_the_rest_of_the_batch(model):
    observations = cartpole_observations(100)
    actions, _ = model.predict(observations, deterministic=True)
    order = np.random.default_rng(1).permutation(100)
    np.testing.assert_array_equal(model.predict(observations[order], deterministic=True)[0], actions[order])
    for size in (1, 2, 3, 7, 33):
        np.testing.assert_array_equal(model.predict(observations[:size], deterministic=True)[0], actions[:size])


def test_deterministic_is_repeatable_and_draws_nothing(model):
    observations = cartpole_observations()

    def generators():
        return (
            deepcopy(np.random.get_state()),
            th.get_rng_state().clone(),
            random.getstate(),
            deepcopy(model.action_space.np_random.bit_generator.state),
        )

    actions, _ = model.predict(observations, deterministic=True)
    before = generators()
    for _ in range(3):
        np.testing.assert_array_equal(model.predict(observations, deterministic=True)[0], actions)
        np.testing.assert_array_equal(model.policy.predict(observations, deterministic=True)[0], actions)
        model.predict(observations[0], deterministic=True)
    assert differences(before, generators()) == []


@pytest.mark.parametrize("search", SEARCHES)
def test_stochastic_explores_and_a_seed_repeats_it(search):
    model = tiny_model(search=search)  # untrained, without an opinion
    same = np.zeros((64, 4), np.float32)
    set_random_seed(3)
    actions, _ = model.predict(same)
    assert set(actions) == {0, 1}
    assert len({int(model.predict(same[0])[0]) for _ in range(30)}) == 2
    set_random_seed(3)
    np.testing.assert_array_equal(model.predict(same)[0], actions)
    assert len(set(model.predict(same, deterministic=True)[0])) == 1


@pytest.mark.parametrize("search", SEARCHES)
def test_predict_plans_rather_than_reads_the_prior(search):
    """A prior that likes action 0, and rewards that only a look ahead can know of."""
    model = tiny_model(
        search=search, num_simulations=16, policy_kwargs={"reward_support": (0.0, 1.0), "value_support": (0.0, 1.0)}
    )
    policy = model.policy

    head = policy.latent_model.prediction
    prediction = head.forward

    def known_model(latent, action):
        reward_logits = th.full((len(latent), 51), -30.0)
        reward_logits[:, 0] = th.where(action.argmax(-1) == 1, -30.0, 30.0)
        reward_logits[:, -1] = -reward_logits[:, 0]
        return DynamicsOutput(latent, reward_logits)

    def opinion(latent):
        out = prediction(latent)
        policy_logits = out.policy_logits.clone()
        policy_logits[..., 0] += 1.0
        value_logits = th.full_like(out.value_logits, -30.0)
        value_logits[..., 0] = 30.0
        return out._replace(policy_logits=policy_logits, value_logits=value_logits)

    policy.latent_model.dynamics.forward = known_model
    head.forward = opinion
    action, _ = model.predict(np.zeros(4, np.float32), deterministic=True)
    assert action == 1


def test_an_eval_callback_does_not_change_training():
    def trained(callback=None):
        model = tiny_model(seed=4)
        return snapshot(model.learn(72, callback=callback))

    evaluation = Monitor(gym.make("CartPole-v1"))
    plain = trained()
    watched = trained(EvalCallback(evaluation, eval_freq=10, n_eval_episodes=2, verbose=0))
    assert differences(plain, watched) == []


@pytest.mark.parametrize(
    "observation",
    [
        np.zeros(3, np.float32),
        np.zeros((4, 1), np.float32),
        np.zeros((2, 5), np.float32),
        np.zeros((1, 1, 4), np.float32),
        np.float32(0.0),
        np.zeros((0,), np.float32),
        0.5,
        None,
        "left",
        np.array(["a", "b", "c", "d"]),
        np.array([0, 0, None, 0]),
        np.zeros(4, np.complex64),
        np.zeros(4, "datetime64[s]"),
        [[0.0, 0.0], [0.0]],
        np.array([0.0, np.nan, 0.0, 0.0]),
        np.array([[0.0] * 4, [0.0, 0.0, 0.0, np.inf]], np.float32),
        np.array([0.0, 0.0, 0.0, -np.inf], np.float16),
    ],
    ids=str,
)
def test_observations_that_are_none(observation):
    model = tiny_model()
    for predict in (model.predict, model.policy.predict):
        with pytest.raises(ValueError):
            predict(observation, deterministic=True)
    model.predict(np.zeros(4), deterministic=True)


@pytest.mark.parametrize("observation", [np.zeros((1, 1), np.int64), np.zeros((2, 2), np.int64), None, "3"], ids=str)
def test_discrete_observations_that_are_none(observation):
    model = tiny_model(TinyEnv(spaces.Discrete(4)))
    with pytest.raises(ValueError):
        model.predict(observation)


def test_gym_tuple_is_pointed_out():
    model = tiny_model()
    for predict in (model.predict, model.policy.predict):
        with pytest.raises(ValueError, match="mixing Gym API"):
            predict(gym.make("CartPole-v1").reset())


@pytest.mark.parametrize("convert", [list, np.float64, np.float16, lambda a: np.asarray(a, order="F"), lambda a: a[::1][:, :]])
def test_numbers_of_any_kind_are_observations(model, convert):
    observations = np.round(cartpole_observations() * 8) / 8  # exact in all dtypes
    expected, _ = model.predict(observations, deterministic=True)
    np.testing.assert_array_equal(model.predict(convert(observations), deterministic=True)[0], expected)
    np.testing.assert_array_equal(model.predict(np.ascontiguousarray(observations.T).T, deterministic=True)[0], expected)


def test_a_prediction_leaves_the_observation_as_it_was(model):
    observations = cartpole_observations()
    kept = observations.copy()
    model.predict(observations)
    np.testing.assert_array_equal(observations, kept)


@pytest.mark.parametrize("state", [None, (np.ones((1, 2)),)], ids=["none", "tuple"])
def test_state_is_handed_back_as_given(model, state):
    for predict in (model.predict, model.policy.predict):
        _, returned = predict(np.zeros(4), state=state, episode_start=np.ones(1, bool), deterministic=True)
        assert returned is state


def test_policy_alone_acts_as_the_model(model):
    observations = cartpole_observations()
    expected, _ = model.predict(observations, deterministic=True)
    np.testing.assert_array_equal(model.policy.predict(observations, deterministic=True)[0], expected)
    tensor = model.policy(th.as_tensor(observations))
    np.testing.assert_array_equal(tensor.numpy(), expected)
    np.random.seed(0)
    explored, _ = model.predict(observations, deterministic=False)
    np.random.seed(0)
    np.testing.assert_array_equal(model.policy(th.as_tensor(observations), deterministic=False).numpy(), explored)


def test_predict_values_in_units_of_reward():
    model = tiny_model(policy_kwargs={"value_support": (-50.0, 50.0)})
    with th.no_grad():
        model.policy.latent_model.prediction.value_head.bias[40] = 60.0  # of 51 bins: 30
    values = model.policy.predict_values(th.as_tensor(cartpole_observations()))
    assert values.shape == (32, 1) and values.dtype == th.float32
    np.testing.assert_allclose(values.detach(), 30.0, rtol=1e-5)


def test_predict_values_depend_on_the_observation_and_on_nothing_else(model):
    observations = th.as_tensor(cartpole_observations())
    values = model.policy.predict_values(observations)
    assert values.std() > 0.01
    np.testing.assert_allclose(model.policy.predict_values(observations[5:6]).detach(), values[5:6].detach(), rtol=1e-4)


def test_policy_save_and_load(model, tmp_path):
    model.policy.save(tmp_path / "policy.pt")
    loaded = MuZeroPolicy.load(tmp_path / "policy.pt", device="cpu")
    observations = cartpole_observations(100)
    expected, _ = model.policy.predict(observations, deterministic=True)
    np.testing.assert_array_equal(loaded.predict(observations, deterministic=True)[0], expected)
    assert differences(model.policy.state_dict(), loaded.state_dict()) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"search": "puct", "num_simulations": 11, "search_kwargs": {"pb_c_init": 4.0, "max_depth": 2}, "gamma": 0.5},
        {
            "search": "gumbel",
            "num_simulations": 9,
            "search_kwargs": {"value_scale": 0.7, "qvalue_scope": "node"},
            "gamma": 0.9,
        },
    ],
    ids=SEARCHES,
)
def test_policy_save_and_load_carry_every_setting(settings, tmp_path):
    kwargs = {
        "net_arch": [16],
        "activation_fn": th.nn.Tanh,
        "latent_dim": 24,
        "latent_norm": "minmax",
        "num_bins": 11,
        "reward_support": (-1.0, 1.0),
        "normalize_images": False,
        "optimizer_class": th.optim.SGD,
        "optimizer_kwargs": {"momentum": 0.1},
    }
    policy = scramble(tiny_model(policy_kwargs=kwargs, **settings)).policy
    policy.save(tmp_path / "policy.pt")
    loaded = MuZeroPolicy.load(tmp_path / "policy.pt", device="cpu")
    for name, value in kwargs.items():
        assert getattr(loaded, name) == value, name
    for name, value in {**settings, "discount": settings["gamma"]}.items():
        assert name == "gamma" or getattr(loaded.planner.settings, name) == value, name
    assert type(loaded.optimizer) is th.optim.SGD
    observations = th.as_tensor(cartpole_observations())
    expected, found = policy.plan(observations, deterministic=True), loaded.plan(observations, deterministic=True)
    np.testing.assert_array_equal(found.action_weights, expected.action_weights)
    np.testing.assert_array_equal(found.value, expected.value)
    assert found.tree.node_visits[0, 0] == settings["num_simulations"] + 1


@pytest.mark.parametrize("n_envs", [1, 3])
def test_evaluate_policy_on_model_and_policy(model, n_envs):
    def returns(actor, **kwargs):
        env = DummyVecEnv([lambda: Monitor(gym.make("CartPole-v1")) for _ in range(n_envs)])
        env.seed(0)
        return evaluate_policy(actor, env, n_eval_episodes=5, return_episode_rewards=True, **kwargs)[0]

    expected = returns(model)
    assert len(expected) == 5 and min(expected) >= 8
    assert returns(model.policy) == expected
    np.random.seed(0)
    assert returns(model, deterministic=False) != expected


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("start", [3, -2])
def test_actions_that_do_not_start_at_zero(search, start):
    actions = spaces.Discrete(3, start=start)
    env = TinyEnv(action_space=actions)  # asserts that actions are legal
    model = tiny_model(env, search=search).learn(60)
    taken = np.array([action for episode in env.taken for action in episode])
    assert set(taken) == set(range(start, start + 3))
    observations = np.stack(env.shown[0])
    for deterministic in (False, True):
        predicted, _ = model.predict(observations, deterministic=deterministic)
        assert all(actions.contains(action) for action in predicted)
        assert actions.contains(model.predict(observations[0], deterministic=deterministic)[0])
    evaluate_policy(model, TinyEnv(action_space=actions), n_eval_episodes=2, warn=False)
    # What the model learns from are the same actions, counted from 0
    stored = sequences_of(model.replay_buffer, np.arange(60), np.zeros(60, int), 1, 1)
    np.testing.assert_array_equal(stored.actions[0], taken[:60] - start)
    np.testing.assert_array_equal(stored.rewards[0], taken[:60] == start)


def test_predicting_for_other_environments_leaves_training_undisturbed():
    def trained(interrupt):
        model = tiny_model(tiny_envs(2), seed=2)
        model.learn(36)
        if interrupt:
            model.predict(np.ones((5, 3), np.float32), deterministic=True)
            model.policy.predict_values(th.zeros(4, 3))
        return snapshot(model.learn(40, reset_num_timesteps=False))

    assert differences(trained(False), trained(True)) == []
