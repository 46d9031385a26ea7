"""Every example can be imported, says how it is used, and runs."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))
LIBRARIES = {"mctx_peer"}  # examples that others import, without a command line


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    """Run an example in this process, which has already imported and compiled what it needs."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


@pytest.mark.parametrize("name", SCRIPTS)
def test_import(name, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    namespace = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name=name)
    assert name in LIBRARIES or callable(namespace["main"])


@pytest.mark.parametrize("name", sorted(set(SCRIPTS) - LIBRARIES))
def test_help(name, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="0"):
        run(monkeypatch, name, "--help")
    shown = capsys.readouterr().out
    assert f"usage: {name}.py" in shown and f"python examples/{name}.py" in shown


def test_quickstart(tmp_path, monkeypatch, capsys):
    run(monkeypatch, "quickstart", "--steps", 150, "--out", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "agent.gif", "evaluations.npz", "learning_curve.png", "model.zip"
    }  # fmt: skip
    assert "CartPole-v1 after 150 steps: return" in capsys.readouterr().out


def test_quickstart_ends_where_the_task_has_no_time_limit(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sb3_muzero.common.time_limits.MAX_EPISODE_STEPS", 20)
    run(monkeypatch, "quickstart", "--env", "CliffWalking-v1", "--steps", 40, "--out", tmp_path)
    assert np.load(tmp_path / "evaluations.npz")["ep_lengths"].max() <= 20
    assert "CliffWalking-v1 has no time limit: episodes of evaluations are truncated after 20" in capsys.readouterr().out


def test_compare_baselines(tmp_path, monkeypatch, capsys):
    file = tmp_path / "compare.json"
    budget = ["--steps", 300, "--eval-every", 150, "--final-episodes", 20, "--seeds", 1, "--jobs", 1]
    run(monkeypatch, "compare_baselines", *budget, "--variants", "num_simulations=4", "--json", file)
    record = json.loads(file.read_text())
    assert [run["algo"] for run in record["runs"]] == ["dqn", "muzero", "muzero num_simulations=4", "ppo"]
    assert all(len(run["returns"]) == 2 for run in record["runs"])
    assert record["settings"]["ppo"]["n_steps"] == 32 and record["settings"]["dqn"]["train_freq"] == 256  # RL Zoo's
    assert "| PPO | >300 | >300 |" in capsys.readouterr().out
    assert file.with_suffix(".png").exists()


def test_self_play(tmp_path, monkeypatch, capsys):
    budget = [
        "--set",
        "n_timesteps=64",
        "learning_starts=32",
        "num_simulations=4",
        "--evaluations",
        1,
        "--curve-games",
        2,
        "--games",
        2,
    ]
    run(monkeypatch, "self_play", "TicTacToe", *budget, "--depths", 1, "--curve-depths", 1, "--output", tmp_path)
    assert "minimax_1, all seeds:" in capsys.readouterr().out
    (result,) = json.loads((tmp_path / "self_play_TicTacToe.json").read_text())["runs"]
    assert {"minimax_1", "leaves_first", "leaves_second", "errors"} == set(result["grade"]) == set(result["grade_with_rules"])


def test_soak(tmp_path, monkeypatch):
    run(monkeypatch, "soak", "--scale", 0.001, "--json", tmp_path / "soak.json")
    cases = json.loads((tmp_path / "soak.json").read_text())["results"]
    assert len(cases) == 3 and all(len(figures) == 20 for figures in cases.values())


def test_report(tmp_path, monkeypatch, capsys):
    run(monkeypatch, "report", "--output", tmp_path)
    assert "| CartPole-v1 | steps to 475, median | <= 3 k |" in capsys.readouterr().out
    results = EXAMPLES / "results"
    assert {f"{path.stem}.png" for path in results.glob("compare_*.json")} <= {path.name for path in tmp_path.iterdir()}


def test_benchmark_training(tmp_path, monkeypatch):
    file = tmp_path / "training.json"
    budget = ["--widths", 16, "--batch-sizes", 8, "--repeats", 2, "--warmup", 2]
    run(monkeypatch, "benchmark_training", *budget, "--json", file)
    (figures,) = json.loads(file.read_text())["results"]
    assert figures["width"] == 16 and min(figures["update"], figures["backward"], figures["gemm"]) > 0


def test_benchmark_atari(tmp_path, monkeypatch):
    file = tmp_path / "atari.json"
    budget = "--steps 48 --updates 1 --warmup-steps 480 --warmup-updates 1 --memory-steps 400 --batch-size 4".split()
    run(monkeypatch, "benchmark_atari", *budget, "--num-simulations", 2, "--json", file)
    assert json.loads(file.read_text())["results"]["updates per second"] > 0


def test_masked_actions(tmp_path, monkeypatch, capsys):
    file = tmp_path / "masked.json"
    run(monkeypatch, "masked_actions", "--seeds", 0, "--steps", 520, "--evaluations", 1, "--json", file)
    assert [(run["algo"], len(run["returns"])) for run in json.loads(file.read_text())["runs"]] == [
        ("MuZero", 1),
        ("MaskablePPO", 1),
    ]
    assert "MaskablePPO: median return" in capsys.readouterr().out
