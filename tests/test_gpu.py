"""What a GPU computes is what the CPU does."""

import numpy as np
import pytest
import torch as th
from conftest import TinyEnv, scramble, tiny_envs, tiny_model
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecFrameStack

from sb3_muzero import MuZero
from sb3_muzero.cuda_graphs import CudaGraph

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
    scramble(models[0].learn(60)).save_replay_buffer(tmp_path / "buffer")
    models[1].policy.load_state_dict(models[0].policy.state_dict())
    models[1].load_replay_buffer(tmp_path / "buffer")
    found = []
    for model in models:
        np.random.seed(1)
        samples = model.sample(32, 3)
        model._reanalyze(samples)
        parameters = list(model.policy.latent_model.parameters())
        terms, _, gradients = model._backward(samples, model.targets(samples), parameters)
        found.append([samples.observations.float(), samples.policies, *terms, *(g for g in gradients if g is not None)])
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


def test_training_records_each_function_once():
    model = tiny_model(env(), policy="ResNetPolicy", device="cuda", reanalyze_ratio=1.0).learn(200)
    recorded = {name: list(graphs._graphs.values()) for name, graphs in model.policy._cuda_graphs.items()}
    assert {name: len(graphs) for name, graphs in recorded.items()} == {
        ("root", "online"): 1,
        ("step", "online"): 1,
        ("root", "target"): 1,
        ("step", "target"): 1,
        ("values", "target"): 1,
        ("backward", "online"): 1,
    }
    assert all(isinstance(graph, CudaGraph) for graphs in recorded.values() for graph in graphs)


def test_vectors_are_planned_for_and_learned_from():
    model = tiny_model(TinyEnv(), device="cuda", replay_buffer_kwargs=dict(priority_exponent=0.6)).learn(60)
    assert model.predict(np.zeros((5, 3), np.float32))[0].shape == (5,)
