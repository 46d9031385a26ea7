"""Runs with continuous and composite actions: masks, files, what is refused."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import TinyEnv, differences, scramble, snapshot, tiny_model
from gymnasium import spaces
from sb3_contrib.common.envs import InvalidActionEnvMultiBinary, InvalidActionEnvMultiDiscrete
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_muzero import MuZero
from sb3_muzero.analysis import report
from sb3_muzero.analysis.plotting import plot_policies, plot_search_tree
from sb3_muzero.analysis.search_tree import candidate_names
from sb3_muzero.callbacks import DiagnosticsCallback
from sb3_muzero.checkpointing import resume, save_checkpoint
from sb3_muzero.learning.symmetries import Symmetries

BOX = spaces.Box(-2.0, 2.0, (2,), np.float32)
MULTI = spaces.MultiDiscrete([3, 4, 2])
NO_SYMMETRY = Symmetries(np.arange(3)[None], np.arange(2)[None])


def pendulum(n_envs: int = 1) -> DummyVecEnv:
    return DummyVecEnv([lambda: gym.make("Pendulum-v1", max_episode_steps=30) for _ in range(n_envs)])


class Masked(TinyEnv):
    """Half of the values of each component are illegal, others at each step."""

    def __init__(self, action_space: spaces.Space = MULTI) -> None:
        super().__init__(action_space=action_space)
        self.sizes = np.full(action_space.shape, 2) if isinstance(action_space, spaces.MultiBinary) else action_space.nvec
        self.random = np.random.default_rng(0)

    def action_masks(self) -> np.ndarray:
        self.legal = [self.random.permutation(np.arange(size) >= size // 2) for size in self.sizes]
        return np.concatenate(self.legal)

    def step(self, action: Any) -> Any:
        assert all(legal[value] for legal, value in zip(self.legal, action, strict=True)), "illegal action"
        return super().step(action)


@pytest.mark.parametrize(
    "settings", [{}, dict(search="puct"), dict(policy_kwargs=dict(action_kwargs=dict(num_candidates=64)))]
)
@pytest.mark.parametrize("space", [MULTI, spaces.MultiBinary(4)], ids=["MultiDiscrete", "MultiBinary"])
def test_no_illegal_action_is_taken(space, settings):
    env = Masked(space)
    model = tiny_model(env, reanalyze_ratio=0.5, **settings)
    scramble(model).learn(200)  # also in the random steps
    assert model.uses_action_masks and model.replay_buffer.action_masks is not None
    masks = np.stack([env.action_masks() for _ in range(20)])
    observations = np.stack([model.observation_space.sample() for _ in range(20)])
    for deterministic in (True, False):
        actions, _ = model.predict(observations, deterministic=deterministic, action_masks=masks)
        assert model.policy.actions.is_legal(actions.astype(np.int64), masks).all()
        alone, _ = model.predict(observations[3], deterministic=deterministic, action_masks=masks[3])
        assert model.policy.actions.is_legal(alone.astype(np.int64)[None], masks[3:4]).all()


@pytest.mark.parametrize("kind", [InvalidActionEnvMultiDiscrete, InvalidActionEnvMultiBinary])
def test_environments_of_sb3_contrib(kind):
    sizes = (
        dict(dims=[6, 5], n_invalid_actions=7) if kind is InvalidActionEnvMultiDiscrete else dict(dims=6, n_invalid_actions=4)
    )
    env = kind(**sizes)
    model = tiny_model(env).learn(80)
    evaluate_policy(model, env, n_eval_episodes=2, warn=False)


def test_masks_are_checked():
    model = tiny_model(Masked())
    obs = model.observation_space.sample()
    with pytest.raises(ValueError, match=r"must have the shape \[9\], got \[4\]"):
        model.predict(obs, action_masks=np.ones(4))
    nothing = np.ones(9)
    nothing[3:7] = 0
    with pytest.raises(ValueError, match="True for a value of each component, got none for component 1 in row 0"):
        model.predict(obs, action_masks=nothing)


CASES: dict[str, Any] = {
    "Box": lambda: TinyEnv(action_space=BOX),
    "Box, 2 Pendulums": lambda: pendulum(2),
    "MultiDiscrete": lambda: TinyEnv(action_space=MULTI),
    "masks": Masked,
}


@pytest.mark.parametrize("name", CASES)
def test_resumed_runs_go_on_to_the_bit(name, tmp_path):
    make = CASES[name]
    model = tiny_model(make(), reanalyze_ratio=0.5, n_steps=3).learn(90)
    save_checkpoint(model, tmp_path)
    model.learn(90, reset_num_timesteps=False)
    resumed = resume(tmp_path, make(), restore_environments=True).learn(90, reset_num_timesteps=False)
    assert differences(snapshot(model), snapshot(resumed)) == []
    for ring in ("actions", "candidates", "policies"):
        np.testing.assert_array_equal(getattr(model.replay_buffer, ring), getattr(resumed.replay_buffer, ring))


def test_models_are_saved_and_loaded(tmp_path):
    kwargs = dict(policy_kwargs=dict(action_kwargs=dict(num_bins=7, num_candidates=5, num_inner_candidates=3)))
    model = scramble(tiny_model(pendulum(), **kwargs).learn(60))
    obs = np.stack([model.observation_space.sample() for _ in range(5)])
    expected, _ = model.predict(obs, deterministic=True)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    model.policy.save(tmp_path / "policy")
    loaded = MuZero.load(tmp_path / "model", pendulum())
    loaded.load_replay_buffer(tmp_path / "buffer")
    np.testing.assert_array_equal(loaded.replay_buffer.candidates[:60], model.replay_buffer.candidates[:60])
    for policy in (loaded.policy, type(model.policy).load(tmp_path / "policy")):
        np.testing.assert_array_equal(policy.predict(obs, deterministic=True)[0], expected)
    loaded.learn(40, reset_num_timesteps=False)


@pytest.mark.parametrize("ring", ["actions", "candidates"])
@pytest.mark.parametrize("space", [BOX, MULTI], ids=["Box", "MultiDiscrete"])
def test_actions_out_of_range_are_not_loaded(ring, space):
    buffer = tiny_model(TinyEnv(action_space=space)).learn(30).replay_buffer
    state = buffer.state()
    state["rings"][ring] = state["rings"][ring].copy()
    state["rings"][ring][3, ..., 0] = 3
    with pytest.raises(ValueError, match="`action` must be vectors of"):
        buffer.load_state(state)


def test_runs_are_reproducible():
    runs = [tiny_model(pendulum(), reanalyze_ratio=0.5).learn(80) for _ in range(2)]
    assert differences(*map(snapshot, runs)) == []


def test_two_players_have_discrete_actions():
    env = TinyEnv(action_space=BOX)
    env.two_player = True
    with pytest.raises(ValueError, match="Two-player games require a Discrete action space, got Box"):
        tiny_model(env)


def test_symmetries_have_discrete_actions():
    env = TinyEnv(action_space=BOX)
    env.symmetries = NO_SYMMETRY
    with pytest.raises(ValueError, match="`symmetries` require a Discrete action space, got Box"):
        tiny_model(env).learn(30)


def test_action_grids_have_discrete_actions():
    env = TinyEnv(spaces.Box(0, 255, (3, 8, 8), np.uint8), BOX)
    with pytest.raises(ValueError, match="`action_grid` must be None unless the action space is Discrete"):
        tiny_model(env, "ResNetPolicy", policy_kwargs=dict(action_grid=(1, 2)))


def test_the_policy_acts_without_random_numbers_of_pytorch():
    model = tiny_model(pendulum())
    state = th.get_rng_state()
    model.predict(model.observation_space.sample())
    assert th.equal(th.get_rng_state(), state)


@pytest.mark.parametrize("make", [pendulum, lambda: TinyEnv(action_space=MULTI)], ids=["Box", "MultiDiscrete"])
def test_diagnostics_and_report(make, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "DECODER_UPDATES", 5)
    callback = DiagnosticsCallback(log_freq=30)
    model = tiny_model(make()).learn(90, callback=callback)
    assert np.isfinite(callback.errors[-1].policy).all() and callback.errors[-1].policy.min() > -1e-6
    model.replay_buffer.reset()
    report.write_report(model, model.get_env(), tmp_path / "report.html", num_episodes=1, max_steps=60)
    assert "search tree of step 0" in (tmp_path / "report.html").read_text()


def test_plots_name_the_candidates():
    policy = tiny_model(pendulum()).policy
    search = policy.plan(th.zeros(1, 3))
    labels = [label.get_text() for label in plot_policies(search).axes[0].get_xticklabels()]
    assert labels[1].startswith(f"{search.candidates[0, 1, 0]:.2f}\n")
    labels = [label.get_text() for label in plot_policies(search, actions=policy.actions).axes[0].get_xticklabels()]
    assert labels[1].startswith(f"{2 * search.candidates[0, 1, 0]:.2f}\n")


@pytest.mark.parametrize(
    "space", [spaces.Box(np.float32([0, -9]), np.float32([1, -5])), spaces.MultiDiscrete([3, 4], start=[0, 10])], ids=type
)
def test_search_trees_show_the_candidate_of_each_edge_as_the_environment_gets_it(space):
    policy = tiny_model(TinyEnv(action_space=space), num_simulations=16).policy
    search = policy.plan(th.linspace(-1, 1, 9).reshape(3, 3), deterministic=True)
    tree, index = search.tree, 2
    assert tree.node_depths[index].max() >= 2
    expected = []
    for node in range(1, 17):
        vector = search.node_candidates[index, tree.parents[index, node], tree.action_from_parent[index, node]]
        numbers = policy.actions.to_env(vector.astype(search.candidates.dtype))
        expected.append([round(float(number), 2) for number in numbers])
    figure = plot_search_tree(search, index, actions=policy.actions)
    shown = [[float(number) for number in text.get_text().split("  ")[0].split()] for text in figure.axes[0].texts]
    np.testing.assert_allclose(sorted(shown), sorted(expected), atol=0.006)
    played = candidate_names(search, index, actions=policy.actions)[search.action[index]]
    assert f"plays {played};" in figure.axes[0].get_title("left")


def test_candidates_of_a_small_box_are_not_rounded_to_zero():
    policy = tiny_model(TinyEnv(action_space=spaces.Box(-1e-3, 1e-3, (2,), np.float32))).policy
    names = candidate_names(policy.plan(th.zeros(1, 3)), actions=policy.actions)
    assert all(0 < abs(float(number)) <= 1e-3 for name in names[1:] for number in name.split())


def test_the_replay_buffer_takes_the_policys_candidates():
    with pytest.raises(ValueError, match=r"`replay_buffer_kwargs` must not have `action_kwargs`"):
        tiny_model("Pendulum-v1", replay_buffer_kwargs=dict(action_kwargs=dict(num_candidates=4)))
    with pytest.raises(ValueError, match=r"`action_kwargs` must be a dictionary, got \[1\]"):
        tiny_model("Pendulum-v1", policy_kwargs=dict(action_kwargs=[1]))


def test_candidates_of_other_bins_are_not_loaded(tmp_path):
    models = [tiny_model("Pendulum-v1", policy_kwargs=dict(action_kwargs=dict(num_bins=bins))) for bins in (5, 4)]
    models[0].save_replay_buffer(tmp_path / "buffer")
    with pytest.raises(ValueError, match=r"must have `action_kwargs` \{'num_bins': 4\}"):
        models[1].load_replay_buffer(tmp_path / "buffer")


def test_rounding_errors_of_values_are_no_preference():
    """A plateau: the values of all candidates differ by less than a ten-thousandth of the value error."""
    model = tiny_model("Pendulum-v1", num_simulations=16)
    scramble(model, 3)
    policy = model.policy
    head = policy.latent_model.prediction.policy_head
    head.weight.data.zero_(), head.bias.data.zero_()
    policy.value_error.fill_(1e9)
    search = policy.plan(policy.obs_to_tensor(np.zeros((1, 3), np.float32))[0], deterministic=True)
    assert search.visit_counts.all() and np.ptp(search.qvalues) > 0
    np.testing.assert_allclose(search.action_weights, search.tree.children_prior_probs[:, 0], rtol=1e-3)
