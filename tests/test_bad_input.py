"""What can't be used is refused by name, before anything is trained or overwritten; what was learned is kept."""

import re

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import TinyEnv, cartpole_observations, differences, snapshot, tiny_envs, tiny_model
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_muzero import MuZero
from sb3_muzero.common.pytree import tree_map
from sb3_muzero.common.validation import ARGUMENT_RANGES
from sb3_muzero.learning import learner
from sb3_muzero.learning.losses import LossOutput
from sb3_muzero.models.mlp import Dynamics, Prediction, Representation
from sb3_muzero.search.planner import PlannerSettings


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n_steps": 0}, "`n_steps`.*at least 1.*0"),
        ({"n_steps": -3}, "`n_steps`.*at least 1.*-3"),
        ({"unroll_steps": 0}, "`unroll_steps`.*at least 1.*0"),
        ({"num_simulations": 0}, "`num_simulations`.*at least 1.*0"),
        ({"num_simulations": -1}, "`num_simulations`.*at least 1.*-1"),
        ({"batch_size": 0}, "`batch_size`.*at least 1.*0"),
        ({"target_update_interval": 0}, "`target_update_interval`.*at least 1.*0"),
        ({"gamma": 1.5}, "`gamma`.*1.5"),
        ({"gamma": -0.1}, "`gamma`.*-0.1"),
        ({"gamma": float("nan")}, "`gamma`.*nan"),
        ({"search": "alpha"}, "`search`.*gumbel.*puct.*alpha"),
        ({"search": None}, "`search`.*gumbel.*puct.*None"),
        ({"search_kwargs": {"pb_c_init": 1.0}}, "`search_kwargs`.*gumbel.*pb_c_init.*gumbel_scale"),
        ({"search": "puct", "search_kwargs": {"gumbel_scale": 1.0}}, "`search_kwargs`.*puct.*gumbel_scale.*pb_c_init"),
        ({"search_kwargs": {"nonsense": 1}}, "`search_kwargs`.*nonsense"),
        ({"search_kwargs": {"num_simulations": 3}}, "`search_kwargs`.*num_simulations"),
        ({"search_kwargs": {"action_masks": None}}, "`search_kwargs`.*action_masks"),
        ({"n_steps_half_life": 0}, "`n_steps_half_life` must be above 0, got 0"),
        ({"tau": 1.1}, "`tau` must be between 0 and 1, got 1.1"),
        ({"ent_coef": -0.1}, "`ent_coef` must be at least 0 and finite, got -0.1"),
        ({"exploration": -1.0}, "`exploration` must be at least 0 and finite, got -1.0"),
        pytest.param(
            {"exploration": lambda progress: progress - 0.5},
            "`exploration` must be at least 0 and finite, got -0.01.* 49% remain",
            id="exploration below 0 later on",
        ),
        ({"novelty_coef": "lin_5.0"}, "`novelty_coef` must be a float or a function.*'lin_5.0'"),
        ({"search_kwargs": "dict(max_depth=1)"}, "`search_kwargs` must be a dictionary, got 'dict"),
        ({"novelty_coef": float("nan")}, "`novelty_coef` must be at least 0 and finite, got nan"),
        ({"buffer_size": 3}, "`buffer_size`.*at least 4.*3"),
        ({"buffer_size": 20, "unroll_steps": 30}, "`buffer_size`.*at least 31.*20"),
        ({"replay_buffer_class": ReplayBuffer}, "`replay_buffer_class`.*SequenceReplayBuffer.*ReplayBuffer"),
        ({"policy_kwargs": {"latent_norm": "batch"}}, "`latent_norm`.*simnorm.*batch"),
        ({"policy_kwargs": {"latent_dim": 12}}, "`latent_dim`.*multiple of 8.*12"),
        ({"policy_kwargs": {"latent_dim": 0, "latent_norm": "none"}}, "`latent_dim`.*0"),
        ({"policy_kwargs": {"num_bins": 1}}, "`num_bins`.*at least 2.*1"),
        ({"policy_kwargs": {"num_bins": 51.0}}, "`num_bins` must be an integer of at least 2, got 51.0"),
        ({"policy_kwargs": {"latent_dim": True, "latent_norm": "none"}}, "`latent_dim` must be an integer .* got True"),
        ({"policy_kwargs": {"net_arch": [True]}}, "`net_arch` must be an integer of at least 1, got True"),
        ({"policy_kwargs": {"net_arch": [64, -3]}}, "`net_arch` must be an integer of at least 1, got -3"),
        ({"policy_kwargs": {"value_support": (False, True)}}, "support.*False, True"),
        ({"replay_buffer_kwargs": {"frame_stack": True}}, "`frame_stack` must be an integer, got True"),
        ({"replay_buffer_kwargs": {"recent_fraction": True}}, "`recent_fraction`.*at most 1, got True"),
        ({"replay_buffer_kwargs": {"priority_exponent": True}}, "`priority_exponent`.*got True"),
        ({"replay_buffer_kwargs": {"importance_exponent": "x"}}, "`importance_exponent`.*got 'x'"),
        ({"seed": True}, "`seed` must be an integer of at least 0, got True"),
        ({"stats_window_size": True}, "`stats_window_size` must be an integer of at least 1, got True"),
        ({"policy_kwargs": {"value_support": (1.0, 1.0)}}, "support.*1.0"),
        ({"policy_kwargs": {"reward_support": (0.0, float("inf"))}}, "support.*inf"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(**arguments)


@pytest.mark.filterwarnings("ignore")  # of prototypes
@pytest.mark.parametrize("network", [Representation, Dynamics, Prediction])
@pytest.mark.parametrize(
    "kind, convert",
    [
        ("sparse_coo", lambda part: part.to_sparse()),
        ("meta", lambda part: part.to("meta")),
        ("nested", lambda part: th.nested.as_nested_tensor(list(part))),
    ],
)
def test_networks_of_a_user_must_return_dense_tensors(network, kind, convert):
    class Custom(network):
        def forward(self, *inputs):
            return tree_map(convert, super().forward(*inputs))

    name = network.__name__.lower()
    model = tiny_model(policy_kwargs={f"{name}_class": Custom})
    with pytest.raises(ValueError, match=rf"The {name} function's output.* must be a dense tensor, got a .*{kind} one"):
        model.predict(np.zeros((2, 4), np.float32))


def test_true_is_not_one():
    model = tiny_model(num_simulations=1)
    model.num_simulations = True
    with pytest.raises(ValueError, match="`num_simulations` must be an integer of at least 1, got True"):
        model.predict(np.zeros(4, np.float32))


NO_NUMBERS = [None, "text", [1], {"a": 1}, float("nan"), -7, True]
NUMBERS = [name for _, _, names in ARGUMENT_RANGES for name in names]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=str)
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_are_none_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be .*got {re.escape(repr(value))}"):
        tiny_model(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *((name, value, "must be") for name in ("learning_rate", "exploration", "novelty_coef") for value in NO_NUMBERS[:6]),
        *(("train_freq", value, "must be") for value in [*NO_NUMBERS, 0, 2.5, (0, "step"), (3, "month"), (1, 2, 3)]),
        *((name, value, "must be a dictionary") for name in ("search_kwargs", "policy_kwargs") for value in ("text", [1], 3)),
        ("replay_buffer_kwargs", "text", "must be a dictionary"),
        ("replay_buffer_class", "SequenceReplayBuffer", "must be a SequenceReplayBuffer"),
        ("batch_size", 2.5, "must be an integer"),
        ("search_kwargs", {"qvalue_scope": "forest"}, "qvalue_scope"),
        ("search_kwargs", {"gumbel_scale": -1.0}, "gumbel_scale"),
        ("replay_buffer_kwargs", {"recent_fraction": 0.0}, "recent_fraction"),
        ("replay_buffer_kwargs", {"priority_exponent": -1.0}, "priority_exponent"),
        ("replay_buffer_kwargs", {"importance_exponent": 2.0}, "importance_exponent"),
    ],
    ids=str,
)
def test_other_arguments_are_refused_by_name(name, value, message):
    with pytest.raises(ValueError, match=f"`{name}` {message}" if message.startswith("must be") else message):
        tiny_model(**{name: value})


def test_buffer_must_hold_a_sequence_of_each_environment():
    with pytest.raises(ValueError, match=r"`buffer_size`.*8 environments.*at least 32.*31"):
        tiny_model(tiny_envs(8), buffer_size=31)
    tiny_model(tiny_envs(8), buffer_size=32, learning_starts=8).learn(100)
    tiny_model(tiny_envs(1), buffer_size=4, learning_starts=1).learn(40)


@pytest.mark.parametrize("name, value", [("n_steps", 0), ("unroll_steps", 0), ("buffer_size", 1), ("batch_size", 0)])
def test_arguments_changed_by_load_are_refused_before_training(tmp_path, name, value):
    model = tiny_model().learn(24)
    model.save(tmp_path / "model")
    loaded = MuZero.load(tmp_path / "model", env=model.get_env(), device="cpu", **{name: value})
    with pytest.raises(ValueError, match=f"`{name}`"):
        loaded.learn(10)
    assert differences(snapshot(model), snapshot(loaded)) == []


@pytest.mark.parametrize(
    "arguments", [{"search": "alpha"}, {"num_simulations": 0}, {"search_kwargs": {"nonsense": 1}}], ids=str
)
def test_search_settings_changed_by_load_are_refused(tmp_path, arguments):
    tiny_model().save(tmp_path / "model")
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}`"):
        MuZero.load(tmp_path / "model", device="cpu", **arguments)


def test_unknown_policies_are_refused():
    with pytest.raises(ValueError, match="Policy NoPolicy unknown"):
        MuZero("NoPolicy", "CartPole-v1")
    from stable_baselines3.dqn import MlpPolicy

    with pytest.raises(ValueError, match=r"MuZeroPolicy.*DQNPolicy"):
        MuZero(MlpPolicy, "CartPole-v1")


class Faulty(TinyEnv):
    """Shows one bad number, once."""

    def __init__(self, what: str | None = None, value: float = np.nan, at: int = 0, dtype: type = np.float32) -> None:
        super().__init__(spaces.Box(-1, 1, (3,), dtype))
        self.what, self.value, self.at = what, value, at

    def _is_due(self, what: str) -> bool:
        if self.what == what and self.steps >= self.at:
            self.what = None
            return True
        return False

    def reset(self, **kwargs):
        obs, info = super().reset(**kwargs)
        if self._is_due("first observation"):
            obs[1] = self.value
        return obs, info

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        if terminated and self._is_due("final observation"):
            obs[1] = self.value
        elif not terminated and self._is_due("observation"):
            obs[1] = self.value
        if self._is_due("reward"):
            reward = self.value
        return obs, reward, terminated, truncated, info


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "what, at, step, word",
    [
        ("observation", 13, 39, "observation"),
        ("observation", 33, 99, "observation"),  # of a search
        ("final observation", 15, 60, "observation"),
        ("first observation", 15, 60, "observation"),
        ("reward", 13, 39, "reward"),
        ("reward", 30, 90, "reward"),  # of an episode's last step
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_not_finite_names_environment_and_step(what, at, step, word, value, dtype, tmp_path):
    faulty = Faulty(what, value, at, dtype)
    model = tiny_model(DummyVecEnv([lambda: Faulty(dtype=dtype), lambda: Faulty(dtype=dtype), lambda: faulty]))
    snapshots = []

    def callback(locals_, globals_):
        snapshots.append(snapshot(model))
        return True

    with pytest.raises(ValueError, match=rf"(?s)[Ee]nvironment 2\b.*{word}.*step {step}\b"):
        model.learn(300, callback=callback)
    # Nothing of it was learned or stored, and the model is as good as before
    assert differences(snapshots[-1], snapshot(model)) == []
    size = model.replay_buffer.size()
    assert size == step // 3 - 1
    sequences = model.replay_buffer.sequences(np.arange(size), np.full(size, 2), 1, 1)
    assert np.isfinite(sequences.observations.numpy()).all() and np.isfinite(sequences.rewards.numpy()).all()
    model.predict(np.zeros(3, np.float32))
    model.save(tmp_path / "model")
    MuZero.load(tmp_path / "model", device="cpu")
    updates = model._n_updates
    model.learn(60)  # the environment is well again
    assert model._n_updates > updates and model.num_timesteps == 60


def test_first_observation_of_all_that_is_not_finite():
    model = tiny_model(DummyVecEnv([Faulty, lambda: Faulty("first observation")]))
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"[Ee]nvironment 1\b.*observation.*step 0\b"):
        model.learn(40)
    assert differences(before, snapshot(model)) == []
    assert model.learn(40).num_timesteps == 40


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(
    "what, value",
    [
        ("observation", np.nan),
        ("observation", np.inf),
        ("observation", -np.inf),
        ("first observation", np.nan),
        ("first observation", np.inf),
        ("final observation", np.nan),  # VecNormalize clips an infinite one, and the raw one is lost
        ("reward", np.nan),
        ("reward", np.inf),
    ],
)
def test_normalisation_does_not_blame_another_environment(what, value):
    """Running statistics carry one environment's NaN to all of them."""
    faulty = Faulty(what, value, at=13)
    model = tiny_model(VecNormalize(DummyVecEnv([Faulty, Faulty, lambda: faulty])))
    with pytest.raises(ValueError, match=r"[Ee]nvironment 2\b"):
        model.learn(300)


def test_the_buffer_class_of_another_algorithm_is_refused_before_training():
    with pytest.raises(ValueError, match="`replay_buffer_class`"):
        MuZero("MlpPolicy", gym.make("CartPole-v1"), replay_buffer_class=ReplayBuffer)


def test_an_environment_is_needed_for_networks():
    with pytest.raises(ValueError, match=r"`env` must be an environment .*got None.*MuZero\.load"):
        MuZero("MlpPolicy", None)
    assert MuZero("MlpPolicy", None, _init_setup_model=False).env is None  # as load does


@pytest.mark.parametrize("masks", [None, np.ones((0, 2), bool)], ids=["all actions", "masks"])
def test_an_empty_batch_is_refused_by_name(masks):
    with pytest.raises(ValueError, match=r"`observation` must hold at least one observation.*\(0, 4\)"):
        tiny_model().predict(np.zeros((0, 4), np.float32), action_masks=masks)
    space = spaces.Dict(a=spaces.Box(-1, 1, (3,)), b=spaces.Discrete(4))
    model = tiny_model(TinyEnv(space), "MultiInputPolicy")
    with pytest.raises(ValueError, match="`observation` must hold"):
        model.predict({"a": np.zeros((0, 3), np.float32), "b": np.zeros(0, np.int64)})


NOT_INTERVALS = [0, -1, True, 2.5, "4", (0, "step"), (-4, "episode"), (4, "day"), ("step", 4), (1, "step", 2), [4, "step"]]


@pytest.mark.parametrize("log_interval", NOT_INTERVALS, ids=str)
def test_log_interval_is_refused_by_name_before_anything_runs(log_interval):
    env = TinyEnv()
    model = tiny_model(env)
    with pytest.raises(ValueError, match=rf"`log_interval` must be .* got {re.escape(repr(log_interval))}"):
        model.learn(40, log_interval=log_interval)
    assert env.resets == 0 and model.num_timesteps == 0


def test_refused_predictions_leave_the_model_usable():
    model = tiny_model().learn(24)
    observations = cartpole_observations()
    expected, _ = model.predict(observations, deterministic=True)
    for wrong in (observations[:, :3], np.full((2, 4), np.nan), "nonsense"):
        with pytest.raises(ValueError):
            model.predict(wrong)
    np.testing.assert_array_equal(model.predict(observations, deterministic=True)[0], expected)
    model.learn(8, reset_num_timesteps=False)


def test_updates_that_are_not_finite_are_left_out_and_said_so(monkeypatch):
    model = tiny_model().learn(24)
    before = {name: parameter.clone() for name, parameter in model.policy.latent_model.named_parameters()}
    real = learner.muzero_loss
    broken = iter([True, False, True])

    def loss(*args):
        output = real(*args)
        if next(broken, False):
            output.losses["reward"] = output.losses["reward"] * float("nan")
        return output

    monkeypatch.setattr(learner, "muzero_loss", loss)
    updates = model._n_updates
    with pytest.warns(UserWarning, match=r"Skipping update \d+ \(step 24\): non-finite reward loss"):
        model.train(1, 8)
    after = dict(model.policy.latent_model.named_parameters())
    assert all(th.equal(before[name], after[name]) for name in before) and model._n_updates == updates
    with pytest.warns(UserWarning, match="Skipping update"):
        model.train(3, 8)
    assert model._n_updates == updates + 2 and model.learner.skipped_updates == 2
    assert model.logger.name_to_value["train/skipped_updates"] == 2


@pytest.mark.parametrize("settings", [{}, {"n_steps": 1, "reanalyze_ratio": 1.0}], ids=["n-step", "searched again"])
def test_targets_that_are_not_finite_move_no_support(settings):
    """Values that a new search has found may be finite where rewards are not."""
    model = tiny_model(TinyEnv(), **settings).learn(60)
    bounds = model.policy.latent_model.reward_support.bounds.clone()
    model.replay_buffer.rewards[:] = np.inf
    with pytest.warns(UserWarning, match="non-finite value or reward target"):
        model.train(1, 8)
    assert th.equal(model.policy.latent_model.reward_support.bounds, bounds)


def test_training_ends_where_no_update_is_finite_any_more(monkeypatch):
    model = tiny_model().learn(24)

    def loss(*args):
        names = ("policy", "entropy", "value", "reward", "consistency")
        return LossOutput({name: th.zeros((), requires_grad=True) * th.inf for name in names}, th.zeros(8))

    monkeypatch.setattr(learner, "muzero_loss", loss)
    message = r"policy and entropy and .* in 10 updates in a row"
    with pytest.warns(UserWarning, match="Skipping update"), pytest.raises(FloatingPointError, match=message):
        model.train(20, 8)
    assert model.learner.skipped_updates == 10


def test_checking_search_settings_draws_no_random_numbers():
    """A run's seed decides it, however its settings are spelled."""
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    PlannerSettings("gumbel", 16, {"max_depth": 1}).check()
    np.testing.assert_array_equal(np.random.get_state()[1], before)
