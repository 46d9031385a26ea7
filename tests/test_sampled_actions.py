"""Box, MultiDiscrete and MultiBinary actions: their representation, and the candidates that searches draw."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import TinyEnv, scramble, tiny_envs, tiny_model
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_muzero import MuZero
from sb3_muzero.actions import BoxActions, CompositeActions, make_actions
from sb3_muzero.actions.distributions import SquashedGaussianPolicy, quadrature
from sb3_muzero.actions.sampled import log_shares

SPACES = {
    "Box": spaces.Box(-2.0, 2.0, (1,), np.float32),
    "asymmetric Box": spaces.Box(np.float32([-3, 0, 5]), np.float32([-1, 1e-3, 1e6])),
    "Box of two axes": spaces.Box(-1.0, 3.0, (2, 2), np.float32),
    "Box without axes": spaces.Box(-1.0, 3.0, (), np.float32),
    "float64 Box": spaces.Box(-1.0, 1.0, (2,), np.float64),
    "integer Box": spaces.Box(-1, 3, (2,), np.int32),
    "uint8 Box": spaces.Box(0, 255, (2,), np.uint8),
    "MultiDiscrete": spaces.MultiDiscrete([3, 1, 5]),
    "MultiDiscrete of two axes": spaces.MultiDiscrete([[3, 2], [2, 4]], start=[[5, 0], [-1, 0]]),
    "small MultiDiscrete": spaces.MultiDiscrete([2, 2], start=[1, 1]),
    "MultiBinary": spaces.MultiBinary(7),
}
COMPOSITE = [name for name in SPACES if "Multi" in name]


@pytest.mark.parametrize("search", ["gumbel", "puct"])
@pytest.mark.parametrize("name", SPACES)
def test_action_spaces_are_learned_from(name, search):
    space = SPACES[name]
    env = TinyEnv(action_space=space)
    model = tiny_model(env, search=search, reanalyze_ratio=0.5, n_steps=3).learn(60)
    assert model._n_updates > 0 and all(th.isfinite(parameter).all() for parameter in model.policy.parameters())
    observations = np.stack(env.shown[0])
    for deterministic in (True, False):
        actions, _ = model.predict(observations, deterministic=deterministic)
        assert actions.shape == (11, *space.shape) and actions.dtype == space.dtype
        assert all(space.contains(action) for action in actions)
        alone, _ = model.predict(observations[0], deterministic=deterministic)
        assert space.contains(alone)


@pytest.mark.parametrize("num_bins", [None, 5])
@pytest.mark.parametrize("name", [name for name in SPACES if "Box" in name])
def test_box_actions_are_scaled_to_the_bounds(name, num_bins):
    space = SPACES[name]
    actions = make_actions(space, {"num_bins": num_bins})
    dim = int(np.prod(space.shape))
    ends = np.float32([[-1] * dim, [0] * dim, [1] * dim])
    low, middle, high = actions.to_env(ends)
    np.testing.assert_array_equal(low, space.low)
    np.testing.assert_array_equal(high, space.high)
    expected = (space.low.astype(np.float64) + space.high) / 2
    np.testing.assert_allclose(middle, np.rint(expected) if space.dtype.kind in "iu" else expected, rtol=1e-6)
    drawn = actions.check(actions.sample((40, 5)), 200)
    assert all(space.contains(action) for action in actions.to_env(drawn))
    assert np.abs(drawn.mean(0)).max() < 0.2 and drawn.std(0).min() > 0.4
    assert num_bins is None or len(np.unique(drawn)) == num_bins
    with pytest.raises(ValueError, match="from -1 to 1"):
        actions.check(np.full((1, dim), 1.01), 1)


@pytest.mark.parametrize("space", [*(SPACES[name] for name in SPACES if "Box" in name), spaces.Box(-9, 10**6, (3,), np.int64)])
def test_candidates_reach_the_bounds(space):
    actions = make_actions(space)
    far = SquashedGaussianPolicy(th.zeros(2, actions.num_policy_outputs)).sample(th.tensor([[[-99.0]], [[99.0]]]))
    low, high = actions.to_env(far.expand(2, 1, *actions.shape).numpy())[:, 0]
    np.testing.assert_array_equal(low, space.low)
    np.testing.assert_array_equal(high, space.high)


@pytest.mark.parametrize("num_bins", [None, 7])
def test_integers_are_equally_likely(num_bins):
    actions = make_actions(spaces.Box(-3, 3, (1,), np.int16), {"num_bins": num_bins})
    drawn = actions.to_env(actions.sample(70_000))
    np.testing.assert_allclose(np.bincount(drawn.ravel() + 3) / 10_000, 1, atol=0.05)


@pytest.mark.parametrize("name", COMPOSITE)
def test_composite_actions_are_counted_from_zero(name):
    space = SPACES[name]
    actions = make_actions(space)
    drawn = actions.sample(3_000)
    sizes = np.ravel(space.nvec) if isinstance(space, spaces.MultiDiscrete) else np.full(drawn.shape[1], 2)
    assert (drawn.min(0) == 0).all() and (drawn.max(0) == sizes - 1).all()
    assert all(space.contains(action) for action in actions.to_env(drawn))
    np.testing.assert_array_equal(actions.to_env(drawn[0]).ravel(), drawn[0] + np.ravel(getattr(space, "start", 0)))
    encoded = actions.make_encoder()(th.from_numpy(drawn))
    assert encoded.shape == (3_000, sizes.sum()) and (encoded.sum(1) == len(sizes)).all()
    np.testing.assert_array_equal(encoded[:, : sizes[0]].argmax(1), drawn[:, 0])
    for wrong in (-1, sizes.max()):
        with pytest.raises(ValueError, match="vectors of indices from 0 to"):
            actions.check(np.full((1, len(sizes)), wrong), 1)


def planned(space: spaces.Space, count: int = 6, **kwargs):
    model = scramble(tiny_model(TinyEnv(action_space=space), num_simulations=16, **kwargs), seed=1)
    obs = th.randn(count, 3)
    return model.policy, obs, model.policy.plan(obs, deterministic=True)


@pytest.mark.parametrize("name", SPACES)
def test_candidates_are_the_mode_first(name):
    policy, obs, found = planned(SPACES[name])
    actions = policy.actions
    mode = actions.distribution(policy.latent_model.initial_inference(obs).prior_logits).mode().detach().numpy()
    assert found.candidates.shape == (6, actions.num_candidates, *actions.shape)
    is_mode = np.isclose(found.candidates, mode[:, None], atol=1e-5).all(-1)
    assert is_mode.any(1).all() and (actions.has_all_candidates or is_mode[:, 0].all())
    np.testing.assert_allclose(found.action_weights.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(found.selected_actions, found.candidates[np.arange(6), found.action])


@pytest.mark.parametrize("name", [*COMPOSITE, "bins", "Box"])
def test_no_candidate_is_considered_twice(name):
    space, kwargs = (SPACES["Box"], {"num_bins": 9}) if name == "bins" else (SPACES[name], {})
    _, _, found = planned(space, policy_kwargs=dict(action_kwargs=kwargs))
    num_repeated = 0
    for candidates, weights, visits in zip(found.candidates, found.action_weights, found.visit_counts, strict=True):
        considered = candidates[(weights > 0) | (visits > 0)]
        assert len(np.unique(considered, axis=0)) == len(considered)
        num_repeated += len(candidates) - len(considered)
    assert num_repeated > 0 or name in ("small MultiDiscrete", "MultiBinary")


def test_repeated_candidates_share_their_prior():
    shares = log_shares(th.tensor([[[1, 2], [0, 0], [1, 2], [1, 2]], [[0, 0], [0, 1], [0, 2], [0, 3]]])).exp()
    assert shares.round().tolist() == [[3, 1, 0, 0], [1, 1, 1, 1]]


def test_few_joint_actions_are_all_candidates_with_the_policy_as_prior():
    policy, obs, found = planned(SPACES["small MultiDiscrete"])
    assert found.candidates[0].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    priors = found.tree.children_prior_probs[:, 0]
    outputs = policy.latent_model.initial_inference(obs).prior_logits.detach()
    expected = th.einsum("bi,bj->bij", outputs[:, :2].softmax(1), outputs[:, 2:].softmax(1)).flatten(1)
    np.testing.assert_allclose(priors, expected, atol=1e-5)


def test_nodes_below_the_root_have_fewer_candidates():
    kwargs = dict(policy_kwargs=dict(action_kwargs=dict(num_candidates=6, num_inner_candidates=2)))
    found = tiny_model(TinyEnv(action_space=SPACES["Box of two axes"]), **kwargs).policy.plan(th.randn(6, 3))
    is_expanded = found.tree.node_visits > 0
    num_possible = (found.tree.children_prior_probs > 0).sum(-1)
    assert (num_possible[:, 0] == 6).all() and (num_possible[:, 1:][is_expanded[:, 1:]] == 2).all()
    assert (found.tree.children_visits[:, 1:, 2:] == 0).all()


@pytest.mark.parametrize("name", SPACES)
def test_deterministic_actions_do_not_depend_on_chance_nor_on_the_batch(name):
    policy, obs, found = planned(SPACES[name])
    state = np.random.get_state()[1].copy(), th.get_rng_state()
    again = policy.plan(obs, deterministic=True)
    assert (np.random.get_state()[1] == state[0]).all() and th.equal(th.get_rng_state(), state[1])
    np.testing.assert_array_equal(again.selected_actions, found.selected_actions)
    for row in range(len(obs)):
        alone = policy.plan(obs[row : row + 1], deterministic=True)
        np.testing.assert_allclose(alone.selected_actions[0], found.selected_actions[row], atol=1e-4)


def test_searches_of_training_draw_other_candidates_each_time():
    policy, obs = tiny_model(TinyEnv(action_space=SPACES["Box"])).policy, th.randn(6, 3)
    first, second = policy.plan(obs).candidates, policy.plan(obs).candidates
    np.testing.assert_allclose(first[:, 0], second[:, 0], atol=1e-6)
    assert (first[:, 1:] != second[:, 1:]).mean() > 0.8, "but for some at the bounds"
    samples = np.stack([policy.plan(obs[:1], exploration=0.0).candidates[0, :, 0] for _ in range(300)])
    spread = np.arctanh(samples).std(0)
    assert spread[2::2].max() < spread[1::2].min(), "every second one looks further"


class LargestNumbers:
    """In place of a generator: the largest number below 1, always."""

    def random(self, size, dtype):
        return np.full(size, np.nextafter(dtype(1), dtype(0)))


def test_noise_is_a_number_per_component_and_keeps_its_temperature():
    noise = make_actions(SPACES["MultiDiscrete"]).draw_noise(LargestNumbers(), num_simulations=5, batch_size=2)
    assert noise.root.shape == (2, 8, 3) and noise.inner.shape == (5, 2, 4, 3)
    assert noise.root.dtype == noise.inner.dtype == np.float32
    np.testing.assert_array_equal(np.floor(noise.root[0, :, 0]), [0, 3, 1, 3, 1, 3, 1, 3])
    np.testing.assert_array_equal(np.floor(noise.inner), 1)


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("name", ["Box", "MultiDiscrete", "MultiBinary"])
def test_what_is_stored_is_what_was_searched_and_done(name, n_envs):
    space = SPACES[name]
    model = tiny_model(tiny_envs(n_envs, action_space=space)).learn(60)
    buffer, actions, size = model.replay_buffer, model.policy.actions, model.replay_buffer.size()
    taken = [np.concatenate([np.reshape(part, (-1, *space.shape)) for part in env.unwrapped.taken if part])
             for env in model.env.envs]  # fmt: skip
    np.testing.assert_allclose(actions.to_env(buffer.actions[:size]), np.stack(taken, axis=1)[:size], rtol=1e-6)
    searched = buffer.policies[:size].sum(-1) > 0
    assert 0.3 < searched.mean() < 0.8 and not searched[: 20 // n_envs].any()
    is_candidate = np.isclose(buffer.candidates[:size], buffer.actions[:size, :, None]).all(-1).any(-1)
    assert is_candidate[searched].all()


def test_stored_candidates_take_no_more_memory_than_they_need():
    for sizes, dtype in (([3, 256], np.uint8), ([2, 257], np.uint16), ([2**16 + 1], np.uint32)):
        model = tiny_model(TinyEnv(action_space=spaces.MultiDiscrete(sizes))).learn(30)
        size = model.replay_buffer.size()
        model.policy.actions.check(model.replay_buffer.candidates[:size], size * 8)
        samples = model.sample(8, 2)
        assert model.replay_buffer.candidates.dtype == dtype and samples.candidates.dtype == th.int64
        stored = {tuple(row) for row in model.replay_buffer.candidates[:size].reshape(-1, len(sizes)).tolist()}
        assert {tuple(row) for row in samples.candidates[0].reshape(-1, len(sizes)).tolist()} <= stored


def test_reanalysis_draws_new_candidates():
    model = tiny_model(TinyEnv(action_space=SPACES["Box"])).learn(60)
    samples = model.sample(8, 2)
    reanalyzed, update = model.reanalyzer(samples, 1.0, 99)
    changed = ~np.isclose(reanalyzed.candidates, samples.candidates).all((-2, -1))
    assert update is not None and changed[reanalyzed.model_versions == 99].all()
    model.replay_buffer.update_search(*update)
    places = model.replay_buffer.index.places(update.ids)
    np.testing.assert_array_equal(model.replay_buffer.candidates.reshape(-1, 8, 1)[places[-1]], update.candidates[-1])


def test_normalized_environments_and_evaluation():
    env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1") for _ in range(2)]))
    model = tiny_model(env).learn(80)
    env.training = False
    mean, _ = evaluate_policy(model, env, n_eval_episodes=2, warn=False)
    assert np.isfinite(mean)


@pytest.mark.parametrize("policy", ["CnnPolicy", "ResNetPolicy"])
@pytest.mark.parametrize("name", ["Box", "MultiDiscrete"])
def test_images(policy, name):
    env = TinyEnv(spaces.Box(0, 255, (3, 16, 16), np.uint8), SPACES[name])
    model = tiny_model(env, policy, reanalyze_ratio=1.0).learn(40)
    assert SPACES[name].contains(model.predict(env.shown[0][0])[0])


def test_candidates_in_the_order_of_the_arguments():
    with pytest.raises(ValueError, match="`num_inner_candidates` must be at most `num_candidates`, got 9 and 8"):
        BoxActions(SPACES["Box"], num_inner_candidates=9)
    with pytest.raises(ValueError, match="`num_candidates` must be an integer of at least 1, got 0"):
        CompositeActions(SPACES["MultiBinary"], num_candidates=0)
    for space, unknown in ((spaces.Discrete(3), "num_bins"), (SPACES["MultiBinary"], "num_bins"), (SPACES["Box"], "x")):
        with pytest.raises(
            ValueError, match=rf"`action_kwargs` of {type(space).__name__}.* must be of .*, got \['{unknown}'\]"
        ):
            MuZero("MlpPolicy", TinyEnv(action_space=space), policy_kwargs=dict(action_kwargs={unknown: 4}))


@pytest.mark.parametrize("name", SPACES)
def test_the_environments_of_these_tests_are_good_ones(name):
    check_env(TinyEnv(action_space=SPACES[name]), warn=False)


def test_an_entropy_in_inference_mode_leaves_training_as_it_is():
    quadrature.cache_clear()
    with th.inference_mode():
        SquashedGaussianPolicy(th.zeros(1, 2)).entropy(th.ones(1))
    outputs = th.zeros(1, 2, requires_grad=True)
    SquashedGaussianPolicy(outputs).entropy(th.ones(1)).sum().backward()
    assert outputs.grad.abs().sum() > 0


def test_planning_in_inference_mode_leaves_training_as_it_is():
    device, actions = th.device("meta"), make_actions(spaces.MultiDiscrete([2, 3]))  # stands for a GPU

    def propose(outputs):
        candidates, priors = actions.propose(outputs, th.empty(1, 6, 5, device=device))
        assert candidates.device == priors.device == device
        return actions.distribution(outputs).log_prob(candidates)

    with th.inference_mode():
        propose(th.zeros(1, 5, device=device))
    outputs = th.zeros(1, 5, device=device, requires_grad=True)
    propose(outputs).sum().backward()
    assert outputs.grad.shape == (1, 5)


def test_few_candidates_at_the_root_are_as_few_below_it():
    assert make_actions(spaces.Box(-1, 1, (1,)), dict(num_candidates=2)).num_inner_candidates == 2


def test_fractions_are_no_indices():
    with pytest.raises(ValueError, match=r"indices from 0 to \[2, 2\]"):
        make_actions(spaces.MultiDiscrete([3, 3])).check(np.array([[0.5, 1.0]]), 1)
