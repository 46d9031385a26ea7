"""Games of PettingZoo and OpenSpiel: the same as ours, move for move; what is no such game is an error."""

import copy
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pyspiel
import pytest
from conftest import differences, snapshot, tiny_model
from gymnasium import spaces
from pettingzoo.classic import chess_v6, connect_four_v3, tictactoe_v3
from stable_baselines3.common.env_checker import check_env

from sb3_muzero.checkpointing import resume, save_checkpoint
from sb3_muzero.games import ConnectFourEnv, TicTacToeEnv
from sb3_muzero.games.adapters import AdaptedGame, from_open_spiel, from_pettingzoo
from sb3_muzero.games.match import play_match
from sb3_muzero.games.players import ModelPlayer, RandomPlayer

ADAPTED = {
    "pettingzoo connect_four": (ConnectFourEnv, lambda: from_pettingzoo(connect_four_v3.env())),
    "pettingzoo tictactoe": (TicTacToeEnv, lambda: from_pettingzoo("tictactoe_v3")),
    "open_spiel connect_four": (ConnectFourEnv, lambda: from_open_spiel(pyspiel.load_game("connect_four"))),
    "open_spiel tic_tac_toe": (TicTacToeEnv, lambda: from_open_spiel("tic_tac_toe")),
}


@pytest.mark.parametrize("name", ADAPTED)
def test_adapted_games_are_ours_move_for_move(name: str) -> None:
    ours, theirs = ADAPTED[name][0](), ADAPTED[name][1]()
    rng = np.random.default_rng(0)
    for _ in range(30):
        ours.reset()
        theirs.reset()
        while not ours.is_over:
            assert np.array_equal(ours.action_masks(), theirs.action_masks())
            move = int(rng.choice(np.flatnonzero(ours.action_masks())))
            assert ours.step(move)[1:] == (step := theirs.step(move))[1:]
            if name.startswith("pettingzoo") and not ours.is_over:
                assert np.array_equal(ours.observation() > 0, step[0].transpose(2, 0, 1))


@pytest.mark.parametrize("name", ADAPTED)
def test_muzero_learns_on_adapted_games(name: str) -> None:
    env = ADAPTED[name][1]()
    check_env(env)
    model = tiny_model(env).learn(60)
    assert model.two_player and model.discount < 0
    assert sum(play_match(RandomPlayer(0), RandomPlayer(1), ADAPTED[name][1], 4)[0]) == 2


def test_chess_is_played_to_the_end() -> None:
    game = from_pettingzoo(chess_v6.env())
    game.reset()
    game.action_space.seed(0)
    done, num_plies = False, 0
    while not done:
        _, reward, terminated, truncated, _ = game.step(game.action_space.sample())
        done, num_plies = terminated or truncated, num_plies + 1
    assert num_plies > 10 and reward in (-1, 0, 1)


@pytest.mark.parametrize("name", ["open_spiel connect_four", "pettingzoo tictactoe"])
def test_a_copy_draws_what_is_legal(name: str) -> None:
    game = ADAPTED[name][1]()
    game.reset()
    for _ in range(3):
        game.step(int(np.flatnonzero(game.action_masks())[0]))
    copied = copy.deepcopy(game)
    drawn = {int(copied.action_space.sample()) for _ in range(200)}
    assert drawn == set(np.flatnonzero(game.action_masks()).tolist())


@pytest.mark.parametrize("name", [*ADAPTED, "chess"])
def test_a_copy_plays_on_from_the_same_position(name: str) -> None:
    """Also one from a checkpoint's file; PettingZoo's own copies have lost the game."""
    game = from_pettingzoo(chess_v6.env()) if name == "chess" else ADAPTED[name][1]()
    game.reset(seed=0)
    game.action_space.seed(0)
    for _ in range(3):
        game.step(game.action_space.sample())
    copies = [copy.deepcopy(game), cloudpickle.loads(cloudpickle.dumps(game))]
    for _ in range(100):
        move = int(game.action_space.sample())
        expected = game.step(move)
        for other in copies:
            found = other.step(move)
            assert np.array_equal(found[0], expected[0]) and found[1:] == expected[1:]
            assert np.array_equal(other.action_masks(), game.action_masks())
        if expected[2] or expected[3]:
            break


def test_a_run_on_a_game_of_pettingzoo_goes_on_amid_a_game(tmp_path: Path) -> None:
    model = tiny_model(from_pettingzoo(tictactoe_v3.env())).learn(62)
    assert not model.env.buf_dones[0], "amid a game"
    save_checkpoint(model, tmp_path)
    unbroken = model.learn(20, reset_num_timesteps=False)
    env = from_pettingzoo(tictactoe_v3.env())
    resumed = resume(tmp_path, env, restore_environments=True).learn(20, reset_num_timesteps=False)
    assert differences(snapshot(unbroken), snapshot(resumed)) == []


@pytest.mark.parametrize("name", ["tic_tac_toe", "breakthrough(rows=5,columns=3)", "lines_of_action"])
def test_observations_of_open_spiel_say_who_moves(name: str) -> None:
    game, rng = from_open_spiel(pyspiel.load_game(name)), np.random.default_rng(0)
    seen: dict[bytes, int] = {}
    for _ in range(20):
        observation, done, ply = game.reset()[0], False, 0
        while not done and ply < 60:
            assert seen.setdefault(observation.tobytes(), ply % 2) == ply % 2
            observation, _, done, *_ = game.step(int(rng.choice(np.flatnonzero(game.action_masks()))))
            ply += 1


def test_what_is_no_game_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"`game` must be a game of OpenSpiel or its name, .* got 3"):
        from_open_spiel(3)
    with pytest.raises(ValueError, match="`aec_env` must be the name of a classic game of PettingZoo, got 'tic_tac_toe'"):
        from_pettingzoo("tic_tac_toe")


def test_illegal_moves_are_errors() -> None:
    for _, make in ADAPTED.values():
        env = make()
        env.reset()
        while env.action_masks()[0]:
            env.step(0)
        with pytest.raises(ValueError, match="legal move"):
            env.step(0)


@pytest.mark.parametrize("name", ["kuhn_poker", "backgammon", "matching_pennies_3p", "coop_box_pushing"])
def test_other_kinds_of_games_are_errors(name: str) -> None:
    with pytest.raises(ValueError, match="`game` must have .* but " + name):
        from_open_spiel(pyspiel.load_game(name))


class Fake:
    """A game of PettingZoo's in which some of MuZero's assumptions may be wrong."""

    def __init__(
        self, agents: int = 2, masks: bool = True, rewards: tuple[float, float] = (1.0, -1.0), turns: str = "ab"
    ) -> None:
        self.possible_agents = ["a", "b", "c"][:agents]
        self.masks, self.turns = masks, turns
        self.rewards = dict(zip("ab", rewards, strict=True))
        self.terminations = self.truncations = {"a": False, "b": False}

    def observation_space(self, agent: str) -> spaces.Space:
        parts = {"observation": spaces.Box(0, 1, (2,))}
        return spaces.Dict(parts | ({"action_mask": spaces.MultiBinary(2)} if self.masks else {}))

    def action_space(self, agent: str) -> spaces.Space:
        return spaces.Discrete(2)

    def reset(self, **kwargs: Any) -> None:
        self.plies = 0

    def observe(self, agent: str) -> dict[str, np.ndarray]:
        return {"observation": np.zeros(2, np.float32), "action_mask": np.ones(2, np.int8)}

    def step(self, action: int) -> None:
        self.plies += 1

    @property
    def agent_selection(self) -> str:
        return self.turns[self.plies % len(self.turns)]


def test_games_that_are_not_for_two_in_turn_and_zero_sum_are_errors() -> None:
    for fake, message in ((Fake(agents=3), "for two"), (Fake(masks=False), "action_mask")):
        with pytest.raises(ValueError, match=message):
            from_pettingzoo(fake)
    with pytest.raises(ValueError, match="sum to zero"):
        from_pettingzoo(Fake(rewards=(1.0, 1.0)))
    in_turn = from_pettingzoo(Fake(turns="aab"), extra_turns=False)
    in_turn.reset()
    with pytest.raises(ValueError, match="player 0 was to move twice: set `extra_turns=True`"):
        in_turn.step(0)
    tiny_model(from_pettingzoo(Fake(turns="aab"), extra_turns=True)).learn(40)
    assert isinstance(from_pettingzoo(Fake()), AdaptedGame) and isinstance(from_pettingzoo(Fake()), gym.Env)


EXTRA_TURNS = ["amazons", "checkers", "dots_and_boxes", "mancala", "nine_mens_morris", "ultimate_tic_tac_toe"]


@pytest.mark.parametrize("name", EXTRA_TURNS)
def test_games_with_extra_turns_say_whose_turn_it_is(name: str) -> None:
    game, rng = from_open_spiel(name), np.random.default_rng(1)
    state, repeats = pyspiel.load_game(name).new_initial_state(), 0
    game.reset()
    while True:
        assert game.to_play == state.current_player()
        assert np.array_equal(
            game.observation().ravel()[: -game.observation()[0].size], state.observation_tensor(game.to_play)
        )
        before, move = game.to_play, int(rng.choice(state.legal_actions()))
        _, reward, terminated, *_ = game.step(move)
        state.apply_action(move)
        assert reward == state.rewards()[before]
        if terminated:
            break
        repeats += game.to_play == before
    assert repeats > 0
    assert np.isin(game.observation()[-1], (0.0, 1.0)).all()


@pytest.mark.parametrize("name", ["checkers", "dots_and_boxes", "mancala"])
def test_muzero_learns_on_games_with_extra_turns(name: str) -> None:
    model = tiny_model(from_open_spiel(name), buffer_size=600).learn(500)
    assert model.predict_turns and model._n_updates == 120
    signs = model.replay_buffer.turn_signs
    assert signs is not None and {-1, 1} <= set(signs[:500].ravel().tolist())
    first, _ = play_match(ModelPlayer(model), RandomPlayer(0), lambda: from_open_spiel(name), 2)
    assert sum(first) == 1


@pytest.mark.parametrize("name", ADAPTED)
def test_games_in_turn_need_not_say_whose_turn_it_is(name: str) -> None:
    game = ADAPTED[name][1]()
    assert not game.extra_turns and not hasattr(game, "to_play")


def test_games_of_pettingzoo_may_have_extra_turns() -> None:
    game = from_pettingzoo(Fake(turns="aab"))
    game.reset()
    turns = []
    for _ in range(6):
        turns.append(game.to_play)
        game.step(0)
    assert turns == [0, 0, 1, 0, 0, 1]
    assert not hasattr(from_pettingzoo(Fake()), "to_play")
