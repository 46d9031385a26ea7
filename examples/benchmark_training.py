"""
Milliseconds per update of ``MuZero.train``, beside the time that its matrix products take alone.

    python examples/benchmark_training.py --widths 64 128 256 --batch-sizes 128 256

CartPole-v1 with the default settings, a replay buffer of random episodes and made-up search policies. The products are those
of every linear layer on the rows that it meets in one update, forward and backward, as bare calls on preallocated arrays.
Updates and products take turns; all figures are medians. ``outside`` is what no phase covers: switching modes and logging.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from sb3_muzero import MuZero
from sb3_muzero.learning import learner

TRANSITIONS = 4000


def make_model(width: int, batch_size: int, device: str) -> MuZero:
    """:return: a model that has collected random episodes, with random search policies to learn from"""
    model = MuZero(
        "MlpPolicy",
        "CartPole-v1",
        batch_size=batch_size,
        learning_starts=TRANSITIONS,
        policy_kwargs={"net_arch": [width], "latent_dim": width},
        seed=0,
        device=device,
    ).learn(TRANSITIONS)
    policies = model.replay_buffer.policies[: model.replay_buffer.size()]
    policies[:] = np.random.default_rng(0).dirichlet(np.ones(policies.shape[-1]), size=policies.shape[:-1])
    return model


class Stopwatch:
    """
    Adds up the seconds that calls of functions take.

    :param synchronize: called before the clock is read: what a GPU has queued counts for the call that queued it
    """

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.synchronize = synchronize
        self.seconds = 0.0

    def time(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """:return: the function, timed"""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.synchronize()
            self.seconds += time.perf_counter() - start
            return result

        return timed


def phases(model: MuZero) -> dict[str, list[tuple[Any, str]]]:
    """:return: for each phase of an update the functions that it consists of: whose attributes they are, and their names"""
    optimizer = model.policy.optimizer
    return {
        "sample": [(model.replay_buffer, "sample")],
        "targets": [
            (model.policy.latent_model, "update_statistics"),
            (model.learner, "targets"),
            (model.learner.supports, "update"),
        ],
        "forward": [(learner, "muzero_loss")],
        "backward": [(torch.Tensor, "backward")],
        "optimiser": [(optimizer, "zero_grad"), (nn.utils, "clip_grad_norm_"), (optimizer, "step")],
    }


def time_parts(
    call: Callable[[], Any], parts: dict[str, list[tuple[Any, str]]], synchronize: Callable[[], None]
) -> tuple[float, dict[str, float]]:
    """
    :param call: what is timed
    :param parts: functions in it, as ``phases`` gives them
    :param synchronize: waits for the GPU
    :return: seconds of the whole, and of each part
    """
    watches = {name: Stopwatch(synchronize) for name in parts}
    whole = Stopwatch(synchronize)
    with ExitStack() as patches:
        for name, functions in parts.items():
            for owner, function in functions:
                timed = watches[name].time(getattr(owner, function))
                patches.enter_context(patch.object(owner, function, timed))
        whole.time(call)()
    return whole.seconds, {name: watch.seconds for name, watch in watches.items()}


class Product(NamedTuple):
    """
    One use of a linear layer in an update: a product with its weights, and those of its backward pass.

    :param rows: rows of its input
    :param inputs: width of its input
    :param outputs: width of its output
    :param trained: whether the weights get a gradient
    :param passes_on: whether the input gets one
    """

    rows: int
    inputs: int
    outputs: int
    trained: bool
    passes_on: bool


def products(model: MuZero) -> Iterator[Product]:
    """:return: the uses of linear layers in one update, in order"""
    batch, unroll = model.batch_size, model.unroll_steps
    online, target = model.policy.latent_model, model.policy.latent_model_target
    passes: list[tuple[Any, int, bool]] = [
        (target.representation, (unroll + 1) * batch, False),
        (target.prediction, (unroll + 1) * batch, False),
        (online.representation, batch, True),
        *[(online.dynamics, batch, True)] * unroll,
        (online.prediction, (unroll + 1) * batch, True),
        (online.representation, unroll * batch, False),
    ]
    for network, rows, trained in passes:
        layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
        for layer in layers:
            # Observations need no gradient
            first = network is online.representation and layer is layers[0]
            yield Product(rows, layer.in_features, layer.out_features, trained, trained and not first)


def prepare(product: Product, device: torch.device) -> list[Callable[[], Any]]:
    """:return: its matrix products, on arrays of their own"""
    rows, inputs, outputs, trained, passes_on = product
    generator = torch.Generator().manual_seed(0)
    x, weight, grad = (
        torch.randn(shape, generator=generator).to(device) for shape in ((rows, inputs), (outputs, inputs), (rows, outputs))
    )
    bias, y, weight_grad, x_grad = weight[:, 0].clone(), grad.clone(), weight.clone(), x.clone()
    calls: list[Callable[[], Any]] = [lambda: torch.addmm(bias, x, weight.t(), out=y)]
    if trained:
        calls.append(lambda: torch.mm(grad.t(), x, out=weight_grad))
    if passes_on:
        calls.append(lambda: torch.mm(grad, weight, out=x_grad))
    return calls


def measure(width: int, batch_size: int, args: argparse.Namespace) -> dict[str, Any]:
    """:return: milliseconds per update, of its matrix products and of its phases"""
    model = make_model(width, batch_size, args.device)
    model.train(args.warmup, batch_size)
    synchronize = torch.cuda.synchronize if model.device.type == "cuda" else lambda: None
    calls = [call for product in products(model) for call in prepare(product, model.device)]

    def multiply() -> None:
        for call in calls:
            call()

    def update() -> None:
        model.train(1, batch_size)

    split = phases(model)
    seconds: dict[str, list[float]] = {name: [] for name in ("update", "gemm", *split, "outside")}
    for _ in range(args.repeats):
        for name, call in (("update", update), ("gemm", multiply)):
            seconds[name].append(time_parts(call, {}, synchronize)[0])
        whole, parts = time_parts(update, split, synchronize)
        for name, part in parts.items():
            seconds[name].append(part)
        seconds["outside"].append(whole - sum(parts.values()))
    figures = {name: 1000 * median(values) for name, values in seconds.items()}
    return {"width": width, "batch_size": batch_size, "ratio": figures["update"] / figures["gemm"], **figures}


def resident_megabytes() -> float:
    """:return: what the process holds in memory"""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def write_results(path: Path, settings: dict[str, Any], results: Any) -> None:
    """Writes figures and what they were measured with as JSON."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"settings": settings, "versions": versions, "results": results}, indent=1) + "\n")


def row(result: dict[str, Any]) -> str:
    """:return: one row of the Markdown table"""
    return "| " + " | ".join(f"{value:.2f}" if isinstance(value, float) else str(value) for value in result.values()) + " |"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", nargs="+", type=int, default=[64, 128, 256], help="hidden and latent units")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[128, 256], help="sequences per update")
    parser.add_argument("--repeats", type=int, default=100, help="updates that a median is taken of")
    parser.add_argument("--warmup", type=int, default=50, help="updates before, in which the supports fit themselves")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of PyTorch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures there")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    results = []
    for width in args.widths:
        for batch_size in args.batch_sizes:
            results.append(measure(width, batch_size, args))
            if len(results) == 1:
                print("Milliseconds per update, and of its parts; ratio: update / gemm, the time of its matrix products\n")
                print("| " + " | ".join(results[0]) + " |\n|" + "---|" * len(results[0]))
            print(row(results[-1]), flush=True)
    if args.json:
        write_results(args.json, {key: getattr(args, key) for key in ("repeats", "warmup", "threads", "device")}, results)


if __name__ == "__main__":
    main()
