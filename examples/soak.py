"""
Trains for a long time and records memory, open files, threads and speed (Linux):

    python examples/soak.py

A million steps of CartPole with a small replay buffer, an episode that does not end, and a buffer of a few sequences. Figures
go to ``examples/results/soak.json``.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from benchmark_training import resident_megabytes, write_results
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback

from sb3_muzero import MuZero


class Endless(gym.Env):
    """A one-dimensional walk that never ends, with rewards near the middle."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = np.zeros(1, np.float32)
        return self.place, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        push = 0.1 * (2 * int(action) - 1) + self.np_random.normal(scale=0.1)
        self.place = np.clip(self.place + np.float32(push), -1.0, 1.0)
        return self.place, float(1.0 - abs(self.place[0])), False, False, {}


CASES: dict[str, tuple[Callable[[], gym.Env], int, dict[str, Any]]] = {
    "CartPole-v1, buffer of 20 000": (lambda: gym.make("CartPole-v1"), 1_000_000, {"buffer_size": 20_000}),
    "an episode without an end": (Endless, 100_000, {"buffer_size": 20_000}),
    "buffer of 64": (lambda: gym.make("CartPole-v1"), 100_000, {"buffer_size": 64}),
}


class Watch(BaseCallback):
    """
    Records figures of the process.

    :param every: Steps between them
    """

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every
        self.figures: list[dict[str, float]] = []
        self._cpu = time.process_time()

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            now = time.process_time()
            figures = {
                "steps": self.num_timesteps,
                "resident_MB": round(resident_megabytes(), 1),
                "open_files": len(os.listdir("/proc/self/fd")),
                "threads": len(os.listdir("/proc/self/task")),
                "steps_per_cpu_second": round(self.every / (now - self._cpu), 1),
            }
            self._cpu = now
            self.figures.append(figures)
            print("  ".join(f"{name} {value}" for name, value in figures.items()), flush=True)
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "soak.json")
    args = parser.parse_args()
    th.set_num_threads(1)
    results = {}
    for case, (make, steps, settings) in CASES.items():
        print(case)
        watch = Watch(max(int(steps * args.scale) // 20, 1))
        MuZero("MlpPolicy", make(), seed=0, device="cpu", **settings).learn(int(steps * args.scale), callback=watch)
        # Without the first two, in which memory is still being allocated
        for name in ("resident_MB", "open_files", "threads", "steps_per_cpu_second"):
            first, last = (np.median([figures[name] for figures in part]) for part in (watch.figures[2:7], watch.figures[-5:]))
            print(f"  {name}, medians of five: {first} -> {last} ({last / first - 1:+.1%})")
        results[case] = watch.figures
    write_results(args.json, {"scale": args.scale}, results)


if __name__ == "__main__":
    main()
