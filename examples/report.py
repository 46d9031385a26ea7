"""
Tables and figures of the results in ``examples/results``: every comparison, the ablations, and the agents of board games.

    python examples/report.py

The first table shows results beside the thresholds that were registered before the runs.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compare_baselines
import gymnasium as gym
import numpy as np

from sb3_muzero.analysis.plotting import COLOURS, new_figure

RESULTS = Path(__file__).resolve().parent / "results"
Record = dict[str, Any]


def runs(record: Record, algo: str = "muzero") -> list[dict[str, Any]]:
    return [run for run in record["runs"] if run["algo"] == algo]


def steps_to(record: Record, threshold: float, algo: str = "muzero") -> list[float]:
    """:return: environment steps of each seed's first evaluation at or above the threshold, sorted, infinite without one"""
    return sorted(
        next((s for s, value in zip(r["steps"], r["returns"], strict=True) if value >= threshold), np.inf)
        for r in runs(record, algo)
    )


def returns_at(record: Record, step: int, algo: str) -> float:
    """:return: median over seeds of the last evaluation until then"""
    return float(np.median([np.array(r["returns"])[np.array(r["steps"]) <= step][-1] for r in runs(record, algo)]))


def final(record: Record, algo: str = "muzero") -> list[float]:
    return [r["final_return"] for r in runs(record, algo)]


def cpu_to_threshold(record: Record, algo: str) -> float:
    return float(np.median([r["solved"]["cpu"] if r["solved"] else np.inf for r in runs(record, algo)]))


def optimal_success(env_id: str) -> float:
    """:return: probability of the goal under the best policy within the time limit, by value iteration backwards from it"""
    env = gym.make(env_id)
    model, limit = env.unwrapped.P, env.spec.max_episode_steps  # type: ignore[attr-defined, union-attr]
    values = np.zeros(len(model))
    for _ in range(limit or 0):
        values = np.array(
            [
                max(sum(p * (r + (not end) * values[s]) for p, s, r, end in actions) for actions in model[state].values())
                for state in range(len(model))
            ]
        )
    return float(env.unwrapped.initial_state_distrib @ values)  # type: ignore[attr-defined]


def k(steps: float) -> str:
    return f"{steps / 1000:g} k" if np.isfinite(steps) else "never"


def median_steps(threshold: float) -> Callable[[Record], str]:
    def measure(record: Record) -> str:
        reached = steps_to(record, threshold)
        return f"{k(float(np.median(reached)))} ({', '.join(map(k, reached))})"

    return measure


def worst_steps(threshold: float) -> Callable[[Record], str]:
    return lambda record: k(steps_to(record, threshold)[-1])


def worst_final(record: Record) -> str:
    return f"{min(final(record)):.1f}"


def median_final(record: Record) -> str:
    return f"{np.median(final(record)):.1f} ({', '.join(f'{value:.0f}' for value in sorted(final(record)))})"


def cpu_seconds(record: Record) -> str:
    ours, ppo, dqn = (cpu_to_threshold(record, algo) for algo in ("muzero", "ppo", "dqn"))
    return f"{ours:.1f} s, PPO {ppo:.1f} s, DQN {dqn:.1f} s"


def return_at(step: int) -> Callable[[Record], str]:
    def measure(record: Record) -> str:
        ours, ppo, dqn = (returns_at(record, step, algo) for algo in ("muzero", "ppo", "dqn"))
        return f"{ours:.0f}, PPO {ppo:.0f}, DQN {dqn:.0f}"

    return measure


def times_dqn(record: Record) -> str:
    ours, dqn = (float(np.median(final(record, algo))) for algo in ("muzero", "dqn"))
    each = ", ".join(f"{value:.1f}" for value in sorted(final(record)))
    return f"{ours:.1f} ({each}), DQN {dqn:.1f}: {ours / dqn:.2f} times"


def success_rate(record: Record) -> str:
    optimum = optimal_success(record["protocol"]["env"])
    median = float(np.median(final(record)))
    return f"{median:.3f} of {optimum:.3f} ({median / optimum:.1%})"


THRESHOLDS: list[tuple[str, str, str, Callable[[Record], str]]] = [
    ("CartPole-v1", "steps to 475, median", "<= 3 k", median_steps(475)),
    ("CartPole-v1", "steps to 475, worst", "<= 6 k", worst_steps(475)),
    ("CartPole-v1", "return over 100 episodes after 20 k, worst", ">= 475", worst_final),
    ("CartPole-v1", "CPU seconds to 475, median", "<= tuned PPO's", cpu_seconds),
    ("Acrobot-v1", "steps to -100, median", "<= 15 k", median_steps(-100)),
    ("MountainCar-v0", "steps to -115, median", "<= 60 k", median_steps(-115)),
    ("LunarLander-v3", "return over 100 episodes after 100 k, median", ">= 200", median_final),
    ("LunarLander-v3", "return at 25 k", "> DQN's and PPO's", return_at(25_000)),
    ("LunarLander-v3", "return at 50 k", "> DQN's and PPO's", return_at(50_000)),
    ("LunarLander-v3", "return at 100 k", "> DQN's and PPO's", return_at(100_000)),
    ("FrozenLake8x8-v1", "success rate, median", ">= 95 % of the optimal policy's", success_rate),
    ("Taxi-v4", "steps to 7.5, median", "<= 100 k", median_steps(7.5)),
    ("MiniGrid-DoorKey-5x5-v0", "steps to 0.9, median", "<= 50 k", median_steps(0.9)),
    ("MinAtar/Breakout-v1", "return after 300 k, median", ">= 1.5 times DQN's", times_dqn),
    ("MinAtar/SpaceInvaders-v1", "return after 300 k, median", ">= 1.5 times DQN's", times_dqn),
    ("MinAtar/Freeway-v1", "return after 300 k, median", ">= 1.5 times DQN's", times_dqn),
]


def thresholds_table() -> str:
    """:return: Markdown table of thresholds and results"""
    lines = ["| environment | measure | pre-registered threshold | result (each seed) |", "|---|---|---|---|"]
    for env_id, name, threshold, measure in THRESHOLDS:
        path = RESULTS / f"compare_{env_id.replace('/', '_')}.json"
        record = json.loads(path.read_text()) if path.exists() else {"runs": []}
        lines.append(f"| {env_id} | {name} | {threshold} | {measure(record) if runs(record) else 'not run'} |")
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
    for path in sorted(RESULTS.glob("compare_*.json")):
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
