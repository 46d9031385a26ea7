"""Bad input is refused with the field, the row, what was given and what is allowed."""

import numpy as np
import pytest
import torch
from tabular import random_model

from sb3_muzero.common.pytree import tree_map
from sb3_muzero.search import RecurrentOutput, RootOutput, gumbel_muzero_search, muzero_search

MODEL = random_model(0, 10, 3)
ROOT = MODEL.root(np.arange(2))
both_searches = pytest.mark.parametrize("search", [gumbel_muzero_search, muzero_search], ids=lambda search: search.__name__)
both_kinds = pytest.mark.parametrize("as_torch", [False, True], ids=["numpy", "torch"])


def with_entry(array, index, value):
    array = array.copy()
    array[index] = value
    return array


@both_searches
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_simulations": 0}, "`num_simulations` must be an integer of at least 1, got 0"),
        ({"num_simulations": 2.5}, "`num_simulations` must be an integer of at least 1, got 2.5"),
        ({"num_simulations": True}, "`num_simulations` must be an integer of at least 1, got True"),
        ({"max_depth": 0}, "`max_depth` must be an integer of at least 1, got 0"),
        ({"qvalue_scope": "forest"}, r"`qvalue_scope` must be one of \['node', 'tree'\], got 'forest'"),
        ({"min_qvalue_range": 0.0}, "`min_qvalue_range` must be a number at least 1e-30 and at most 1e.18, got 0.0"),
        (
            {"action_masks": np.ones((2, 4), bool)},
            r"`action_masks` must have the shape \[2, 3\], got \[2, 4\]",
        ),
        ({"action_masks": [True] * 3}, r"`action_masks` must have the shape \[2, 3\], got \[3\]"),
        ({"action_masks": [[1, 0, 1], [0, 0, 0]]}, "`action_masks` must leave an action .* got none in row 1"),
        ({"action_masks": np.array([[0, 1, 0], [0, 0.5, 0]])}, r"`action_masks` must be True where .* got [\s\S]*0\.5"),
        ({"action_masks": np.array([["a"] * 3] * 2)}, r"`action_masks` must be True where .* got \[\['a'"),
        ({"generator": 3}, "`generator` must be a numpy.random.Generator or None, got 3"),
    ],
)
def test_arguments(search, options, message):
    with pytest.raises(ValueError, match=message):
        search(ROOT, MODEL.step, **({"num_simulations": 4} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_num_considered_actions": 0}, "`max_num_considered_actions` must be an integer of at least 1, got 0"),
        ({"root_gumbel": np.zeros((2, 2))}, r"root_gumbel must be an array of shape \[2, 3\], got shape \[2, 2\]"),
        ({"root_gumbel": np.full((2, 3), np.nan)}, "root_gumbel must be finite and at most 1e.30 in size, got nan in row 0"),
        ({"gumbel_scale": -1.0}, "`gumbel_scale` must be a number at least 0 and at most 1e.18, got -1.0"),
        ({"value_scale": np.inf}, "`value_scale` must be a number at least 0 and at most 1e.18, got inf"),
        ({"maxvisit_init": "x"}, "`maxvisit_init` must be a number at least 0 and at most 1e.18, got 'x'"),
    ],
)
def test_gumbel_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        gumbel_muzero_search(ROOT, MODEL.step, 4, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dirichlet_fraction": 1.5}, "`dirichlet_fraction` must be a number at least 0 and at most 1, got 1.5"),
        ({"dirichlet_alpha": 0.0}, "`dirichlet_alpha` must be a number at least 1e-30 and at most 1e.18, got 0.0"),
        ({"temperature": -1.0}, "`temperature` must be a number at least 0, got -1.0"),
        ({"pb_c_init": np.nan}, "`pb_c_init` must be a number at least 0 and at most 1e.18, got nan"),
        ({"pb_c_base": 0}, "`pb_c_base` must be a number at least 1e-30 and at most 1e.18, got 0"),
    ],
)
def test_puct_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        muzero_search(ROOT, MODEL.step, 4, **options)


@both_searches
@both_kinds
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": np.zeros((2, 1))}, r"root's value must be an array of shape \[2\], got shape \[2, 1\]"),
        ({"value": np.array([0.0, np.inf])}, "root's value must be finite and at most 1e.30 in size, got inf in row 1"),
        ({"value": np.zeros(2, complex)}, "root's value must hold real numbers, got .*complex128"),
        ({"prior_logits": np.zeros(3)}, r"root's prior_logits must be of shape \[B, A\] .* got \[3\]"),
        ({"prior_logits": np.zeros((2, 0))}, r"root's prior_logits must be of shape \[B, A\] .* got \[2, 0\]"),
        (
            {"prior_logits": np.array([[0, 0, 0], [0, np.nan, 0]])},
            "root's prior_logits must be minus infinity or finite and at most 1e.30, got nan in row 1",
        ),
        ({"prior_logits": np.array([[np.inf, 0, 0], [0, 0, 0]])}, "root's prior_logits .* got inf in row 0"),
        (
            {"prior_logits": np.array([[0, 0, 0], [-np.inf] * 3])},
            "root's prior_logits must be finite for at least one .* row 1",
        ),
        ({"prior_logits": np.array([[0, 0, 1e300], [0, 0, 0]])}, "root's prior_logits .* got inf in row 0"),
        ({"latent": np.zeros((3, 4))}, r"root's latent must be an array or tensor of shape \[2, \.\.\.\]"),
    ],
)
def test_root(search, as_torch, changes, message):
    root = ROOT._replace(**changes)
    if as_torch:
        root = RootOutput(*map(torch.as_tensor, root))
    with pytest.raises(ValueError, match=message):
        search(root, MODEL.step, 4)


@both_searches
def test_mask_and_prior_may_not_exclude_everything_together(search):
    root = ROOT._replace(prior_logits=np.array([[0, 0, 0], [-np.inf, -np.inf, 0]]))
    with pytest.raises(ValueError, match=r"root's prior_logits must be finite for at least one legal action .* row 1"):
        search(root, MODEL.step, 4, action_masks=np.array([[True] * 3, [True, True, False]]))


NOT_DENSE = {
    "sparse_coo": lambda array: torch.as_tensor(array).to_sparse(),
    "sparse_csr": lambda array: torch.as_tensor(array).reshape(2, -1).to_sparse_csr(),
    "meta": lambda array: torch.as_tensor(array).to("meta"),
    "nested": lambda array: torch.nested.as_nested_tensor([torch.as_tensor(row) for row in array]),
    "quantized": lambda array: torch.quantize_per_tensor(torch.as_tensor(array).float(), 0.1, 0, torch.qint8),
}


@both_searches
@pytest.mark.filterwarnings("ignore")  # of prototypes
@pytest.mark.parametrize("kind", NOT_DENSE)
def test_tensors_that_are_not_dense(search, kind):
    root = RootOutput(*map(torch.as_tensor, ROOT))

    def refused(name, root, step, **options):
        with pytest.raises(ValueError, match=f"{name} must be a dense tensor, got a .*{kind} one: .*"):
            search(root, step, 4, **options)

    def step_with(field):
        def step(state, action):
            output = MODEL.step(np.asarray(state), np.asarray(action))
            return RecurrentOutput(*map(torch.as_tensor, output))._replace(**{field: NOT_DENSE[kind](getattr(output, field))})

        return step

    for field in RootOutput._fields:
        refused(f"root's {field}", root._replace(**{field: NOT_DENSE[kind](getattr(ROOT, field))}), step_with("value"))
    for field in RecurrentOutput._fields:
        refused(f"recurrent_fn's {field}", root, step_with(field))
    refused("`action_masks`", root, step_with("value"), action_masks=NOT_DENSE[kind](np.ones((2, 3))))
    nested = {"state": root.latent, "seen": (NOT_DENSE[kind](np.zeros((2, 3))),)}
    refused(r"root's latent\['seen'\]\[0\]", root._replace(latent=nested), step_with("value"))


@both_searches
def test_wrong_types(search):
    with pytest.raises(ValueError, match="root must be a RootOutput, got a tuple"):
        search(tuple(ROOT), MODEL.step, 4)
    with pytest.raises(ValueError, match=r"root's latent must be an array or tensor .* got list"):
        search(ROOT._replace(latent=[0, 1]), MODEL.step, 4)
    with pytest.raises(ValueError, match="recurrent_fn must return a RecurrentOutput, got a tuple"):
        search(ROOT, lambda *inputs: tuple(MODEL.step(*inputs)), 4)


@both_searches
@pytest.mark.parametrize(
    ("latent", "message"),
    [
        ({"a": np.zeros((2, 1)), "b": np.zeros(3)}, r"root's latent\['b'\] must be an array or tensor of shape \[2, \.\.\.\]"),
        ((np.zeros(2), [0, 1]), r"root's latent\[1\] must be an array or tensor .* got list"),
        ({}, "root's latent must be of NumPy arrays or of tensors"),
        ({"a": np.zeros(2), "b": torch.zeros(2)}, r"root's latent must be of NumPy .* got \['NumPy', 'cpu'\]"),
    ],
)
def test_every_leaf_of_a_nested_root(search, latent, message):
    with pytest.raises(ValueError, match=message):
        search(ROOT._replace(latent=latent), MODEL.step, 4)


@both_searches
@both_kinds
@pytest.mark.parametrize(
    ("latent", "message"),
    [
        ({"state": np.zeros(2, int)}, r"recurrent_fn's latent must be nested as the root's, .*'seen'.* got .*state"),
        (np.zeros(2, int), "recurrent_fn's latent must be nested as the root's"),
        (
            {"state": np.zeros(2, int), "seen": (np.zeros((2, 2)),)},
            r"recurrent_fn's latent\['seen'\]\[0\] must be an array of shape \[2, 3\]",
        ),
        (
            {"state": np.zeros(2), "seen": (np.zeros((2, 3)),)},
            r"recurrent_fn's latent\['state'\] must be .*int64 as the root's",
        ),
    ],
)
def test_every_leaf_of_a_nested_answer(search, as_torch, latent, message):
    convert = torch.as_tensor if as_torch else np.asarray

    def step(nested, action):
        output = MODEL.step(np.asarray(nested["state"]), np.asarray(action))
        return RecurrentOutput(*map(convert, output[:-1]), tree_map(convert, latent))

    root = RootOutput(*map(convert, ROOT[:2]), tree_map(convert, {"state": ROOT.latent, "seen": (np.zeros((2, 3)),)}))
    with pytest.raises(ValueError, match=message):
        search(root, step, 8)


@both_searches
@both_kinds
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": np.zeros((2, 1))}, r"recurrent_fn's reward must be an array of shape \[2\], got shape \[2, 1\]"),
        ({"discount": np.zeros(3)}, r"recurrent_fn's discount must be an array of shape \[2\], got shape \[3\]"),
        ({"prior_logits": np.zeros((2, 4))}, r"recurrent_fn's prior_logits must be an array of shape \[2, 3\]"),
        ({"latent": np.zeros((2, 1), int)}, r"recurrent_fn's latent must be an array of shape \[2\], got shape \[2, 1\]"),
        ({"latent": np.zeros(2)}, "recurrent_fn's latent must be .*int64 as the root's, got .*float64"),
        ({"reward": np.array([0.0, np.nan])}, "recurrent_fn's reward must be finite and at most 1e.30 .* got nan in row 1"),
        (
            {"reward": np.array([2e30, 0.0])},
            "recurrent_fn's reward must be finite and at most 1e.30 .* got 2\\.0.*e.30 in row 0",
        ),
        ({"discount": np.array([np.inf, 0.0])}, "recurrent_fn's discount must be finite and at most 1 .* got inf in row 0"),
        (
            {"discount": np.array([0.0, -1.01])},
            "recurrent_fn's discount must be finite and at most 1 .* got -1\\.0.* in row 1",
        ),
        ({"value": np.zeros(2, complex)}, "recurrent_fn's value must hold real numbers, got .*complex128"),
        ({"value": np.array([0.0, -np.inf])}, "recurrent_fn's value must be finite and at most 1e.30 .* got -inf in row 1"),
        ({"prior_logits": np.array([[0, 0, 0], [0, 0, np.nan]])}, "recurrent_fn's prior_logits .* got nan in row 1"),
        ({"prior_logits": np.full((2, 3), -np.inf)}, "recurrent_fn's prior_logits must be finite for at least one .* row 0"),
    ],
)
def test_recurrent_output(search, as_torch, changes, message):
    calls = 0

    def step(state, action):
        nonlocal calls
        calls += 1
        output = MODEL.step(np.asarray(state), np.asarray(action))
        output = output._replace(**changes) if calls == 3 else output
        return RecurrentOutput(*map(torch.as_tensor, output)) if as_torch else output

    root = RootOutput(*map(torch.as_tensor, ROOT)) if as_torch else ROOT
    with pytest.raises(ValueError, match=message):
        search(root, step, 8)
    assert calls == 3
