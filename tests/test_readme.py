"""Every block of code in the README and the guides runs."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from sb3_muzero import MuZero, zoo
from sb3_muzero.analysis import report
from sb3_muzero.games import TicTacToeEnv
from sb3_muzero.games import __main__ as games

ROOT = Path(__file__).resolve().parents[1]
TEXT = "\n".join((ROOT / name).read_text() for name in ("README.md", "examples/guides.md"))
TEXT = TEXT.replace("\\\n", " ")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
PYTHON = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [line for language, block in BLOCKS if language == "" for line in block.splitlines()]


def name_of(code: str) -> str:
    names = (
        r"Nim|\w+Callback|make_atari_env|InvalidActionEnv|gumbel_muzero_search|evaluate_policy|check_env|Dynamics"
        r"|ImageObservation"
    )
    return re.search(names, code).group()


@pytest.mark.parametrize("code", PYTHON, ids=name_of)
def test_python(code, tmp_path, monkeypatch):
    """Word for word, but that training ends after 600 steps at the latest."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    learn = MuZero.learn
    monkeypatch.setattr(MuZero, "learn", lambda self, steps, *args, **kwargs: learn(self, min(steps, 600), *args, **kwargs))
    # Diagnostics that were too late for that come early
    exec(compile(re.sub(r"log_freq=2_000", "log_freq=100", code), "README.md", "exec"), {"__name__": "__main__"})


def test_there_is_code():
    assert len(PYTHON) >= 9 and len(COMMANDS) >= 7


def test_report_command(tmp_path, monkeypatch):
    (command,) = [line for line in COMMANDS if "sb3_muzero.analysis.report" in line]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "DECODER_UPDATES", 20)
    MuZero("MlpPolicy", "CartPole-v1", learning_starts=10).learn(100).save("muzero_cartpole")
    python, _, module, *arguments = shlex.split(command)
    assert (python, module) == ("python", "sb3_muzero.analysis.report")
    monkeypatch.setattr(sys, "argv", ["report", *arguments, "--episodes", "8"])
    report.main()
    assert Path("report.html").exists()


def test_games_command(tmp_path, monkeypatch, capsys):
    (command,) = [line for line in COMMANDS if "sb3_muzero.games" in line]
    monkeypatch.chdir(tmp_path)
    MuZero("MlpPolicy", TicTacToeEnv(), learning_starts=10).learn(30).save("tic_tac_toe")
    monkeypatch.setattr(sys, "argv", ["games", *shlex.split(command)[3:]])
    monkeypatch.setattr("builtins.input", lambda prompt: "q")
    games.main()
    assert "X to move" in capsys.readouterr().out


def test_zoo_commands_are_known(monkeypatch, capsys):
    """They run in test_zoo.py; here their programs and options are."""
    commands = [shlex.split(line, comments=True) for line in COMMANDS if "sb3_muzero.zoo" in line]
    assert len(commands) >= 6
    for program in {command[3] for command in commands}:
        monkeypatch.setattr(sys, "argv", ["zoo", program, "--help"])
        with pytest.raises(SystemExit):
            zoo.main()
        known = capsys.readouterr().out
        for command in commands:
            if command[3] == program:
                for option in (part for part in command if part.startswith("-") and part != "-m"):
                    assert re.search(rf"(^|[\s\[,]){option}\b", known), f"{program} has no {option}"
