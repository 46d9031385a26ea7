"""``python -m sb3_muzero`` knows its commands; what they do is tested where they are."""

import subprocess
import sys

import pytest

from sb3_muzero.__main__ import COMMANDS, main


def test_it_is_a_program():
    result = subprocess.run([sys.executable, "-m", "sb3_muzero", "--help"], capture_output=True, text=True, check=True)
    assert all(command in result.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_its_own_help(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"usage: python -m sb3_muzero {command} " in capsys.readouterr().out


def test_another_command_is_an_error(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["train"])
    assert "invalid choice: 'train'" in capsys.readouterr().err
