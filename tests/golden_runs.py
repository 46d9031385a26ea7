"""
Short seeded runs on one CPU thread, and digests of all that they leave behind.

    python tests/golden_runs.py            # compares with golden_runs.json
    python tests/golden_runs.py --update   # stores this machine's digests there

The digests depend on the machine's arithmetic, so they are stored for each kind of processor and library version.
"""

import argparse
import ast
import hashlib
import json
import platform
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numba
import numpy as np
import torch as th
import yaml
from sb3_contrib.common.envs import InvalidActionEnvDiscrete
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import SimpleMultiObsEnv
from stable_baselines3.common.utils import LinearSchedule, set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from sb3_muzero import MuZero
from sb3_muzero.replay.samplers import PrioritizedSampler

FILE = Path(__file__).with_suffix(".json")
SETTINGS = Path(__file__).parents[1] / "zoo_configs" / "muzero.yml"


def section(name: str, **changes: Any) -> dict[str, Any]:
    """:return: Constructor arguments of a section of ``zoo_configs/muzero.yml``, in a small budget"""

    def parsed(value: Any) -> Any:
        if isinstance(value, str) and value.startswith("lin_"):
            return LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0)
        if isinstance(value, str) and value.startswith("dict("):
            return {word.arg: ast.literal_eval(word.value) for word in ast.parse(value, mode="eval").body.keywords}  # type: ignore
        return value

    settings = yaml.safe_load(SETTINGS.read_text())[name]
    others = ("n_timesteps", "env_wrapper", "n_envs", "env_kwargs", "policy")
    arguments = {key: parsed(value) for key, value in settings.items() if key not in others}
    return {**arguments, "learning_starts": 64, "buffer_size": 2_000, **changes}


def run(policy: str, env: Any, steps: int, evaluation_env: Any = None, **kwargs: Any) -> tuple[MuZero, list[float]]:
    model = MuZero(policy, env, seed=3, device="cpu", **kwargs).learn(steps)
    tested = model.get_env() if evaluation_env is None else evaluation_env
    if isinstance(tested, VecEnv):
        tested.seed(5)
    rewards, _ = evaluate_policy(
        model, tested, n_eval_episodes=2, return_episode_rewards=True, warn=False, use_masking=model.uses_action_masks
    )
    return model, rewards


def cart_poles(n_envs: int, **kwargs: Any) -> VecEnv:
    return make_vec_env("CartPole-v1", n_envs, seed=7, **kwargs)


def minatar_breakout(policy: str, **changes: Any) -> tuple[MuZero, list[float]]:
    from sb3_muzero.envs.minatar import ImageObservation  # registers the games

    env = make_vec_env("MinAtar/Breakout-v1", 4, seed=7, wrapper_class=ImageObservation)
    return run(policy, env, 240, **section("MinAtar/Breakout-v1", batch_size=32, **changes))


def board_game(name: str, **changes: Any) -> tuple[MuZero, list[float]]:
    from sb3_muzero.games import GAMES

    env = make_vec_env(GAMES[name], 8, seed=7, env_kwargs={"random_plies": 2} if name == "ConnectFour" else {})
    policy = "ResNetPolicy" if name == "ConnectFour" else "MlpPolicy"
    return run(policy, env, 256, **section(f"sb3_muzero/{name}-v0", batch_size=32, num_simulations=12, **changes))


BUSY: dict[str, Any] = {
    "learning_rate": LinearSchedule(2e-3, 5e-4, 1.0),
    "exploration": LinearSchedule(2.0, 0.5, 1.0),
    "novelty_coef": LinearSchedule(0.5, 0.0, 1.0),
    "n_steps": 7,
    "n_steps_half_life": 300,
    "reanalyze_ratio": 0.5,
    "tau": 0.5,
    "target_update_interval": 5,
    "learning_starts": 100,
    "train_freq": 1,
    "buffer_size": 600,
    "replay_buffer_kwargs": {"priority_exponent": 0.6},
}
FEW: dict[str, Any] = {"learning_starts": 64, "batch_size": 16, "num_simulations": 6}

CASES: dict[str, Callable[[], tuple[MuZero, list[float]]]] = {
    "CartPole, defaults": lambda: run("MlpPolicy", cart_poles(1), 900),
    "3 CartPoles, priorities, novelty, schedules, half-life": lambda: run("MlpPolicy", cart_poles(3), 1_200, **BUSY),
    "LunarLander, its section": lambda: run(
        "MlpPolicy", make_vec_env("LunarLander-v3", 1, seed=7), 300, **section("LunarLander-v3", batch_size=32)
    ),
    "FrozenLake8x8, its section": lambda: run(
        "MlpPolicy", make_vec_env("FrozenLake8x8-v1", 1, seed=7), 600, **section("FrozenLake8x8-v1", batch_size=32)
    ),
    "MinAtar Breakout, CnnPolicy": lambda: minatar_breakout("CnnPolicy"),
    "MinAtar Breakout, ResNetPolicy": lambda: minatar_breakout(
        "ResNetPolicy", num_simulations=8, policy_kwargs={"num_channels": 8, "random_shift": 1}
    ),
    "Dict observations": lambda: run("MultiInputPolicy", SimpleMultiObsEnv(), 200, **FEW),
    "action masks": lambda: run("MlpPolicy", InvalidActionEnvDiscrete(dim=20, n_invalid_actions=10), 300, **FEW),
    "TicTacToe": lambda: board_game("TicTacToe"),
    "ConnectFour, ResNetPolicy": lambda: board_game("ConnectFour", buffer_size=400),
    "CartPole, PUCT": lambda: run("MlpPolicy", cart_poles(2), 400, search="puct", reanalyze_ratio=0.5, **FEW),
    "CartPole, PyTorch planner": lambda: run(
        "MlpPolicy", cart_poles(1), 200, policy_kwargs={"activation_fn": th.nn.Softplus}, **FEW
    ),
    "CartPole, VecNormalize": lambda: run("MlpPolicy", VecNormalize(cart_poles(2)), 400, **FEW),
    "CartPole, VecFrameStack": lambda: run(
        "MlpPolicy", VecFrameStack(cart_poles(2), 4), 400, buffer_size=200, reanalyze_ratio=1.0, **FEW
    ),
}  # fmt: skip


def digest(arrays: Iterable[Any]) -> str:
    """:return: SHA-256 over arrays, whatever their order and their names"""
    hashes = []
    for array in arrays:
        values = np.ascontiguousarray(array.numpy(force=True) if isinstance(array, th.Tensor) else array)
        hashes.append(hashlib.sha256(f"{values.dtype.str}{values.shape}".encode() + values.tobytes()).digest())
    return hashlib.sha256(b"".join(sorted(hashes))).hexdigest()[:16]


def digests(model: MuZero, rewards: list[float]) -> dict[str, str]:
    """:return: Digests of all parameters, of what the replay buffer holds, and of the rewards of the evaluation's episodes"""
    buffer, size = model.replay_buffer, model.replay_buffer.size()
    stored = [buffer.actions[:size], buffer.rewards[:size], buffer.policies[:size], buffer.terminals[:size]]
    stored += [buffer.observations.frames[:size], buffer.observations.ends[:size]]
    if isinstance(buffer.sampler, PrioritizedSampler):
        stored.append(buffer.sampler.priorities[np.arange(size * buffer.n_envs)])
    parameters = model.policy.state_dict().values()
    return {"parameters": digest(parameters), "buffer": digest(stored), "evaluation": digest([np.asarray(rewards)])}


def machine() -> str:
    """:return: What the digests depend on: kind of processor and versions"""
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if sys.platform == "linux" else []
    info = dict(map(str.strip, line.partition(":")[::2]) for line in lines)  # type: ignore[misc]
    processor = " ".join(info.get(name, "?") for name in ("vendor_id", "cpu family", "model")) + f" {platform.machine()}"
    capability = th.backends.cpu.get_cpu_capability()
    versions = ", ".join(f"{module.__name__} {module.__version__}" for module in (th, np, numba, gym))
    return f"{processor}, {capability}, {versions}"


def measure(names: Iterable[str] = CASES) -> dict[str, dict[str, str]]:
    """:return: Digests of each run"""
    threads = th.get_num_threads()
    th.set_num_threads(1)
    try:
        results = {}
        for name in names:
            set_random_seed(0)  # some environments draw from global generators when they are made
            results[name] = digests(*CASES[name]())
        return results
    finally:
        th.set_num_threads(threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="store the digests")
    parser.add_argument("--cases", nargs="*", default=list(CASES), help="runs to make, all by default")
    args = parser.parse_args()
    stored = json.loads(FILE.read_text()) if FILE.exists() else {}
    known = stored.setdefault(machine(), {})
    print(machine())
    for name in args.cases:
        found = measure([name])[name]
        equal = [part for part, value in found.items() if known.get(name, {}).get(part) == value]
        verdict = (
            "equal" if len(equal) == len(found) else f"differs in {', '.join(part for part in found if part not in equal)}"
        )
        print(f"{name}: {verdict}", flush=True)
        known[name] = found
    if args.update:
        FILE.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
