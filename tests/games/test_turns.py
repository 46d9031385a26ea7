"""Games in which a player may move twice in a row, against their exact solutions."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import differences, scramble, sequences_of, snapshot, tiny_model
from extra_turns import Boxes, Heap, TellingHeap, points_of, share_of_errors, values_of_heap, values_of_lines
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_muzero import MuZero
from sb3_muzero.analysis.recording import play
from sb3_muzero.analysis.report import values_and_returns, write_report
from sb3_muzero.callbacks import DiagnosticsCallback, SelfPlayEvalCallback
from sb3_muzero.checkpointing import resume, save_checkpoint
from sb3_muzero.common.turns import Turns
from sb3_muzero.games import TicTacToeEnv
from sb3_muzero.games.match import play_games, play_match, random_openings
from sb3_muzero.games.players import ModelPlayer, RandomPlayer
from sb3_muzero.policies import MlpPolicy
from sb3_muzero.replay.replay_buffer import SequenceReplayBuffer
from sb3_muzero.replay.sequences import SearchStatistics
from sb3_muzero.search import RecurrentOutput, RootOutput, UnsupportedModelError, gumbel_muzero_search, muzero_search

HISTORY = list[tuple[int, float, bool]]


def true_return(history: HISTORY, step: int, horizon: int, gamma: float, bootstrap: dict[int, float]) -> float:
    """:return: What follows a step as its player sees it; ``bootstrap`` holds what players to move make of positions"""
    player, total = history[step][0], 0.0
    for i in range(horizon):
        mover, reward, is_over = history[step + i]
        total += gamma**i * reward * (1 if mover == player else -1)
        if is_over:
            return total
    return total + gamma**horizon * bootstrap[step + horizon] * (1 if history[step + horizon][0] == player else -1)


@pytest.mark.parametrize(("gamma", "n_steps"), [(1.0, 7), (0.9, 7), (0.9, 1), (0.8, 3)])
def test_value_targets_are_the_movers_own(gamma: float, n_steps: int) -> None:
    """Against returns that are added up from the game as it was played."""
    game = Boxes()
    model = scramble(tiny_model(game, gamma=gamma, n_steps=n_steps, learning_starts=1_000)).learn(300)
    samples = model.sample(256, 3)
    values = model.learner.targets(samples).values
    following = model.policy.latent_model_target.predict_values(samples.bootstrap_observations).squeeze(-1)
    checked = 0
    for b, first in enumerate(samples.ids[0].tolist()):
        for k in range(min(4, int(samples.lengths[b]))):
            if first + k + n_steps >= 300:  # not known yet
                continue
            bootstrap = {first + k + n_steps: following[k, b].item()}
            expected = true_return(game.history, first + k, n_steps, gamma, bootstrap)
            assert values[k, b].item() == pytest.approx(expected, abs=1e-5)
            checked += 1
    assert checked > 500 and (samples.turn_signs == 1).any()  # type: ignore[operator]
    assert (values[3][samples.terminated & (samples.lengths <= 3)] == 0).all()


def test_targets_of_the_best_moves_are_the_exact_values() -> None:
    """Play that is perfect after a random beginning."""
    game, rng, buffer = Boxes(), np.random.default_rng(0), None
    model = tiny_model(game, gamma=1.0, n_steps=7)
    buffer = model.replay_buffer
    for _ in range(40):
        observations, actions, rewards, signs = [game.reset()[0]], [], [], []
        while not game.lines.all():
            is_random = len(actions) < 3
            options = game.action_masks().astype(float) if is_random else np.array(values_of_lines(tuple(game.lines.tolist())))
            mover = game.to_play
            actions.append(int(rng.choice(np.flatnonzero(options == options.max()))))
            observation, reward, *_ = game.step(actions[-1])
            observations.append(observation)
            rewards.append(reward)
            signs.append(1 if game.to_play == mover else -1)
        search = SearchStatistics(turn_signs=np.array(signs, np.int8))
        buffer.add_episode(np.array(observations), np.array(actions), np.array(rewards), True, search)
    samples = model.sample(256, 3)
    values = model.learner.targets(samples).values
    for b in range(256):
        for k in range(4):
            lines = tuple(samples.observations[k, b].int().tolist())  # type: ignore[call-overload]
            if sum(lines) >= 3:
                expected = 0.0 if all(lines) else max(values_of_lines(lines))
                assert values[k, b].item() == expected


def test_environments_in_other_processes_say_whose_turn_it_is() -> None:
    models = [tiny_model(make_vec_env(Boxes, 2, vec_env_cls=kind)).learn(80) for kind in (DummyVecEnv, SubprocVecEnv)]
    models[1].env.close()  # type: ignore[union-attr]
    assert differences(*(model.replay_buffer.turn_signs for model in models)) == []
    assert differences(*map(snapshot, models)) == []


def test_players_that_move_in_turn_may_say_so() -> None:
    class Telling(TicTacToeEnv):
        @property
        def to_play(self) -> int:
            return self.num_plies % 2

    models = [tiny_model(game(symmetries=False), learning_starts=1_000, gamma=0.9) for game in (TicTacToeEnv, Telling)]
    targets = []
    for model in models:
        set_random_seed(0)
        scramble(model).learn(200)
        assert model.predict_turns == (model.replay_buffer.turn_signs is not None)
        np.random.seed(0)
        targets.append(model.learner.targets(model.sample(64, 4)))
    known = targets[0].value_weights > 0
    assert th.allclose(targets[0].values[known], targets[1].values[known], atol=1e-6)


def test_a_time_limit_leaves_nobody_to_move() -> None:
    """The next mover's value belongs to one player or the other: it counts as 0, and no turn is learned."""
    env = DummyVecEnv([lambda: gym.wrappers.TimeLimit(Boxes(), 4)])
    model = scramble(tiny_model(env, gamma=1.0, n_steps=3, learning_starts=1_000)).learn(100)
    samples = model.sample(64, 3)
    assert samples.turn_signs is not None and not samples.terminated.any()
    values = model.learner.targets(samples).values
    for b in range(64):
        length = int(samples.lengths[b])
        if length <= 3 and samples.ids[0, b] % 1_000 + length < 100:
            assert samples.turn_signs[length - 1, b] == 0
            assert values[length - 1, b] == samples.rewards[length - 1, b]


@pytest.mark.parametrize("exact_leaves", [True, False])
@pytest.mark.parametrize("search", [gumbel_muzero_search, muzero_search])
def test_search_with_the_true_model_finds_exact_values(search: Any, exact_leaves: bool) -> None:
    """A search whose discounts say who moves next; as alternating ones it is wrong."""
    boards = np.array([[(number >> line) & 1 for line in range(7)] for number in range(127)], np.int8)
    if not exact_leaves:  # it then has to look to the end
        boards = boards[boards.sum(1) >= 3]

    def evaluate(lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = [0.0 if all(row) or not exact_leaves else max(values_of_lines(tuple(row))) for row in lines.tolist()]
        return np.where((lines == 0) | lines.all(1, keepdims=True), 0.0, -np.inf), np.array(values)

    def found(alternating: bool) -> Any:
        def step(lines: np.ndarray, actions: np.ndarray) -> RecurrentOutput:
            after = lines.copy()
            after[np.arange(len(lines)), actions] = 1
            points = np.array([points_of(tuple(row)) for row in after.tolist()])
            points -= np.array([points_of(tuple(row)) for row in lines.tolist()])
            discount = np.where(after.all(1), 0.0, np.where((points > 0) & (not alternating), 1.0, -1.0))
            logits, values = evaluate(after)
            return RecurrentOutput(points.astype(float), discount, logits, values, after)

        logits, values = evaluate(boards)
        noise = {"gumbel_scale": 0.0} if search is gumbel_muzero_search else {"dirichlet_fraction": 0.0, "temperature": 0.0}
        kwargs: dict[str, Any] = noise | {"action_masks": boards == 0}
        return search(RootOutput(logits, values, boards), step, 7 if exact_leaves else 800, **kwargs)

    def errors(result: Any) -> np.ndarray:
        exact = np.array([values_of_lines(tuple(row)) for row in boards.tolist()])
        if exact_leaves:  # Q is a mean over what was tried there
            return np.where(result.visit_counts == 1, np.abs(result.qvalues - exact), 0.0).max(1)
        rows = np.arange(len(boards))
        return np.abs(result.qvalues[rows, result.action] - exact.max(1)) + (exact[rows, result.action] < exact.max(1))

    assert errors(found(alternating=False)).max() < (1e-6 if exact_leaves else 0.15)
    assert (errors(found(alternating=True)) > 0.5).mean() > 0.02


def test_a_model_plans_with_the_turns_that_it_predicts() -> None:
    """In compiled code and in PyTorch: Q is the reward and the value of what follows, of the same player or of the other."""
    policy = scramble(tiny_model(Boxes(), gamma=0.9, num_simulations=30)).policy
    assert policy.uncompiled_reason is None
    boards = np.random.default_rng(0).integers(0, 2, (40, 7)).astype(np.int8)
    observations, actions = th.as_tensor(boards), th.arange(40) % 7
    compiled = policy.planner.compiled_model(policy.latent_model)
    latents = policy.represent(observations)
    with th.no_grad():  # both signs occur
        following = policy.latent_model.dynamics(latents, policy.latent_model.action_encoder(actions)).latent
        head: Any = policy.latent_model.turn_head
        head[-1].bias -= head(following).quantile(0.5)  # between two of them
    expected = policy.latent_model.recurrent_inference(latents, actions, -0.9)
    assert expected.discount.unique().tolist() == pytest.approx([-0.9, 0.9])
    for name in ("reward", "discount", "prior_logits", "value"):
        numbers = getattr(compiled(latents.numpy(force=True), actions.numpy()), name)
        assert np.allclose(numbers, getattr(expected, name).numpy(force=True), atol=1e-4), name

    def refuse(model: Any = None) -> Any:
        raise UnsupportedModelError("this is the reference")

    plans = [policy.plan(observations, deterministic=True)]
    policy.planner.compiled_model = refuse  # type: ignore[method-assign]
    plans.append(policy.plan(observations, deterministic=True))
    for plan in plans:
        tree = plan.tree
        assert len(np.unique(tree.children_discounts[tree.children_visits > 0])) == 2
        for root in range(40):
            for node in range(1, 31):
                parent, action = tree.parents[root, node], tree.action_from_parent[root, node]
                edge = root, parent, action
                expected_q = tree.children_rewards[edge] + tree.children_discounts[edge] * tree.node_values[root, node]
                assert tree.children_qvalues[edge] == pytest.approx(expected_q, abs=1e-4)
    assert np.allclose(plans[0].action_weights, plans[1].action_weights, atol=1e-3)


@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy", "ResNetPolicy"])
def test_every_policy_learns_who_moves_next(policy: str) -> None:
    class EvenCells(TicTacToeEnv):
        """Who takes an even cell moves again."""

        to_play = 0

        def step(self, action: Any) -> Any:
            self.to_play ^= int(action) % 2
            return super().step(action)

    budget: dict[str, Any] = {"batch_size": 64, "learning_rate": 3e-3, "train_freq": 1, "learning_starts": 150}
    model = tiny_model(EvenCells(), policy, **budget).learn(300)
    samples = model.sample(128, 3)
    assert samples.turn_signs is not None
    with th.no_grad():
        latents = model.policy.latent_model.unroll(samples.observations[0], samples.actions).latents  # type: ignore[index]
        logits = model.policy.latent_model.turn_head(latents[1:]).squeeze(-1)  # type: ignore[misc]
    signs = samples.turn_signs[:3]
    assert (signs == th.where(samples.actions % 2 == 0, 1, -1))[signs != 0].all()
    right = (logits > 0) == (signs > 0)
    assert all(right[signs == sign].float().mean() > 0.9 for sign in (-1, 1))


def test_runs_are_saved_loaded_and_resumed(tmp_path: Path) -> None:
    model = tiny_model(make_vec_env(Boxes, n_envs=2, seed=0), reanalyze_ratio=0.5).learn(61)
    save_checkpoint(model, tmp_path / "run")
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    model.save_replay_buffer(tmp_path / "buffer")
    stored, parameters = deepcopy(model.replay_buffer.turn_signs), snapshot(model)
    plan = model.policy.plan(th.zeros(1, 7), deterministic=True)
    unbroken = model.learn(60, reset_num_timesteps=False)

    loaded = MuZero.load(tmp_path / "model", device="cpu")
    assert loaded.predict_turns and differences(parameters, snapshot(loaded)) == []
    for policy in (loaded.policy, MlpPolicy.load(tmp_path / "policy", device="cpu")):
        assert differences(plan._asdict(), policy.plan(th.zeros(1, 7), deterministic=True)._asdict()) == []
    loaded.load_replay_buffer(tmp_path / "buffer")
    signs, size = loaded.replay_buffer.turn_signs, loaded.replay_buffer.size()
    assert stored is not None and signs is not None and np.array_equal(stored[:size], signs[:size])

    resumed = resume(tmp_path / "run", make_vec_env(Boxes, n_envs=2, seed=0), restore_environments=True)
    resumed.learn(60, reset_num_timesteps=False)
    assert differences(snapshot(unbroken), snapshot(resumed)) == []
    assert differences(unbroken.replay_buffer.turn_signs, resumed.replay_buffer.turn_signs) == []


def test_steps_without_a_turn_are_those_of_players_in_turn() -> None:
    """Also in a file that was written before there were any."""
    buffer = SequenceReplayBuffer(50, Boxes().observation_space, Boxes().action_space)
    episode = np.zeros((4, 7), np.int8), np.zeros(3, np.int64), np.zeros(3)
    buffer.add_episode(*episode, True)
    assert sequences_of(buffer, np.zeros(1, int), np.zeros(1, int), 2, 2).turn_signs is None
    state = buffer.state()
    assert "turn_signs" not in state["rings"]
    buffer.load_state(state)
    buffer.add_episode(*episode, True, SearchStatistics(turn_signs=np.array([1, -1, 0], np.int8)))
    signs = sequences_of(buffer, np.array([0, 3, 4]), np.zeros(3, int), 2, 2).turn_signs
    assert signs is not None and signs.T.tolist() == [[-1, -1, -1, 0], [1, -1, 0, 0], [-1, 0, 0, 0]]
    state = buffer.state()
    state["rings"]["turn_signs"] = np.full_like(state["rings"]["turn_signs"], 100)
    with pytest.raises(ValueError, match="turn_signs"):
        buffer.load_state(state)


def test_symmetries_and_single_steps_keep_the_turns() -> None:
    class Symmetric(TicTacToeEnv):
        to_play = 0  # who moves alone

    model = tiny_model(Symmetric(), reanalyze_ratio=1.0, n_steps=1, gamma=0.9).learn(100)
    assert model.symmetries is not None and model._n_updates > 0
    assert set(model.replay_buffer.turn_signs[:100].ravel().tolist()) == {0, 1}  # type: ignore[index]


def test_values_are_compared_with_the_movers_returns(tmp_path: Path) -> None:
    """In the report, and while training."""
    game = Boxes()
    model = tiny_model(game, gamma=0.9)
    played = play(model, model.get_env(), 10, 1_000, deterministic=False)
    _, returns = values_and_returns(model, played.episodes)
    expected = [true_return(game.history, step, 7, 0.9, {}) for step in range(len(returns))]
    assert np.allclose(returns, expected) and len(returns) == 70

    game = Boxes()
    watched = DiagnosticsCallback(log_freq=50)
    model = tiny_model(game, gamma=0.9, learning_starts=0).learn(140, callback=watched)
    found = np.concatenate([returns for _, returns in watched.episodes])
    expected = [true_return(game.history, step, 7, 0.9, {}) for step in range(140)]
    assert np.allclose(found, expected[-len(found) :]) and len(found) > 70

    model.replay_buffer.reset()
    write_report(model, model.get_env(), tmp_path / "page.html", num_episodes=8)  # type: ignore[arg-type]
    assert "grad_norm_turn" in (tmp_path / "page.html").read_text()


class Watcher:
    """Draws the first line, or perfectly, and looks whose turn it is."""

    def __init__(self, perfect: bool) -> None:
        self.perfect, self.seen = perfect, set()  # type: ignore[var-annotated]

    def act(self, envs: list[Any]) -> np.ndarray:
        games = [env.unwrapped for env in envs]
        self.seen |= {game.to_play for game in games}
        return np.array([self.move(game) for game in games])

    def move(self, game: Any) -> int:
        return int(np.argmax(values_of_lines(tuple(game.lines.tolist()))) if self.perfect else game.lines.argmin())


def test_matches_follow_the_turns() -> None:
    perfect, first_line = Watcher(True), Watcher(False)
    openings, games = random_openings(Boxes, 20, 2, seed=0), [Boxes() for _ in range(20)]
    results = play_games((perfect, first_line), games, openings)
    assert (perfect.seen, first_line.seen) == ({0}, {1})
    points = [sum(reward * (1 - 2 * player) for player, reward, _ in game.history) for game in games]
    assert np.array_equal(results, np.sign(points)) and len(set(results)) > 1

    class Second(Boxes):
        """The player who is called 1 begins, and only they get points."""

        def reset(self, **kwargs: Any) -> Any:
            result = super().reset(**kwargs)
            self.to_play = 1
            return result

        def step(self, action: Any) -> Any:
            mover = self.to_play
            result = super().step(action)
            return result[0], float(mover), *result[2:]

    first, second = play_match(RandomPlayer(0), RandomPlayer(1), Second, num_games=10, opening_plies=1, seed=0)
    assert (first.wins, second.losses) == (5, 5), "who begins has the first seat"
    model = tiny_model(Boxes())
    callback = SelfPlayEvalCallback(Boxes, {"random": RandomPlayer(0)}, 4, 50, verbose=0)
    model.learn(100, callback=callback)
    assert len(callback.results) == 2 and sum(play_match(ModelPlayer(model), RandomPlayer(0), Boxes, 4)[0]) == 2


def test_turns_that_nobody_tells_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"without `to_play` must move in turn, but its `player` was the same"):
        tiny_model(make_vec_env(Heap, n_envs=2), learning_starts=100).learn(100)
    env = make_vec_env(Heap, n_envs=2, vec_env_cls=SubprocVecEnv)
    with pytest.raises(ValueError, match="add an attribute `to_play`, 0 or 1"):
        tiny_model(env, learning_starts=100).learn(100)
    env.close()


@pytest.mark.parametrize("name", ["player", "turn"])
def test_other_attributes_are_no_turns(name: str) -> None:
    """Who is asked, rounds that are counted, and players who do move in turn."""
    for value in (lambda game: "me", lambda game: game.num_plies // 2, lambda game: [game.num_plies % 2]):
        game = type("Game", (TicTacToeEnv,), {name: property(value)})
        model = tiny_model(game()).learn(60)
        assert model.collector.turns.name == name and not model.predict_turns
        model.collector.turns.MAX_STEPS = 60  # type: ignore[misc]
        model.learn(60, reset_num_timesteps=False)
        assert model.collector.turns.name is None  # read no longer


class Late(Boxes):
    """It does not say before its first reset whose turn it is."""

    def __init__(self) -> None:
        super().__init__()
        del self.to_play


def test_what_does_not_fit_the_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="had not when the model was created: set it in `__init__`"):
        tiny_model(Late()).learn(60)
    model = tiny_model(TellingHeap()).learn(60)
    model.set_env(Heap())
    with pytest.raises(ValueError, match="by `to_play` whose turn it is, which these do not"):
        model.learn(60)
    model = tiny_model(Heap(), learning_starts=100).learn(10)
    model.set_env(TellingHeap())
    with pytest.raises(ValueError, match="or create the model anew"):
        model.learn(60)
    for games in ((TellingHeap, Heap), (Heap, TellingHeap)):
        save_checkpoint(tiny_model(games[0](), learning_starts=100).learn(10), tmp_path / games[0].__name__)
        with pytest.raises(ValueError, match=r"`env` must (not )?have `to_play`, as in the checkpoint"):
            resume(tmp_path / games[0].__name__, games[1]())


@pytest.mark.parametrize("answer", [2, -1, "first", True, 0.0, lambda: 0])
def test_whose_turn_it_is_must_be_0_or_1(answer: Any) -> None:
    model = tiny_model(type("Game", (Heap,), {"to_play": property(lambda self: answer)})())
    with pytest.raises(ValueError, match=r"`to_play` must be 0 or 1, an attribute or a property but no method, got .* 0"):
        model.learn(60)


def test_single_players_have_no_turns() -> None:
    class Single(Boxes):
        two_player = False

    with pytest.warns(UserWarning, match="has `to_play`, but not `two_player = True`"):
        model = tiny_model(Single()).learn(60)
    assert model.collector.turns.name is None and not model.predict_turns and model.replay_buffer.turn_signs is None


def heap_errors(game: type[Heap], seed: int, steps: int = 10_000) -> float:
    """:return: ``share_of_errors`` of a model after some plies of self-play"""
    model = MuZero(
        "MlpPolicy",
        make_vec_env(game, n_envs=4),
        gamma=1.0,
        n_steps=20,
        train_freq=1,
        ent_coef=0.0,
        consistency_coef=0.0,
        seed=seed,
        device="cpu",
    ).learn(steps)
    heaps = np.arange(1, 21)
    moves, _ = model.predict(heaps, deterministic=True, action_masks=np.arange(1, 4) <= heaps[:, None])
    return share_of_errors(moves)


@pytest.mark.slow
def test_self_play_is_perfect_with_turns_and_wrong_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them it learns the solution of players who move in turn, which errs in 13 of 14 heaps."""
    wrong = np.array([np.argmax(values_of_heap(left, alternating=True)) for left in range(1, 21)])
    assert share_of_errors(wrong) == 13 / 14
    assert max(heap_errors(TellingHeap, seed) for seed in range(3)) <= 1 / 14
    monkeypatch.setattr("sb3_muzero.common.turns.SIMILAR_NAMES", ())
    assert min(heap_errors(Heap, seed) for seed in range(3)) > 0.5


def test_turns_are_read_once_for_a_decision_and_once_for_a_step() -> None:
    env = make_vec_env(Boxes, n_envs=3)
    env.reset()
    turns = Turns(env, are_predicted=True)
    before = turns.to_play()
    assert before is not None and before.tolist() == [0, 0, 0]
    env.step(np.array([0, 1, 2]))
    signs = turns.signs(before, np.array([False, False, True]))
    assert signs is not None and signs.tolist() == [-1, -1, 0] and signs.dtype == np.int8
