"""
Commands of this package:

    python -m sb3_muzero report model.zip --env CartPole-v1                  describes a saved model in an HTML file
    python -m sb3_muzero imagine model.zip --env CartPole-v1                 plays in the imagined world of a saved model
    python -m sb3_muzero play connect_four --model connect_four.zip          plays a board game in the terminal

Each has its own --help. Zip files of ``MuZero.save`` are unpickled, which can run any code: open files of your own only.
Checkpoints run none. RL Zoo's programs are those of ``python -m sb3_muzero.zoo``.
"""

import argparse
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "report": "sb3_muzero.analysis.report_command",
    "imagine": "sb3_muzero.analysis.imagine_command",
    "play": "sb3_muzero.games.terminal",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """
    :param arguments: The name of a command and its arguments, those of the command line by default
    """
    parser = argparse.ArgumentParser(
        prog="python -m sb3_muzero", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    args = parser.parse_args(arguments)
    import_module(COMMANDS[args.command]).main(args.arguments)


if __name__ == "__main__":
    main()
