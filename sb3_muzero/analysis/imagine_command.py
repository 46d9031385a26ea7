"""
Play in the imagined world of a saved model, from a real first frame, beside the real one.

    python -m sb3_muzero imagine model.zip --env CartPole-v1 --actions 0 1 1 0 --record imagined.gif

A zip file of ``MuZero.save`` and the file of ``--vec-normalize`` are unpickled, which can run any code: open files of your own
only. A checkpoint runs none.
"""

import argparse
import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from sb3_muzero.analysis.model_arguments import add_model_arguments, check_arguments, load, make_env
from sb3_muzero.analysis.recording import save_gif
from sb3_muzero.common.extras import missing_extra
from sb3_muzero.imagination.decoding import fit_renderer, pictures, scaled_down
from sb3_muzero.imagination.world import ImaginedWorld
from sb3_muzero.models.decoder import Decoder, psnr
from sb3_muzero.muzero import MuZero

NUM_ENVS = 8
DEPTHS = (1, 5, 10, 20)
ZOOM = 3  # pixels of the recording per pixel of a frame


class SideBySide(NamedTuple):
    """
    The same actions in both worlds, T of them.

    :param real: Frames of the real one, the last one repeated after the end of its episode, ``T + 1`` of them
    :param imagined: Frames of the imagined one
    :param real_rewards: Rewards up to the end of the real episode
    :param imagined_rewards: Predicted rewards of as many steps
    """

    real: list[np.ndarray]
    imagined: list[np.ndarray]
    real_rewards: list[float]
    imagined_rewards: list[float]

    def frames(self) -> list[np.ndarray]:
        """:return: Real frames at the left, imagined ones at the right"""
        gap = np.full((self.real[0].shape[0], 2, 3), 128, np.uint8)
        pairs = (np.concatenate([real, gap, shown], axis=1) for real, shown in zip(self.real, self.imagined, strict=True))
        return [pair.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1) for pair in pairs]


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """
    :param arguments: Those of the command line by default
    :return: What they say
    :raises SystemExit: for files that do not exist, and numbers that are too small
    """
    parser = argparse.ArgumentParser(
        prog="python -m sb3_muzero imagine", description="Play in the imagined world of a model, beside the real one."
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--actions", nargs="+", type=ast.literal_eval, metavar="ACTION",
        help="actions to take, vectors as 0.5,-1; by default the model plans them from real observations",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=50, help="steps to take without --actions (50)")
    parser.add_argument("--size", type=int, default=64, help="larger side of the frames in pixels (64)")
    parser.add_argument("--fit-steps", type=int, default=2_000, help="steps to play for the decoder (2000)")
    parser.add_argument("--record", type=Path, help="GIF to write")
    args = parser.parse_args(arguments)
    folder = None if args.record is None else args.record.parent
    check_arguments(
        {"model": args.model, "--vec-normalize": args.vec_normalize, "--record": folder},
        {
            "steps": (args.steps, 1),
            "size": (args.size, 8),
            "fit-steps": (args.fit_steps, 1),
            "frame-stack": (args.frame_stack, 1),
        },
    )
    return args


def given_actions(actions: Sequence[Any], space: spaces.Space) -> Iterator[np.ndarray]:
    """
    :param actions: Of the command line
    :param space: Action space
    :return: The actions
    :raises SystemExit: for an action outside of the space
    """
    for given in actions:
        try:
            action = np.asarray(given, dtype=space.dtype).reshape(space.shape or ())
        except (TypeError, ValueError):
            action = np.asarray(given)
        if not space.contains(action):
            raise SystemExit(f"error: `--actions` must be of {space}, got {given}")
        yield action


def planned_actions(model: MuZero, observations: list[Any], steps: int) -> Iterator[np.ndarray]:
    """
    :param model: The model
    :param observations: The newest one is the last of this list, to which others are appended
    :param steps: Number of actions
    :return: The actions that the model plans
    """
    for _ in range(steps):
        yield model.predict(observations[-1], deterministic=True)[0][0]


def play_both(world: ImaginedWorld, first: Any, env: VecEnv, renderer: Decoder, args: argparse.Namespace) -> SideBySide:
    """
    :param world: The imagined world, which begins at the first observation
    :param first: That observation, shape ``[1, *obs_shape]``
    :param env: One real environment, which is there
    :param renderer: Decodes frames of the imagined world
    :param args: Of the command line
    :return: What happened in both
    """
    seen = [first]
    latents = world.start(1, np.random.default_rng(0))
    real, imagined = [scaled_down(np.asarray(env.render()), args.size)], [pictures(renderer, latents)[0]]
    rewards, imagined_rewards, ended = [], [], False
    given = args.actions is not None
    for action in given_actions(args.actions, env.action_space) if given else planned_actions(world.model, seen, args.steps):
        step = world.step(latents, action[None])
        latents = step.latents
        imagined.append(pictures(renderer, latents)[0])
        if not ended:
            observations, reward, dones, _ = env.step(action[None])
            seen.append(observations)
            rewards.append(float(reward[0]))
            imagined_rewards.append(float(step.rewards[0]))
            ended = bool(dones[0])
        # After the end of an episode the environment shows the next one
        real.append(real[-1] if ended else scaled_down(np.asarray(env.render()), args.size))
        if ended and not given:
            break
    return SideBySide(real, imagined, rewards, imagined_rewards)


def summary(both: SideBySide) -> str:
    """
    :param both: What happened in both worlds
    :return: Rewards, and how far imagined frames and the first one are from the real ones
    """
    steps = len(both.real_rewards)
    lines = [f"{steps} real steps: reward {sum(both.real_rewards):.4g}, imagined {sum(both.imagined_rewards):.4g}"]
    lines += [
        f"PSNR after {depth:2} steps: imagined {psnr(both.imagined[depth], both.real[depth], 255):.1f} dB, "
        f"first frame repeated {psnr(both.real[0], both.real[depth], 255):.1f} dB"
        for depth in DEPTHS
        if depth <= steps
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """
    :param arguments: Those of the command line by default
    :raises SystemExit: for a model that can't be loaded or cannot imagine its environment, and for an environment
        that cannot be rendered
    """
    args = parse_args(arguments)
    set_random_seed(args.seed)
    env = make_env(args, NUM_ENVS)
    model = load(args, env)
    real = model._wrap_env(make_env(args, 1), verbose=0)
    try:
        first = real.reset()
        world = ImaginedWorld(model, first)
        renderer = fit_renderer(model, env, args.fit_steps, args.size)
        both = play_both(world, first, real, renderer, args)
    except gym.error.DependencyNotInstalled as error:
        raise SystemExit(f"error: {missing_extra('plots', ImportError(error))}") from error
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    finally:
        env.close()
        real.close()
    print(summary(both))
    if args.record is not None:
        save_gif(both.frames(), args.record, fps=15)
        print(f"wrote {args.record}")
