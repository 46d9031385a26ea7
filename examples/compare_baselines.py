"""
MuZero against PPO, DQN, SAC and TQC under one evaluation protocol: a table, a JSON file with every curve, and a picture.

    python examples/compare_baselines.py --env CartPole-v1 --seeds 5
    python examples/compare_baselines.py --env Pendulum-v1 --algos muzero sac tqc ppo

Every algorithm is evaluated every ``--eval-every`` environment steps on the same 20 seeded episodes with a deterministic
policy, and on others at the end. Times exclude evaluation; each run has one thread. MuZero takes its settings from
``zoo_configs/muzero.yml``, the others from the installed RL Zoo (``pip install rl_zoo3``), or their defaults for environments
that are not listed there in any version. With ``--defaults`` all have their defaults. Schedules end after ``--steps``, as with
RL Zoo's ``-n``: ``n_timesteps`` of the settings is replaced, but in files that ``--resume`` continues.
"""

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import yaml
from sb3_contrib import TQC
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize, sync_envs_normalization
from torch import nn  # noqa: F401  # settings name it

from sb3_muzero import MuZero
from sb3_muzero.analysis.cli import key_value, wrapper_class
from sb3_muzero.analysis.plotting import plot_learning_curves
from sb3_muzero.common.time_limits import time_limit_kwargs
from sb3_muzero.models.encoders import GridCNN  # noqa: F401  # settings name it

ROOT = Path(__file__).resolve().parent.parent
CURVE_EPISODES, CURVE_SEED = 20, 10_000
FINAL_SEED = 20_000
PROTOCOL = ("env", "steps", "eval_every", "threshold", "stop_at_threshold", "final_episodes")
ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"muzero": MuZero, "ppo": PPO, "dqn": DQN, "sac": SAC, "tqc": TQC}
ACTIONS: dict[str, type[gym.Space]] = {"dqn": gym.spaces.Discrete, "sac": gym.spaces.Box, "tqc": gym.spaces.Box}
LABELS = {algo: algorithm.__name__ for algo, algorithm in ALGORITHMS.items()}
# MinAtar's games, which RL Zoo does not have, get its settings for Atari with the network and DQN's exploration of their paper
# (https://arxiv.org/abs/1903.03176, Section 4)
MINATAR: dict[str, Any] = dict(
    env_wrapper="sb3_muzero.envs.minatar.ImageObservation",
    frame_stack=None,
    n_timesteps=None,
    policy_kwargs="dict(features_extractor_class=GridCNN, net_arch=[128])",
)
OURS: dict[str, dict[str, dict[str, Any]]] = {
    "ppo": {"MinAtar": MINATAR},
    "dqn": {
        "MinAtar": MINATAR
        | dict(n_timesteps=3e5, learning_starts=5000, exploration_fraction=1 / 3, exploration_final_eps=0.1),
        "MiniGrid-DoorKey-5x5-v0": dict(env_wrapper="minigrid.wrappers.FlatObsWrapper"),
    },
}
# Environments whose observations SB3 does not take as they are: wrappers for every algorithm without settings of its own
WRAPPERS: dict[str, list[str]] = {
    "Blackjack": ["gymnasium.wrappers.FlattenObservation"],
    "MiniGrid": ["minigrid.wrappers.ImgObsWrapper", "gymnasium.wrappers.FlattenObservation"],
}
THRESHOLDS = {"Pendulum-v1": -200.0}  # of environments that name none
NATURE_CNN_PIXELS = 36  # the smallest images of SB3's CnnPolicy


def label_of(algo: str) -> str:
    return LABELS.get(algo, algo)


def suitable_algorithms(action_space: gym.Space) -> list[str]:
    return [algo for algo in ALGORITHMS if isinstance(action_space, ACTIONS.get(algo, gym.Space))]


def zoo_settings(algo: str) -> dict[str, dict[str, Any]]:
    """:return: RL Zoo's tuned settings by environment, read from the installed package without importing it"""
    spec = importlib.util.find_spec("rl_zoo3")
    if spec is None or spec.origin is None:
        sys.exit(f"The settings of {algo} are RL Zoo's: pip install rl_zoo3")
    return yaml.safe_load((Path(spec.origin).parent / "hyperparams" / f"{algo}.yml").read_text())


def settings_for(algo: str, env_id: str, overrides: dict[str, Any], defaults: bool = False) -> dict[str, Any]:
    """
    :param algo: Algorithm, for MuZero perhaps with the settings of a variant, as ``muzero n_steps=5``
    :param env_id: Gymnasium id; an environment without settings gets each algorithm's defaults, and the same wrappers
    :param overrides: Other settings of MuZero
    :param defaults: Treat the environment as one without settings
    :return: Settings in RL Zoo's format
    """
    plain = {"env_wrapper": WRAPPERS[name]} if (name := env_id.partition("-")[0]) in WRAPPERS else {}
    is_atari = env_id.startswith("ALE/") or "NoFrameskip" in env_id
    family = "atari" if is_atari else env_id.rpartition("/")[0]
    if algo.startswith("muzero"):
        sections = {} if defaults else yaml.safe_load((ROOT / "zoo_configs" / "muzero.yml").read_text())
        return sections.get(env_id, sections.get(family, plain)) | overrides | dict(map(key_value, algo.split()[1:]))
    if defaults:
        return plain
    sections, our_sections = zoo_settings(algo), OURS.get(algo, {})
    other_versions = {name.rpartition("-v")[0]: section for name, section in sections.items() if "-v" in name}
    section = other_versions.get(env_id.rpartition("-v")[0], plain)
    section = sections.get(env_id, sections.get("atari" if family == "MinAtar" else family, section))
    settings = section | our_sections.get(env_id, our_sections.get(family, {}))
    return {name: value for name, value in settings.items() if value is not None}


def resolve(value: Any) -> Any:
    """RL Zoo's notation to Python: ``lin_0.001`` is a linear schedule, ``dict(...)`` and ``{...}`` are code."""
    if isinstance(value, str) and value.startswith("lin_"):
        return LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0)
    return eval(value) if isinstance(value, str) and value.startswith(("dict(", "{")) else value


def default_policy(algo: str, space: gym.Space) -> str:
    """:return: policy for the observations of an environment without settings"""
    if isinstance(space, gym.spaces.Dict):
        return "MultiInputPolicy"
    if not is_image_space(space) or (not algo.startswith("muzero") and sorted(space.shape or ())[-2] < NATURE_CNN_PIXELS):
        return "MlpPolicy"
    return "CnnPolicy"


def make_model(algo: str, settings: dict[str, Any], seed: int, args: argparse.Namespace) -> tuple[BaseAlgorithm, VecEnv]:
    """:return: the model, and an evaluation environment wrapped as its training environment is"""
    kwargs = {key: resolve(value) for key, value in settings.items() if key != "n_timesteps"}
    policy, normalize = kwargs.pop("policy", None), kwargs.pop("normalize", False)
    # AtariWrapper skips frames, so that the emulator must not
    defaults = {"frameskip": 1, "repeat_action_probability": 0.0} if args.env.startswith("ALE/") else {}
    env_kwargs: dict[str, Any] = {
        "wrapper_class": wrapper_class(kwargs.pop("env_wrapper", [])),
        "env_kwargs": defaults | dict(args.env_kwargs),
    }
    env = make_vec_env(args.env, kwargs.pop("n_envs", 1), seed=seed, **env_kwargs)
    limit = time_limit_kwargs(args.env)
    if limit:
        print(f"{args.env} has no time limit: episodes of evaluations are truncated after {limit['max_episode_steps']} steps")
    eval_kwargs = {**env_kwargs, "env_kwargs": limit | env_kwargs["env_kwargs"]}
    eval_env = make_vec_env(args.env, CURVE_EPISODES, **eval_kwargs)
    if normalize:
        normalize_kwargs = normalize if isinstance(normalize, dict) else {}
        env = VecNormalize(env, **{"gamma": kwargs.get("gamma", 0.99), **normalize_kwargs})
        eval_env = VecNormalize(eval_env, **{**normalize_kwargs, "training": False, "norm_reward": False})
    if frame_stack := kwargs.pop("frame_stack", 0):
        env, eval_env = VecFrameStack(env, frame_stack), VecFrameStack(eval_env, frame_stack)
    if isinstance(kwargs.get("train_freq"), list):
        kwargs["train_freq"] = tuple(kwargs["train_freq"])
    policy = policy or default_policy(algo, env.observation_space)
    return ALGORITHMS[algo.split()[0]](policy, env, seed=seed, device=args.device, **kwargs), eval_env


def evaluate(model: BaseAlgorithm, eval_env: VecEnv, episodes: int, seed: int) -> float:
    """:return: mean return of ``episodes`` deterministic episodes, always from the same seeds"""
    if isinstance(eval_env, VecNormalize):
        training_env = model.get_env()
        assert training_env is not None
        sync_envs_normalization(training_env, eval_env)
    returns: list[float] = []
    for first in range(0, episodes, eval_env.num_envs):
        eval_env.seed(seed + first)  # of each episode, whose start must not depend on those before
        count = min(eval_env.num_envs, episodes - first)
        returns += evaluate_policy(model, eval_env, count, deterministic=True, return_episode_rewards=True)[0]  # type: ignore[arg-type]
    return float(np.mean(returns))


class Curve(BaseCallback):
    """
    Evaluates whenever the number of environment steps crosses a multiple of ``every``, and stops the clocks meanwhile.

    :param eval_env: as many environments as an evaluation has episodes
    :param every: environment steps between two evaluations
    :param budget: environment steps after which training ends, at the exact step whatever the rollout length
    :param threshold: mean return that counts as solved
    :param stop_at_threshold: end training at the first evaluation at or above the threshold
    """

    def __init__(self, eval_env: VecEnv, every: int, budget: int, threshold: float, stop_at_threshold: bool) -> None:
        super().__init__()
        self.eval_env, self.every, self.budget = eval_env, every, budget
        self.threshold, self.stop_at_threshold = threshold, stop_at_threshold
        self.steps: list[int] = []
        self.returns: list[float] = []
        self.solved: dict[str, float] | None = None

    def _on_training_start(self) -> None:
        self.cpu_zero, self.wall_zero = time.process_time(), time.perf_counter()
        self.evaluations_done = 0

    def clocks(self) -> dict[str, float]:
        """Seconds of training so far"""
        now = {"cpu": time.process_time() - self.cpu_zero, "wall": time.perf_counter() - self.wall_zero}
        return {clock: round(seconds, 3) for clock, seconds in now.items()}

    def _on_step(self) -> bool:
        due = self.num_timesteps // self.every
        if due > self.evaluations_done:
            self.evaluations_done = due
            self._evaluate()
        return self.num_timesteps < self.budget and not (self.solved and self.stop_at_threshold)

    def _evaluate(self) -> None:
        before = self.clocks()
        mean = evaluate(self.model, self.eval_env, CURVE_EPISODES, CURVE_SEED)
        self.steps.append(self.num_timesteps)
        self.returns.append(round(mean, 3))
        if self.solved is None and mean >= self.threshold:
            self.solved = {"steps": self.num_timesteps, **before}
        self.logger.record("eval/mean_reward", mean)
        after = self.clocks()
        self.cpu_zero += after["cpu"] - before["cpu"]
        self.wall_zero += after["wall"] - before["wall"]


def run(algo: str, seed: int, settings: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Trains and evaluates one seed of one algorithm; runs in a process of its own."""
    torch.set_num_threads(1)
    for package in args.gym_packages:
        importlib.import_module(package)
    model, eval_env = make_model(algo, settings, seed, args)
    curve = Curve(eval_env, args.eval_every, args.steps, args.threshold, args.stop_at_threshold)
    callbacks: list[BaseCallback] = [curve]
    tracker = None
    if args.wandb:
        import wandb
        from wandb.integration.sb3 import WandbCallback

        from sb3_muzero.callbacks import MuZeroWandbCallback

        config = {"algo": algo, "env": args.env, "seed": seed, "steps": args.steps, **settings}
        tracker = wandb.init(
            project="sb3_muzero", group=f"compare_{args.env}", name=f"{algo}-{seed}", config=config, sync_tensorboard=True
        )
        model.tensorboard_log = f"{tracker.dir}/tensorboard"
        callbacks.append(WandbCallback(model_save_path=f"{tracker.dir}/model"))
        if isinstance(model, MuZero):
            callbacks.append(MuZeroWandbCallback(log_freq=args.eval_every))
    # The callback ends training at the budget, whatever the rollout length and where schedules end
    model.learn(max(args.steps, int(settings.get("n_timesteps", 0))), callback=callbacks)
    total = curve.clocks()
    final = evaluate(model, eval_env, args.final_episodes, FINAL_SEED)
    if tracker is not None:
        tracker.summary["final_return"] = final
        tracker.finish()
    return {"algo": algo, "seed": seed, "solved": curve.solved, "total": total, "final_return": round(final, 3),
            "steps": curve.steps, "returns": curve.returns}  # fmt: skip


def run_all(record: dict[str, Any], args: argparse.Namespace) -> None:
    """Runs what ``record`` still lacks, ``--jobs`` processes side by side, and writes the JSON after every run."""
    done = {(r["algo"], r["seed"]) for r in record["runs"]}
    # Seeds outermost, so that an interrupted comparison has about as many seeds of every algorithm
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    todo = [(algo, seed) for seed in seeds for algo in args.algos if (algo, seed) not in done]
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = "1"
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(run, algo, seed, record["settings"][algo], args) for algo, seed in todo]
        for future in as_completed(futures):
            try:
                r = future.result()
            except BaseException:  # Ctrl-C too: --resume goes on from what is written
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            record["runs"] = sorted([*record["runs"], r], key=lambda x: (x["algo"], x["seed"]))
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(record, indent=1) + "\n")
            solved = f"{r['solved']['steps']} steps" if r["solved"] else "not reached"
            print(f"{label_of(r['algo'])} seed {r['seed']}: threshold {solved}, final return {r['final_return']:.4g}, "
                  f"{r['total']['cpu']:.0f} s of CPU", flush=True)  # fmt: skip


def versions() -> dict[str, str]:
    packages = {"sb3_muzero", "stable_baselines3", "torch", "gymnasium", "numpy"}
    found = {d.name: d.version for d in distributions() if d.name in packages}
    return {"python": platform.python_version(), **dict(sorted(found.items()))}


def with_budget(settings: dict[str, Any], steps: int) -> dict[str, Any]:
    """:return: settings whose schedules end after ``steps``, as with RL Zoo's ``-n``"""
    return settings | ({"n_timesteps": steps} if "n_timesteps" in settings else {})


def new_record(args: argparse.Namespace) -> dict[str, Any]:
    """The JSON without its runs; with ``--resume`` and the same protocol and settings, with those of the existing file."""
    record: dict[str, Any] = {
        "command": " ".join(["python", "examples/compare_baselines.py", *sys.argv[1:]]).replace(f"{ROOT}/", ""),
        "versions": versions(),
        "protocol": {key: getattr(args, key) for key in PROTOCOL}
        | {"curve_episodes": CURVE_EPISODES},
        "settings": {
            algo: with_budget(settings_for(algo, args.env, args.set, args.defaults), args.steps) for algo in args.algos
        },
        "runs": [],
    }  # fmt: skip
    record = json.loads(json.dumps(record))  # tuples as lists, as a file has them
    if args.resume and args.json.exists():
        old = json.loads(args.json.read_text())
        settings = record["settings"] | old["settings"]
        if old["protocol"] != record["protocol"] or any(
            with_budget(settings[algo], args.steps) != record["settings"][algo] for algo in args.algos
        ):
            sys.exit(f"--resume: {args.json} was made with other settings; move it away or name another with --json")
        record |= {"settings": settings, "runs": old["runs"]}  # schedules end where those of the file's other runs do
    return record


def table(record: dict[str, Any]) -> str:
    """:return: one Markdown row per algorithm"""
    protocol = record["protocol"]

    def steps(value: float) -> str:
        return f"{value:.0f}" if np.isfinite(value) else f">{protocol['steps']}"

    lines = [
        f"{protocol['env']}, {protocol['steps']} steps, threshold {protocol['threshold']:g}\n",
        "| algorithm | steps to threshold: median | worst | each seed | final return: median | worst "
        "| CPU s to threshold | CPU s | wall s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for algo in record["settings"]:
        runs = [r for r in record["runs"] if r["algo"] == algo]
        if not runs:
            continue
        reached = sorted(r["solved"]["steps"] if r["solved"] else np.inf for r in runs)
        cpu_solved = np.median([r["solved"]["cpu"] if r["solved"] else np.inf for r in runs])
        final = [r["final_return"] for r in runs]
        cpu, wall = (np.median([r["total"][clock] for r in runs]) for clock in ("cpu", "wall"))
        lines.append(
            f"| {label_of(algo)} | {steps(np.median(reached))} | {steps(reached[-1])} | {', '.join(map(steps, reached))} "
            f"| {np.median(final):.4g} | {min(final):.4g} | {f'{cpu_solved:.1f}' if np.isfinite(cpu_solved) else '-'} "
            f"| {cpu:.1f} | {wall:.1f} |"
        )
    return "\n".join(lines)


def plot(record: dict[str, Any], path: Path) -> None:
    """Returns over environment steps; a run that stopped early counts with its last value."""
    protocol = record["protocol"]
    curves = {}
    for algo in record["settings"]:
        runs = [r for r in record["runs"] if r["algo"] == algo and r["steps"]]
        if runs:
            x = max((r["steps"] for r in runs), key=len)
            returns = np.array([r["returns"] + r["returns"][-1:] * (len(x) - len(r["returns"])) for r in runs])
            curves[label_of(algo)] = x, returns
    title = f"{protocol['env']}: {CURVE_EPISODES} deterministic episodes, interquartile mean over seeds"
    plot_learning_curves(curves, protocol["threshold"], title).savefig(path, dpi=150)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1", help="Gymnasium id")
    parser.add_argument("--env-kwargs", nargs="+", type=key_value, default=[], metavar="KEY=VALUE", help="of the environment")
    parser.add_argument("--gym-packages", nargs="+", default=[], help="packages whose import registers environments")
    parser.add_argument("--algos", nargs="+", choices=list(LABELS),
                        help="default: all that suit the action space")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=5, help="how many of every algorithm")
    parser.add_argument("--first-seed", type=int, default=0, help="of every algorithm; trials have seeds from 100 on")
    parser.add_argument("--defaults", action="store_true", help="defaults of all algorithms, whatever settings are listed")
    parser.add_argument("--steps", type=int, default=20_000, help="environment steps of every run")
    parser.add_argument("--eval-every", type=int, default=1000, help="environment steps between two evaluations")
    parser.add_argument("--threshold", type=float, help="mean return that counts as solved (default: the environment's own)")
    parser.add_argument("--final-episodes", type=int, default=100, help="episodes of the evaluation after training")
    parser.add_argument("--stop-at-threshold", action="store_true", help="end a run at its first evaluation at the threshold")
    parser.add_argument("--set", nargs="+", type=key_value, default=[], metavar="KEY=VALUE", help="MuZero settings")
    parser.add_argument("--variants", nargs="+", default=[], metavar="SETTINGS",
                        help="compare variants of MuZero too, each with settings like 'n_steps=5 unroll_steps=3'")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path,
                        help="default: examples/results/compare_<env>.json, untuned_<env>.json with --defaults, "
                             "trials_... with --first-seed")  # fmt: skip
    parser.add_argument("--png", type=Path, help="default: next to the JSON")
    parser.add_argument("--resume", action="store_true", help="keep the runs that the JSON already has")
    parser.add_argument("--wandb", action="store_true", help="log every run to Weights & Biases, as one group")
    parser.add_argument("--plot-only", type=Path, metavar="JSON", help="only redraw the table and the picture")
    args = parser.parse_args()
    args.set = dict(args.set)
    kind = ("trials_" if args.first_seed else "") + ("untuned" if args.defaults else "compare")
    name = f"{kind}_{args.env.replace('/', '_')}.json"
    args.json = args.plot_only or args.json or ROOT / "examples" / "results" / name
    args.png = args.png or args.json.with_suffix(".png")
    for package in args.gym_packages:
        importlib.import_module(package)
    if args.plot_only:
        return args
    args.algos = args.algos or suitable_algorithms(gym.make(args.env, **dict(args.env_kwargs)).action_space)
    args.algos += [f"muzero {variant}" for variant in args.variants]
    if args.threshold is None:
        args.threshold = THRESHOLDS.get(args.env, gym.spec(args.env).reward_threshold)
        if args.threshold is None:
            parser.error(f"{args.env} names no threshold of its own: give one with --threshold")
    return args


def main() -> None:
    args = parse_args()
    if args.plot_only:
        record = json.loads(args.json.read_text())
    else:
        record = new_record(args)
        run_all(record, args)
    print(f"\n{table(record)}")
    plot(record, args.png)
    print(f"\n{args.json}\n{args.png}")


if __name__ == "__main__":
    main()
