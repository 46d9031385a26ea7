"""Recorded steps: what they mean for a search, and when they are recorded anew. Recording itself needs a GPU."""

import numpy as np
import pytest
import torch
from tabular import random_model
from torch import nn

from sb3_muzero.search import CudaGraphs, RecurrentOutput, cuda_graphs, gumbel_muzero_search


def test_a_step_may_overwrite_what_it_returned_before():
    model = random_model(3, 30, 5)
    states = np.arange(6)
    expected = gumbel_muzero_search(model.torch_root(states), model.torch_step, 24, gumbel_scale=0.0)
    static = RecurrentOutput(*(torch.as_tensor(array).clone() for array in model.torch_step(*first_step(model, states))))

    def replayed(state, action):
        for kept, new in zip(static, model.torch_step(state, action), strict=True):
            kept.copy_(torch.as_tensor(new))
        return static

    found = gumbel_muzero_search(model.torch_root(states), replayed, 24, gumbel_scale=0.0)
    for name, array in expected.tree._asdict().items():
        np.testing.assert_array_equal(getattr(found.tree, name), array, err_msg=name)


def first_step(model, states):
    return model.torch_root(states).latent, torch.zeros(len(states), dtype=torch.int64)


@pytest.fixture
def recorded(monkeypatch):
    """Everything that was recorded, with a recording that is only noted."""
    shapes = []

    class Recording:
        def __init__(self, recurrent_fn, latent):
            shapes.append(tuple(latent.shape))

    monkeypatch.setattr(cuda_graphs, "CudaGraph", Recording)
    return shapes


def test_a_shape_is_recorded_once_as_long_as_the_model_stays(recorded):
    graphs, model = CudaGraphs(), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    first = graphs.get(len, torch.zeros(2, 4), model, 0.9)
    model[0].weight.data.add_(1.0)
    assert graphs.get(len, torch.ones(2, 4), model, 0.9) is first
    graphs.get(len, torch.zeros(3, 4), model, 0.9)
    graphs.get(len, torch.zeros(2, 4), model, 0.8)
    assert recorded == [(2, 4), (3, 4), (2, 4)]
    model[0].weight = nn.Parameter(torch.zeros(4, 4))
    assert graphs.get(len, torch.zeros(2, 4), model, 0.9) is not first
    assert len(recorded) == 4


def test_a_model_that_cannot_be_recorded_is_warned_of_once(monkeypatch, recwarn):
    def refuse(recurrent_fn, latent):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graphs, "CudaGraph", refuse)
    graphs, model = CudaGraphs(), nn.Linear(4, 4)
    for _ in range(3):
        assert graphs.get(len, torch.zeros(2, 4), model) is len
    assert len(recwarn) == 1 and "not permitted" in str(recwarn[0].message)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_recorded_steps_equal_plain_ones():
    torch.manual_seed(0)
    layer = nn.Linear(8, 8 + 3 + 2).cuda()

    @torch.no_grad()
    def step(latent, action):
        latent, prior_logits, scalars = layer(latent + action[:, None]).split([8, 3, 2], dim=1)
        return RecurrentOutput(scalars[:, 0], torch.full_like(scalars[:, 0], 0.9), prior_logits, scalars[:, 1], latent)

    graph = cuda_graphs.CudaGraph(step, torch.zeros(5, 8, device="cuda"))
    for _ in range(3):
        latent, action = torch.randn(5, 8, device="cuda"), torch.randint(3, (5,), device="cuda")
        for found, expected in zip(graph(latent, action), step(latent, action), strict=True):
            torch.testing.assert_close(found, expected)
