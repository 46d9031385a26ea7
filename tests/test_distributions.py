"""Policy distributions over vectors, compared with PyTorch's and SB3's."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from torch import distributions as D
from torch.nn import functional as F
from torch.profiler import profile

from sb3_muzero.actions.distributions import (
    MAX_ACTION,
    WIDE,
    FactoredCategoricalPolicy,
    Factors,
    SquashedGaussianPolicy,
    log_one_minus_square_of_tanh,
)
from sb3_muzero.search.backends.numba.candidates import CandidateRules, make_scratch, propose_roots

RAGGED = [3, 1, 5, 2]


def gaussian(size: int = 7, dim: int = 3, scale: float = 2.0) -> SquashedGaussianPolicy:
    return SquashedGaussianPolicy(scale * th.randn(size, 2 * dim, dtype=th.float64))


def reference(policy: SquashedGaussianPolicy) -> D.Distribution:
    base = D.Normal(policy.mean.unsqueeze(-2), policy.std.unsqueeze(-2))
    return D.Independent(D.TransformedDistribution(base, [D.TanhTransform()]), 1)


def test_log_densities_of_a_squashed_gaussian():
    policy = gaussian()
    candidates = th.empty(7, 5, 3, dtype=th.float64).uniform_(-0.99, 0.99)
    np.testing.assert_allclose(policy.log_prob(candidates), reference(policy).log_prob(candidates), rtol=1e-9)
    of_sb3 = SquashedDiagGaussianDistribution(3).proba_distribution(policy.mean, policy.std.log())
    np.testing.assert_allclose(policy.log_prob(candidates)[:, 0], of_sb3.log_prob(candidates[:, 0]), rtol=1e-3)


def test_densities_of_a_squashed_gaussian_integrate_to_one():
    policy = SquashedGaussianPolicy(th.tensor([[0.3, -2.0], [-1.0, -3.0]], dtype=th.float64))
    grid = th.linspace(-MAX_ACTION, MAX_ACTION, 200_001, dtype=th.float64)
    density = policy.log_prob(grid.reshape(1, -1, 1)).exp()
    np.testing.assert_allclose(th.trapezoid(density, grid), 1.0, atol=1e-4)


def test_extreme_candidates_have_finite_densities_and_gradients():
    outputs = th.full((1, 2), 100.0, requires_grad=True)
    policy = SquashedGaussianPolicy(outputs)
    log_probs = policy.log_prob(th.tensor([[[-1.0], [1.0], [0.0]]]))
    (log_probs.sum() + policy.entropy(th.ones(1)).sum()).backward()
    assert log_probs.isfinite().all() and outputs.grad is not None and outputs.grad.isfinite().all()
    assert policy.sample(th.tensor([[[1e3], [-1e3]]])).abs().max() <= MAX_ACTION


@pytest.mark.parametrize("distance", [0.5, 10.0])
def test_candidates_of_an_old_policy_pull_the_mean_and_widen_the_policy(distance):
    policy = SquashedGaussianPolicy(th.tensor([[0.0, -4.0]], dtype=th.float64, requires_grad=True))
    candidate = th.tanh(distance * policy.std).detach()
    gradients = th.autograd.grad(-policy.log_prob(candidate.unsqueeze(0)).sum(), (policy.mean, policy.std))
    expected = -distance / policy.std, (1 - distance**2) / policy.std
    np.testing.assert_allclose(gradients, [tensor.detach() for tensor in expected])


def test_entropy_of_a_squashed_gaussian():
    policy = gaussian(size=6, dim=2, scale=1.0)
    drawn = reference(policy).base_dist.sample((400_000,))
    expected = -reference(policy).log_prob(drawn.clamp(-1 + 1e-9, 1 - 1e-9)).mean(0).squeeze(-1)
    weights = th.tensor([1.0, 0.0, 0.5, 1.0, 1.0, 2.0], dtype=th.float64)
    np.testing.assert_allclose(policy.entropy(weights), expected * weights, atol=0.02)


def test_the_derivative_of_tanh_is_accurate_far_out():
    x = th.tensor([-40.0, -3.0, 0.0, 0.5, 40.0], dtype=th.float64)
    expected = np.array([np.log(4) - 80, np.log1p(-(np.tanh(3) ** 2)), 0.0, np.log1p(-(np.tanh(0.5) ** 2)), np.log(4) - 80])
    np.testing.assert_allclose(log_one_minus_square_of_tanh(x), expected, atol=1e-9)


def test_samples_of_a_squashed_gaussian_follow_the_noise():
    policy = gaussian()
    noise = th.randn(7, 4, 3, dtype=th.float64)
    expected = th.tanh(policy.mean.unsqueeze(1) + policy.std.unsqueeze(1) * noise)
    np.testing.assert_allclose(policy.sample(noise), expected.clamp(-MAX_ACTION, MAX_ACTION), rtol=1e-9)
    np.testing.assert_allclose(policy.mode(), th.tanh(policy.mean).clamp(-MAX_ACTION, MAX_ACTION), rtol=1e-9)


@pytest.mark.parametrize("sizes", [RAGGED, [4, 4], [6]])
def test_factored_categorical(sizes):
    factors = Factors(sizes)
    logits = th.randn(9, sum(sizes), dtype=th.float64)
    policy = FactoredCategoricalPolicy(logits, factors)
    parts = [D.Categorical(logits=part) for part in logits.split(list(sizes), -1)]
    everything = factors.all_actions(th.device("cpu"))
    assert len(set(map(tuple, everything.tolist()))) == np.prod(sizes)
    expected = sum(part.log_prob(everything[:, i : i + 1]).T for i, part in enumerate(parts))
    found = policy.log_prob(everything.expand(9, -1, -1))
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(found.exp().sum(-1), 1.0)
    weights = th.rand(9, dtype=th.float64)
    np.testing.assert_allclose(policy.entropy(weights), sum(part.entropy() for part in parts) * weights, rtol=1e-9)
    np.testing.assert_array_equal(policy.mode(), th.stack([part.probs.argmax(-1) for part in parts], -1))
    np.testing.assert_array_equal(policy.mode(), policy.sample(th.rand(9, 1, len(sizes)))[:, 0])


@pytest.mark.parametrize("temperature", [1.0, WIDE])
def test_samples_of_a_factored_categorical_have_its_frequencies(temperature):
    factors, logits = Factors(RAGGED), th.randn(1, sum(RAGGED), dtype=th.float64)
    drawn = FactoredCategoricalPolicy(logits, factors).sample(temperature + th.rand(1, 100_000, len(RAGGED)))[0]
    for component, part in enumerate(logits[0].split(RAGGED)):
        found = F.one_hot(drawn[:, component], len(part)).double().mean(0)
        np.testing.assert_allclose(found, (part / temperature).softmax(0), atol=0.01)


MASKS = th.tensor([[True, False, True, True, False, False, True, False, False, False, True]])
ENDS = th.tensor([0.0, 1e-30, 2**-24, 0.5, 1 - 2**-20])


def test_illegal_values_are_never_drawn():
    policy = FactoredCategoricalPolicy(10 * th.randn(1, sum(RAGGED)), Factors(RAGGED), MASKS)
    for temperature in (0.0, 1.0, WIDE):
        uniform = th.cat([ENDS[:, None].expand(-1, len(RAGGED)), th.rand(10_000, len(RAGGED))])
        drawn = policy.sample((temperature + uniform.clamp(max=1 - 2**-20))[None])[0]
        seen = [set(column.tolist()) for column in drawn.T]
        assert seen[0] <= {0, 2} and seen[1] == {0} and seen[2] == {2} and seen[3] == {1}
    assert policy.log_prob(th.tensor([[[1, 0, 2, 1]]])).item() < -1e7


def compiled_samples(factors: Factors, logits: th.Tensor, noise: th.Tensor, masks: th.Tensor | None = None) -> np.ndarray:
    num_rows, num_drawn, dim = noise.shape
    rules = CandidateRules(np.append(factors.offsets, factors.num_values), 0.0, 1.0, np.zeros((0, dim), np.int64), True)
    candidates = np.zeros((num_rows, num_drawn * dim), np.float32)
    prior = np.zeros((num_rows, num_drawn), np.float32)
    legal = np.zeros((num_rows, 0), np.bool_) if masks is None else masks.numpy()
    propose_roots(rules, logits.numpy(), noise.numpy(), legal, candidates, prior, make_scratch(rules))
    return candidates.reshape(noise.shape)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("sizes", [RAGGED, [4, 4], [40], [2_000]])
def test_compiled_samples_are_those_of_pytorch(sizes, masked):
    factors, dim = Factors(sizes), len(sizes)
    logits = 5 * th.randn(30, factors.num_values)
    masks = th.rand(logits.shape) < 0.5
    masks[:, factors.offsets] = True
    masks = masks if masked else None
    uniform = th.cat([ENDS[:, None].expand(-1, dim).expand(30, -1, -1), (1 - 2**-20) * th.rand(30, 60, dim)], dim=1)
    noise = uniform + th.tensor([0.0, 1.0, WIDE])[th.randint(3, (30, 65, 1))]
    drawn = FactoredCategoricalPolicy(logits, factors, masks).sample(noise).numpy()
    found = compiled_samples(factors, logits, noise, masks)
    assert (found == drawn).all(-1).mean() > 0.999, "but for rounding"
    assert (found >= 0).all() and (found < factors.sizes).all()
    if masks is not None:
        legal = np.take_along_axis(masks.numpy()[:, None], found.astype(np.int64) + factors.offsets, axis=-1)
        assert legal.all()


def test_improbable_values_at_the_ends_are_never_drawn():
    logits = th.full((1, 2_000), -200.0)
    logits[:, 500:1_500] = th.randn(1_000)
    noise = (ENDS + th.tensor([1.0, WIDE])[:, None]).reshape(1, -1, 1)
    factors = Factors([2_000])
    for drawn in (FactoredCategoricalPolicy(logits, factors).sample(noise).numpy(), compiled_samples(factors, logits, noise)):
        assert drawn.min() >= 500 and drawn.max() < 1_500 and len(np.unique(drawn)) > 2


def test_samples_of_outputs_that_are_not_numbers_are_in_range():
    logits, factors = th.full((1, sum(RAGGED)), th.nan), Factors(RAGGED)
    noise = th.tensor([0.5, 1.5, WIDE + 0.5]).reshape(1, 3, 1).expand(-1, -1, len(RAGGED)).contiguous()
    for drawn in (FactoredCategoricalPolicy(logits, factors).sample(noise).numpy(), compiled_samples(factors, logits, noise)):
        assert (drawn >= 0).all() and (drawn < factors.sizes).all()


def test_gradients_take_no_memory_for_each_value_of_each_candidate():
    logits = th.randn(4, 2_000, requires_grad=True)
    with profile(profile_memory=True) as found:
        log_probs = FactoredCategoricalPolicy(logits, Factors([2_000])).log_prob(th.randint(2_000, (4, 64, 1)))
        log_probs.sum().backward()
    assert max(event.cpu_memory_usage for event in found.events()) <= 4 * logits.nbytes


def test_evenly_spaced_values():
    factors = Factors([5, 5], th.float32, -1.0, 0.5)
    values = factors.values(th.tensor([[0, 4], [2, 1]]))
    assert values.tolist() == [[-1.0, 1.0], [0.0, -0.5]] and values.dtype == th.float32
    assert factors.indices(values + 1e-6).tolist() == [[0, 4], [2, 1]]
