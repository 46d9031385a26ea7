"""
Describe a saved model in one HTML file.

    python -m sb3_muzero report model.zip --env CartPole-v1

A zip file of ``MuZero.save`` and the file of ``--vec-normalize`` are unpickled, which can run any code: open files of your own
only. A checkpoint runs none.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sb3_muzero.analysis.model_arguments import add_model_arguments, check_arguments, load, make_env
from sb3_muzero.analysis.report import write_report

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
    add_model_arguments(parser)
    parser.add_argument("--episodes", type=int, default=24, help="episodes to play, and as many with exploration noise (24)")
    parser.add_argument("--max-steps", type=int, default=20_000, help="steps at most, of each of the two (20000)")
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="file to write (report.html)")
    args = parser.parse_args(arguments)
    check_arguments(
        {"model": args.model, "--vec-normalize": args.vec_normalize, "--output": args.output.parent},
        {"episodes": (args.episodes, 1), "max-steps": (args.max_steps, 100), "frame-stack": (args.frame_stack, 1)},
    )
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """
    :param arguments: Those of the command line by default
    :raises SystemExit: for a model that can't be loaded for the environment
    """
    args = parse_args(arguments)
    env = make_env(args, NUM_ENVS)
    model = load(args, env)
    write_report(model, model.get_env() or env, args.output, args.episodes, args.max_steps, args.seed, args.env)
    env.close()
    print(f"wrote {args.output}")
