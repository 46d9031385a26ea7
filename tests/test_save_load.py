"""What is saved is what comes back: it predicts the same, and learns on as if nothing had happened."""

import io
import pathlib
import pickle
from copy import deepcopy
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch as th
from conftest import (
    UNIT_BOX,
    TinyEnv,
    cartpole_observations,
    differences,
    scramble,
    sequences_of,
    snapshot,
    tiny_envs,
    tiny_model,
)
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack

from sb3_muzero import MuZero
from sb3_muzero.policies import MuZeroPolicy


@pytest.fixture(scope="module")
def trained() -> MuZero:
    """Not to be changed."""
    return scramble(tiny_model(target_update_interval=1_000).learn(60)).learn(20, reset_num_timesteps=False)


def acts_alike(a, b) -> bool:
    observations = th.as_tensor(cartpole_observations(64))
    a, b = (getattr(actor, "policy", actor).plan(observations, deterministic=True) for actor in (a, b))
    assert set(a.action) == {0, 1}, "no test of anything otherwise"
    return not differences([a.action, a.action_weights, a.value], [b.action, b.action_weights, b.value])


# Model files


@pytest.mark.filterwarnings("ignore:Path .* does not exist. Will create it")
@pytest.mark.parametrize("kind", ["str", "pathlib", "folder that is not there yet", "buffer object", "open file"])
def test_save_and_load(trained, tmp_path, kind):
    if kind == "buffer object":
        target = io.BytesIO()
        trained.save(target)
        target.seek(0)
    elif kind == "open file":
        with open(tmp_path / "model.zip", "wb") as file:
            trained.save(file)
        target = open(tmp_path / "model.zip", "rb")
    else:
        target = {
            "str": str(tmp_path / "model"),
            "pathlib": pathlib.Path(tmp_path) / "model.zip",
            "folder that is not there yet": tmp_path / "new" / "model",
        }[kind]
        trained.save(target)
        assert pathlib.Path(target).with_suffix(".zip").exists()
    loaded = MuZero.load(target, device="cpu")
    assert differences(snapshot(trained), snapshot(loaded)) == []
    assert acts_alike(trained, loaded)
    for name in ("num_timesteps", "_n_updates", "_episode_num", "num_simulations", "search", "n_steps", "gamma", "seed"):
        assert getattr(loaded, name) == getattr(trained, name), name


def test_both_networks_supports_and_the_optimizer_are_saved(trained, tmp_path):
    before = snapshot(trained)
    assert differences(trained.policy.latent_model.state_dict(), trained.policy.latent_model_target.state_dict())
    assert set(before) == {"policy", "policy.optimizer"}
    names = {name.split(".")[0] for name in before["policy"]}
    assert {"latent_model", "latent_model_target"} <= names
    assert before["policy.optimizer"]["state"][0]["step"] == trained._n_updates > 0
    trained.save(tmp_path / "model")
    loaded = MuZero.load(tmp_path / "model", device="cpu").policy
    for network in ("latent_model", "latent_model_target"):
        assert differences(getattr(trained.policy, network).state_dict(), getattr(loaded, network).state_dict()) == []
        for support in ("value_support", "reward_support"):
            bounds = getattr(getattr(loaded, network), support).bounds
            assert bounds[1] - bounds[0] > 1
            assert bounds.tolist() == getattr(getattr(trained.policy, network), support).bounds.tolist()
    assert not any(module.training for module in loaded.latent_model_target.modules())
    assert not any(parameter.requires_grad for parameter in loaded.latent_model_target.parameters())


def test_saving_changes_nothing_and_can_exclude(trained, tmp_path):
    before = snapshot(trained)
    trained.save(tmp_path / "model", exclude=["ep_info_buffer"])
    assert differences(before, snapshot(trained)) == []
    assert trained.replay_buffer is not None and trained.env is not None
    assert (tmp_path / "model.zip").stat().st_size < 2_000_000, "the file holds neither buffer nor environment"


@pytest.mark.parametrize("search", ["gumbel", "puct"])
def test_learning_on_with_the_buffer_is_learning_on(tmp_path, search):
    """The loaded model ends with the very parameters of the one that was never away."""
    model = tiny_model(tiny_envs(2), search=search, buffer_size=100).learn(72)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = MuZero.load(tmp_path / "model", env=tiny_envs(2), device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    results = []
    for each in (model, loaded):
        each.set_random_seed(7)
        results.append(snapshot(each.learn(48)))  # which fills the buffer and wraps it around
    assert differences(*results) == []
    assert model._n_updates == loaded._n_updates


def test_learning_on_without_the_buffer(trained, tmp_path):
    trained.save(tmp_path / "model")
    loaded = MuZero.load(tmp_path / "model", env=trained.get_env(), device="cpu")
    assert loaded.replay_buffer.size() == 0
    before = snapshot(loaded)
    loaded.learn(40, reset_num_timesteps=False)
    assert loaded.num_timesteps == trained.num_timesteps + 40
    assert loaded._n_updates == trained._n_updates + 10
    assert differences(before, snapshot(loaded))


def test_env_given_to_load_or_set_env(trained, tmp_path):
    trained.save(tmp_path / "model")
    loaded = MuZero.load(tmp_path / "model", device="cpu")
    assert loaded.get_env() is None and acts_alike(trained, loaded)
    with pytest.raises(AssertionError):
        loaded.learn(10)
    loaded.set_env(trained.get_env())
    loaded.learn(8, reset_num_timesteps=False)
    for wrong in (TinyEnv(), TinyEnv(trained.observation_space, spaces.Discrete(3))):
        with pytest.raises(ValueError, match="spaces do not match"):
            MuZero.load(tmp_path / "model", env=wrong)
        with pytest.raises(ValueError, match="spaces do not match"):
            loaded.set_env(wrong)


def test_set_env_starts_a_new_episode_and_wants_as_many_environments():
    model = tiny_model(tiny_envs(2)).learn(30)
    with pytest.raises(AssertionError):
        model.set_env(tiny_envs(3))
    other = tiny_envs(2)
    model.set_env(other)
    model.learn(30, reset_num_timesteps=False)
    assert model.get_env() is other and [env.resets for env in other.envs] == [2, 2]


@pytest.mark.parametrize("n_envs, loaded_n_envs", [(1, 3), (3, 1)])
def test_load_for_another_number_of_environments(tmp_path, n_envs, loaded_n_envs):
    model = tiny_model(tiny_envs(n_envs)).learn(60)
    model.save(tmp_path / "model")
    loaded = MuZero.load(tmp_path / "model", env=tiny_envs(loaded_n_envs), device="cpu")
    assert differences(snapshot(model), snapshot(loaded)) == []
    loaded.learn(48)
    assert loaded.n_envs == loaded.replay_buffer.n_envs == loaded_n_envs
    assert loaded.replay_buffer.size() * loaded_n_envs == 48
    assert loaded._n_updates > model._n_updates


def test_a_buffer_of_another_number_of_environments_or_spaces_is_refused(tmp_path):
    tiny_model(tiny_envs(2)).learn(24).save_replay_buffer(tmp_path / "two")
    tiny_model("CartPole-v1").learn(24).save_replay_buffer(tmp_path / "cartpole")
    model = tiny_model(tiny_envs(1)).learn(24)
    kept = model.replay_buffer
    for name in ("two", "cartpole"):
        with pytest.raises(ValueError):
            model.load_replay_buffer(tmp_path / name)
        assert model.replay_buffer is kept
    model.learn(24, reset_num_timesteps=False)


def test_custom_objects_and_other_arguments_replace_what_was_saved(trained, tmp_path):
    trained.save(tmp_path / "model")
    loaded = MuZero.load(tmp_path / "model", custom_objects={"learning_rate": 0.5, "lr_schedule": lambda _: 0.5}, device="cpu")
    assert loaded.learning_rate == 0.5 and loaded.lr_schedule(1.0) == 0.5
    loaded = MuZero.load(tmp_path / "model", num_simulations=9, search="puct", gamma=0.5, n_steps=2, device="cpu")
    assert (loaded.num_simulations, loaded.search, loaded.gamma, loaded.n_steps) == (9, "puct", 0.5, 2)
    assert loaded.policy.planner.settings == ("puct", 9, None, 0.5)
    assert loaded.policy.plan(th.zeros(1, 4)).tree.node_visits[0, 0] == 10
    assert differences(snapshot(trained), snapshot(loaded)) == []


def test_load_for_enjoyment_only(trained, tmp_path):
    """RL Zoo's ``enjoy`` cuts the buffer to one transition, or loads with the full one, which must cost nothing."""
    trained.save(tmp_path / "model")
    enjoyed = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    loaded = MuZero.load(tmp_path / "model", trained.get_env(), custom_objects=enjoyed, buffer_size=1, device="cpu")
    assert loaded.buffer_size == 1 and acts_alike(trained, loaded)
    loaded = MuZero.load(tmp_path / "model", custom_objects={**enjoyed, "buffer_size": 1}, device="cpu")
    assert loaded.buffer_size == 1 and acts_alike(trained, loaded)

    images = TinyEnv(spaces.Box(0, 255, (4, 84, 84), np.uint8))
    tiny_model(images, buffer_size=10**9, policy_kwargs={"net_arch": []}).save(tmp_path / "images")
    buffer = MuZero.load(tmp_path / "images", device="cpu").replay_buffer
    assert sum(value.nbytes for value in vars(buffer).values() if isinstance(value, np.ndarray)) < 1_000_000


def test_policy_kwargs_given_to_load_must_be_those_saved(trained, tmp_path):
    trained.save(tmp_path / "model")
    MuZero.load(tmp_path / "model", policy_kwargs={}, device="cpu")
    with pytest.raises(ValueError, match="policy kwargs"):
        MuZero.load(tmp_path / "model", policy_kwargs={"net_arch": [3]}, device="cpu")


@pytest.mark.parametrize("device", ["cpu", "auto", th.device("cpu")])
def test_load_to_a_device(trained, tmp_path, device):
    trained.save(tmp_path / "model")
    loaded = MuZero.load(tmp_path / "model", device=device)
    assert {parameter.device.type for parameter in loaded.policy.parameters()} == {loaded.device.type}
    loaded.predict(np.zeros(4, np.float32))


def test_print_system_info(trained, tmp_path, capsys):
    trained.save(tmp_path / "model")
    MuZero.load(tmp_path / "model", print_system_info=True, device="cpu")
    assert "== CURRENT SYSTEM INFO ==" in capsys.readouterr().out


@pytest.mark.parametrize("rate", [lambda progress: progress * 1e-3, FloatSchedule(LinearSchedule(1e-3, 1e-4, 0.5)), 1e-2])
def test_schedules_are_saved(tmp_path, rate):
    model = tiny_model(learning_rate=rate)
    model.save(tmp_path / "model")
    loaded = MuZero.load(tmp_path / "model", env=model.get_env(), device="cpu")
    assert [loaded.lr_schedule(p) for p in (1.0, 0.5, 0.0)] == [model.lr_schedule(p) for p in (1.0, 0.5, 0.0)]
    loaded.learn(24)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError):
        MuZero.load(tmp_path / "nowhere")
    (tmp_path / "text.zip").write_text("no model")
    with pytest.raises(ValueError):
        MuZero.load(tmp_path / "text.zip")


# Parameters


def test_get_and_set_parameters(trained):
    other = tiny_model(seed=5).learn(24)
    assert not differences(snapshot(trained), snapshot(trained)) and differences(snapshot(trained), snapshot(other))
    acted = acts_alike(trained, other)
    other.set_parameters(trained.get_parameters())
    assert not acted and acts_alike(trained, other), "the search acts by the parameters that were set"
    assert differences(snapshot(trained), snapshot(other)) == []


def test_set_parameters_of_a_file(trained, tmp_path):
    trained.save(tmp_path / "model")
    other = tiny_model(seed=5)
    other.set_parameters(str(tmp_path / "model"))
    assert acts_alike(trained, other)


def test_set_parameters_exact_match():
    model = tiny_model().learn(24)
    parameters = snapshot(model)
    with pytest.raises(ValueError, match="unknown"):
        model.set_parameters({**parameters, "unknown": {}})
    with pytest.raises(ValueError):
        model.set_parameters({"policy": parameters["policy"]}, exact_match=True)
    changed = {name: value + 1 for name, value in parameters["policy"].items() if value.is_floating_point()}
    changed.pop("latent_model.prediction.policy_head.bias")
    with pytest.raises(RuntimeError):
        model.set_parameters({**parameters, "policy": changed}, exact_match=True)
    model.set_parameters(parameters)
    model.set_parameters({"policy": changed}, exact_match=False)
    state = model.policy.state_dict()
    assert th.equal(state["latent_model.prediction.value_head.bias"], changed["latent_model.prediction.value_head.bias"])
    kept = "latent_model.prediction.policy_head.bias"
    assert th.equal(state[kept], parameters["policy"][kept])


def test_set_parameters_within_a_callback_act_at_once(trained):
    model = tiny_model(learning_starts=0, gradient_steps=0)
    alike = []

    def callback(locals_, globals_):
        if model.num_timesteps == 5:
            model.set_parameters(trained.get_parameters())
        alike.append(acts_alike(trained, model))
        return True

    model.learn(8, callback=callback)
    assert alike == [False] * 4 + [True] * 4


# Replay buffer files


def everything(buffer, n_envs: int):
    ages, envs = (grid.ravel() for grid in np.meshgrid(np.arange(buffer.size()), np.arange(n_envs)))
    np.random.seed(0)
    return list(sequences_of(buffer, ages, envs, 5, 3))


@pytest.mark.parametrize("n_envs, buffer_size, steps", [(1, 1_000, 63), (3, 1_000, 60), (1, 33, 63), (3, 90, 120)])
@pytest.mark.parametrize("as_object", [False, True])
def test_replay_buffer_files_restore_everything(tmp_path, n_envs, buffer_size, steps, as_object):
    model = tiny_model(tiny_envs(n_envs, length=7), buffer_size=buffer_size, learning_starts=10).learn(steps)
    target = io.BytesIO() if as_object else tmp_path / "buffer"
    model.save_replay_buffer(target)
    if as_object:
        target.seek(0)
    other = tiny_model(tiny_envs(n_envs, length=7), buffer_size=buffer_size)
    other.load_replay_buffer(target)
    mine, theirs = model.replay_buffer, other.replay_buffer
    assert (mine.size(), mine.pos, mine.full, mine.buffer_size) == (theirs.size(), theirs.pos, theirs.full, theirs.buffer_size)
    assert theirs.device == other.device
    sequences = everything(mine, n_envs)
    assert (sequences[4].sum(-1) > 0).any(), "search policies are in it"
    assert differences(sequences, everything(theirs, n_envs)) == []
    # And goes on to be filled as before
    for each in (model, other):
        each.learning_starts = 100
        each.set_random_seed(3)
        each.learn(20, reset_num_timesteps=True)
    assert differences(everything(mine, n_envs), everything(theirs, n_envs)) == []


@pytest.mark.parametrize("missing", ["None", "deleted", "not set up", "without environments"])
def test_a_replay_buffer_is_loaded_where_none_was_made(tmp_path, missing):
    def stacked():
        return VecFrameStack(tiny_envs(2), 3)

    model = tiny_model(stacked()).learn(40)
    expected = sequences_of(model.replay_buffer, np.arange(8), np.ones(8, int), unroll_steps=2, n_steps=3)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    if missing == "None":
        model.replay_buffer = None
    elif missing == "deleted":
        del model.replay_buffer
    elif missing == "not set up":
        model = tiny_model(stacked(), _init_setup_model=False)
    else:
        model = MuZero.load(tmp_path / "model", device="cpu")
    model.load_replay_buffer(tmp_path / "buffer")
    found = sequences_of(model.replay_buffer, np.arange(8), np.ones(8, int), unroll_steps=2, n_steps=3)
    assert differences(expected._asdict(), found._asdict()) == [] and model.replay_buffer.device == model.device
    if missing == "not set up":
        model._setup_model()
    model.set_env(stacked())
    model.learn(16, reset_num_timesteps=False)
    assert model.replay_buffer.size() == 20 + 8


def test_a_replay_buffer_that_was_deleted_is_made_anew():
    model = tiny_model(tiny_envs()).learn(40)
    del model.replay_buffer
    model.learn(32, reset_num_timesteps=False)
    assert model.replay_buffer.size() == 32
    model.replay_buffer = None
    model.set_env(tiny_envs())
    assert model.replay_buffer.size() == 0


def test_replay_buffer_file_is_as_long_as_its_content(tmp_path):
    model = tiny_model(buffer_size=1_000_000).learn(24)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    assert (tmp_path / "buffer.pkl").stat().st_size < 20_000


def test_an_empty_buffer_can_be_saved(tmp_path):
    model = tiny_model()
    model.save_replay_buffer(tmp_path / "buffer")
    model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer.size() == 0
    assert model.learn(24).replay_buffer.size() == 24


def test_one_reward_for_everything_is_nothing_to_plan_for_after_loading_either(tmp_path):
    """Environments of processes give 64 bits, the buffer keeps 32."""

    class Costly(TinyEnv):
        def step(self, action: Any) -> Any:
            observation, _, _, truncated, info = super().step(action)
            return observation, -0.1, False, truncated, info

    env = SubprocVecEnv([lambda: Costly(terminates=False)], start_method="fork")
    model = tiny_model(env).learn(40)
    model.save_replay_buffer(tmp_path / "buffer")
    model.load_replay_buffer(tmp_path / "buffer")
    model.learn(20, reset_num_timesteps=False)
    env.close()
    assert not model.warmup.reward_signal_seen


def test_an_old_file_stays_whole_where_saving_fails(tmp_path, monkeypatch):
    model = tiny_model(TinyEnv())
    model.save(tmp_path / "model")
    before = (tmp_path / "model.zip").read_bytes()

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stable_baselines3.common.save_util.th.save", full)
    with pytest.raises(OSError, match="No space left"):
        model.save(tmp_path / "model")
    assert (tmp_path / "model.zip").read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["model.zip"]


def test_paths_that_are_folders_or_links_are_what_they_are_to_sb3(tmp_path):
    model = tiny_model(TinyEnv())
    (tmp_path / "v1.0").mkdir()
    with pytest.warns(UserWarning, match="is a folder. Will save instead"):
        model.save(tmp_path / "v1.0")
    MuZero.load(tmp_path / "v1.0_2", device="cpu")
    (tmp_path / "latest.zip").symlink_to(tmp_path / "target.zip")
    model.save(tmp_path / "latest")
    assert (tmp_path / "latest.zip").is_symlink()
    MuZero.load(tmp_path / "target", device="cpu")


def test_load_with_a_buffer_and_learn_on_at_once(tmp_path):
    model = tiny_model().learn(40)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = MuZero.load(tmp_path / "model", env=model.get_env(), device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer", truncate_last_traj=True)
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded.replay_buffer.size() == 60 and loaded._n_updates == model._n_updates + 5
    # The episode that ran when the file was written ends there: neither terminal nor joined to what came after
    at_the_seam = sequences_of(loaded.replay_buffer, np.array([39]), np.array([0]), 5, 3)
    assert at_the_seam.lengths.item() == 1


# Policies as objects


@pytest.mark.parametrize(
    "copy",
    [deepcopy, lambda p: pickle.loads(pickle.dumps(p)), lambda p: cloudpickle.loads(cloudpickle.dumps(p))],
    ids=["deepcopy", "pickle", "cloudpickle"],
)
@pytest.mark.parametrize("search", ["gumbel", "puct"])
def test_policies_can_be_copied(copy, search):
    policy: MuZeroPolicy = scramble(tiny_model(search=search).learn(24)).policy
    policy.predict(cartpole_observations())  # whatever the search prepares is there now
    copied = copy(policy)
    assert acts_alike(policy, copied)
    frozen = copy(policy)
    scramble(policy, seed=1)
    assert acts_alike(frozen, copied) and not acts_alike(policy, copied), "the copy has parameters of its own"
    copied.load_state_dict(policy.state_dict())
    assert acts_alike(policy, copied)
    assert len(pickle.dumps(policy)) < 1_000_000


def test_the_search_follows_every_change_of_the_parameters():
    model = tiny_model()
    policy = scramble(model).policy
    observations = th.as_tensor(cartpole_observations(16))

    def found():
        return policy.plan(observations, deterministic=True).value

    values = [found()]
    with th.no_grad():
        for parameter in policy.latent_model.dynamics.parameters():
            parameter.mul_(0.3)  # in place
    values.append(found())
    for parameter in policy.latent_model.prediction.parameters():
        parameter.data = parameter.data * 0.7  # new memory
    values.append(found())
    policy.latent_model.value_support.bounds.copy_(th.tensor([-1.0, 1.0]))
    values.append(found())
    policy.latent_model.prediction = deepcopy(scramble(tiny_model(), 4).policy.latent_model.prediction)  # another module
    values.append(found())
    policy.load_state_dict(scramble(tiny_model(), 5).policy.state_dict())
    values.append(found())
    assert len({value.tobytes() for value in values}) == len(values)
    np.testing.assert_allclose(values[-1], scramble(tiny_model(), 5).policy.plan(observations, deterministic=True).value)


# Another algorithm's files


def test_the_model_of_another_algorithm_is_refused(tmp_path):
    dqn = DQN("MlpPolicy", "CartPole-v1", buffer_size=10, device="cpu")
    dqn.save(tmp_path / "dqn")
    with pytest.raises(ValueError, match=r"MuZero.*DQNPolicy"):
        MuZero.load(tmp_path / "dqn")
    model = tiny_model().learn(24)
    before = snapshot(model)
    with pytest.raises((ValueError, RuntimeError)):
        model.set_parameters(str(tmp_path / "dqn"))
    assert differences(before, snapshot(model)) == []


def test_the_buffer_of_another_algorithm_is_refused(tmp_path):
    dqn = DQN("MlpPolicy", "CartPole-v1", buffer_size=10, device="cpu")
    dqn.save_replay_buffer(tmp_path / "dqn")
    model = tiny_model().learn(24)
    kept = model.replay_buffer
    with pytest.raises(ValueError, match=r"not a file of sb3_muzero"):
        model.load_replay_buffer(tmp_path / "dqn")
    assert model.replay_buffer is kept
    model.learn(8, reset_num_timesteps=False)


def test_environments_are_not_saved(tmp_path):
    env = DummyVecEnv([lambda: TinyEnv(UNIT_BOX)])
    env.envs[0].unpicklable = (i for i in range(3))
    model = tiny_model(env).learn(24)
    model.save(tmp_path / "model")
    assert MuZero.load(tmp_path / "model", device="cpu").env is None
