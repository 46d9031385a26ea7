"""Every observation space that is supported is learned from as it is; what is not supported is refused by name."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import TinyEnv, differences, scramble, sequences_of, snapshot, tiny_model
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from sb3_muzero import MuZero
from sb3_muzero.checkpointing import resume, save_checkpoint
from sb3_muzero.policies import MlpPolicy

INF = np.inf
SPACES = {
    "float32": spaces.Box(-1, 1, (3,), np.float32),
    "float16": spaces.Box(-1, 1, (3,), np.float16),
    "float64": spaces.Box(-1, 1, (3,), np.float64),
    "int8": spaces.Box(-128, 127, (3,), np.int8),
    "int16": spaces.Box(-5, 3000, (3,), np.int16),
    "int32": spaces.Box(-7, 7, (3,), np.int32),
    "int64": spaces.Box(-1000, 1000, (3,), np.int64),
    "int64, large": spaces.Box(-(2**62), 2**62, (3,), np.int64),
    "uint8": spaces.Box(0, 255, (3,), np.uint8),
    "uint16": spaces.Box(0, 65535, (3,), np.uint16),
    "uint32": spaces.Box(0, 2**32 - 1, (3,), np.uint32),
    "infinite": spaces.Box(-INF, INF, (3,), np.float32),
    "infinite float64": spaces.Box(-INF, INF, (3,), np.float64),
    "half infinite": spaces.Box(np.array([0, -INF], np.float32), np.array([INF, 3], np.float32)),
    "uneven": spaces.Box(np.array([-5, 0, 1e6], np.float32), np.array([-4, 1e-3, 2e6], np.float32)),
    "one number": spaces.Box(-1, 1, (1,), np.float32),
    "rank 2": spaces.Box(-1, 1, (2, 3), np.float32),
    "rank 3": spaces.Box(-1, 1, (2, 3, 4), np.float64),
    "rank 3 int": spaces.Box(0, 9, (2, 3, 2), np.int64),
    "image": spaces.Box(0, 255, (3, 8, 8), np.uint8),
    "channel-last image": spaces.Box(0, 255, (16, 12, 3), np.uint8),
    "discrete": spaces.Discrete(5),
    "discrete of one": spaces.Discrete(1),
    "discrete from 3": spaces.Discrete(5, start=3),
    "discrete from -2": spaces.Discrete(5, start=-2),
    "multi-binary": spaces.MultiBinary(4),
    "multi-binary rank 2": spaces.MultiBinary([2, 3]),
    "multi-discrete": spaces.MultiDiscrete([3, 2, 4]),
    "multi-discrete from elsewhere": spaces.MultiDiscrete([3, 2], start=[2, -1]),
}


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("terminates", [False, True])
def test_observation_spaces(name, terminates):
    space = SPACES[name]
    env = TinyEnv(space, terminates=terminates)
    model = tiny_model(env)
    before = snapshot(model)
    model.learn(48)
    changed = differences(before, snapshot(model))
    assert any("latent_model.dynamics" in where for where in changed)
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())

    # The buffer keeps what the environment showed, in its dtype, final observations too
    shown = [np.stack(episode[:11]) for episode in env.shown[:4]]
    if name == "channel-last image":
        shown = [episode.transpose(0, 3, 1, 2) for episode in shown]
    sequences = sequences_of(model.replay_buffer, np.arange(4) * 10, np.zeros(4, int), 10, 1)
    assert sequences.lengths.tolist() == [10] * 4
    assert sequences.terminated.tolist() == [terminates] * 4
    stored = sequences.observations.numpy().swapaxes(0, 1)
    np.testing.assert_array_equal(stored, np.stack(shown))
    assert sequences.observations.numpy().dtype == space.dtype

    # Single and batched predictions
    observations = np.stack(env.shown[0])
    actions, _ = model.predict(observations, deterministic=True)
    assert actions.shape == (11,)
    assert all(env.action_space.contains(action) for action in actions)
    alone, _ = model.predict(env.shown[0][0], deterministic=True)
    assert alone.shape == () and alone == actions[0]


@pytest.mark.parametrize("name", [name for name in SPACES if name != "discrete of one"])
def test_the_policy_sees_the_observation(name):
    env = TinyEnv(SPACES[name])
    model = scramble(tiny_model(env).learn(32))  # which also shows the model what units to expect
    observations = np.stack([model.observation_space.sample() for _ in range(20)])
    values = model.policy.predict_values(th.as_tensor(observations)).detach().numpy().ravel()
    seen, indices = np.unique(observations.reshape(20, -1).astype(np.float64), axis=0, return_inverse=True)
    assert len(seen) > 1 and np.isfinite(values).all()
    for i in range(len(seen)):
        assert np.ptp(values[indices.ravel() == i]) < 1e-4, "equal observations, equal values"
    assert len(np.unique(values.round(6))) > 1, "and different ones differ"


@pytest.mark.parametrize("env_id", ["FrozenLake-v1", "CliffWalking"])  # whose version differs among those of Gymnasium
def test_environments_whose_observations_are_plain_integers(env_id):
    model = tiny_model(gym.make(env_id, max_episode_steps=15)).learn(48)
    assert model._episode_num >= 3
    observation, _ = gym.make(env_id).reset()
    action, _ = model.predict(observation, deterministic=True)
    assert model.action_space.contains(action)


class Unwrapped(TinyEnv):
    """Shows plain Python objects."""

    def _show(self):
        return super()._show().tolist()


@pytest.mark.parametrize("name", ["float32", "discrete", "multi-discrete", "multi-binary"])
@pytest.mark.parametrize("terminates", [False, True])
def test_environments_whose_observations_are_python_lists_and_numbers(name, terminates):
    model = tiny_model(Unwrapped(SPACES[name], terminates=terminates)).learn(32)
    sequences = sequences_of(model.replay_buffer, np.array([0]), np.array([0]), 10, 1)
    np.testing.assert_allclose(sequences.observations[:, 0], np.stack(model.env.envs[0].unwrapped.shown[0]))


def test_dict_observations_are_pointed_to_their_policy():
    env = TinyEnv(spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(-1, 1, (2,))}))
    with pytest.raises(ValueError, match="MultiInputPolicy"):
        tiny_model(env)
    with pytest.raises(ValueError, match="MultiInputPolicy"):
        MuZero(MlpPolicy, env)


def test_other_observation_spaces_are_refused_by_name():
    with pytest.raises(ValueError, match="Box, Discrete"):
        tiny_model(TinyEnv(spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)])))


@pytest.mark.parametrize("n", [1, 2, 30])
@pytest.mark.parametrize("search", ["gumbel", "puct"])
def test_any_number_of_actions(n, search):
    env = TinyEnv(action_space=spaces.Discrete(n, start=1))
    model = tiny_model(env, search=search).learn(60)
    assert {int(action) for episode in env.taken[:2] for action in episode} <= set(range(1, n + 1))
    assert model.action_space.contains(model.predict(env.shown[0][0])[0])


@pytest.mark.parametrize("scale", [1e-12, 1e6, 1e15])
def test_observations_and_rewards_of_any_scale(scale):
    """Finite is good enough: the parameters stay finite, and predictions possible."""

    class Scaled(TinyEnv):
        def _show(self):
            return (scale * super()._show()).astype(np.float32)

        def step(self, action):
            obs, reward, *rest = super().step(action)
            return obs, min(scale, 1e6) * reward, *rest

    space = spaces.Box(-INF, INF, (3,), np.float32)
    model = tiny_model(Scaled(space)).learn(60)
    assert all(th.isfinite(value).all() for value in model.policy.state_dict().values())
    model.predict(np.full(3, scale, np.float32), deterministic=True)


class Clock(gym.Env):
    """Two times a minute apart; the action that names which of the two it is is rewarded."""

    def __init__(self, dtype: type = np.float64, now: int = 1_700_000_000, in_dict: bool = False) -> None:
        high = np.inf if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
        time = spaces.Box(0, high, (1,), dtype)
        self.observation_space = spaces.Dict(time=time, other=spaces.Box(-1, 1, (2,), np.float32)) if in_dict else time
        self.action_space = spaces.Discrete(2)
        self.dtype, self.now, self.in_dict = dtype, now, in_dict

    def _show(self):
        self.minute = int(self.np_random.integers(2))
        time = np.array([self.now + 60 * self.minute], self.dtype)
        return {"time": time, "other": np.zeros(2, np.float32)} if self.in_dict else time

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._show(), {}

    def step(self, action):
        self.steps += 1
        reward = float(action == self.minute)
        return self._show(), reward, self.steps == 9, False, {}


LEARNS = dict(learning_starts=64, batch_size=32, train_freq=1, gamma=0.5, learning_rate=1e-2, ent_coef=0.01)
CLOCKS = {
    "float64": lambda **kwargs: Clock(**kwargs),
    "int64": lambda **kwargs: Clock(np.int64, **kwargs),
    "uint32": lambda **kwargs: Clock(np.uint32, **kwargs),
    "Dict": lambda **kwargs: Clock(in_dict=True, **kwargs),
    "Dict, int64": lambda **kwargs: Clock(np.int64, in_dict=True, **kwargs),
    "VecFrameStack": lambda **kwargs: VecFrameStack(DummyVecEnv([lambda: Clock(**kwargs)]), 1),
    "VecNormalize of rewards": lambda **kwargs: VecNormalize(DummyVecEnv([lambda: Clock(**kwargs)]), norm_obs=False),
}  # fmt: skip


@pytest.mark.parametrize("planner", ["compiled", "PyTorch"])
@pytest.mark.parametrize("name", CLOCKS)
def test_time_stamps_are_learned_as_their_differences(name, planner, tmp_path):
    """Not a bit depends on when the clock starts."""
    policy = "MultiInputPolicy" if "Dict" in name else "MlpPolicy"
    kwargs = dict(policy_kwargs={} if planner == "compiled" else dict(activation_fn=th.nn.Softplus), novelty_coef=0.1)
    early, late = (
        tiny_model(CLOCKS[name](now=now), policy, reanalyze_ratio=0.5, **kwargs, **LEARNS).learn(90)
        for now in (1_000_000, 1_700_000_000)
    )
    assert early._n_updates > 0 and (early.policy.uncompiled_reason is None) == (planner == "compiled")
    where = [difference.split(".")[-2] for difference in differences(snapshot(early), snapshot(late))]
    assert set(where) == {"origin"}, "the constant that is subtracted"
    np.testing.assert_array_equal(early.replay_buffer.policies[:90], late.replay_buffer.policies[:90])
    late.save(tmp_path / "model")
    for model in (late, MuZero.load(tmp_path / "model")):
        space = late.observation_space
        times = np.array([[1_700_000_000], [1_700_000_060]], (space["time"] if "Dict" in name else space).dtype)
        obs = {"time": times, "other": np.zeros((2, 2), np.float32)} if "Dict" in name else times
        values = model.policy.predict_values(model.policy.obs_to_tensor(obs)[0])
        assert values[0] != values[1]
        model.predict(obs)


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_what_depends_on_a_minute_is_learned(dtype, tmp_path):
    model = tiny_model(Clock(dtype), **LEARNS).learn(350)
    assert model.replay_buffer.rewards[300:350].mean() > 0.9
    actions, _ = model.predict(np.array([[1_700_000_000], [1_700_000_060]], dtype), deterministic=True)
    assert actions.tolist() == [0, 1]
    save_checkpoint(model, tmp_path)
    resumed = resume(tmp_path, Clock(dtype))
    assert differences(snapshot(model), snapshot(resumed)) == []
    resumed.learn(20, reset_num_timesteps=False)


def test_the_tiny_environment_is_a_good_one():
    check_env(TinyEnv(), warn=True)
