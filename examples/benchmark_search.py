"""
Speed of the search compared to its network alone, to the peak rate of the processor, and to mctx.

    taskset -c 0 python examples/benchmark_search.py
    taskset -c 0 python examples/benchmark_search.py --against-mctx --num-bins 601

Each row plans for B observations with S simulations each, from observations to ``SearchOutput``, as ``MuZeroPolicy.plan``.
All times are medians. Columns:

- ``search``: time of a search; ``sims/s``: B * S / this time.
- ``network``: the inferences of that search (one of the roots, S of a step, with all heads and scalars) without a tree, in
  compiled code; ``eager``: the same in PyTorch; ``/network``: search / network.
- ``GEMM limit``: floating point operations of the linear layers in these inferences / the rate of ``torch.mm`` on 1024 x 1024.
- ``mctx``: time of the same search of the same model by mctx, jitted from observation to action; ``mctx/ours``: mctx / search;
  ``jit``: compile time of JAX in seconds, for each B, S and model.
- ``x LightZero``: ratio to simulations per second of LightZero (C++ tree, scalar heads, model of this size, EPYC core).

Weights are random. The measurements of a row take turns, so that changes of the machine's speed affect all of them.
``--against-mctx`` needs ``pip install jax mctx``.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from mctx_peer import MCTX_QVALUES, SEARCH_KWARGS, ScalarSupport, check_agreement, mctx_search, use_threads
from stable_baselines3.common.env_util import make_vec_env
from torch import nn

from sb3_muzero import MuZero
from sb3_muzero.common.jit import njit_uncached
from sb3_muzero.policies import MuZeroPolicy
from sb3_muzero.search.backends.numba.fused import DYNAMICS, REPRESENTATION, evaluate
from sb3_muzero.search.backends.numba.program import BLOCK
from sb3_muzero.search.planner import SEARCHES
from sb3_muzero.search.state import instantiate_leaves

ROUNDS = 7
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
BOUNDS = {"value": (-10.0, 10.0), "reward": (-1.0, 1.0)}
# Simulations per second of LightZero, C++ tree, model "a2" with scalar heads, on one core of an AMD EPYC; (B, S) -> figure
LIGHTZERO = {
    "puct": {(1, 16): 1.3e3, (8, 16): 10e3, (8, 50): 8.4e3, (32, 16): 36e3, (32, 50): 31e3},
    "gumbel": {(1, 16): 2.0e3, (8, 16): 11e3, (8, 50): 13e3, (32, 16): 30e3, (32, 50): 35e3},
}


class Sizes(NamedTuple):
    """Sizes of a model: each of its three networks has one hidden layer."""

    num_features: int
    num_actions: int
    latent_dim: int
    hidden: int


MODELS = {"a2": Sizes(4, 2, 128, 128), "a18": Sizes(4, 18, 256, 256)}


@dataclass
class Row:
    """Measurements of one row; times in microseconds unless named otherwise."""

    model: str
    search: str
    batch_size: int
    num_simulations: int
    search_us: float
    network_us: float
    eager_us: float
    gemm_limit_us: float
    mctx_us: float | None = None
    mctx_compile_s: float | None = None

    @property
    def simulations_per_second(self) -> float:
        return self.batch_size * self.num_simulations / self.search_us * 1e6

    @property
    def times_mctx(self) -> float | None:
        return self.mctx_us and self.mctx_us / self.search_us

    @property
    def times_lightzero(self) -> float | None:
        reference = LIGHTZERO[self.search].get((self.batch_size, self.num_simulations)) if self.model == "a2" else None
        return reference and self.simulations_per_second / reference


def make_policy(model: str, search: str, args: argparse.Namespace) -> MuZeroPolicy:
    """:return: a policy with random heads (fresh ones are zero, so that all actions tie) and some statistics of its input"""
    sizes, is_scalar = MODELS[model], args.heads == "scalar"
    torch.manual_seed(0)
    policy = MuZeroPolicy(
        spaces.Box(-np.inf, np.inf, (sizes.num_features,)),
        spaces.Discrete(sizes.num_actions),
        lambda progress: 1e-3,
        net_arch=[sizes.hidden],
        latent_dim=sizes.latent_dim,
        num_bins=args.num_bins,
        value_support=BOUNDS["value"],
        reward_support=BOUNDS["reward"],
        search=search,
        search_kwargs=SEARCH_KWARGS[search] | (MCTX_QVALUES if args.against_mctx else {}),
    )
    latent_model: Any = policy.latent_model
    if is_scalar:
        latent_model.value_support = ScalarSupport(BOUNDS["value"])
        latent_model.reward_support = ScalarSupport(BOUNDS["reward"])
        latent_model.prediction.value_head = nn.Linear(sizes.hidden, 1)
        latent_model.dynamics.reward_head = nn.Linear(sizes.hidden, 1)
    for head in ("prediction.policy_head", "prediction.value_head", "dynamics.reward_head"):
        nn.init.normal_(latent_model.get_parameter(f"{head}.weight"), std=2 * sizes.hidden**-0.5)
    latent_model.update_statistics(1 + 2 * torch.randn(100, sizes.num_features))
    policy.set_training_mode(False)
    if policy.uncompiled_reason:
        sys.exit(f"Using the PyTorch planner: {policy.uncompiled_reason}")
    return policy


def set_simulations(policy: MuZeroPolicy, num_simulations: int) -> None:
    policy.planner.settings = policy.planner.settings._replace(num_simulations=num_simulations)


def make_observations(batch_size: int, model: str) -> torch.Tensor:
    return torch.randn(batch_size, MODELS[model].num_features, generator=torch.Generator().manual_seed(1))


@cache
def compiled_inferences() -> Any:
    """:return: a compiled function that runs the inferences of a search, so that no call from Python is between them"""

    @njit_uncached
    def inferences(program, leaves, features, step_inputs, outputs, num_simulations):  # type: ignore[no-untyped-def]
        evaluate(program, leaves, np.int64(REPRESENTATION), features, *outputs)
        for _ in range(num_simulations):
            evaluate(program, leaves, np.int64(DYNAMICS), step_inputs, *outputs)

    return inferences


def compiled_network(policy: MuZeroPolicy, obs: torch.Tensor, num_simulations: int) -> Callable[[], Any]:
    """:return: a function that runs the inferences of a search in compiled code, by internals of ``sb3_muzero.search``"""
    model = policy.planner.compiled_model(policy.latent_model)
    features = obs.numpy().astype(np.float32)
    root = model.initial_inference(features)
    one_hot = np.eye(model.num_actions, dtype=np.float32)[np.arange(len(obs)) % model.num_actions]
    step_inputs = np.concatenate((root.latent, one_hot), axis=1)
    outputs = np.array(root.latent), np.array(root.prior_logits), np.zeros((3, len(obs)), np.float32)
    leaves = instantiate_leaves(BLOCK, model.num_actions)
    return lambda: compiled_inferences()(model._program, leaves, features, step_inputs, outputs, num_simulations)


def eager_network(policy: MuZeroPolicy, obs: torch.Tensor, num_simulations: int) -> Callable[[], Any]:
    """The same inferences by PyTorch."""
    model: Any = policy.latent_model
    action = torch.arange(len(obs)) % policy.actions.num_candidates

    def predict(latent: torch.Tensor) -> None:
        predicted = model.prediction(latent)
        model.value_support.expectation(predicted.value_logits)

    @torch.inference_mode()
    def inferences() -> None:
        latent = policy.represent(obs)
        predict(latent)
        for _ in range(num_simulations):
            step = model.dynamics(latent, model.action_encoder(action))
            model.reward_support.expectation(step.reward_logits)
            predict(step.latent)

    return inferences


def gemm_flops(policy: MuZeroPolicy, batch_size: int, num_simulations: int) -> int:
    """:return: floating point operations of the linear layers in the inferences of a search"""

    def flops(module: nn.Module) -> int:
        return sum(2 * m.in_features * m.out_features for m in module.modules() if isinstance(m, nn.Linear))

    model: Any = policy.latent_model
    prediction = flops(model.prediction)
    root, step = flops(model.representation) + prediction, flops(model.dynamics) + prediction
    return batch_size * (root + num_simulations * step)


def peak_gemm_rate(size: int = 1024, seconds: float = 1.0) -> float:
    """:return: floating point operations per second of a large ``torch.mm``, in its fastest run"""
    a, b, out = (torch.randn(size, size) for _ in range(3))
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def measure(functions: dict[str, Callable[[], Any]], args: argparse.Namespace) -> dict[str, float]:
    """:return: microseconds of a call: the functions take turns, median over rounds of the median within each"""
    clock = CLOCKS[args.clock]
    rounds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(ROUNDS):
        for name, function in functions.items():
            times: list[float] = []
            end = time.perf_counter() + args.seconds / ROUNDS
            while not times or time.perf_counter() < end:
                start = clock()
                function()
                times.append(clock() - start)
            rounds[name].append(median(times))
    return {name: 1e6 * median(times) for name, times in rounds.items()}


def first_call_seconds(function: Callable[[], Any]) -> float:
    """:return: seconds that the first call takes more than later ones"""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return times[0] - min(times[1:])


def measure_row(policy: MuZeroPolicy, model: str, batch_size: int, peak: float, args: argparse.Namespace) -> Row:
    obs, settings = make_observations(batch_size, model), policy.planner.settings
    num_simulations = settings.num_simulations
    functions: dict[str, Callable[[], Any]] = {"search": lambda: policy.plan(obs)}
    compile_s = None
    if args.against_mctx:
        functions["mctx"] = mctx_search(policy, obs, num_simulations)
        compile_s = first_call_seconds(functions["mctx"])
    functions["network"] = compiled_network(policy, obs, num_simulations)
    functions["eager"] = eager_network(policy, obs, num_simulations)
    us = measure(functions, args)
    gemm_limit = gemm_flops(policy, batch_size, num_simulations) / peak * 1e6
    return Row(model, settings.search, batch_size, num_simulations, us["search"], us["network"], us["eager"], gemm_limit,
               us.get("mctx"), compile_s)  # fmt: skip


def first_plan_seconds(args: argparse.Namespace) -> dict[str, float]:
    """:return: seconds that the first search of a process takes more than later ones, with an empty and a filled disk cache"""
    command = [sys.executable, __file__, "--first-plan", "--models", args.models[0], "--searches", args.searches[0]]
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for state in ("cold", "warm"):
            env = os.environ | {"NUMBA_CACHE_DIR": folder}
            child = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
            seconds[state] = float(child.stdout.split()[-1])
    return seconds


def acting_rate(args: argparse.Namespace, n_envs: int = 8, num_simulations: int = 50) -> float:
    """:return: environment steps per second of an untrained model that acts in CartPole, nothing learned or stored"""
    env = make_vec_env("CartPole-v1", n_envs, seed=0)
    model = MuZero("MlpPolicy", env, num_simulations=num_simulations, seed=0, device="cpu")
    obs: Any = env.reset()
    clock = CLOCKS[args.clock]

    def steps(seconds: float) -> float:
        nonlocal obs
        count, start = 0, clock()
        while clock() < start + seconds:
            action, _ = model.predict(obs)
            obs = env.step(action)[0]
            count += n_envs
        return count / (clock() - start)

    steps(0.5)
    return median(steps(args.seconds) for _ in range(5))


def table(rows: list[Row], with_head: bool = True) -> str:
    """:return: Markdown; columns that no row can fill are left out"""

    def factor(number: float | None) -> str:
        return "-" if number is None else f"{number:.2f}" if number < 10 else f"{number:.0f}"

    columns: dict[str, Callable[[Row], str]] = {
        "model": lambda r: r.model,
        "search": lambda r: r.search,
        "B": lambda r: str(r.batch_size),
        "S": lambda r: str(r.num_simulations),
        "sims/s": lambda r: f"{r.simulations_per_second / 1e3:.1f} k",
        "search µs": lambda r: f"{r.search_us:.0f}",
        "network µs": lambda r: f"{r.network_us:.0f}",
        "eager µs": lambda r: f"{r.eager_us:.0f}",
        "/network": lambda r: factor(r.search_us / r.network_us),
        "GEMM limit µs": lambda r: f"{r.gemm_limit_us:.0f}",
        "x LightZero": lambda r: factor(r.times_lightzero),
    }
    if any(r.mctx_us for r in rows):
        columns["mctx µs"] = lambda r: f"{r.mctx_us:.0f}"
        columns["mctx/ours"] = lambda r: factor(r.times_mctx)
        columns["jit s"] = lambda r: f"{r.mctx_compile_s:.1f}"
    head = [list(columns), ["-" * len(name) for name in columns]] if with_head else []
    cells = head + [[cell(row) for cell in columns.values()] for row in rows]
    widths = [max(len(name), 8) for name in columns]
    return "\n".join("| " + " | ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS),
                        help="; ".join(f"{name}: {sizes}" for name, sizes in MODELS.items()))  # fmt: skip
    parser.add_argument("--searches", nargs="+", choices=list(SEARCHES), default=list(SEARCHES))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 32, 256], metavar="B", help="roots per search")
    parser.add_argument("--num-simulations", nargs="+", type=int, default=[16, 50], metavar="S", help="of each root")
    parser.add_argument("--heads", choices=["categorical", "scalar"], default="categorical", help="of value and reward")
    parser.add_argument("--num-bins", type=int, default=101, help="of categorical heads; the paper has 601")
    parser.add_argument("--threads", type=int, default=1, help="of the search, PyTorch and JAX; the bare network has one")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall",
                        help="cpu: what this process had of its core, for a machine that others use too")  # fmt: skip
    parser.add_argument("--against-mctx", action="store_true", help="with its scope of Q values: per node, not per tree")
    parser.add_argument("--acting", action="store_true", help="also act in 8 CartPoles; for nothing else, add --models")
    parser.add_argument("--json", type=Path, help="write what was measured there")
    parser.add_argument("--first-plan", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.against_mctx and not (find_spec("jax") and find_spec("mctx")):
        parser.error("--against-mctx needs JAX and mctx: pip install jax mctx")  # exit code 2
    return args


def main() -> None:
    args = parse_args()
    use_threads(args.threads)
    if args.first_plan:
        policy, obs = make_policy(args.models[0], args.searches[0], args), make_observations(8, args.models[0])
        print(first_call_seconds(lambda: policy.plan(obs)))
        return

    peak = peak_gemm_rate()
    packages = {"sb3_muzero", "torch", "numba", "numpy", "jax", "jaxlib", "mctx"}
    versions = {d.name: d.version for d in distributions() if d.name in packages}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    record: dict[str, Any] = {
        "command": " ".join(["python", "examples/benchmark_search.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {cores} of {os.cpu_count()} cores for this process",
        "versions": {"python": platform.python_version(), **dict(sorted(versions.items()))},
        "models": {name: MODELS[name]._asdict() for name in args.models},
        "heads": args.heads if args.heads == "scalar" else f"{args.num_bins} bins",
        "peak_gemm_gflops": round(peak / 1e9, 1),
    }
    for key, value in record.items():
        print(f"{key}: {value}")
    if args.models:
        record["first_plan_seconds"] = first_plan_seconds(args)
        print("seconds to compile, cold and warm disk cache: {cold:.1f}, {warm:.2f}".format(**record["first_plan_seconds"]))
    policies = {(model, search): make_policy(model, search, args) for model in args.models for search in args.searches}
    if args.against_mctx:
        for (model, search), policy in policies.items():
            set_simulations(policy, max(args.num_simulations))
            print(f"{model} {search}: {check_agreement(policy, make_observations(64, model))}", flush=True)
    rows: list[Row] = []
    for (model, _), policy in policies.items():
        for batch_size in args.batch_sizes:
            for num_simulations in args.num_simulations:
                set_simulations(policy, num_simulations)
                rows.append(measure_row(policy, model, batch_size, peak, args))
                print(table(rows[-1:], with_head=len(rows) == 1), flush=True)
    if args.acting:
        record["acting_steps_per_second"] = acting_rate(args)
        print(f"\nActing in 8 CartPole-v1 with 50 simulations: {record['acting_steps_per_second']:.0f} environment steps/s")
    if args.json:
        record["rows"] = [asdict(row) | {"simulations_per_second": row.simulations_per_second} for row in rows]
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
