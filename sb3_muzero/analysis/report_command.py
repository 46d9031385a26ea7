"""
Describe a saved model in one HTML file.

    python -m sb3_muzero report model.zip --env CartPole-v1

A zip file of ``MuZero.save`` and the file of ``--vec-normalize`` are unpickled, which can run any code: open files of your own
only. A checkpoint runs none.
"""

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from sb3_muzero.analysis.cli import MODEL_HELP, key_value, wrapper_class
from sb3_muzero.analysis.report import write_report
from sb3_muzero.checkpointing.files import is_checkpoint, load_model
from sb3_muzero.muzero import MuZero

NUM_ENVS = 8


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """
    :param arguments: Those of the command line by default
    :return: What they say
    :raises SystemExit: for files that do not exist, and numbers that are too small
    """
    parser = argparse.ArgumentParser(
        prog="python -m sb3_muzero report", description="Describe a saved model in one HTML file."
    )
    parser.add_argument("model", type=Path, help=MODEL_HELP)
    parser.add_argument("--env", required=True, help="id of its environment")
    parser.add_argument("--env-kwargs", nargs="+", default=[], type=key_value, metavar="KEY=VALUE", help="for the environment")
    parser.add_argument("--env-wrapper", nargs="+", default=[], help="dotted names, innermost first, as in RL Zoo's YAML")
    parser.add_argument("--gym-packages", nargs="+", default=[], help="packages whose import registers environments")
    parser.add_argument("--frame-stack", type=int, default=1, help="frames of VecFrameStack")
    parser.add_argument("--vec-normalize", type=Path, help="file that VecNormalize.save wrote; unpickled, too")
    parser.add_argument("--episodes", type=int, default=24, help="episodes to play, and as many with exploration noise (24)")
    parser.add_argument("--max-steps", type=int, default=20_000, help="steps at most, of each of the two (20000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="file to write (report.html)")
    args = parser.parse_args(arguments)
    for option, file in (("model", args.model), ("--vec-normalize", args.vec_normalize), ("--output", args.output.parent)):
        if file is not None and not file.exists():
            raise SystemExit(f"error: `{option}`: there is no {file}")
    for option, given, least in (
        ("episodes", args.episodes, 1),
        ("max-steps", args.max_steps, 100),
        ("frame-stack", args.frame_stack, 1),
    ):
        if given < least:
            raise SystemExit(f"error: `--{option}` must be at least {least}, got {given}")
    return args


def make_env(args: argparse.Namespace) -> VecEnv:
    """
    :param args: Of the command line
    :return: Environments as RL Zoo makes them
    :raises SystemExit: for what is not installed or not known, with the remedy
    """
    for package in args.gym_packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise SystemExit(f"error: `--gym-packages {package}` can't be imported: {error}") from error
    try:
        wrapper = wrapper_class(args.env_wrapper)
    except ValueError as error:
        raise SystemExit(f"error: `--env-wrapper`: {error}") from error
    try:
        env: VecEnv = make_vec_env(args.env, NUM_ENVS, seed=args.seed, wrapper_class=wrapper, env_kwargs=dict(args.env_kwargs))
    except (gym.error.Error, ImportError, TypeError) as error:
        raise SystemExit(
            f"error: `--env {args.env}` can't be made: {error}\n"
            "Install its package; `--gym-packages` imports the packages that register it, `--env-kwargs` are its arguments"
        ) from error
    if args.frame_stack > 1:
        env = VecFrameStack(env, args.frame_stack)
    if args.vec_normalize is not None:
        try:
            env = VecNormalize.load(args.vec_normalize, env)
        except (AssertionError, ValueError) as error:
            raise SystemExit(f"error: `--vec-normalize {args.vec_normalize}` is of another environment: {error}") from error
        env.training = False
    return env


def main(arguments: Sequence[str] | None = None) -> None:
    """
    :param arguments: Those of the command line by default
    :raises SystemExit: for a model that can't be loaded for the environment
    """
    args = parse_args(arguments)
    env = make_env(args)
    try:
        model = (load_model if is_checkpoint(args.model) else MuZero.load)(args.model, env=env, device=args.device)
    except (ValueError, OSError) as error:
        raise SystemExit(
            f"error: {args.model} can't be loaded for `--env {args.env}`: {error}\n"
            "The model must be MuZero's; `--env-wrapper`, `--frame-stack` and `--vec-normalize` make the environment what it "
            "was trained in"
        ) from error
    write_report(model, model.get_env() or env, args.output, args.episodes, args.max_steps, args.seed, args.env)
    env.close()
    print(f"wrote {args.output}")
