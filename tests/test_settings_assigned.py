"""Settings assigned after construction: searches, targets and reanalysis follow them alike, or refuse them by name."""

import functools
from typing import Any

import numpy as np
import pytest
from conftest import TinyEnv, tiny_envs, tiny_model
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.vec_env import DummyVecEnv

import sb3_muzero.learning.learner as learner_module
from sb3_muzero.common.validation import ARGUMENT_RANGES
from sb3_muzero.search import planner as planner_module

SETTINGS: dict[str, dict[str, Any]] = {
    "gamma": {"gamma": 0.5},
    "num_simulations": {"num_simulations": 3},
    "search": {"search": "puct"},
    "search_kwargs": {"search_kwargs": {"max_num_considered_actions": 2}},
    "both": {"search": "puct", "search_kwargs": {"pb_c_init": 2.0}, "num_simulations": 2, "gamma": 0.1},
}
DEFAULTS: dict[str, Any] = {"gamma": 0.99, "num_simulations": 4, "search": "gumbel", "search_kwargs": {}}


@pytest.fixture
def searches(monkeypatch) -> list[dict[str, Any]]:
    """Settings of every search from now on, and whether it is one of reanalysis: without noise."""
    seen: list[dict[str, Any]] = []

    def watched(name, search):
        @functools.wraps(search)  # whose signature tells which settings there are
        def searching(root, recurrent_fn, num_simulations, **kwargs):
            noise = "gumbel_scale" if name == "gumbel" else "dirichlet_fraction"
            defaults = {"max_num_considered_actions": 16, "pb_c_init": 1.25}
            given = {key: kwargs[key] for key, default in defaults.items() if kwargs.get(key, default) != default}
            seen.append(
                {
                    "gamma": recurrent_fn.discount,
                    "num_simulations": num_simulations,
                    "search": name,
                    "search_kwargs": given,
                    "reanalyzes": kwargs[noise] == 0,
                }
            )
            return search(root, recurrent_fn, num_simulations, **kwargs)

        return searching

    for name, search in list(planner_module.SEARCHES.items()):
        monkeypatch.setitem(planner_module.SEARCHES, name, watched(name, search))
    return seen


@pytest.fixture
def discounts(monkeypatch) -> list[float]:
    """Discounts of all targets from now on."""
    seen, targets = [], learner_module.unroll_targets
    monkeypatch.setattr(learner_module, "unroll_targets", lambda *args: seen.append(args[2]) or targets(*args))
    return seen


def assign(model, settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        setattr(model, name, value)


def are_of(search: dict[str, Any], settings: dict[str, Any]) -> bool:
    return {name: search[name] for name in DEFAULTS} == DEFAULTS | settings


@pytest.mark.parametrize("name", SETTINGS)
def test_predicting_follows(name, searches):
    model = tiny_model(tiny_envs())
    model.predict(np.zeros(3, np.float32))
    assign(model, SETTINGS[name])
    model.predict(np.zeros(3, np.float32))
    assert are_of(searches[0], {}) and are_of(searches[1], SETTINGS[name])


@pytest.mark.parametrize("name", SETTINGS)
def test_acting_targets_and_reanalysis_follow(name, searches, discounts):
    model = tiny_model(tiny_envs(), reanalyze_ratio=0.5)
    assign(model, SETTINGS[name])
    model.learn(60)
    assert all(are_of(search, SETTINGS[name]) for search in searches)
    assert {search["reanalyzes"] for search in searches} == {True, False}
    assert set(discounts) == {SETTINGS[name].get("gamma", 0.99)}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_callback_changes_everything_from_the_next_step_on(name, searches, discounts):
    model = tiny_model(tiny_envs(), reanalyze_ratio=0.5)
    before: list[int] = []

    def change(local: dict[str, Any], _) -> bool:
        if local["self"].num_timesteps == 40:
            before.extend([len(searches), len(discounts)])
            assign(model, SETTINGS[name])
        return True

    model.learn(80, callback=ConvertCallback(change))
    num_searches, num_targets = before
    earlier, later = searches[:num_searches], searches[num_searches:]
    assert all(are_of(search, {}) for search in earlier) and all(are_of(search, SETTINGS[name]) for search in later)
    assert {search["reanalyzes"] for search in earlier} == {search["reanalyzes"] for search in later} == {True, False}
    gamma = SETTINGS[name].get("gamma", 0.99)
    assert set(discounts[:num_targets]) == {0.99} and set(discounts[num_targets:]) == {gamma}


def test_search_kwargs_that_are_changed_in_place_are_followed_and_checked(searches):
    model = tiny_model(tiny_envs(), search_kwargs={"max_num_considered_actions": 3})
    model.predict(np.zeros(3, np.float32))
    model.search_kwargs["max_num_considered_actions"] = 2
    model.predict(np.zeros(3, np.float32))
    assert [search["search_kwargs"]["max_num_considered_actions"] for search in searches] == [3, 2]
    model.search_kwargs["nonsense"] = 1
    with pytest.raises(ValueError, match=r"`search_kwargs`.*nonsense"):
        model.predict(np.zeros(3, np.float32))


class Opponents(TinyEnv):
    two_player = True

    def action_masks(self) -> np.ndarray:
        return np.ones(3, bool)


def test_the_discount_of_a_game_keeps_its_sign(searches, discounts):
    model = tiny_model(DummyVecEnv([Opponents]), reanalyze_ratio=0.5)
    model.gamma = 0.5
    model.learn(60)
    assert {search["gamma"] for search in searches} == set(discounts) == {-0.5}


@pytest.mark.parametrize("amid", [False, True], ids=["before learning", "in a callback"])
def test_losses_optimizer_and_target_network_follow(amid, monkeypatch):
    settings = {
        "ent_coef": 0.2, "vf_coef": 0.3, "reward_coef": 0.4, "consistency_coef": 0.5, "max_grad_norm": 0.6, "tau": 0.0,
        "target_update_interval": 1,
    }  # fmt: skip
    model = tiny_model(tiny_envs())
    losses, norms, taus = [], [], []
    weighted, clip, update = model.learner.weighted_losses, learner_module.nn.utils.clip_grad_norm_, model.policy.update_target
    monkeypatch.setattr(
        model.learner,
        "weighted_losses",
        lambda given: (
            losses.append({key: float(weighted(given)[key].detach() / given[key].detach()) for key in given})
            or weighted(given)
        ),
    )
    monkeypatch.setattr(learner_module.nn.utils, "clip_grad_norm_", lambda *a: norms.append(a[1]) or clip(*a))
    monkeypatch.setattr(model.policy, "update_target", lambda tau: taus.append(tau) or update(tau))

    def change(local: dict[str, Any], _) -> bool:
        if local["self"].num_timesteps == 40:
            assign(model, settings)
            for seen in (losses, norms, taus):
                seen.clear()
        return True

    if amid:
        model.learn(60, callback=ConvertCallback(change))
    else:
        assign(model, settings)
        model.learn(60)
    expected = {"policy": 1.0, "entropy": 0.2, "value": 0.3, "reward": 0.4, "consistency": 0.5}
    assert losses and all(given == pytest.approx(expected) for given in losses)
    assert set(norms) == {0.6} and set(taus) == {0.0} and len(taus) == len(norms)


@pytest.mark.parametrize("amid", [False, True], ids=["before learning", "in a callback"])
def test_exploration_and_what_is_sampled_follow(amid, monkeypatch):
    settings = {
        "exploration": 0.25, "novelty_coef": lambda _: 0.5, "n_steps": 7, "n_steps_half_life": 50.0, "unroll_steps": 2,
        "batch_size": 16, "exploration_steps_per_episode": 2,
    }  # fmt: skip
    model = tiny_model(tiny_envs())
    sampled, explorations = [], []
    sample, act = model.replay_buffer.sample, model.collector.act
    monkeypatch.setattr(model.replay_buffer, "sample", lambda n, **k: sampled.append({"n": n, **k}) or sample(n, **k))
    monkeypatch.setattr(model.collector, "act", lambda *a, **k: explorations.append(k["exploration"]) or act(*a, **k))

    def change(local: dict[str, Any], _) -> bool:
        if local["self"].num_timesteps == 40:
            assign(model, settings)
            sampled.clear()
            explorations.clear()
        return True

    if amid:
        model.learn(60, callback=ConvertCallback(change))
    else:
        assign(model, settings)
        model.learn(60)
    expected = {"n": 16, "unroll_steps": 2, "n_steps": 7, "n_steps_half_life": 50.0, "bonus_coef": 0.5}
    assert sampled and all({name: given[name] for name in expected} == expected for given in sampled)
    assert set(explorations) == {0.25} and model.collector.exploration_steps_per_episode == 2


WRONG: dict[str, Any] = {name: -7 for _, _, names in ARGUMENT_RANGES for name in names} | {
    "search": "alpha", "search_kwargs": {"nonsense": 1}, "exploration": -1.0, "novelty_coef": "much", "learning_rate": -1.0,
    "train_freq": 0,
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_refused_by_name_when_learning_begins(name):
    model = tiny_model(tiny_envs())
    setattr(model, name, WRONG[name])
    with pytest.raises(ValueError, match=f"`{name}`"):
        model.learn(20)


@pytest.mark.parametrize("name", sorted(WRONG.keys() - {"train_freq"}))
def test_a_wrong_setting_is_refused_by_name_amid_learning(name):
    model = tiny_model(tiny_envs())

    def change(local: dict[str, Any], _) -> bool:
        if local["self"].num_timesteps == 31:
            setattr(model, name, WRONG[name])
        return True

    with pytest.raises(ValueError, match=f"`{name}`"):
        model.learn(60, callback=ConvertCallback(change))
    assert model.num_timesteps == 31


@pytest.mark.parametrize("name", ["gamma", "num_simulations", "search", "search_kwargs"])
def test_a_wrong_setting_is_refused_by_name_when_predicting(name):
    model = tiny_model(tiny_envs())
    right = getattr(model, name)
    setattr(model, name, WRONG[name])
    for _ in range(2):
        with pytest.raises(ValueError, match=f"`{name}`"):
            model.predict(np.zeros(3, np.float32))
    setattr(model, name, right)
    model.predict(np.zeros(3, np.float32))


def test_what_predicting_does_not_use_is_not_asked_for():
    model = tiny_model(tiny_envs())
    model.batch_size, model.buffer_size, model.gamma = 0, 1, 0.9  # as RL Zoo's `enjoy` loads models
    model.predict(np.zeros(3, np.float32))
