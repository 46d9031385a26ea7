"""
2 000 actions of which about 40 are legal: MuZero beside sb3-contrib's MaskablePPO, at equal environment steps.

    python examples/masked_actions.py

An action names one of 2 000 cells to jump to, and only cells near the present one are legal. Both algorithms use their default
settings; with ``--num-candidates 32``, MuZero's search draws so many actions. Returns go to
``examples/results/masked_actions.json``.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_muzero import MuZero

RESULTS = Path(__file__).resolve().parent / "results"
EVALUATION_SEED, EVALUATION_EPISODES = 10_000, 50
ALGORITHMS: dict[str, Any] = {"MuZero": MuZero, "MaskablePPO": MaskablePPO}


class Jumps(gym.Env):
    """
    Jump over a grid from cell to cell, to its middle. The reward of a jump is how much nearer it leads, in jumps, less 0.1.

    :param shape: Rows and columns
    :param reach: Largest distance of a jump in either direction
    """

    def __init__(self, shape: tuple[int, int] = (40, 50), reach: int = 3) -> None:
        self.reach = reach
        self.action_space = spaces.Discrete(int(np.prod(shape)))
        self.observation_space = spaces.Box(0.0, 1.0, (2,), np.float32)
        self.cells = np.stack(np.unravel_index(np.arange(np.prod(shape)), shape), axis=1)
        self.size, self.goal = np.array(shape), np.array(shape) // 2

    def _observe(self) -> np.ndarray:
        return (self.place / self.size).astype(np.float32)

    def _distance(self) -> float:
        return float(np.abs(self.place - self.goal).max() / self.reach)

    def action_masks(self) -> np.ndarray:
        distance = np.abs(self.cells - self.place).max(axis=1)
        return (distance > 0) & (distance <= self.reach)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = self.cells[self.np_random.integers(len(self.cells))]
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self.action_masks()[action]:
            raise ValueError(f"`action` must be legal, got {action} at {self.place.tolist()}")
        before, self.place = self._distance(), self.cells[action]
        return self._observe(), before - self._distance() - 0.1, self._distance() == 0, False, {}


def make_env() -> gym.Env:
    return Monitor(TimeLimit(Jumps(), 40))


def train(algo: str, seed: int, steps: int, portions: int, **kwargs: Any) -> dict[str, Any]:
    """:return: mean returns of seeded episodes after each portion of the steps, and CPU seconds of training"""
    env, eval_env = make_env(), make_env()
    model: Any = ALGORITHMS[algo]("MlpPolicy", env, seed=seed, device="cpu", **kwargs)
    returns, counts, cpu = [], [], 0.0
    for portion in range(1, portions + 1):
        begun = time.process_time()
        model.learn(steps * portion // portions - model.num_timesteps, reset_num_timesteps=False)
        cpu += time.process_time() - begun
        eval_env.reset(seed=EVALUATION_SEED)
        episodes, _ = evaluate_policy(model, eval_env, EVALUATION_EPISODES, return_episode_rewards=True, warn=False)
        mean = float(np.mean(episodes))
        returns.append(round(mean, 3))
        counts.append(model.num_timesteps)
        print(f"{algo} seed {seed}: {counts[-1]} steps, return {mean:.2f}, {cpu:.0f} s of CPU", flush=True)
    return {"algo": algo, "seed": seed, "steps": counts, "returns": returns, "cpu": round(cpu, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algos", nargs="+", choices=list(ALGORITHMS), default=list(ALGORITHMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of every algorithm")
    parser.add_argument("--steps", type=int, default=20_000, help="environment steps of every run")
    parser.add_argument("--evaluations", type=int, default=4, help="evaluations of every run")
    parser.add_argument("--num-candidates", type=int, help="actions that MuZero's search draws, by default it considers all")
    parser.add_argument("--json", type=Path, default=RESULTS / "masked_actions.json")
    args = parser.parse_args()
    th.set_num_threads(1)
    command = " ".join(["python examples/masked_actions.py", *sys.argv[1:]])
    drawn = None if args.num_candidates is None else {"num_candidates": args.num_candidates}
    kwargs = {"policy_kwargs": {"action_kwargs": drawn}}
    runs = []
    for seed in args.seeds:
        for algo in args.algos:
            runs.append(train(algo, seed, args.steps, args.evaluations, **(kwargs if algo == "MuZero" else {})))
            args.json.write_text(json.dumps({"command": command, "runs": runs}, indent=1) + "\n")
    for algo in args.algos:
        final = [run["returns"][-1] for run in runs if run["algo"] == algo]
        print(f"{algo}: median return {np.median(final):.2f}, worst {min(final):.2f} over {len(final)} seeds")


if __name__ == "__main__":
    main()
