"""Whatever numbers, shapes and kinds of arrays a model answers with: a sound search, or an error that says what was wrong."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from tabular import TabularModel, random_chance_model, random_model

from sb3_muzero.search import (
    AfterstateOutput,
    ChanceModel,
    RecurrentOutput,
    RootOutput,
    gumbel_muzero_search,
    muzero_search,
)
from sb3_muzero.search.checks import to_numpy

EXTREMES = [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-38, 0.1, 1e9, -1e17, 1e18, 1e30, 3e38, -3.4028235e38, np.nan, np.inf, -np.inf]
KINDS = {
    "as it is": lambda array: array,
    "float64": lambda array: array.astype(np.float64),
    "float16": lambda array: array.astype(np.float16),
    "integers": lambda array: array.astype(np.int32),
    "bool": lambda array: array.astype(bool),
    "complex": lambda array: array.astype(np.complex64),
    "text": lambda array: array.astype(str),
    "objects": lambda array: array.astype(object),
    "list": lambda array: array.tolist(),
    "nothing": lambda array: None,
    "number": lambda array: 1.0,
    "torch": torch.as_tensor,
    "bfloat16": lambda array: torch.as_tensor(array).to(torch.bfloat16),
    "with gradient": lambda array: torch.as_tensor(array.astype(np.float32)).requires_grad_(),
    "one less": lambda array: array[:-1],
    "one more axis": lambda array: array[..., None],
    "no axis": lambda array: array.sum(),
    "empty": lambda array: array[:0],
    "backwards": lambda array: array[::-1],
    "Fortran's order": np.asfortranarray,
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "read-only": lambda array: np.broadcast_to(array[0], array.shape),
}
NUMBERS = st.sampled_from(EXTREMES) | st.floats()


def change(rng, array, extremes):
    """:return: The table with some extremes in it"""
    where = rng.random(array.shape) < rng.choice([0.02, 0.3, 1.0])
    with np.errstate(over="ignore"):
        return np.where(where, rng.choice(extremes, size=array.shape), array).astype(array.dtype)


@given(st.data())
def test_any_answers(data):
    draw = data.draw
    num_actions, batch_size, num_simulations = draw(st.integers(1, 6)), draw(st.integers(1, 11)), draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    model = random_model(int(rng.integers(2**31)), 20, num_actions, draw(st.sampled_from(["single", "two_player", "random"])))
    tables = vars(model).copy()
    for name in draw(st.sets(st.sampled_from(["reward", "discount", "prior_logits", "value"]))):
        extremes = draw(st.lists(st.sampled_from(EXTREMES), min_size=1))
        tables[name] = change(rng, tables[name], extremes)
    model = TabularModel(**tables)
    root = model.root(rng.integers(20, size=batch_size))
    changed, kind = draw(st.sampled_from(RootOutput._fields + RecurrentOutput._fields)), draw(st.sampled_from(sorted(KINDS)))
    at_root, simulation = draw(st.booleans()), draw(st.integers(0, num_simulations))
    calls = 0

    def answer(latent, action):
        nonlocal calls
        calls += 1
        seed = np.frombuffer(np.ascontiguousarray(to_numpy(latent)).tobytes(), np.uint8)
        output = model.step((int(seed.sum()) + np.arange(batch_size)) % 20, np.asarray(action))
        if calls == simulation and not at_root:
            output = output._replace(**{changed: KINDS[kind](getattr(output, changed))})
        return output

    with np.errstate(all="ignore"):
        if at_root and changed in RootOutput._fields:
            root = root._replace(**{changed: KINDS[kind](getattr(root, changed))})
        invalid = rng.random((batch_size, num_actions)) < draw(st.sampled_from([0.0, 0.4]))
        search, own = draw(
            st.sampled_from(
                [
                    (gumbel_muzero_search, ["gumbel_scale", "value_scale", "maxvisit_init", "max_num_considered_actions"]),
                    (muzero_search, ["dirichlet_fraction", "dirichlet_alpha", "pb_c_init", "pb_c_base", "temperature"]),
                ]
            )
        )
        options = draw(st.dictionaries(st.sampled_from([*own, "min_qvalue_range", "max_depth"]), NUMBERS | st.integers(1, 9)))
        scope = draw(st.sampled_from(["node", "tree"]))
        try:
            output = search(root, answer, num_simulations, action_masks=~invalid, qvalue_scope=scope, **options)
        except ValueError as error:
            assert "must" in str(error) and "got" in str(error), error
            return
    shape = (batch_size, num_actions)
    assert output.action_weights.shape == output.visit_counts.shape == output.qvalues.shape == shape
    assert not invalid[np.arange(batch_size), output.action].any()
    assert (output.action_weights[invalid] == 0).all() and (output.visit_counts[invalid] == 0).all()
    assert (output.visit_counts.sum(axis=1) == num_simulations).all()
    assert (output.action_weights >= 0).all()
    np.testing.assert_allclose(output.action_weights.sum(axis=1), 1.0, atol=1e-4)
    for array in (output.qvalues, output.value, output.improved_value, output.tree.node_values):
        assert np.isfinite(array).all()


@given(st.data())
def test_any_answers_of_a_model_with_chance(data):
    """One field of one call is of another kind, or holds extremes."""
    draw = data.draw
    num_actions, num_outcomes, batch_size = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    model = random_chance_model(int(rng.integers(2**31)), 20, num_actions, num_outcomes)
    fields = [("act", field) for field in AfterstateOutput._fields] + [("step", field) for field in RecurrentOutput._fields]
    function, changed = draw(st.sampled_from(fields))
    kind, extremes = draw(st.sampled_from([*sorted(KINDS), None])), draw(st.lists(st.sampled_from(EXTREMES), min_size=1))
    at_call, known = draw(st.integers(1, 12)), draw(st.booleans())
    calls = {"act": 0, "step": 0}

    def answer(name, output):
        calls[name] += 1
        if name != function or calls[name] != at_call:
            return output
        part = getattr(output, changed)
        return output._replace(**{changed: change(rng, part, extremes) if kind is None else KINDS[kind](part)})

    def act(state, action):
        output = model.act(np.asarray(state) % 20, np.asarray(action))
        return answer("act", output._replace(latent=np.stack(output.latent, axis=1)))

    def step(pair, outcome):
        state, action = np.abs(np.asarray(pair)).T.astype(np.int64)
        return answer("step", model.step((state % 20, action % num_actions), np.asarray(outcome)))

    search = draw(st.sampled_from([gumbel_muzero_search, muzero_search]))
    chance_model = ChanceModel(act, step, num_outcomes if known else None)
    with np.errstate(all="ignore"):
        try:
            output = search(model.root(rng.integers(20, size=batch_size)), chance_model, 20)
        except ValueError as error:
            assert "must" in str(error) and "got" in str(error), error
            return
    assert (output.visit_counts.sum(axis=1) == 20).all()
    np.testing.assert_allclose(output.action_weights.sum(axis=1), 1.0, atol=1e-4)
    assert np.isfinite(output.tree.node_values).all()
