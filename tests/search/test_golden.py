"""The search gives the trees that mctx 0.0.71 gave on 60 problems."""

import json
from pathlib import Path

import numpy as np
import pytest
from tabular import TabularModel

from sb3_muzero.search import gumbel_muzero_search, muzero_search

GOLDEN = np.load(Path(__file__).parent / "golden" / "mctx_search.npz")
CASES = json.loads(bytes(GOLDEN["cases_json"]))


def run(case):
    prefix = f"{case['index']}/"
    arrays = {key[len(prefix) :]: GOLDEN[key] for key in GOLDEN.files if key.startswith(prefix)}
    expected = {key[len("expected/") :]: array for key, array in arrays.items() if key.startswith("expected/")}
    model = TabularModel(**{key[len("model/") :]: array for key, array in arrays.items() if key.startswith("model/")})
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


def test_there_are_sixty_cases():
    assert len(CASES) == 60
