"""
Learns a board game by self-play with the settings of ``zoo_configs/muzero.yml``, and evaluates the agent against minimax of
several depths, and on TicTacToe in every game that can be played.

    python examples/self_play.py TicTacToe --seeds 3 --jobs 2
    python examples/self_play.py ConnectFour
    python examples/self_play.py ConnectFour --simulator    # plans with the rules, as AlphaZero does

Each run has one thread. Times are without the matches that are played meanwhile.
"""

import argparse
import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
import yaml
from compare_baselines import ROOT, resolve, versions
from stable_baselines3.common.env_util import make_vec_env

from sb3_muzero import MuZero
from sb3_muzero.analysis.cli import key_value
from sb3_muzero.callbacks import ResumableCheckpointCallback
from sb3_muzero.checkpointing import resume
from sb3_muzero.checkpointing.files import checkpoints_in
from sb3_muzero.games import GAMES
from sb3_muzero.games.connect_four_solver import ConnectFourSolver
from sb3_muzero.games.exact import count_leaves, share_of_errors, solve
from sb3_muzero.games.match import Score, play_match, random_openings
from sb3_muzero.games.players import MinimaxPlayer, ModelPlayer, Player, RandomPlayer
from sb3_muzero.games.self_play import MatchResult, SelfPlayEvalCallback
from sb3_muzero.games.simulator import SimulatorCnnPolicy, SimulatorPolicy, SimulatorResNetPolicy, with_rules

WITHOUT_DYNAMICS: dict[str, Any] = dict(unroll_steps=1, consistency_coef=0.0, reward_coef=0.0)
SECTIONS = yaml.safe_load((ROOT / "zoo_configs" / "muzero.yml").read_text())


class Evaluation(SelfPlayEvalCallback):
    """
    Writes results, and the time of training without the matches, to a file, from which resumed runs read them.

    :param path: The file
    :param args: Of ``SelfPlayEvalCallback``
    """

    def __init__(self, path: Path, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.path = path
        self.matches = self.before = 0.0

    def _on_training_start(self) -> None:
        self.start = time.perf_counter()
        if self.num_timesteps > 0:
            kept = json.loads(self.path.read_text())
            results = (
                MatchResult(steps, name, Score(*first), Score(*second)) for steps, name, first, second in kept["results"]
            )
            self.results = [result for result in results if result.num_timesteps <= self.num_timesteps]
            self.before = kept["seconds"] * self.num_timesteps / kept["steps"]

    @property
    def seconds(self) -> float:
        """Of training, without matches."""
        return self.before + time.perf_counter() - self.start - self.matches

    def _evaluate(self) -> None:
        start = time.perf_counter()
        super()._evaluate()
        self.matches += time.perf_counter() - start
        self.path.write_text(json.dumps({"seconds": self.seconds, "steps": self.num_timesteps, "results": self.results}))


def grade(player: ModelPlayer, game: str, depths: list[int], num_games: int) -> dict[str, Any]:
    """Results against minimax; on TicTacToe in all games and positions, on Connect Four in positions that are solved."""
    make: Any = GAMES[game]
    results: dict[str, Any] = {}
    for depth in depths:
        first, second = play_match(player, MinimaxPlayer(depth, 0), make, num_games, opening_plies=2, seed=0)
        results[f"minimax_{depth}"] = {"points": (first + second).points, "first": first, "second": second}
        print(f"minimax of depth {depth}: {first + second}; first {first.points:.1%}, second {second.points:.1%}", flush=True)
    rules = make().rules

    def act(boards: np.ndarray) -> np.ndarray:
        return player.act_on_boards(rules, boards)

    if game == "TicTacToe":
        for seat, moves_first in (("first", True), ("second", False)):
            results[f"leaves_{seat}"] = count_leaves(act, rules, moves_first)
            print(f"all games that can be played, moving {seat}: {results[f'leaves_{seat}']}")
        results["errors"] = share_of_errors(act, solve(rules))
        print(f"share of all positions in which the move is not one of the solver's: {results['errors']:.2%}")
    if game == "ConnectFour":
        solver, positions = ConnectFourSolver(rules), []
        for opening in random_openings(make, 500, 20, seed=0):
            env = make()
            env.reset(options={"moves": opening.moves})
            positions.append(env.board)
        results["errors"] = share_of_errors(act, {board.tobytes(): solver.values(board) for board in positions})
        print(f"share of 500 positions after 20 random plies in which the move is not the solver's: {results['errors']:.2%}")
    return results


def run(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    th.set_num_threads(1)
    settings = SECTIONS[f"sb3_muzero/{args.game}-v0"]
    settings = {name: resolve(value) for name, value in (settings | dict(args.set)).items()}
    steps, policy = int(settings.pop("n_timesteps")), settings.pop("policy")
    make: Any = GAMES[args.game]
    env_kwargs = settings.pop("env_kwargs", {})
    env, rules = make_vec_env(make, settings.pop("n_envs"), seed=seed, env_kwargs=env_kwargs), make().rules
    if args.simulator:
        simulators = {"MlpPolicy": SimulatorPolicy, "CnnPolicy": SimulatorCnnPolicy, "ResNetPolicy": SimulatorResNetPolicy}
        policy = simulators[policy]
        settings |= WITHOUT_DYNAMICS
        settings["policy_kwargs"] = settings["policy_kwargs"] | dict(rules=rules)
    name = f"{args.game}{'_simulator' if args.simulator else ''}_{seed}"
    checkpoints = args.output / name
    if args.resume and checkpoints_in(checkpoints):
        model: MuZero = resume(checkpoints, env, restore_environments=True)
    else:
        model = MuZero(policy, env, seed=seed, device="cpu", **settings)
    opponents: dict[str, Player] = {
        "random": RandomPlayer(seed),
        **{f"minimax_{depth}": MinimaxPlayer(depth, seed) for depth in args.curve_depths},
    }
    calls = steps // env.num_envs
    args.output.mkdir(parents=True, exist_ok=True)
    evaluation = Evaluation(
        args.output / f"{name}_curve.json", make, opponents, args.curve_games, max(calls // args.evaluations, 1), seed=1
    )
    saving = ResumableCheckpointCallback(max(calls // args.evaluations, 1), checkpoints, keep=1)
    model.learn(steps - model.num_timesteps, callback=[evaluation, saving], reset_num_timesteps=False)
    seconds = evaluation.seconds
    model.time_split["environment"] -= evaluation.matches
    split = model.time_split.shares()
    model.save(args.output / f"{name}.zip")
    print(
        f"seed {seed}: {seconds:.0f} s, {steps / seconds:.0f} plies/s, " + ", ".join(f"{n} {s:.0%}" for n, s in split.items())
    )
    result = {
        "seed": seed,
        "steps": steps,
        "seconds": seconds,
        "plies_per_second": steps / seconds,
        "time_split": split,
        "curve": [match._asdict() for match in evaluation.results],
        "grade": grade(ModelPlayer(model), args.game, args.depths, args.games),
    }
    if not args.simulator:
        print("the same agent, planning with the rules:")
        result["grade_with_rules"] = grade(ModelPlayer(with_rules(model.policy, rules)), args.game, args.depths, args.games)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("game", choices=[game for game in GAMES if f"sb3_muzero/{game}-v0" in SECTIONS])
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0, 1, ...")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--simulator", action="store_true", help="plan with the rules, as AlphaZero does")
    parser.add_argument("--set", nargs="+", default=[], type=key_value, metavar="KEY=VALUE", help="other settings of MuZero")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="of minimax, at the end")
    parser.add_argument("--games", type=int, default=100, help="against each, at the end")
    parser.add_argument("--curve-depths", type=int, nargs="+", default=[1, 2, 4], help="of minimax, meanwhile")
    parser.add_argument("--curve-games", type=int, default=40, help="against each, meanwhile")
    parser.add_argument("--evaluations", type=int, default=10, help="during training")
    parser.add_argument("--resume", action="store_true", help="go on with runs that were interrupted")
    parser.add_argument("--output", type=Path, default=Path("self_play_output"), help="folder for models and results")
    parser.add_argument("--json", type=Path, help="default: self_play_<game>.json in the folder of results")
    args = parser.parse_args()
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        runs = list(pool.map(run, seeds, [args] * args.seeds))
    command = " ".join(["python examples/self_play.py", *sys.argv[1:]])
    settings = SECTIONS[f"sb3_muzero/{args.game}-v0"] | dict(args.set) | (WITHOUT_DYNAMICS if args.simulator else {})
    record = {"game": args.game, "simulator": args.simulator, "command": command, "versions": versions(), "settings": settings}
    record["runs"] = runs
    path = args.json or args.output / f"self_play_{args.game}{'_simulator' if args.simulator else ''}.json"
    path.write_text(json.dumps(record, indent=1))
    total: dict[str, Score] = {}
    for result in runs:
        for name, match in result["grade"].items():
            if name.startswith("minimax"):
                total[name] = total.get(name, Score(0, 0, 0)) + match["first"] + match["second"]
    print("\n".join(f"{name}, all seeds: {score}" for name, score in total.items()))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
