"""Categorical supports: two-hot codes, expectations, and bounds that follow the targets."""

from copy import deepcopy

import pytest
import torch as th

from sb3_muzero.models.categorical import CategoricalSupport


def code(support: CategoricalSupport, scalar: float) -> th.Tensor:
    """The two-hot code, read off the cross-entropy's gradient: d CE / d logits = softmax - code."""
    logits = th.zeros(support.num_bins, requires_grad=True)
    support.cross_entropy(logits, th.tensor(scalar)).backward()
    return th.softmax(logits.detach(), -1) - logits.grad


@pytest.mark.parametrize("scalar", [-3.0, -2.5, 0.0, 0.3, 1.0, 2.999, 3.0])
def test_code_has_mass_one_and_the_scalars_mean(scalar):
    support = CategoricalSupport(7, (-3.0, 3.0))
    two_hot = code(support, scalar)
    assert two_hot.sum().item() == pytest.approx(1.0, abs=1e-6)
    assert (two_hot > 1e-6).sum() <= 2
    assert (two_hot @ support.bins).item() == pytest.approx(scalar, abs=1e-5)


def test_scalars_outside_count_as_the_nearest_bound_and_are_reported():
    support = CategoricalSupport(5, (0.0, 4.0))
    assert th.allclose(code(support, 9.0), th.tensor([0.0, 0, 0, 0, 1]), atol=1e-6)
    assert support.out_of_range(th.tensor([-1.0, 0.0, 4.0, 4.1])).tolist() == [True, False, False, True]
    assert support.expanded_bounds((9.0, 9.0), (0.0, 100.0), 0.5) is None, "fixed bounds never move"


def test_of_nan_the_cross_entropy_is_nan():
    """And no bin that is not there, which on a GPU would end everything."""
    support = CategoricalSupport(5, (0.0, 4.0))
    logits = th.zeros(3, 5, requires_grad=True)
    losses = support.cross_entropy(logits, th.tensor([1.0, th.nan, th.inf]))
    assert losses.isnan().tolist() == [False, True, False]
    losses.sum().backward()
    assert logits.grad is not None and logits.grad[[0, 2]].isfinite().all()


def test_uniform_head_predicts_the_middle():
    support = CategoricalSupport(11, (-1.0, 3.0))
    assert support.expectation(th.zeros(2, 3, 11)).flatten().tolist() == pytest.approx([1.0] * 6)


def test_headroom_is_on_the_growing_side_and_within_the_limits():
    support = CategoricalSupport(11)
    assert support.expanded_bounds((0.0, 0.0), (0.0, 0.0), 0.5) is None
    assert support.expanded_bounds((2.0, 4.0), (-100.0, 100.0), 0.5) == (0.0, 6.0)
    assert support.expanded_bounds((4.0, 4.0), (0.0, 5.0), 0.5) == (0.0, 5.0)
    support.bounds.copy_(th.tensor([0.0, 6.0]))
    assert support.expanded_bounds((-2.0, -2.0), (-100.0, 100.0), 0.5) == (-6.0, 6.0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_moving_the_bounds_keeps_what_the_head_predicts(scale):
    th.manual_seed(0)
    support, head = CategoricalSupport(101), th.nn.Linear(8, 101)
    support.bounds.copy_(th.tensor([0.0, 10.0]) * scale)
    inputs, targets = th.randn(32, 8), th.rand(32) * 9 * scale
    optimizer = th.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        support.cross_entropy(head(inputs), targets).mean().backward()
        optimizer.step()
    before = support.expectation(head(inputs))
    support.rescale_head((-5.0 * scale, 15.0 * scale), head)
    after = support.expectation(head(inputs))
    assert (after - before).abs().mean() < 0.3 * scale


OPTIMIZERS = {
    "AdamW": lambda parameters: th.optim.AdamW(parameters, lr=0.1, weight_decay=0.0, fused=True),
    "AMSGrad": lambda parameters: th.optim.Adam(parameters, lr=0.1, amsgrad=True),
    "SGD with momentum": lambda parameters: th.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "SGD": lambda parameters: th.optim.SGD(parameters, lr=0.1),
}


@pytest.mark.parametrize("bounds, old_bins", [((0.0, 8.0), [0, 2, 4, 4, 4]), ((-4.0, 4.0), [0, 0, 0, 2, 4])])
@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_momentum_moves_a_bin_as_it_would_have_moved_before_the_bounds(make_optimizer, bounds, old_bins):
    """Bins beyond the old bounds move as the outermost ones."""
    support, head = CategoricalSupport(5), th.nn.Linear(3, 5)
    support.bounds.copy_(th.tensor([0.0, 4.0]))
    optimizer = make_optimizer(head.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        support.cross_entropy(head(th.randn(8, 3)), 4 * th.rand(8)).mean().backward()
        optimizer.step()

    def momentum(head: th.nn.Linear, optimizer: th.optim.Optimizer) -> list[th.Tensor]:
        """How a step without gradient moves the head."""
        before = [parameter.detach().clone() for parameter in head.parameters()]
        for parameter in head.parameters():
            parameter.grad = th.zeros_like(parameter)
        optimizer.step()
        return [parameter.detach() - old for parameter, old in zip(head.parameters(), before, strict=True)]

    unchanged = deepcopy((head, optimizer))
    support.rescale_head(bounds, head, optimizer)
    for moved, expected in zip(momentum(head, optimizer), momentum(*unchanged), strict=True):
        th.testing.assert_close(moved, expected[old_bins])
    assert (moved != 0).any() or not optimizer.defaults["momentum"], "there was momentum"


def test_second_moments_of_new_bins_are_between_those_of_their_neighbours():
    support, head = CategoricalSupport(5), th.nn.Linear(3, 5)
    support.bounds.copy_(th.tensor([0.0, 4.0]))
    optimizer = th.optim.AdamW(head.parameters())
    support.cross_entropy(head(th.randn(8, 3)), 4 * th.rand(8)).mean().backward()
    optimizer.step()
    old = optimizer.state[head.bias]["exp_avg_sq"].clone()
    support.rescale_head((0.0, 6.0), head, optimizer)  # bins at 0, 1.5, 3, 4.5 and 6
    new = optimizer.state[head.bias]["exp_avg_sq"]
    th.testing.assert_close(new, th.stack([old[0], (old[1] + old[2]) / 2, old[3], old[4], old[4]]))


def test_first_bounds_start_at_the_only_scalar_so_far():
    support, head = CategoricalSupport(101), th.nn.Linear(4, 101)
    assert support.expectation(head(th.randn(3, 4))).tolist() == [0.0] * 3
    support.rescale_head((-10.0, 10.0), head)
    assert support.expectation(head(th.randn(3, 4))).abs().max() < 0.5


@pytest.mark.parametrize("bounds", [(1.0, 1.0), (2.0, 1.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_bad_bounds(bounds):
    with pytest.raises(ValueError, match="must be finite and increasing"):
        CategoricalSupport(11, bounds)


def test_too_few_bins():
    with pytest.raises(ValueError, match="num_bins"):
        CategoricalSupport(1)
