"""The documents keep what they say: every block of code runs, every command and link is good, the README stays short."""

import contextlib
import re
import runpy
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3 import PPO

from sb3_muzero import MuZero, zoo
from sb3_muzero.analysis import imagine_command, report
from sb3_muzero.games import TicTacToeEnv
from sb3_muzero.imagination import fit_renderer

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
GUIDES = sorted((ROOT / "examples" / "guides").glob("*.md"))
NOTES = sorted((ROOT / "examples" / "results" / "notes").glob("*.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(file: Path, language: str) -> list[str]:
    return [block for found, block in BLOCK.findall(file.read_text()) if found == language]


PYTHON = [
    pytest.param(code, id=f"{file.stem}-{number}")
    for file in (README, *GUIDES)
    for number, code in enumerate(blocks(file, "python"))
]
# Lines of bash blocks, and commands between backticks
COMMANDS = [
    line
    for file in (README, *GUIDES)
    for text in (
        *blocks(file, "bash"),
        *(f"{code}\n" for code in re.findall(r"`(p(?:ython|ip) [^`]+)`", BLOCK.sub("", file.read_text()))),
    )
    for line in text.replace("\\\n", " ").splitlines()
]


def commands_of(program: str) -> list[list[str]]:
    """:return: Arguments of each command of the documents that begins so"""
    return [shlex.split(line)[len(program.split()) :] for line in COMMANDS if line.startswith(f"{program} ")]


def run_main(monkeypatch: pytest.MonkeyPatch, arguments: list[str], **run: Any) -> None:
    """Run a module or file as `python` does, in this process."""
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    with contextlib.suppress(SystemExit):
        (runpy.run_path if "path_name" in run else runpy.run_module)(**run, run_name="__main__")


@pytest.mark.parametrize("code", PYTHON)
def test_python_block_runs(code, tmp_path, monkeypatch):
    """Word for word, but that training ends after 600 steps at the latest."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    learn = MuZero.learn
    monkeypatch.setattr(MuZero, "learn", lambda self, steps, *args, **kwargs: learn(self, min(steps, 600), *args, **kwargs))
    learn_ppo = PPO.learn
    monkeypatch.setattr(PPO, "learn", lambda self, steps, *args, **kwargs: learn_ppo(self, min(steps, 600), *args, **kwargs))
    # Diagnostics that were too late for that come early
    exec(compile(code.replace("log_freq=2_000", "log_freq=100"), "README.md", "exec"), {"__name__": "__main__"})


def test_blocks_and_commands_are_found():
    """An edit of the fences must not make the tests of this file pass on nothing."""
    assert len(PYTHON) >= 14 and len(COMMANDS) >= 20
    for file in (README, *GUIDES, *NOTES):
        assert {language for language, _ in BLOCK.findall(file.read_text())} <= {"python", "bash", "bibtex"}
        assert file.read_text().count("```") == 2 * len(BLOCK.findall(file.read_text()))


def test_readme_is_short():
    text = README.read_text()
    assert len(text.splitlines()) <= 200
    assert len(text.split()) <= 1300


def test_readme_links_to_every_guide_and_the_tuning_guide_to_every_note():
    for page, files in ((README, GUIDES), (ROOT / "examples/guides/tuning.md", NOTES)):
        assert {file.name for file in files} <= {Path(link).name for link in re.findall(r"\]\(([^)#]+)", page.read_text())}


def anchors(file: Path) -> set[str]:
    """:return: What GitHub names the headings of a page"""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", file.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", [README, ROOT / "CHANGELOG.md", *GUIDES, *NOTES], ids=lambda file: file.stem)
def test_links_resolve(file):
    text = BLOCK.sub("", file.read_text())
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = (file.parent / path).resolve() if path else file
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link
    # Files that are named without a link
    for path in re.findall(r"`((?:examples|zoo_configs|tests)/[\w./*-]+)`", text):
        assert list(ROOT.glob(path)), path


def test_every_line_of_the_readme_table_of_policies_is_a_policy():
    table = README.read_text().split("## Which policy?")[1].split("##")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(MuZero.policy_aliases)


@pytest.mark.parametrize("file", [README, ROOT / "examples/guides/tuning.md"], ids=lambda file: file.stem)
def test_settings_that_the_tuning_tables_name_are_accepted(file):
    text = file.read_text().split("## Tuning")[-1].split("## Limitations")[0]
    settings = set(re.findall(r"`(\w+=[^`]+)`", text)) - {"deterministic=False"}
    settings = {re.sub(r"^n_envs=\d+, ", "", setting) for setting in settings}
    assert len(settings) >= 8
    for setting in settings:
        eval(f"MuZero('MlpPolicy', 'CartPole-v1', buffer_size=100, {setting})", {"MuZero": MuZero})


def test_zoo_sections_have_at_most_two_lines_of_comment():
    comments = re.findall(r"(?:^ *#.*\n)+", (ROOT / "zoo_configs/muzero.yml").read_text(), re.MULTILINE)
    assert comments and max(comment.count("\n") for comment in comments) <= 2


def test_report_command(tmp_path, monkeypatch):
    (arguments,) = commands_of("python -m sb3_muzero report")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "DECODER_UPDATES", 20)
    MuZero("MlpPolicy", "CartPole-v1", learning_starts=10).learn(100).save("muzero_cartpole")
    run_main(monkeypatch, ["report", *arguments, "--episodes", "8"], mod_name="sb3_muzero")
    assert Path("report.html").exists()


def test_imagine_command(tmp_path, monkeypatch):
    (arguments,) = commands_of("python -m sb3_muzero imagine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(imagine_command, "fit_renderer", partial(fit_renderer, num_updates=5))
    MuZero("MlpPolicy", "CartPole-v1", learning_starts=10).learn(100).save("muzero_cartpole")
    run_main(monkeypatch, ["imagine", *arguments, "--fit-steps", "50"], mod_name="sb3_muzero")
    assert 0 < Path("imagined.gif").stat().st_size < 200_000


def test_play_command(tmp_path, monkeypatch, capsys):
    (arguments,) = commands_of("python -m sb3_muzero play")
    monkeypatch.chdir(tmp_path)
    MuZero("MlpPolicy", TicTacToeEnv(), learning_starts=10).learn(30).save("tic_tac_toe")
    monkeypatch.setattr("builtins.input", lambda prompt: "q")
    run_main(monkeypatch, ["play", *arguments], mod_name="sb3_muzero")
    assert "X to move" in capsys.readouterr().out


def options_are_known(arguments: list[str], known: str) -> None:
    for option in (argument for argument in arguments if argument.startswith("-")):
        assert re.search(rf"(^|[\s\[,]){option}\b", known), f"{option} of {arguments}"


def test_zoo_commands_are_known(monkeypatch, capsys):
    """They run in test_zoo.py; here their programs and options are."""
    commands = commands_of("python -m sb3_muzero.zoo")
    assert len(commands) >= 6
    for program in {command[0] for command in commands}:
        monkeypatch.setattr(sys, "argv", ["zoo", program, "--help"])
        with pytest.raises(SystemExit):
            zoo.main()
        known = capsys.readouterr().out
        for command in commands:
            if command[0] == program:
                options_are_known(command, known)


def test_example_commands_are_known(monkeypatch, capsys):
    commands = [shlex.split(line) for line in COMMANDS if line.startswith("python examples/")]
    assert len(commands) >= 8
    monkeypatch.syspath_prepend(ROOT / "examples")
    for file in sorted({command[1] for command in commands}):
        run_main(monkeypatch, ["--help"], path_name=str(ROOT / file))
        known = capsys.readouterr().out
        assert "usage:" in known or "argparse" not in (ROOT / file).read_text()
        for command in commands:
            if command[1] == file:
                options_are_known(command[2:], known)


def test_no_other_commands_are_promised():
    """Each line is of a kind that a test of this file checks, or installs something."""
    known = tuple(f"python -m sb3_muzero {command} " for command in ("report", "imagine", "play"))
    known += ("python -m sb3_muzero.zoo ", "python examples/")
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    for line in COMMANDS:
        if line.startswith("pip install "):
            assert set(re.findall(r'-e "\.\[(\w+)\]"', line)) <= set(extras), line
        else:
            assert line.startswith(known), line


def test_first_bash_blocks_are_the_quickstart_and_the_test_command():
    """`.ci/run` reads them."""
    assert blocks(README, "bash")[:2] == [
        "pip install torch==2.13.0 -e . && python examples/quickstart.py\n",
        'pip install torch==2.13.0 -e ".[tests]" && pytest -n auto\n',
    ]
