"""
Trains MuZero on CartPole-v1, evaluates it, and leaves the model, a learning curve and an animation in quickstart_output/.

    python examples/quickstart.py
"""

import argparse
import os
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_muzero import MuZero
from sb3_muzero.analysis.plotting import plot_learning_curves
from sb3_muzero.analysis.recording import record_frames, save_gif
from sb3_muzero.common.time_limits import time_limit_kwargs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("quickstart_output"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    torch.set_num_threads(1)  # the networks are small: more threads would wait for each other

    # Ten evaluation environments: the model plans for all of them in one batch. A task without time limit gets one, so that
    # evaluations end
    limit = time_limit_kwargs(args.env)
    eval_env = make_vec_env(args.env, n_envs=10, seed=args.seed + 1000, env_kwargs=limit)
    every = max(args.steps // 10, 1)
    callback = EvalCallback(eval_env, n_eval_episodes=10, eval_freq=every, log_path=str(args.out), verbose=0)

    model = MuZero("MlpPolicy", args.env, seed=args.seed, verbose=0)
    model.learn(args.steps, callback=callback, progress_bar=True)
    model.save(args.out / "model")

    mean, std = evaluate_policy(model, eval_env, n_eval_episodes=20)
    print(f"{args.env} after {args.steps} steps: return {mean:.1f} +/- {std:.1f} over 20 episodes")
    for steps in limit.values():
        print(f"{args.env} has no time limit: episodes of evaluations are truncated after {steps} steps")
    print(f"model:          {args.out / 'model.zip'}")

    evaluations = np.load(args.out / "evaluations.npz")
    curve = {"MuZero": (evaluations["timesteps"], evaluations["results"].T)}
    figure = plot_learning_curves(curve, title=f"MuZero on {args.env}", samples="evaluation episodes")
    figure.savefig(args.out / "learning_curve.png", dpi=150)
    print(f"learning curve: {args.out / 'learning_curve.png'}")

    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # no display needed
    try:
        video_env = make_vec_env(args.env, seed=args.seed, env_kwargs={"render_mode": "rgb_array"})
        frames = record_frames(model, video_env, num_steps=1000)
        save_gif([frame[::2, ::2] for frame in frames[::2]], args.out / "agent.gif", fps=25)
        print(f"animation:      {args.out / 'agent.gif'}")
    except gym.error.DependencyNotInstalled:
        print('animation:      needs pygame: pip install "sb3_muzero[plots]"')


if __name__ == "__main__":
    main()
