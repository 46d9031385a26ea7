"""Compiled searches with chance equal those of the same networks in PyTorch."""

import numpy as np
import pytest
import torch as th
from test_compiled_model import make_policy, observations, scramble
from torch import nn
from torch.nn.functional import one_hot

from sb3_muzero.models.mlp import Dynamics, Prediction
from sb3_muzero.models.normalization import SimNorm
from sb3_muzero.search import (
    AfterstateOutput,
    ChanceModel,
    CompiledChanceModel,
    RootOutput,
    UnsupportedModelError,
    gumbel_muzero_search,
    muzero_search,
)

LATENT, BINS, DISCOUNT = 16, 21, 0.9
SEARCHES = {
    gumbel_muzero_search: {"gumbel_scale": 0.0},
    muzero_search: {"dirichlet_fraction": 0.0, "temperature": 0.0},
}
both_searches = pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.__name__)


class ChanceEncoder(nn.Module):
    is_one_hot = True

    def __init__(self, num_outcomes):
        super().__init__()
        self.num_outcomes = num_outcomes

    def forward(self, outcome):
        return one_hot(outcome, self.num_outcomes).float()


def make_model(num_actions, num_outcomes, seed=0):
    """A latent model of random weights, with afterstates."""
    policy = make_policy(num_actions, seed=seed)
    model = policy.latent_model
    model.action_encoder = ChanceEncoder(num_outcomes)
    model.dynamics = Dynamics(LATENT, num_outcomes, BINS, [24], nn.SiLU, "simnorm")
    model.afterstate_dynamics = nn.Sequential(
        nn.Linear(LATENT + num_actions, 24), nn.LayerNorm(24), nn.SiLU(), nn.Linear(24, LATENT), SimNorm()
    )
    model.afterstate_prediction = Prediction(LATENT, num_outcomes, BINS, [24], nn.SiLU)
    scramble(policy, seed)
    return model.eval()


def in_torch(model, num_actions, num_outcomes):
    def act(latent, action):
        after = model.afterstate_dynamics(th.cat([latent, one_hot(action, num_actions).float()], dim=1))
        predicted = model.afterstate_prediction(after)
        return AfterstateOutput(predicted.policy_logits, model.value_support.expectation(predicted.value_logits), after)

    def step(afterstate, outcome):
        return model.recurrent_inference(afterstate, outcome, DISCOUNT)

    return ChanceModel(act, step, num_outcomes)


@both_searches
@pytest.mark.parametrize(("num_actions", "num_outcomes"), [(3, 32), (5, 2), (1, 1)])
@pytest.mark.parametrize("batch_size", [1, 9, 40])
@th.no_grad()
def test_equal_trees(search, num_actions, num_outcomes, batch_size):
    model = make_model(num_actions, num_outcomes)
    compiled = CompiledChanceModel(model, DISCOUNT, num_outcomes)
    root = model.initial_inference(observations(batch_size))
    found = search(RootOutput(*(part.numpy() for part in root)), compiled, 24, **SEARCHES[search])
    expected = search(root, in_torch(model, num_actions, num_outcomes), 24, **SEARCHES[search])
    if num_outcomes > 1 and batch_size > 1:
        kinds = found.tree.is_chance_node[:, 1:]
        assert (kinds != kinds[:1]).any(), "leaves of both kinds in one simulation"
    for name, array in expected.tree._asdict().items():
        np.testing.assert_allclose(getattr(found.tree, name), array, rtol=1e-3, atol=1e-3, err_msg=name)
    np.testing.assert_array_equal(found.action, expected.action)
    np.testing.assert_allclose(found.action_weights, expected.action_weights, atol=1e-3)


@th.no_grad()
def test_parameters_are_read_in_place_and_a_change_of_structure_shows():
    model = make_model(3, 4)
    compiled = CompiledChanceModel(model, DISCOUNT, 4)
    root = model.initial_inference(observations(9))
    for parameter in model.afterstate_dynamics.parameters():
        parameter.mul_(-0.5)
    assert compiled.is_current()
    found, expected = (
        gumbel_muzero_search(root, recurrent_fn, 12, gumbel_scale=0.0) for recurrent_fn in (compiled, in_torch(model, 3, 4))
    )
    np.testing.assert_allclose(found.tree.node_values, expected.tree.node_values, atol=1e-3)
    model.afterstate_dynamics[2] = nn.Tanh()
    assert not compiled.is_current()


@both_searches
@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("afterstate_dynamics", "afterstate_fn's (value|chance_logits) must be .* got nan in row 0"),
        ("dynamics", "chance_fn's reward must be finite .* got nan in row 0"),
    ],
)
@th.no_grad()
def test_what_is_not_finite_is_named(search, network, message):
    model = make_model(3, 4)
    for parameter in getattr(model, network).parameters():
        parameter.fill_(np.nan)
    root = model.initial_inference(observations(20))
    with pytest.raises(ValueError, match=message):
        search(root, CompiledChanceModel(model, DISCOUNT, 4), 4, max_depth=2)


def test_what_is_not_supported_is_named():
    model = make_model(3, 4)
    with pytest.raises(UnsupportedModelError, match="afterstate prediction of 5 outcomes, not 4, is not supported"):
        model.afterstate_prediction = Prediction(LATENT, 5, BINS, [24], nn.SiLU)
        CompiledChanceModel(model, DISCOUNT, 4)
    with pytest.raises(UnsupportedModelError, match="with 16 inputs is not supported"):
        model.afterstate_dynamics = nn.Sequential(nn.Linear(LATENT + 3, 8))
        CompiledChanceModel(model, DISCOUNT, 4)
    with pytest.raises(UnsupportedModelError, match="GRUCell is not supported"):
        model.afterstate_dynamics = nn.GRUCell(LATENT + 3, LATENT)
        CompiledChanceModel(model, DISCOUNT, 4)
