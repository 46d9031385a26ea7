"""Playing in the terminal."""

import re

import pytest
from conftest import tiny_model
from stable_baselines3.common.env_util import make_vec_env

from sb3_muzero.__main__ import main
from sb3_muzero.checkpointing import save_checkpoint
from sb3_muzero.games import ConnectFourEnv, GomokuEnv, HexEnv, TicTacToeEnv
from sb3_muzero.games.simulator import SimulatorPolicy
from sb3_muzero.games.terminal import NAMES, line_of_play, search, view


def run(monkeypatch, capsys, answers: list[str], *arguments: str) -> str:
    """:return: all that is printed"""
    given = iter(answers)
    monkeypatch.setattr("builtins.input", lambda prompt: next(given))
    main(["play", *arguments])
    return capsys.readouterr().out


def test_a_game_against_a_model(tmp_path, monkeypatch, capsys):
    tiny_model(TicTacToeEnv()).save(tmp_path / "model")
    answers = ["z9", "a1", *(f"{column}{row}" for row in "123" for column in "abc")] * 20
    shown = run(monkeypatch, capsys, answers, "tic_tac_toe", "--model", str(tmp_path / "model.zip"))
    assert "'z9' is no legal move: one of a1, b1, c1, a2, b2, c2, a3, b3, c3" in shown
    assert re.search(r" 1 X \. \. .*\n 2 \. \. \.", shown)
    assert "O plays" in shown and "O to move" in shown and "X to move" not in shown
    assert shown.rstrip().endswith(("X has won", "O has won", "A draw"))


@pytest.mark.parametrize("name, make", [("connect_four", lambda: ConnectFourEnv(4, 5)), ("hex", lambda: HexEnv(2))])
def test_the_board_has_the_models_size_and_models_play_each_other(name, make, tmp_path, monkeypatch, capsys):
    tiny_model(make()).save(tmp_path / "model")
    shown = run(
        monkeypatch, capsys, [], name, "--model", str(tmp_path / "model.zip"), "--you", "none", "--num-simulations", "9"
    )
    assert "X plays" in shown and "O plays" in shown
    total = sum(int(line.split()[-3]) for line in shown.split("expects")[0].splitlines() if line.rstrip().endswith("%"))
    assert total == 9  # visits of the first decision


def test_a_checkpoint_is_played_without_running_code(tmp_path, monkeypatch, capsys):
    save_checkpoint(tiny_model(make_vec_env(lambda: ConnectFourEnv(4, 5), 3)), tmp_path)

    def explode(*args: object, **kwargs: object) -> None:
        raise AssertionError("a file was unpickled")

    for library in ("pickle", "cloudpickle"):
        monkeypatch.setattr(f"{library}.loads", explode)
    size = ["--env-kwargs", "num_rows=4", "num_columns=5"]
    for path in (tmp_path, tmp_path / "checkpoint_0_steps.npz"):
        shown = run(monkeypatch, capsys, [], "connect_four", "--model", str(path), "--you", "none", *size)
        assert "connect_four, 4 x 5" in shown and "X plays" in shown
    with pytest.raises(SystemExit, match=r"`env` must be of `observation_space` Box.*4, 5.*, got Box.*6, 7"):
        run(monkeypatch, capsys, [], "connect_four", "--model", str(tmp_path))


def test_help_says_which_files_can_run_code(capsys):
    for command in ("play", "report"):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        assert "can run any code" in " ".join(capsys.readouterr().out.split())


def test_errors_name_the_remedy(tmp_path, monkeypatch, capsys):
    tiny_model(TicTacToeEnv()).save(tmp_path / "model")
    for model, game, message in (
        ("other.zip", "hex", "there is no"),
        ("model.zip", "connect_four", "there is no connect_four for .*four in a row"),
        ("model.zip", "gomoku", "there is no gomoku for .*`in_a_row`"),
        ("model.zip --num-simulations 0", "tic_tac_toe", "can't be loaded with 0 simulations: `num_simulations` must"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(monkeypatch, capsys, [], game, "--model", *f"{tmp_path}/{model}".split())


def test_other_rules_of_a_game_are_arguments(tmp_path, monkeypatch, capsys):
    tiny_model(GomokuEnv(4, 4)).save(tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--you", "none", "--env-kwargs", "in_a_row=4"]
    shown = run(monkeypatch, capsys, [], "gomoku", *arguments)
    assert "gomoku, 4 x 4, 4 in a row" in shown
    assert "a b c d" in shown and shown.rstrip().endswith(("X has won", "O has won", "A draw"))


def test_line_of_play_ends_where_moves_are_illegal_or_the_game_is_over():
    """A search with the rules expects a legal line; that of an untrained model may be anything, and is cut."""
    game = TicTacToeEnv()
    game.reset(options={"moves": [0, 3, 1, 4]})
    policy = tiny_model(game, SimulatorPolicy, policy_kwargs={"rules": game.rules}, num_simulations=60).policy
    found = search(policy, game)
    assert line_of_play(found, game) == ["c1"]
    assert float(view(found, game)[0].removeprefix("X to move, value ")) > 0.9, "X wins at once"
    assert view(found, game)[2].split()[0] == "c1"
    assert game.num_plies == 4
    for seed in range(5):
        untrained = tiny_model(TicTacToeEnv(), num_simulations=40, seed=seed).policy
        assert len(set(line := line_of_play(search(untrained, game), game))) == len(line) <= 5


def test_names_are_those_that_are_typed():
    assert sorted(NAMES) == ["connect_four", "gomoku", "hex", "tic_tac_toe"]
