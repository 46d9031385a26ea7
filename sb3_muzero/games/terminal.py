"""
Play a board game against a model in the terminal. Beside the board stand the values and visits of its search.

    python -m sb3_muzero play connect_four --model connect_four.zip

A zip file of ``MuZero.save`` is unpickled, which can run any code: open files of your own only. A checkpoint runs none.
"""

import argparse
import copy
import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from sb3_muzero.analysis.cli import MODEL_HELP, key_value
from sb3_muzero.analysis.search_tree import principal_variation
from sb3_muzero.checkpointing.files import is_checkpoint, load_model
from sb3_muzero.games import GAMES
from sb3_muzero.games.board_games import BoardGameEnv
from sb3_muzero.muzero import MuZero
from sb3_muzero.policies import MuZeroPolicy
from sb3_muzero.search import SearchOutput

NAMES = {re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower(): game for name, game in GAMES.items()}


def search(policy: MuZeroPolicy, game: BoardGameEnv) -> SearchOutput:
    """
    :param policy: Who plans
    :param game: Where
    :return: What it finds, without noise
    """
    policy.set_training_mode(False)
    observation = th.as_tensor(game.observation()[None], device=policy.device)
    return policy.plan(observation, deterministic=True, action_masks=game.action_masks()[None])


def line_of_play(found: SearchOutput, game: BoardGameEnv) -> list[str]:
    """
    :param found: Result of a search
    :param game: Where it began
    :return: Names of the moves that it expects, as far as they are legal; the first one if moves were drawn at each node
    """
    if found.candidates is not None:
        return [game.name_of(found.selected_actions.item())]
    game, names = copy.deepcopy(game), []
    for node in principal_variation(found)[1:]:
        move = int(found.tree.action_from_parent[0, node])
        if game.is_over or not game.action_masks()[move]:
            break
        names.append(game.name_of(move))
        game.step(move)
    return names


def view(found: SearchOutput, game: BoardGameEnv, most: int = 8) -> list[str]:
    """
    :param found: Result of a search
    :param game: Where it began
    :param most: Moves to list
    :return: Lines that say what it found: value, moves by visits, the line of play
    """
    visits, qvalues = found.visit_counts[0], found.qvalues[0]
    mover = game.SYMBOLS[game.mover + 1]
    lines = [f"{mover} to move, value {found.improved_value[0]:+.2f}", "move  visits   value  policy"]
    moves = np.arange(len(visits)) if found.candidates is None else found.candidates[0, :, 0]
    for k in np.argsort(-visits, kind="stable")[:most]:
        if visits[k] > 0:
            share = found.action_weights[0, k]
            lines.append(f"{game.name_of(moves[k]):>4}  {visits[k]:6d}  {qvalues[k]:+.2f}  {share:6.1%}")
    return [*lines, "expects " + " ".join(line_of_play(found, game))]


def show(game: BoardGameEnv, lines: list[str]) -> None:
    """
    :param game: Whose board is printed
    :param lines: What is printed beside it
    """
    board = game.text().splitlines()
    width = max(map(len, board)) + 4
    for left, right in zip_longest(board, lines, fillvalue=""):
        print(f"{left:{width}}{right}".rstrip())
    print()


def ask(game: BoardGameEnv) -> int | None:
    """
    :param game: Where somebody is to move
    :return: A legal move; ``None`` if they have had enough
    """
    names = {game.name_of(move): int(move) for move in np.flatnonzero(game.action_masks())}
    while True:
        try:
            answer = input(f"{game.SYMBOLS[game.mover + 1]}, your move (q to stop): ").strip().lower()
        except EOFError:
            return None
        if answer in ("q", "quit"):
            return None
        if answer in names:
            return names[answer]
        print(f"{answer!r} is no legal move: one of {', '.join(names)}")


def play(model: MuZero, game: BoardGameEnv, seats: tuple[bool, bool], hints: bool) -> None:
    """
    :param model: Who plays against you
    :param game: Which game
    :param seats: Whether the first and the second player are you
    :param hints: Whether to show before your moves, too, what the search sees
    """
    game.reset()
    while not game.is_over:
        is_person = seats[game.mover]
        found = None if is_person and not hints else search(model.policy, game)
        show(game, [] if found is None else view(found, game))
        move = ask(game) if is_person or found is None else found.selected_actions.item()
        if move is None:
            return
        if not is_person:
            print(f"{game.SYMBOLS[game.mover + 1]} plays {game.name_of(move)}")
        reward = game.step(move)[1]
    show(game, [])
    print(f"{game.SYMBOLS[2 - game.mover]} has won" if reward > 0 else "A draw")


def sizes(game: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """
    :param game: Name of a game
    :param shape: Of a model's observations, ``(2, num_rows, num_columns)`` if they are of a board
    :return: Arguments for a board of that size, where the game has sizes
    """
    if game == "tic_tac_toe" or len(shape) != 3:
        return {}
    return {"num_rows": shape[1], "num_columns": shape[2]} if game == "connect_four" else {"size": shape[1]}


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """
    :param arguments: Those of the command line by default
    :return: What they say
    """
    parser = argparse.ArgumentParser(
        prog="python -m sb3_muzero play", description="Play a board game against a model in the terminal."
    )
    parser.add_argument("game", choices=sorted(NAMES))
    parser.add_argument("--model", type=Path, required=True, help=MODEL_HELP)
    parser.add_argument("--you", choices=("first", "second", "both", "none"), default="first", help="whose moves are yours")
    parser.add_argument("--hints", action="store_true", help="show the search before your moves, too")
    parser.add_argument("--num-simulations", type=int, help="of the search, by default as in training")
    parser.add_argument(
        "--env-kwargs",
        nargs="+",
        default=[],
        type=key_value,
        metavar="KEY=VALUE",
        help="for the game, as in_a_row=4; its size if the model is a checkpoint",
    )
    return parser.parse_args(arguments)


def load(args: argparse.Namespace) -> tuple[MuZero, BoardGameEnv]:
    """
    :param args: Of the command line
    :return: The model and its game
    :raises SystemExit: for a model that can't be loaded, or that is one of another game
    """
    if not args.model.exists() and not Path(f"{args.model}.zip").exists():
        raise SystemExit(f"error: `--model`: there is no {args.model}")
    simulations = "" if args.num_simulations is None else f" with {args.num_simulations} simulations"
    changes = {} if args.num_simulations is None else {"num_simulations": args.num_simulations}

    def make_game(**kwargs: Any) -> BoardGameEnv:
        try:
            return NAMES[args.game](**kwargs | dict(args.env_kwargs))
        except (TypeError, ValueError) as error:
            raise SystemExit(f"error: there is no {args.game} for {args.model} and `--env-kwargs`: {error}") from error

    game = make_game() if is_checkpoint(args.model) else None
    try:
        model = MuZero.load(args.model, **changes) if game is None else load_model(args.model, game, **changes)
    except (ValueError, AssertionError, OSError) as error:  # SB3 asserts that there is something in the file
        raise SystemExit(f"error: {args.model} can't be loaded{simulations}: {error}") from error
    game = game or make_game(**sizes(args.game, model.observation_space.shape or ()))
    if model.observation_space != game.observation_space or model.action_space != game.action_space:
        raise SystemExit(f"error: {args.model} plays on observations {model.observation_space}, not those of {args.game}")
    return model, game


def main(arguments: Sequence[str] | None = None) -> None:
    """
    :param arguments: Those of the command line by default
    :raises SystemExit: for a model that can't be loaded, or that is one of another game
    """
    args = parse_args(arguments)
    model, game = load(args)
    seats = {"first": (True, False), "second": (False, True), "both": (True, True), "none": (False, False)}[args.you]
    goal = f"{game.rules.in_a_row} in a row" if game.rules.in_a_row > 0 else "from side to side"
    print(f"{args.game}, {game.rules.num_rows} x {game.rules.num_columns}, {goal} (`--env-kwargs` for another one)\n")
    play(model, game, seats, args.hints)
