"""The loss, and where it composes by hand what PyTorch has: the same values and gradients."""

import numpy as np
import pytest
import torch as th
from conftest import scramble, tiny_envs, tiny_model
from gymnasium import spaces
from torch.nn import functional as F

from sb3_muzero.actions import make_actions
from sb3_muzero.learning.losses import cosine_similarity, muzero_loss
from sb3_muzero.learning.targets import unroll_targets
from sb3_muzero.models.base import scale_gradient
from sb3_muzero.models.mlp import Dynamics
from sb3_muzero.models.normalization import RunningNorm, SimNorm
from sb3_muzero.replay.reading import read_sequences


def assert_same(ours, theirs, *inputs):
    """The same values, and the same gradients under random weights."""
    a, b = ours(*inputs), theirs(*inputs)
    th.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    weights = th.randn(a.shape, generator=th.Generator().manual_seed(0))
    for one, other in zip(th.autograd.grad(a, inputs, weights), th.autograd.grad(b, inputs, weights), strict=True):
        th.testing.assert_close(one, other, atol=1e-6 * max(1.0, float(other.abs().max())), rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e10])
def test_cosine_similarity(scale):
    th.manual_seed(0)
    a, b = th.randn(2, 3, 5, 16)
    assert_same(
        cosine_similarity, lambda a, b: F.cosine_similarity(a, b, dim=-1), (a * scale).requires_grad_(), b.requires_grad_()
    )


def test_cosine_similarity_of_nothing_is_zero():
    a, b = th.zeros(2, 8, requires_grad=True), th.ones(2, 8)
    similarity = cosine_similarity(a, b)
    similarity.sum().backward()
    assert similarity.tolist() == [0.0, 0.0] and a.grad.isfinite().all()


@pytest.mark.parametrize("width", [8, 64, 512])
def test_simnorm_is_a_softmax_over_groups(width):
    def composed(latent: th.Tensor) -> th.Tensor:
        return F.softmax(F.layer_norm(latent, (width,)).unflatten(-1, (-1, 8)), dim=-1).flatten(-2)

    th.manual_seed(0)
    assert_same(SimNorm(8), composed, th.randn(3, 5, width, requires_grad=True))
    peak = 1e6 * F.one_hot(th.tensor([0, width - 1]), width).float()  # the farthest that layer normalisation lets a unit go
    th.testing.assert_close(SimNorm(8)(peak), composed(peak))


def test_scale_gradient_scales_the_gradient_alone():
    x = th.randn(4, requires_grad=True)
    y = scale_gradient(x, 0.25)
    y.sum().backward()
    assert th.equal(x, y) and x.grad.tolist() == [0.25] * 4


def test_dynamics_reads_the_latent_followed_by_the_one_hot_action():
    dynamics, encoder = Dynamics(8, 3, 5, [16], th.nn.ReLU, "simnorm"), make_actions(spaces.Discrete(3)).make_encoder()
    latent, action = th.randn(5, 8), th.tensor([0, 2, 1, 1, 0])
    inputs = th.cat([latent, F.one_hot(action, 3)], dim=-1)
    output, hidden = dynamics(latent, encoder(action)), dynamics.trunk(inputs)
    assert th.equal(output.latent, dynamics.latent_head(hidden))
    assert th.equal(output.reward_logits, dynamics.reward_head(hidden))
    assert not encoder.state_dict()


def test_running_norm_has_the_statistics_of_all_that_it_saw():
    th.manual_seed(0)
    norm, batches = RunningNorm(3), [th.randn(10 + i, 3) * (i + 1) + 5 * i for i in range(6)]
    for batch in batches:
        norm.update_statistics(batch)
    seen = th.cat(batches)
    assert norm.count == len(seen)
    th.testing.assert_close(norm.mean, seen.mean(0), rtol=1e-5, atol=1e-5)
    th.testing.assert_close(norm.var, seen.var(0, correction=0), rtol=1e-4, atol=1e-5)


def test_importance_weights_weigh_sequences():
    model = scramble(tiny_model(tiny_envs(2)).learn(60))
    ids = model.replay_buffer.index.stored()[:16:2] + np.arange(8) % 2

    def terms(weights: np.ndarray) -> list[th.Tensor]:
        samples = read_sequences(model.replay_buffer, ids, 3, 4, weights=weights)
        targets = unroll_targets(samples, th.zeros(4, 8), 0.99)
        return list(muzero_loss(model.policy.latent_model, model.policy.actions, samples, targets).losses.values())

    np.random.seed(0)  # actions beyond an episode's end are random
    weights = np.random.rand(8)
    parts = []
    for share in [*np.eye(8), weights]:
        np.random.seed(1)
        parts.append(th.stack(terms(share)))
    th.testing.assert_close(parts[8], (th.stack(parts[:8]) * th.as_tensor(weights, dtype=th.float32)[:, None]).sum(0))
