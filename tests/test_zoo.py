"""RL Zoo's own programs with MuZero: every section of our settings trains, and what is wrong in one is named."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
import rl_zoo3.train
import yaml
from conftest import TinyEnv
from gymnasium import spaces
from rl_zoo3 import ALGOS
from stable_baselines3 import PPO

from sb3_muzero import MuZero, zoo

BOX = spaces.Box(-2.0, 2.0, (2,), np.float32)
SECTIONS = yaml.safe_load(zoo.CONF_FILE.read_text())
ENVIRONMENTS = {"default": "CliffWalking-v1", "atari": "ALE/Pong-v5"}  # sections that are not an environment's id


def train(monkeypatch, folder: Path, *arguments: str) -> Path:
    """:return: Where the Zoo has put the model"""
    monkeypatch.setattr(
        sys, "argv", ["train", "--eval-freq", "-1", "--num-threads", "1", "-f", str(folder), "--seed", "0", *arguments]
    )
    rl_zoo3.train.train()
    return max(folder.glob("*/*_*"), key=lambda path: path.stat().st_mtime)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_trains(section, monkeypatch, tmp_path):
    env = ENVIRONMENTS.get(section, section)
    packages = {"MiniGrid": ["minigrid"], "MinAtar": ["sb3_muzero.envs.minatar"], "sb3_muzero": ["sb3_muzero.games"]}.get(
        env.split("-")[0].split("/")[0], []
    )
    overwritten = ["learning_starts:60", "buffer_size:2000", *(["batch_size:8"] if section == "atari" else [])]
    path = train(
        monkeypatch, tmp_path, "--algo", "muzero", "--env", env, "-n", "300", "-params", *overwritten,
        *(["--gym-packages", *packages] if packages else []),
        *(["--env-kwargs", "frameskip:1"] if section == "atari" else []),
    )  # fmt: skip
    model = MuZero.load(next(path.glob("*.zip")))
    assert model.num_timesteps >= 300 and model._n_updates > 0
    settings = SECTIONS[section]
    assert model.n_steps == settings.get("n_steps", 40) and model.gamma == settings.get("gamma", 0.99)


def test_what_only_muzero_has_may_be_a_schedule(monkeypatch, tmp_path):
    path = train(
        monkeypatch, tmp_path, "--algo", "muzero", "--env", "CartPole-v1", "-n", "40",
        "-params", "exploration:'lin_4.0'", "novelty_coef:'lin_0.5'", "search_kwargs:'dict(max_depth=2)'",
    )  # fmt: skip
    model = MuZero.load(next(path.glob("*.zip")))
    assert [model.exploration(p) for p in (1.0, 0.5)] == [4.0, 2.0]
    assert [model.novelty_coef(p) for p in (1.0, 0.5)] == [0.5, 0.25]
    assert model.search_kwargs == {"max_depth": 2}


def test_a_two_player_game_is_not_evaluated_by_the_zoo(monkeypatch, tmp_path):
    arguments = ["--algo", "muzero", "--env", "sb3_muzero/TicTacToe-v0", "--gym-packages", "sb3_muzero.games"]
    arguments += ["-n", "200", "--eval-freq", "50", "-params", "learning_starts:60", "n_envs:1"]
    with pytest.warns(UserWarning, match=r"without evaluation \(`--eval-freq -1`\)\. EvalCallback .*play_match"):
        path = train(monkeypatch, tmp_path, *arguments)
    assert MuZero.load(next(path.glob("*.zip"))).num_timesteps >= 200 and not (path / "evaluations.npz").exists()


def test_other_algorithms_stay_as_they_are(monkeypatch, tmp_path):
    path = train(monkeypatch, tmp_path, "--algo", "ppo", "--env", "CartPole-v1", "-n", "64", "-params", "n_steps:8")
    assert PPO.load(next(path.glob("*.zip"))).num_timesteps >= 64


@pytest.mark.parametrize(
    "given, message",
    [
        ("learning_rat:0.1", r"no hyperparameter `learning_rat` \(in .*muzero.yml or -params\): did you mean `learning_rate`"),
        ("zzz:1", "no hyperparameter `zzz`.*, but policy, env, learning_rate"),
        ("exploration:'cos_1'", "`exploration` must be a number or lin_<start>, got 'cos_1'"),
    ],
)
def test_what_muzero_does_not_know_is_named(given, message, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(monkeypatch, tmp_path, "--algo", "muzero", "--env", "CartPole-v1", "-params", given)
    assert not any(tmp_path.iterdir())  # no run without a model, which `enjoy` would take for the latest


def test_a_yaml_of_the_users_own(monkeypatch, tmp_path):
    (tmp_path / "mine.yml").write_text("CartPole-v1: {policy: MlpPolicy, n_timesteps: 40, n_steps: 7}")
    folder = tmp_path / "logs"
    path = train(monkeypatch, folder, "--algo", "muzero", "--env", "CartPole-v1", "-conf", str(tmp_path / "mine.yml"))
    assert MuZero.load(next(path.glob("*.zip"))).n_steps == 7


@pytest.mark.parametrize(
    "space", [spaces.Discrete(2), BOX, spaces.MultiDiscrete([5, 6])], ids=lambda space: type(space).__name__
)
def test_whatever_is_sampled_is_allowed(space):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(50):
        trial = study.ask()
        sampled = zoo.sample_muzero_params(trial, 0, 1, {}, space)
        MuZero(env=TinyEnv(action_space=space), policy="MlpPolicy", device="cpu", **sampled)
        assert zoo.convert_muzero_params(trial.params) == sampled
    assert 0.95 <= sampled["gamma"] < 1
    is_sampled = not isinstance(space, spaces.Discrete)
    assert ("action_kwargs" in sampled["policy_kwargs"]) == ("search_kwargs" in sampled) == is_sampled


@pytest.mark.parametrize(
    "env, suggested",
    [("CartPole-v1", []), ("Pendulum-v1", ["num_candidates_pow", "inner_share", "value_scale", "num_bins"])],
)
def test_tuning_samples_what_suits_the_action_space(env, suggested, monkeypatch, tmp_path):
    seen: list[dict] = []

    def sample(manager):
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
        zoo.HYPERPARAMS_SAMPLER["muzero"](trial, manager.n_actions, 1, {})
        seen.append(trial.params)

    monkeypatch.setattr(zoo.ExperimentManager, "hyperparameters_optimization", sample)
    monkeypatch.setattr(sys, "argv", ["train", "--algo", "muzero", "--env", env, "-optimize", "-n", "40", "-f", str(tmp_path)])
    rl_zoo3.train.train()
    assert {"num_candidates_pow", "inner_share", "value_scale", "num_bins"} & seen[0].keys() == set(suggested)


def test_tuning_continuous_actions(monkeypatch, tmp_path):
    seen: list[dict] = []

    class Seen(MuZero):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            seen.append({"given": kwargs["policy_kwargs"]["action_kwargs"], "used": self.policy.actions})

    monkeypatch.setitem(ALGOS, "muzero", Seen)
    trials = ["--n-trials", "2", "--pruner", "none", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots"]
    monkeypatch.setattr(
        sys, "argv", ["train", "--algo", "muzero", "--env", "Pendulum-v1", "-optimize", "-n", "120", "-f", str(tmp_path),
                      "--num-threads", "1", "--seed", "0", *trials, "-params", "learning_starts:60"],
    )  # fmt: skip
    rl_zoo3.train.train()
    (file,) = tmp_path.rglob("report_*.csv")
    rows = list(csv.DictReader(file.open()))
    assert [row["state"] for row in rows] == ["COMPLETE"] * 2 and len(seen) == 2  # the Zoo prunes trials that fail
    for row, model in zip(sorted(rows, key=lambda row: int(row["number"])), seen, strict=True):
        used, bins = model["used"], row["params_num_bins"]
        assert used.num_candidates == model["given"]["num_candidates"] or used.has_all_candidates
        assert model["given"]["num_candidates"] == 2 ** int(row["params_num_candidates_pow"])
        assert used.num_policy_outputs == (int(float(bins)) if bins else 2)
        assert -2000 < float(row["value"]) < 0


def test_registration_is_an_import(tmp_path):
    code = "import rl_zoo3; assert 'muzero' not in rl_zoo3.ALGOS; import sb3_muzero.zoo; print(rl_zoo3.ALGOS['muzero'])"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "<class 'sb3_muzero.muzero.MuZero'>" and ALGOS["muzero"] is MuZero


def test_evaluations_end_where_the_task_has_no_time_limit(monkeypatch, tmp_path, capsys):
    """In CliffWalking-v1, an untrained policy often stays where it is."""
    monkeypatch.setattr("sb3_muzero.common.time_limits.MAX_EPISODE_STEPS", 30)
    folder = train(
        monkeypatch, tmp_path, "--algo", "muzero", "--env", "CliffWalking-v1", "-n", "60", "--eval-freq", "50",
        "--eval-episodes", "2", "-params", "learning_starts:20", "num_simulations:2",
    )  # fmt: skip
    assert "CliffWalking-v1 has no time limit: episodes of evaluations are truncated after 30 steps" in capsys.readouterr().out
    assert np.load(folder / "evaluations.npz")["ep_lengths"].max() <= 30
    env = zoo._create_test_env("CliffWalking-v1", hyperparams={}, should_render=False)
    assert env.get_attr("_max_episode_steps") == [30]


def run(cwd: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "sb3_muzero.zoo", *arguments]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ | {"MPLBACKEND": "agg"})
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout


@pytest.mark.parametrize(
    "arguments, expected", [([], "usage"), (["--help"], "record-video"), (["nothing"], "unknown program 'nothing'")]
)
def test_usage(arguments, expected, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["zoo", *arguments])
    try:
        zoo.main()
        assert expected in capsys.readouterr().out
    except SystemExit as error:
        assert expected in str(error)


class FakeHub:
    """The Hugging Face Hub without the network: an empty repository, and what is uploaded to it."""

    uploaded: dict[str, Path] = {}

    def __init__(self, *args, **kwargs):
        pass

    def create_repo(self, repo_id, **kwargs):
        return f"https://huggingface.co/{repo_id}"

    def snapshot_download(self, repo_id, local_dir):
        Path(local_dir).mkdir(parents=True)

    def upload_folder(self, repo_id, folder_path, **kwargs):
        self.uploaded[repo_id] = Path(folder_path)


def test_push_to_hub(monkeypatch, tmp_path):
    train(monkeypatch, tmp_path / "logs", "--algo", "muzero", "--env", "CartPole-v1", "-n", "600", "-params", "gamma:0.98")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    arguments = ["--algo", "muzero", "--env", "CartPole-v1", "-f", "logs", "-orga", "me", "--no-render", "--num-threads", "1"]
    monkeypatch.setattr(sys, "argv", ["zoo", "push-to-hub", *arguments])
    zoo.main()
    folder = FakeHub.uploaded["me/muzero-CartPole-v1"]
    assert MuZero.load(folder / "muzero-CartPole-v1.zip").gamma == 0.98
    card = (folder / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["library_name"] == "stable-baselines3"
    (result,) = metadata["model-index"][0]["results"]
    assert result["dataset"]["name"] == "CartPole-v1"
    assert re.fullmatch(r"[\d.]+ \+/- [\d.]+", result["metrics"][0]["value"])
    assert "('gamma', 0.98)" in card  # its settings
    assert "rl_zoo3" not in card.replace("rl-baselines3-zoo", "")  # whose programs do not know MuZero
    for program in ("load-from-hub", "enjoy", "train", "push-to-hub"):
        assert f"python -m sb3_muzero.zoo {program} --algo muzero --env CartPole-v1" in card


def test_hugging_faces_own_packaging(tmp_path):
    """What ``huggingface_sb3.package_to_hub`` does before it uploads."""
    model = MuZero("MlpPolicy", "CartPole-v1", learning_starts=10, seed=0).learn(40)
    model.save(tmp_path / "model")
    zoo.hub._generate_config("model", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_simulations"] == 16 and "MuZeroPolicy" in config["policy_class"][":serialized:"] + str(config)
    mean, std = zoo.hub._evaluate_agent(model, model.get_env(), 2, True, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["mean_reward"] == mean
    card = zoo.hub._generate_model_card("MuZero", "CartPole-v1", mean, std)
    assert f"{mean:.2f} +/- {std:.2f}" in str(card)


@pytest.mark.slow
def test_the_zoos_programs(tmp_path):
    cartpole = ["--algo", "muzero", "--env", "CartPole-v1"]
    assert "muzero" in run(tmp_path, "train", "--help") and "muzero" in run(tmp_path, "enjoy", "--help")
    run(tmp_path, "train", *cartpole, "-n", "6000", "--eval-freq", "3000", "--save-replay-buffer", "--save-freq", "5000",
        "--num-threads", "1", "--seed", "0")  # fmt: skip
    first = tmp_path / "logs" / "muzero" / "CartPole-v1_1"
    assert {"best_model.zip", "CartPole-v1.zip", "replay_buffer.pkl", "rl_model_5000_steps.zip"} <= {
        p.name for p in first.iterdir()
    }
    played = run(tmp_path, "enjoy", *cartpole, "-f", "logs", "--no-render", "-n", "2100", "--load-best", "--num-threads", "1")
    assert float(played.split("Mean reward: ")[1].split()[0]) >= 195, played
    continued = run(tmp_path, "train", *cartpole, "-n", "1000", "-i", str(first / "CartPole-v1.zip"), "--num-threads", "1")
    assert "Loading replay buffer" in continued
    assert "Results written" in run(tmp_path, "benchmark", "--log-dir", "logs", "--no-hub", "-n", "1000", "--num-threads", "1")
    assert "| muzero |" in (tmp_path / "benchmark.md").read_text().replace("|muzero|", "| muzero |")
    run(tmp_path, "plot-train", *cartpole, "-f", "logs", "-w", "10")
    run(tmp_path, "record-video", *cartpole, "-f", "logs", "-n", "50", "-o", "videos")
    assert list((tmp_path / "videos").glob("*.mp4"))
    trials = ["--n-trials", "5", "--n-startup-trials", "2", "--n-evaluations", "2", "--eval-episodes", "2", "--no-optim-plots"]
    tuned = run(tmp_path, "tune", *cartpole, "-n", "1000", "--num-threads", "1", "--seed", "0", *trials)
    assert "Number of finished trials:  5" in tuned
    assert np.isfinite(float(tuned.split("Value: ")[1].split()[0]))
