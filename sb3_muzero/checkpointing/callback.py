"""Callback that saves checkpoints during training, and on SIGTERM and Ctrl-C."""

import os
import signal
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from sb3_muzero.checkpointing.files import check_checkpoint_folder, checkpoints_in, save_checkpoint
from sb3_muzero.checkpointing.folder_lock import folder_lock
from sb3_muzero.common.callback_checks import check_callback
from sb3_muzero.common.validation import check_integer
from sb3_muzero.muzero import MuZero


class ResumableCheckpointCallback(BaseCallback):
    """
    Callback for saving checkpoints from which ``resume`` continues a run: before training, and every ``save_freq`` calls
    to ``env.step()``, at the end of the current rollout. On SIGTERM and Ctrl-C a last checkpoint is saved after the
    current rollout and its updates. If a checkpoint can't be saved (full disk, non-finite loss), a warning is issued and
    training continues. ``time/checkpoint_share`` logs the fraction of the time spent on saving. While a model trains, no other
    run can save checkpoints in the folder.

    :param save_freq: Save checkpoints every ``save_freq`` call of the callback.
    :param save_path: Path to the folder where checkpoints will be saved.
    :param keep: Number of checkpoints to keep
    :param verbose: Verbosity level: 0 for no output, 2 for indicating when saving a checkpoint
    :raises ValueError: for a ``save_freq`` or ``keep`` below 1; when training starts, if the folder has checkpoints of
        another run, or another run is saving there
    :raises OSError: when training starts, if no checkpoint can be written
    """

    model: MuZero

    def __init__(self, save_freq: int, save_path: str | Path, keep: int = 2, verbose: int = 0) -> None:
        super().__init__(verbose)
        check_integer("save_freq", save_freq)
        check_integer("keep", keep)
        self.save_freq = save_freq
        self.save_path = Path(save_path)
        self.keep = keep
        self._saved_at = 0
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}
        self._process = os.getpid()

    def _init_callback(self) -> None:
        check_callback(self, MuZero, "save_freq")

    def _on_training_start(self) -> None:
        self._saved_at, self._seconds, self._started = self.n_calls, 0.0, time.perf_counter()
        self.model.after_learning.enter_context(folder_lock(self.save_path, self.model))
        if checkpoints_in(self.save_path):
            check_checkpoint_folder(self.model, self.save_path)
        else:
            save_checkpoint(self.model, self.save_path, self.keep)  # fails before any work is lost
        self.model.after_learning.push(self._leave)
        self._signal, self._process = None, os.getpid()
        self._take_signals()

    def _take_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():  # Python only allows handlers there
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            holder = getattr(signal.getsignal(number), "__self__", None)
            if isinstance(holder, ResumableCheckpointCallback) and holder.model is self.model:  # one handler is enough
                self._signal, holder._signal = self._signal or holder._signal, None
                holder._give_back_signals()
            if signal.getsignal(number) != signal.SIG_IGN:  # a shell ignores it in background jobs
                self._handlers[number] = signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:
            return self._obey(number)
        if self._signal is not None:  # the second signal stops the run immediately
            self._obey(number)
            self._take_signals()
        self._signal, self.model.interrupted = number, True

    def _obey(self, number: int) -> None:
        """Restore and call the previous handler, which may let the run continue."""
        self._signal, self.model.interrupted = None, False
        self._give_back_signals()
        if number == signal.SIGTERM and signal.getsignal(number) is signal.SIG_DFL and os.getpid() == self._process:
            raise SystemExit(128 + number)  # runs `finally` blocks and exit handlers
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
                traceback.print_exception(error)  # the exit would hide the error
            self._obey(self._signal)

    def _on_rollout_start(self) -> None:
        # `_on_step` is called before the transition is stored
        if self._signal is not None or self.n_calls - self._saved_at >= self.save_freq:
            self._save()
        if self._signal is not None:
            self._obey(self._signal)
            self._take_signals()

    def _save(self) -> None:
        self._saved_at, start = self.n_calls, time.perf_counter()
        try:
            path = save_checkpoint(self.model, self.save_path, self.keep)
        except (OSError, FloatingPointError, ValueError) as error:
            warnings.warn(f"No checkpoint was saved at step {self.num_timesteps}, keeping the previous ones: {error}")
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
