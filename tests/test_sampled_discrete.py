"""Large discrete action spaces: candidates are drawn, as for composite actions, instead of all actions being searched."""

from typing import Any

import numpy as np
import pytest
import torch as th
from conftest import TinyEnv, differences, scramble, snapshot, tiny_envs, tiny_model
from gymnasium import spaces
from sb3_contrib.common.envs import InvalidActionEnvDiscrete
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from test_sampled_compiled import plan_both

from sb3_muzero.actions import DiscreteActions, make_actions
from sb3_muzero.analysis import report
from sb3_muzero.analysis.plotting import plot_policies, plot_search_tree
from sb3_muzero.callbacks import DiagnosticsCallback
from sb3_muzero.checkpointing import resume, save_checkpoint
from sb3_muzero.games import ConnectFourEnv, TicTacToeEnv
from sb3_muzero.games.adapters import from_open_spiel, from_pettingzoo
from sb3_muzero.games.match import play_match
from sb3_muzero.games.players import ModelPlayer, RandomPlayer
from sb3_muzero.games.terminal import search, view
from sb3_muzero.learning.symmetries import apply_symmetries

KWARGS: dict[str, Any] = dict(policy_kwargs=dict(action_kwargs=dict(num_candidates=6, num_inner_candidates=3)))
SPACE = spaces.Discrete(2_000, start=-7)


class Masked(TinyEnv):
    """A tenth of the actions is legal, others at each step."""

    def __init__(self, action_space: spaces.Space = SPACE) -> None:
        super().__init__(action_space=action_space)
        self.random = np.random.default_rng(0)

    def action_masks(self) -> np.ndarray:
        self.legal = self.random.random(self.action_space.n) < 0.1
        return self.legal

    def step(self, action: Any) -> Any:
        assert self.legal[action - self.action_space.start], "illegal action"
        return super().step(action)


def test_all_actions_are_candidates_unless_their_number_is_given():
    assert isinstance(make_actions(SPACE), DiscreteActions) and isinstance(make_actions(SPACE, {}), DiscreteActions)
    assert make_actions(SPACE, KWARGS["policy_kwargs"]["action_kwargs"]).num_candidates == 6
    with pytest.raises(ValueError, match=r"`action_kwargs` of Discrete\(3\) must be of .*, got \['num_bins'\]"):
        make_actions(spaces.Discrete(3), dict(num_bins=3))


@pytest.mark.parametrize("search", ["gumbel", "puct"])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_runs(n_envs, search):
    env = tiny_envs(n_envs, action_space=SPACE)
    model = tiny_model(env, search=search, n_steps=3, **KWARGS).learn(90)
    buffer, size = model.replay_buffer, model.replay_buffer.size()
    taken = np.stack([np.concatenate([part for part in one.unwrapped.taken if part]) for one in env.envs], axis=1)
    np.testing.assert_array_equal(buffer.actions[:size, :, 0] - 7, taken[:size])
    assert buffer.candidates.shape[2:] == (6, 1) and buffer.policies.shape[2:] == (6,)
    searched = buffer.policies[:size].sum(-1) > 0
    assert (buffer.candidates[:size] == buffer.actions[:size, :, None]).all(-1).any(-1)[searched].all()
    observations = np.stack([model.observation_space.sample() for _ in range(5)])
    for deterministic in (True, False):
        actions, _ = model.predict(observations, deterministic=deterministic)
        assert actions.shape == (5,) and actions.dtype == SPACE.dtype and all(map(SPACE.contains, actions))
        alone, _ = model.predict(observations[0], deterministic=deterministic)
        assert np.shape(alone) == () and SPACE.contains(alone)


@pytest.mark.parametrize("settings", [{}, dict(search="puct")])
def test_no_illegal_action_is_taken(settings):
    env = Masked()
    model = scramble(tiny_model(env, reanalyze_ratio=0.5, **settings, **KWARGS)).learn(100)
    assert model.uses_action_masks and model.replay_buffer.action_masks is not None
    masks = np.stack([env.action_masks() for _ in range(20)])
    observations = np.stack([model.observation_space.sample() for _ in range(20)])
    for deterministic in (True, False):
        actions, _ = model.predict(observations, deterministic=deterministic, action_masks=masks)
        assert masks[np.arange(20), actions + 7].all()
    with pytest.raises(ValueError, match="must leave an action to choose from"):
        model.predict(observations[0], action_masks=np.zeros(2_000))


def test_environments_of_sb3_contrib():
    env = InvalidActionEnvDiscrete(dim=300, n_invalid_actions=280)
    model = tiny_model(env, **KWARGS).learn(80)
    evaluate_policy(model, env, n_eval_episodes=2, warn=False)


@pytest.mark.parametrize("masked", [True, False])
def test_compiled_searches_are_those_of_pytorch(masked, monkeypatch):
    model = tiny_model(Masked(), num_simulations=16, **KWARGS)
    with th.no_grad():
        for parameter in model.policy.latent_model.parameters():
            parameter.add_(0.3 * th.randn(parameter.shape))
    masks = np.random.default_rng(0).random((20, 2_000)) < 0.1 if masked else None
    found, expected = plan_both(model.policy, th.randn(20, 3), monkeypatch, action_masks=masks)
    np.testing.assert_array_equal(found.candidates, expected.candidates)
    np.testing.assert_allclose(found.action_weights, expected.action_weights, atol=1e-4)
    assert masks is None or masks[np.arange(20), found.selected_actions[:, 0]].all()


def test_a_single_legal_action_is_the_only_candidate():
    model = scramble(tiny_model(Masked(), **KWARGS))
    masks = np.zeros((1, 2_000), np.bool_)
    masks[0, 1_234] = True
    found = model.policy.plan(th.zeros(1, 3), action_masks=masks)
    assert (found.candidates == 1_234).all() and found.action_weights.tolist() == [[1, 0, 0, 0, 0, 0]]


def test_resumed_runs_go_on_to_the_bit(tmp_path):
    model = tiny_model(Masked(), reanalyze_ratio=0.5, **KWARGS).learn(90)
    save_checkpoint(model, tmp_path)
    model.learn(60, reset_num_timesteps=False)
    resumed = resume(tmp_path, Masked(), restore_environments=True).learn(60, reset_num_timesteps=False)
    assert differences(snapshot(model), snapshot(resumed)) == []
    for ring in ("actions", "candidates", "policies"):
        np.testing.assert_array_equal(getattr(model.replay_buffer, ring), getattr(resumed.replay_buffer, ring))


def test_models_and_buffers_are_saved_and_loaded(tmp_path):
    model = scramble(tiny_model(Masked(), **KWARGS)).learn(60)
    obs = np.stack([model.observation_space.sample() for _ in range(5)])
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = type(model).load(tmp_path / "model", Masked())
    loaded.load_replay_buffer(tmp_path / "buffer")
    np.testing.assert_array_equal(*(part.predict(obs, deterministic=True)[0] for part in (model, loaded)))
    with pytest.raises(ValueError, match="must have `action_kwargs`"):
        tiny_model(Masked()).load_replay_buffer(tmp_path / "buffer")


def test_diagnostics_report_and_plots(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "DECODER_UPDATES", 5)
    callback = DiagnosticsCallback(log_freq=30)
    model = tiny_model(TinyEnv(action_space=SPACE), **KWARGS).learn(90, callback=callback)
    assert np.isfinite(callback.errors[-1].policy).all()
    model.replay_buffer.reset()
    report.write_report(model, model.get_env(), tmp_path / "report.html", num_episodes=1, max_steps=60)
    search = model.policy.plan(th.zeros(1, 3))
    search = search._replace(node_candidates=search.node_candidates * 0 + 1_234)
    assert any(text.get_text().startswith("1234 ") for text in plot_search_tree(search).axes[0].texts)
    assert plot_policies(search).axes[0].get_xticklabels()[1].get_text().startswith("1234\n")


@pytest.mark.parametrize("make", [ConnectFourEnv, TicTacToeEnv, lambda: from_open_spiel("mancala")])
def test_two_player_games(make):
    kwargs = dict(policy_kwargs=dict(action_kwargs=dict(num_candidates=4)))
    model = tiny_model(make(), reanalyze_ratio=0.5, **kwargs).learn(150)
    assert model.two_player and model.discount < 0 and model._n_updates > 0
    assert model.policy.uncompiled_reason is None
    assert sum(play_match(ModelPlayer(model), RandomPlayer(0), make, 4)[0]) == 2


def test_sequences_with_drawn_candidates_are_turned():
    """What is weighed is the same move of the turned game."""
    env = ConnectFourEnv()
    model = tiny_model(env, policy_kwargs=dict(action_kwargs=dict(num_candidates=4))).learn(60)
    samples = model.sample(8, 2)
    turned = apply_symmetries(samples, env.symmetries, np.array([0, 1] * 4))
    assert th.equal(turned.policies, samples.policies)
    for before, after in ((samples.actions, turned.actions), (samples.candidates, turned.candidates)):
        assert th.equal(after[:, ::2], before[:, ::2]) and th.equal(after[:, 1::2], 6 - before[:, 1::2])
    again = apply_symmetries(turned, env.symmetries, np.array([0, 1] * 4))
    assert th.equal(again.candidates, samples.candidates) and th.equal(again.actions, samples.actions)


def test_games_against_a_model_in_the_terminal():
    env = TicTacToeEnv()
    model = tiny_model(env, policy_kwargs=dict(action_kwargs=dict(num_candidates=4)))
    for move in (0, 1, 2):
        env.step(move)
    found = search(scramble(model).policy, env)
    lines = view(found, env)
    names = {env.name_of(move) for move in range(3, 9)}
    assert {line.split()[0] for line in lines[2:-1]} <= names and lines[-1].removeprefix("expects ") in names


def test_action_grids():
    env = TinyEnv(spaces.Box(0, 255, (3, 8, 8), np.uint8), spaces.Discrete(256))
    kwargs = dict(policy_kwargs=dict(action_grid=(16, 16), **KWARGS["policy_kwargs"]))
    policy = tiny_model(env, "ResNetPolicy", **kwargs).learn(40).policy
    planes = policy.latent_model.action_encoder(th.tensor([[0], [255]]))
    assert planes.shape == (2, 4, 8, 8) and planes.sum() == 2 and planes[0, 0, 0, 0] == planes[1, 3, 7, 7] == 1


def test_chess_is_learned_without_scoring_all_moves():
    """Of 4 672 moves at each node, as many are scored as there are candidates."""
    from pettingzoo.classic import chess_v6

    model = tiny_model(from_pettingzoo(chess_v6.env()), **KWARGS).learn(60)
    assert model.two_player and model._n_updates > 0
    found = model.policy.plan(th.zeros(3, 8, 8, 111, dtype=th.bool))
    assert found.tree.children_visits.shape == (3, 5, 6) and found.candidates.shape == (3, 6, 1)
    first, _ = play_match(ModelPlayer(model), RandomPlayer(0), lambda: from_pettingzoo("chess_v6"), 2)
    assert sum(first) == 1
