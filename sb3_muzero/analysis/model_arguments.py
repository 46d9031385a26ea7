"""Arguments of commands that take a saved model and its environment."""

import argparse
import importlib
from pathlib import Path

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from sb3_muzero.analysis.cli import MODEL_HELP, key_value, wrapper_class
from sb3_muzero.checkpointing.files import is_checkpoint, load_model
from sb3_muzero.muzero import MuZero


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: Gets the model, its environment, the seed and the device
    """
    parser.add_argument("model", type=Path, help=MODEL_HELP)
    parser.add_argument("--env", required=True, help="id of its environment")
    parser.add_argument("--env-kwargs", nargs="+", default=[], type=key_value, metavar="KEY=VALUE", help="for the environment")
    parser.add_argument("--env-wrapper", nargs="+", default=[], help="dotted names, innermost first, as in RL Zoo's YAML")
    parser.add_argument("--gym-packages", nargs="+", default=[], help="packages whose import registers environments")
    parser.add_argument("--frame-stack", type=int, default=1, help="frames of VecFrameStack")
    parser.add_argument("--vec-normalize", type=Path, help="file that VecNormalize.save wrote; unpickled, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")


def check_arguments(files: dict[str, Path | None], numbers: dict[str, tuple[int, int]]) -> None:
    """
    :param files: Option and the file or folder that must exist
    :param numbers: Option, what was given, and the least that is allowed
    :raises SystemExit: for files that do not exist, and numbers that are too small
    """
    for option, file in files.items():
        if file is not None and not file.exists():
            raise SystemExit(f"error: `{option}`: there is no {file}")
    for option, (given, least) in numbers.items():
        if given < least:
            raise SystemExit(f"error: `--{option}` must be at least {least}, got {given}")


def make_env(args: argparse.Namespace, num_envs: int) -> VecEnv:
    """
    :param args: Of the command line
    :param num_envs: Number of environments
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
        env: VecEnv = make_vec_env(args.env, num_envs, seed=args.seed, wrapper_class=wrapper, env_kwargs=dict(args.env_kwargs))
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


def load(args: argparse.Namespace, env: VecEnv) -> MuZero:
    """
    :param args: Of the command line
    :param env: What ``make_env`` made
    :return: The model
    :raises SystemExit: for a model that can't be loaded for the environment
    """
    try:
        return (load_model if is_checkpoint(args.model) else MuZero.load)(args.model, env=env, device=args.device)
    except (ValueError, OSError) as error:
        raise SystemExit(
            f"error: {args.model} can't be loaded for `--env {args.env}`: {error}\n"
            "The model must be MuZero's; `--env-wrapper`, `--frame-stack` and `--vec-normalize` make the environment what it "
            "was trained in"
        ) from error
