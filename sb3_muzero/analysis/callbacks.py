"""Callbacks for what MuZero alone has: runs that resume, and a model, a search and values that can be checked."""

import io
import os
import signal
import threading
import time
import traceback
import warnings
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
import wandb
from matplotlib.figure import Figure
from PIL import Image
from stable_baselines3.common.callbacks import BaseCallback, EventCallback
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization, unwrap_vec_normalize

from sb3_muzero.analysis.diagnostics import ModelErrors, discounted_returns, measure, settings_of, value_figures
from sb3_muzero.analysis.plotting import (
    plot_latent_map,
    plot_model_errors,
    plot_policies,
    plot_search_tree,
    plot_value_calibration,
    to_png,
)
from sb3_muzero.analysis.recording import plays_with_masks, record_frames, save_gif
from sb3_muzero.checkpointing.run_state import checkpoints_in, random_state_kept
from sb3_muzero.common.numeric import is_integer
from sb3_muzero.common.pytree import tree_map
from sb3_muzero.muzero import MuZero


def check_place(callback: BaseCallback, frequency: str) -> None:
    """
    :param callback: A callback that needs MuZero's rollouts
    :param frequency: Its argument that says how often
    :raises ValueError: for another algorithm, and in a callback that hands on some steps, and no rollouts
    """
    name = type(callback).__name__
    if not isinstance(callback.model, MuZero):
        raise ValueError(f"{name} is made for MuZero, got {type(callback.model).__name__}")
    if isinstance(callback.parent, EventCallback):
        raise ValueError(f"{name} can't be in {type(callback.parent).__name__}: give it its own `{frequency}`")


class ResumableCheckpointCallback(BaseCallback):
    """
    Callback for saving, before training and every ``save_freq`` calls to ``env.step()``, when the rollout that is then under
    way is done, all that a run consists of: ``MuZero.resume`` goes on from there. SIGTERM and Ctrl-C end a run with a last
    checkpoint, once the rollout and the updates that are under way are done. A disk that is full is reported, and training
    goes on; so are networks whose loss is not finite, which are not saved. ``time/checkpoint_share`` is the share of the time
    that saving takes.

    :param save_freq: Save checkpoints every ``save_freq`` call of the callback.
    :param save_path: Path to the folder where checkpoints will be saved.
    :param keep: Newest checkpoints that stay
    :param verbose: Verbosity level: 0 for no output, 2 for the name of each file
    :raises ValueError: for less than one call, or to keep less than one; when training begins, for a folder of another run
    :raises OSError: when training begins, if no checkpoint can be written
    """

    model: MuZero

    def __init__(self, save_freq: int, save_path: str | Path, keep: int = 2, verbose: int = 0) -> None:
        super().__init__(verbose)
        for name, given in (("save_freq", save_freq), ("keep", keep)):
            if not is_integer(given) or given < 1:
                raise ValueError(f"`{name}` must be an integer of at least 1, got {given!r}")
        self.save_freq = save_freq
        self.save_path = Path(save_path)
        self.keep = keep
        self._saved_at = 0
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}
        self._process = os.getpid()

    def _init_callback(self) -> None:
        check_place(self, "save_freq")

    def _on_training_start(self) -> None:
        self._saved_at, self._seconds, self._started = self.n_calls, 0.0, time.perf_counter()
        if checkpoints_in(self.save_path):
            self.model.check_checkpoint_folder(self.save_path)
        else:
            self.model.save_checkpoint(self.save_path, self.keep)  # what can't be saved shows before any work is lost
        self.model.after_learning.push(self._leave)
        self._signal, self._process = None, os.getpid()
        self._take_signals()

    def _take_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():  # Python has handlers set nowhere else
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            holder = getattr(signal.getsignal(number), "__self__", None)
            if isinstance(holder, ResumableCheckpointCallback) and holder.model is self.model:  # one is enough
                self._signal, holder._signal = self._signal or holder._signal, None
                holder._give_back_signals()
            if signal.getsignal(number) != signal.SIG_IGN:  # as in the background of a shell
                self._handlers[number] = signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:
            return self._obey(number)
        if self._signal is not None:  # who asks twice does not want to wait
            self._obey(number)
            self._take_signals()
        self._signal, self.model.interrupted = number, True

    def _obey(self, number: int) -> None:
        """Let those who had handlers before do what they do; some of them want to go on."""
        self._signal, self.model.interrupted = None, False
        self._give_back_signals()
        if number == signal.SIGTERM and signal.getsignal(number) is signal.SIG_DFL and os.getpid() == self._process:
            raise SystemExit(128 + number)  # so that what is open is closed
        signal.raise_signal(number)

    def _give_back_signals(self) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._interrupt:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._handlers = {}

    def _leave(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._give_back_signals()
        if self._signal is not None:
            if error is not None:
                traceback.print_exception(error)  # the end of the process would hide it
            self._obey(self._signal)

    def _on_rollout_start(self) -> None:
        # The step before is stored and learned from here, which it is not in `_on_step`
        if self._signal is not None or self.n_calls - self._saved_at >= self.save_freq:
            self._save()
        if self._signal is not None:
            self._obey(self._signal)
            self._take_signals()

    def _save(self) -> None:
        self._saved_at, start = self.n_calls, time.perf_counter()
        try:
            path = self.model.save_checkpoint(self.save_path, self.keep)
        except (OSError, FloatingPointError) as error:
            warnings.warn(f"No checkpoint was saved after {self.num_timesteps} steps, the ones before stay: {error}")
        else:
            if self.verbose >= 2:
                print(f"Saving checkpoint to {path}")
        end = time.perf_counter()
        self._seconds += end - start
        self.logger.record("time/checkpoint_share", self._seconds / (end - self._started))

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        if self.n_calls > self._saved_at:
            self._save()


class DiagnosticsCallback(BaseCallback):
    """
    Log from time to time whether the model predicts, the search improves and the values come true. What each figure means,
    what is healthy and what the alarm says stands in ``sb3_muzero.analysis.diagnostics.METRICS``. It changes nothing: with it
    and without, the same seed gives the same parameters. ``model_error/*`` is not printed, but goes to every file;
    ``time/diagnostics_share`` is the share of the time that all this takes.

    :param log_freq: Environment steps between two measurements
    :param batch_size: Sequences that each is taken from
    :param unroll_steps: Depth K of ``model_error``; beyond the model's own ``unroll_steps`` it tells how far ahead planning
        can be trusted
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    """

    NUM_EPISODES = 100  # of late, whose returns the values are compared with
    MOST_STEPS = 10_000  # of each that are kept, the last ones

    model: MuZero

    def __init__(self, log_freq: int = 5_000, batch_size: int = 256, unroll_steps: int = 5, verbose: int = 0) -> None:
        super().__init__(verbose)
        for name, given in (("log_freq", log_freq), ("batch_size", batch_size), ("unroll_steps", unroll_steps)):
            if given < 1:
                raise ValueError(f"`{name}` must be at least 1, got {given}")
        self.log_freq = log_freq
        self.batch_size = batch_size
        self.unroll_steps = unroll_steps
        self.timesteps: list[int] = []
        self.errors: list[ModelErrors] = []
        # Root values and the returns that followed, of each episode
        self.episodes: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=self.NUM_EPISODES)
        self._measured: MuZero | None = None

    def _init_callback(self) -> None:
        check_place(self, "log_freq")

    def _on_training_start(self) -> None:
        if self.num_timesteps == 0 or self.model is not self._measured:  # a run of its own
            self.timesteps.clear()
            self.errors.clear()
            self.episodes.clear()
            self._next = self.num_timesteps + self.log_freq
        self._measured = self.model
        self._running = [self._new_episode() for _ in range(self.training_env.num_envs)]
        self._started, self._seconds = time.perf_counter(), 0.0

    def _new_episode(self) -> deque[tuple[float, float]]:
        return deque(maxlen=self.MOST_STEPS)

    def _on_step(self) -> bool:
        start = time.perf_counter()
        search = self.model.last_search
        num_envs = len(self._running)
        values = np.full(num_envs, np.nan) if search is None else search.value
        for env, (value, reward) in enumerate(zip(values.tolist(), self.locals["rewards"].tolist(), strict=True)):
            self._running[env].append((value, reward))
        for env in np.flatnonzero(self.locals["dones"]).tolist():
            self._end_episode(env)
        self._seconds += time.perf_counter() - start
        return True

    def _end_episode(self, env: int) -> None:
        values, rewards = np.array(self._running[env]).T
        self._running[env] = self._new_episode()
        info = self.locals["infos"][env]
        last_value = 0.0
        if info.get("TimeLimit.truncated", False):
            obs, _ = self.model.policy.obs_to_tensor(info["terminal_observation"])
            with th.no_grad():
                last_value = self.model.policy.predict_values(obs).item()
        returns = discounted_returns(rewards, self.model.discount, last_value)
        searched = ~np.isnan(values)
        if searched.any():
            self.episodes.append((values[searched], returns[searched]))

    def _on_rollout_end(self) -> None:
        # Not in `_on_step`, which is called before the step is stored
        if self.num_timesteps < self._next or self.num_timesteps <= self.model.learning_starts:
            return
        self._next = self.num_timesteps + self.log_freq
        start = time.perf_counter()
        with random_state_kept():
            self._measure()
        self._seconds += time.perf_counter() - start
        self.logger.record("time/diagnostics_share", self._seconds / (time.perf_counter() - self._started))

    def _measure(self) -> None:
        errors, figures = measure(self.model, self.batch_size, self.unroll_steps)
        self.timesteps.append(self.num_timesteps)
        self.errors.append(errors)
        for name, by_depth in errors._asdict().items():
            first = self.unroll_steps + 1 - len(by_depth)
            for depth, error in enumerate(by_depth.tolist(), start=first):
                if np.isfinite(error):  # there are episodes that long
                    self.logger.record(f"model_error/{name}_{depth}", error, exclude="stdout")
        if self.episodes:
            figures |= value_figures(*map(np.concatenate, zip(*self.episodes, strict=True)))
        for name, value in figures.items():
            self.logger.record(f"diagnostics/{name}", value)


class MuZeroWandbCallback(DiagnosticsCallback):
    """
    ``DiagnosticsCallback`` whose pictures go to the W&B run: the model's errors, the values, the latents, the latest decision
    and episodes to watch; besides the settings. Scalars come with ``wandb.init(sync_tensorboard=True)`` and the model's
    ``tensorboard_log``; ``wandb.integration.sb3.WandbCallback`` beside it saves the model.

    :param video_env: Environment with the render mode "rgb_array", of which an episode is played and shown each time. With a
        VecNormalize for training it needs one too, whose statistics are made the same, as for ``EvalCallback``
    :param video_length: Steps that are shown at most
    :param kwargs: See ``DiagnosticsCallback``
    :raises ValueError: for an environment that does not render arrays, and, when training begins, without a run
    """

    def __init__(self, video_env: VecEnv | None = None, video_length: int = 500, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if video_env is not None and video_env.render_mode != "rgb_array":
            raise ValueError(f"`video_env` must have the render mode 'rgb_array', got {video_env.render_mode!r}")
        if video_length < 1:
            raise ValueError(f"`video_length` must be at least 1, got {video_length}")
        self.video_env = video_env
        self.video_length = video_length

    def _init_callback(self) -> None:
        super()._init_callback()
        if wandb.run is None:
            raise ValueError("MuZeroWandbCallback logs to a run of W&B: call `wandb.init()` before training")
        plain = (int, float, str)
        settings = settings_of(self.model).items()
        wandb.run.config.setdefaults({name: value if isinstance(value, plain) else str(value) for name, value in settings})
        if self.video_env is not None:
            normalized = self.model.get_vec_normalize_env() is not None
            if (unwrap_vec_normalize(self.video_env) is not None) != normalized:
                raise ValueError(
                    f"`video_env` must {'' if normalized else 'not '}be normalised, like the training environment"
                )
            self.video_env.reset()
            self.video_env.render()  # whatever it lacks for that, it had better say so now

    def _on_training_start(self) -> None:
        super()._on_training_start()
        if self.video_env is not None:
            plays_with_masks(self.model, self.video_env)  # or says so now, too

    def _measure(self) -> None:
        super()._measure()
        assert wandb.run is not None
        shown: dict[str, Any] = {
            f"pictures/{name}": wandb.Image(Image.open(io.BytesIO(to_png(figure)))) for name, figure in self._draw().items()
        }
        if self.video_env is not None:
            if (statistics := unwrap_vec_normalize(self.video_env)) is not None:
                sync_envs_normalization(self.training_env, self.video_env)
                statistics.training = False
            path = Path(wandb.run.dir) / "episode.gif"
            save_gif(record_frames(self.model, self.video_env, self.video_length), path)
            shown["pictures/episode"] = wandb.Video(str(path), format="gif")
        wandb.run.log({**shown, "global_step": self.num_timesteps})

    def _draw(self) -> dict[str, Figure]:
        policy = self.model.policy
        figures = {"model_errors": plot_model_errors(self.timesteps, self.errors)}
        if self.episodes:
            figures["value_calibration"] = plot_value_calibration(*map(np.concatenate, zip(*self.episodes, strict=True)))
        roots = tree_map(lambda part: part[0], self.model.sample(1_000, 1).observations)
        with th.no_grad():
            latents, values = policy.represent(roots), policy.predict_values(roots).squeeze(-1)
        figures["latents"] = plot_latent_map(latents.numpy(force=True), values.numpy(force=True))
        if self.model.last_search is not None:
            figures["search_tree"] = plot_search_tree(self.model.last_search)
            figures["policies"] = plot_policies(self.model.last_search)
        return figures
