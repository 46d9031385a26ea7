"""The search gives the trees that mctx 0.0.71 gave on 60 problems, and on 40 with chance nodes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tabular import TabularChanceModel, TabularModel

from sb3_muzero.search import gumbel_muzero_search, muzero_search

GOLDEN, CHANCE = (np.load(Path(__file__).parent / "golden" / f"mctx_{name}.npz") for name in ("search", "stochastic"))
CASES, CHANCE_CASES = (json.loads(bytes(golden["cases_json"])) for golden in (GOLDEN, CHANCE))


def arrays_of(golden, case):
    """:return: Inputs, tables of the model and expected outputs"""
    prefix = f"{case['index']}/"
    arrays = {key[len(prefix) :]: golden[key] for key in golden.files if key.startswith(prefix)}
    expected = {key[len("expected/") :]: array for key, array in arrays.items() if key.startswith("expected/")}
    return arrays, {key[len("model/") :]: array for key, array in arrays.items() if key.startswith("model/")}, expected


def run(case):
    arrays, tables, expected = arrays_of(GOLDEN, case)
    model = TabularModel(**tables)
    arguments = (model.root(arrays["root_states"]), model.step, case["num_simulations"])
    invalid = arrays.get("invalid_actions")
    options = {"action_masks": None if invalid is None else ~invalid, "max_depth": case["max_depth"]}
    if case["kind"] == "puct":
        return muzero_search(*arguments, **options, dirichlet_fraction=0.0, temperature=0.0), expected
    options |= {
        "root_gumbel": expected["root_gumbel"],
        "max_num_considered_actions": case["max_considered"],
        "value_scale": case["value_scale"],
        "maxvisit_init": case["maxvisit_init"],
    }
    return gumbel_muzero_search(*arguments, **options), expected


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['index']}-{case['kind']}")
def test_same_tree_as_mctx(case):
    output, expected = run(case)
    found = output._asdict() | output.tree._asdict()
    for name in expected.keys() - {"root_gumbel"}:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4, err_msg=name)


def with_padded_edges(children_index, is_chance_node, num_actions, num_outcomes):
    """:return: The layout of mctx, where each node has ``A + C`` edges: first actions, then outcomes"""
    padded = np.full((*children_index.shape[:2], num_actions + num_outcomes), -1)
    padded[..., :num_actions] = np.where(is_chance_node[..., None], -1, children_index[..., :num_actions])
    padded[..., num_actions:] = np.where(is_chance_node[..., None], children_index[..., :num_outcomes], -1)
    return padded


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("case", CHANCE_CASES, ids=lambda case: f"{case['index']}")
def test_same_tree_as_mctx_with_chance_nodes(case, kind):
    arrays, tables, expected = arrays_of(CHANCE, case)
    invalid = arrays.get("invalid_actions")
    model, states = TabularChanceModel(**tables), arrays["root_states"]
    if kind == "torch":
        model, states = model.in_torch(), torch.as_tensor(states)
    output = muzero_search(
        model.root(states),
        model.chance_model,
        case["num_simulations"],
        action_masks=None if invalid is None else ~invalid,
        max_depth=case["max_depth"],
        dirichlet_fraction=0.0,
        temperature=0.0,
    )
    tree = output.tree
    found = output._asdict() | tree._asdict()
    found["is_decision_node"] = ~tree.is_chance_node & (tree.node_visits > 0)
    found["children_index"] = with_padded_edges(
        tree.children_index, tree.is_chance_node, case["num_actions"], case["num_outcomes"]
    )
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-4, err_msg=name)


def test_there_are_a_hundred_cases():
    assert len(CASES) == 60 and len(CHANCE_CASES) == 40
