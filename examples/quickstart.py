"""
Trains MuZero on CartPole-v1, evaluates it, and leaves the model, a learning curve and an animation in quickstart_output/.

    python examples/quickstart.py
"""

import argparse
import os
from pathlib import Path

import gymnasium as gym
import matplotlib
import numpy as np
import torch
from PIL import Image
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_muzero import MuZero

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def plot_learning_curve(evaluations: Path, png: Path, title: str) -> None:
    """Draws what EvalCallback recorded: mean and standard deviation of the evaluation episodes over environment steps."""
    data = np.load(evaluations)
    steps, mean, std = data["timesteps"], data["results"].mean(axis=1), data["results"].std(axis=1)
    fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
    ax.plot(steps, mean, color="#D55E00", linewidth=2)
    ax.fill_between(steps, mean - std, mean + std, color="#D55E00", alpha=0.18, linewidth=0)
    ax.set(xlabel="environment steps", ylabel="evaluation return (mean and std)", title=title)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="0.92")
    fig.savefig(png, dpi=150)


def record_gif(model: MuZero, env_id: str, gif: Path, seed: int) -> None:
    """Plays one episode and saves every second frame at half size."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # no display needed
    env = gym.make(env_id, render_mode="rgb_array")
    obs, _ = env.reset(seed=seed)
    frames, over = [], False
    while not over:
        frames.append(Image.fromarray(np.asarray(env.render())))
        action, _ = model.predict(obs, deterministic=True)
        obs, _, terminated, truncated, _ = env.step(action)
        over = terminated or truncated
    env.close()
    small = [frame.reduce(2) for frame in frames[::2]]
    small[0].save(gif, save_all=True, append_images=small[1:], duration=40, loop=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("quickstart_output"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    torch.set_num_threads(1)  # the networks are small: more threads would wait for each other

    # Ten evaluation environments: the model plans for all of them in one batch
    eval_env = make_vec_env(args.env, n_envs=10, seed=args.seed + 1000)
    every = max(args.steps // 10, 1)
    callback = EvalCallback(eval_env, n_eval_episodes=10, eval_freq=every, log_path=str(args.out), verbose=0)

    model = MuZero("MlpPolicy", args.env, seed=args.seed, verbose=0)
    model.learn(args.steps, callback=callback, progress_bar=True)
    model.save(args.out / "model")

    mean, std = evaluate_policy(model, eval_env, n_eval_episodes=20)
    print(f"{args.env} after {args.steps} steps: return {mean:.1f} +/- {std:.1f} over 20 episodes")
    print(f"model:          {args.out / 'model.zip'}")

    plot_learning_curve(args.out / "evaluations.npz", args.out / "learning_curve.png", f"MuZero on {args.env}")
    print(f"learning curve: {args.out / 'learning_curve.png'}")

    try:
        record_gif(model, args.env, args.out / "agent.gif", args.seed)
        print(f"animation:      {args.out / 'agent.gif'}")
    except gym.error.DependencyNotInstalled:
        print('animation:      needs pygame; for it, pip install -e ".[plots]" and run again')


if __name__ == "__main__":
    main()
