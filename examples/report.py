"""
Everything that the committed results say, redrawn: the table of bars, the figures of every comparison, the ablations.

    python examples/report.py

Bars are those that the project set itself before the runs.
"""

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


def median_steps(threshold: float, at_most: int) -> Callable[[Record], tuple[str, bool]]:
    def measure(record: Record) -> tuple[str, bool]:
        reached = steps_to(record, threshold)
        median = float(np.median(reached))
        return f"{k(median)} ({', '.join(map(k, reached))})", median <= at_most

    return measure


def worst_steps(threshold: float, at_most: int) -> Callable[[Record], tuple[str, bool]]:
    def measure(record: Record) -> tuple[str, bool]:
        worst = steps_to(record, threshold)[-1]
        return k(worst), worst <= at_most

    return measure


def every_final(at_least: float) -> Callable[[Record], tuple[str, bool]]:
    return lambda record: (f"worst {min(final(record)):.1f}", min(final(record)) >= at_least)


def median_final(at_least: float) -> Callable[[Record], tuple[str, bool]]:
    def measure(record: Record) -> tuple[str, bool]:
        median = float(np.median(final(record)))
        return f"{median:.1f} ({', '.join(f'{value:.0f}' for value in sorted(final(record)))})", median >= at_least

    return measure


def cpu_below_ppo(record: Record) -> tuple[str, bool]:
    ours, theirs = cpu_to_threshold(record, "muzero"), cpu_to_threshold(record, "ppo")
    return f"{ours:.1f} s, PPO {theirs:.1f} s, DQN {cpu_to_threshold(record, 'dqn'):.1f} s", ours <= theirs


def ahead_at(step: int) -> Callable[[Record], tuple[str, bool]]:
    def measure(record: Record) -> tuple[str, bool]:
        ours, ppo, dqn = (returns_at(record, step, algo) for algo in ("muzero", "ppo", "dqn"))
        return f"{ours:.0f}, PPO {ppo:.0f}, DQN {dqn:.0f}", ours > max(ppo, dqn)

    return measure


def times_dqn(factor: float) -> Callable[[Record], tuple[str, bool]]:
    def measure(record: Record) -> tuple[str, bool]:
        ours, dqn = (float(np.median(final(record, algo))) for algo in ("muzero", "dqn"))
        each = ", ".join(f"{value:.1f}" for value in sorted(final(record)))
        return f"{ours:.1f} ({each}), DQN {dqn:.1f}: {ours / dqn:.2f} times", ours >= factor * dqn

    return measure


def near_optimal(record: Record) -> tuple[str, bool]:
    optimum = optimal_success(record["protocol"]["env"])
    median = float(np.median(final(record)))
    return f"{median:.3f} of {optimum:.3f} ({median / optimum:.1%})", median >= 0.95 * optimum


BARS: list[tuple[str, str, Callable[[Record], tuple[str, bool]]]] = [
    ("CartPole-v1", "475 in median <= 3 k steps", median_steps(475, 3000)),
    ("CartPole-v1", "475 in worst <= 6 k steps", worst_steps(475, 6000)),
    ("CartPole-v1", "every seed >= 475 over 100 episodes after 20 k", every_final(475)),
    ("CartPole-v1", "median CPU seconds to 475 <= tuned PPO's", cpu_below_ppo),
    ("Acrobot-v1", "-100 in median <= 15 k steps", median_steps(-100, 15_000)),
    ("MountainCar-v0", "-115 in median <= 60 k steps", median_steps(-115, 60_000)),
    ("LunarLander-v3", "median >= 200 over 100 episodes after 100 k", median_final(200)),
    ("LunarLander-v3", "ahead of DQN and PPO at 25 k", ahead_at(25_000)),
    ("LunarLander-v3", "ahead of DQN and PPO at 50 k", ahead_at(50_000)),
    ("LunarLander-v3", "ahead of DQN and PPO at 100 k", ahead_at(100_000)),
    ("FrozenLake8x8-v1", "success >= 95 % of the optimal policy's", near_optimal),
    ("Taxi-v4", "7.5 in median <= 100 k steps", median_steps(7.5, 100_000)),
    ("MiniGrid-DoorKey-5x5-v0", "0.9 in median <= 50 k steps", median_steps(0.9, 50_000)),
    ("MinAtar/Breakout-v1", "median >= 1.5 times DQN's after 300 k", times_dqn(1.5)),
    ("MinAtar/SpaceInvaders-v1", "median >= 1.5 times DQN's after 300 k", times_dqn(1.5)),
    ("MinAtar/Freeway-v1", "median >= 1.5 times DQN's after 300 k", times_dqn(1.5)),
]


def bars() -> str:
    """:return: Markdown table of what was asked and what was measured"""
    lines = ["| environment | bar | measured (each seed) | |", "|---|---|---|---|"]
    for env_id, bar, measure in BARS:
        path = RESULTS / f"compare_{env_id.replace('/', '_')}.json"
        record = json.loads(path.read_text()) if path.exists() else {"runs": []}
        measured, passed = measure(record) if runs(record) else ("not run", False)
        lines.append(f"| {env_id} | {bar} | {measured} | {'pass' if passed else 'short'} |")
    return "\n".join(lines)


def points(match: dict[str, Any]) -> float:
    """:return: share of the points over both seats, whose wins, draws and losses are given"""
    results = np.array([match["first"], match["second"]]).sum(0)
    return float(results @ (1, 0.5, 0) / results.sum())


def self_play_table(records: dict[str, Record]) -> str:
    """:return: Markdown table of what agents of board games reached, by file"""
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
    figure, axes = new_figure(7, 4.2)
    for record in records.values():
        curve = [match for r in record["runs"] for match in r["curve"]]
        for colour, opponent in zip(COLOURS, dict.fromkeys(match["opponent"] for match in curve), strict=False):
            steps = sorted({match["num_timesteps"] for match in curve})
            means = [
                np.mean([points(m) for m in curve if m["num_timesteps"] == step and m["opponent"] == opponent])
                for step in steps
            ]
            style, label = ("--", f"{opponent}, with the rules") if record["simulator"] else ("-", opponent)
            axes[0, 0].plot(steps, means, style, color=colour, label=label)
    axes[0, 0].set(xlabel="plies of self-play", ylabel="share of the points", ylim=(-0.02, 1.02))
    axes[0, 0].xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
    game = next(iter(records.values()))["game"]
    axes[0, 0].set_title(f"{game}: points by opponent, after two random plies", fontsize=11, loc="left")
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=150)


def main() -> None:
    print(bars())
    for path in sorted(RESULTS.glob("compare_*.json")):
        record = json.loads(path.read_text())
        print(f"\n{compare_baselines.table(record)}")
        compare_baselines.plot(record, path.with_suffix(".png"))
    for path in sorted(RESULTS.glob("ablation_*.json")):
        print(f"\n{compare_baselines.table(json.loads(path.read_text()))}")
    played = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("self_play_*.json"))}
    print(f"\n{self_play_table(played)}")
    for game in {record["game"] for record in played.values()}:
        plot_self_play({n: r for n, r in played.items() if r["game"] == game}, RESULTS / f"self_play_{game}.png")


if __name__ == "__main__":
    main()
