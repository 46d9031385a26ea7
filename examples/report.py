"""
Tables and figures of the results in ``examples/results``: every comparison, the ablations, and the agents of board games.

    python examples/report.py

The first table shows results beside the thresholds that were registered before the runs; ``examples/reproduce.sh`` has the
commands. MuZero is *ahead* of another algorithm that needs more steps to the threshold in median, or, where both need as many
or neither reaches it, has the lower median of final returns; it is *behind* one that is better in either by more than the
standard deviation over seeds, the larger one of the two algorithms. A seed that never reaches the threshold counts with all
steps of the run.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import compare_baselines
import numpy as np
from compare_baselines import label_of

from sb3_muzero.analysis.plotting import COLOURS, new_figure

RESULTS = Path(__file__).resolve().parent / "results"
Record = dict[str, Any]
Measure = Callable[..., tuple[str, bool]]


def runs(record: Record, algo: str = "muzero") -> list[dict[str, Any]]:
    """
    :return: Runs of an algorithm; records of self-play, which name none, have MuZero's only
    :raises LookupError: if there are none
    """
    found = [run for run in record["runs"] if run.get("algo", "muzero") == algo]
    if not found:
        raise LookupError(f"{label_of(algo)} not run")
    return found


def steps_to(record: Record, threshold: float, algo: str = "muzero") -> list[float]:
    """:return: environment steps of each seed's first evaluation at or above the threshold, sorted, infinite without one"""
    return sorted(
        next((s for s, value in zip(r["steps"], r["returns"], strict=True) if value >= threshold), np.inf)
        for r in runs(record, algo)
    )


def final(record: Record, algo: str = "muzero") -> list[float]:
    return sorted(r["final_return"] for r in runs(record, algo))


def k(steps: float) -> str:
    return f"{steps / 1000:g} k" if np.isfinite(steps) else "never"


def each(values: list[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def reaches(threshold: float, median: float = np.inf, worst: float = np.inf) -> Measure:
    """Steps of the first evaluation at the threshold, over seeds"""

    def measure(record: Record) -> tuple[str, bool]:
        reached = steps_to(record, threshold)
        middle = float(np.median(reached))
        return f"median {k(middle)}, worst {k(reached[-1])} ({', '.join(map(k, reached))})", (
            middle <= median and reached[-1] <= worst
        )

    return measure


def earns(median: float = -np.inf, worst: float = -np.inf) -> Measure:
    """Mean return of the episodes after training, over seeds"""

    def measure(record: Record) -> tuple[str, bool]:
        returns = final(record)
        middle = float(np.median(returns))
        return f"median {middle:.4g}, worst {returns[0]:.4g} ({each(returns)})", middle >= median and returns[0] >= worst

    return measure


def cpu_seconds(rival: str) -> Measure:
    """CPU seconds to the threshold, over seeds, beside another algorithm's"""

    def measure(record: Record) -> tuple[str, bool]:
        both = [
            sorted(r["solved"]["cpu"] if r["solved"] else np.inf for r in runs(record, algo)) for algo in ("muzero", rival)
        ]
        ours, theirs = (float(np.median(seconds)) for seconds in both)
        text = f"{ours:.1f} s ({each(both[0])}), {label_of(rival)} {theirs:.1f} s ({each(both[1])})"
        return text, ours <= theirs and ours < np.inf

    return measure


def cpu_per_step(rival: str) -> Measure:
    """CPU milliseconds of a step of training, over seeds, beside another algorithm's"""

    def measure(record: Record) -> tuple[str, bool]:
        both = [sorted(1000 * r["total"]["cpu"] / r["steps"][-1] for r in runs(record, algo)) for algo in ("muzero", rival)]
        ours, theirs = map(np.median, both)
        text = f"{ours:.2f} ms ({each(both[0])}), {label_of(rival)} {theirs:.2f} ms ({each(both[1])})"
        return text, bool(ours <= theirs)

    return measure


def times_dqn(record: Record) -> tuple[str, bool]:
    ours, dqn = (float(np.median(final(record, algo))) for algo in ("muzero", "dqn"))
    text = f"{ours:.1f} ({each(final(record))}), DQN {dqn:.1f} ({each(final(record, 'dqn'))})"
    return f"{text}: {ours / dqn:.2f} times" if dqn > 0 else text, ours >= 1.5 * dqn


def is_behind(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """:return: whether the median is lower by more than the larger standard deviation over seeds"""
    return bool(np.median(ours) - np.median(theirs) < -max(np.std(ours), np.std(theirs)))


def returns_at(record: Record, step: int, algo: str) -> list[float]:
    """
    :return: return of each seed's first evaluation after so many environment steps
    :raises LookupError: if a run ended earlier
    """
    found = [[value for s, value in zip(r["steps"], r["returns"], strict=True) if s >= step] for r in runs(record, algo)]
    if not all(found):
        raise LookupError(f"{label_of(algo)} not run for {k(step)}")
    return sorted(values[0] for values in found)


def not_behind(*algos: str, at: Sequence[int] = ()) -> Measure:
    """Returns after so many environment steps, by default of the episodes after training, beside other algorithms'"""

    def measure(record: Record) -> tuple[str, bool]:
        parts, is_met = [], True
        for step in at or [0]:
            ours, *others = (returns_at(record, step, algo) if step else final(record, algo) for algo in ("muzero", *algos))
            beside = [f"{label_of(algo)} {np.median(theirs):.4g}" for algo, theirs in zip(algos, others, strict=True)]
            parts.append(f"{f'{k(step)}: ' if step else ''}{np.median(ours):.4g} ({each(ours)}), {', '.join(beside)}")
            is_met &= not any(is_behind(ours, theirs) for theirs in others)
        return "; ".join(parts), is_met

    return measure


def figures(record: Record, algo: str) -> str:
    """:return: median steps to the threshold and final return"""
    steps = float(np.median(steps_to(record, record["protocol"]["threshold"], algo)))
    return f"{label_of(algo)} {k(steps)}, {np.median(final(record, algo)):.4g}"


def beside(measure: Measure, algo: str) -> Measure:
    """A measure, and beside it another algorithm's steps and return"""

    def both(record: Record) -> tuple[str, bool]:
        result, is_met = measure(record)
        return f"{result}; {figures(record, algo)}", is_met

    return both


def standing(record: Record, algo: str) -> str:
    """:return: ``ahead``, ``level`` or ``behind``: MuZero against another algorithm"""
    threshold, steps = record["protocol"]["threshold"], record["protocol"]["steps"]
    both = [
        (-np.minimum(steps_to(record, threshold, name), steps), np.array(final(record, name))) for name in ("muzero", algo)
    ]
    if any(is_behind(ours, theirs) for ours, theirs in zip(*both, strict=True)):
        return "behind"
    leads = [float(np.median(ours) - np.median(theirs)) for ours, theirs in zip(*both, strict=True)]
    return "ahead" if leads[0] > 0 or (leads[0] == 0 and leads[1] > 0) else "level"


def ahead_of(*algos: str) -> Measure:
    def measure(record: Record) -> tuple[str, bool]:
        threshold = record["protocol"]["threshold"]
        shown = [figures(record, algo) for algo in ("muzero", *algos)]
        standings = [standing(record, algo) for algo in algos]
        seeds = f"{', '.join(map(k, steps_to(record, threshold)))}; {each(final(record))}"
        return f"{'; '.join(shown)}: {', '.join(standings)} ({seeds})", set(standings) == {"ahead"}

    return measure


def ahead_on_four(*records: Record) -> tuple[str, bool]:
    standings = {record["protocol"]["env"]: [standing(record, algo) for algo in ("ppo", "dqn")] for record in records}
    ahead = [env for env, found in standings.items() if set(found) == {"ahead"}]
    behind = [env for env, found in standings.items() if "behind" in found]
    return f"ahead of both on {len(ahead)}, behind on {', '.join(behind) or 'none'}", len(ahead) >= 4 and not behind


def lost_games(record: Record) -> tuple[str, bool]:
    """Of all games that can be played from either seat"""
    lost = sorted(sum(r["grade"][f"leaves_{seat}"][2] for seat in ("first", "second")) for r in runs(record))
    return ", ".join(map(str, lost)), lost.count(0) >= 9 and lost[-1] <= 1


def times_mctx(bar: float, single: bool) -> Measure:
    """
    Speed of the search relative to mctx

    :param bar: Least ratio
    :param single: Of searches of one observation, or of all others
    """

    def measure(*records: Record) -> tuple[str, bool]:
        ratios = {
            record["heads"]: [
                row["mctx_us"] / row["search_us"] for row in record["rows"] if (row["batch_size"] == 1) == single
            ]
            for record in records
        }
        text = "; ".join(f"{heads}: {', '.join(f'{ratio:.2f}' for ratio in values)}" for heads, values in ratios.items())
        return text, min(min(values) for values in ratios.values()) >= bar

    return measure


class Row(NamedTuple):
    """
    A line of the table of thresholds.

    :param task: What was learned or measured
    :param files: Names of the JSON files without ``.json``
    :param bar: The threshold, as registered
    :param measure: Takes the records of the files and returns the result, with every seed, and whether it meets the bar
    :param seeds: How many the bar speaks of: others than the first ones are left out
    """

    task: str
    files: list[str]
    bar: str
    measure: Measure
    seeds: int = 5


def compare(env_id: str, *bars: tuple[str, Measure], defaults: bool = False, seeds: int = 5) -> list[Row]:
    """:return: a row for each bar of a comparison"""
    file = f"{'untuned' if defaults else 'compare'}_{env_id.replace('/', '_')}"
    return [Row(env_id, [file], bar, measure, seeds) for bar, measure in bars]


# Tasks with continuous and composite actions, and their thresholds
SAMPLED = {
    "Pendulum-v1": -200,
    "MountainCarContinuous-v0": 90,
    "LunarLanderContinuous-v3": 200,
    "BipedalWalker-v3": 250,
    "Hopper-v5": 2000,
    "tasks/Arm-v0": -5,
}
SAMPLED_ALGOS = ("muzero", "sac", "tqc", "ppo")
UNTUNED = ["Blackjack-v1", "tasks/CliffWalking-v0", "MiniGrid-Empty-8x8-v0", "Acrobot-v1", "tasks/TwoRooms-v0"]
SEARCHES = ["benchmark_search_a2_scalar", "benchmark_search_a2_101_bins"]
ROWS: list[Row] = [
    *compare(
        "CartPole-v1",
        ("475 in median <= 2.5 k, worst of 10 <= 4 k", reaches(475, median=2500, worst=4000)),
        ("100 episodes >= 475 at 20 k on all", earns(worst=475)),
        ("median CPU seconds to 475 <= tuned PPO's", cpu_seconds("ppo")),
        seeds=10,
    ),
    *compare(
        "LunarLander-v3",
        ("200 in median <= 35 k", reaches(200, median=35_000)),
        (">= 250 at 100 k", earns(median=250)),
    ),
    *compare(
        "Acrobot-v1",
        ("-100 in median <= 8 k, worst <= 15 k", reaches(-100, median=8000, worst=15_000)),
        ("ahead of PPO", ahead_of("ppo")),
    ),
    *compare(
        "MountainCar-v0",
        ("-115 in median <= 15 k, worst <= 40 k", reaches(-115, median=15_000, worst=40_000)),
        ("ahead of PPO", ahead_of("ppo")),
    ),
    *compare("Taxi-v4", ("7.5 by 100 k on 5 of 5 seeds", reaches(7.5, worst=100_000))),
    *compare("FrozenLake8x8-v1", (">= 0.87 of episodes on 5 of 5 seeds", earns(worst=0.87))),
    *compare("MiniGrid-DoorKey-5x5-v0", ("0.9 in median <= 15 k", reaches(0.9, median=15_000))),
    *compare(
        "MiniGrid-KeyCorridorS3R1-v0",
        ("0.9 in median <= 100 k (PPO: 500 k published)", reaches(0.9, median=100_000)),
    ),
    *[
        row
        for game in ("Breakout", "SpaceInvaders", "Freeway", "Asterix", "Seaquest")
        for row in compare(f"MinAtar/{game}-v1", (">= 1.5 times DQN after 300 k frames", times_dqn), seeds=3)
    ],
    *compare("tasks/Bandit-v0", (">= 45 of 50 after 4 k on 5 of 5 seeds", earns(worst=45))),
    *compare("tasks/DotBandit-v0", (">= 19 of 20 after 6 k on 5 of 5 seeds", earns(worst=19))),
    *compare("tasks/CliffWalking-v0", ("goal reached by 8 k on 5 of 5 seeds", reaches(-199, worst=8000)), defaults=True),
    *compare("tasks/ConstantCost-v0", ("goal reached by 8 k on 5 of 5 seeds", reaches(-99_000, worst=8000))),
    *compare(
        "Pendulum-v1",
        ("-200 in median <= 2.5 k, worst of 10 <= 4 k", reaches(-200, median=2500, worst=4000)),
        ("median CPU seconds to -200 <= SAC's", cpu_seconds("sac")),
        ("20 k: no worse than TQC", not_behind("tqc")),
        seeds=10,
    ),
    *compare("MountainCarContinuous-v0", ("90 in median <= 15 k", reaches(90, median=15_000))),
    *compare(
        "LunarLanderContinuous-v3",
        ("200 in median by 40 k", reaches(200, median=40_000)),
        (">= 260 at 150 k", earns(median=260)),
        ("not behind SAC and TQC at 25, 50, 100 k", not_behind("sac", "tqc", at=(25_000, 50_000, 100_000))),
        ("CPU seconds per step <= SAC's", cpu_per_step("sac")),
    ),
    *compare("BipedalWalker-v3", ("250 in median by 300 k", reaches(250, median=300_000)), seeds=3),
    *compare("Hopper-v5", ("2 000 in median by 200 k, SAC beside", beside(reaches(2000, median=200_000), "sac")), seeds=3),
    *compare("tasks/Arm-v0", ("-5 in median by 20 k, PPO beside", beside(reaches(-5, median=20_000), "ppo"))),
    Row("TicTacToe", ["self_play_TicTacToe"], "0 lost games of all on 9 of 10 seeds, at most 1 on the tenth", lost_games, 10),
    *[
        row
        for env_id in UNTUNED
        for row in compare(env_id, ("defaults: ahead of PPO and DQN", ahead_of("ppo", "dqn")), defaults=True)
    ],
    Row(
        "five untuned tasks, defaults",
        [f"untuned_{env_id.replace('/', '_')}" for env_id in UNTUNED],
        "ahead of PPO and DQN on at least four, behind on none by more than seeds' spread",
        ahead_on_four,
    ),
    Row("search, one observation", SEARCHES, ">= 1.3 times mctx", times_mctx(1.3, single=True), 0),
    Row("search, every other size", SEARCHES, ">= 1.5 times mctx", times_mctx(1.5, single=False), 0),
]


def evaluate(row: Row, folder: Path) -> tuple[str, str]:
    """:return: cells of the table: the result, and whether it meets the bar"""
    paths = [folder / f"{file}.json" for file in row.files]
    if not all(path.exists() for path in paths):
        return "not run", "-"
    records = [json.loads(path.read_text()) for path in paths]
    for record in records:
        record["runs"] = [run for run in record.get("runs", []) if run["seed"] < row.seeds]
    try:
        result, is_met = row.measure(*records)
        algos = [Counter(run.get("algo", "muzero") for run in record["runs"]) for record in records]
        seeds = min(min(counts.values(), default=0) for counts in algos) if row.seeds else 0
    except LookupError as error:
        return str(error.args[0]), "-"
    if seeds < row.seeds:
        return result, f"{seeds} of {row.seeds} seeds"
    return result, "yes" if is_met else "no"


def thresholds_table(folder: Path = RESULTS) -> str:
    """:return: Markdown table of thresholds and results"""
    lines = ["| task | threshold | result (each seed) | met |", "|---|---|---|---|"]
    for row in ROWS:
        lines.append(f"| {row.task} | {row.bar} | {' | '.join(evaluate(row, folder))} |")
    return "\n".join(lines)


def sampled_table(folder: Path = RESULTS) -> str:
    """:return: Markdown table of the tasks with continuous and composite actions; ``-`` for what was not run"""
    lines = [
        "| environment, threshold | algorithm | steps to threshold: median (each seed) | return: median (each seed) | CPU s |",
        "|---|---|---|---|---|",
    ]
    for env_id, threshold in SAMPLED.items():
        path = folder / f"compare_{env_id.replace('/', '_')}.json"
        record = json.loads(path.read_text()) if path.exists() else {"runs": []}
        task = f"{env_id}, {threshold:g}"
        for algo in SAMPLED_ALGOS if not env_id.startswith("tasks/") else ("muzero", "ppo"):
            cells = ["-", "-", "-"]
            if any(run["algo"] == algo for run in record["runs"]):
                reached, returns = steps_to(record, threshold, algo), final(record, algo)
                cells = [
                    f"{k(float(np.median(reached)))} ({', '.join(map(k, reached))})",
                    f"{np.median(returns):.4g} ({each(returns)})",
                    f"{np.median([run['total']['cpu'] for run in runs(record, algo)]):.0f}",
                ]
            lines.append(f"| {task} | {label_of(algo)} | {' | '.join(cells)} |")
            task = ""
    return "\n".join(lines)


def points(match: dict[str, Any]) -> float:
    """:return: share of the points over both seats, whose wins, draws and losses are given"""
    results = np.array([match["first"], match["second"]]).sum(0)
    return float(results @ (1, 0.5, 0) / results.sum())


def self_play_table(records: dict[str, Record]) -> str:
    """:return: Markdown table of the results of agents of board games, by file"""
    lines = [
        "| file | seed | plies, seconds | against minimax of depth ... | all games or late positions |",
        "|---|---|---|---|---|",
    ]
    for name, record in records.items():
        for r in record["runs"]:
            for kind in ("grade", "grade_with_rules"):
                if kind not in r:
                    continue
                matches = {key: match for key, match in r[kind].items() if key.startswith("minimax")}
                depths = ", ".join(f"{key.removeprefix('minimax_')}: {points(match):.1%}" for key, match in matches.items())
                lost = [r[kind][f"leaves_{seat}"][2] for seat in ("first", "second") if f"leaves_{seat}" in r[kind]]
                rest = f"{lost[0]} and {lost[1]} lost; " if lost else ""
                rest += f"{r[kind]['errors']:.2%} of moves err" if "errors" in r[kind] else ""
                label = name if kind == "grade" else "- planning with the rules"
                lines.append(f"| {label} | {r['seed']} | {k(r['steps'])}, {r['seconds']:.0f} | {depths} | {rest} |")
    return "\n".join(lines)


def plot_self_play(records: dict[str, Record], path: Path) -> None:
    """Points against each opponent over plies, solid with the learned model, dashed with the rules."""
    figure, ax = new_figure(7, 4.2)
    for record in records.values():
        curve = [match for r in record["runs"] for match in r["curve"]]
        for colour, opponent in zip(COLOURS, dict.fromkeys(match["opponent"] for match in curve), strict=False):
            steps = sorted({match["num_timesteps"] for match in curve})
            means = [
                np.mean([points(m) for m in curve if m["num_timesteps"] == step and m["opponent"] == opponent])
                for step in steps
            ]
            style, label = ("--", f"{opponent}, with the rules") if record["simulator"] else ("-", opponent)
            ax.plot(steps, means, style, color=colour, label=label)
    ax.set(xlabel="plies of self-play", ylabel="share of the points", ylim=(-0.02, 1.02))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
    game = next(iter(records.values()))["game"]
    ax.set_title(f"{game}: points by opponent, after two random plies", fontsize=11, loc="left")
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the figures")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    print(thresholds_table())
    print(f"\n{sampled_table()}")
    for path in sorted([*RESULTS.glob("compare_*.json"), *RESULTS.glob("untuned_*.json")]):
        record = json.loads(path.read_text())
        print(f"\n{compare_baselines.table(record)}")
        compare_baselines.plot(record, args.output / f"{path.stem}.png")
    for path in sorted(RESULTS.glob("ablation_*.json")):
        print(f"\n{compare_baselines.table(json.loads(path.read_text()))}")
    played = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("self_play_*.json"))}
    print(f"\n{self_play_table(played)}")
    for game in {record["game"] for record in played.values()}:
        plot_self_play({n: r for n, r in played.items() if r["game"] == game}, args.output / f"self_play_{game}.png")


if __name__ == "__main__":
    main()
