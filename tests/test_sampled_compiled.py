"""Compiled searches that draw candidates find what those in PyTorch find with the same noise."""

import numpy as np
import pytest
import torch as th
from conftest import TinyEnv, scramble, tiny_model
from gymnasium import spaces
from torch import nn

from sb3_muzero.search import UnsupportedModelError
from sb3_muzero.search.sampled import SampledPlanner

BOX, BOXES = spaces.Box(-2.0, 2.0, (1,), np.float32), spaces.Box(-2.0, 2.0, (6,), np.float32)
CASES = {
    "Gaussian": (BOX, {}),
    "Gaussian of 6 dimensions": (BOXES, {}),
    "bins": (BOX, {"num_bins": 11}),
    "bins of 6 dimensions": (BOXES, {"num_bins": 5}),
    "all bins": (BOX, {"num_bins": 7}),
    "MultiDiscrete": (spaces.MultiDiscrete([3, 1, 5, 4]), {"num_candidates": 9, "num_inner_candidates": 3}),
    "all of a MultiDiscrete": (spaces.MultiDiscrete([3, 2]), {}),
    "MultiBinary": (spaces.MultiBinary(12), {}),
}


def make(name: str, seed: int = 5, **kwargs):
    space, action_kwargs = CASES[name]
    env = TinyEnv(action_space=space)
    model = tiny_model(env, num_simulations=16, policy_kwargs=dict(action_kwargs=action_kwargs), **kwargs)
    generator = th.Generator().manual_seed(seed)
    with th.no_grad():  # less than `scramble` does: where outputs are saturated, many candidates have equal values
        for parameter in model.policy.latent_model.parameters():
            parameter.add_(0.3 * th.randn(parameter.shape, generator=generator).to(parameter.device))
        for support in (model.policy.latent_model.value_support, model.policy.latent_model.reward_support):
            support.bounds.copy_(th.tensor([-3.0, 5.0]))
    return model


def plan_both(policy, obs, monkeypatch, **kwargs):
    assert policy.uncompiled_reason is None
    results = []
    for compiled in (True, False):
        if not compiled:

            def refuse(self, model):
                raise UnsupportedModelError

            monkeypatch.setattr(SampledPlanner, "compiled_model", refuse)
        np.random.seed(0)
        results.append(policy.plan(obs, **kwargs))
    monkeypatch.undo()
    return results


@pytest.mark.parametrize("search", ["gumbel", "puct"])
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_the_same_as_in_pytorch(name, deterministic, search, monkeypatch):
    policy = make(name, search=search).policy
    for batch_size in (1, 5, 40):
        found, expected = plan_both(policy, th.randn(batch_size, 3), monkeypatch, deterministic=deterministic)
        np.testing.assert_allclose(found.candidates, expected.candidates, atol=1e-4)
        assert found.candidates.dtype == expected.candidates.dtype == policy.actions.dtype
        is_same = (found.tree.parents == expected.tree.parents).all(1)
        assert is_same.mean() >= 0.97, "but for ties"
        np.testing.assert_array_equal(found.action[is_same], expected.action[is_same])
        for field in ("action_weights", "qvalues", "value"):
            results = (getattr(output, field)[is_same] for output in (found, expected))
            np.testing.assert_allclose(*results, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_candidates_of_all_nodes_are_returned(name, monkeypatch):
    """The model, given the candidates on the way to a node, predicts what the tree says."""
    policy, obs = make(name).policy, th.randn(40, 3)
    rows = np.arange(len(obs))
    for search in plan_both(policy, obs, monkeypatch):
        tree, latents = search.tree, policy.represent(obs)[None].repeat(17, 1, 1)
        np.testing.assert_array_equal(search.node_candidates[:, 0], search.candidates)
        for node in range(1, 17):
            parents, actions = tree.parents[:, node], tree.action_from_parent[:, node]
            chosen = th.from_numpy(search.node_candidates[rows, parents, actions].astype(policy.actions.dtype))
            with th.no_grad():
                output = policy.latent_model.recurrent_inference(latents[parents, rows], chosen, 0.99)
            latents[node] = output.latent
            np.testing.assert_allclose(output.reward, tree.children_rewards[rows, parents, actions], atol=1e-4)
            np.testing.assert_allclose(output.value, tree.raw_values[:, node], atol=1e-4)


@pytest.mark.parametrize("name", ["MultiDiscrete", "all of a MultiDiscrete", "MultiBinary"])
def test_the_same_with_masks(name, monkeypatch):
    policy = make(name).policy
    actions = policy.actions
    masks = np.random.default_rng(0).random((20, actions.mask_dim)) < 0.5
    masks[:, actions.factors.offsets] |= ~np.logical_or.reduceat(masks, actions.factors.offsets, axis=1)
    found, expected = plan_both(policy, th.randn(20, 3), monkeypatch, action_masks=masks)
    np.testing.assert_array_equal(found.candidates, expected.candidates)
    np.testing.assert_allclose(found.action_weights, expected.action_weights, atol=1e-4)
    assert actions.is_legal(found.selected_actions, masks).all()


def test_the_number_of_threads_changes_nothing():
    policy, obs = make("Gaussian of 6 dimensions").policy, th.randn(100, 3)
    expected = policy.plan(obs, deterministic=True)
    th.set_num_threads(3)
    try:
        found = policy.plan(obs, deterministic=True)
    finally:
        th.set_num_threads(1)
    np.testing.assert_array_equal(found.candidates, expected.candidates)
    np.testing.assert_array_equal(found.action_weights, expected.action_weights)


def test_training_changes_what_is_planned():
    model = make("Gaussian")
    obs = th.randn(4, 3)
    before = model.policy.plan(obs, deterministic=True)
    scramble(model, 8)
    assert np.abs(model.policy.plan(obs, deterministic=True).candidates - before.candidates).max() > 1e-3


def test_other_encoders_are_not_supported():
    policy = make("MultiDiscrete").policy
    policy.latent_model.action_encoder = nn.Identity()
    assert "encoding of actions" in str(policy.uncompiled_reason)


def with_policy_head(policy, num_outputs: int | None = None, value: float = 0.0):
    head = policy.latent_model.prediction.policy_head
    policy.latent_model.prediction.policy_head = nn.Linear(head.in_features, num_outputs or head.out_features)
    nn.init.constant_(policy.latent_model.prediction.policy_head.bias, value)
    return policy


@pytest.mark.parametrize("activation_fn", [nn.ReLU, nn.Softplus], ids=["compiled", "PyTorch"])
@pytest.mark.parametrize("name", CASES)
def test_outputs_of_the_policy_head_are_checked(name, activation_fn):
    space, action_kwargs = CASES[name]
    policy_kwargs = dict(activation_fn=activation_fn, action_kwargs=action_kwargs)
    policy = tiny_model(TinyEnv(action_space=space), policy_kwargs=policy_kwargs).policy
    assert (policy.uncompiled_reason is None) == (activation_fn is nn.ReLU)
    obs, num_outputs = th.zeros(2, 3), policy.actions.num_policy_outputs
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match=rf"root's output of the policy head must be finite and .*, got {value} in row 0"):
            with_policy_head(policy, value=value).plan(obs)
    for width in (num_outputs - 1, num_outputs + 1):
        expected = rf"of the policy head must be .* of shape \[2, {num_outputs}\], got shape \[2, {width}\]"
        with pytest.raises(ValueError, match=expected):
            with_policy_head(policy, width).plan(obs)
