"""Every example can be imported, says how it is used, and runs."""

import importlib
import itertools
import json
import runpy
import shlex
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))
LIBRARIES = {"mctx_peer", "tasks"}  # examples that others import, without a command line


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


@pytest.fixture
def example(monkeypatch):
    """:return: Function that imports an example"""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


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


@pytest.mark.parametrize("env_id", ["Bandit", "DotBandit", "NoisyCartPole", "ConstantCost", "CliffWalking", "TwoRooms", "Arm"])
def test_tasks_are_environments(env_id, example):
    assert f"tasks/{env_id}-v0" in example("tasks").TASKS
    env = gym.make(f"tasks/{env_id}-v0")
    check_env(env, warn=False)
    env.reset(seed=0)
    env.action_space.seed(0)
    ends = [env.step(env.action_space.sample())[2:4] for _ in range(env.spec.max_episode_steps)]
    assert any(terminated or truncated for terminated, truncated in ends)


def play(env_id, policy, env=None, seed=0):
    """:return: Return of an episode, and its steps"""
    env = env or gym.make(env_id)
    obs, _ = env.reset(seed=seed)
    total, steps, over = 0.0, 0, False
    while not over:
        obs, reward, terminated, truncated, _ = env.step(policy(obs))
        total, steps, over = total + reward, steps + 1, terminated or truncated
    return total, steps


def test_best_returns_of_tasks(example):
    example("tasks")
    assert play("tasks/Bandit-v0", lambda obs: int(obs[3] > 0)) == (50, 50)
    assert play("tasks/Bandit-v0", lambda obs: int(obs[3] <= 0)) == (-50, 50)
    assert play("tasks/DotBandit-v0", lambda obs: int(obs[:, :, 10:].any())) == (20, 20)
    assert play("tasks/ConstantCost-v0", lambda obs: 1) == (-5000, 5)
    assert play("tasks/ConstantCost-v0", lambda obs: 0) == (-100_000, 100)
    cliff = {36: 0} | {24 + x: 1 for x in range(11)} | {35: 2}  # up, right along the cliff, down
    assert play("tasks/CliffWalking-v0", cliff.get) == (-13, 13)
    assert play("tasks/CliffWalking-v0", lambda obs: 0) == (-200, 200)

    def through_the_door(obs):
        x, y = obs
        if x <= 5:
            return 0 if y == 3 else 2 if y < 3 else 3
        return 3 if y > 0 else 0

    total, steps = play("tasks/TwoRooms-v0", through_the_door)
    assert total == 1 and steps <= 16
    assert play("tasks/TwoRooms-v0", lambda obs: 0) == (0, 100)  # into the wall


def test_joints_of_the_arm_depend_on_each_other(example):
    tasks = example("tasks")
    env = gym.make("tasks/Arm-v0")
    arm, turns = env.unwrapped, tasks.Arm.TURNS
    assert env.action_space.nvec.prod() == 2401 > 1000
    joint_actions = np.array(list(itertools.product(range(7), repeat=4)))

    def distances(actions):
        return np.linalg.norm(arm.tip(arm.angles + turns[actions]) - arm.target, axis=-1)

    def closest(obs):
        return joint_actions[distances(joint_actions).argmin()]

    def closest_alone(obs):
        moves = 3 + (np.arange(7)[:, None, None] - 3) * np.eye(4, dtype=int)  # of one joint, the others standing still
        return distances(moves).argmin(axis=0)

    def mean_return(policy):
        return np.mean([play("tasks/Arm-v0", policy, env, seed)[0] for seed in range(10)])

    assert mean_return(closest) > -2 and mean_return(closest_alone) < -9 and mean_return(lambda obs: np.full(4, 3)) < -25
    obs, _ = env.reset(seed=0)
    np.testing.assert_allclose(np.hypot(*obs[-2:]), np.linalg.norm(arm.tip(arm.angles) - arm.target), rtol=1e-5)
    assert np.hypot(*arm.tip(np.zeros(4))) == 1


def test_compare_baselines_with_defaults_and_other_seeds(tmp_path, monkeypatch):
    file = tmp_path / "untuned.json"
    options = "--env Acrobot-v1 --threshold 0 --steps 30 --eval-every 15 --final-episodes 20 --jobs 1 --seeds 2".split()
    run(monkeypatch, "compare_baselines", *options, "--defaults", "--first-seed", 100, "--algos", "muzero", "--json", file)
    run(monkeypatch, "compare_baselines", *options, "--defaults", "--first-seed", 101, "--algos", "muzero", "--json", file,
        "--resume")  # fmt: skip
    record = json.loads(file.read_text())
    assert record["settings"] == {"muzero": {}}
    assert [run["seed"] for run in record["runs"]] == [100, 101, 102]


def test_names_of_comparisons_say_what_they_are(example, monkeypatch):
    compare = example("compare_baselines")
    for options, name in {
        "": "compare_Acrobot-v1.json",
        "--defaults": "untuned_Acrobot-v1.json",
        "--first-seed 100": "trials_compare_Acrobot-v1.json",  # must not be taken for reported seeds
        "--defaults --first-seed 100": "trials_untuned_Acrobot-v1.json",
    }.items():
        monkeypatch.setattr(sys, "argv", ["compare_baselines.py", "--env", "Acrobot-v1", *options.split()])
        assert compare.parse_args().json.name == name


@pytest.mark.parametrize("algo", ["muzero", "ppo", "dqn"])
def test_defaults_leave_out_settings_but_not_wrappers(algo, example):
    compare = example("compare_baselines")
    assert compare.settings_for(algo, "Acrobot-v1", {}) and not compare.settings_for(algo, "Acrobot-v1", {}, defaults=True)
    # The same wrappers for all, with settings of their own or without
    for env_id, defaults in (("Blackjack-v1", False), ("Blackjack-v1", True), ("MiniGrid-DoorKey-5x5-v0", True)):
        settings = compare.settings_for(algo, env_id, {}, defaults)
        assert settings == compare.settings_for("muzero", env_id, {}, True) and list(settings) == ["env_wrapper"]


@pytest.mark.parametrize(
    "env_id, policies",
    {
        "Blackjack-v1": ["MlpPolicy"] * 3,
        "MiniGrid-Empty-8x8-v0": ["MlpPolicy"] * 3,
        "tasks/CliffWalking-v0": ["MlpPolicy"] * 3,
        "tasks/DotBandit-v0": ["CnnPolicy", "MlpPolicy", "MlpPolicy"],  # too small for SB3's convolutions
    }.items(),
)
def test_environments_without_settings_get_a_policy_that_fits(env_id, policies, example, monkeypatch):
    if env_id.startswith("MiniGrid"):
        pytest.importorskip("minigrid")
    compare = example("compare_baselines")
    example("tasks")
    monkeypatch.setattr(sys, "argv", ["compare_baselines.py", "--env", env_id, "--threshold", "1", "--defaults"])
    args = compare.parse_args()
    assert args.algos == ["muzero", "ppo", "dqn"]
    for algo, policy in zip(args.algos, policies, strict=True):
        model, eval_env = compare.make_model(algo, compare.settings_for(algo, env_id, {}, True), 0, args)
        assert isinstance(model.policy, type(model).policy_aliases[policy])
        model.predict(eval_env.reset())


CONTINUOUS = ["muzero", "ppo", "sac", "tqc"]


def test_compare_baselines_with_continuous_actions(tmp_path, monkeypatch, capsys):
    file = tmp_path / "compare.json"
    budget = "--steps 40 --eval-every 20 --final-episodes 20 --seeds 1 --jobs 1".split()
    run(monkeypatch, "compare_baselines", "--env", "Pendulum-v1", *budget, "--env-kwargs", "max_episode_steps=20",
        "--set", "learning_starts=20", "--json", file)  # fmt: skip
    record = json.loads(file.read_text())
    assert [run["algo"] for run in record["runs"]] == CONTINUOUS and record["protocol"]["threshold"] == -200
    assert all(len(run["returns"]) == 2 for run in record["runs"])
    assert record["settings"]["ppo"]["use_sde"] and record["settings"]["sac"]["learning_rate"] == 1e-3  # RL Zoo's
    shown = capsys.readouterr().out
    assert all(f"| {label} | " in shown for label in ("MuZero", "PPO", "SAC", "TQC"))


@pytest.mark.parametrize("algo", CONTINUOUS[1:])
@pytest.mark.parametrize("env_id", ["MountainCarContinuous-v0", "LunarLanderContinuous-v3", "BipedalWalker-v3", "Hopper-v5"])
def test_settings_of_rl_zoo_make_models(env_id, algo, example, monkeypatch):
    compare = example("compare_baselines")
    settings = compare.settings_for(algo, env_id, {})
    assert settings["policy"] == "MlpPolicy" and settings["n_timesteps"] >= 20_000  # Hopper's are those of another version
    if env_id.startswith("Hopper"):
        pytest.importorskip("mujoco")
    monkeypatch.setattr(sys, "argv", ["compare_baselines.py", "--env", env_id])
    args = compare.parse_args()
    assert args.algos == CONTINUOUS
    model, eval_env = compare.make_model(algo, settings | {"n_envs": 1}, 0, args)
    assert isinstance(model, compare.ALGORITHMS[algo]) and bool(settings.get("normalize")) == isinstance(
        eval_env, compare.VecNormalize
    )
    assert model.use_sde == settings.get("use_sde", False)
    model.predict(eval_env.reset(), deterministic=True)


def test_settings_of_vec_normalize_are_read(example, monkeypatch):
    compare = example("compare_baselines")
    monkeypatch.setattr(sys, "argv", ["compare_baselines.py", "--env", "Pendulum-v1"])
    settings = {"normalize": "{'norm_obs': False, 'norm_reward': True}", "gamma": 0.9}
    model, eval_env = compare.make_model("sac", settings, 0, compare.parse_args())
    assert (model.env.norm_obs, model.env.norm_reward, model.env.gamma) == (False, True, 0.9)
    assert (eval_env.norm_obs, eval_env.norm_reward, eval_env.training) == (False, False, False)


@pytest.mark.parametrize(
    "wrappers",
    [
        {"rl_zoo3.wrappers.FrameSkip": {"skip": 2}},
        ["gymnasium.wrappers.FlattenObservation", {"rl_zoo3.wrappers.FrameSkip": {"skip": 2}}],
        [{"rl_zoo3.wrappers.FrameSkip": {"skip": 2}}, {"gymnasium.wrappers.FlattenObservation": None}],
    ],
)
def test_wrappers_with_arguments_are_read(wrappers, example, monkeypatch):
    compare = example("compare_baselines")
    monkeypatch.setattr(sys, "argv", ["compare_baselines.py", "--env", "Pendulum-v1"])
    model, eval_env = compare.make_model("sac", {"env_wrapper": wrappers}, 0, compare.parse_args())
    for env in (model.env, eval_env):
        env.reset()
        for _ in range(100):  # frames are skipped: half of Pendulum's 200 steps
            assert not env.step([env.action_space.sample()] * env.num_envs)[2].any() or _ == 99


def test_a_dictionary_of_several_wrappers_is_refused(example):
    compare = example("compare_baselines")
    with pytest.raises(ValueError, match=r"`env_wrapper` must be a list to have several wrappers, got \{'a': 1, 'b': 2\}"):
        compare.wrapper_class({"a": 1, "b": 2})


def test_schedules_end_after_the_steps_of_the_comparison(tmp_path, example, monkeypatch):
    compare = example("compare_baselines")
    file = tmp_path / "compare.json"
    options = ["--env", "LunarLanderContinuous-v3", "--steps", "40000", "--algos", "sac", "muzero", "--json", str(file)]

    def record(*more):
        monkeypatch.setattr(sys, "argv", ["compare_baselines.py", *options, *more])
        return compare.new_record(compare.parse_args())

    made = record()
    assert made["settings"]["sac"]["learning_rate"] == "lin_7.3e-4" and made["settings"]["sac"]["n_timesteps"] == 40_000
    # The other runs of a file have schedules of another length
    old = {**made, "runs": [{"algo": "sac", "seed": 0}], "settings": {"sac": made["settings"]["sac"] | {"n_timesteps": 5e5}}}
    file.write_text(json.dumps(old))
    resumed = record("--resume")
    assert resumed["settings"] == made["settings"] | old["settings"] and resumed["runs"] == old["runs"]
    old["settings"]["sac"]["gamma"] = 0.5
    file.write_text(json.dumps(old))
    with pytest.raises(SystemExit, match="was made with other settings"):
        record("--resume")


class Lottery(gym.Env):
    """Episodes as long as the action says, which draw a number at each step, and return the one that they began with."""

    observation_space, action_space = gym.spaces.Box(0.0, 1.0, (1,)), gym.spaces.Discrete(9)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.start, self.steps = self.np_random.random(), 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.np_random.random()
        self.steps += 1
        over = self.steps > action
        return np.zeros(1, np.float32), self.start * over, over, False, {}


@pytest.mark.parametrize("episodes", [20, 50])
def test_all_algorithms_are_evaluated_from_the_same_starts(episodes, example):
    compare = example("compare_baselines")

    class Always:
        def __init__(self, action):
            self.action = action

        def predict(self, observations, *args, **kwargs):
            return np.full(len(observations), self.action), None

    def mean_return(action, seed=compare.FINAL_SEED):
        eval_env = compare.make_vec_env(Lottery, compare.CURVE_EPISODES)
        eval_env.reset(), eval_env.step([0] * compare.CURVE_EPISODES)
        return compare.evaluate(Always(action), eval_env, episodes, seed)

    assert mean_return(0) == mean_return(3) == mean_return(8) != mean_return(0, compare.CURVE_SEED)


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
    assert "| CartPole-v1 | 475 in median <= 2.5 k, worst of 10 <= 4 k |" in capsys.readouterr().out
    results = EXAMPLES / "results"
    assert {f"{path.stem}.png" for path in results.glob("compare_*.json")} <= {path.name for path in tmp_path.iterdir()}


def comparison(env, **algos):
    """:return: Record of runs over 20 k steps with a threshold of 1; each seed is (steps to the threshold, final return)"""
    runs = [
        {"algo": algo, "seed": seed, "solved": {"steps": solved, "cpu": solved / 1000}, "final_return": final,
         "steps": [1000, solved, 20_000], "returns": [0.0, float(solved < 20_000), 0.0]}
        for algo, seeds in algos.items() for seed, (solved, final) in enumerate(seeds)
    ]  # fmt: skip
    return {"protocol": {"env": env, "threshold": 1.0, "steps": 20_000}, "runs": runs}


def cells(report, folder, task, bar):
    (line,) = [
        line for line in report.thresholds_table(folder).splitlines() if line.startswith(f"| {task}") and f"| {bar}" in line
    ]
    return tuple(line.strip("| ").split(" | ")[2:])


def test_report_says_whether_a_bar_is_met(tmp_path, example):
    report = example("report")
    row = report.Row("X", ["compare_X"], "5 by 9 k", report.reaches(1, median=4000, worst=9000), 3)
    assert report.evaluate(row, tmp_path) == ("not run", "-")
    for steps, cell in {
        (3000, 9000, 4000): "yes",
        (3000, 9000, 5000): "no",
        (2000, 10_000, 3000): "no",
        (3000, 3000): "2 of 3 seeds",
        (3000, 9000, 4000, 15_000): "yes",  # one seed more than the bar speaks of
    }.items():
        record = comparison("X", muzero=[(value, 1.0) for value in steps])
        (tmp_path / "compare_X.json").write_text(json.dumps(record))
        assert report.evaluate(row, tmp_path)[1] == cell
    assert report.evaluate(row, tmp_path)[0] == "median 4 k, worst 9 k (3 k, 4 k, 9 k)"
    against = report.Row("X", ["compare_X"], "ahead of PPO", report.ahead_of("ppo"), 3)
    assert report.evaluate(against, tmp_path) == ("PPO not run", "-")
    (tmp_path / "compare_X.json").write_text(json.dumps(comparison("X", muzero=[(3000, 1.0)] * 3, ppo=[(4000, 1.0)])))
    assert report.evaluate(against, tmp_path)[1] == "1 of 3 seeds", "of the other algorithm"


def test_report_finds_no_bar_met_that_nobody_reached(example):
    record = comparison("X", muzero=[(20_000, 0.0)] * 3, ppo=[(20_000, 0.0)] * 3)
    for run in record["runs"]:
        run["solved"] = None
    assert not example("report").cpu_seconds("ppo")(record)[1]


@pytest.mark.parametrize(
    "ours, theirs, standing",
    [
        ([(3000, 1.0)] * 3, [(4000, 1.0)] * 3, "ahead"),
        ([(3000, 1.0)] * 3, [(3000, 1.0)] * 3, "level"),
        ([(3000, 1.0)] * 3, [(3000, 0.9)] * 3, "ahead"),
        ([(3000, 0.9)] * 3, [(4000, 1.0)] * 3, "behind"),  # sooner, but worse in the end
        ([(3000, 0.9), (3000, 1.0), (3000, 0.7)], [(4000, 1.0)] * 3, "ahead"),  # by less than the spread
        ([(2000, 1.0), (5000, 1.0), (9000, 1.0)], [(4000, 1.0)] * 3, "level"),
        ([(20_000, 0.2)] * 3, [(20_000, 0.1)] * 3, "ahead"),  # neither reaches the threshold
    ],
)
def test_report_compares_steps_and_returns(ours, theirs, standing, example):
    assert example("report").standing(comparison("X", muzero=ours, ppo=theirs), "ppo") == standing


def test_report_compares_returns_on_the_way_and_seconds_with_sac(tmp_path, example):
    report = example("report")
    record = comparison("X", muzero=[(3000, 1.0)] * 3, sac=[(4000, 0.9)] * 3, tqc=[(4000, 1.1)] * 3)
    for run in record["runs"]:
        run["steps"], run["returns"] = [1000, 2000, 4000], [0.0, {"muzero": 5.0, "sac": 4.0, "tqc": 6.0}[run["algo"]], 7.0]
        run["total"] = {"cpu": {"muzero": 4.0, "sac": 4.0, "tqc": 3.0}[run["algo"]]}
    assert report.not_behind("sac", at=[2000])(record) == ("2 k: 5 (5, 5, 5), SAC 4", True)
    on_the_way = report.not_behind("sac", "tqc", at=[4000, 1500])
    assert on_the_way(record) == ("4 k: 7 (7, 7, 7), SAC 7, TQC 7; 1.5 k: 5 (5, 5, 5), SAC 4, TQC 6", False)
    assert report.not_behind("sac")(record) == ("1 (1, 1, 1), SAC 0.9", True)
    assert report.not_behind("tqc")(record)[1] is False
    record["runs"][0]["final_return"] = 0.5  # now behind by less than the spread of seeds
    assert report.not_behind("tqc")(record)[1] is True
    with pytest.raises(LookupError, match="MuZero not run for 5 k"):
        report.not_behind("sac", at=[5000])(record)
    assert report.cpu_per_step("sac")(record) == ("1.00 ms (1, 1, 1), SAC 1.00 ms (1, 1, 1)", True)
    assert not report.cpu_per_step("tqc")(record)[1]
    assert report.cpu_seconds("sac")(record) == ("3.0 s (3, 3, 3), SAC 4.0 s (4, 4, 4)", True)
    text, is_met = report.beside(report.reaches(7, median=4000), "sac")(record)
    assert (text, is_met) == ("median 4 k, worst 4 k (4 k, 4 k, 4 k); SAC 2 k, 0.9", True)


def test_table_of_continuous_actions(tmp_path, example):
    report = example("report")
    record = comparison("Pendulum-v1", muzero=[(3000, -150.0), (2000, -160.0)])
    for run in record["runs"]:
        run |= {"total": {"cpu": 60.4}, "returns": [-900.0, -150.0, -300.0]}
    (tmp_path / "compare_Pendulum-v1.json").write_text(json.dumps(record))
    rows = report.sampled_table(tmp_path).splitlines()
    assert rows[2:4] == [
        "| Pendulum-v1, -200 | MuZero | 2.5 k (2 k, 3 k) | -155 (-160, -150) | 60 |",
        "|  | SAC | - | - | - |",
    ]
    assert rows[-1] == "|  | PPO | - | - | - |" and len(rows) == 2 + 5 * 4 + 2
    assert {row.task for row in report.ROWS} > report.SAMPLED.keys()
    guide = (EXAMPLES / "guides" / "results.md").read_text()
    assert report.sampled_table() in guide, "python examples/report.py prints the table of the guide"


def test_report_counts_untuned_tasks(tmp_path, example):
    report = example("report")
    for number, env_id in enumerate(report.UNTUNED):
        record = comparison(env_id, muzero=[(3000, 1.0)] * 5, ppo=[(4000, 1.0)] * 5, dqn=[(4000 if number else 3000, 1.0)] * 5)
        (tmp_path / f"untuned_{env_id.replace('/', '_')}.json").write_text(json.dumps(record))
    assert cells(report, tmp_path, "five untuned tasks", "") == ("ahead of both on 4, behind on none", "yes")
    assert cells(report, tmp_path, report.UNTUNED[0], "defaults")[1] == "no"
    record["runs"] = [run | {"final_return": 0.5} if run["algo"] == "muzero" else run for run in record["runs"]]
    (tmp_path / f"untuned_{env_id.replace('/', '_')}.json").write_text(json.dumps(record))
    assert cells(report, tmp_path, "five untuned tasks", "") == (f"ahead of both on 3, behind on {env_id}", "no")


@pytest.mark.parametrize("lost, met", [([0] * 9 + [1], "yes"), ([0] * 8 + [1, 1], "no"), ([0] * 9 + [2], "no")])
def test_report_counts_lost_games(lost, met, tmp_path, example):
    runs = [
        {"seed": seed, "grade": {"leaves_first": [90, 5, 0], "leaves_second": [300, 70, count]}}
        for seed, count in enumerate(lost)
    ]
    (tmp_path / "self_play_TicTacToe.json").write_text(json.dumps({"runs": runs}))
    assert cells(example("report"), tmp_path, "TicTacToe", "")[1] == met


def test_report_compares_searches_of_one_observation_and_of_more(tmp_path, example):
    report = example("report")
    for file, ratio in zip(report.SEARCHES, (1.5, 1.4), strict=True):
        rows = [{"batch_size": size, "mctx_us": ratio * 100.0, "search_us": 100.0} for size in (1, 8)]
        (tmp_path / f"{file}.json").write_text(json.dumps({"heads": file, "rows": rows}))
    assert cells(report, tmp_path, "search, one observation", "")[1] == "yes"
    assert cells(report, tmp_path, "search, every other size", "")[1] == "no"


def test_every_row_of_the_report_has_a_command(example, monkeypatch):
    compare, report = example("compare_baselines"), example("report")
    lines = [shlex.split(line) for line in (EXAMPLES / "reproduce.sh").read_text().splitlines() if line.startswith("python")]
    seeds = {}
    for _, script, *options in lines:
        monkeypatch.setattr(sys, "argv", [script, *options])
        if script.endswith("compare_baselines.py"):
            args = compare.parse_args()
            assert args.resume and args.jobs == 2
            seeds[args.json.stem] = args.seeds
        elif "--json" in options:
            seeds[Path(options[options.index("--json") + 1]).stem] = 10
    assert all(row.seeds <= seeds[file] for row in report.ROWS for file in row.files)


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
