"""What must hold of any search: it equals the slow reference, and what the papers promise comes true."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import ReferenceSearch
from tabular import TabularModel, bandit, random_model

from sb3_muzero.search import RecurrentOutput, RootOutput, gumbel_muzero_search, muzero_search
from sb3_muzero.search.backends.torch import TorchBackend
from sb3_muzero.search.selection import mixed_value
from sb3_muzero.search.tree import UNVISITED, flatten, instantiate_tree

DETERMINISTIC = {
    gumbel_muzero_search: {"gumbel_scale": 0.0},
    muzero_search: {"dirichlet_fraction": 0.0, "temperature": 0.0},
}
both_searches = pytest.mark.parametrize("search", DETERMINISTIC, ids=lambda search: search.__name__)
both_scopes = pytest.mark.parametrize("scope", ["node", "tree"])
START = np.zeros(1, np.int64)


@st.composite
def problems(draw):
    num_actions = draw(st.integers(1, 7))
    batch_size = draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    invalid = rng.random((batch_size, num_actions)) < draw(st.sampled_from([0.0, 0.4]))
    invalid[np.arange(batch_size), rng.integers(num_actions, size=batch_size)] = False
    num_states = draw(st.sampled_from([2, 6, 60]))
    return {
        "model": random_model(seed, num_states, num_actions, draw(st.sampled_from(["single", "two_player", "random"]))),
        "states": rng.integers(num_states, size=batch_size),
        "num_simulations": draw(st.integers(1, 48)),
        "invalid": invalid,
        "max_depth": draw(st.sampled_from([None, 1, 2, 4])),
        "scope": draw(st.sampled_from(["node", "tree"])),
        "min_range": draw(st.sampled_from([1e-8, 0.1, 3.0])),
        "rng": rng,
    }


def assert_same_as_reference(output, row, reference):
    if reference.close_call:
        return
    tree = output.tree
    seen = set()
    for node in reference.nodes():
        seen.add(node.index)
        actions = range(reference.num_actions)
        expected_index = [node.children[a][2].index if a in node.children else UNVISITED for a in actions]
        assert tree.children_index[row, node.index].tolist() == expected_index
        assert tree.children_visits[row, node.index].tolist() == [node.visits(a) for a in actions]
        assert tree.node_visits[row, node.index] == len(node.returns)
        assert tree.node_values[row, node.index] == pytest.approx(node.value, abs=1e-4)
        for action, (_, _, child) in node.children.items():
            assert tree.parents[row, child.index] == node.index
            assert tree.action_from_parent[row, child.index] == action
            assert tree.node_depths[row, child.index] == tree.node_depths[row, node.index] + 1
            assert tree.children_qvalues[row, node.index, action] == pytest.approx(node.q(action), abs=1e-4)
    assert set(np.flatnonzero(tree.node_visits[row])) == seen
    assert output.action[row] == reference.action
    tolerance = 1e-4 + reference.tolerance
    np.testing.assert_allclose(output.action_weights[row], reference.action_weights, atol=tolerance)
    assert tree.min_qvalue[row] == pytest.approx(min(reference.seen), abs=1e-4)
    assert tree.max_qvalue[row] == pytest.approx(max(reference.seen), abs=1e-4)


@given(problem=problems(), max_considered=st.integers(1, 9), value_scale=st.sampled_from([0.02, 0.1, 1.0]))
def test_gumbel_search_equals_reference(problem, max_considered, value_scale):
    model, rng = problem["model"], problem["rng"]
    gumbel = rng.gumbel(size=problem["invalid"].shape).astype(np.float32)
    output = gumbel_muzero_search(
        model.root(problem["states"]),
        model.step,
        problem["num_simulations"],
        action_masks=~problem["invalid"],
        max_depth=problem["max_depth"],
        root_gumbel=gumbel,
        max_num_considered_actions=max_considered,
        value_scale=value_scale,
        qvalue_scope=problem["scope"],
        min_qvalue_range=problem["min_range"],
    )
    for row, state in enumerate(problem["states"]):
        reference = ReferenceSearch(
            model,
            state,
            problem["num_simulations"],
            rule="gumbel",
            scope=problem["scope"],
            max_depth=problem["max_depth"],
            invalid=problem["invalid"][row],
            min_range=problem["min_range"],
            root_gumbel=gumbel[row],
            max_considered=max_considered,
            value_scale=value_scale,
            maxvisit_init=50.0,
        )
        assert_same_as_reference(output, row, reference)


@given(problem=problems(), pb_c_base=st.sampled_from([19652.0, 20.0]))
def test_puct_search_equals_reference(problem, pb_c_base):
    model = problem["model"]
    output = muzero_search(
        model.root(problem["states"]),
        model.step,
        problem["num_simulations"],
        action_masks=~problem["invalid"],
        max_depth=problem["max_depth"],
        pb_c_base=pb_c_base,
        dirichlet_fraction=0.0,
        temperature=0.0,
        qvalue_scope=problem["scope"],
        min_qvalue_range=problem["min_range"],
    )
    for row, state in enumerate(problem["states"]):
        reference = ReferenceSearch(
            model,
            state,
            problem["num_simulations"],
            rule="puct",
            scope=problem["scope"],
            max_depth=problem["max_depth"],
            invalid=problem["invalid"][row],
            min_range=problem["min_range"],
            pb_c_init=1.25,
            pb_c_base=pb_c_base,
        )
        assert_same_as_reference(output, row, reference)


@both_searches
@both_scopes
def test_close_calls_are_rare(search, scope):
    """The comparison above must not be empty: few roots may be excused."""
    rule = {"rule": "gumbel", "root_gumbel": np.zeros(4), "max_considered": 4, "value_scale": 0.1, "maxvisit_init": 50.0}
    if search is muzero_search:
        rule = {"rule": "puct", "pb_c_init": 1.25, "pb_c_base": 19652.0}
    common = {"scope": scope, "max_depth": None, "invalid": [False] * 4, "min_range": 1e-8}
    excused = [ReferenceSearch(random_model(seed, 60, 4), 0, 32, **common, **rule).close_call for seed in range(40)]
    assert sum(excused) <= 8


@both_searches
@both_scopes
def test_numpy_and_torch_models_give_equal_trees(search, scope):
    model = random_model(3, 30, 5)
    states = np.arange(6)
    options = DETERMINISTIC[search] | {"qvalue_scope": scope, "max_depth": 3}
    expected = search(model.root(states), model.step, 24, **options)
    found = search(model.torch_root(states), model.torch_step, 24, **options)
    for name, array in expected.tree._asdict().items():
        np.testing.assert_array_equal(getattr(found.tree, name), array, err_msg=name)
    np.testing.assert_array_equal(found.action, expected.action)
    assert all(isinstance(array, np.ndarray) for array in found[:5])
    assert found.candidates is None, "all actions in their order"
    assert found.action.dtype == np.int64 and found.action_weights.dtype == np.float32


@both_searches
def test_roots_of_a_batch_do_not_touch_each_other(search):
    model = random_model(4, 30, 4)
    together = search(model.root(np.arange(5)), model.step, 20, **DETERMINISTIC[search])
    for row in range(5):
        alone = search(model.root(np.arange(row, row + 1)), model.step, 20, **DETERMINISTIC[search])
        for name, array in alone.tree._asdict().items():
            np.testing.assert_array_equal(getattr(together.tree, name)[row], array[0], err_msg=name)


@both_searches
@pytest.mark.parametrize("latent", [np.zeros((3, 2, 4), np.float32), torch.zeros(3, 2, 4)], ids=["numpy", "torch"])
def test_model_is_called_once_per_simulation_with_latents_of_its_kind(search, latent):
    calls = []

    def step(state, action):
        calls.append((state, action))
        return RecurrentOutput(np.ones(3), np.ones(3), np.zeros((3, 2)), np.ones(3), state + 1)

    search(RootOutput(np.zeros((3, 2)), np.zeros(3), latent), step, 7)
    assert len(calls) == 7
    for state, action in calls:
        assert type(state) is type(action) is type(latent)
        assert state.shape == latent.shape and state.dtype == latent.dtype
        assert tuple(action.shape) == (3,) and str(action.dtype).endswith("int64")
    assert calls[0][0].sum() == 0


@both_searches
def test_latents_follow_the_path(search):
    """With the path of actions as the latent, every step must start from its parent's path."""

    def step(path, action):
        batch = np.arange(len(path))
        path = path.copy()
        path[batch, (path >= 0).sum(axis=1)] = action
        rng = np.random.default_rng(path[path >= 0].sum())
        return RecurrentOutput(rng.normal(size=2), np.full(2, 0.9), rng.normal(size=(2, 3)), rng.normal(size=2), path)

    paths = []

    def recording_step(path, action):
        output = step(path, action)
        paths.append(output.latent)
        return output

    root = RootOutput(np.zeros((2, 3)), np.zeros(2), np.full((2, 12), -1))
    tree = search(root, recording_step, 12, **DETERMINISTIC[search]).tree
    for row in range(2):
        for node in range(1, 13):
            actions, ancestor = [], node
            while ancestor:
                actions.insert(0, tree.action_from_parent[row, ancestor])
                ancestor = tree.parents[row, ancestor]
            path = paths[node - 1][row]
            assert path[path >= 0].tolist() == actions


@both_searches
@pytest.mark.parametrize("max_depth", [1, 2, 3])
def test_max_depth_limits_the_tree(search, max_depth):
    model = random_model(5, 30, 2)
    output = search(model.root(START), model.step, 40, max_depth=max_depth, **DETERMINISTIC[search])
    assert output.tree.node_depths.max() == max_depth
    assert output.visit_counts.sum() == 40


@both_searches
def test_value_is_the_mean_of_own_value_and_returns(search):
    model = random_model(6, 30, 4)
    output = search(model.root(np.arange(8)), model.step, 4, **DETERMINISTIC[search])
    mean = (model.value[:8] + (output.visit_counts * output.qvalues).sum(axis=1)) / 5
    np.testing.assert_allclose(output.value, mean, atol=1e-5)
    np.testing.assert_array_equal(output.tree.children_visits.sum(axis=2), np.maximum(output.tree.node_visits - 1, 0))


@pytest.mark.parametrize("scope", ["node", "tree"])
def test_interior_visits_converge_to_the_improved_policy(scope):
    """Gumbel MuZero, Section 5: visit shares at interior nodes approach pi' within about 1 / N."""
    num_actions, num_simulations = 4, 400
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=num_actions)
    model = bandit(rng.normal(size=num_actions).tolist(), rewards.tolist())
    # State 2 leads into the bandit by its only valid action.
    model = TabularModel(
        next_state=np.vstack([model.next_state, np.zeros((1, num_actions), np.int64)]),
        reward=np.vstack([model.reward, np.zeros((1, num_actions), np.float32)]),
        discount=np.vstack([model.discount, np.ones((1, num_actions), np.float32)]),
        prior_logits=np.vstack([model.prior_logits, np.zeros((1, num_actions), np.float32)]),
        value=np.append(model.value, np.float32(0.0)),
    )
    invalid = np.array([[False, True, True, True]])
    root = model.root(np.array([2]))
    output = gumbel_muzero_search(
        root, model.step, num_simulations, action_masks=~invalid, qvalue_scope=scope, value_scale=1e-4, maxvisit_init=1e4
    )
    node = output.tree.children_index[0, 0, 0]
    shares = output.tree.children_visits[0, node] / output.tree.children_visits[0, node].sum()
    low, high = (rewards.min(), rewards.max()) if scope == "node" else (output.tree.min_qvalue[0], output.tree.max_qvalue[0])
    sigma = (1e4 + output.tree.children_visits[0, node].max()) * 1e-4 * (rewards - low) / (high - low)
    improved = np.exp(model.prior_logits[0] + sigma)
    np.testing.assert_allclose(shares, improved / improved.sum(), atol=2 / num_simulations)


EXTREMES = [
    (gumbel_muzero_search, {"min_qvalue_range": 1e-30}),
    (gumbel_muzero_search, {"min_qvalue_range": 1e18}),
    (gumbel_muzero_search, {"value_scale": 1e18, "maxvisit_init": 1e18}),
    (muzero_search, {"min_qvalue_range": 1e-30}),
    (muzero_search, {"pb_c_init": 1e18, "pb_c_base": 1e-30}),
]


@pytest.mark.parametrize(("search", "options"), EXTREMES)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e29])
def test_extreme_settings_and_values_give_a_policy(search, options, scale):
    """Where single precision overflows or vanishes. Equal values are a fresh model's."""
    model = random_model(5, 30, 4)
    model.reward, model.value = (np.float32(scale) * array for array in (model.reward, model.value))
    for scope in ("node", "tree"):
        output = search(model.root(np.arange(8)), model.step, 16, qvalue_scope=scope, **options)
        assert np.isfinite(output.action_weights).all()
        np.testing.assert_allclose(output.action_weights.sum(axis=1), 1.0, rtol=1e-5)
        assert (output.visit_counts.sum(axis=1) == 16).all()


def test_mixed_value_oracles():
    """v_mix is the raw value without visits, and (v + N Q) / (1 + N) with one visited action."""
    tree = flatten(instantiate_tree(1, 2, 2))
    tree.children_visits[:2], tree.children_prior_probs[:2], tree.raw_values[0] = 0, [0.8, 0.2], 0.5
    assert mixed_value(tree, 2, 0) == 0.5
    tree.children_visits[1], tree.children_qvalues[1] = 3, 3.0
    assert mixed_value(tree, 2, 0) == pytest.approx((0.5 + 3 * 3.0) / 4)


def layered_mdp():
    """Four layers of three states, each leading to the next; the last one ends the episode. With its exact Q values."""
    num_states, num_actions, horizon = 12, 3, 4
    rng = np.random.default_rng(1)
    layer = np.arange(num_states) // 3
    next_state = np.minimum((layer[:, None] + 1) * 3 + rng.integers(3, size=(num_states, num_actions)), num_states - 1)
    reward = rng.random((num_states, num_actions))
    discount = np.where(layer[:, None] == horizon - 1, 0.0, 0.9) * np.ones((1, num_actions))
    qvalues = np.zeros((num_states, num_actions))
    for _ in range(horizon):
        qvalues = reward + discount * qvalues.max(axis=1)[next_state]
    return TabularModel(next_state, reward, discount, np.zeros((num_states, num_actions)), np.zeros(num_states)), qvalues


@both_scopes
def test_puct_on_a_known_model_finds_exact_q(scope):
    """With the true dynamics but no idea of values or policy."""
    model, qvalues = layered_mdp()
    output = muzero_search(model.root(np.arange(3)), model.step, 4000, qvalue_scope=scope, **DETERMINISTIC[muzero_search])
    np.testing.assert_array_equal(output.action, qvalues[:3].argmax(axis=1))
    np.testing.assert_allclose(output.qvalues.max(axis=1), qvalues[:3].max(axis=1), atol=0.12)
    np.testing.assert_allclose(output.value, qvalues[:3].max(axis=1), atol=0.2)


@both_scopes
def test_gumbel_on_a_known_model_improves_the_policy(scope):
    """With true values it finds the exact Q of all actions one step ahead, and from a fair policy at any depth."""
    model, qvalues = layered_mdp()
    model.value = qvalues.max(axis=1)
    root = model.root(np.arange(3))
    output = gumbel_muzero_search(root, model.step, 12, qvalue_scope=scope, max_depth=1, gumbel_scale=0.0)
    np.testing.assert_allclose(output.qvalues, qvalues[:3], atol=1e-5)
    np.testing.assert_array_equal(output.action, qvalues[:3].argmax(axis=1))
    assert ((output.action_weights * qvalues[:3]).sum(axis=1) > qvalues[:3].mean(axis=1) + 0.1).all()
    model.prior_logits = 3.0 * qvalues
    root = model.root(np.arange(3))
    output = gumbel_muzero_search(root, model.step, 2000, qvalue_scope=scope, gumbel_scale=0.0)
    np.testing.assert_array_equal(output.action, qvalues[:3].argmax(axis=1))
    np.testing.assert_allclose(output.qvalues.max(axis=1), qvalues[:3].max(axis=1), atol=0.05)


@both_searches
@both_scopes
def test_two_player_signs(search, scope):
    """The mover of state 0 either wins at once (action 1) or lets the opponent win (action 0)."""
    model = TabularModel(
        next_state=np.array([[1, 2], [2, 2], [2, 2]]),
        reward=np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 0.0]]),
        discount=np.array([[-1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]),
        prior_logits=np.zeros((3, 2)),
        value=np.zeros(3),
    )
    output = search(model.root(np.array([0, 1, 2])), model.step, 200, qvalue_scope=scope, **DETERMINISTIC[search])
    assert output.action[:2].tolist() == [1, 1]
    assert output.qvalues[0, 1] == 1.0
    assert -1.0 <= output.qvalues[0, 0] < -0.5
    tree = output.tree
    child = tree.children_index[0, 0, 0]
    assert output.qvalues[0, 0] == pytest.approx(-tree.node_values[0, child])


def test_puct_ties_go_to_the_lowest_index_and_the_prior_decides_first():
    model = bandit([0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    tree = muzero_search(model.root(START), model.step, 3, **DETERMINISTIC[muzero_search]).tree
    assert tree.action_from_parent[0, 1:].tolist() == [0, 1, 2]
    model = bandit([0.0, 0.0, 1.0], [0.0, 0.0, 0.0])
    tree = muzero_search(model.root(START), model.step, 1, **DETERMINISTIC[muzero_search]).tree
    assert tree.action_from_parent[0, 1] == 2


def test_temperature_zero_breaks_ties_by_prior_then_index():
    model = bandit([0.0, 0.1, 0.1], [0.0, 0.0, 0.0])
    output = muzero_search(model.root(START), model.step, 3, **DETERMINISTIC[muzero_search])
    assert output.visit_counts[0].tolist() == [1, 1, 1] and output.action[0] == 1


def test_temperature_draws_in_proportion_to_visits():
    model = bandit([0.0, 1.0, 2.0], [0.0, 0.3, 0.1])
    root = model.root(np.zeros(20_000, np.int64))
    for temperature in (1.0, 0.5):
        output = muzero_search(
            root, model.step, 12, dirichlet_fraction=0.0, temperature=temperature, generator=np.random.default_rng(0)
        )
        expected = output.visit_counts[0] ** (1 / temperature)
        np.testing.assert_allclose(np.bincount(output.action) / 20_000, expected / expected.sum(), atol=0.02)
        np.testing.assert_allclose(output.action_weights, output.visit_counts / 12)


def test_policy_targets_of_puct_contain_dirichlet_noise_and_those_of_gumbel_no_noise():
    model = bandit([0.0, 1.0], [0.3, 0.3])
    root, generator = model.root(np.zeros(100, np.int64)), np.random.default_rng(0)
    noisy = muzero_search(root, model.step, 16, generator=generator)
    assert noisy.action_weights.std(axis=0).min() > 0.05
    clean = muzero_search(root, model.step, 16, dirichlet_fraction=0.0, generator=generator)
    assert len(set(clean.action.tolist())) == 2, "the temperature is no part of the target"
    gumbel = gumbel_muzero_search(root, model.step, 16, generator=generator)
    assert len(set(gumbel.action.tolist())) == 2
    for found in (clean, gumbel):
        np.testing.assert_array_equal(found.action_weights, found.action_weights[:1].repeat(100, axis=0))


@both_searches
def test_deterministic_searches_draw_nothing(search):
    model = random_model(7, 20, 3)
    generator = np.random.default_rng(0)
    before = generator.bit_generator.state
    state = np.random.get_state()[1].copy()
    search(model.root(START), model.step, 8, generator=generator, **DETERMINISTIC[search])
    search(model.root(START), model.step, 8, **DETERMINISTIC[search])
    assert generator.bit_generator.state == before
    np.testing.assert_array_equal(np.random.get_state()[1], state)


@both_searches
@pytest.mark.parametrize("use_global_state", [False, True])
def test_noise_follows_the_seed(search, use_global_state):
    model = random_model(8, 20, 6)
    root = model.root(np.arange(16))

    def run(seed):
        if use_global_state:
            np.random.seed(seed)
        return search(root, model.step, 8, generator=None if use_global_state else np.random.default_rng(seed))

    first, again, other = run(1), run(1), run(2)
    np.testing.assert_array_equal(first.action, again.action)
    np.testing.assert_array_equal(first.visit_counts, again.visit_counts)
    assert (first.visit_counts != other.visit_counts).any()


@pytest.mark.parametrize("alpha", [1e-3, 0.3, 10.0])
def test_dirichlet_noise_falls_on_valid_actions_only(alpha):
    model = bandit([0.0, 1.0, 2.0, 3.0], [0.0] * 4)
    root = model.root(np.zeros(4000, np.int64))
    invalid = np.broadcast_to([False, True, False, False], (4000, 4))
    output = muzero_search(
        root, model.step, 1, action_masks=~invalid, dirichlet_alpha=alpha, generator=np.random.default_rng(0)
    )
    probs = output.tree.children_prior_probs[:, 0]
    np.testing.assert_allclose(probs.sum(axis=1), 1.0, atol=1e-5)
    assert (probs[:, 1] == 0.0).all()
    prior = np.exp([0.0, -np.inf, 2.0, 3.0])
    np.testing.assert_allclose(probs.mean(axis=0), 0.75 * prior / prior.sum() + 0.25 * np.array([1, 0, 1, 1]) / 3, atol=0.02)
    noise = (probs - 0.75 * prior / prior.sum()) / 0.25
    np.testing.assert_allclose(noise[:, 0].var(), (2 / 9) / (3 * alpha + 1), rtol=0.1)


@both_searches
def test_masked_actions_are_never_touched(search):
    model = random_model(9, 30, 5)
    invalid = np.random.default_rng(0).random((16, 5)) < 0.5
    invalid[:, 2] = False
    for masks in (~invalid, torch.as_tensor(~invalid), (~invalid).astype(np.int8)):
        output = search(model.root(np.arange(16)), model.step, 30, action_masks=masks)
        assert (output.visit_counts[invalid] == 0).all()
        assert (output.action_weights[invalid] == 0).all()
        assert not invalid[np.arange(16), output.action].any()
        np.testing.assert_allclose(output.action_weights.sum(axis=1), 1.0, atol=1e-5)


@both_searches
def test_actions_without_prior_are_not_taken_inside(search):
    model = random_model(10, 30, 4)
    model.prior_logits[:, 1] = -np.inf
    output = search(model.root(np.arange(8)), model.step, 40, action_masks=np.tile([True, False, True, True], (8, 1)))
    assert (output.tree.children_visits[:, :, 1] == 0).all()
    assert np.isfinite(output.action_weights).all()


@both_searches
@both_scopes
def test_what_is_no_action_changes_nothing(search, scope):
    model = random_model(12, 30, 3)
    padded = TabularModel(*(np.insert(part, 1, 0, axis=1) for part in list(vars(model).values())[:4]), model.value)
    padded.prior_logits[:, 1] = -np.inf
    settings = {"num_simulations": 40, "qvalue_scope": scope, **DETERMINISTIC[search]}
    expected = search(model.root(np.arange(30)), model.step, **settings)
    masks = np.tile([True, False, True, True], (30, 1))
    output = search(padded.root(np.arange(30)), padded.step, action_masks=masks, **settings)
    np.testing.assert_allclose(output.action_weights[:, masks[0]], expected.action_weights, rtol=1e-5)
    np.testing.assert_allclose(output.tree.node_values, expected.tree.node_values, rtol=1e-5)


def test_min_qvalue_range_keeps_tiny_differences_tiny():
    model = bandit([0.0, 0.0], [0.0, 1e-6])
    weights = [
        gumbel_muzero_search(model.root(START), model.step, 8, gumbel_scale=0.0, min_qvalue_range=floor).action_weights[0, 1]
        for floor in (1e-8, 0.01)
    ]
    assert weights[0] > 0.99 and weights[1] == pytest.approx(0.5, abs=1e-3)


@both_searches
@both_scopes
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_values_of_any_size_are_survived(search, scope, size):
    model = random_model(11, 20, 3)
    model.value = (model.value / np.abs(model.value).max() * size).astype(np.float32)
    model.reward = (model.reward / np.abs(model.reward).max() * size).astype(np.float32)
    output = search(model.root(np.arange(4)), model.step, 50, qvalue_scope=scope)
    assert (output.visit_counts.sum(axis=1) == 50).all() and np.isfinite(output.tree.node_values).all()
    np.testing.assert_allclose(output.action_weights.sum(axis=1), 1.0, atol=1e-4)
    assert ((output.action >= 0) & (output.action < 3)).all()


@both_searches
def test_masked_actions_get_nothing_however_small_the_other_logits_are(search):
    model = random_model(11, 20, 3)
    model.prior_logits[:] = np.finfo(np.float32).min
    invalid = np.array([[False, True, False]] * 4)
    output = search(model.root(np.arange(4)), model.step, 8, action_masks=~invalid)
    assert (output.action_weights[invalid] == 0).all() and (output.visit_counts[invalid] == 0).all()
    np.testing.assert_allclose(output.action_weights.sum(axis=1), 1.0, atol=1e-4)


def test_half_precision_and_gradients_are_accepted():
    weight = torch.randn(4, 3, requires_grad=True)

    def step(latent, action):
        scalar = latent.sum(dim=1).to(torch.bfloat16)
        return RecurrentOutput(
            scalar, torch.full_like(scalar, 0.9), (latent @ weight).to(torch.bfloat16), scalar, latent * 0.9
        )

    latent = torch.randn(2, 4, requires_grad=True)
    output = gumbel_muzero_search(RootOutput(latent @ weight, latent.sum(dim=1), latent), step, 8)
    assert np.isfinite(output.value).all()


def test_improved_value_is_the_policys_mean_of_what_was_visited():
    model = bandit([0.5, 0.2, 0.1, 0.0], [0.0, 1.0, 3.0, 9.0])
    root = model.root(START)
    found = gumbel_muzero_search(
        root,
        model.step,
        8,
        gumbel_scale=0.0,
        max_num_considered_actions=2,
        action_masks=np.array([1, 1, 1, 0], bool),
    )
    visited = found.visit_counts[0] > 0
    assert 0 < visited.sum() < 4
    weights, qvalues = found.action_weights[0, visited], found.qvalues[0, visited]
    assert found.improved_value[0] == pytest.approx((weights * qvalues).sum() / weights.sum(), rel=1e-5)
    certain = found._replace(action_weights=np.where(visited, 0, 1 / (~visited).sum())[None].astype(np.float32))
    assert certain.improved_value[0] == pytest.approx(qvalues.mean(), rel=1e-5), "no weight on any visited action"


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


class Board(NamedTuple):
    own: Any
    other: Any


def nest(latent):
    """Three leaves of one latent ``[B, 6]``, of other shapes and another type."""
    return {"board": Board(latent[:, :2], latent[:, 2:4].reshape(-1, 1, 2)), "memory": (to_double(latent[:, 4:]),)}


def to_double(array):
    return array.double() if isinstance(array, torch.Tensor) else array.astype(np.float64)


def flatten_nest(nested):
    (board, (memory,)) = nested["board"], nested["memory"]
    parts = [board.own, board.other.reshape(-1, 2), memory]
    if isinstance(memory, torch.Tensor):
        return torch.cat([part.float() for part in parts], dim=1)
    return np.concatenate([part.astype(np.float32) for part in parts], axis=1)


@both_searches
@pytest.mark.parametrize("as_torch", [False, True], ids=["numpy", "torch"])
def test_nested_latents_are_searched_as_one_array(search, as_torch):
    rng = np.random.default_rng(0)
    convert = torch.as_tensor if as_torch else np.asarray
    weights = [convert(rng.normal(size=(6, 6)).astype(np.float32)) for _ in range(3)]
    policy = convert(rng.normal(size=(6, 3)).astype(np.float32))

    def step(latent, action):
        after = sum((action == index)[:, None] * (latent @ weight) for index, weight in enumerate(weights)) * 0.3
        return RecurrentOutput(after[:, 0], 0.9 + 0 * after[:, 0], after @ policy, after.sum(1), after)

    def nested_step(nested, action):
        assert isinstance(nested["board"], Board)
        output = step(flatten_nest(nested), action)
        return output._replace(latent=dict(reversed(nest(output.latent).items())))

    latent = convert(rng.normal(size=(5, 6)).astype(np.float32))
    root = RootOutput(latent @ policy, latent.sum(1), latent)
    expected = search(root, step, 30, **DETERMINISTIC[search])
    found = search(root._replace(latent=nest(latent)), nested_step, 30, **DETERMINISTIC[search])
    for name, array in expected.tree._asdict().items():
        np.testing.assert_array_equal(getattr(found.tree, name), array, err_msg=name)


@both_searches
def test_a_model_may_bring_its_own_backend(search):
    """And gets the uninitialized trees, the roots and their latents."""
    model = random_model(2, 30, 4)
    root = model.root(np.arange(6))

    class OwnBackend(TorchBackend):
        calls = 0

        def run_search(self, tree, roots, settings, root_latent):
            self.calls += 1
            assert root_latent is root.latent and roots.value.shape == (6,)
            super().run_search(tree, roots, settings, root_latent)

    backend = OwnBackend(model.step)
    found, expected = (search(root, fn, 10, **DETERMINISTIC[search]) for fn in (backend, model.step))
    assert backend.calls == 1
    np.testing.assert_array_equal(found.action_weights, expected.action_weights)
