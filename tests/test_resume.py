"""Runs that go on: to the bit, after being killed, from the newest checkpoint that is whole, and without running code."""

import gc
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import TinyEnv, differences, snapshot, tiny_model
from gymnasium import spaces
from gymnasium.utils import EzPickle
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_muzero.callbacks import ResumableCheckpointCallback
from sb3_muzero.checkpointing import resume, save_checkpoint
from sb3_muzero.checkpointing.files import can_learn, checkpoints_in, load_checkpoint, steps_of
from sb3_muzero.checkpointing.folder_lock import LOCK
from sb3_muzero.checkpointing.settings import decode, encode, is_missing
from sb3_muzero.common.serialization import load_npz, save_npz
from sb3_muzero.games import TicTacToeEnv
from sb3_muzero.replay.replay_buffer import SequenceReplayBuffer


def stacked_images() -> Any:
    space = spaces.Box(0, 255, (1, 12, 12), np.uint8)
    return VecFrameStack(DummyVecEnv([lambda: TinyEnv(space)] * 2), 3)


ENVS: dict[str, tuple[Any, dict[str, Any]]] = {
    "CartPole": (lambda: make_vec_env("CartPole-v1", 2, seed=3), {}),
    "one CartPole": (lambda: make_vec_env("CartPole-v1", 1, seed=3), {"train_freq": (1, "episode"), "gradient_steps": 5}),
    "priorities, novelty, schedules": (
        lambda: make_vec_env("CartPole-v1", 2, seed=3),
        {
            "replay_buffer_kwargs": {"priority_exponent": 0.6},
            "novelty_coef": 0.5,
            "learning_rate": LinearSchedule(1e-3, 0.0, 1.0),
            "exploration": LinearSchedule(3.0, 1.0, 0.5),
            "reanalyze_ratio": 0.5,
            "search": "puct",
            "buffer_size": 120,
        },
    ),
    "VecNormalize of rewards": (lambda: VecNormalize(make_vec_env("CartPole-v1", 2, seed=3), norm_obs=False), {}),
    "VecNormalize": (lambda: VecNormalize(make_vec_env("CartPole-v1", 2, seed=3)), {}),
    "frame stack": (stacked_images, {"policy": "CnnPolicy"}),
    "channels last": (stacked_images, {"policy": "ResNetPolicy", "policy_kwargs": {"num_channels": 4, "bf16": True}}),
    "TicTacToe": (lambda: make_vec_env(TicTacToeEnv, 2, seed=3), {"reanalyze_ratio": 0.5, "exploration_steps_per_episode": 3}),
}


@pytest.mark.parametrize("name", ENVS)
def test_a_resumed_run_ends_as_the_uninterrupted_one(name, tmp_path):
    make, settings = ENVS[name]
    whole = tiny_model(make(), **settings).learn(240)
    tiny_model(make(), **settings).learn(240, callback=ResumableCheckpointCallback(60, tmp_path))
    np.random.seed(99)
    th.manual_seed(99)
    path, last = checkpoints_in(tmp_path)
    last.unlink()
    resumed = resume(tmp_path, make(), restore_environments=True)
    assert 0 < resumed.num_timesteps < 240 and path.name == f"checkpoint_{resumed.num_timesteps}_steps.npz"
    resumed.learn(240 - resumed.num_timesteps, reset_num_timesteps=False)
    assert differences(snapshot(whole), snapshot(resumed)) == []
    assert differences(whole.replay_buffer.state(), resumed.replay_buffer.state()) == []
    assert resumed.num_timesteps == whole.num_timesteps and resumed._n_updates == whole._n_updates
    assert [info["r"] for info in resumed.ep_info_buffer] == [info["r"] for info in whole.ep_info_buffer]
    if isinstance(env := whole.get_env(), VecNormalize) and env.norm_obs:
        assert np.array_equal(env.obs_rms.mean, resumed.get_env().obs_rms.mean)


def test_without_their_state_environments_begin_anew(tmp_path):
    make, _ = ENVS["VecNormalize"]
    tiny_model(make()).learn(120, callback=ResumableCheckpointCallback(20, tmp_path))
    assert len(checkpoints_in(tmp_path)) == 2
    resumed = resume(tmp_path, make())
    assert resumed._last_obs is None
    before, mean = resumed.num_timesteps, resumed.get_env().obs_rms.mean.copy()
    assert mean.any()
    resumed.learn(40, reset_num_timesteps=False)
    assert resumed.num_timesteps == before + 40 and resumed.replay_buffer.size() * 2 >= before


def test_environments_that_can_not_be_stored_are_said_so(tmp_path):
    env = make_vec_env("CartPole-v1", 2, vec_env_cls=SubprocVecEnv)
    with pytest.warns(UserWarning, match="start new episodes: environments of a SubprocVecEnv"):
        tiny_model(env).learn(60, callback=ResumableCheckpointCallback(10, tmp_path / "subproc"))
    with pytest.raises(ValueError, match="SubprocVecEnv are not in this process"):
        resume(tmp_path / "subproc", env, restore_environments=True)
    resume(tmp_path / "subproc", env).learn(20, reset_num_timesteps=False)
    env.close()
    plain = TinyEnv()
    plain.unpicklable = (i for i in range(3))  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="start new episodes: the environments can't be pickled"):
        tiny_model(plain).learn(60, callback=ResumableCheckpointCallback(10, tmp_path / "plain"))
    with pytest.raises(ValueError, match="can't be pickled"):
        resume(tmp_path / "plain", TinyEnv(), restore_environments=True)
    save_checkpoint(tiny_model(OneWay()), tmp_path / "one way")
    with pytest.raises(ValueError, match="can't be unpickled: OSError"):
        resume(tmp_path / "one way", OneWay(), restore_environments=True)
    resume(tmp_path / "one way", OneWay())


class OneWay(TinyEnv):
    def __setstate__(self, state: Any) -> None:
        raise OSError("the simulator's port is taken")


@pytest.mark.filterwarnings("ignore:Resuming from this checkpoint")
def test_environments_that_are_pickled_by_their_arguments_are_not_stored(tmp_path):
    """Box2D's, MuJoCo's and Atari's: unpickled they would stand at their beginning."""
    tiny_model(ByArguments()).learn(60, callback=ResumableCheckpointCallback(10, tmp_path))
    with pytest.raises(ValueError, match="ByArguments is pickled by its arguments"):
        resume(tmp_path, ByArguments(), restore_environments=True)


class ByArguments(TinyEnv, EzPickle):
    def __init__(self) -> None:
        EzPickle.__init__(self)
        TinyEnv.__init__(self)


def test_environments_that_begin_anew_do_not_begin_as_the_run_did(tmp_path):
    whole = tiny_model("CartPole-v1").learn(60, callback=ResumableCheckpointCallback(10, tmp_path))
    first = whole.replay_buffer.observations.frames[0, 0]
    resumed = resume(tmp_path, "CartPole-v1").learn(20, reset_num_timesteps=False)
    again = resume(tmp_path, "CartPole-v1").learn(20, reset_num_timesteps=False)
    assert not np.array_equal(resumed.replay_buffer.observations.frames[60, 0], first)
    assert differences(snapshot(resumed), snapshot(again)) == []  # and always alike


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != LOCK)


def test_a_folder_is_of_one_run(tmp_path):
    """Whose newest checkpoint is the one of most steps, whatever time its file has."""
    (tmp_path / "checkpoint_best_steps.npz").write_bytes(b"a user's")
    (tmp_path / "checkpoint_7_steps.npz.123.unfinished").write_bytes(b"of a run that was killed")
    model = tiny_model(TinyEnv()).learn(100, callback=ResumableCheckpointCallback(20, tmp_path))
    files = ["checkpoint_100_steps.npz", "checkpoint_80_steps.npz", "checkpoint_best_steps.npz"]
    assert names_in(tmp_path) == files
    os.utime(tmp_path / files[0], (0, 0))  # as a copy of the folder may have it
    os.utime(tmp_path / files[1], (2e9, 2e9))
    assert resume(tmp_path, TinyEnv()).num_timesteps == 100
    with pytest.raises(FileNotFoundError, match="pass its folder"):
        resume(tmp_path / files[0], TinyEnv())
    refusal = r"another run, .*checkpoint_100_steps.npz the newest, and this run is at step 0: continue"
    for other in (tiny_model(TinyEnv()), model):  # whose steps are counted from 0 again
        with pytest.raises(ValueError, match=refusal):
            other.learn(60, callback=ResumableCheckpointCallback(20, tmp_path))
    with pytest.raises(ValueError, match=refusal):
        save_checkpoint(tiny_model(TinyEnv()), tmp_path)
    (tmp_path / files[0]).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="damaged"):
        resumed = resume(tmp_path, TinyEnv())
    resumed.learn(10, reset_num_timesteps=False)
    save_checkpoint(resumed, tmp_path / "archive")
    both = [ResumableCheckpointCallback(20, tmp_path, keep=1), ResumableCheckpointCallback(50, tmp_path / "rare")]
    for steps in (30, 20):
        resumed.learn(steps, callback=both, reset_num_timesteps=False)
    assert resumed.num_timesteps in (140, 144)
    assert names_in(tmp_path)[1:] == [f"checkpoint_{resumed.num_timesteps}_steps.npz", "checkpoint_best_steps.npz", "rare"]
    # Steps that are counted from 0 again while the first checkpoint is still there
    early = tmp_path / "early"
    tiny_model(TinyEnv()).learn(20, callback=ResumableCheckpointCallback(20, early))
    with pytest.raises(ValueError, match="at step 0: continue"):
        resume(early, TinyEnv()).learn(20, callback=ResumableCheckpointCallback(20, early))
    # Nor do two runs that begin at about the same time share one
    both = tmp_path / "both"
    tiny_model(TinyEnv()).learn(1, callback=Nested(lambda: tiny_model(TinyEnv()), both))


class Nested(ResumableCheckpointCallback):
    """Begins another run as soon as its own has begun."""

    def __init__(self, make: Any, folder: Path) -> None:
        super().__init__(20, folder)
        self.make = make

    def _on_step(self) -> bool:
        with pytest.raises(ValueError, match=r"Another run is saving its checkpoints in .*: a second model of process \d+ on"):
            self.make().learn(60, callback=ResumableCheckpointCallback(20, self.save_path))
        return super()._on_step()


def test_failed_runs_are_not_kept_in_memory(tmp_path):
    model = tiny_model(Failing())
    with pytest.raises(RuntimeError):
        model.learn(1000, callback=ResumableCheckpointCallback(10_000, tmp_path))
    buffer = weakref.ref(model.replay_buffer)
    del model
    gc.collect()
    assert buffer() is None


@pytest.mark.parametrize("features", [None, "batch norm"])
def test_checkpoints_change_nothing(tmp_path, features):
    """Also where statistics move in training, and where novelty is rewarded later."""
    models = []
    for callback in (None, ResumableCheckpointCallback(15, tmp_path)):
        kwargs = {} if features is None else {"features_extractor_class": Normalizing}
        model = tiny_model(TinyEnv(), policy_kwargs=kwargs).learn(60, callback=callback)
        model.novelty_coef = 0.5
        models.append(model.learn(60, callback=callback, reset_num_timesteps=False))
    assert differences(*map(snapshot, models)) == []
    models[0].novelty_coef = 0.1  # a number, until training begins
    assert can_learn(models[0])


class Normalizing(FlattenExtractor):
    def __init__(self, observation_space: gym.Space) -> None:
        super().__init__(observation_space)
        self.norm = th.nn.BatchNorm1d(self.features_dim)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.norm(super().forward(observations))


def test_other_algorithms_are_refused(tmp_path):
    with pytest.raises(ValueError, match="can't be in EveryNTimesteps"):
        tiny_model().learn(10, callback=EveryNTimesteps(10, ResumableCheckpointCallback(1, tmp_path)))
    with pytest.raises(ValueError, match="made for MuZero, got PPO"):
        PPO("MlpPolicy", "CartPole-v1").learn(10, callback=ResumableCheckpointCallback(10, tmp_path))


def test_what_can_not_be_saved_shows_before_training(tmp_path):
    (tmp_path / "file").write_text("no folder")
    model = tiny_model(TinyEnv())
    with pytest.raises(FileExistsError):
        model.learn(60, callback=ResumableCheckpointCallback(20, tmp_path / "file"))
    with pytest.warns(UserWarning, match="learning_rate, policy_kwargs cannot be serialized and must be passed to `resume`"):
        kwargs = {"activation_fn": lambda: th.nn.ReLU()}
        save_checkpoint(tiny_model(TinyEnv(), learning_rate=lambda _: 1e-3, policy_kwargs=kwargs), tmp_path / "functions")


def test_networks_that_have_become_infinite_are_not_saved(tmp_path):
    """A step of finite gradients may break them: the run ends with the last checkpoint that was whole."""
    model = tiny_model(TinyEnv(), learning_rate=lambda left: 1e-3 if left > 0.5 else 1e39, batch_size=4)
    with (
        pytest.warns(UserWarning, match="No checkpoint was saved .* not finite"),
        pytest.raises((ValueError, FloatingPointError)),
    ):
        model.learn(400, callback=ResumableCheckpointCallback(1, tmp_path, keep=1))
    resumed = resume(tmp_path, TinyEnv(), learning_rate=1e-3)
    assert 190 <= resumed.num_timesteps <= 210
    resumed.learn(40, reset_num_timesteps=False)
    with pytest.raises(FloatingPointError, match="not finite"):
        save_checkpoint(model, tmp_path)


def test_a_target_network_without_values_is_not_saved(tmp_path):
    model = tiny_model(TinyEnv(length=100)).learn(60)
    for parameter in model.policy.latent_model_target.parameters():
        parameter.data.fill_(th.nan)
    with pytest.raises(FloatingPointError, match="not finite"):
        save_checkpoint(model, tmp_path)


def test_a_single_update_that_is_left_out_does_not_keep_a_run_from_being_saved(tmp_path):
    class LeavingOut(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_training_end(self) -> None:
            self.model.learner._skip("value target", 7, self.num_timesteps)

    with pytest.warns(UserWarning, match="Skipping update"):
        tiny_model(TinyEnv()).learn(60, callback=[LeavingOut(), ResumableCheckpointCallback(999, tmp_path)])
    assert resume(tmp_path, TinyEnv()).num_timesteps == 60


def test_numbers_of_numpy_are_settings_like_others(tmp_path):
    kwargs = {"optimizer_kwargs": {"eps": np.float32(1e-5)}}
    model = tiny_model(TinyEnv(), buffer_size=np.int64(700), tensorboard_log=None, policy_kwargs=kwargs)
    save_checkpoint(model.learn(40), tmp_path)
    resumed = resume(tmp_path, TinyEnv())
    assert resumed.buffer_size == 700 and resumed.policy.optimizer.defaults["eps"] == float(np.float32(1e-5))
    assert encode(tmp_path) == str(tmp_path)
    assert is_missing(encode([{"a": th.relu}])) and not is_missing(encode([{"missing": 1}, {}]))


def test_statistics_of_gymnasiums_wrappers_are_said_to_begin_anew(tmp_path):
    def make() -> gym.Env:
        return gym.wrappers.NormalizeObservation(TinyEnv())

    tiny_model(make()).learn(60, callback=ResumableCheckpointCallback(20, tmp_path))
    with pytest.warns(UserWarning, match="NormalizeObservation .* are reset"):
        resume(tmp_path, make())
    restored = resume(tmp_path, make(), restore_environments=True)
    assert restored.get_env().get_attr("obs_rms")[0].count > 60


def test_a_full_buffer_is_not_held_twice(tmp_path):
    """A run whose buffer takes most of the memory resumes, too."""
    buffer = SequenceReplayBuffer(150, spaces.Box(0, 255, (100, 1000), np.uint8), spaces.Discrete(3), "cpu")
    frame = np.full((1, 100, 1000), 7, np.uint8)
    for _ in range(160):
        buffer.add(frame, frame, np.zeros(1), np.ones(1), np.zeros(1, bool), [{}])
    save_npz(tmp_path / "buffer", buffer.state())
    tracemalloc.start()
    try:
        state = load_npz(tmp_path / "buffer")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    buffer.load_state(state)
    ring = buffer.observations.frames
    assert (ring == 7).all() and most < 1.5 * ring.nbytes and np.shares_memory(ring, state["observations"]["frames"])


def test_a_damaged_checkpoint_leaves_the_one_before(tmp_path):
    tiny_model(TinyEnv()).learn(100, callback=ResumableCheckpointCallback(20, tmp_path))
    older, newer = checkpoints_in(tmp_path)
    whole = newer.read_bytes()
    rng = np.random.default_rng(0)
    for damaged in (b"", whole[: len(whole) // 2], bytes(rng.integers(256, size=1000, dtype=np.uint8))):
        newer.write_bytes(damaged)
        with pytest.warns(UserWarning, match="damaged"):
            assert f"_{resume(tmp_path, TinyEnv()).num_timesteps}_" in older.name
    older.write_bytes(b"")
    with pytest.raises(ValueError, match="damaged"), pytest.warns(UserWarning):
        resume(tmp_path, TinyEnv())
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        resume(tmp_path / "nowhere", TinyEnv())


def test_a_flipped_byte_is_noticed(tmp_path):
    save_npz(tmp_path / "tree", {"numbers": np.arange(10_000), "name": "x"})
    content = bytearray((tmp_path / "tree").read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(40):
        position = int(rng.integers(len(content)))
        content[position] ^= 0xFF
        (tmp_path / "tree").write_bytes(content)
        try:
            tree = load_npz(tmp_path / "tree")
        except ValueError as error:
            assert "damaged" in str(error)
        else:  # bytes that mean nothing, as a time of day
            assert np.array_equal(tree["numbers"], np.arange(10_000)) and tree["name"] == "x"
        content[position] ^= 0xFF


def test_flipped_bits_of_large_arrays_are_noticed(tmp_path):
    """Also in their headers, which say how much of them is to be read."""
    save_npz(tmp_path / "tree", {"numbers": np.arange(24_000.0).reshape(12_000, 2), "others": np.arange(5000)})
    whole = (tmp_path / "tree").read_bytes()
    rng = np.random.default_rng(0)
    arrays = [match.start() for match in re.finditer(b"\x93NUMPY", whole)]
    headers = [start + offset for start in arrays for offset in range(-60, 128)]
    for position in [*headers, *rng.integers(len(whole), size=100).tolist()]:
        content = bytearray(whole)
        content[position] ^= 1 << int(rng.integers(8))
        (tmp_path / "tree").write_bytes(content)
        try:
            tree = load_npz(tmp_path / "tree")
        except ValueError as error:
            assert "damaged" in str(error)
        else:
            assert np.array_equal(tree["numbers"].ravel(), np.arange(24_000.0)) and len(tree["others"]) == 5000


def test_an_array_is_one_thing_only(tmp_path):
    """Else two rings of a buffer might share their memory."""
    structure = {name: {"array of the file": "0"} for name in ("a", "b")}
    np.savez(
        tmp_path / "tree.npz", **{"0": np.arange(3), "structure": np.frombuffer(json.dumps(structure).encode(), np.uint8)}
    )
    with pytest.raises(ValueError, match="damaged"):
        load_npz(tmp_path / "tree.npz")


def test_leaves_that_need_pickle_are_refused(tmp_path):
    tree = {"a/b": np.array(1), "a": {"b": np.array(2)}}
    save_npz(tmp_path / "tree", tree)
    assert int(load_npz(tmp_path / "tree")["a/b"]) == 1
    for bad in ({"x": np.array([object()])}, {"x": {1, 2}}):
        with pytest.raises(TypeError):
            save_npz(tmp_path / "bad", bad)  # type: ignore[arg-type]
    assert not (tmp_path / "bad").exists()


def test_a_full_disk_leaves_the_old_checkpoint_and_training_goes_on(tmp_path, monkeypatch):
    model = tiny_model(TinyEnv())
    model.learn(60, callback=ResumableCheckpointCallback(20, tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*args: Any, **kwargs: Any) -> None:
        args[0].write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sb3_muzero.common.serialization.np.savez", full)
    with pytest.warns(UserWarning, match=r"No checkpoint was saved .* No space left"):
        model.learn(60, callback=ResumableCheckpointCallback(20, tmp_path), reset_num_timesteps=False)
    assert model.num_timesteps == 120
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("number, expected", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_signals_end_a_run_with_a_last_checkpoint(number, expected, tmp_path):
    """The handlers that were there before then do what they do, of SIGTERM here what Python's own would."""

    def leave(*_: Any) -> None:
        raise SystemExit(143)

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, leave),
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),  # which may be ignored in the background
    }
    try:
        model = tiny_model(Interrupting(number))
        with pytest.raises(expected):
            model.learn(1000, callback=ResumableCheckpointCallback(10_000, tmp_path))
        assert signal.getsignal(signal.SIGTERM) is leave
        resumed = resume(tmp_path, TinyEnv())
        assert 50 <= resumed.num_timesteps <= 54
        # In the last rollout, too
        model = tiny_model(Interrupting(number))
        with pytest.raises(expected):
            model.learn(50, callback=ResumableCheckpointCallback(10_000, tmp_path / "last"))
        assert resume(tmp_path / "last", TinyEnv()).num_timesteps >= 50
        # Where training has failed, signals are not held back, nor in what is trained next
        for i, afterwards in enumerate(
            (lambda: signal.raise_signal(number), lambda: tiny_model(Interrupting(number)).learn(99))
        ):
            with pytest.raises(RuntimeError):
                tiny_model(Failing()).learn(1000, callback=ResumableCheckpointCallback(10_000, tmp_path / f"other {i}"))
            with pytest.raises(expected):
                afterwards()
        # With two of them, the last one takes care
        two = [ResumableCheckpointCallback(10_000, tmp_path / name) for name in ("one", "two")]
        with pytest.raises(expected):
            tiny_model(Interrupting(number)).learn(1000, callback=two)
        assert signal.getsignal(signal.SIGTERM) is leave and resume(tmp_path / "two", TinyEnv()).num_timesteps >= 50
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_training_goes_on_where_somebody_else_takes_care_of_signals(tmp_path):
    """As launchers of clusters do, who ask for a checkpoint."""
    calls: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: calls.append(number))
    try:
        callback = ResumableCheckpointCallback(10_000, tmp_path, keep=100)
        model = tiny_model(Interrupting(signal.SIGTERM)).learn(100, callback=callback)
        assert model.num_timesteps == 100 and calls == [signal.SIGTERM] and not model.interrupted
        assert [steps_of(path) for path in checkpoints_in(tmp_path)] == [0, 52, 100]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_environments_that_die_end_training_with_their_error_whatever_was_interrupted_before(tmp_path):
    env = SubprocVecEnv([TinyEnv, TinyEnv], start_method="fork")
    model = tiny_model(env)
    model.interrupted = True

    def kill(locals_: dict[str, Any], _: Any) -> bool:
        if model.num_timesteps == 40:
            env.processes[0].kill()
        return True

    with pytest.raises((EOFError, ConnectionError)):
        model.learn(100, callback=kill)
    env.processes[1].kill()


def test_signals_find_whoever_saves(tmp_path):
    """While a second callback begins, and amid another run that a callback makes."""

    class Beginning(ResumableCheckpointCallback):
        def _on_training_start(self) -> None:
            signal.raise_signal(signal.SIGTERM)
            super()._on_training_start()

    class Trying(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == 30:
                inner = ResumableCheckpointCallback(999, tmp_path / "in")
                assert tiny_model(Interrupting(signal.SIGTERM)).learn(60, callback=inner).num_timesteps == 60
                assert [steps_of(path) for path in checkpoints_in(tmp_path / "in")] == [52, 60]
            return True

    def leave(*_: Any) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        two = [ResumableCheckpointCallback(999, tmp_path / "first"), Beginning(999, tmp_path / "second")]
        with pytest.raises(SystemExit):
            tiny_model(TinyEnv()).learn(100, callback=two)
        assert resume(tmp_path / "second", TinyEnv()).num_timesteps == 0
        outer = [ResumableCheckpointCallback(999, tmp_path / "out"), Trying()]
        with pytest.raises(SystemExit):
            tiny_model(TinyEnv()).learn(100, callback=outer)
        assert resume(tmp_path / "out", TinyEnv()).num_timesteps == 32
        assert signal.getsignal(signal.SIGTERM) is leave
    finally:
        signal.signal(signal.SIGTERM, before)


def test_errors_of_a_run_that_is_to_end_are_shown(tmp_path, capfd):
    class Both(TinyEnv):
        def step(self, action: Any) -> Any:
            if self.steps == 49:
                signal.raise_signal(signal.SIGTERM)
                raise RuntimeError("the simulator has crashed")
            return super().step(action)

    with pytest.raises(SystemExit):
        tiny_model(Both()).learn(100, callback=ResumableCheckpointCallback(20, tmp_path))
    assert "the simulator has crashed" in capfd.readouterr().err


class Interrupting(TinyEnv):
    """Sends a signal at its 50th step."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def step(self, action: Any) -> Any:
        if self.steps == 49:
            signal.raise_signal(self.number)
        return super().step(action)


class CtrlC(TinyEnv):
    """A terminal sends its signal to all processes."""

    def __init__(self, is_first: bool) -> None:
        super().__init__()
        self.is_first = is_first

    def step(self, action: Any) -> Any:
        if self.steps == 49:
            if self.is_first:
                os.kill(os.getppid(), signal.SIGINT)
            raise KeyboardInterrupt
        return super().step(action)


@pytest.mark.filterwarnings("ignore:Resuming from this checkpoint")
def test_ctrl_c_saves_a_checkpoint_though_it_ends_the_environments_processes(tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        model = tiny_model(SubprocVecEnv([lambda: CtrlC(True), lambda: CtrlC(False)], start_method="fork"))
        with pytest.raises(KeyboardInterrupt):
            model.learn(1000, callback=ResumableCheckpointCallback(10_000, tmp_path))
    finally:
        signal.signal(signal.SIGINT, before)
    resumed = resume(tmp_path, DummyVecEnv([TinyEnv] * 2))
    assert 96 <= resumed.num_timesteps <= 98
    resumed.learn(20, reset_num_timesteps=False)


class Failing(TinyEnv):
    def step(self, action: Any) -> Any:
        if self.steps == 49:
            raise RuntimeError("the simulator has crashed")
        return super().step(action)


KILLED = """
import sys, torch, warnings
torch.set_num_threads(1)
warnings.filterwarnings("error", message=".*damaged")
from sb3_muzero import MuZero
from sb3_muzero.callbacks import ResumableCheckpointCallback
from sb3_muzero.checkpointing import resume
from sb3_muzero.checkpointing.files import checkpoints_in
folder = sys.argv[1]
if checkpoints_in(folder):
    model = resume(folder, "CartPole-v1")
else:
    model = MuZero("MlpPolicy", "CartPole-v1", num_simulations=2, learning_starts=20, batch_size=8, buffer_size=2000, seed=0)
print(model.num_timesteps, flush=True)
callback = ResumableCheckpointCallback(4, folder)
model.learn(8, callback=callback, reset_num_timesteps=False)
print("under way", flush=True)
model.learn(10_000_000, callback=callback, reset_num_timesteps=False)
"""


def kill_and_resume(folder: Path, times: int, seed: int = 0) -> tuple[list[int], int]:
    """:return: Steps that each start found, the run having been killed at a random moment each time; how often in a save"""
    rng, starts, amid_saves = np.random.default_rng(seed), [], 0
    for _ in range(times + 1):
        run = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE, text=True)
        assert run.stdout is not None
        starts.append(int(run.stdout.readline()))
        assert run.stdout.readline() == "under way\n"  # however slow the machine is
        time.sleep(rng.uniform(0.0, 1.5))
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        amid_saves += any(folder.glob("*.unfinished"))
    return starts, amid_saves


def test_kill_9_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    starts, _ = kill_and_resume(tmp_path, 3)
    assert starts == sorted(starts) and starts[-1] > 0
    assert len(checkpoints_in(tmp_path)) <= 3  # one more than `keep` if it dies between both


@pytest.mark.slow
def test_kill_9_a_hundred_times(tmp_path):
    starts, amid_saves = kill_and_resume(tmp_path, 100)
    assert len(starts) == 101 and starts == sorted(starts) and len(set(starts)) > 50 and amid_saves > 5
    print(f"killed {amid_saves} times amid a save, resumed at {starts}")


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_bomb_does_not_go_off(tmp_path):
    exploded = tmp_path / "exploded"
    model = tiny_model(TinyEnv()).learn(60, callback=ResumableCheckpointCallback(10, tmp_path))
    for content in (pickle.dumps(Bomb(exploded)), pickle.dumps({"a": Bomb(exploded)}, protocol=0)):
        (tmp_path / "bomb.pkl").write_bytes(content)
        with pytest.raises(ValueError, match="not a file of sb3_muzero"):
            model.load_replay_buffer(tmp_path / "bomb.pkl")
    np.savez(tmp_path / "bomb.npz", structure=np.array([Bomb(exploded)], dtype=object))
    with pytest.raises(ValueError, match="not a file of sb3_muzero"):
        load_npz(tmp_path / "bomb.npz")
    # In a checkpoint: among the environments, which nobody asks for, and among the settings
    path = checkpoints_in(tmp_path)[-1]
    state = load_checkpoint(tmp_path)
    state["environments"]["pickle"] = np.frombuffer(pickle.dumps(Bomb(exploded)), np.uint8)
    save_npz(path, state)
    resume(tmp_path, TinyEnv())
    state["settings"]["policy_kwargs"] = {"dict": {"activation_fn": {"class": ["os", "system"]}}}
    save_npz(path, state)
    with pytest.raises(ValueError, match=r"`policy_kwargs` was os.system, which was not found"):
        resume(tmp_path, TinyEnv())
    assert not exploded.exists()
    pickle.loads(pickle.dumps(Bomb(exploded)))
    assert exploded.exists()


def test_settings_are_what_they_were_or_missing_by_name(tmp_path):
    kwargs = {"net_arch": [16], "activation_fn": th.nn.Tanh, "value_support": (-1.0, 1.0), "optimizer_class": th.optim.SGD}
    model = tiny_model(TinyEnv(), policy_kwargs=kwargs, train_freq=(2, "episode"), n_steps_half_life=float("inf"))
    save_checkpoint(model, tmp_path)
    resumed = resume(tmp_path, TinyEnv(), n_steps=7)
    assert resumed.policy_kwargs == model.policy_kwargs and resumed.train_freq == model.train_freq
    assert resumed.n_steps == 7 and resumed.n_steps_half_life == float("inf")
    assert type(resumed.policy.optimizer) is th.optim.SGD
    for setting in (3, 1.5, "x", None, True, (1, (2, 3)), [1, {"a": (2,)}], {"b": th.nn.ReLU}):
        assert decode(encode(setting), "x") == setting
    save_checkpoint(tiny_model(TinyEnv(), learning_rate=lambda progress: 1e-3 * progress), tmp_path / "function")
    with pytest.raises(
        ValueError, match=r"`learning_rate` was <function .*cannot be serialized; pass it to `resume\(learning_rate="
    ):
        resume(tmp_path / "function", TinyEnv())
    resume(tmp_path / "function", TinyEnv(), learning_rate=1e-3)


def test_other_environments_are_refused(tmp_path):
    save_checkpoint(tiny_model(TinyEnv()), tmp_path)
    with pytest.raises(ValueError, match="`buffer_size` can't be changed"):
        resume(tmp_path, TinyEnv(), buffer_size=5000)
    for env in ("CartPole-v1", DummyVecEnv([TinyEnv, TinyEnv]), gym.wrappers.FlattenObservation(TicTacToeEnv())):
        with pytest.raises(ValueError, match=r"must (be of|have) "):
            resume(tmp_path, env)
    with pytest.raises(ValueError, match="must not be wrapped in VecNormalize"):
        resume(tmp_path, VecNormalize(DummyVecEnv([TinyEnv])))
    with pytest.raises(ValueError, match="must be wrapped as in the checkpoint"):
        resume(tmp_path, gym.wrappers.TransformReward(TinyEnv(), lambda reward: 2 * reward), restore_environments=True)
    late = TinyEnv()
    late.env = TinyEnv()  # type: ignore[attr-defined]  # its own affair
    save_checkpoint(tiny_model(late), tmp_path / "late")
    resume(tmp_path / "late", TinyEnv(), restore_environments=True)
    for bad in ({"save_freq": 0}, {"keep": 0}, {"save_freq": 1.5}):
        with pytest.raises(ValueError, match="must be an integer of at least 1"):
            ResumableCheckpointCallback(**{"save_freq": 1, "save_path": tmp_path, **bad})


def test_hyperparameters_of_the_optimizer_that_were_changed_are_kept(tmp_path):
    model = tiny_model(TinyEnv()).learn(40)
    model.policy.optimizer.param_groups[0].update(weight_decay=0.5, betas=(0.5, 0.9))
    save_checkpoint(model, tmp_path)
    group = resume(tmp_path, TinyEnv()).policy.optimizer.param_groups[0]
    assert (group["weight_decay"], tuple(group["betas"])) == (0.5, (0.5, 0.9))
