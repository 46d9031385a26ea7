"""Any number of environments, in this process or in others, and the wrappers that Stable-Baselines3 has for them."""

import numpy as np
import pytest
from conftest import TinyEnv, differences, sequences_of, snapshot, tiny_envs, tiny_model
from gymnasium import spaces
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_muzero import MuZero


def stored(model: MuZero, env: int, unroll_steps: int = 1, normalize: VecNormalize | None = None):
    """:return: The sequences that start at each step of one environment, oldest first"""
    ages = np.arange(model.replay_buffer.size())
    return sequences_of(model.replay_buffer, ages, np.full(len(ages), env), unroll_steps, 1, normalize)


def subprocesses(n_envs: int) -> SubprocVecEnv:
    return SubprocVecEnv([TinyEnv for _ in range(n_envs)], start_method="fork")


@pytest.mark.parametrize("n_envs", [1, 3, 8])
@pytest.mark.parametrize("make", [lambda n: tiny_envs(n), subprocesses], ids=["DummyVecEnv", "SubprocVecEnv"])
def test_vec_envs(n_envs, make):
    env = make(n_envs)
    model = tiny_model(env)
    before = snapshot(model)
    model.learn(12 * n_envs)
    assert model.num_timesteps == 12 * n_envs and model.replay_buffer.size() == 12
    assert model._episode_num == n_envs
    model.learn(24, reset_num_timesteps=False)
    assert any("latent_model.dynamics" in where for where in differences(before, snapshot(model)))
    observations = env.reset()
    actions, _ = model.predict(observations, deterministic=True)
    assert actions.shape == (n_envs,)
    env.step(actions)
    env.close()


def test_subprocesses_give_the_same_training():
    results = []
    for env in (tiny_envs(3), subprocesses(3)):
        results.append(snapshot(tiny_model(env, seed=1).learn(60)))
        env.close()
    assert differences(*results) == []


class Fails(TinyEnv):
    """Raises an exception in its 15th step, or in ``reset``."""

    def __init__(self, in_reset: bool = False) -> None:
        super().__init__()
        self.in_reset = in_reset

    def reset(self, **kwargs):
        if self.in_reset:
            raise RuntimeError("the simulator has crashed")
        return super().reset(**kwargs)

    def step(self, action):
        if self.steps == 14:
            raise RuntimeError("the simulator has crashed")
        return super().step(action)


@pytest.mark.parametrize("in_reset", [False, True])
def test_an_exception_in_a_subprocess_names_the_environment_and_where_its_traceback_is(in_reset, capfd):
    env = SubprocVecEnv([lambda: Fails(in_reset), TinyEnv, TinyEnv], start_method="fork")
    model = tiny_model(env)
    words = r"worker process of environment 0 has ended \(exit code 1\).*traceback is printed above"
    with pytest.raises((EOFError, ConnectionError), match=words) as caught:
        model.learn(100)
    assert isinstance(caught.value.__cause__, EOFError | ConnectionError)
    assert "the simulator has crashed" in capfd.readouterr().err
    assert model.replay_buffer.size() == (0 if in_reset else 14)
    with pytest.raises((EOFError, ConnectionError), match="worker process of environment 0 has ended"):
        model.learn(100, reset_num_timesteps=False)  # it stays so
    for process in env.processes:
        process.kill()
    model.set_env(subprocesses(3))  # as the message advises
    model.learn(60, reset_num_timesteps=False)
    model.env.close()


def test_errors_of_other_connections_are_not_taken_for_a_dead_process():
    def callback(locals_, globals_):
        raise ConnectionResetError("of a tracking server")

    env = subprocesses(2)
    with pytest.raises(ConnectionResetError, match=r"^of a tracking server$"):
        tiny_model(env).learn(20, callback=callback)
    env.close()


def history(env: TinyEnv, steps: int, what: str, later: bool = False) -> np.ndarray:
    """:return: What an environment showed before (or after) each of its first steps, final observations included"""
    episodes = getattr(env, what)
    if what == "shown":
        episodes = [episode[1:] if later else episode[:-1] for episode in episodes]
    return np.stack([item for episode in episodes for item in episode][:steps])


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("terminates", [False, True])
def test_each_environment_keeps_its_own_history(n_envs, terminates):
    env = tiny_envs(n_envs, terminates=terminates)
    model = tiny_model(env).learn(24 * n_envs)
    for i, tiny in enumerate(env.envs):
        sequences = stored(model, i)
        np.testing.assert_array_equal(sequences.observations[0], history(tiny, 24, "shown"))
        np.testing.assert_array_equal(sequences.observations[1], history(tiny, 24, "shown", later=True))
        np.testing.assert_array_equal(sequences.actions[0], history(tiny, 24, "taken"))
        np.testing.assert_array_equal(sequences.rewards[0], history(tiny, 24, "rewards"))
        assert np.flatnonzero(sequences.terminated).tolist() == ([8, 9, 18, 19] if terminates else [])
        assert sequences.lengths.tolist() == ([2] * 9 + [1]) * 2 + [2] * 3 + [1]


class InOtherUnits(TinyEnv):
    """Observations around 50, rewards of 7."""

    def _show(self):
        self.shown[-1].append((50 + 3 * self.observation_space.sample()).astype(np.float32))
        return self.shown[-1][-1]

    def step(self, action):
        obs, reward, *rest = super().step(action)
        self.rewards[-1][-1] = 7.0 * reward
        return obs, 7.0 * reward, *rest


WIDE = spaces.Box(-np.inf, np.inf, (3,), np.float32)


@pytest.mark.parametrize("n_envs", [1, 3])
def test_vec_normalize_keeps_raw_data_and_trains_on_normalised(n_envs, monkeypatch):
    env = VecNormalize(DummyVecEnv([InOtherUnits for _ in range(n_envs)]))
    model = tiny_model(env)
    sample, normalisers = model.replay_buffer.sample, []

    def watched(*args, **kwargs):
        normalisers.append(kwargs.get("env"))
        return sample(*args, **kwargs)

    monkeypatch.setattr(model.replay_buffer, "sample", watched)
    model.learn(24 * n_envs)
    assert len(normalisers) == model._n_updates > 0 and all(normaliser is env for normaliser in normalisers)
    for i, tiny in enumerate(env.venv.envs):
        before, after = history(tiny, 24, "shown"), history(tiny, 24, "shown", later=True)
        rewards = history(tiny, 24, "rewards")
        raw = stored(model, i)
        np.testing.assert_array_equal(raw.observations[0], before)
        np.testing.assert_allclose(raw.observations[1], after, atol=1e-3)  # final ones went there and back
        np.testing.assert_array_equal(raw.rewards[0], rewards)
        normal = stored(model, i, normalize=env)
        np.testing.assert_allclose(normal.observations[0], env.normalize_obs(before), rtol=1e-5)
        np.testing.assert_allclose(normal.observations[1], env.normalize_obs(after), atol=1e-3)
        np.testing.assert_allclose(normal.rewards[0], env.normalize_reward(rewards), rtol=1e-5)
    assert abs(normal.observations[0].mean()) < 1 < raw.observations[0].mean()


def test_vec_normalize_saves_loads_and_learns_on(tmp_path):
    env = VecNormalize(DummyVecEnv([InOtherUnits]))
    model = tiny_model(env).learn(32)
    model.save(tmp_path / "model")
    env.save(str(tmp_path / "normalize.pkl"))
    again = VecNormalize.load(str(tmp_path / "normalize.pkl"), DummyVecEnv([InOtherUnits]))
    loaded = MuZero.load(tmp_path / "model", env=again, device="cpu")
    assert loaded.get_vec_normalize_env() is again
    loaded.learn(24, reset_num_timesteps=False)
    np.testing.assert_array_equal(stored(loaded, 0).observations[0], history(again.venv.envs[0], 24, "shown"))


@pytest.mark.parametrize("shape, dtype", [((3,), np.float32), ((8, 8, 1), np.uint8), ((2, 4), np.float64)])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_vec_frame_stack(shape, dtype, n_envs):
    high = 255 if dtype == np.uint8 else 1
    env = VecFrameStack(tiny_envs(n_envs, observation_space=spaces.Box(0, high, shape, dtype)), n_stack=3)
    model = tiny_model(env).learn(24 * n_envs)
    image = dtype == np.uint8
    axis = 1 if image else -1  # images come channel-first
    for i, tiny in enumerate(env.venv.envs):
        sequences = stored(model, i)
        for when, observations in enumerate(sequences.observations.numpy()):
            newest = np.take(observations, np.arange(-(observations.shape[axis] // 3), 0), axis=axis)
            shown = history(tiny, 24, "shown", later=bool(when))
            np.testing.assert_array_equal(newest, shown.transpose(0, 3, 1, 2) if image else shown)
        # The older frames of an observation are the newer ones of the one before, up to the episode's end
        older = np.array_split(sequences.observations[1].numpy(), 3, axis=axis)[:2]
        newer = np.array_split(sequences.observations[0].numpy(), 3, axis=axis)[1:]
        for a, b in zip(older, newer, strict=True):
            np.testing.assert_array_equal(a, b)
    actions, _ = model.predict(env.reset(), deterministic=True)
    assert actions.shape == (n_envs,)


def test_vec_normalize_over_vec_frame_stack():
    env = VecNormalize(VecFrameStack(DummyVecEnv([InOtherUnits, InOtherUnits]), n_stack=2))
    model = tiny_model(env).learn(48)
    shown = history(env.unwrapped.envs[1], 24, "shown")
    np.testing.assert_array_equal(stored(model, 1).observations[0][:, -3:], shown)


def stack_around(normalize_around: bool, n_envs: int = 2, **kwargs) -> VecFrameStack | VecNormalize:
    env = DummyVecEnv([InOtherUnits for _ in range(n_envs)])
    if normalize_around:
        return VecNormalize(VecFrameStack(env, 3), **kwargs)
    return VecFrameStack(VecNormalize(env, **kwargs), 3)


@pytest.mark.parametrize("kwargs", [{}, {"training": False}, {"norm_obs": False}], ids=str)
def test_vec_frame_stack_around_vec_normalize_stores_raw_stacks(kwargs):
    inside, around = (
        tiny_model(stack_around(normalize_around, **kwargs), learning_starts=1_000).learn(64)
        for normalize_around in (False, True)
    )
    assert inside.replay_buffer.frame_stack == 3 and inside.replay_buffer.observations.frames.shape[2:] == (3,)
    for env in range(2):
        here, there = stored(inside, env), stored(around, env)
        np.testing.assert_array_equal(here.observations[0], there.observations[0])
        np.testing.assert_allclose(here.observations[1], there.observations[1], atol=1e-3)  # final ones went there and back
        np.testing.assert_array_equal(here.rewards, there.rewards)
    assert (here.observations[0][:, :3] == 0).all(dim=1).sum() == 2 * 4, "zeros before an episode's first observation"


def test_vec_frame_stack_around_vec_normalize_trains_on_what_acting_sees(tmp_path):
    env, seen = stack_around(False), []
    tiny_model(env, learning_starts=1_000).learn(64)
    env.venv.training = False  # statistics stay as they are
    model = tiny_model(env)
    watch = ConvertCallback(lambda local, _: seen.append(local["self"]._last_obs.copy()) or True)
    model.learn(40, callback=watch)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = MuZero.load(tmp_path / "model", env=env, force_reset=False, device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded._last_obs = model._last_obs  # episodes go on, as in ResumableCheckpointCallback
    loaded.learn(40, callback=watch, reset_num_timesteps=False)
    assert loaded.replay_buffer.size() == len(seen) == 40
    for i in range(2):
        sampled = stored(loaded, i, normalize=env.venv).observations
        np.testing.assert_allclose(sampled[0], np.stack(seen)[:, i], atol=1e-5)
    assert np.abs(seen).max() < 20 < np.abs(loaded.replay_buffer.observations.frames).max()


@pytest.mark.parametrize(
    "make",
    [
        lambda: VecFrameStack(VecNormalize(tiny_envs(observation_space=spaces.Box(-1, 1, (2, 4), np.float32))), 3),
        lambda: VecFrameStack(VecNormalize(tiny_envs(observation_space=spaces.Dict(a=WIDE))), 3),
    ],
    ids=["two axes", "Dict"],
)
def test_stacks_of_normalized_frames_that_cannot_be_undone_are_refused_at_construction(make):
    with pytest.raises(ValueError, match=r"use `VecNormalize\(VecFrameStack\(env, \.\.\.\)\)`"):
        tiny_model(make(), policy="MultiInputPolicy" if isinstance(make().observation_space, spaces.Dict) else "MlpPolicy")


def test_normalized_frames_must_be_stored_one_by_one():
    with pytest.raises(ValueError, match="leave `frame_stack` at 3"):
        tiny_model(stack_around(False), replay_buffer_kwargs=dict(frame_stack=1))


def test_vec_monitor_feeds_the_log(tmp_path):
    env = VecMonitor(tiny_envs(3))
    model = tiny_model(env)
    model.set_logger(configure(str(tmp_path), []))
    model.learn(72, log_interval=None)
    assert [episode["l"] for episode in model.ep_info_buffer] == [10] * 6
    returns = [sum(rewards) for tiny in env.venv.envs for rewards in tiny.rewards[:2]]
    assert sorted(episode["r"] for episode in model.ep_info_buffer) == sorted(returns)


def test_make_vec_env():
    model = tiny_model(make_vec_env("CartPole-v1", n_envs=3, seed=0)).learn(60)
    assert model.num_timesteps == 60 and len(model.ep_info_buffer) > 0


def test_episodic_training_wants_one_environment():
    with pytest.raises(AssertionError, match="one env"):
        tiny_model(tiny_envs(2), train_freq=(1, "episode")).learn(20)


class Float64Env(TinyEnv):
    """Declares float32 and returns float64, as many environments do."""

    def _show(self):
        return super()._show().astype(np.float64) / 3


def test_observations_in_another_dtype_than_declared_stay_sequences():
    env = SubprocVecEnv([Float64Env], start_method="fork")
    model = tiny_model(env, learning_starts=200).learn(100)
    env.close()
    assert model.replay_buffer.observations.ends[:100].sum() == 10
