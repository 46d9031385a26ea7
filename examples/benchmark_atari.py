"""
Atari's speed and memory: environment steps and updates per second, where the time goes, and the size of the replay buffer.

    python examples/benchmark_atari.py --policy CnnPolicy --batch-size 32
    python examples/benchmark_atari.py --policy ResNetPolicy --batch-size 256 --unroll-steps 5 --device cuda

ALE/Pong-v5 behind SB3's ``AtariWrapper`` and a stack of four frames, every batch searched anew. ``ResNetPolicy`` has the size
of EfficientZero's network (https://arxiv.org/abs/2111.00210, Appendix A). Steps and updates are timed apart, after a warm-up.
Memory is what the process grows by while a replay buffer is filled with frames of noise.
"""

import argparse
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import torch
from benchmark_training import resident_megabytes, time_parts, write_results
from gymnasium import spaces
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from sb3_muzero import MuZero
from sb3_muzero.replay.replay_buffer import SequenceReplayBuffer
from sb3_muzero.replay.sequences import SearchStatistics

gym.register_envs(ale_py)
FRAME_STACK = 4
POLICY_KWARGS: dict[str, dict[str, Any]] = {"CnnPolicy": {}, "ResNetPolicy": {"num_channels": 64, "num_blocks": 1}}


def make_env(n_envs: int) -> VecEnv:
    """:return: Pong without the emulator's own frame skip: ``AtariWrapper`` has one"""
    env_kwargs = {"frameskip": 1, "repeat_action_probability": 0.0}
    return VecFrameStack(make_atari_env("ALE/Pong-v5", n_envs, seed=0, env_kwargs=env_kwargs), FRAME_STACK)


def make_model(args: argparse.Namespace) -> MuZero:
    """:return: a model with a replay buffer of random steps, whose rollouts are as long as is timed"""
    model = MuZero(
        args.policy,
        make_env(args.n_envs),
        buffer_size=10_000,
        learning_starts=args.warmup_steps,
        batch_size=args.batch_size,
        train_freq=args.steps // args.n_envs,
        num_simulations=args.num_simulations,
        unroll_steps=args.unroll_steps,
        reanalyze_ratio=1.0,
        policy_kwargs=POLICY_KWARGS[args.policy] | ({"bf16": True} if args.bf16 else {}),
        seed=0,
        device=args.device,
    )
    return model.learn(args.warmup_steps)


def speed(args: argparse.Namespace) -> dict[str, Any]:
    """:return: steps and updates per second, and the milliseconds of their parts"""
    model = make_model(args)
    synchronize = torch.cuda.synchronize if model.device.type == "cuda" else lambda: None
    figures: dict[str, Any] = {"planning": model.policy.uncompiled_reason or "in compiled code"}

    def per(times: int, call: Any, parts: dict[str, list[tuple[Any, str]]]) -> tuple[float, dict[str, float]]:
        synchronize()
        seconds, split = time_parts(call, parts, synchronize)
        milliseconds = {name: round(1000 * part / times, 3) for name, part in ({"all": seconds} | split).items()}
        return times / seconds, milliseconds

    policy, env, buffer = model.policy, model.env, model.replay_buffer
    assert env is not None
    model.gradient_steps = 0
    collecting: dict[str, list[tuple[Any, str]]] = {
        "environment": [(env, "step")],
        "search": [(policy, "plan")],
        "store": [(buffer, "add")],
    }
    model.learn(args.steps, reset_num_timesteps=False)  # compiles the search
    rate, milliseconds = per(args.steps, lambda: model.learn(args.steps, reset_num_timesteps=False), collecting)
    assert milliseconds["search"] > 0, "no point was made in the warm-up: raise --warmup-steps"
    figures |= {"environment steps per second": round(rate, 1), "milliseconds per step": milliseconds}

    model.train(args.warmup_updates, args.batch_size)
    learning: dict[str, list[tuple[Any, str]]] = {
        "sample": [(buffer, "sample")],
        "reanalyze": [(model, "reanalyzer")],
        "targets": [
            (policy.latent_model, "update_statistics"),
            (model.learner, "targets"),
            (model.learner.supports, "update"),
        ],
        "loss and gradients": [(model.learner, "backward")],
        "optimiser": [(torch.nn.utils, "clip_grad_norm_"), (policy.optimizer, "step")],
    }
    rate, milliseconds = per(args.updates, lambda: model.train(args.updates, args.batch_size), learning)
    return figures | {"updates per second": round(rate, 2), "milliseconds per update": milliseconds}


def memory(steps: int, n_envs: int) -> dict[str, float]:
    """:return: megabytes that a full replay buffer of so many steps takes, and those of the frames alone"""
    space = spaces.Box(0, 255, (FRAME_STACK, 84, 84), np.uint8)
    before = resident_megabytes()
    buffer = SequenceReplayBuffer(steps, space, spaces.Discrete(6), device="cpu", n_envs=n_envs, frame_stack=FRAME_STACK)
    rng = np.random.default_rng(0)
    stacks = np.zeros((n_envs, *space.shape), np.uint8)
    policies = np.full((n_envs, 6), 1 / 6, np.float32)
    for row in range(steps // n_envs):
        frames = rng.integers(256, size=(n_envs, 1, 84, 84), dtype=np.uint8)
        successors = np.concatenate([stacks[:, 1:], frames], axis=1)
        dones = rng.random(n_envs) < 1 / 200
        search = SearchStatistics(row, policies)
        buffer.add(stacks, successors, np.zeros(n_envs), np.zeros(n_envs), dones, [{}] * n_envs, search)
        stacks = successors
        stacks[dones] = 0
        stacks[dones, -1] = frames[dones, 0]
    buffer.sample(256, unroll_steps=5, n_steps=5)
    return {"all": round(resident_megabytes() - before), "frames": round(steps * 84 * 84 / 2**20)}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", choices=list(POLICY_KWARGS), default="CnnPolicy")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--unroll-steps", type=int, default=3)
    parser.add_argument("--num-simulations", type=int, default=16)
    parser.add_argument("--n-envs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=800, help="environment steps that are timed")
    parser.add_argument("--updates", type=int, default=20, help="updates that are timed")
    parser.add_argument("--warmup-steps", type=int, default=800, help="random steps before")
    parser.add_argument("--warmup-updates", type=int, default=5)
    parser.add_argument("--memory-steps", type=int, default=100_000, help="size of the replay buffer that is measured")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of PyTorch")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 (ResNetPolicy)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures there")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    figures = {"megabytes of the replay buffer": memory(args.memory_steps, args.n_envs)} | speed(args)
    for name, figure in figures.items():
        print(f"{name}: {figure}")
    if args.json:
        write_results(args.json, {key: value for key, value in vars(args).items() if key != "json"}, figures)


if __name__ == "__main__":
    main()
