"""Checkpoints of a run in a folder, and the run that resumes from them."""

import re
import warnings
from pathlib import Path
from typing import Any, TypeVar

from stable_baselines3.common.type_aliases import GymEnv

from sb3_muzero.checkpointing.run_state import FORMAT, load_run_state, run_state
from sb3_muzero.checkpointing.settings import decode, is_missing
from sb3_muzero.common.random_state import random_state_kept
from sb3_muzero.common.serialization import load_npz, save_npz
from sb3_muzero.muzero import MuZero

SelfMuZero = TypeVar("SelfMuZero", bound=MuZero)


def checkpoints_in(folder: str | Path) -> list[Path]:
    """
    :param folder: Where checkpoints are
    :return: Their files, the one of most steps at the end
    """
    return sorted((path for path in Path(folder).glob("checkpoint_*_steps.npz") if steps_of(path) >= 0), key=steps_of)


def steps_of(path: Path) -> int:
    """
    :param path: A file
    :return: Steps after which it was saved as a checkpoint; -1 if it is none
    """
    match = re.fullmatch(r"checkpoint_(\d+)_steps\.npz", path.name)
    return -1 if match is None else int(match[1])


def can_learn(model: MuZero) -> bool:
    """
    :param model: A model between two rollouts, which stays as it is
    :return: Whether the loss of a batch and its gradients are finite
    """
    if model._n_updates == 0 or model.replay_buffer.size() == 0:
        return True
    was_training = model.policy.training
    model.policy.set_training_mode(False)  # else batch statistics would move
    with random_state_kept():
        is_finite = model.learner.loss_is_finite(model.sample(model.batch_size, model.unroll_steps, with_bonus=False))
    model.policy.set_training_mode(was_training)
    return is_finite


def check_checkpoint_folder(model: MuZero, folder: str | Path) -> None:
    """
    :param model: The model
    :param folder: Where its checkpoints are to be saved
    :raises ValueError: if there are checkpoints of another run, or the model's steps were counted from 0 again since
    """
    existing = checkpoints_in(folder)
    saved_at = model.checkpoint_folders.get(Path(folder).resolve())
    if existing and (saved_at is None or model.num_timesteps < saved_at):
        raise ValueError(
            f"The folder holds checkpoints of another run, {existing[-1]} the newest, and this one is at step "
            f"{model.num_timesteps}: continue that one (`resume`, then `learn` with `reset_num_timesteps=False`), or pass "
            f"another folder"
        )


def save_checkpoint(model: MuZero, folder: str | Path, keep: int = 2) -> Path:
    """
    Save everything that this run consists of, to ``resume`` it; between two rollouts, as ``ResumableCheckpointCallback`` does.

    :param model: The model
    :param folder: Where checkpoints are, which is created
    :param keep: Number of checkpoints that stay, this one among them
    :return: The checkpoint's file, which is whole or not there at all
    :raises OSError: if it cannot be written; the others stay then
    :raises FloatingPointError: if the loss or its gradients are not finite; the others stay then, too
    :raises ValueError: for a folder of another run
    """
    check_checkpoint_folder(model, folder)
    if not can_learn(model):
        raise FloatingPointError("the loss or its gradients are not finite")
    state = run_state(model)
    if missing := [name for name, value in state["settings"].items() if is_missing(value)]:
        warnings.warn(f"{', '.join(missing)} cannot be serialized and must be passed to `resume`")
    if (reason := state["environments"]["why_not"]) is not None:
        warnings.warn(f"Resumed from this checkpoint, episodes will begin anew: {reason}")  # which Python shows once
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"checkpoint_{model.num_timesteps}_steps.npz"
    for unfinished in folder.glob("checkpoint_*_steps.npz.*.unfinished"):  # of a run that was killed
        unfinished.unlink()
    save_npz(path, state)
    for old in checkpoints_in(folder)[:-keep]:
        if old != path:  # one of more steps is damaged
            old.unlink()
    model.checkpoint_folders[folder.resolve()] = model.num_timesteps
    return path


def load_checkpoint(folder: str | Path) -> dict[str, Any]:
    """
    :param folder: Where checkpoints are
    :return: What is in the newest one that is whole
    :raises FileNotFoundError: if there is none
    :raises ValueError: if all are damaged
    """
    paths = checkpoints_in(folder)
    if not paths:
        raise FileNotFoundError(f"There is no checkpoint in {folder}{', which must be their folder' * Path(folder).is_file()}")
    errors = []
    for path in reversed(paths):
        try:
            return load_npz(path)
        except (ValueError, OSError) as error:
            errors.append(str(error))
            warnings.warn(f"{error}; trying the checkpoint before")
    raise ValueError("; ".join(errors))


def resume(
    folder: str | Path,
    env: GymEnv | str,
    restore_environments: bool = False,
    model_class: type[SelfMuZero] = MuZero,  # type: ignore[assignment]
    **changes: Any,
) -> SelfMuZero:
    """
    Continue a run from its newest whole checkpoint: call ``learn`` with the remaining steps and
    ``reset_num_timesteps=False``. No code of the file is run.

    :param folder: Where ``ResumableCheckpointCallback`` has saved checkpoints
    :param env: Environments of the same kind and number, wrapped as they were
    :param restore_environments: Whether environments continue in the middle of their episodes, so that the run ends with the
        very parameters that it would have had without an interruption. They are unpickled, which does run code: only for files
        that you trust. Otherwise episodes begin anew
    :param model_class: Class of the model
    :param changes: Arguments of the constructor that are to change, or that cannot be serialized, as functions. The
        optimizer keeps its state, but for the learning rate
    :return: The model
    :raises FileNotFoundError: if there is no checkpoint
    :raises ValueError: if none is whole, for other environments, for missing settings, and for another `buffer_size`
    """
    if "buffer_size" in changes:
        raise ValueError(f"`buffer_size` can't be changed by `resume`, got {changes['buffer_size']}: it is the checkpoint's")
    state = load_checkpoint(folder)
    if state.get("format") != FORMAT:
        raise ValueError(f"The checkpoint in {folder} was written by another version of sb3_muzero")
    try:
        settings = {name: decode(value, name) for name, value in state["settings"].items() if name not in changes}
        model = model_class(env=env, **settings, **changes)
        load_run_state(model, state, restore_environments)
    except (
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        RuntimeError,
        AssertionError,
        ArithmeticError,
    ) as error:
        why = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"The checkpoint in {folder} does not fit `env`, the arguments or this version: {why}") from error
    model.checkpoint_folders[Path(folder).resolve()] = model.num_timesteps
    return model
