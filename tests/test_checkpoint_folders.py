"""Folders with checkpoints that others write to as well: whatever lies in them, and more than one run."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyEnv, differences, snapshot, tiny_envs, tiny_model
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_muzero import MuZero
from sb3_muzero.callbacks import ResumableCheckpointCallback
from sb3_muzero.checkpointing import load_model, resume, save_checkpoint
from sb3_muzero.checkpointing.files import checkpoints_in, steps_of
from sb3_muzero.checkpointing.folder_lock import LOCK, folder_lock
from sb3_muzero.common.serialization import atomic_write


@pytest.fixture
def _in_time():
    """A test that hangs fails."""

    def hang(*_: Any) -> None:
        raise TimeoutError("it waits for ever")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def directory(path: Path) -> None:
    path.mkdir()
    (path / "file").write_text("a user's")


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(path.parent)  # names of sockets are short
        listener.bind(path.name)


SPECIAL: dict[str, Callable[[Path], Any]] = {
    "folder": directory,
    "FIFO": os.mkfifo,
    "socket": unix_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "cyclic link": lambda path: path.symlink_to(path.name),
}


@pytest.mark.usefixtures("_in_time")
@pytest.mark.parametrize("kind", SPECIAL)
def test_only_regular_files_are_checkpoints(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny_model(TinyEnv()).learn(60, callback=ResumableCheckpointCallback(10, tmp_path))
    names = ["checkpoint_5_steps.npz", "checkpoint_500_steps.npz", "checkpoint_72_steps.npz.7.unfinished"]
    for name in names:
        SPECIAL[kind](tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(30, callback=ResumableCheckpointCallback(10, tmp_path), reset_num_timesteps=False)
        assert resume(tmp_path, TinyEnv()).num_timesteps == model.num_timesteps >= 90
    assert len(checkpoints_in(tmp_path)) == 2 and all(os.path.lexists(tmp_path / name) for name in names)


@pytest.mark.usefixtures("_in_time")
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_not_opened_and_not_replaced(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny_model(TinyEnv()).learn(24)
    SPECIAL[kind](path := tmp_path / "buffer.npz")
    if kind == "dangling link":  # a new file is where it points
        model.save_replay_buffer(path)
        assert (tmp_path / "nowhere").is_file()
        return
    with pytest.raises(OSError, match=r"buffer\.npz"):
        model.load_replay_buffer(path)
    with pytest.raises(OSError, match=r"buffer\.npz is not a regular file|/dev/zero is not a regular file"):
        model.save_replay_buffer(path)


def test_a_folder_that_can_not_be_read_is_not_taken_for_an_empty_one():
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(tiny_model(TinyEnv()), folder)
        os.chmod(folder, 0o333)
        user = os.geteuid()
        try:
            if user == 0:  # who may read everything
                os.seteuid(65534)
            with pytest.raises(PermissionError):
                resume(folder, TinyEnv())
            with pytest.raises(PermissionError):
                save_checkpoint(tiny_model(TinyEnv()), folder)
        finally:
            os.seteuid(user)
            os.chmod(folder, 0o700)


def test_files_that_are_written_at_the_same_time_are_each_whole(tmp_path):
    """As by two threads of one process."""
    with atomic_write(tmp_path / "file") as first:
        first.write(b"fir")
        with atomic_write(tmp_path / "file") as second:
            second.write(b"second")
        first.write(b"st")
    assert (tmp_path / "file").read_bytes() == b"first" and os.listdir(tmp_path) == ["file"]


HOLDS = """
import sys, time
from pathlib import Path
from sb3_muzero.checkpointing.folder_lock import folder_lock
with folder_lock(Path(sys.argv[1]), None):
    print("locked", flush=True)
    time.sleep(100)
"""


def test_a_second_process_is_refused_until_the_first_ends(tmp_path):
    model = tiny_model(TinyEnv()).learn(20, callback=ResumableCheckpointCallback(10, tmp_path))
    first = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None and first.stdout.readline() == "locked\n"
        callback = ResumableCheckpointCallback(10, tmp_path)
        message = rf"Another run is saving its checkpoints in {tmp_path}: process {first.pid} on .*another folder"
        with pytest.raises(ValueError, match=message):
            model.learn(20, callback=callback, reset_num_timesteps=False)
        with pytest.raises(ValueError, match=message):
            save_checkpoint(model, tmp_path)
        assert model.num_timesteps == 20
    finally:
        first.kill()
        first.wait()
    model.learn(20, callback=callback, reset_num_timesteps=False)
    assert (tmp_path / LOCK).read_bytes() == b""


class InRun(BaseCallback):
    """Calls a function in the middle of a run."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__()
        self.function = function

    def _on_step(self) -> bool:
        if self.n_calls == 10:
            self.function()
        return True


def test_one_process_with_two_models_and_one_model_with_two_callbacks(tmp_path):
    save_checkpoint(tiny_model(TinyEnv()), tmp_path)
    first, second = (resume(tmp_path, TinyEnv()) for _ in range(2))

    def train_the_second() -> None:
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
        with pytest.raises(ValueError, match=f"a second model of process {os.getpid()}"):
            second.learn(20, callback=ResumableCheckpointCallback(5, tmp_path), reset_num_timesteps=False)
        save_checkpoint(first, tmp_path)

    callbacks = [ResumableCheckpointCallback(5, tmp_path), ResumableCheckpointCallback(8, tmp_path), InRun(train_the_second)]
    first.learn(20, callback=callbacks, reset_num_timesteps=False)
    # The lock is free now, but the folder's newest checkpoints are not what the second was resumed from
    with pytest.raises(ValueError, match=r"checkpoints of another run, .*_20_steps.npz the newest, and this run is at step 0"):
        second.learn(20, callback=ResumableCheckpointCallback(5, tmp_path), reset_num_timesteps=False)
    assert resume(tmp_path, TinyEnv()).num_timesteps == 20


def test_the_lock_is_free_after_a_run_that_failed(tmp_path):
    def fail() -> None:
        raise RuntimeError("the simulator has crashed")

    with pytest.raises(RuntimeError):
        tiny_model(TinyEnv()).learn(20, callback=[ResumableCheckpointCallback(5, tmp_path), InRun(fail)])
    resume(tmp_path, TinyEnv()).learn(20, callback=ResumableCheckpointCallback(5, tmp_path), reset_num_timesteps=False)


def test_a_fork_neither_has_the_lock_nor_keeps_it(tmp_path):
    run = object()
    with folder_lock(tmp_path, run):
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            try:
                with folder_lock(tmp_path, run):
                    os.write(write, b"locked")
            except ValueError as error:
                os.write(write, str(error).encode())
            signal.pause()  # lives on
        answer = os.read(read, 99)
    try:
        with folder_lock(tmp_path, object()):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert answer.startswith(b"Another run is saving")
    os.close(read)
    os.close(write)


def test_where_there_are_no_locks_a_second_run_is_noticed_when_it_saves(tmp_path, monkeypatch):
    def no_locks(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("sb3_muzero.checkpointing.folder_lock.fcntl.flock", no_locks)
    save_checkpoint(tiny_model(TinyEnv()), tmp_path)
    first, second = (resume(tmp_path, TinyEnv()) for _ in range(2))
    with pytest.warns(UserWarning, match="can't be locked.*No locks available"):
        first.learn(
            40,
            callback=[
                ResumableCheckpointCallback(20, tmp_path),
                InRun(lambda: second.learn(4, callback=ResumableCheckpointCallback(1, tmp_path), reset_num_timesteps=False)),
            ],
            reset_num_timesteps=False,
        )
    # The first goes on, and what the second has saved stays
    assert first.num_timesteps == 40 and [steps_of(path) for path in checkpoints_in(tmp_path)] == [0, 4]


@pytest.mark.usefixtures("_in_time")
@pytest.mark.parametrize("kind", ["folder", "link", "FIFO"])
def test_a_lock_that_is_none(kind, tmp_path):
    (tmp_path / "a user's").write_text("text")
    lock = tmp_path / LOCK
    {"folder": lock.mkdir, "link": lambda: lock.symlink_to("a user's"), "FIFO": lambda: os.mkfifo(lock)}[kind]()
    if kind == "FIFO":
        save_checkpoint(tiny_model(TinyEnv()), tmp_path)
        return
    with pytest.raises(OSError, match=LOCK):
        save_checkpoint(tiny_model(TinyEnv()), tmp_path)
    assert (tmp_path / "a user's").read_text() == "text"


# Models without their runs


def test_a_model_is_loaded_from_a_checkpoint_without_its_run(tmp_path):
    model = tiny_model(tiny_envs(2)).learn(60, callback=ResumableCheckpointCallback(10, tmp_path))
    for path in (tmp_path, checkpoints_in(tmp_path)[-1]):
        loaded = load_model(path, tiny_envs(3), num_simulations=7)
        assert differences(snapshot(model)["policy"], snapshot(loaded)["policy"]) == []
        assert (loaded.num_simulations, loaded.num_timesteps, loaded.n_envs) == (7, model.num_timesteps, 3)
    loaded.learn(12)  # a run of its own
    with pytest.raises(ValueError, match="`env` must be of `observation_space` Box"):
        load_model(tmp_path, "CartPole-v1")
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        load_model(tmp_path / "nowhere", TinyEnv())


def test_a_model_that_was_trained_normalized_is_loaded_with_its_statistics(tmp_path):
    env = VecNormalize(tiny_envs(2))
    tiny_model(env).learn(60, callback=ResumableCheckpointCallback(10, tmp_path))
    other = VecNormalize(DummyVecEnv([TinyEnv]), training=False)
    loaded: MuZero = load_model(tmp_path, other)
    assert loaded.get_env() is other and (other.obs_rms.mean == env.obs_rms.mean).all()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="must be wrapped in VecNormalize"):
        load_model(tmp_path, TinyEnv())
