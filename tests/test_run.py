"""``learn()`` does what Stable-Baselines3's users know: its arguments, its logs, and what policy_kwargs can change."""

import csv
import math
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch as th
from conftest import UNIT_BOX, TinyEnv, differences, sequences_of, snapshot, tiny_envs, tiny_model
from gymnasium import spaces
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from sb3_muzero import MuZero
from sb3_muzero.models.base import DynamicsOutput, PredictionOutput
from sb3_muzero.models.mlp import Dynamics, Prediction, Representation
from sb3_muzero.search import planner

LOGGED = {
    "rollout/ep_rew_mean",
    "rollout/ep_len_mean",
    "time/fps",
    "time/environment_share",
    "time/search_share",
    "time/reanalysis_share",
    "time/learning_share",
    "time/episodes",
    "time/total_timesteps",
    "train/learning_rate",
    "train/n_updates",
    "train/skipped_updates",
    "train/loss",
    "train/policy_loss",
    "train/entropy_loss",
    "train/value_loss",
    "train/reward_loss",
    "train/consistency_loss",
    "train/value_error",
    "train/policy_age",
    "train/grad_norm",
    "train/value_target_clipped",
    "search/root_value",
    "search/policy_entropy",
    "search/depth",
    "search/simulations_per_second",
}


def tiny_env_model(**kwargs) -> tuple[MuZero, TinyEnv]:
    env = TinyEnv()
    return tiny_model(env, **kwargs), env


def learn_logged(model: MuZero, folder: Path, steps: int = 60) -> list[dict[str, str]]:
    """:return: The rows of a CSV logger, one per episode"""
    logger = configure(str(folder), ["csv"])
    model.set_logger(logger)
    model.learn(steps, log_interval=1)
    logger.close()
    with open(folder / "progress.csv") as file:
        return list(csv.DictReader(file))


# Steps and updates


@pytest.mark.parametrize("n_envs, total, taken", [(1, 30, 32), (3, 30, 36)])
def test_learn_returns_itself_and_takes_whole_rollouts(n_envs, total, taken):
    model = tiny_model(tiny_envs(n_envs))  # train_freq is 4 steps of all environments
    assert model.learn(total) is model
    assert model.num_timesteps == taken
    assert model.replay_buffer.size() * n_envs == taken


@pytest.mark.parametrize(
    "train_freq, gradient_steps, n_envs, updates",
    [
        (4, 1, 1, 10),  # rollouts end at 4, 8, ... 60; they train when more than 20 steps are done
        (4, 3, 1, 30),
        (4, -1, 1, 40),
        (4, 0, 1, 0),
        ((3, "step"), 1, 1, 14),
        ((2, "step"), -1, 3, 42),  # 6 transitions a rollout, from step 24 to 60
        ((1, "episode"), 1, 1, 4),  # episodes of 10 steps: 30, 40, 50, 60
        ((2, "episode"), -1, 1, 40),
    ],
)
def test_train_freq_and_gradient_steps(train_freq, gradient_steps, n_envs, updates):
    model = tiny_model(tiny_envs(n_envs), train_freq=train_freq, gradient_steps=gradient_steps)
    before = snapshot(model)
    model.learn(60)
    assert model.num_timesteps == 60
    assert model._n_updates == updates
    assert bool(differences(before, snapshot(model))) == (updates > 0)


@pytest.mark.parametrize("train_freq", [(1, "day"), ("step", 1)])
def test_wrong_train_freq_is_refused_at_construction(train_freq):
    with pytest.raises(ValueError):
        tiny_model(train_freq=train_freq)


def test_no_search_and_no_training_before_learning_starts(monkeypatch):
    model, env = tiny_env_model(learning_starts=20, train_freq=1)
    planned_at, plan = [], model.policy.plan
    monkeypatch.setattr(model.policy, "plan", lambda *a, **k: (planned_at.append(env.steps), plan(*a, **k))[1])
    trained_at, train = [], model.train
    monkeypatch.setattr(model, "train", lambda **kwargs: (trained_at.append(env.steps), train(**kwargs)))
    model.learn(25)
    assert planned_at == [20, 21, 22, 23, 24]
    assert trained_at == [21, 22, 23, 24, 25]
    assert len({int(action) for episode in env.taken[:2] for action in episode}) == 3, "the warm-up tries every action"


def test_train_on_nothing_and_zero_steps_of_it_change_nothing():
    model = tiny_model()
    model.learn(8)  # before learning starts, which sets up the logger
    before = snapshot(model)
    model.train(gradient_steps=0, batch_size=8)
    model.replay_buffer.reset()
    model.train(gradient_steps=1, batch_size=8)
    assert differences(before, snapshot(model)) == []


def test_train_can_be_called_by_hand():
    model = tiny_model().learn(12)
    before = snapshot(model)
    model.train(gradient_steps=2, batch_size=4)
    assert model._n_updates == 2
    assert differences(before, snapshot(model))


def test_target_network_follows_every_target_update_interval():
    model = tiny_model(target_update_interval=4, train_freq=1, gradient_steps=1)
    model.learn(27)  # 7 updates, the last copy after the 4th
    policy = model.policy
    assert differences(policy.latent_model.state_dict(), policy.latent_model_target.state_dict())
    model.train(gradient_steps=1, batch_size=8)
    assert differences(policy.latent_model.state_dict(), policy.latent_model_target.state_dict()) == []


# Learning again


def test_learning_on_continues_episode_and_count():
    model, env = tiny_env_model(train_freq=1)
    model.learn(25)
    assert (model.num_timesteps, env.resets) == (25, 3)
    model.learn(4, reset_num_timesteps=False)
    assert (model.num_timesteps, env.resets) == (29, 3)
    model.learn(1, reset_num_timesteps=False)
    assert (model.num_timesteps, env.resets, model._episode_num) == (30, 4, 3)
    # One uninterrupted episode in the buffer, and no cut where learn() returned
    third = sequences_of(model.replay_buffer, np.array([20]), np.array([0]), 9, 1)
    assert third.lengths.tolist() == [10] and third.terminated.all()
    np.testing.assert_array_equal(third.observations[:, 0], np.stack(env.shown[2][:10]))


def test_learning_anew_resets_environment_and_count():
    model, env = tiny_env_model(train_freq=1)
    model.learn(25)
    updates = model._n_updates
    model.learn(22)
    assert (model.num_timesteps, env.resets, model._episode_num) == (22, 6, 2)
    assert model._n_updates == updates + 2  # the warm-up starts anew, what was learned stays
    # The episode that the reset broke off is neither terminal nor continued by the next one
    broken = sequences_of(model.replay_buffer, np.array([20]), np.array([0]), 9, 1)
    assert broken.lengths.tolist() == [5] and not broken.terminated.any()
    np.testing.assert_array_equal(broken.observations[5, 0], env.shown[2][5])
    # Search policies are there for decisions of a search, and for no others
    policies = sequences_of(model.replay_buffer, np.arange(47), np.zeros(47, int), 1, 1).policies[0]
    assert np.flatnonzero(policies.sum(-1).numpy()).tolist() == [20, 21, 22, 23, 24, 45, 46]


# Schedules and logs


@pytest.mark.parametrize("schedule", [lambda progress: 1e-3 * progress, FloatSchedule(LinearSchedule(1e-3, 0.0, 1.0))])
def test_learning_rate_schedule_is_followed_and_logged(tmp_path, schedule):
    model, _ = tiny_env_model(learning_rate=schedule, train_freq=1)
    rows = learn_logged(model, tmp_path)
    rates = [float(row["train/learning_rate"]) for row in rows if row["train/learning_rate"]]
    np.testing.assert_allclose(rates, [1e-3 * (1 - done / 60) for done in (29, 39, 49, 59)], rtol=1e-6)
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("search", ["gumbel", "puct"])
def test_everything_is_logged_with_sensible_values(tmp_path, search):
    model, _ = tiny_env_model(search=search, ent_coef=0.25, vf_coef=0.5, reward_coef=2.0, consistency_coef=3.0)
    rows = learn_logged(model, tmp_path)
    assert len(rows) == 6
    assert set(rows[-1]) >= LOGGED
    row = {key: float(value) for key, value in rows[-1].items()}
    assert all(math.isfinite(value) for value in row.values())
    assert row["time/total_timesteps"] == 60 and row["time/episodes"] == 6
    assert row["rollout/ep_len_mean"] == 10 and 0 <= row["rollout/ep_rew_mean"] <= 10
    assert row["train/n_updates"] == 9  # the log is written before the training at step 60
    assert row["train/learning_rate"] == model.learning_rate
    assert 0 <= row["search/policy_entropy"] <= math.log(3) + 1e-6
    assert 1 <= row["search/depth"] <= model.num_simulations
    assert row["search/simulations_per_second"] > 0
    assert 0 <= row["train/value_target_clipped"] <= 1
    assert -2 * math.log(3) <= row["train/entropy_loss"] < 0  # of position 0, and of the unrolled ones together
    assert row["train/grad_norm"] > 0 and row["train/reward_loss"] > 0 and row["train/consistency_loss"] > 0
    weighed = row["train/policy_loss"] + 0.25 * row["train/entropy_loss"] + 0.5 * row["train/value_loss"]
    weighed += 2.0 * row["train/reward_loss"] + 3.0 * row["train/consistency_loss"]
    assert row["train/loss"] == pytest.approx(weighed, rel=1e-4)


def test_clipped_value_targets_are_logged(tmp_path):
    # Returns are at least 0, and so little is left of a bootstrap value of -2 that no target reaches the support
    model, _ = tiny_env_model(gamma=0.1, policy_kwargs={"value_support": (-2.0, -1.0)})
    assert float(learn_logged(model, tmp_path)[-1]["train/value_target_clipped"]) == 1.0


@pytest.mark.parametrize("log_interval, dumps", [(1, 6), (2, 3), (4, 1), (None, 0)])
def test_log_interval_counts_episodes(monkeypatch, log_interval, dumps):
    model, _ = tiny_env_model()
    dumped = []
    monkeypatch.setattr(model, "dump_logs", lambda: dumped.append(model.num_timesteps))
    model.learn(60, log_interval=log_interval)
    assert len(dumped) == dumps


class Endless(TinyEnv):
    """No episode ends."""

    def __init__(self) -> None:
        super().__init__(length=10**9)


@pytest.mark.parametrize(
    "log_interval, train_freq, n_envs, logs",
    [
        ((16, "step"), 4, 1, [16, 32, 48, 64]),
        ((16, "step"), (1, "episode"), 1, [16, 32, 48, 64]),  # one rollout
        ((7, "step"), 1, 1, [7, 14, 21, 28, 35, 42, 49, 56, 63]),
        ((20, "step"), 4, 3, [21, 42, 63]),
        ((1, "episode"), 4, 1, []),
        (4, 4, 1, []),
        (None, 4, 1, []),
    ],
    ids=str,
)
def test_log_interval_in_steps_needs_no_end_of_an_episode(monkeypatch, log_interval, train_freq, n_envs, logs):
    model = tiny_model(DummyVecEnv([Endless] * n_envs), train_freq=train_freq)
    found = []
    monkeypatch.setattr(Logger, "dump", lambda self, step: found.append(step))
    model.learn(64, log_interval=log_interval, callback=lambda *_: model.num_timesteps < 64)
    assert found == logs


def test_log_interval_in_steps_counts_no_episodes(monkeypatch):
    model, _ = tiny_env_model()
    found = []
    monkeypatch.setattr(Logger, "dump", lambda self, step: found.append(step))
    model.learn(60, log_interval=(24, "step"))
    model.learn(12, log_interval=(24, "step"), reset_num_timesteps=False)
    model.learn(40, log_interval=(2, "episode"))
    assert found == [24, 48, 72, 20, 40]


@pytest.mark.parametrize("log_interval, logs", [(4, [2000, 4000]), ((100, "episode"), [2000, 4000]), (None, [])], ids=str)
def test_an_endless_episode_is_logged_every_2000_steps(tmp_path, log_interval, logs):
    model = tiny_model(Endless(), num_simulations=1, gradient_steps=0, learning_starts=10_000)
    model.set_logger(logger := configure(str(tmp_path), ["csv"]))
    for _ in range(3):
        model.learn(1_400, log_interval=log_interval, reset_num_timesteps=False)
    logger.close()
    rows = list(csv.DictReader(open(tmp_path / "progress.csv"))) if logs else []
    assert [int(row["time/total_timesteps"]) for row in rows] == logs


def test_episodes_of_2000_steps_are_logged_once(monkeypatch):
    """Where the end of an episode is logged anyway, there is no second row."""
    model = tiny_model(TinyEnv(length=1_000), num_simulations=1, gradient_steps=0, learning_starts=10_000, train_freq=50)
    found = []
    monkeypatch.setattr(Logger, "dump", lambda self, step: found.append(step))
    model.learn(4_000, log_interval=2)
    assert found == [2_000, 4_000]


def test_tensorboard(tmp_path):
    model, _ = tiny_env_model(tensorboard_log=str(tmp_path))
    model.learn(40, log_interval=1)
    model.learn(40, log_interval=1, reset_num_timesteps=False)
    model.learn(24)
    model.learn(24, tb_log_name="named")
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["MuZero_1", "MuZero_2", "named_1"]
    events = EventAccumulator(str(tmp_path / "MuZero_1")).Reload()
    not_for_tensorboard = {"time/episodes", "time/total_timesteps", "train/n_updates"}
    assert set(events.Tags()["scalars"]) == LOGGED - not_for_tensorboard
    assert [event.step for event in events.Scalars("rollout/ep_len_mean")] == [10, 20, 30, 40, 50, 60, 70, 80]


def test_verbose_0_prints_nothing(capfd):
    tiny_env_model()[0].learn(40, log_interval=1)  # compiles and loads what there is to compile and load
    capfd.readouterr()
    model, _ = tiny_env_model()
    model.learn(40, log_interval=1)
    model.predict(np.zeros(3, np.float32))
    assert capfd.readouterr() == ("", "")


def test_verbose_1_prints_the_table(capsys):
    tiny_env_model(verbose=1)[0].learn(40, log_interval=4)
    printed = capsys.readouterr().out
    assert "Using cpu device" in printed
    assert all(word in printed for word in ("ep_rew_mean", "fps", "root_value", "consistency_loss"))


def test_episode_statistics_window():
    model, _ = tiny_env_model(stats_window_size=2)
    model.learn(60)
    assert len(model.ep_info_buffer) == 2


def test_success_rate_is_logged(tmp_path):
    class Succeeding(TinyEnv):
        def step(self, action):
            *result, info = super().step(action)
            return *result, {**info, "is_success": True}

    rows = learn_logged(tiny_model(Monitor(Succeeding())), tmp_path, 24)
    assert float(rows[-1]["rollout/success_rate"]) == 1.0


# policy_kwargs


class Doubling(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Space, factor: int = 2) -> None:
        super().__init__(observation_space, factor * observation_space.shape[0])
        self.factor = factor

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return th.cat([observations] * self.factor, dim=-1)


class LeapingDynamics(Dynamics):
    def forward(self, latent: th.Tensor, action: th.Tensor) -> DynamicsOutput:
        output = super().forward(latent, action)
        return output._replace(latent=output.latent + latent)


class OwnRepresentation(nn.Module):
    def __init__(self, features_dim, latent_dim, net_arch, activation_fn, latent_norm) -> None:
        super().__init__()
        self.layer = nn.Linear(features_dim, latent_dim)

    def forward(self, features: th.Tensor) -> th.Tensor:
        return self.layer(features).tanh()


class OwnPrediction(nn.Module):
    """Has no layer that a support could fit, and so needs a fixed one."""

    def __init__(self, latent_dim, num_actions, num_bins, net_arch, activation_fn) -> None:
        super().__init__()
        self.widths = [num_actions, num_bins]
        self.layer = nn.Linear(latent_dim, sum(self.widths))

    def forward(self, latent: th.Tensor) -> PredictionOutput:
        return PredictionOutput(*self.layer(latent).split(self.widths, dim=-1))


FIXED = {"value_support": (-5.0, 15.0), "reward_support": (-1.0, 2.0)}


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {"net_arch": []},
        {"net_arch": [32, 16]},
        {"activation_fn": nn.Tanh},
        {"features_extractor_class": Doubling},
        {"features_extractor_class": Doubling, "features_extractor_kwargs": {"factor": 3}},
        {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": None},
        {"optimizer_class": th.optim.AdamW, "optimizer_kwargs": None},
        {"optimizer_class": th.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.0}},
        {"optimizer_class": th.optim.SGD, "optimizer_kwargs": None},
        {"latent_dim": 16},
        {"latent_norm": "simnorm"},
        {"latent_norm": "minmax", "latent_dim": 10},
        {"latent_norm": "none", "latent_dim": 7},
        {"num_bins": 5},
        {"normalize_images": False},
        FIXED,
        {"representation_class": OwnRepresentation},
        {"dynamics_class": LeapingDynamics},
        {"prediction_class": OwnPrediction, **FIXED},
        {
            "representation_class": OwnRepresentation,
            "dynamics_class": LeapingDynamics,
            "prediction_class": OwnPrediction,
            "latent_norm": "none",
            "latent_dim": 12,
            **FIXED,
        },
    ],
    ids=lambda kwargs: "-".join(f"{k}={getattr(v, '__name__', v)}" for k, v in kwargs.items())[:60],
)
@pytest.mark.parametrize("search", ["gumbel", "puct"])
def test_policy_kwargs(policy_kwargs, search, tmp_path):
    given = dict(policy_kwargs)
    model, env = tiny_env_model(policy_kwargs=policy_kwargs, search=search)
    assert policy_kwargs == given, "the user's dictionary is not ours to change"
    before = snapshot(model)
    model.learn(32)
    assert differences(before, snapshot(model))
    observations = np.stack(env.shown[0])
    actions, _ = model.predict(observations, deterministic=True)
    assert all(env.action_space.contains(action) for action in actions)
    model.save(tmp_path / "model")
    loaded = MuZero.load(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(loaded.predict(observations, deterministic=True)[0], actions)
    assert differences(snapshot(model), snapshot(loaded)) == []


def test_policy_kwargs_reach_the_networks():
    kwargs = {
        "net_arch": [24, 40],
        "activation_fn": nn.Tanh,
        "latent_dim": 16,
        "latent_norm": "minmax",
        "num_bins": 7,
        **FIXED,
    }
    policy = tiny_model(policy_kwargs=kwargs).policy
    for model in (policy.latent_model, policy.latent_model_target):
        assert isinstance(model.representation, Representation) and isinstance(model.prediction, Prediction)
        for network in (model.representation, model.dynamics, model.prediction):
            assert [m.out_features for m in network.modules() if isinstance(m, nn.Linear)][:2] == [24, 40]
            assert sum(isinstance(m, nn.Tanh) for m in network.modules()) == 2
            assert not any(isinstance(m, nn.ReLU) for m in network.modules())
        assert model.prediction.value_head.out_features == 7
        assert model.value_support.bounds.tolist() == [-5.0, 15.0] and model.reward_support.bounds.tolist() == [-1.0, 2.0]
    latents = policy.represent(th.randn(6, 4))
    assert latents.shape == (6, 16) and latents.min() == 0 and latents.max() == 1  # min-max


def test_optimizer_class_and_kwargs_reach_the_optimizer():
    model = tiny_model(
        policy_kwargs={"optimizer_class": th.optim.SGD, "optimizer_kwargs": {"momentum": 0.5}}, learning_rate=0.02
    )
    assert type(model.policy.optimizer) is th.optim.SGD
    group = model.policy.optimizer.param_groups[0]
    assert (group["momentum"], group["lr"]) == (0.5, 0.02)
    trained = {id(parameter) for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in model.policy.latent_model.parameters()}, "the target is not trained"


def test_fixed_supports_stay_and_others_fit_the_task():
    fixed = tiny_model(TinyEnv(), policy_kwargs=FIXED).learn(40).policy.latent_model
    assert fixed.value_support.bounds.tolist() == [-5.0, 15.0] and fixed.reward_support.bounds.tolist() == [-1.0, 2.0]
    fitted = tiny_model(TinyEnv()).learn(40).policy.latent_model
    assert fitted.reward_support.bounds.tolist() == [0.0, 1.0]
    low, high = fitted.value_support.bounds.tolist()
    assert low == 0.0 and 1.0 < high < 100.0


def test_normalize_images_divides_by_255_where_asked():
    images = spaces.Box(0, 255, (3, 8, 8), np.uint8)
    pixels = th.full((1, 3, 8, 8), 255, dtype=th.uint8)
    for normalize, largest in ((True, 1.0), (False, 255.0)):
        policy = tiny_model(TinyEnv(images), policy_kwargs={"normalize_images": normalize}).policy
        seen = []
        policy.latent_model.features_extractor.register_forward_hook(lambda m, inputs, o, seen=seen: seen.append(inputs[0]))
        policy.represent(pixels)
        assert seen[0].max() == largest


def test_search_settings_reach_the_search(monkeypatch):
    model, _ = tiny_env_model(num_simulations=7, search_kwargs={"max_num_considered_actions": 2}, gamma=0.5)
    visits = model.policy.plan(th.zeros(1, 3), deterministic=True).tree.node_visits[0]
    assert visits[0] == 8  # the root's own evaluation and 7 simulations
    assert model.policy.planner.settings.discount == 0.5
    considered = model.policy.plan(th.zeros(1, 3), deterministic=True).tree.children_visits[0, 0]
    assert (considered > 0).sum() == 2


def test_observation_space_of_the_environment_is_kept():
    model, _ = tiny_env_model()
    assert model.observation_space == UNIT_BOX and model.action_space == spaces.Discrete(3)


def test_exploration_scales_the_noise_of_acting():
    model = tiny_model(tiny_envs())
    obs = th.zeros(64, 3)
    assert len(set(model.policy.plan(obs).action.tolist())) == 3
    calm, still = model.policy.plan(obs, exploration=0.0), model.policy.plan(obs, deterministic=True)
    np.testing.assert_array_equal(calm.action, still.action)
    scales = []
    plan = model.policy.plan
    model.policy.plan = lambda obs, **kwargs: scales.append(kwargs["exploration"]) or plan(obs, **kwargs)  # type: ignore
    model.exploration = FloatSchedule(LinearSchedule(2.0, 1.0, 1.0))
    model.learn(60)
    np.testing.assert_allclose(scales, 2 - np.arange(20, 60) / 60, rtol=0.02)


@pytest.mark.parametrize(("search", "noise"), [("gumbel", "gumbel_scale"), ("puct", "dirichlet_fraction")])
def test_exploration_reaches_the_search(monkeypatch, search, noise):
    given = []
    model = tiny_model(tiny_envs(), search=search, search_kwargs={noise: 0.5})
    found = planner.SEARCHES[search]
    monkeypatch.setitem(
        planner.SEARCHES, search, lambda *args, **kwargs: given.append(kwargs[noise]) or found(*args, **kwargs)
    )
    for exploration in (0.0, 0.5, 5.0):
        model.policy.plan(th.zeros(1, 3), exploration=exploration)
    assert given == [0.0, 0.25, 2.5 if search == "gumbel" else 1.0], "a share of noise is at most 1"


def test_what_was_assigned_after_construction_is_used():
    model = tiny_model(tiny_envs())
    model.exploration, model.novelty_coef = 0.5, 0.1
    model.learn(60)
    assert model.exploration(1.0) == 0.5 and model.novelty_coef(1.0) == 0.1


def test_train_passes_on_what_it_was_told(monkeypatch):
    model = tiny_model(
        tiny_envs(), n_steps=7, n_steps_half_life=50.0, tau=0.3, target_update_interval=2, novelty_coef=0.2,
        replay_buffer_kwargs={"priority_exponent": 0.6},
    ).learn(40)  # fmt: skip
    buffer, calls = model.replay_buffer, []
    for owner, name in ((buffer, "sample"), (buffer, "update_priorities"), (model.policy, "update_target")):
        method = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *a, name=name, method=method, **k: calls.append((name, a, k)) or method(*a, **k)
        )
    model._current_progress_remaining = 0.25
    model._n_updates = 0
    model.train(gradient_steps=2, batch_size=8)
    assert [name for name, *_ in calls] == ["sample", "update_priorities", "sample", "update_target", "update_priorities"]
    settings = calls[0][2]
    assert (settings["n_steps"], settings["n_steps_half_life"], settings["progress_remaining"]) == (7, 50.0, 0.25)
    assert settings["bonus_coef"] == 0.2 and calls[3][1] == (0.3,)
    errors = calls[1][1][1]
    assert errors.shape == (8,) and (errors >= 0).all() and errors.std() > 0


def test_tau_moves_the_target_network_softly():
    policy = tiny_model().policy
    before = deepcopy(policy.latent_model_target.state_dict())
    with th.no_grad():
        for tensor in policy.latent_model.state_dict().values():
            tensor.add_(1.0)
    policy.update_target(0.25)
    parameters = dict(policy.latent_model_target.named_parameters())
    for name, tensor in policy.latent_model_target.state_dict().items():
        th.testing.assert_close(tensor, before[name] + (0.25 if name in parameters else 1.0))
