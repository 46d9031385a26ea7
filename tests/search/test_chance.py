"""Searches with chance nodes: equal to the slow reference, exact where chance is known, and clear about bad models."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import ChanceReferenceSearch
from tabular import TabularChanceModel, random_chance_model, random_model

from sb3_muzero.common.pytree import tree_map
from sb3_muzero.search import (
    AfterstateOutput,
    ChanceModel,
    RecurrentOutput,
    RootOutput,
    gumbel_muzero_search,
    muzero_search,
)
from sb3_muzero.search.tree import NO_ACTION, UNVISITED

DETERMINISTIC = {
    gumbel_muzero_search: {"gumbel_scale": 0.0},
    muzero_search: {"dirichlet_fraction": 0.0, "temperature": 0.0},
}
both_searches = pytest.mark.parametrize("search", DETERMINISTIC, ids=lambda search: search.__name__)
both_kinds = pytest.mark.parametrize("as_torch", [False, True], ids=["numpy", "torch"])


@st.composite
def problems(draw):
    num_actions, num_outcomes, batch_size = draw(st.integers(1, 6)), draw(st.integers(1, 9)), draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    invalid = rng.random((batch_size, num_actions)) < draw(st.sampled_from([0.0, 0.4]))
    invalid[np.arange(batch_size), rng.integers(num_actions, size=batch_size)] = False
    num_states = draw(st.sampled_from([2, 6, 60]))
    discount = draw(st.sampled_from(["single", "two_player", "random"]))
    model = random_chance_model(seed, num_states, num_actions, num_outcomes, discount)
    impossible = rng.random(model.chance_logits.shape) < draw(st.sampled_from([0.0, 0.3]))
    impossible[..., rng.integers(num_outcomes)] = False
    model.chance_logits[impossible] = -np.inf
    return {
        "model": model,
        "states": rng.integers(num_states, size=batch_size),
        "num_simulations": draw(st.integers(1, 60)),
        "invalid": invalid,
        "max_depth": draw(st.sampled_from([None, 1, 2, 3, 5])),
        "scope": draw(st.sampled_from(["node", "tree"])),
        "min_range": draw(st.sampled_from([1e-8, 0.1, 3.0])),
        "rng": rng,
    }


def assert_same_as_reference(output, row, reference):
    if reference.close_call:
        return
    tree, nodes = output.tree, list(reference.nodes())
    for node in nodes:
        assert tree.is_chance_node[row, node.index] == node.is_chance
        num_edges = reference.num_outcomes if node.is_chance else reference.num_actions
        edges = range(num_edges)
        found = tree.children_index[row, node.index]
        logits = np.array(node.logits)
        expected = [node.children[e][2].index if e in node.children else UNVISITED for e in edges]
        none = NO_ACTION if node.is_chance else UNVISITED  # of the reference's states, only the root has illegal actions
        expected = [none if i < 0 and logits[e] == -np.inf else i for e, i in enumerate(expected)]
        assert found[:num_edges].tolist() == expected
        assert (found[num_edges:] == NO_ACTION).all()
        assert (tree.children_prior_probs[row, node.index, num_edges:] == 0).all()
        assert tree.children_visits[row, node.index, :num_edges].tolist() == [node.visits(e) for e in edges]
        assert (tree.children_visits[row, node.index, num_edges:] == 0).all()
        assert tree.node_visits[row, node.index] == len(node.returns)
        assert tree.node_values[row, node.index] == pytest.approx(node.value, abs=1e-4)
        for edge, (reward, discount, child) in node.children.items():
            assert tree.parents[row, child.index] == node.index
            assert tree.action_from_parent[row, child.index] == edge
            assert tree.node_depths[row, child.index] == tree.node_depths[row, node.index] + 1
            assert tree.children_qvalues[row, node.index, edge] == pytest.approx(node.q(edge), abs=1e-4)
            assert tree.children_rewards[row, node.index, edge] == pytest.approx(reward)
            assert tree.children_discounts[row, node.index, edge] == pytest.approx(discount)
    visited = set(np.flatnonzero(tree.node_visits[row]))
    assert visited == {node.index for node in nodes}
    assert not tree.is_chance_node[row, tree.node_visits[row] == 0].any()
    assert output.action[row] == reference.action
    tolerance = 1e-4 + reference.tolerance
    np.testing.assert_allclose(output.action_weights[row], reference.action_weights, atol=tolerance)
    assert output.visit_counts[row].tolist() == [reference.root.visits(a) for a in range(reference.num_actions)]
    assert tree.min_qvalue[row] == pytest.approx(min(reference.seen), abs=1e-4)
    assert tree.max_qvalue[row] == pytest.approx(max(reference.seen), abs=1e-4)


@given(problem=problems(), max_considered=st.integers(1, 9), value_scale=st.sampled_from([0.02, 0.1, 1.0]))
def test_gumbel_search_equals_reference(problem, max_considered, value_scale):
    gumbel = problem["rng"].gumbel(size=problem["invalid"].shape).astype(np.float32)
    options = {"max_num_considered_actions": max_considered, "value_scale": value_scale}
    output = run(gumbel_muzero_search, problem, root_gumbel=gumbel, **options)
    for row in range(len(gumbel)):
        rule = {"rule": "gumbel", "root_gumbel": gumbel[row], "max_considered": max_considered}
        reference = run_reference(problem, row, **rule, value_scale=value_scale, maxvisit_init=50.0)
        assert_same_as_reference(output, row, reference)


@given(problem=problems(), pb_c_base=st.sampled_from([19652.0, 20.0]))
def test_puct_search_equals_reference(problem, pb_c_base):
    output = run(muzero_search, problem, pb_c_base=pb_c_base, **DETERMINISTIC[muzero_search])
    for row in range(len(problem["states"])):
        reference = run_reference(problem, row, rule="puct", pb_c_init=1.25, pb_c_base=pb_c_base)
        assert_same_as_reference(output, row, reference)


def run(search, problem, **options):
    model = problem["model"]
    return search(
        model.root(problem["states"]),
        model.chance_model,
        problem["num_simulations"],
        action_masks=~problem["invalid"],
        max_depth=problem["max_depth"],
        qvalue_scope=problem["scope"],
        min_qvalue_range=problem["min_range"],
        **options,
    )


def run_reference(problem, row, **constants):
    common = {name: problem[name] for name in ("scope", "max_depth", "min_range")} | {"invalid": problem["invalid"][row]}
    return ChanceReferenceSearch(problem["model"], problem["states"][row], problem["num_simulations"], **common, **constants)


@pytest.mark.parametrize("rule", ["gumbel", "puct"])
def test_close_calls_are_rare(rule):
    """The comparison above must not be empty: few roots may be excused."""
    constants = {"root_gumbel": np.zeros(4), "max_considered": 4, "value_scale": 0.1, "maxvisit_init": 50.0}
    constants |= {"pb_c_init": 1.25, "pb_c_base": 19652.0, "scope": "node", "max_depth": None, "min_range": 1e-8}
    constants |= {"rule": rule, "invalid": [False] * 4}
    models = (random_chance_model(seed, 60, 4, 5) for seed in range(40))
    excused = [ChanceReferenceSearch(model, 0, 32, **constants).close_call for model in models]
    assert sum(excused) <= 8


@both_searches
def test_numpy_and_torch_models_give_equal_trees(search):
    model = random_chance_model(3, 30, 5, 7)
    states, in_torch = np.arange(6), model.in_torch()
    options = DETERMINISTIC[search] | {"max_depth": 5}
    expected = search(model.root(states), model.chance_model, 40, **options)
    found = search(in_torch.root(torch.as_tensor(states)), in_torch.chance_model, 40, **options)
    for name, array in expected.tree._asdict().items():
        np.testing.assert_array_equal(getattr(found.tree, name), array, err_msg=name)


@both_searches
@pytest.mark.parametrize("num_outcomes", [2, 9])
def test_roots_of_a_batch_do_not_touch_each_other(search, num_outcomes):
    model = random_chance_model(4, 30, 4, num_outcomes)
    together = search(model.root(np.arange(5)), model.chance_model, 30, **DETERMINISTIC[search])
    kinds = together.tree.is_chance_node[:, 1:]
    assert (kinds != kinds[:1]).any(), "leaves of both kinds in one simulation"
    for row in range(5):
        alone = search(model.root(np.arange(row, row + 1)), model.chance_model, 30, **DETERMINISTIC[search])
        for name, array in alone.tree._asdict().items():
            np.testing.assert_array_equal(getattr(together.tree, name)[row], array[0], err_msg=name)


@both_searches
@both_kinds
def test_each_function_is_called_for_its_rows_only(search, as_torch):
    model = random_chance_model(4, 30, 3, 4)
    states = np.arange(7)
    if as_torch:
        model, states = model.in_torch(), torch.as_tensor(states)
    calls = {"act": [], "step": []}

    def act(state, action):
        calls["act"].append(len(action))
        assert type(action) is type(states) and str(action.dtype).endswith("int64")
        return model.act(state, action)

    def step(afterstate, outcome):
        calls["step"].append(len(outcome))
        assert type(outcome) is type(states) and str(outcome.dtype).endswith("int64")
        return model.step(afterstate, outcome)

    output = search(model.root(states), ChanceModel(act, step, 4), 20, **DETERMINISTIC[search])
    assert calls["act"][0] == 7
    assert sum(calls["act"]) + sum(calls["step"]) == 7 * 20, "one evaluation for each simulation of each root"
    assert sum(calls["act"]) == output.tree.is_chance_node.sum()
    assert 0 not in calls["act"] + calls["step"]
    calls["act"].clear()
    search(model.root(states), ChanceModel(act, step), 20, **DETERMINISTIC[search])
    assert calls["act"][:2] == [1, 7], "one more to see how many outcomes there are"


@both_searches
@both_kinds
def test_latents_of_both_kinds_follow_the_path(search, as_torch):
    """With the path as the latent of states, and a nest of other arrays as that of afterstates."""
    convert = torch.as_tensor if as_torch else np.asarray
    seen = {}

    def act(path, action):
        path, action = np.asarray(path), np.asarray(action)
        for steps in extended(path, action):
            seen[steps] = True
        rng = np.random.default_rng(len(path))
        return AfterstateOutput(
            *map(convert, (rng.normal(size=(len(path), 3)), rng.normal(size=len(path)))),
            {"path": convert(path.astype(np.int16)), "last": (convert(action.astype(np.float32)[:, None]),)},
        )

    def step(afterstate, outcome):
        path, last = np.asarray(afterstate["path"]).astype(np.int64), np.asarray(afterstate["last"][0])[:, 0]
        batch = np.arange(len(path))
        for value in (last.astype(np.int64), np.asarray(outcome)):
            path[batch, (path >= 0).sum(axis=1)] = value
        for steps in extended(path):
            seen[steps] = True
        rng = np.random.default_rng(len(path))
        reward, value = rng.normal(size=(2, len(path)))
        fields = reward, np.full(len(path), 0.9), rng.normal(size=(len(path), 2)), value
        return RecurrentOutput(*map(convert, fields), convert(path))

    root = RootOutput(*map(convert, (np.zeros((3, 2)), np.zeros(3), np.full((3, 40), -1))))
    tree = search(root, ChanceModel(act, step, 3), 30, **DETERMINISTIC[search]).tree
    paths = set()
    for row in range(3):
        for node in range(1, 31):
            steps, ancestor = [], node
            while ancestor:
                steps.insert(0, int(tree.action_from_parent[row, ancestor]))
                ancestor = tree.parents[row, ancestor]
            paths.add(tuple(steps))
    assert paths == seen.keys()


def extended(path, *last):
    """:return: Paths as tuples, with one more step each if there are any"""
    return [tuple(row[row >= 0].tolist()) + tuple(int(step[i]) for step in last) for i, row in enumerate(path)]


def gamble(probabilities, rewards):
    """One decision between a gamble (action 0) and nothing (action 1), then the end. The model values all at 0."""
    num_outcomes = len(rewards)
    logits, reward = np.zeros((2, 2, num_outcomes)), np.zeros((2, 2, num_outcomes))
    logits[0, 0], reward[0, 0] = np.log(probabilities), rewards
    edges = (2, 2, num_outcomes)
    return TabularChanceModel(
        np.zeros((2, 2)), logits, np.ones(edges, np.int64), reward, np.zeros(edges), np.zeros((2, 2)), np.zeros(2)
    )


@both_searches
@pytest.mark.parametrize(("rewards", "best"), [([2.0, -1.0], 1), ([3.0, -1.0], 0)])
def test_outcomes_are_weighed_by_their_probabilities(search, rewards, best):
    model = gamble([0.3, 0.7], rewards)
    output = search(model.root(np.zeros(1, np.int64)), model.chance_model, 2000, max_depth=2, **DETERMINISTIC[search])
    assert output.action[0] == best
    child = output.tree.children_index[0, 0, 0]
    visits = output.tree.children_visits[0, child, :2]
    assert visits[0] / visits.sum() == pytest.approx(0.3, abs=2 / visits.sum())
    assert output.qvalues[0, 0] == pytest.approx(0.3 * rewards[0] + 0.7 * rewards[1], abs=5 / visits.sum())


def test_a_likely_outcome_is_taken_first_and_ties_go_to_the_lowest_index():
    model = gamble([0.3, 0.4, 0.3], [0.0, 0.0, 0.0])
    masks = np.array([[True, False]])
    output = muzero_search(
        model.root(np.zeros(1, np.int64)),
        model.chance_model,
        5,
        action_masks=masks,
        max_depth=2,
        **DETERMINISTIC[muzero_search],
    )
    assert output.tree.action_from_parent[0, 1:].tolist() == [0, 1, 0, 2, -1], "the fifth visits outcome 1 again"
    assert output.tree.children_visits[0, 1, :3].tolist() == [1, 2, 1]


@both_searches
def test_impossible_outcomes_are_never_taken(search):
    model = random_chance_model(5, 30, 3, 6)
    model.chance_logits[..., [0, 4]] = -np.inf
    tree = search(model.root(np.arange(8)), model.chance_model, 60, **DETERMINISTIC[search]).tree
    assert (tree.children_visits[tree.is_chance_node][:, [0, 4]] == 0).all()


@both_searches
def test_one_certain_outcome_gives_the_values_of_the_search_without_chance(search):
    """At twice the simulations, since every second node is an afterstate; these have the values of what follows."""
    plain = random_model(6, 30, 3)
    value = plain.reward + plain.discount * plain.value[plain.next_state]
    after = {name: getattr(plain, name)[..., None] for name in ("next_state", "reward", "discount")}
    model = TabularChanceModel(value, np.zeros((30, 3, 1)), **after, prior_logits=plain.prior_logits, value=plain.value)
    options = {"max_depth": 1, **DETERMINISTIC[search]}
    expected = search(plain.root(np.arange(6)), plain.step, 12, **options)
    found = search(model.root(np.arange(6)), model.chance_model, 12, **options)
    np.testing.assert_array_equal(found.visit_counts, expected.visit_counts)
    np.testing.assert_allclose(found.qvalues, expected.qvalues, atol=1e-5)
    np.testing.assert_allclose(found.action_weights, expected.action_weights, atol=1e-5)


@both_searches
def test_deterministic_searches_draw_nothing_and_noise_follows_the_seed(search):
    model = random_chance_model(7, 20, 3, 4)
    generator = np.random.default_rng(0)
    before, state = generator.bit_generator.state, np.random.get_state()[1].copy()
    root = model.root(np.arange(8))
    search(root, model.chance_model, 8, generator=generator, **DETERMINISTIC[search])
    assert generator.bit_generator.state == before
    first, again = (search(root, model.chance_model, 8, generator=np.random.default_rng(1)) for _ in range(2))
    np.testing.assert_array_equal(first.tree.children_visits, again.tree.children_visits)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


MODEL = random_chance_model(0, 10, 3, 2)
ROOT = MODEL.root(np.arange(2))
NAN, INF = np.nan, np.inf


@both_searches
@both_kinds
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": np.zeros((2, 1))}, r"afterstate_fn's value must be an array of shape \[2\], got shape \[2, 1\]"),
        ({"value": np.array([0.0, NAN])}, "afterstate_fn's value must be finite and at most 1e.30 in size, got nan in row 1"),
        ({"value": np.zeros(2, complex)}, "afterstate_fn's value must hold real numbers, got .*complex128"),
        ({"chance_logits": np.zeros(2)}, r"afterstate_fn's chance_logits must be an array of shape \[2, 2\], got shape \[2\]"),
        ({"chance_logits": np.zeros((2, 3))}, r"afterstate_fn's chance_logits must be .* \[2, 2\], got shape \[2, 3\]"),
        ({"chance_logits": np.array([[0, NAN], [0, 0]])}, "afterstate_fn's chance_logits .* got nan in row 0"),
        ({"chance_logits": np.array([[0, 0], [INF, 0]])}, "afterstate_fn's chance_logits .* got inf in row 1"),
        (
            {"chance_logits": np.array([[0, 0], [-INF, -INF]])},
            r"afterstate_fn's chance_logits must be finite for at least one outcome .* got \[-inf, -inf\] in row 1",
        ),
        ({"latent": np.zeros(3)}, r"afterstate_fn's latent must be an array or tensor of shape \[2, \.\.\.\]"),
        ({"latent": (np.zeros(2), np.zeros(3))}, r"afterstate_fn's latent\[1\] must be an array or tensor of shape \[2, "),
    ],
)
def test_afterstates(search, as_torch, changes, message):
    convert = torch.as_tensor if as_torch else np.asarray

    def act(state, action):
        output = AfterstateOutput(*MODEL.act(np.asarray(state), np.asarray(action)))._replace(**changes)
        return AfterstateOutput(*map(convert, output[:2]), tree_map(convert, output.latent))

    with pytest.raises(ValueError, match=message):
        search(RootOutput(*map(convert, ROOT)), ChanceModel(act, MODEL.step, 2), 4)


@both_searches
@both_kinds
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": np.zeros((2, 1))}, r"chance_fn's reward must be an array of shape \[2\], got shape \[2, 1\]"),
        ({"reward": np.array([0.0, NAN])}, "chance_fn's reward must be finite and at most 1e.30 .* got nan in row 1"),
        ({"discount": np.array([0.0, 2.0])}, "chance_fn's discount must be finite and at most 1 .* got 2.0 in row 1"),
        ({"value": np.array([INF, 0.0])}, "chance_fn's value must be finite and at most 1e.30 .* got inf in row 0"),
        ({"prior_logits": np.zeros((2, 2))}, r"chance_fn's prior_logits must be an array of shape \[2, 3\]"),
        ({"prior_logits": np.full((2, 3), -INF)}, "chance_fn's prior_logits must be finite for at least one legal action"),
        ({"latent": np.zeros(2)}, "chance_fn's latent must be .*int64 as the root's, got .*float64"),
        ({"latent": {"state": np.zeros(2)}}, "chance_fn's latent must be nested as the root's"),
    ],
)
def test_states(search, as_torch, changes, message):
    convert = torch.as_tensor if as_torch else np.asarray

    def act(state, action):
        output = MODEL.act(np.asarray(state), np.asarray(action))
        return AfterstateOutput(*map(convert, output[:2]), tree_map(convert, output.latent))

    def step(afterstate, outcome):
        output = MODEL.step(tree_map(np.asarray, afterstate), np.asarray(outcome))._replace(**changes)
        return RecurrentOutput(*map(convert, output[:4]), tree_map(convert, output.latent))

    with pytest.raises(ValueError, match=message):
        search(RootOutput(*map(convert, ROOT)), ChanceModel(act, step), 4, max_depth=2)


@both_searches
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ChanceModel(MODEL.act, MODEL.step, 0), "`num_outcomes` must be an integer of at least 1, got 0"),
        (ChanceModel(MODEL.act, MODEL.step, 2.5), "`num_outcomes` must be an integer of at least 1, got 2.5"),
        (
            ChanceModel(MODEL.act, MODEL.step, 3),
            r"afterstate_fn's chance_logits must be an array of shape \[2, 3\], got .*2\]",
        ),
        (ChanceModel(MODEL.step, MODEL.act), "afterstate_fn must return an AfterstateOutput, got a RecurrentOutput"),
        (ChanceModel(MODEL.act, MODEL.act), "chance_fn must return a RecurrentOutput, got a AfterstateOutput"),
        (ChanceModel(lambda *_: None, MODEL.step), "afterstate_fn must return an AfterstateOutput, got a NoneType"),
    ],
)
def test_wrong_models(search, model, message):
    model = model._replace(chance_fn=model.chance_fn if model.chance_fn != MODEL.act else lambda pair, _: MODEL.act(*pair))
    if model.afterstate_fn == MODEL.step:
        model = model._replace(afterstate_fn=lambda state, action: MODEL.step((state, action), action * 0))
    with pytest.raises(ValueError, match=message):
        search(ROOT, model, 4)


@both_searches
@pytest.mark.parametrize("logits", [np.zeros(1), np.zeros((1, 0)), [[0.0]], None, np.zeros((1, 2, 2))])
def test_the_number_of_outcomes_must_show(search, logits):
    with pytest.raises(
        ValueError, match=r"afterstate_fn's chance_logits must be an array of shape \[B, C\] with at least one"
    ):
        search(ROOT, ChanceModel(lambda *_: AfterstateOutput(logits, np.zeros(1), np.zeros(1)), MODEL.step), 4)


@both_searches
def test_later_afterstates_must_resemble_the_first(search):
    calls = 0

    def act(state, action):
        nonlocal calls
        calls += 1
        output = MODEL.act(state, action)
        return output if calls < 3 else output._replace(latent=state)

    with pytest.raises(ValueError, match=r"afterstate_fn's latent must be nested as the first one, \['latent\[0\]', "):
        search(ROOT, ChanceModel(act, MODEL.step, 2), 20)


@both_searches
@pytest.mark.filterwarnings("ignore")  # of prototypes
def test_tensors_that_are_not_dense(search):
    model, root = MODEL.in_torch(), MODEL.in_torch().root(torch.arange(2))

    def act(state, action):
        return model.act(state, action)._replace(value=torch.zeros(2).to_sparse())

    def step(afterstate, outcome):
        return model.step(afterstate, outcome)._replace(value=torch.zeros(2).to_sparse())

    for name, chance_model in (("afterstate", ChanceModel(act, model.step)), ("chance", ChanceModel(model.act, step))):
        with pytest.raises(ValueError, match=f"{name}_fn's value must be a dense tensor, got a .*sparse_coo one: .*"):
            search(root, chance_model, 4, max_depth=2)
