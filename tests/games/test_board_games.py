"""The games: against OpenSpiel's, move for move, and as environments."""

import copy
import warnings

import gymnasium as gym
import numpy as np
import pyspiel
import pytest
from stable_baselines3.common.env_checker import check_env

from sb3_muzero.games import GAMES, BoardGameEnv, ConnectFourEnv, GomokuEnv, HexEnv, TicTacToeEnv

# OpenSpiel's Hex has the first player connect the top and the bottom, too
PEERS = {
    "tic_tac_toe": TicTacToeEnv,
    "connect_four": ConnectFourEnv,
    "mnk(m=7,n=7,k=5)": lambda: GomokuEnv(7),
    "hex(board_size=5)": lambda: HexEnv(5),
}


def absolute(game: BoardGameEnv, action: int) -> int:
    """:return: the move as OpenSpiel numbers it, which has the second player of Hex see the board as the first does"""
    if game.rules.in_a_row == 0 and game.mover == 1:
        row, column = divmod(action, game.rules.num_columns)
        return column * game.rules.num_columns + row
    return action


@pytest.mark.parametrize("name", PEERS)
def test_random_games_are_those_of_open_spiel(name: str) -> None:
    rng = np.random.default_rng(0)
    game, outcomes = PEERS[name](), set()
    for _ in range(60):
        game.reset()
        state = pyspiel.load_game(name).new_initial_state()
        while not game.is_over:
            legal = np.flatnonzero(game.action_masks())
            assert sorted(absolute(game, int(move)) for move in legal) == state.legal_actions()
            move, mover = int(rng.choice(legal)), game.mover
            state.apply_action(absolute(game, move))
            _, reward, terminated, truncated, _ = game.step(move)
            assert (terminated, truncated) == (state.is_terminal(), False)
            assert reward == max(state.rewards()[mover], 0.0)
        outcomes.add((reward, game.mover))
    assert len(outcomes) >= 2


@pytest.mark.parametrize("name", GAMES)
def test_environments_pass_sb3s_checks(name: str) -> None:
    env = gym.make(f"sb3_muzero/{name}-v0", render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # images are smaller than NatureCNN needs
        check_env(env)
    env.reset()
    assert env.render().shape[2] == 3


@pytest.mark.parametrize("make", PEERS.values(), ids=PEERS)
def test_symmetries_are_those_of_the_game(make: type[BoardGameEnv]) -> None:
    """Whoever plays the images of all moves sees the images of all positions."""
    rng = np.random.default_rng(1)
    game, image = make(), make()
    observations, actions = game.symmetries
    assert len(np.unique(actions, axis=0)) == len(actions) > 1
    assert np.array_equal(actions[0], np.arange(game.action_space.n))
    for cells, moves in zip(observations, actions, strict=True):
        game.reset()
        image.reset()
        while not game.is_over:
            assert np.array_equal(game.observation().ravel()[cells], image.observation().ravel())
            assert np.array_equal(game.action_masks()[moves], image.action_masks())
            move = int(rng.choice(np.flatnonzero(game.action_masks())))
            result, mirrored = game.step(move), image.step(int(np.argsort(moves)[move]))
            assert result[1:4] == mirrored[1:4]


def test_observation_is_the_movers_own() -> None:
    game = ConnectFourEnv()
    observation, reward, *_ = game.step(3)
    assert reward == 0.0 and observation.dtype == np.uint8
    assert not observation[0].any() and observation[1, 5, 3] == 255 and observation[1].sum() == 255
    observation = game.step(3)[0]
    assert observation[0, 5, 3] == observation[1, 4, 3] == 255 and observation.sum() == 2 * 255


def test_illegal_moves_and_moves_after_the_end_are_errors() -> None:
    game = TicTacToeEnv()
    game.step(4)
    for move in (4, 9, -1, 0.5):
        with pytest.raises(ValueError, match=r"legal move, one of \[0, 1, 2, 3, 5, 6, 7, 8\], got"):
            game.step(move)
    game.reset(options={"moves": [0, 3, 1, 4]})
    assert game.step(2)[2]
    with pytest.raises(ValueError, match="over"):
        game.step(5)
    for moves in ([0, 3, 1, 4, 2], [0, 0]):
        with pytest.raises(ValueError, match=r"legal move|something to play"):
            game.reset(options={"moves": moves})


def test_bad_sizes_are_errors() -> None:
    for make in (
        lambda: ConnectFourEnv(3, 3),
        lambda: GomokuEnv(4),
        lambda: GomokuEnv(9, 0),
        lambda: HexEnv(0),
        lambda: HexEnv(1),
        lambda: GomokuEnv(5.0, 3),
        lambda: GomokuEnv(5, 2.5),
        lambda: GomokuEnv(1, 1),
        lambda: ConnectFourEnv(1, 7),
        lambda: ConnectFourEnv(4, 1),
        lambda: HexEnv(render_mode="human"),
    ):
        with pytest.raises(ValueError, match="must"):
            make()


def test_moves_draw_what_is_legal() -> None:
    game = TicTacToeEnv()
    game.reset(options={"moves": [0, 1, 2, 4, 3, 5]})
    game.action_space.seed(0)
    for env in (game, copy.deepcopy(game)):
        assert {int(env.action_space.sample()) for _ in range(50)} == {6, 7, 8}


def test_text_shows_the_table_and_not_the_movers_view() -> None:
    game = HexEnv(2, render_mode="ansi")
    game.step(1)
    assert game.render() == "   a b\n 1 . X\n  2 . ."
    assert game.name_of(1) == "a2"  # the second player sees the board along the other diagonal
    game.step(1)
    assert game.render() == "   a b\n 1 . X\n  2 O ."


@pytest.mark.parametrize("name", GAMES)
def test_games_may_begin_with_random_moves(name: str) -> None:
    game = GAMES[name](random_plies=5)
    plies = [(game.reset(seed=seed), game.num_plies)[1] for seed in range(300)]
    assert set(plies) == set(range(6)) and not game.is_over
    boards = [(game.reset(seed=seed), game.board.tobytes())[1] for seed in (1, 2, 1)]
    assert boards[0] == boards[2] != boards[1]
    game.reset(options={"moves": [3, 2]})
    assert game.num_plies == 2, "told what to begin with"
    game.reset(options={"moves": np.array([1])})
    assert game.num_plies == 1
    plies = {(game.reset(seed=seed, options={"moves": None}), game.num_plies)[1] for seed in range(300)}
    assert plies == set(range(6)), "not told"
    with pytest.raises(ValueError, match="`moves` must be a sequence of moves, got 3"):
        game.reset(options={"moves": 3})
    for wrong in (-1, 1.5, 1000):
        with pytest.raises(ValueError, match="`random_plies` must be an integer from 0 to"):
            GAMES[name](random_plies=wrong)


def test_a_game_that_random_moves_end_begins_anew() -> None:
    game = TicTacToeEnv(random_plies=8)
    for seed in range(300):
        game.reset(seed=seed)
        assert not game.is_over and game.action_masks().any()
