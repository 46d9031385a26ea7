"""Save checkpoints to a folder, and resume from them."""

import re
import warnings
from pathlib import Path
from typing import Any, TypeVar

from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.type_aliases import GymEnv

from sb3_muzero.checkpointing.folder_lock import folder_lock
from sb3_muzero.checkpointing.memory_limit import MemoryLimit
from sb3_muzero.checkpointing.run_state import FORMAT, load_policy, load_run_state, run_state
from sb3_muzero.checkpointing.settings import decode, is_missing
from sb3_muzero.common.random_state import random_state_kept
from sb3_muzero.common.serialization import load_npz, save_npz
from sb3_muzero.common.validation import check_integer
from sb3_muzero.muzero import MuZero

SelfMuZero = TypeVar("SelfMuZero", bound=MuZero)


def checkpoints_in(folder: str | Path) -> list[Path]:
    """
    :param folder: Folder with checkpoints
    :return: Checkpoint files, in the order of their numbers of steps; nothing but regular files counts
    :raises OSError: if the folder can't be read
    """
    files = Path(folder).iterdir() if Path(folder).is_dir() else ()
    return sorted((path for path in files if steps_of(path) >= 0 and path.is_file()), key=steps_of)


def steps_of(path: Path) -> int:
    """
    :param path: Path to a file
    :return: Number of environment steps of the checkpoint, -1 for any other file
    """
    match = re.fullmatch(r"checkpoint_(\d+)_steps\.npz", path.name)
    return -1 if match is None else int(match[1])


def can_learn(model: MuZero) -> bool:
    """
    :param model: Model, between two rollouts
    :return: Whether the loss of a batch and its gradients are finite
    """
    if model._n_updates == 0 or model.replay_buffer.size() == 0:
        return True
    was_training = model.policy.training
    model.policy.set_training_mode(False)  # so that no batch statistics change
    with random_state_kept():
        is_finite = model.learner.loss_is_finite(model.sample(model.batch_size, model.unroll_steps, with_bonus=False))
    model.policy.set_training_mode(was_training)
    return is_finite


def check_checkpoint_folder(model: MuZero, folder: str | Path) -> None:
    """
    :param model: Model
    :param folder: Folder for its checkpoints
    :raises ValueError: if the folder has checkpoints of another run, or of this run before its number of steps was reset
    """
    folder = Path(folder).resolve()
    existing = checkpoints_in(folder)
    saved_at, known = model.checkpoint_folders.get(folder, (0, []))
    if not set(known).issuperset(existing) or (existing and model.num_timesteps < saved_at):
        raise ValueError(
            f"The folder contains checkpoints of another run, {existing[-1]} the newest, and this run is at step "
            f"{model.num_timesteps}: continue that run (`resume`, then `learn` with `reset_num_timesteps=False`), or use "
            f"another folder"
        )


def save_checkpoint(model: MuZero, folder: str | Path, keep: int = 2) -> Path:
    """
    Save the complete state of a run between two rollouts, see ``ResumableCheckpointCallback``. If saving fails, previous
    checkpoints are not changed.

    :param model: Model
    :param folder: Folder for checkpoints, created if necessary
    :param keep: Number of checkpoints to keep, including the new one
    :return: Path to the checkpoint
    :raises OSError: if the checkpoint cannot be written
    :raises FloatingPointError: if the loss or its gradients are not finite
    :raises ValueError: if the folder has checkpoints of another run, or another run is saving there
    """
    check_integer("keep", keep)
    folder = Path(folder).resolve()
    path = folder / f"checkpoint_{model.num_timesteps}_steps.npz"
    with folder_lock(folder, model):
        check_checkpoint_folder(model, folder)
        if not can_learn(model):
            raise FloatingPointError("the loss or its gradients are not finite")
        state = run_state(model)
        if missing := [name for name, value in state["settings"].items() if is_missing(value)]:
            warnings.warn(f"{', '.join(missing)} cannot be serialized and must be passed to `resume`")
        if (reason := state["environments"]["why_not"]) is not None:
            warnings.warn(f"Resuming from this checkpoint will start new episodes: {reason}")
        for unfinished in folder.glob("checkpoint_*_steps.npz.*.unfinished"):  # by a run that was killed
            if unfinished.is_file():
                unfinished.unlink()
        save_npz(path, state)
        for old in checkpoints_in(folder)[:-keep]:
            if old != path:  # damaged checkpoints can have more steps
                old.unlink()
        model.checkpoint_folders[folder] = model.num_timesteps, checkpoints_in(folder)
    return path


def load_checkpoint(folder: str | Path) -> dict[str, Any]:
    """
    :param folder: Folder with checkpoints
    :return: State in the newest checkpoint that is not damaged
    :raises FileNotFoundError: if there is no checkpoint
    :raises ValueError: if all checkpoints are damaged
    """
    paths = checkpoints_in(folder)
    if not paths:
        raise FileNotFoundError(
            f"There is no checkpoint in {folder}{', which is a file: pass its folder' * Path(folder).is_file()}"
        )
    errors = []
    for path in reversed(paths):
        try:
            return load_npz(path)
        except (ValueError, OSError) as error:
            errors.append(str(error))
            warnings.warn(f"{error}; trying the previous checkpoint")
    raise ValueError("; ".join(errors))


def resume(
    folder: str | Path,
    env: GymEnv | str,
    restore_environments: bool = False,
    model_class: type[SelfMuZero] = MuZero,  # type: ignore[assignment]
    **changes: Any,
) -> SelfMuZero:
    """
    Load a run from its newest checkpoint that is not damaged. To continue it, call ``learn`` with the remaining steps and
    ``reset_num_timesteps=False``. No code from the file is executed unless ``restore_environments`` is set.

    :param folder: Folder with the checkpoints of ``ResumableCheckpointCallback``
    :param env: Training environments, with the same spaces, number and wrappers
    :param restore_environments: Whether to continue the running episodes, which makes the run bit-identical to an
        uninterrupted one on CPU. This unpickles the environments, so use it for trusted files only. By default new episodes
        start
    :param model_class: Class of the model
    :param changes: Constructor arguments to change, or that cannot be serialized, such as functions; also ``tensorboard_log``,
        since a file does not decide where to write
    :return: The model
    :raises FileNotFoundError: if there is no checkpoint
    :raises ValueError: if all checkpoints are damaged, if the environments do not fit, if an argument is missing, and for
        another ``buffer_size``
    """
    if "buffer_size" in changes:
        raise ValueError("`buffer_size` can't be changed by `resume`")
    folder = Path(folder).resolve()
    known, state = checkpoints_in(folder), load_checkpoint(folder)
    model = _build(folder, state, env, model_class, changes, lambda model: load_run_state(model, state, restore_environments))
    model.checkpoint_folders[folder] = model.num_timesteps, known
    return model


def is_checkpoint(path: str | Path) -> bool:
    """
    :param path: What a command was given
    :return: Whether it is for ``load_model``, which runs no code, rather than for ``MuZero.load``
    """
    return Path(path).is_dir() or Path(path).suffix == ".npz"


def load_model(
    path: str | Path,
    env: GymEnv | str,
    model_class: type[SelfMuZero] = MuZero,  # type: ignore[assignment]
    **changes: Any,
) -> SelfMuZero:
    """
    Load a model from a checkpoint, to act with it: its networks and settings, without the rest of the run. In contrast to
    ``MuZero.load`` no code from the file is executed, and the environments may be of another number than in training.

    :param path: Checkpoint, or a folder with checkpoints, of which the newest that is not damaged is loaded
    :param env: Environments with the same spaces, wrapped in ``VecNormalize`` if they were in training, which then gets the
        statistics of the checkpoint
    :param model_class: Class of the model
    :param changes: Constructor arguments to change, or that cannot be serialized, such as functions
    :return: The model, with an empty replay buffer
    :raises OSError: if there is no checkpoint, or it can't be read
    :raises ValueError: if the checkpoint is damaged, if the environments do not fit, or if an argument is missing
    """
    state = load_npz(path) if Path(path).is_file() else load_checkpoint(path)
    return _build(path, state, env, model_class, changes, lambda model: load_policy(model, state))


def _build(path: Any, state: dict[str, Any], env: Any, model_class: Any, changes: dict[str, Any], load: Any) -> Any:
    """:return: A model with the settings of a checkpoint and the state that ``load`` gives it"""
    if state.get("format") != FORMAT:
        raise ValueError(f"The checkpoint in {path} was written by another version of sb3_muzero")
    try:
        settings = {name: decode(value, name) for name, value in state["settings"].items() if name not in changes}
        if (log_folder := settings.pop("tensorboard_log", None)) is not None:  # a file must not say where to write
            warnings.warn(f"Not logging to the checkpoint's `tensorboard_log`: pass it to log there again, {log_folder!r}")
        model = model_class(env=maybe_make_env(env, verbose=0), _init_setup_model=False, **settings, **changes)
        model._check_arguments()
        model.replay_buffer = model._make_replay_buffer()
        with MemoryLimit(state["policy"]):
            model._setup_model()
        load(model)
    except Exception as error:
        why = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"{path} was saved for other environments, arguments or versions: {why}") from error
    return model
