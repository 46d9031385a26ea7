"""Whatever a file of ours holds: it is refused by name and nothing is replaced, or what was loaded can be used."""

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch as th
from conftest import TinyEnv, tiny_model
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_muzero import MuZero
from sb3_muzero.checkpoints import load_checkpoint
from sb3_muzero.storage import load_tree, save_tree

DICT = spaces.Dict({"vector": spaces.Box(-1, 1, (3,), np.float32), "number": spaces.Discrete(4)})
KWARGS: dict[str, Any] = {"replay_buffer_kwargs": {"priority_exponent": 0.6}, "novelty_coef": 0.1}


class Masked(TinyEnv):
    def action_masks(self) -> np.ndarray:
        return np.array([True, self.steps % 2 == 0, True])


def leaves(tree: Any, path: tuple = ()) -> list[tuple]:
    """:return: Where the leaves of a tree are, and its branches"""
    if isinstance(tree, dict | list) and len(tree) < 100:
        parts = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return [path, *(leaf for key, part in parts for leaf in leaves(part, (*path, key)))]
    return [path]


def with_leaf(tree: Any, path: tuple, change: Any) -> Any:
    """:return: The tree with another leaf; none where ``change`` gives ``DELETED``"""
    changed = copy.copy(tree)
    value = with_leaf(tree[path[0]], path[1:], change) if len(path) > 1 else change(tree[path[0]])
    if value is DELETED:
        del changed[path[0]]
    else:
        changed[path[0]] = value
    return changed


DELETED = object()


def scaled(factor: float) -> Any:
    def change(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray | th.Tensor) and leaf.dtype not in (bool, th.bool, th.uint8) and leaf.dtype != np.uint8:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # NaN as an integer
                return (leaf * factor).astype(leaf.dtype) if isinstance(leaf, np.ndarray) else (leaf * factor).to(leaf.dtype)
        return leaf * factor if isinstance(leaf, int | float) else str(factor)

    return change


def as_complex(leaf: Any) -> Any:
    if isinstance(leaf, th.Tensor):
        return leaf.to(th.complex64)
    return leaf.astype(np.complex64) if isinstance(leaf, np.ndarray) and leaf.dtype.names is None else "1j"


CHANGES: dict[str, Any] = {
    "deleted": lambda leaf: DELETED,
    "none": lambda leaf: None,
    "text": lambda leaf: "text",
    "list": lambda leaf: [1, [2]],
    "dictionary": lambda leaf: {"a": 1},
    "negative": lambda leaf: -7 if isinstance(leaf, int) else scaled(-7.0)(leaf),
    "huge": lambda leaf: 10**30 if isinstance(leaf, int) else scaled(1e30)(leaf),
    "NaN": scaled(float("nan")),
    "empty": lambda leaf: (
        leaf[:0] if isinstance(leaf, np.ndarray | list) else leaf.flatten()[:0] if isinstance(leaf, th.Tensor) else False
    ),
    "one more axis": lambda leaf: leaf[None] if isinstance(leaf, np.ndarray | th.Tensor) else [leaf],
    "another dtype": as_complex,
}


@pytest.fixture(scope="module", params=[Masked().observation_space, DICT], ids=["vectors", "Dict"])
def trained(request, tmp_path_factory) -> tuple[MuZero, Any, Any]:
    folder = tmp_path_factory.mktemp("files")
    policy = "MultiInputPolicy" if request.param is DICT else "MlpPolicy"
    model = tiny_model(Masked(request.param, length=9), buffer_size=300, policy=policy, **KWARGS).learn(280)
    model.save_replay_buffer(folder / "buffer.npz")
    return model, load_tree(folder / "buffer.npz"), folder


def arrays_of(buffer: Any) -> dict[str, np.ndarray]:
    return {name: value for name, value in vars(buffer).items() if isinstance(value, np.ndarray)}


@pytest.mark.parametrize("change", CHANGES)
def test_replay_buffers(trained, change):
    model, state, folder = trained
    refused = 0
    for path in leaves(state)[1:]:
        try:
            bad = with_leaf(state, path, CHANGES[change])
            save_tree(folder / "bad.npz", bad)
        except (TypeError, ValueError, OverflowError):  # that no file of ours can hold
            continue
        before, arrays = model.replay_buffer, arrays_of(model.replay_buffer)
        copies = {name: array.copy() for name, array in arrays.items()}
        try:
            model.load_replay_buffer(folder / "bad.npz")
        except ValueError as error:
            refused += 1
            assert "replay buffer" in str(error) or "`" in str(error), f"{path}: {error}"
            assert model.replay_buffer is before
        else:
            assert model.replay_buffer.size() > 0 or path[0] in ("full", "pos", "observations")
            with np.errstate(all="raise"):
                model.train(2, batch_size=16)
            assert all(tensor.isfinite().all() for tensor in model.policy.state_dict().values()), path
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, copies[name], err_msg=f"{path}: {name}")
        model.replay_buffer = before
    assert refused > 10


@pytest.mark.parametrize("change", [c if c == "deleted" else pytest.param(c, marks=pytest.mark.slow) for c in CHANGES])
def test_checkpoints(change, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where logs go
    model = tiny_model(TinyEnv(), buffer_size=300, **KWARGS).learn(60)
    path = model.save_checkpoint(tmp_path)
    state = load_checkpoint(tmp_path)
    refused = 0
    for leaf in leaves(state)[1:]:
        if leaf[0] == "replay_buffer" and len(leaf) > 1:
            continue
        try:
            save_tree(path, with_leaf(state, leaf, CHANGES[change]))
        except (TypeError, ValueError, OverflowError):
            continue
        try:
            resumed = MuZero.resume(tmp_path, TinyEnv())
        except ValueError as error:
            assert "checkpoint" in str(error) or "`" in str(error), f"{leaf}: {error}"
            refused += 1
        else:
            if leaf[0] == "settings":  # which are as they are, a billion simulations if need be
                continue
            try:
                resumed.learn(4, reset_num_timesteps=False)
            except ValueError as error:
                assert leaf[0] == "policy" and "must be" in str(error), f"{leaf}: {error}"
    assert refused > 10


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_bytes_of_any_kind(tmp_path_factory, data):
    """Files that were cut, had bytes changed, or were never ours."""
    folder = tmp_path_factory.mktemp("bytes")
    save_tree(
        folder / "tree", {"numbers": np.arange(50.0), "tensor": th.arange(3), "name": "x", "list": [1, None, {"a": True}]}
    )
    content = bytearray((folder / "tree").read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(0, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content += data.draw(st.binary(max_size=5))
    (folder / "tree").write_bytes(content)
    try:
        tree = load_tree(folder / "tree")
    except ValueError as error:
        assert "damaged" in str(error)
    else:
        np.testing.assert_array_equal(tree["numbers"], np.arange(50.0))
        assert tree["name"] == "x" and tree["list"] == [1, None, {"a": True}] and th.equal(tree["tensor"], th.arange(3))
