"""What a GPU computes is what the CPU does."""

import warnings

import numpy as np
import pytest
import torch as th
from conftest import TinyEnv, differences, scramble, snapshot, tiny_envs, tiny_model
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecFrameStack
from test_concurrency import in_threads
from test_sampled_compiled import CASES, make

from sb3_muzero import MuZero
from sb3_muzero.callbacks import ResumableCheckpointCallback
from sb3_muzero.checkpointing import resume, save_checkpoint
from sb3_muzero.checkpointing.files import can_learn, checkpoints_in
from sb3_muzero.search.backends.cuda_graphs import CudaGraph

pytestmark = pytest.mark.skipif(not th.cuda.is_available(), reason="needs a GPU")

FRAMES = spaces.Box(0, 255, (1, 36, 36), np.uint8)
SAME_IMAGES = dict(random_shift=0, random_intensity=0.0)


def env():
    return VecFrameStack(tiny_envs(2, observation_space=FRAMES, length=7), n_stack=4)


@pytest.mark.parametrize("policy", ["CnnPolicy", "ResNetPolicy"])
def test_losses_and_gradients_are_those_of_the_cpu(policy, tmp_path, monkeypatch):
    monkeypatch.setattr(th.backends.cudnn, "allow_tf32", False)
    settings = dict(policy=policy, learning_starts=1_000, reanalyze_ratio=0.5, policy_kwargs=SAME_IMAGES)
    models = [tiny_model(env(), device=device, **settings) for device in ("cpu", "cuda")]
    scramble(models[0].learn(60))
    check_losses_and_gradients(models, tmp_path)


def check_losses_and_gradients(models, tmp_path):
    models[0].save_replay_buffer(tmp_path / "buffer")
    models[1].policy.load_state_dict(models[0].policy.state_dict())
    models[1].load_replay_buffer(tmp_path / "buffer")
    found = []
    for model in models:
        np.random.seed(1)
        samples = model.sample(32, 3)
        samples, _ = model.reanalyzer(samples, 0.5, 1)
        output, _, gradients = model.learner.backward(samples, model.learner.targets(samples))
        found.append(
            [samples.observations.float(), samples.policies, *output.losses.values(), *(g for g in gradients if g is not None)]
        )
    assert len(found[0]) == len(found[1]) > 12
    for on_cpu, on_gpu in zip(*found, strict=True):
        assert on_gpu.is_cuda
        assert (on_gpu.cpu() - on_cpu).norm() <= 1e-3 * on_cpu.norm() + 1e-4


@pytest.mark.parametrize("bf16", [False, True])
def test_a_model_trained_on_a_gpu_goes_on_anywhere(bf16, tmp_path):
    model = tiny_model(env(), policy="ResNetPolicy", device="cuda", policy_kwargs=dict(bf16=bf16)).learn(60)
    model.save(tmp_path / "model")
    obs = model.get_env().reset()
    on_cpu = MuZero.load(tmp_path / "model", env=env(), device="cpu")
    images = th.as_tensor(obs)
    values = [m.policy.predict_values(images.to(m.device)).cpu() for m in (model, on_cpu)]
    th.testing.assert_close(*values, atol=0.05, rtol=0.05)
    on_cpu.learn(60, reset_num_timesteps=False)


def check_recorded_once(model):
    online, target = id(model.policy.latent_model), id(model.policy.latent_model_target)
    recorded = {name: list(graphs._graphs.values()) for name, graphs in model.policy.planner.cuda_graphs.of_thread.items()}
    assert {name: len(graphs) for name, graphs in recorded.items()} == {
        ("root", online): 1,
        ("step", online): 1,
        ("root", target): 1,
        ("step", target): 1,
        ("values", target): 1,
        ("backward", online): 1,
    }
    assert all(isinstance(graph, CudaGraph) for graphs in recorded.values() for graph in graphs)


def test_training_records_each_function_once():
    model = tiny_model(env(), policy="ResNetPolicy", device="cuda", reanalyze_ratio=1.0).learn(200)
    check_recorded_once(model)


def test_vectors_are_planned_for_and_learned_from():
    model = tiny_model(TinyEnv(), device="cuda", replay_buffer_kwargs=dict(priority_exponent=0.6)).learn(60)
    assert model.predict(np.zeros((5, 3), np.float32))[0].shape == (5,)


@pytest.mark.parametrize("name", CASES)
def test_sampled_actions_are_searched_as_on_the_cpu(name):
    obs, results = th.randn(40, 3), []
    for device in ("cpu", "cuda"):
        policy = make(name, device=device).policy
        np.random.seed(0)
        results.append(policy.plan(obs.to(policy.device)))
    expected, found = results
    np.testing.assert_allclose(found.candidates, expected.candidates, atol=1e-3)
    is_same = (found.tree.parents == expected.tree.parents).all(1)
    assert is_same.mean() >= 0.9, "but for ties"
    np.testing.assert_allclose(found.action_weights[is_same], expected.action_weights[is_same], atol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_of_sampled_actions_are_those_of_the_cpu(name, tmp_path):
    models = [make(name, device=device, learning_starts=30, reanalyze_ratio=0.5) for device in ("cpu", "cuda")]
    models[0].learn(60)
    check_losses_and_gradients(models, tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_training_with_sampled_actions_records_each_function_once(name):
    model = make(name, device="cuda", reanalyze_ratio=1.0).learn(200)
    check_recorded_once(model)
    assert model.action_space.contains(model.predict(np.zeros(3, np.float32))[0])


@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy", "ResNetPolicy"])
def test_a_resumed_run_ends_as_the_uninterrupted_one(policy, tmp_path, monkeypatch):
    monkeypatch.setattr(th.backends.cudnn, "deterministic", True)
    make = tiny_envs if policy == "MlpPolicy" else env
    settings = dict(policy=policy, device="cuda", reanalyze_ratio=0.5)
    whole = tiny_model(make(), **settings).learn(240)
    tiny_model(make(), **settings).learn(240, callback=ResumableCheckpointCallback(60, tmp_path))
    th.cuda.manual_seed(99)
    _, last = checkpoints_in(tmp_path)
    last.unlink()
    resumed = resume(tmp_path, make(), restore_environments=True)
    assert resumed.device.type == "cuda" and 0 < resumed.num_timesteps < 240
    resumed.learn(240 - resumed.num_timesteps, reset_num_timesteps=False)
    assert differences(snapshot(whole), snapshot(resumed)) == []
    assert differences(whole.replay_buffer.state(), resumed.replay_buffer.state()) == []


def test_a_run_on_a_gpu_is_resumed_on_the_cpu_and_back(tmp_path):
    save_checkpoint(tiny_model(env(), policy="ResNetPolicy", device="cuda").learn(60), tmp_path)
    for device in ("cpu", "cuda"):
        resumed = resume(tmp_path, env(), device=device)
        assert resumed.device.type == device
        resumed.learn(60, reset_num_timesteps=False)
        assert all(p.device.type == device for p in resumed.policy.parameters())
        save_checkpoint(resumed, tmp_path)


def test_updates_that_are_not_finite_are_left_out():
    model = tiny_model(env(), policy="ResNetPolicy", device="cuda").learn(60)
    before = snapshot(model)
    model.replay_buffer.rewards[:] = np.nan
    assert not can_learn(model)
    with pytest.warns(UserWarning, match="non-finite value or reward target"):
        model.train(1, 8)
    assert model.learner.skipped_updates == 1 and differences(before["policy"], snapshot(model)["policy"]) == []


def test_models_train_at_once_in_threads():
    """While one records its functions, others wait for the GPU and are about to replay or record theirs."""
    models = [tiny_model(env(), policy=policy, device="cuda") for policy in ("MlpPolicy", "CnnPolicy", "ResNetPolicy")]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*no CUDA graph could be recorded")
        in_threads(*(lambda model=model: model.learn(200) for model in models))
    for model in models:
        assert model.num_timesteps >= 200 and model._n_updates > 20
        assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


def test_threads_may_plan_with_one_model():
    model = scramble(tiny_model(env(), policy="ResNetPolicy", device="cuda", num_simulations=16))
    shape = model.observation_space.shape
    batches = [np.linspace(low, 255, count).astype(np.uint8)[:, None, None, None] for low, count in ((0, 4), (9, 4), (5, 9))]
    observations = [th.as_tensor(np.broadcast_to(batch, (len(batch), *shape)).copy()).to(model.device) for batch in batches]

    def values(obs):
        return model.policy.plan(obs, deterministic=True).value

    expected = [values(obs) for obs in observations]
    assert expected[0].std() > 0.1 and abs(expected[0] - expected[1]).max() > 0.01
    planned = in_threads(*(lambda obs=obs: [values(obs) for _ in range(30)] for obs in observations))
    for found, alone in zip(planned, expected, strict=True):
        np.testing.assert_allclose(found, [alone] * 30, atol=1e-4)
