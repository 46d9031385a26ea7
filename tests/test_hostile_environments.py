"""Environments that do what none should: training goes on with sound numbers, or ends in an error that names the cause."""

from typing import Any

import numpy as np
import pytest
from conftest import TinyEnv, tiny_model
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv


class Broken(TinyEnv):
    """
    As ``TinyEnv``, until a step whose result is another.

    :param change: Makes another result of that of ``step``
    :param at: Steps before, over all episodes
    :param kwargs: See ``TinyEnv``
    """

    def __init__(self, change: Any, at: int = 40, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.change, self.at = change, at

    def step(self, action: Any) -> Any:
        result = super().step(action)
        return self.change(*result) if self.steps > self.at else result


def sound(model: Any) -> None:
    """The numbers of a model can be worked with."""
    assert all(tensor.isfinite().all() for tensor in model.policy.state_dict().values() if tensor.is_floating_point())
    obs = model.observation_space.sample()
    action, _ = model.predict(obs, deterministic=True)
    assert model.action_space.contains(action if action.ndim else int(action))


HANDLED: dict[str, Any] = {
    "rewards of 1e17": lambda o, r, d, t, i: (o, 1e17, d, t, i),
    "rewards of -1e17": lambda o, r, d, t, i: (o, -1e17, d, t, i),
    "rewards of either sign": lambda o, r, d, t, i: (o, 1e17 * (-1) ** int(o[0] > 0), d, t, i),
    "tiny rewards": lambda o, r, d, t, i: (o, 1e-40, d, t, i),
    "rewards as arrays": lambda o, r, d, t, i: (o, np.array(r), d, t, i),
    "rewards as float16": lambda o, r, d, t, i: (o, np.float16(r), d, t, i),
    "observations of 1e17": lambda o, r, d, t, i: (np.full_like(o, 1e17), r, d, t, i),
    "observations of 1e-40": lambda o, r, d, t, i: (np.full_like(o, 1e-40), r, d, t, i),
    "observations that stand still": lambda o, r, d, t, i: (np.zeros_like(o), r, d, t, i),
    "observations in float64": lambda o, r, d, t, i: (o.astype(np.float64), r, d, t, i),
    "observations as integers": lambda o, r, d, t, i: (o.astype(np.int64), r, d, t, i),
    "observations as lists": lambda o, r, d, t, i: (o.tolist(), r, d, t, i),
    "episodes of one step": lambda o, r, d, t, i: (o, r, True, False, i),
    "episodes cut after one step": lambda o, r, d, t, i: (o, r, False, True, i),
    "terminated and truncated": lambda o, r, d, t, i: (o, r, True, True, i),
    "flags as NumPy's": lambda o, r, d, t, i: (o, r, np.bool_(d), np.bool_(t), i),
    "no end": lambda o, r, d, t, i: (o, r, False, False, i),
}


@pytest.mark.parametrize("policy_kwargs", [{}, {"norm_obs": False}], ids=["normalised", "as they are"])
@pytest.mark.parametrize("name", HANDLED)
def test_what_is_handled(name, policy_kwargs):
    model = tiny_model(Broken(HANDLED[name]), buffer_size=60, policy_kwargs=policy_kwargs)
    model.learn(160)
    assert model.num_timesteps == 160 and model.learner.skipped_updates == 0
    sound(model)


class Surprise(Exception):
    pass


def surprise(*result: Any) -> Any:
    raise Surprise("in the environment")


GAVE = "Environment 0 returned a non-finite"
REFUSED: dict[str, Any] = {
    "NaN": (
        lambda o, r, d, t, i: (o * np.nan, r, d, t, i),
        ValueError,
        f"{GAVE} .*observation .*at step",
    ),
    "infinite observation": (
        lambda o, r, d, t, i: (o + np.inf, r, d, t, i),
        ValueError,
        f"{GAVE} .*observation",
    ),
    "NaN reward": (lambda o, r, d, t, i: (o, np.nan, d, t, i), ValueError, f"{GAVE} reward"),
    "rewards of 1e30": (lambda o, r, d, t, i: (o, 1e30, d, t, i), ValueError, "beyond 1e18"),
    "rewards of -1e30": (lambda o, r, d, t, i: (o, -1e30, d, t, i), ValueError, "beyond 1e18"),
    "observations of 1e30": (lambda o, r, d, t, i: (np.full_like(o, 1e30), r, d, t, i), ValueError, "beyond 1e18"),
    "no reward": (lambda o, r, d, t, i: (o, None, d, t, i), (ValueError, TypeError), "reward|float"),
    "reward beyond float32": (lambda o, r, d, t, i: (o, 1e300, d, t, i), ValueError, "Environment 0 returned"),
    "reward of text": (lambda o, r, d, t, i: (o, "much", d, t, i), ValueError, "much"),
    "longer observation": (lambda o, r, d, t, i: (np.zeros(7), r, d, t, i), ValueError, "shape"),
    "observation of text": (lambda o, r, d, t, i: ("x", r, d, t, i), ValueError, "x"),
    "four results": (lambda o, r, d, t, i: (o, r, d, i), ValueError, "unpack"),
    "exception": (surprise, Surprise, "in the environment"),
}


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("at", [4, 40, 49], ids=["warm-up", "amid an episode", "at an end"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_leaves_a_model_that_goes_on(name, at):
    change, error, words = REFUSED[name]
    env = Broken(change, at=at)
    model = tiny_model(env).learn(at // 4 * 4)
    with pytest.raises(error, match=words):
        model.learn(60, reset_num_timesteps=False)
    stored, buffer = model.replay_buffer.size(), model.replay_buffer
    assert stored <= env.steps
    assert np.isfinite(buffer.rewards[:stored]).all() and np.isfinite(buffer.observations.frames[:stored]).all()
    env.change = lambda *result: result
    model.learn(60, reset_num_timesteps=False)
    sound(model)


CLASSES: dict[str, tuple[spaces.Space, Any, str]] = {
    "too many": (spaces.Discrete(7), 7, r"returned 7 as (terminal )?observation at step \d+, which is not in Discrete\(7\)"),
    "negative": (spaces.Discrete(7), -1, "returned -1 as"),
    "below the first": (spaces.Discrete(7, start=3), 2, "returned 2 as"),
    "one of two": (spaces.MultiDiscrete([2, 5]), np.array([2, 4]), r"returned \[2 4\] as .* not in MultiDiscrete"),
    "in a dictionary": (
        spaces.Dict(d=spaces.Discrete(7), b=spaces.Box(-1, 1, (3,))),
        {"d": 9, "b": np.zeros(3, np.float32)},
        "returned 9 as (terminal )?observation 'd'",
    ),
}


@pytest.mark.parametrize("at", [0, 4, 40, 49], ids=["at a start", "warm-up", "amid an episode", "at an end"])
@pytest.mark.parametrize("name", CLASSES)
def test_classes_that_there_are_not_are_neither_stored_nor_learned(name, at):
    """One of them would be an index out of bounds, which on a GPU ends everything."""
    space, seen, words = CLASSES[name]
    env = Broken(lambda o, *rest: (seen, *rest), at=at, observation_space=space)
    if at == 0:
        env.reset = lambda **kwargs: (seen, {})  # type: ignore[method-assign]
    model = tiny_model(env, policy="MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy")
    with pytest.raises(ValueError, match=f"Environment 0 {words}"):
        model.learn(60)
    assert model.replay_buffer.size() <= at
    env.change = lambda *result: result
    vars(env).pop("reset", None)
    sound(model.learn(60))
    with pytest.raises(ValueError, match=r"Observations must be in .*Discrete"):
        model.predict(seen)


class FailsToReset(TinyEnv):
    def reset(self, **kwargs: Any) -> Any:
        if self.resets == 4:
            self.resets += 1
            raise Surprise("in reset")
        return super().reset(**kwargs)


def test_an_exception_in_reset_leaves_a_model_that_goes_on():
    model = tiny_model(FailsToReset())
    with pytest.raises(Surprise, match="in reset"):
        model.learn(100)
    model.learn(100, reset_num_timesteps=False)
    sound(model)


SPACES: dict[str, tuple[spaces.Space, spaces.Space, str | None]] = {
    "one action": (spaces.Box(-1, 1, (3,)), spaces.Discrete(1), None),
    "a thousand actions": (spaces.Box(-1, 1, (3,)), spaces.Discrete(1000), None),
    "actions from -5": (spaces.Box(-1, 1, (3,)), spaces.Discrete(3, start=-5), None),
    "unbounded": (spaces.Box(-np.inf, np.inf, (3,)), spaces.Discrete(3), None),
    "float64": (spaces.Box(-1, 1, (3,), np.float64), spaces.Discrete(3), None),
    "a scalar": (spaces.Box(-1, 1, ()), spaces.Discrete(3), None),
    "many axes": (spaces.Box(-1, 1, (2, 1, 3, 2)), spaces.Discrete(3), None),
    "int8": (spaces.Box(-5, 5, (3,), np.int8), spaces.Discrete(3), None),
    "Discrete": (spaces.Discrete(7), spaces.Discrete(3), None),
    "Discrete from -3": (spaces.Discrete(7, start=-3), spaces.Discrete(3), None),
    "MultiBinary of two axes": (spaces.MultiBinary((2, 3)), spaces.Discrete(3), None),
    "MultiDiscrete": (spaces.MultiDiscrete([2, 5]), spaces.Discrete(3), None),
    "continuous actions": (spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), None),
    "several actions": (spaces.Box(-1, 1, (3,)), spaces.MultiDiscrete([2, 2]), None),
    "a Dict of actions": (spaces.Box(-1, 1, (3,)), spaces.Dict(a=spaces.Discrete(2)), "only supports Box, Discrete"),
    "unbounded actions": (spaces.Box(-1, 1, (3,)), spaces.Box(-np.inf, 1, (2,)), "must be finite"),
    "constant actions": (spaces.Box(-1, 1, (3,)), spaces.Box(np.float32([0, 1]), np.float32([1, 1])), "must differ"),
    "no actions": (spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (0,)), "no numbers"),
    "no components": (spaces.Box(-1, 1, (3,)), spaces.MultiDiscrete([]), "no numbers"),
    "Tuple": (spaces.Tuple([spaces.Discrete(2)]), spaces.Discrete(3), "observation space"),
    "Text": (spaces.Text(5), spaces.Discrete(3), "observation space"),
    "nested Dict": (spaces.Dict({"a": spaces.Dict({"b": spaces.Discrete(2)})}), spaces.Discrete(3), "[Nn]ested"),
    "nothing to see": (spaces.Box(-1, 1, (0,)), spaces.Discrete(3), "no numbers"),
}


@pytest.mark.parametrize("name", SPACES)
def test_spaces(name):
    observation_space, action_space, refusal = SPACES[name]
    policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    env = TinyEnv(observation_space, action_space)
    if refusal is None:
        sound(tiny_model(env, policy=policy).learn(60))
    else:
        with pytest.raises((ValueError, AssertionError, NotImplementedError), match=refusal):
            tiny_model(env, policy=policy)


def test_an_endless_episode_in_a_tiny_buffer():
    model = tiny_model(TinyEnv(length=10**9, terminates=False), buffer_size=12, n_steps=5).learn(600)
    assert model.replay_buffer.full and len(model.replay_buffer.observations.finals) == 16
    sound(model)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_environments_of_different_rhythm(num_envs):
    envs = DummyVecEnv([lambda i=i: TinyEnv(length=1 + 7 * i, terminates=i % 2 == 0) for i in range(num_envs)])
    sound(tiny_model(envs, buffer_size=90).learn(300))


def test_the_environment_of_another_shape_at_reset():
    class Grows(TinyEnv):
        def reset(self, **kwargs: Any) -> Any:
            obs, info = super().reset(**kwargs)
            return (np.zeros(5, np.float32) if self.resets > 2 else obs), info

    with pytest.raises(ValueError, match="shape"):
        tiny_model(Grows()).learn(100)
