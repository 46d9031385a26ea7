"""Two players in the search, the targets and the training; planning with the rules; evaluation of self-play."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from conftest import TinyEnv, differences, scramble, sequences_of, snapshot, tiny_model
from gymnasium import spaces
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy as sb3_evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_muzero import MuZero
from sb3_muzero.callbacks import DiagnosticsCallback
from sb3_muzero.common.progress_bar import MuZeroProgressBar
from sb3_muzero.games import BoardGameEnv, ConnectFourEnv, HexEnv, TicTacToeEnv
from sb3_muzero.games.connect_four_solver import ConnectFourSolver
from sb3_muzero.games.exact import count_leaves, legal_moves, share_of_errors, solve
from sb3_muzero.games.match import Score
from sb3_muzero.games.players import MinimaxPlayer, ModelPlayer, PerfectPlayer, RandomPlayer, observe_boards
from sb3_muzero.games.rules import GOES_ON, WON, Rules, play
from sb3_muzero.games.self_play import SelfPlayEvalCallback
from sb3_muzero.games.simulator import SimulatorPolicy, positions_of, simulator, with_rules
from sb3_muzero.learning.symmetries import Symmetries, apply_symmetries
from sb3_muzero.replay.sequences import SearchStatistics, SequenceSamples
from sb3_muzero.search import RootOutput, SearchOutput, gumbel_muzero_search, muzero_search
from sb3_muzero.zoo import CONF_FILE


def plan(rules: Rules, boards: list[np.ndarray], num_simulations: int, search: Any) -> SearchOutput:
    """:return: what a search with the rules finds that knows nothing else: every position is worth 0, every move as likely"""
    observations, legal = observe_boards(rules, np.stack(boards))

    def know_nothing(observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((len(observations), rules.num_actions), np.float32), np.zeros(len(observations), np.float32)

    root = RootOutput(*know_nothing(observations), positions_of(observations))
    noise = {"dirichlet_fraction": 0.0, "temperature": 0.0} if search is muzero_search else {"gumbel_scale": 0.0}
    return search(root, simulator(rules, know_nothing), num_simulations, action_masks=legal, **noise)


def plies_to_win(rules: Rules, board: np.ndarray, most: int) -> int:
    """:return: plies after which the mover has won whatever the opponent does, ``most + 1`` if that takes more"""
    for plies in range(1, most + 1, 2):
        if wins_within(rules, board, plies):
            return plies
    return most + 1


def wins_within(rules: Rules, board: np.ndarray, plies: int) -> bool:
    for move in legal_moves(rules, board):
        after = board.copy()
        outcome = play(rules, after, move)
        if outcome == WON:
            return True
        if outcome == GOES_ON and plies > 2:
            replies = [(reply, after.copy()) for reply in legal_moves(rules, after)]
            outcomes = [(play(rules, following, reply), following) for reply, following in replies]
            if all(result == GOES_ON and wins_within(rules, following, plies - 2) for result, following in outcomes):
                return True
    return False


@pytest.mark.parametrize("plies, search, num_simulations", [
    (1, muzero_search, 400), (3, muzero_search, 1500), (5, muzero_search, 30_000),
    (1, gumbel_muzero_search, 400), (3, gumbel_muzero_search, 1500), (5, gumbel_muzero_search, 4000),
])  # fmt: skip
def test_forced_wins_are_found_and_worth_1_to_the_mover_and_minus_1_to_the_other(
    plies: int, search: Any, num_simulations: int
) -> None:
    rng, game, boards = np.random.default_rng(plies), ConnectFourEnv(4, 5), []
    while len(boards) < 6:
        game.reset()
        for _ in range(rng.integers(6, 11)):
            if not game.is_over:
                game.step(int(rng.choice(np.flatnonzero(game.action_masks()))))
        if not game.is_over and plies_to_win(game.rules, game.board, plies) == plies:
            boards.append(game.board)
    found = plan(game.rules, boards, num_simulations, search)
    lost = []
    for board, move, qvalues in zip(boards, found.action, found.qvalues, strict=True):
        assert qvalues[move] > 0.9 and ConnectFourSolver(game.rules).values(board)[move] == 1.0
        after = board.copy()
        if play(game.rules, after, int(move)) == GOES_ON:
            lost.append(after)
    assert len(lost) == (0 if plies == 1 else 6)
    if lost:
        assert (plan(game.rules, lost, num_simulations, search).value < -0.9).all()


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_value_targets_are_the_movers_own(gamma: float) -> None:
    """Against returns that are added up from the game as it was played."""
    model = MuZero(
        "MlpPolicy", TicTacToeEnv(symmetries=False), gamma=gamma, n_steps=9, learning_starts=1000, seed=0, device="cpu"
    )
    model.learn(300)
    samples = model.sample(64, 4)
    values = model.learner.targets(samples).values
    for b in range(64):
        length, last = int(samples.lengths[b]), samples.rewards[: int(samples.lengths[b]), b]
        if not samples.terminated[b]:
            continue
        winner = (length - 1) % 2 if last[-1] == 1 else None  # the parity of the position that wins, if any does
        for k in range(5):
            left = length - 1 - k
            expected = 0.0 if winner is None or left < 0 else (1 if k % 2 == winner else -1) * gamma**left
            assert values[k, b].item() == pytest.approx(expected, abs=1e-6)


def test_bootstrap_values_change_sign_with_the_mover() -> None:
    model = scramble(tiny_model(TicTacToeEnv(symmetries=False), gamma=0.5, n_steps=1)).learn(60)
    samples = model.sample(32, 2)
    values = model.learner.targets(samples).values
    following = model.policy.latent_model_target.predict_values(samples.bootstrap_observations).squeeze(-1)
    inside = th.arange(3)[:, None] + 1 < samples.lengths
    assert inside.any()
    expected = samples.rewards[:3] - 0.5 * following
    assert th.allclose(values[inside], expected[inside], atol=1e-6)


def test_planning_counts_what_is_good_for_the_opponent_as_bad() -> None:
    """The model's own tree, in compiled code and in PyTorch: Q of a move is its reward less the value of what it leads to."""
    model = scramble(tiny_model(TicTacToeEnv(), gamma=0.9, num_simulations=30))
    observations = th.as_tensor(np.stack([TicTacToeEnv().observation()]))
    assert model.policy.uncompiled_reason is None
    tree = model.policy.plan(observations, deterministic=True).tree
    for node in range(1, 31):
        parent, action = tree.parents[0, node], tree.action_from_parent[0, node]
        reward, value = tree.children_rewards[0, parent, action], tree.node_values[0, node]
        assert tree.children_qvalues[0, parent, action] == pytest.approx(reward - 0.9 * value, abs=1e-4)
    latent = model.policy.represent(observations)
    assert model.policy.latent_model.recurrent_inference(
        latent, th.tensor([0]), model.discount
    ).discount.item() == pytest.approx(-0.9)


def test_supports_of_a_game_are_symmetric() -> None:
    model = tiny_model(TicTacToeEnv(), gamma=1.0).learn(400)
    low, high = model.policy.latent_model.value_support.bounds.tolist()
    assert low <= -1 and high >= 1
    model = tiny_model(TicTacToeEnv(), gamma=0.5).learn(400)  # no value is beyond the sum of all rewards
    assert np.abs(model.policy.latent_model.value_support.bounds.numpy()).max() <= 2.0


def test_two_player_is_kept_and_checked(tmp_path: Any) -> None:
    model = tiny_model(TicTacToeEnv())
    assert model.two_player and model.discount == model.policy.planner.settings.discount == -0.99
    model.save(tmp_path / "model")
    loaded = MuZero.load(tmp_path / "model", device="cpu")
    assert loaded.two_player and loaded.policy.planner.settings.discount == -0.99
    assert not tiny_model().two_player and tiny_model().discount == 0.99

    model.set_env(gym.wrappers.TransformReward(Single(), float))
    for changed in (model, MuZero.load(tmp_path / "model", env=Single(), device="cpu")):
        with pytest.raises(ValueError, match="was created with `two_player=True`, but the environment has `two_player=False`"):
            changed.learn(10)
    with pytest.raises(ValueError, match="`use_masking` must not be False"):
        tiny_model(TicTacToeEnv()).learn(10, use_masking=False)
    with pytest.raises(ValueError, match=r"same in all environments, got \[True, False\]"):
        tiny_model(DummyVecEnv([TicTacToeEnv, Single]))
    with pytest.raises(ValueError, match="`norm_obs=False`"):
        tiny_model(VecNormalize(make_vec_env(lambda: TicTacToeEnv(symmetries=False)))).learn(10)
    with pytest.raises(ValueError, match="`novelty_coef` must be 0"):
        tiny_model(TicTacToeEnv(), novelty_coef=0.1).learn(10)
    with pytest.raises(ValueError, match="`novelty_coef` must be 0"):
        tiny_model(TicTacToeEnv(), novelty_coef=lambda progress: 1 - progress).learn(10)
    with pytest.raises(ValueError, match="require action masks"):
        tiny_model(WithoutMasks()).learn(10)
    with pytest.raises(ValueError, match="`two_player` must be True or False"):
        tiny_model(Undecided())


class Single(TicTacToeEnv):
    """The same spaces, but for one player."""

    two_player = False


class Undecided(TicTacToeEnv):
    two_player = "yes"  # type: ignore[assignment]


class WithoutMasks(TinyEnv):
    two_player = True


class Turnable(TinyEnv):
    symmetries: Any = None


def test_symmetries_that_are_none_are_errors() -> None:
    observations = np.array([[0, 1, 2], [2, 1, 0]])
    for symmetries, message in (
        (Symmetries(observations, np.array([[0, 1, 2], [0, 1, 1]])), "permutations of 3 actions"),
        (Symmetries(np.zeros((2, 4), int), observations), "permutations of 3 observations"),
        (Symmetries(observations[:1], observations), "1 and 2 permutations"),
        (Symmetries(observations[1:], observations[1:]), "the identity among them"),
        ("mirrored", "permutations"),
    ):
        env = Turnable()
        env.symmetries = symmetries
        with pytest.raises(ValueError, match=message):
            tiny_model(env).learn(10)
    env = Turnable(spaces.Box(0, 255, (6, 6, 3), np.uint8))  # which SB3 shows transposed
    env.symmetries = Symmetries(np.arange(108)[None].repeat(2, 0), observations)
    with pytest.raises(ValueError, match="transposed"):
        tiny_model(env).learn(10)


def test_turned_sequences_are_those_of_the_turned_game() -> None:
    """Two games, one played with the images of the other's moves, are the same sequences after turning."""
    env = make_vec_env(ConnectFourEnv, n_envs=2)
    model = tiny_model(env, buffer_size=100)
    mirror = env.get_attr("symmetries")[0]
    rng, buffer = np.random.default_rng(0), model.replay_buffer
    obs = env.reset()
    for _ in range(30):
        masks = np.stack(env.env_method("action_masks"))
        move = rng.choice(np.flatnonzero(masks[0]))
        moves = np.array([move, 6 - move])
        policy = rng.dirichlet(np.ones(7))
        new_obs, rewards, dones, infos = env.step(moves)
        search = SearchStatistics(0, np.stack([policy, policy[::-1]]), action_masks=masks)
        buffer.add(obs, new_obs, moves, rewards, dones, infos, search)
        obs = new_obs

    def sequences(in_env: int) -> SequenceSamples:
        np.random.seed(0)
        return sequences_of(buffer, np.arange(20), np.full(20, in_env), 3, 4)

    first = apply_symmetries(sequences(0), mirror, np.ones(20, int))
    inside = th.arange(3)[:, None] < first.lengths
    for name in ("observations", "bootstrap_observations", "rewards", "policies", "action_masks", "lengths", "terminated"):
        assert th.equal(getattr(first, name), getattr(sequences(1), name)), name
    assert th.equal(first.actions[inside], sequences(1).actions[inside])
    again = apply_symmetries(first, mirror, np.ones(20, int))
    assert all(th.equal(getattr(again, name), getattr(sequences(0), name)) for name in ("observations", "policies", "actions"))


def test_training_sees_all_symmetries() -> None:
    assert tiny_model(ConnectFourEnv(symmetries=False)).learn(40).symmetries is None
    model = tiny_model(ConnectFourEnv(), batch_size=64).learn(40)
    seen: list[th.Tensor] = []
    inner = model.learner.targets
    model.learner.targets = lambda samples: seen.append(samples.observations[0]) or inner(samples)  # type: ignore
    model.replay_buffer.reset()
    obs = model.env.reset()
    new_obs, rewards, dones, infos = model.env.step(np.array([0]))
    model.replay_buffer.add(obs, new_obs, np.array([0]), rewards, dones, infos)
    obs, (new_obs, rewards, dones, infos) = new_obs, model.env.step(np.array([0]))
    model.replay_buffer.add(obs, new_obs, np.array([0]), rewards, dones, infos)
    model.train(4, 64)
    stones = th.cat(seen).amax(1)[:, 5]
    assert stones[:, 0].any() and stones[:, 6].any()


def test_reanalysis_writes_policies_of_the_board_as_it_was_played() -> None:
    """What is in the ring is what a search of the stored observations finds, also where the loss has seen them turned."""
    model = tiny_model(ConnectFourEnv(), batch_size=64, reanalyze_ratio=1.0, learning_starts=60, learning_rate=0.0).learn(60)
    scramble(model)
    model.train(20, 64)
    samples = sequences_of(model.replay_buffer, np.arange(59), np.zeros(59, int), 1, 1)
    found = model.policy.plan(
        samples.observations[0],  # type: ignore[index]
        deterministic=True,
        model=model.policy.latent_model_target,
        action_masks=samples.action_masks[0].numpy(),  # type: ignore[index]
    )
    searched = samples.policies[0].numpy().sum(1) > 0
    lopsided = np.abs(found.action_weights - found.action_weights[:, ::-1]).max(1) > 0.05
    assert (searched & lopsided).sum() > 10
    assert np.allclose(samples.policies[0].numpy()[searched], found.action_weights[searched], atol=0.02)


def test_reanalyzed_values_are_the_movers_own() -> None:
    """Where the horizon is one step, the value of the best move that was found, not of what it leads to."""
    model = scramble(tiny_model(TicTacToeEnv(symmetries=False), n_steps=1, reanalyze_ratio=1.0, learning_starts=60)).learn(60)
    samples = model.sample(32, 2)
    reanalyzed, _ = model.reanalyzer(samples, 1.0, model._n_updates)
    values = reanalyzed.reanalyzed_values
    assert values is not None and reanalyzed.has_reanalyzed_value is not None and reanalyzed.has_reanalyzed_value.all()
    target, masks = model.policy.latent_model_target, samples.action_masks
    assert masks is not None
    for k, observations in enumerate(samples.observations):
        is_step = samples.lengths > k
        found = model.policy.plan(observations, deterministic=True, model=target, action_masks=masks[k].numpy())  # type: ignore
        assert np.allclose(values[k][is_step].numpy(), found.improved_value[is_step.numpy()], atol=1e-4)
        assert is_step.any() and not values[k][~is_step].any()


def test_diagnostics_follow_the_sign() -> None:
    """Returns that are realised in games that somebody wins: 1 for the winner's plies and -1 for the other's."""
    callback = DiagnosticsCallback(log_freq=1000)
    tiny_model(TicTacToeEnv(), gamma=1.0, learning_starts=10).learn(200, callback=callback)
    decided = [returns for _, returns in callback.episodes if returns[-1] != 0]
    assert len(decided) > 5
    for returns in decided:
        assert returns[::-1].tolist() == [(-1.0) ** ply for ply in range(len(returns))]


def test_a_time_limit_bootstraps_with_the_movers_sign() -> None:
    env = gym.wrappers.TimeLimit(TicTacToeEnv(symmetries=False), 3)
    model = scramble(tiny_model(env, gamma=1.0, n_steps=9, learning_starts=90)).learn(60)
    samples = model.sample(64, 2)
    values = model.learner.targets(samples).values
    ends = samples.bootstrap_observations[0]  # type: ignore[index]
    end_values = model.policy.latent_model_target.predict_values(ends).squeeze(-1)
    signs = (-1.0) ** samples.lengths
    assert not samples.terminated.any() and len(samples.lengths.unique()) == 3
    assert th.allclose(values[0], signs * end_values, atol=1e-5)


def test_moves_after_the_opening_are_the_likeliest() -> None:
    played: list[tuple[int, bool]] = []

    class Spy(MuZero):
        def _sample_action(self, *args: Any, **kwargs: Any) -> tuple[np.ndarray, Any]:
            steps = int(self.collector.episode_steps[0])
            actions, decision = super()._sample_action(*args, **kwargs)
            if decision.search is not None:
                played.append((steps, bool(decision.actions[0] == decision.search.action_weights[0].argmax())))
            return actions, decision

    Spy(
        "MlpPolicy",
        TicTacToeEnv(),
        exploration_steps_per_episode=2,
        num_simulations=4,
        learning_starts=20,
        batch_size=8,
        seed=0,
    ).learn(400)
    assert all(likeliest for steps, likeliest in played if steps >= 2)
    assert not all(likeliest for steps, likeliest in played if steps < 2)
    assert max(steps for steps, _ in played) <= 8
    with pytest.raises(ValueError, match="`exploration_steps_per_episode`"):
        tiny_model(exploration_steps_per_episode=-1)


def test_subprocesses_say_that_they_are_two_player() -> None:
    env = make_vec_env(TicTacToeEnv, n_envs=2, vec_env_cls=SubprocVecEnv)
    model = tiny_model(env).learn(60)
    assert model.two_player and model.symmetries is not None
    env.close()


@pytest.mark.parametrize("make", [TicTacToeEnv, lambda: HexEnv(3)], ids=["TicTacToe", "Hex"])
def test_simulator_is_the_game(make: type[BoardGameEnv]) -> None:
    """Random moves, some of them after the end, beside the environment."""
    rng, game = np.random.default_rng(0), make()
    step = simulator(game.rules, lambda obs: (np.zeros((len(obs), game.rules.num_actions)), obs.mean((1, 2, 3))), -0.9)
    for _ in range(20):
        game.reset()
        position = positions_of(game.observation()[None])
        while not game.is_over:
            move = rng.choice(np.flatnonzero(game.action_masks()))
            observation, reward, over, *_ = game.step(int(move))
            answer = step(position, np.array([move]))
            position = answer.latent
            assert answer.reward[0] == reward and answer.discount[0] == (0.0 if over else -0.9)
            if not over:
                assert np.array_equal(positions_of(observation[None]), position)
                assert np.array_equal(np.isfinite(answer.prior_logits[0]), game.action_masks())
                assert answer.value[0] == observation.mean()
        answer = step(position, np.array([0]))
        assert (answer.reward[0], answer.discount[0], answer.value[0]) == (0.0, 0.0, 0.0)


def test_a_policy_that_plans_with_the_rules_is_trained_saved_and_loaded(tmp_path: Any) -> None:
    rules = TicTacToeEnv().rules
    model = tiny_model(
        TicTacToeEnv(), SimulatorPolicy, policy_kwargs={"rules": rules}, reanalyze_ratio=0.5, unroll_steps=1
    ).learn(60)
    model.save(tmp_path / "model")
    loaded = MuZero.load(tmp_path / "model", device="cpu")
    assert differences(snapshot(model), snapshot(loaded)) == []
    # It sees a win that no network has told it of
    game = TicTacToeEnv()
    game.reset(options={"moves": [0, 3, 1, 4]})
    loaded = MuZero.load(tmp_path / "model", device="cpu", num_simulations=60)
    assert loaded.predict(game.observation(), action_masks=game.action_masks(), deterministic=True)[0] == 2


def test_rules_of_another_board_are_refused() -> None:
    model = tiny_model(TicTacToeEnv())
    with pytest.raises(ValueError, match=r"`policy` must be a model's policy, as `model\.policy`, got a MuZero"):
        with_rules(model, TicTacToeEnv().rules)
    with pytest.raises(ValueError, match=r"`rules` must be those of a game, as `env\.unwrapped\.rules`, got <"):
        with_rules(model.policy, TicTacToeEnv())
    with pytest.raises(ValueError, match=r"`rules` must be those of the game"):
        tiny_model(TicTacToeEnv(), SimulatorPolicy, policy_kwargs={"rules": ConnectFourEnv().rules})
    with pytest.raises(ValueError, match=r"`rules` must be those of the game"):
        with_rules(tiny_model(ConnectFourEnv(10, 10)).policy, HexEnv(2).rules)


@pytest.mark.parametrize("kind", ["MlpPolicy", "CnnPolicy", "ResNetPolicy"])
def test_a_trained_policy_plans_with_the_rules(kind: str) -> None:
    model = scramble(tiny_model(TicTacToeEnv(), kind, num_simulations=60))
    policy = with_rules(model.policy, TicTacToeEnv().rules)
    game = TicTacToeEnv()
    game.reset(options={"moves": [0, 3, 1, 4]})
    observation = th.as_tensor(game.observation()[None])
    found = policy.plan(observation, deterministic=True, action_masks=game.action_masks()[None])
    learned = model.policy.plan(observation, deterministic=True, action_masks=game.action_masks()[None])
    again = with_rules(policy, TicTacToeEnv().rules)
    assert again.plan(observation, deterministic=True, action_masks=game.action_masks()[None]).qvalues[0, 2] == 1.0
    assert found.qvalues[0, 2] == 1.0 != learned.qvalues[0, 2]
    root, with_model = found.tree, learned.tree
    assert np.allclose(root.raw_values[0, 0], with_model.raw_values[0, 0])  # the same networks at the root
    assert np.allclose(root.children_prior_logits[0, 0], with_model.children_prior_logits[0, 0], atol=1e-4)


def test_evaluation_of_self_play_changes_nothing_and_says_who_won(tmp_path: Any) -> None:
    opponents = {"random": RandomPlayer(0), "minimax_1": MinimaxPlayer(1, 0)}
    callback = SelfPlayEvalCallback(TicTacToeEnv, opponents, 10, 50, best_model_save_path=tmp_path, verbose=0)
    watched = tiny_model(TicTacToeEnv())
    logged: list[dict[str, Any]] = []
    watched.set_logger(Recorder(logged))
    watched.learn(200, callback=callback)
    assert differences(snapshot(watched), snapshot(tiny_model(TicTacToeEnv()).learn(200))) == []

    assert [(r.num_timesteps, r.opponent) for r in callback.results] == [
        (steps, name) for steps in (50, 100, 150, 200) for name in opponents
    ]
    assert all(sum(result.first) == sum(result.second) == 5 for result in callback.results)
    evaluations = [row for row in logged if "eval/random" in row]
    assert [row["eval/random"] for row in evaluations] == [
        (r.first + r.second).points for r in callback.results if r.opponent == "random"
    ]
    assert evaluations[0]["eval/elo"] == 0.0 and len(callback.checkpoints) == 3
    best = MuZero.load(tmp_path / "best_model", device="cpu")
    assert best.num_timesteps in {result.num_timesteps for result in callback.results}


def test_evaluation_says_who_plays_better_by_seat_and_keeps_the_best(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter(
        [
            *[(Score(4, 0, 1), Score(3, 0, 2))],  # against the opponent, and no checkpoint yet
            *[(Score(1, 0, 4), Score(0, 0, 5)), (Score(5, 0, 0), Score(4, 0, 1))],  # then against the one before, too
            *[(Score(2, 0, 3), Score(1, 0, 4)), (Score(0, 0, 5), Score(1, 0, 4)), (Score(1, 0, 4), Score(2, 0, 3))],
        ]
    )
    monkeypatch.setattr("sb3_muzero.games.self_play.play_match", lambda *_: next(scores))
    callback = SelfPlayEvalCallback(
        TicTacToeEnv, {"random": RandomPlayer(0)}, 10, 50, best_model_save_path=tmp_path, verbose=0
    )
    model = tiny_model(TicTacToeEnv())
    logged: list[dict[str, Any]] = []
    model.set_logger(Recorder(logged))
    model.learn(150, callback=callback)
    evaluations = [row for row in logged if "eval/random" in row]
    assert [row["eval/random_first"] for row in evaluations] == [0.8, 0.2, 0.4]
    assert [row["eval/random_second"] for row in evaluations] == [0.6, 0.0, 0.2]
    first, second, third = (row["eval/elo"] for row in evaluations)
    assert first == 0.0 < second and third < second
    assert MuZero.load(tmp_path / "best_model", device="cpu").num_timesteps == 50


class AgainstRandom(gym.Wrapper):
    """The game for one player: a random player answers each move."""

    two_player = False

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.opponent = RandomPlayer(0)

    def step(self, action: Any) -> Any:
        *result, reward, terminated, truncated, info = self.env.step(action)
        if not terminated:
            *result, lost, terminated, truncated, info = self.env.step(int(self.opponent.act([self.env])[0]))
            reward = float(reward) - float(lost)
        return *result, reward, terminated, truncated, info


def evaluation(env: gym.Env, **kwargs: Any) -> EvalCallback:
    return MaskableEvalCallback(env, n_eval_episodes=2, eval_freq=20, verbose=0, warn=False, **kwargs)


@pytest.mark.parametrize("wrap", [
    lambda callback: callback,
    lambda callback: [RecordNothing(), callback],
    lambda callback: CallbackList([RecordNothing(), CallbackList([callback])]),
    lambda callback: EveryNTimesteps(20, callback),
    lambda callback: evaluation(AgainstRandom(TicTacToeEnv()), callback_after_eval=CallbackList([callback])),
], ids=["alone", "in a list", "in a list of lists", "every n steps", "after another"])  # fmt: skip
def test_evaluation_callbacks_that_add_up_both_players_rewards_warn_once(wrap: Any, recwarn: Any) -> None:
    callback = evaluation(TicTacToeEnv())
    model = tiny_model(TicTacToeEnv())
    for _ in range(2):
        model.learn(60, callback=wrap(callback), progress_bar=True)
    told = [str(warning.message) for warning in recwarn if "two-player" in str(warning.message)]
    assert len(told) == 1 and told[0].startswith("MaskableEvalCallback does not fit two-player games")
    assert "`sb3_muzero.callbacks.SelfPlayEvalCallback`" in told[0] and "`sb3_muzero.games.match.play_match`" in told[0]


@pytest.mark.filterwarnings("error:.*does not fit")
def test_evaluations_that_tell_who_wins_do_not_warn() -> None:
    model = tiny_model(TicTacToeEnv())
    matches = SelfPlayEvalCallback(TicTacToeEnv, {"random": RandomPlayer(0)}, 2, 20, verbose=0)
    against = evaluation(AgainstRandom(TicTacToeEnv()))
    model.learn(60, callback=[matches, against, DiagnosticsCallback()])
    assert -1.0 <= against.last_mean_reward <= 1.0 and matches.results
    tiny_model(Single()).learn(60, callback=evaluation(Single()))


def test_evaluate_policy_in_a_two_player_game_warns_once(recwarn: Any) -> None:
    model = tiny_model(TicTacToeEnv()).learn(40)
    assert evaluate_policy(model, TicTacToeEnv(), 4, warn=False)[0] == 1.0  # whoever wins
    evaluate_policy(model, TicTacToeEnv(), 4, warn=False)
    (told,) = [str(warning.message) for warning in recwarn if "`evaluate_policy`" in str(warning.message)]
    assert "SelfPlayEvalCallback" in told and "play_match" in told and "MaskableEvalCallback" not in told


def test_predicting_without_masks_names_the_evaluation_of_two_players() -> None:
    model = tiny_model(TicTacToeEnv()).learn(40)
    with pytest.warns(UserWarning, match="given none") as told, pytest.raises(ValueError, match="must be a legal move"):
        sb3_evaluate_policy(model, TicTacToeEnv(), 20, warn=False)
    message = str(told[0].message)
    assert "SelfPlayEvalCallback" in message and "play_match" in message and "sb3_contrib" not in message


def test_the_progress_bar_leaves_out_what_both_players_have_won() -> None:
    bars = []
    for env in (TicTacToeEnv(), Single()):
        bar = MuZeroProgressBar(compiles=False)
        bar.init_callback(tiny_model(env).learn(60))
        bars.append(bar._describe())
    assert bars[0].startswith("env") and bars[1].startswith("return")


class RecordNothing(BaseCallback):
    def _on_step(self) -> bool:
        return True


def test_evaluations_that_cannot_be_are_errors_before_training() -> None:
    for number in (5, 4.0):
        with pytest.raises(ValueError, match="`n_eval_games` must be an even integer"):
            SelfPlayEvalCallback(TicTacToeEnv, {}, number)
    with pytest.raises(ValueError, match="`max_checkpoints` must be an integer"):
        SelfPlayEvalCallback(TicTacToeEnv, {}, 4, max_checkpoints=1.5)
    model = tiny_model(TicTacToeEnv())
    with pytest.raises(ValueError, match="`opening_plies` must leave something to play, got 9"):
        model.learn(10, callback=SelfPlayEvalCallback(TicTacToeEnv, {}, 4, opening_plies=9))
    with pytest.raises(ValueError, match="`opponents` must be players of this game, which 'perfect' is not"):
        MuZero("MlpPolicy", ConnectFourEnv()).learn(10, SelfPlayEvalCallback(ConnectFourEnv, {"perfect": PerfectPlayer()}, 4))
    other_board = SelfPlayEvalCallback(ConnectFourEnv, {}, 4)
    with pytest.raises(ValueError, match=r"`make_env` must make the game that the model learns: .* shape"):
        MuZero("MlpPolicy", TicTacToeEnv()).learn(10, callback=other_board)


class Recorder:
    """A logger that keeps all that is dumped."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.values = rows, {}
        self.name_to_value: dict[str, Any] = {}

    def record(self, key: str, value: Any, exclude: Any = None) -> None:
        self.values[key] = value

    record_mean = record

    def dump(self, step: int = 0) -> None:
        self.rows.append(self.values)
        self.values = {}


@pytest.mark.slow
def test_tic_tac_toe_is_learned_to_perfection() -> None:
    """Every game that the agent can be led into, from both seats."""
    rules = TicTacToeEnv().rules
    settings = yaml.safe_load(CONF_FILE.read_text())["sb3_muzero/TicTacToe-v0"]
    steps, policy = int(settings.pop("n_timesteps")), settings.pop("policy")
    settings |= {
        "env": make_vec_env(TicTacToeEnv, n_envs=settings.pop("n_envs"), seed=0),
        "learning_rate": LinearSchedule(float(settings["learning_rate"].removeprefix("lin_")), 0.0, 1.0),
        "policy_kwargs": eval(settings["policy_kwargs"]),
    }
    model = MuZero(policy, seed=0, device="cpu", **settings).learn(steps)

    def act(boards: np.ndarray) -> np.ndarray:
        return ModelPlayer(model).act_on_boards(rules, boards)

    assert [count_leaves(act, rules, moves_first).lost for moves_first in (True, False)] == [0, 0]
    assert share_of_errors(act, solve(rules)) < 0.02
