"""Players and solvers, against brute force and one another."""

import time
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conftest import TinyEnv, tiny_model
from gymnasium import spaces

from sb3_muzero.games import BoardGameEnv, ConnectFourEnv, GomokuEnv, HexEnv, TicTacToeEnv, match
from sb3_muzero.games.adapters import from_open_spiel
from sb3_muzero.games.connect_four_solver import ConnectFourSolver
from sb3_muzero.games.exact import count_leaves, legal_moves, max_num_positions, share_of_errors, solve
from sb3_muzero.games.match import Opening, Score, elo_ratings, play_games, play_match, random_openings
from sb3_muzero.games.minimax import LOWEST, WIN, evaluate, minimax_scores, move_order
from sb3_muzero.games.players import MCTSPlayer, MinimaxPlayer, ModelPlayer, PerfectPlayer, RandomPlayer
from sb3_muzero.games.rules import GOES_ON, WON, Rules, play
from sb3_muzero.games.self_play import SelfPlayEvalCallback


def random_position(game: BoardGameEnv, num_plies: int, rng: np.random.Generator) -> np.ndarray:
    while True:
        game.reset()
        while not game.is_over and game.num_plies < num_plies:
            game.step(int(rng.choice(np.flatnonzero(game.action_masks()))))
        if not game.is_over:
            return game.board


def plain_minimax(rules: Rules, board: np.ndarray, depth: int) -> dict[int, int]:
    """:return: scores of all moves, without pruning"""
    scores = {}
    for move in legal_moves(rules, board):
        after = board.copy()
        outcome = play(rules, after, move)
        if outcome != GOES_ON:
            scores[move] = WIN + depth if outcome == WON else 0
        else:
            scores[move] = -(evaluate(rules, after) if depth == 1 else max(plain_minimax(rules, after, depth - 1).values()))
    return scores


@pytest.mark.parametrize("game", [ConnectFourEnv(), GomokuEnv(5, 4), HexEnv(4)], ids=lambda game: type(game).__name__)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_alpha_beta_finds_all_best_moves_and_no_others(game: BoardGameEnv, depth: int) -> None:
    rng = np.random.default_rng(depth)
    for num_plies in (0, 3, 6, 8):
        board = random_position(game, num_plies, rng)
        scores = minimax_scores(game.rules, board, depth, move_order(game.rules))
        expected = plain_minimax(game.rules, board, depth)
        best = max(expected.values())
        assert scores.max() == best
        assert set(np.flatnonzero(scores == best)) == {move for move, score in expected.items() if score == best}
        assert set(np.flatnonzero(scores > LOWEST)) == set(expected)


def test_evaluation_counts_open_lines() -> None:
    rules = TicTacToeEnv().rules
    board = np.array([1, 1, 0, 0, -1, 0, 0, 0, 0], np.int8)
    # Mine: top row with two (4), left column (1); theirs: middle row and the diagonal from the right (1 each)
    assert evaluate(rules, board) == 4 + 1 - 2
    assert evaluate(rules, -board) == -3


def test_evaluation_of_hex_counts_missing_stones() -> None:
    rules = HexEnv(3).rules
    board = np.array([0, 1, 0, 0, 1, 0, 0, 0, 0], np.int8)
    assert evaluate(rules, board) == 16 * (3 - 1)  # a chain of three from left to right has to go around


def test_tic_tac_toe_is_solved() -> None:
    rules = TicTacToeEnv().rules
    solution = solve(rules)
    assert len(solution) == 4520  # positions that are not over, of 5478
    assert (solution[bytes(9)] == 0.0).all()  # a draw, wherever one begins


def test_perfect_player_never_loses_and_another_one_does() -> None:
    rules = TicTacToeEnv().rules
    solution = solve(rules)

    def perfect(boards: np.ndarray) -> np.ndarray:
        return np.array([np.nanargmax(solution[board.tobytes()]) for board in boards])

    def first_free(boards: np.ndarray) -> np.ndarray:
        return (boards == 0).argmax(axis=1)

    for moves_first in (True, False):
        assert count_leaves(perfect, rules, moves_first).lost == 0
        assert count_leaves(first_free, rules, moves_first).lost > 0
    assert share_of_errors(perfect, solution) == 0.0
    assert 0.1 < share_of_errors(first_free, solution) < 0.9
    # 255 168 games in all: with one legal reply each, both seats' trees multiply out to fewer
    assert sum(count_leaves(perfect, rules, True)) < sum(count_leaves(perfect, rules, False)) < 2000


def test_connect_four_solver_agrees_with_exhaustive_search() -> None:
    rules = ConnectFourEnv(4, 4).rules
    solution, solver = solve(rules), ConnectFourSolver(rules)
    rng = np.random.default_rng(0)
    keys = list(solution)
    for index in rng.choice(len(keys), 500):
        values = solver.values(np.frombuffer(keys[index], np.int8))
        assert np.array_equal(values, solution[keys[index]], equal_nan=True)


def test_connect_four_solver_grades_late_positions_as_deep_search_does() -> None:
    game, rng = ConnectFourEnv(), np.random.default_rng(0)
    solver = ConnectFourSolver(game.rules)
    for _ in range(5):
        board = random_position(game, 32, rng)
        scores = minimax_scores(game.rules, board, 42 - 32, move_order(game.rules))
        values = solver.values(board)
        assert np.nanmax(values) == np.sign(scores.max())


def test_a_solver_without_time_says_nothing() -> None:
    game = ConnectFourEnv()
    assert np.isnan(ConnectFourSolver(game.rules, max_positions=100).values(game.board)).all()
    with pytest.raises(ValueError, match="Connect Four"):
        ConnectFourSolver(HexEnv().rules)


@pytest.mark.parametrize("make", [ConnectFourEnv, GomokuEnv, lambda: GomokuEnv(4, 4)])
def test_a_game_that_is_too_large_to_be_solved_is_an_error_at_once(make) -> None:
    start = time.process_time()
    with pytest.raises(ValueError, match="of a game of at most 1000000 positions to be solved"):
        PerfectPlayer().act([make()])
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize("game", [TicTacToeEnv(), HexEnv(3), ConnectFourEnv(4, 3), ConnectFourEnv(3, 4)])
def test_the_estimate_of_positions_is_an_upper_bound(game) -> None:
    positions = len(solve(game.rules))
    assert positions <= max_num_positions(game.rules) < 2 * positions


def test_perfect_players_draw_and_stronger_players_win() -> None:
    assert play_match(PerfectPlayer(0), PerfectPlayer(1), TicTacToeEnv, 40, opening_plies=0) == (
        Score(0, 20, 0),
        Score(0, 20, 0),
    )
    assert sum(seat.losses for seat in play_match(PerfectPlayer(0), RandomPlayer(1), TicTacToeEnv, 40, opening_plies=0)) == 0
    for strong, weak in (
        (MinimaxPlayer(1, 0), RandomPlayer(0)),
        (MinimaxPlayer(4, 0), MinimaxPlayer(1, 1)),
        (MCTSPlayer(200, seed=0), RandomPlayer(0)),
    ):
        first, second = play_match(strong, weak, ConnectFourEnv, 20, seed=0)
        assert (first + second).points > 0.75


def test_scores_are_by_seat() -> None:
    class Column:
        """Always the same column, or the next one with room."""

        def __init__(self, column: int) -> None:
            self.column = column

        def act(self, envs: list) -> np.ndarray:
            return np.array([(np.roll(env.action_masks(), -self.column).argmax() + self.column) % 7 for env in envs])

    first, second = play_match(Column(0), Column(6), ConnectFourEnv, 4, opening_plies=0)
    assert (first, second) == (Score(2, 0, 0), Score(0, 0, 2))  # who begins has four in a column first
    assert str(first) == "100.0% of the points (+2 =0 -0)"


def test_players_move_in_their_seats_after_any_opening() -> None:
    class Watcher:
        """Looks whose turn it is, and makes the first legal move."""

        def __init__(self) -> None:
            self.seen: set[int] = set()

        def act(self, envs: list) -> np.ndarray:
            self.seen |= {env.mover for env in envs}
            return np.array([env.action_masks().argmax() for env in envs])

    for opening in ((), (0,), (0, 1), (3, 3, 3)):
        first, second = Watcher(), Watcher()
        play_games((first, second), [ConnectFourEnv()], [Opening(0, opening)])
        assert (first.seen, second.seen) == ({0}, {1})


def test_openings_differ_as_long_as_there_are_others() -> None:
    assert len({opening.moves for opening in random_openings(ConnectFourEnv, 49, 2, 0)}) == 49  # which is all
    more = random_openings(ConnectFourEnv, 60, 2, 0)
    assert len(more) == 60 and len({opening.moves for opening in more}) == 49
    assert [opening.moves for opening in random_openings(TicTacToeEnv, 3, 0, 0)] == [(), (), ()]
    assert random_openings(ConnectFourEnv, 5, 2, 1) != random_openings(ConnectFourEnv, 5, 2, 0)


class Always:
    """Chooses one action, or the first legal one where it is none."""

    def __init__(self, action: int) -> None:
        self.action = action
        self.started: list[int] = []

    def act(self, envs: list) -> np.ndarray:
        self.started += [env.unwrapped.start for env in envs if env.unwrapped.ply < 4]
        masks = [env.unwrapped.action_masks() for env in envs]
        return np.array([self.action if mask[self.action] else mask.argmax() for mask in masks])


class Heap(gym.Env):
    """Take one to three from a heap of random size; who takes the last one wins."""

    two_player = True
    observation_space = spaces.Discrete(40)
    action_space = spaces.Discrete(3)

    def observation(self) -> Any:
        return self.left

    def action_masks(self) -> np.ndarray:
        return np.arange(1, 4) <= self.left

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.start = self.left = int(self.np_random.integers(8, 40))
        self.ply = 0
        return self.observation(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_masks()[action], f"only {self.left} are left"
        self.left -= int(action) + 1
        self.ply += 1
        return self.observation(), float(self.left == 0), self.left == 0, False, {}


class Paid(Heap):
    """
    So many plies, each of which pays what its action does.

    :param rewards: Of each ply, by action
    """

    def __init__(self, rewards: list[list[float]]) -> None:
        self.rewards = rewards

    def action_masks(self) -> np.ndarray:
        return np.array([True, True, False])

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        self.ply += 1
        return self.observation(), self.rewards[self.ply - 1][action], self.ply == len(self.rewards), False, {}


def test_games_without_end_are_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(match, "MAX_PLIES", 20)
    make = partial(Paid, [[1.0, 1.0]] * 10**4)
    with pytest.warns(UserWarning, match="2 of 2 games were still running after 20 plies and count as draws"):
        assert play_match(Always(1), Always(0), make, 4, opening_plies=1) == (Score(0, 2, 0), Score(0, 2, 0))


def test_who_has_the_larger_sum_of_rewards_wins() -> None:
    """Not who moves last."""
    make = partial(Paid, [[0.0, 5.0]] * 5 + [[1.0, 6.0]])
    assert play_match(Always(1), Always(0), make, 4, opening_plies=0) == (Score(2, 0, 0), Score(2, 0, 0))
    assert play_games((Always(0), Always(0)), [make()], [Opening(0, (1, 0))]) == [1], "paid in the opening"
    assert play_games((Always(0), Always(0)), [make()], [Opening(0, (0, 0))]) == [-1]
    tenths = Paid([[0.1], [0.3], [0.2], [0.0]])  # the sum is 0 but for rounding
    assert play_games((Always(0), Always(0)), [tenths], [Opening(0, ())]) == [0]


def test_games_that_begin_at_random_begin_alike_in_both_seats() -> None:
    player, opponent = Always(2), Always(1)
    scores = [play_match(player, opponent, Heap, 20, opening_plies=plies, seed=5) for plies in (2, 2, 0, 0)]
    assert scores[0] == scores[1] and scores[2] == scores[3]
    assert len(set(player.started)) > 5, "all the same game"
    openings = random_openings(Heap, 10, 0, 5)
    assert len({opening.seed for opening in openings}) == 10
    games = [Heap(), Heap()]
    for seat in range(2):
        play_games((player, opponent), games, openings[:2])
        assert [game.start for game in games] == [Heap().reset(seed=opening.seed)[0] for opening in openings[:2]], seat


def test_chance_that_no_seed_decides_is_an_error() -> None:
    class Other(Heap):
        starts = iter([9, 9, 9, 9, 2, 2, 2, 2])

        def reset(self, **kwargs: Any) -> tuple[Any, dict]:
            super().reset(**kwargs)
            self.start = self.left = next(self.starts)
            return self.left, {}

    with pytest.raises(ValueError, match=r"`reset\(seed=\.\.\.\)` must decide all chance"):
        play_games((Always(0), Always(0)), [Other()] * 5, [Opening(0, (0, 0))] * 5)


def test_openings_do_not_go_beyond_a_truncation() -> None:
    make = partial(gym.wrappers.TimeLimit, TicTacToeEnv(), 3)
    with pytest.raises(ValueError, match="`opening_plies` must leave something to play, got 3"):
        play_match(RandomPlayer(), RandomPlayer(), make, 2, opening_plies=3)
    assert sum(play_match(RandomPlayer(0), RandomPlayer(0), make, 2, opening_plies=2)[0]) == 1


def test_models_play_on_dictionaries() -> None:
    class Named(Heap):
        observation_space = spaces.Dict(left=spaces.Discrete(40), ply=spaces.Box(0, 1, (1,)))  # type: ignore[assignment]

        def observation(self) -> Any:
            return {"left": self.left, "ply": np.array([self.ply / 40], np.float32)}

    model = tiny_model(Named(), "MultiInputPolicy")
    callback = SelfPlayEvalCallback(Named, {"random": RandomPlayer(0)}, n_eval_games=4, eval_freq=40, verbose=0)
    model.learn(60, callback=callback)
    assert len(callback.results) > 0


def test_matches_begin_on_the_empty_board_also_where_training_does_not() -> None:
    makers = (ConnectFourEnv, partial(ConnectFourEnv, random_plies=10))
    scores = [play_match(MinimaxPlayer(2, 0), RandomPlayer(0), make, 20, opening_plies=2, seed=0) for make in makers]
    assert scores[0] == scores[1]


def test_bad_matches_and_players_are_errors() -> None:
    for number in (3, 4.0, 0):
        with pytest.raises(ValueError, match="`num_games` must be an even integer"):
            play_match(RandomPlayer(), RandomPlayer(), TicTacToeEnv, number)
    for plies in (9, -1, 1.5):
        with pytest.raises(ValueError, match="`opening_plies`"):
            play_match(RandomPlayer(), RandomPlayer(), TicTacToeEnv, 2, opening_plies=plies)
    for number in (0, 2.5):
        with pytest.raises(ValueError, match="`depth` must be an integer of at least 1"):
            MinimaxPlayer(number)
        with pytest.raises(ValueError, match="`num_simulations` must be an integer of at least 1"):
            MCTSPlayer(number)
    with pytest.raises(ValueError, match="`exploration` must be at least 0 and finite, got nan"):
        MCTSPlayer(8, exploration=float("nan"))
    import pyspiel

    game = from_open_spiel(pyspiel.load_game("tic_tac_toe"))
    game.reset()
    with pytest.raises(ValueError, match=r"sb3_muzero\.games, got a OpenSpielGame"):
        MinimaxPlayer(1).act([game])


def test_what_is_no_player_or_no_game_for_matches_is_an_error() -> None:
    model = tiny_model(TicTacToeEnv())
    for wrong in (model, RandomPlayer):
        with pytest.raises(ValueError, match="`opponent` must be a player, such as"):
            play_match(RandomPlayer(), wrong, TicTacToeEnv, 2)
        with pytest.raises(ValueError, match=r"`opponents\['it'\]` must be a player, such as"):
            SelfPlayEvalCallback(TicTacToeEnv, {"it": wrong})

    class Silent(TinyEnv):
        two_player = True

    with pytest.raises(ValueError, match=r"Silent lacks the method `observation\(\)`"):
        play_match(ModelPlayer(model), ModelPlayer(model), Silent, 2, opening_plies=0)


def test_ratings_are_those_of_the_expected_scores() -> None:
    """Points as Elo's formula expects them give back the ratings, but for the draw that everybody is given."""
    ratings = np.array([0.0, 100.0, 250.0])
    expected = 1 / (1 + 10 ** ((ratings[None] - ratings[:, None]) / 400))
    games = np.full((3, 3), 1e6)
    np.fill_diagonal(games, 0)
    assert np.allclose(elo_ratings(expected * games, games), ratings, atol=0.1)
    # A chain in which everybody meets three others, 40 points apart
    count = 40
    meets = np.abs(np.arange(count)[None] - np.arange(count)[:, None])
    chain = np.where((meets > 0) & (meets <= 3), 40.0, 0.0)
    points = chain / (1 + 10 ** ((np.arange(count)[None] - np.arange(count)[:, None]) * 40 / 400))
    assert elo_ratings(points, chain)[-1] == pytest.approx(40 * (count - 1), rel=0.03)
    won_all = elo_ratings(np.array([[0.0, 0.0], [20.0, 0.0]]), np.array([[0.0, 20.0], [20.0, 0.0]]))
    assert np.isfinite(won_all).all() and won_all[1] > 300
