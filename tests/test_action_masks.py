"""Action masks in sb3-contrib's convention: no illegal action is ever taken, stored as a target or predicted."""

import re
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import tiny_model
from gymnasium import spaces
from sb3_contrib.common.envs import InvalidActionEnvDiscrete
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy as sb3_evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from sb3_muzero import MuZero
from sb3_muzero.actions import make_actions
from sb3_muzero.analysis.recording import play
from sb3_muzero.common.action_masks import has_action_masks
from sb3_muzero.envs.action_masks import ReturnedActionMasker
from sb3_muzero.exploration.warmup import repeated_random_actions
from sb3_muzero.learning.losses import muzero_loss
from sb3_muzero.learning.targets import unroll_targets

NUM_ACTIONS = 5


class MaskedEnv(gym.Env):
    """Shows which actions are legal, and ends in an error if another is taken."""

    observation_space = spaces.Box(0.0, 1.0, (NUM_ACTIONS,), np.float32)

    def __init__(self, start: int = 0, length: int = 7) -> None:
        self.action_space = spaces.Discrete(NUM_ACTIONS, start=start)
        self.start = start
        self.length = length

    def _show(self) -> np.ndarray:
        self.legal = self.np_random.random(NUM_ACTIONS) < 0.4
        self.legal[self.np_random.integers(NUM_ACTIONS)] = True
        return self.legal.astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._show(), {}

    def step(self, action):
        index = int(action) - self.start
        if not self.legal[index]:
            raise AssertionError("illegal action")
        self.steps += 1
        return self._show(), float(index), self.steps == self.length, False, {}

    def action_masks(self) -> np.ndarray:
        return self.legal


class TakesAnyAction(MaskedEnv):
    def step(self, action):
        self.legal[int(action) - self.start] = True
        return super().step(action)


class WithoutMasks(gym.Wrapper):
    """Gymnasium's wrappers forward no attributes but through ``get_wrapper_attr``."""

    def get_wrapper_attr(self, name):
        if name == "action_masks":
            raise AttributeError(name)
        return super().get_wrapper_attr(name)


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("search", ["gumbel", "puct"])
def test_no_illegal_action_is_taken_or_learned(search, start):
    env = DummyVecEnv([lambda: MaskedEnv(start)] * 2)
    model = tiny_model(env, search=search, reanalyze_ratio=1.0, learning_starts=60, random_action_repeat=3.0)
    model.learn(240)  # an illegal action ends it
    buffer = model.replay_buffer
    shown = buffer.observations.at(np.zeros((1, buffer.size()), int), buffer.index.stored()[::2])[0]
    assert np.array_equal(buffer.action_masks[: buffer.size(), 0], shown > 0)
    searched = buffer.policies[: buffer.size()].sum(-1) > 0
    assert searched.sum() > 100
    assert (buffer.policies[: buffer.size()] * ~buffer.action_masks[: buffer.size()]).sum() == 0


def test_random_actions_are_uniform_over_legal_ones():
    legal = np.array([[True, False, True, True, False]] * 30_000)
    counts = np.bincount(
        repeated_random_actions(make_actions(spaces.Discrete(NUM_ACTIONS)), None, len(legal), 1.0, legal),
        minlength=NUM_ACTIONS,
    )
    assert counts[1] == counts[4] == 0
    assert np.abs(counts[[0, 2, 3]] / len(legal) - 1 / 3).max() < 0.02


def test_samples_have_the_masks_of_their_positions():
    model = tiny_model(MaskedEnv(length=3), learning_starts=40)
    model.learn(60)
    samples = model.replay_buffer.sample(64, unroll_steps=4, n_steps=2)
    masks, shown = samples.action_masks, samples.observations > 0
    assert masks.shape == (5, 64, NUM_ACTIONS)
    for k in range(5):
        before_end = k < samples.lengths
        assert th.equal(masks[k, before_end], shown[k, before_end])
        assert masks[k, ~before_end].all()


def test_the_entropy_is_that_of_legal_actions():
    model = tiny_model(MaskedEnv(), learning_starts=20)
    model.learn(60)
    samples = model.replay_buffer.sample(16, unroll_steps=2, n_steps=2)
    targets = unroll_targets(samples, th.zeros(3, 16), 0.9)
    losses = muzero_loss(model.policy.latent_model, model.policy.actions, samples, targets).losses

    latents = [model.policy.represent(samples.observations[0])]
    for action in samples.actions:
        encoded = model.policy.latent_model.action_encoder(action)
        latents.append(model.policy.latent_model.dynamics(latents[-1], encoded).latent)
    logits = model.policy.latent_model.prediction(th.stack(latents)).policy_logits
    expected = th.zeros(())
    for k, b in np.ndindex(3, 16):
        if samples.policies[k, b].sum() > 0:
            entropy = th.distributions.Categorical(logits=logits[k, b, samples.action_masks[k, b]]).entropy()
            expected = expected - entropy / 16 / (1 if k == 0 else 2)
    th.testing.assert_close(losses["entropy"], expected, rtol=1e-4, atol=1e-6)
    losses["entropy"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.policy.parameters())


def test_predict_takes_masks_of_one_and_of_many():
    model = tiny_model(MaskedEnv(start=2))
    observations = np.random.default_rng(0).random((NUM_ACTIONS, NUM_ACTIONS), dtype=np.float32)
    only_one = np.eye(NUM_ACTIONS, dtype=bool)
    for policy in (model, model.policy):
        for masks in (only_one, only_one.astype(int), only_one.tolist()):
            assert policy.predict(observations, action_masks=masks)[0].tolist() == [2, 3, 4, 5, 6]
        for masks in (only_one[3], only_one[3:4]):
            action, state = policy.predict(observations[3], deterministic=True, action_masks=masks)
            assert action.shape == () and action == 5 and state is None
    every = np.ones((NUM_ACTIONS, NUM_ACTIONS), dtype=bool)
    with_all = model.predict(observations, deterministic=True, action_masks=every)[0]
    assert np.array_equal(with_all, model.predict(observations, deterministic=True)[0])


@pytest.mark.parametrize(
    "masks, message",
    [
        (np.ones(NUM_ACTIONS, bool), r"shape \[2, 5\], got \[5\]"),
        (np.ones((2, 4), bool), r"shape \[2, 5\], got \[2, 4\]"),
        (np.zeros((2, NUM_ACTIONS), bool), "none in row 0"),
        (np.array([[1] * NUM_ACTIONS, [0] * NUM_ACTIONS]), "none in row 1"),
        (np.full((2, NUM_ACTIONS), -np.inf), "True where an action is legal"),
        (np.arange(2 * NUM_ACTIONS).reshape(2, -1), "True where an action is legal"),
        ([["yes"] * NUM_ACTIONS] * 2, "True where an action is legal"),
    ],
)
def test_bad_masks_of_predict(masks, message):
    model = tiny_model(MaskedEnv())
    with pytest.raises(ValueError, match=message):
        model.predict(np.zeros((2, NUM_ACTIONS), np.float32), action_masks=masks)


def test_what_reset_returns_is_no_observation():
    with pytest.raises(ValueError, match="Gym API"):
        tiny_model(MaskedEnv()).predict(MaskedEnv().reset(seed=0), action_masks=np.ones(NUM_ACTIONS, bool))


@pytest.mark.parametrize(
    "bad, message",
    [
        (np.zeros(5, bool), "must leave an action to choose from, got none$"),
        (np.ones(4, bool), r"must have the shape \[5\], got \[4\]"),
        (np.full(5, 0.5), "must be True where an action is legal and False elsewhere"),
        (["all"] * 5, "must be True where an action is legal and False elsewhere"),
        (None, r"must have the shape \[1, 5\], got \[\]"),
    ],
)
def test_bad_masks_name_the_environment_and_the_step(bad, message):
    def mask(env):
        return bad if env.unwrapped.steps == 3 and env.unwrapped.length == 8 else np.ones(NUM_ACTIONS, bool)

    lengths = [7, 8, 9]
    env = DummyVecEnv([lambda length=length: ActionMasker(TakesAnyAction(length=length), mask) for length in lengths])
    model = tiny_model(env)
    with pytest.raises(ValueError, match=f"Environment 1 at step 9: `action_masks` {message}"):
        model.learn(100)
    assert model.replay_buffer.size() == 3


def test_bad_masks_of_an_evaluation_name_the_step():
    env = ActionMasker(MaskedEnv(), lambda env: env.legal & (env.unwrapped.steps != 3))
    with pytest.raises(ValueError, match="Environment 0 at step 3: `action_masks` must leave an action to choose from"):
        play(tiny_model(env), DummyVecEnv([lambda: env]), 1, 100, deterministic=True)


def test_masks_that_are_demanded_and_missing():
    model = tiny_model(WithoutMasks(MaskedEnv()))
    with pytest.raises(ValueError, match=r"no method `action_masks`.*ActionMasker"):
        model.learn(10, use_masking=True)


class Unmasked(MaskedEnv):
    """The same, but says what is legal in another way."""

    action_masks = property(lambda self: self._no_such_attribute)  # type: ignore[assignment]


class OwnMasks(VecEnvWrapper):
    """A VecEnvWrapper that knows what is legal."""

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        return self.venv.step_wait()

    def action_masks(self):
        return np.stack(self.venv.get_attr("legal"))


class Inside(OwnMasks):
    def action_masks(self):
        raise AssertionError("the outermost wrapper that has masks counts")


class Native(VecEnv):
    """A VecEnv that consists of no Gymnasium environments, as far as it shows."""

    def __init__(self):
        self.inner = DummyVecEnv([Unmasked] * 2)
        super().__init__(2, self.inner.observation_space, self.inner.action_space)

    def reset(self):
        return self.inner.reset()

    def step_async(self, actions):
        self.inner.step_async(actions)

    def step_wait(self):
        return self.inner.step_wait()

    def close(self):
        pass

    def get_attr(self, attr_name, indices=None):
        if attr_name == "render_mode":
            return [None] * self.num_envs
        raise AttributeError(attr_name)

    def set_attr(self, attr_name, value, indices=None):
        raise NotImplementedError

    def env_method(self, method_name, *method_args, indices=None, **method_kwargs):
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False] * self.num_envs


class NativeMasks(Native):
    def action_masks(self):
        return np.stack(self.inner.get_attr("legal"))


class Answering(Native):
    def env_method(self, method_name, *method_args, indices=None, **method_kwargs):
        if method_name != "action_masks":
            raise AttributeError(method_name)
        return self.inner.get_attr("legal")


class AnsweringWithoutAttributes(Answering):
    def get_attr(self, attr_name, indices=None):
        if attr_name == "render_mode":
            return [None] * self.num_envs
        raise NotImplementedError


@pytest.mark.parametrize(
    "make",
    [
        lambda: OwnMasks(DummyVecEnv([Unmasked] * 2)),
        lambda: VecMonitor(OwnMasks(VecNormalize(DummyVecEnv([Unmasked] * 2)))),
        lambda: VecMonitor(OwnMasks(VecMonitor(Inside(DummyVecEnv([Unmasked] * 2))))),
        lambda: OwnMasks(SubprocVecEnv([Unmasked] * 2)),
        NativeMasks,
        lambda: VecMonitor(NativeMasks()),
        Answering,
        lambda: VecFrameStack(AnsweringWithoutAttributes(), 2),
    ],
    ids=["wrapper", "inside of another", "two of them", "processes", "native", "native inside", "answering", "mute"],
)
@pytest.mark.filterwarnings("error")
def test_masks_of_a_vec_env(make):
    model = tiny_model(make(), learning_starts=10)
    model.learn(60, use_masking=True)  # an illegal action ends it
    model.learn(60)
    assert model.uses_action_masks and not model.replay_buffer.action_masks[:].all()
    model.env.close()


@pytest.mark.filterwarnings("error")
def test_a_native_vec_env_that_answers_nothing_has_no_masks():
    class Empty(Native):
        def get_attr(self, attr_name, indices=None):
            return [None] * self.num_envs

        def env_method(self, method_name, *method_args, indices=None, **method_kwargs):
            return None

    for env in (Native(), Empty()):
        env.inner = DummyVecEnv([TakesAnyAction] * 2)
        assert not tiny_model(env).learn(20).uses_action_masks


class Property(Unmasked):
    action_masks = property(lambda self: self.legal)  # type: ignore[assignment]


class Attribute(Unmasked):
    action_mask = property(lambda self: self.legal)


class Method(Unmasked):
    def valid_action_mask(self):
        return self.legal


class Lists(Unmasked):
    def legal_actions(self):
        return [action + self.start for action in range(NUM_ACTIONS) if self.legal[action]]


class Returning(Unmasked):
    """As Taxi and PettingZoo's games do."""

    key = "action_mask"

    def reset(self, **kwargs):
        observation, _ = super().reset(**kwargs)
        return observation, {self.key: self.legal.astype(np.int8)}

    def step(self, action):
        *result, _ = super().step(action)
        return *result, {self.key: self.legal.astype(np.int8)}


class ReturningOthers(Returning):
    key = "valid_action_mask"

    def valid_action_mask(self, state, player=0):
        raise AssertionError("no state to ask for")


class Showing(Unmasked):
    """A Dict observation that contains the mask, as PettingZoo's are."""

    observation_space = spaces.Dict(observation=MaskedEnv.observation_space, action_mask=spaces.MultiBinary(NUM_ACTIONS))

    def _show(self):
        return {"observation": super()._show(), "action_mask": self.legal.astype(np.int8)}


def follow(advice: str, make: Any) -> Any:
    """:return: An environment that is wrapped by the code in a message"""
    scope: dict[str, Any] = {"env": make()}
    for code in re.findall(r"`((?:from|import|env =) [^`]*)`", advice):
        exec(code, scope)
    return scope["env"]


NEAR_MISSES = [
    (Property, DummyVecEnv, "`action_masks` (not a method)"),
    (Attribute, DummyVecEnv, "`action_mask`"),
    (Attribute, SubprocVecEnv, "`action_mask`"),
    (Method, DummyVecEnv, "`valid_action_mask`"),
    (lambda: Lists(start=2), DummyVecEnv, "`legal_actions`"),
    (Returning, DummyVecEnv, "`info['action_mask']`"),
    (Returning, SubprocVecEnv, "`info['action_mask']`"),
    (ReturningOthers, DummyVecEnv, "`info['valid_action_mask']` and `valid_action_mask`"),
    (Showing, DummyVecEnv, "'action_mask' in its Dict observations"),
    (lambda: gym.wrappers.TimeLimit(Returning(), 5), DummyVecEnv, "`info['action_mask']`"),
]


@pytest.mark.parametrize("make, vectorize, what", NEAR_MISSES)
def test_masks_in_another_convention_are_named_and_the_advice_works(make, vectorize, what, recwarn):
    warnings.simplefilter("always")

    def any_action():
        env = make()
        step = env.unwrapped.step
        env.unwrapped.step = lambda action: (env.unwrapped.legal.fill(True), step(action))[1]
        return env

    policy = "MultiInputPolicy" if make is Showing else "MlpPolicy"
    model = tiny_model(vectorize([any_action] * 2), policy)
    model.learn(20, use_masking=False)
    assert not [warning for warning in recwarn if "masked" in str(warning.message)]
    with pytest.raises(ValueError, match=r"`use_masking=True`, but .* has no method `action_masks`\. It has") as error:
        model.learn(20, use_masking=True)
    model.learn(20)
    model.learn(20)
    told = [str(warning.message) for warning in recwarn if "masked" in str(warning.message)]
    assert len(told) == 1 and f"It has {what}: wrap each environment with" in told[0] and not model.uses_action_masks
    assert all(code in str(error.value) for code in (f"It has {what}", *re.findall("`env = .*?`", told[0])))
    assert len(model.env.get_attr("length")) == 2  # its processes live
    model.env.close()

    model = tiny_model(vectorize([lambda: follow(told[0], make)] * 2), policy)
    model.learn(60)  # an illegal action ends it
    assert model.uses_action_masks and not model.replay_buffer.action_masks[:].all()
    model.env.close()


@pytest.mark.filterwarnings("error")
def test_masks_that_are_none_are_not_named():
    class Undefined(MaskedEnv):
        action_masks = action_mask = None

        def step(self, action):
            self.legal[:] = True
            *result, _ = super().step(action)
            return *result, {"action_mask": None}

    assert not tiny_model(Undefined()).learn(40).uses_action_masks


def test_taxi_says_which_moves_change_something():
    with pytest.warns(UserWarning, match=r"It has `info\['action_mask'\]` and `action_mask`: wrap") as told:
        tiny_model("Taxi-v4").learn(40)
    model = tiny_model(follow(str(told[0].message), lambda: gym.make("Taxi-v4"))).learn(60)
    assert not model.replay_buffer.action_masks[:60].all()


def test_masks_that_only_steps_return_are_named():
    class Late(Returning):
        def reset(self, **kwargs):
            observation, _ = super().reset(**kwargs)
            self.legal[:] = True
            return observation, {}

        def step(self, action):
            result = super().step(action)
            self.legal[:] = True
            return result

    with pytest.warns(UserWarning, match=r"It has `info\['action_mask'\]`: let `reset` return them in its info as"):
        tiny_model(Late()).learn(10)
    with pytest.raises(ValueError, match="returned no 'action_mask', neither in the info nor in a Dict observation"):
        tiny_model(ReturnedActionMasker(Late())).learn(10)


@pytest.mark.parametrize(
    "name, what", [("action_masks", "`action_masks` of Near \\(not a method\\)"), ("action_mask", "of Near")]
)
def test_masks_of_a_vec_env_in_another_convention_are_named(name, what):
    near = type("Near", (Native,), {name: np.ones((2, NUM_ACTIONS), bool)})
    with pytest.raises(ValueError, match=rf"{what}: give Near, .* a method `action_masks\(\)` .* \[n_envs, num_actions\]"):
        tiny_model(near()).learn(10, use_masking=True)


@pytest.mark.filterwarnings("error")
def test_native_vec_envs_that_answer_anything_have_no_masks():
    class Telling(Native):
        def get_attr(self, attr_name, indices=None):
            return [None if attr_name in ("render_mode", "two_player", "to_play", "symmetries") else 0] * self.num_envs

    env = Telling()
    env.inner = DummyVecEnv([TakesAnyAction] * 2)
    assert not tiny_model(env).learn(40).uses_action_masks


@pytest.mark.filterwarnings("error")
def test_properties_that_raise_are_no_masks():
    class Raising(Unmasked):
        legal_actions = property(lambda self: 1 // 0)

        def step(self, action):
            self.legal[:] = True
            return super().step(action)

    assert not tiny_model(Raising()).learn(40).uses_action_masks


def test_infos_of_a_native_vec_env_with_masks():
    class Informed(Native):
        def reset(self):
            observations = super().reset()
            self.reset_infos = [{"action_mask": legal} for legal in self.inner.get_attr("legal")]
            return observations

    with pytest.raises(ValueError, match=r"It has `info\['action_mask'\]`: give Informed, or a VecEnvWrapper around it,"):
        tiny_model(Informed()).learn(10, use_masking=True)


def test_a_process_that_ends_when_it_is_asked_for_masks_says_why():
    env = SubprocVecEnv([Property])
    with pytest.raises(
        (EOFError, ConnectionError), match=r"asked for `action_masks\(\)`.* If it is not a method, wrap"
    ) as error:
        tiny_model(env).learn(10)
    model = tiny_model(follow(str(error.value), Property)).learn(40)
    assert not model.replay_buffer.action_masks[:].all()


def test_masks_can_be_ignored():
    model = tiny_model(MaskedEnv())
    with pytest.raises(AssertionError, match="illegal action"):
        model.learn(100, use_masking=False)


def test_an_environment_that_cannot_be_asked_has_no_masks():
    class Mute(DummyVecEnv):
        def get_attr(self, attr_name, indices=None):
            if attr_name == "render_mode":
                return super().get_attr(attr_name, indices)
            raise NotImplementedError

        def env_method(self, method_name, *method_args, indices=None, **method_kwargs):
            raise NotImplementedError

    assert not has_action_masks(Mute([MaskedEnv]))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda make: DummyVecEnv([lambda: ActionMasker(WithoutMasks(make()), lambda env: env.unwrapped.legal)]),
        lambda make: VecNormalize(DummyVecEnv([make])),
        lambda make: VecFrameStack(DummyVecEnv([make]), 2),
        lambda make: SubprocVecEnv([make, make]),
    ],
    ids=["ActionMasker", "VecNormalize", "VecFrameStack", "SubprocVecEnv"],
)
def test_wrapped(wrap):
    env = wrap(MaskedEnv)
    model = tiny_model(env, learning_starts=10)
    model.learn(40)  # an illegal action ends it
    assert model.replay_buffer.action_masks is not None
    env.close()


def test_sb3_contribs_evaluation():
    model = tiny_model(MaskedEnv(), learning_starts=20)
    model.learn(60, callback=MaskableEvalCallback(MaskedEnv(), n_eval_episodes=2, eval_freq=20, warn=False))
    evaluate_policy(model, MaskedEnv(), 3, warn=False)
    evaluate_policy(model.policy, MaskedEnv(), 3, deterministic=False, warn=False)


def test_predicting_without_masks_warns_who_was_trained_with_them(tmp_path):
    observation = np.zeros(NUM_ACTIONS, np.float32)
    model = tiny_model(WithoutMasks(MaskedEnv()), learning_starts=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(observation)
    model.set_env(MaskedEnv())
    model.learn(20)
    model.save(tmp_path / "model")
    for masked in (model, MuZero.load(tmp_path / "model")):
        with pytest.warns(UserWarning, match="trained with action masks"):
            masked.predict(observation)


def test_evaluating_without_masks_warns_once(recwarn):
    warnings.simplefilter("always")
    model = tiny_model(MaskedEnv(), learning_starts=10)
    model.learn(60, callback=EvalCallback(TakesAnyAction(), n_eval_episodes=2, eval_freq=10, verbose=0))
    sb3_evaluate_policy(model, Monitor(TakesAnyAction()), 3)
    assert [warning.category for warning in recwarn if "trained with action masks" in str(warning.message)] == [UserWarning]


def test_masks_survive_saving_the_replay_buffer(tmp_path):
    model = tiny_model(MaskedEnv(), learning_starts=10)
    model.learn(30)
    model.save_replay_buffer(tmp_path / "buffer")
    other = tiny_model(MaskedEnv(), learning_starts=10)
    other.load_replay_buffer(tmp_path / "buffer")
    assert np.array_equal(other.replay_buffer.action_masks[:30], model.replay_buffer.action_masks[:30])
    other.learn(30, reset_num_timesteps=False)
    assert np.array_equal(other.replay_buffer.action_masks[:30], model.replay_buffer.action_masks[:30])


def test_steps_without_masks_leave_every_action_legal():
    model = tiny_model(ActionMasker(MaskedEnv(), lambda env: env.legal), buffer_size=20, learning_starts=10**6)
    model.learn(20)
    assert not model.replay_buffer.action_masks[:].all()
    buffer = model.replay_buffer
    for _ in range(20):
        buffer.add(np.zeros((1, 5)), np.zeros((1, 5)), np.zeros(1), np.zeros(1), np.zeros(1, bool), [{}])
    assert buffer.action_masks[:].all()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_invalid_action_env_is_solved(seed):
    class Counting(InvalidActionEnvDiscrete):
        illegal = 0

        def step(self, action):
            Counting.illegal += action in self.invalid_actions
            return super().step(action)

    def make():
        return Counting(dim=20, n_invalid_actions=10)

    model = MuZero("MlpPolicy", make(), seed=seed)
    model.learn(4000, callback=MaskableEvalCallback(make(), n_eval_episodes=2, eval_freq=1000, warn=False))
    assert evaluate_policy(model, make(), 20, warn=False)[0] >= 90
    assert Counting.illegal == 0
