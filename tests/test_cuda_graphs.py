"""Recorded functions: what they mean for a search, and when they are recorded anew. Recording itself needs a GPU."""

import numpy as np
import pytest
import torch
from conftest import TinyEnv, scramble, tiny_model
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor
from test_concurrency import in_threads
from torch import nn

from sb3_muzero.learning.learner import Learner
from sb3_muzero.policies import CnnPolicy, MultiInputPolicy, MuZeroPolicy, ResNetPolicy
from sb3_muzero.search import UnsupportedModelError
from sb3_muzero.search.backends import cuda_graphs
from sb3_muzero.search.backends.cuda_graphs import CudaGraphs


class Recording:
    """In place of a graph: overwrites what it returned before, as a graph does."""

    def __init__(self, function, inputs):
        self.function = function
        self.output = None

    def __call__(self, *inputs):
        output = self.function(*inputs)
        if self.output is None:
            self.output = output
        for static, new in zip(cuda_graphs.tensors_of(self.output), cuda_graphs.tensors_of(output), strict=True):
            if static is not None:  # as is the gradient of what is frozen
                static.data.copy_(new.data)
        return self.output


@pytest.fixture
def recorded(monkeypatch):
    """The shapes of the first inputs of everything that was recorded, on what pretends to be a GPU."""
    shapes = []

    class Noted(Recording):
        def __init__(self, function, inputs):
            super().__init__(function, inputs)
            shapes.append(tuple(cuda_graphs.tensors_of(inputs)[0].shape))

    monkeypatch.setattr(cuda_graphs, "CudaGraph", Noted)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    return shapes


def test_a_shape_is_recorded_once_as_long_as_the_model_stays(recorded):
    graphs, model = CudaGraphs(), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    first = graphs.get(len, (torch.zeros(2, 4),), [model], 0.9)
    model[0].weight.data.add_(1.0)
    assert graphs.get(len, (torch.ones(2, 4),), [model], 0.9) is first
    graphs.get(len, (torch.zeros(3, 4),), [model], 0.9)
    graphs.get(len, (torch.zeros(2, 4),), [model], 0.8)
    assert recorded == [(2, 4), (3, 4), (2, 4)]
    model[0].weight = nn.Parameter(torch.zeros(4, 4))
    assert graphs.get(len, (torch.zeros(2, 4),), [model], 0.9) is not first
    assert len(recorded) == 4


def test_a_model_that_cannot_be_recorded_is_warned_of_once(monkeypatch, recwarn):
    def refuse(function, inputs):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graphs, "CudaGraph", refuse)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    graphs, model = CudaGraphs(), nn.Linear(4, 4)
    for _ in range(3):
        assert graphs.get(len, (torch.zeros(2, 4),), [model]) is len
    assert len(recwarn) == 1 and "not permitted" in str(recwarn[0].message)


class Counter(nn.Linear):
    """Not a module that is known to be free of Python state."""


def test_unknown_modules_and_hooks_are_not_recorded(recorded):
    hooked = nn.Sequential(nn.Linear(4, 4))
    hooked[0].register_forward_hook(lambda module, inputs, output: None)
    for model in (nn.Sequential(Counter(4, 4)), hooked):
        graphs = CudaGraphs()
        assert all(graphs.get(len, (torch.zeros(2, 4),), [model]) is len for _ in range(3))
    assert recorded == []


def test_only_so_many_shapes_are_kept(recorded):
    graphs, model = CudaGraphs(), nn.Linear(4, 4)
    for rows in [*range(1, 12), 11, 1]:
        graphs.get(len, (torch.zeros(rows, 4),), [model])
    assert [shape[0] for shape in recorded] == [*range(1, 12), 1]
    assert len(graphs._graphs) == cuda_graphs.MAX_GRAPHS


IMAGES = spaces.Box(0, 255, (1, 84, 84), np.uint8)


@pytest.mark.parametrize(
    ("policy_class", "space"),
    [
        (MuZeroPolicy, spaces.Box(-1, 1, (5,))),
        (CnnPolicy, IMAGES),
        (ResNetPolicy, IMAGES),
        (MultiInputPolicy, spaces.Dict({"image": IMAGES, "vector": spaces.Box(-1, 1, (5,))})),
    ],
)
def test_the_model_of_every_policy_is_recorded(monkeypatch, recorded, policy_class, space):
    """The root, with the features extractor, and a step from it, without."""

    def refuse(model):
        raise UnsupportedModelError("on a GPU")

    policy = policy_class(space, spaces.Discrete(3), lambda _: 1e-3)
    monkeypatch.setattr(policy.planner, "compiled_model", refuse)
    obs, _ = policy.obs_to_tensor(space.sample())
    for _ in range(2):
        _, recurrent_fn = policy.planner.root_inference(policy.latent_model, obs)
    assert len(recorded) == 2 and isinstance(recurrent_fn, cuda_graphs.CudaGraph), "the root and a step from it"
    policy.latent_model.dynamics = nn.Identity()
    policy.planner.root_inference(policy.latent_model, obs)
    assert len(recorded) == 4, "another dynamics function"


def test_a_features_extractor_of_the_users_own_leaves_the_step_a_graph(recorded, monkeypatch):
    class OwnExtractor(FlattenExtractor):
        pass

    def refuse(model):
        raise UnsupportedModelError("on a GPU")

    space = spaces.Box(-1, 1, (5,))
    policy = MuZeroPolicy(space, spaces.Discrete(3), lambda _: 1e-3, features_extractor_class=OwnExtractor)
    monkeypatch.setattr(policy.planner, "compiled_model", refuse)
    _, step = policy.planner.root_inference(policy.latent_model, torch.zeros(2, 5))
    assert isinstance(step, cuda_graphs.CudaGraph) and len(recorded) == 1, "the step, and not the root"


def test_threads_do_not_overwrite_what_others_planned(recorded):
    policy = scramble(ResNetPolicy(IMAGES, spaces.Discrete(3), lambda _: 1e-3))
    black, white = (torch.full((2, *IMAGES.shape), colour, dtype=torch.uint8) for colour in (0, 255))
    here = policy.planner.root_inference(policy.latent_model, black)[0].value
    before = here.clone()
    (there,) = in_threads(lambda: policy.planner.root_inference(policy.latent_model, white)[0].value)
    assert torch.equal(here, before) and not torch.allclose(there, before)
    policy.planner.root_inference(policy.latent_model, white)
    assert torch.equal(here, there), "in the same thread it is"


@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy", "ResNetPolicy"])
def test_training_with_recorded_functions_is_the_same_training(policy, recorded, monkeypatch):
    """
    With their outputs overwritten each time; the bootstrap values, which only a GPU computes all of, aside. Convolutions of
    reanalyzed batches round otherwise, since a GPU also searches what lies beyond an end.
    """
    tolerance = 1e-4 if policy == "ResNetPolicy" else 0.0
    space = spaces.Box(-1, 1, (5,)) if policy == "MlpPolicy" else spaces.Box(0, 255, (1, 12, 12), np.uint8)
    settings = dict(policy=policy, target_update_interval=3, reanalyze_ratio=1.0)
    found = tiny_model(TinyEnv(space), **settings).learn(60)
    shapes = list(recorded)
    assert 0 < len(shapes) < 8
    monkeypatch.setattr(torch.Tensor, "is_cuda", False)
    expected = tiny_model(TinyEnv(space), **settings).learn(60)
    assert recorded == shapes
    for name, tensor in expected.policy.state_dict().items():
        torch.testing.assert_close(found.policy.state_dict()[name], tensor, rtol=0, atol=tolerance, msg=name)


def test_another_coefficient_is_recorded_anew(recorded):
    model = tiny_model(TinyEnv()).learn(60)
    before = len(recorded)
    model.learn(20, reset_num_timesteps=False)
    assert len(recorded) == before
    model.vf_coef = 0.5
    model.learn(20, reset_num_timesteps=False)
    assert len(recorded) == before + 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_planning_on_a_gpu_equals_planning_on_the_cpu():
    """Also after the parameters changed in place, which a recorded step must see."""
    torch.manual_seed(0)
    box, settings = spaces.Box(-1, 1, (5,)), {"value_support": (-3.0, 40.0), "reward_support": (-1.0, 5.0)}
    policy, on_gpu = (MuZeroPolicy(box, spaces.Discrete(3), lambda _: 1e-3, **settings) for _ in range(2))
    for parameter in policy.latent_model.parameters():
        nn.init.normal_(parameter, std=0.3)
    on_gpu.load_state_dict(policy.state_dict())
    on_gpu.to("cuda")
    obs = torch.randn(9, 5)
    for _ in range(2):
        expected, found = policy.plan(obs, deterministic=True), on_gpu.plan(obs.cuda(), deterministic=True)
        np.testing.assert_array_equal(found.visit_counts, expected.visit_counts)
        np.testing.assert_allclose(found.value, expected.value, atol=1e-3)
        for each in (policy, on_gpu):
            with torch.no_grad():
                for parameter in each.latent_model.parameters():
                    parameter.mul_(0.9)
    assert on_gpu.planner.cuda_graphs.of_thread["step", id(on_gpu.latent_model)]._graphs  # type: ignore[index]


def trained_model(**kwargs):
    return tiny_model(TinyEnv(), **kwargs).learn(60)


def test_what_looks_at_gradients_keeps_seeing_them(recorded):
    """W&B's hooks, or a layer that is frozen later."""
    model = trained_model()
    model.learn(20, reset_num_timesteps=False)
    seen = []
    head = model.policy.latent_model.prediction.policy_head
    handle = head.bias.register_hook(lambda gradient: seen.append(gradient.clone()))
    model.learn(20, reset_num_timesteps=False)
    assert len(seen) == 5
    handle.remove()
    head.requires_grad_(False)
    before = head.weight.clone()
    model.learn(20, reset_num_timesteps=False)
    assert torch.equal(head.weight, before)
    head.requires_grad_(True)
    model.learn(20, reset_num_timesteps=False)
    assert not torch.equal(head.weight, before)


def test_parts_of_observations_are_told_apart_by_name(recorded):
    graphs, model = CudaGraphs(), nn.Linear(4, 4)
    one, two = torch.zeros(2, 4), torch.ones(2, 4)
    for inputs in ({"a": one, "b": two}, {"b": two, "a": one}):
        found = graphs.get(lambda parts: parts["b"] - parts["a"], (inputs,), [model])(inputs)
        assert (found == 1).all()


class Annealed(Learner):
    def weighted_losses(self, losses):
        return {name: 0.5 * loss for name, loss in super().weighted_losses(losses).items()}


def test_losses_of_a_users_own_are_not_recorded(recorded):
    model = tiny_model(TinyEnv())
    model.learner = Annealed(model.policy, model.learner_settings)
    model.learn(60)
    assert recorded == []


def test_a_filling_buffer_records_nothing_anew(recorded):
    tiny_model(TinyEnv(), n_steps=500).learn(200)
    assert len(recorded) == 1


def test_gradients_go_to_their_parameters_when_the_optimizer_has_another_order(recorded):
    model = trained_model()
    parameters = list(model.policy.latent_model.parameters())
    model.policy.optimizer = torch.optim.SGD(parameters[::-1], lr=1e-3)
    before = len(recorded)
    model.learn(20, reset_num_timesteps=False)
    assert len(recorded) == before + 1
