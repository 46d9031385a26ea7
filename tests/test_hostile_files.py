"""Files with damaged or made-up contents are refused by name and replace nothing, or what was loaded can be used."""

import copy
import json
import resource
import tracemalloc
import warnings
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch as th
from conftest import UNIT_BOX, TinyEnv, tiny_model
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from sb3_muzero import MuZero
from sb3_muzero.checkpointing import load_model, resume, save_checkpoint
from sb3_muzero.checkpointing.files import load_checkpoint
from sb3_muzero.checkpointing.settings import encode
from sb3_muzero.common.serialization import load_npz, save_npz
from sb3_muzero.common.validation import is_in_space
from sb3_muzero.replay.replay_buffer import SequenceReplayBuffer

DICT = spaces.Dict({"vector": spaces.Box(-1, 1, (3,), np.float32), "number": spaces.Discrete(4)})
KWARGS: dict[str, Any] = {"replay_buffer_kwargs": {"priority_exponent": 0.6}, "novelty_coef": 0.1}


class Masked(TinyEnv):
    def action_masks(self) -> np.ndarray:
        masks = np.ones(self.action_space.n, np.bool_)
        masks[1 : max(2, len(masks) - 5)] = self.steps % 2 == 0
        return masks


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
    "text": lambda leaf: "text",
    "dictionary": lambda leaf: {"a": 1},
    "negative": lambda leaf: -7 if isinstance(leaf, int) else scaled(-7.0)(leaf),
    "huge": lambda leaf: 10**30 if isinstance(leaf, int) else scaled(1e30)(leaf),
    "NaN": scaled(float("nan")),
    "empty": lambda leaf: (
        leaf[:0] if isinstance(leaf, np.ndarray | list) else leaf.flatten()[:0] if isinstance(leaf, th.Tensor) else False
    ),
    "another dtype": as_complex,
}


SPACES: dict[str, tuple[spaces.Space, int]] = {
    "vectors": (UNIT_BOX, 3),
    "Dict": (DICT, 3),
    "bits": (spaces.MultiBinary(11), 300),
}


@pytest.fixture(scope="module", params=SPACES)
def trained(request, tmp_path_factory) -> tuple[MuZero, Any, Any]:
    folder = tmp_path_factory.mktemp("files")
    space, num_actions = SPACES[request.param]
    env = Masked(space, spaces.Discrete(num_actions), length=9)
    policy = "MultiInputPolicy" if space is DICT else "MlpPolicy"
    model = tiny_model(env, buffer_size=300, policy=policy, **KWARGS).learn(280)
    model.save_replay_buffer(folder / "buffer.npz")
    return model, load_npz(folder / "buffer.npz"), folder


def arrays_of(buffer: Any) -> dict[str, np.ndarray]:
    rings = {name: getattr(value, "bits", value) for name, value in vars(buffer).items()}
    return {name: value for name, value in rings.items() if isinstance(value, np.ndarray)}


def is_refused(model: MuZero, file: Path, paths: list[tuple]) -> bool:
    """:return: Whether the file is; if not, it was learned from. The model's own replay buffer stays as it was"""
    before, own = model.replay_buffer, arrays_of(model.replay_buffer)
    copies = {name: array.copy() for name, array in own.items()}
    refused = False
    try:
        model.load_replay_buffer(file)
    except ValueError as error:
        refused = True
        assert "replay buffer" in str(error) or "`" in str(error), f"{paths}: {error}"
        assert model.replay_buffer is before
    else:
        assert model.replay_buffer.size() > 0 or paths == [("num_written",)]
        with np.errstate(all="raise", under="ignore"):
            model.train(2, batch_size=16)
        assert all(tensor.isfinite().all() for tensor in model.policy.state_dict().values()), paths
    for name, array in own.items():
        np.testing.assert_array_equal(array, copies[name], err_msg=f"{paths}: {name}")
    model.replay_buffer = before
    return refused


@pytest.mark.parametrize("change", CHANGES)
def test_replay_buffers(trained, change):
    model, state, folder = trained
    refused = 0
    for path in leaves(state)[1:]:
        try:
            save_npz(folder / "bad.npz", with_leaf(state, path, CHANGES[change]))
        except (TypeError, ValueError, OverflowError):  # that no file of ours can hold
            continue
        refused += is_refused(model, folder / "bad.npz", [path])
    assert refused > 10


INDICES: dict[tuple, Any] = {
    ("buffer_size",): lambda leaf: 2**63,
    ("num_written",): lambda leaf: leaf + 1,
    ("num_written", "negative"): lambda leaf: -leaf,
    ("rings", "actions"): lambda leaf: leaf + 3,
    ("rings", "actions", "negative"): lambda leaf: leaf - 3,
    ("observations", "ends"): lambda leaf: ~leaf,
    ("bonus", "bucket_ids"): lambda leaf: leaf + (1 << 18),
    ("bonus", "bucket_ids", "negative"): lambda leaf: -1 - leaf,
    ("sampler", "priorities"): lambda leaf: 0 * leaf,
}


@pytest.mark.parametrize("path", INDICES, ids=str)
def test_indices_outside_of_arrays_are_refused(trained, path):
    model, state, folder = trained
    save_npz(folder / "bad.npz", with_leaf(state, path[:2] if path[-1] != "negative" else path[:-1], INDICES[path]))
    assert is_refused(model, folder / "bad.npz", [path])


RECORDS: dict[str, tuple[str, Any]] = {
    "NaN": ("entries", lambda leaf: np.where(np.arange(len(leaf)) == 7, np.float32(np.nan), leaf)),
    "too few entries": ("entries", lambda leaf: leaf[:-1]),
    "too many entries": ("entries", lambda leaf: leaf[[*range(len(leaf)), -1]]),
    "other bits": ("bits", lambda leaf: ~leaf),
    "too few bits": ("bits", lambda leaf: leaf[..., :-1]),
}


@pytest.mark.parametrize("trained", ["bits"], indirect=True)
@pytest.mark.parametrize("kind", RECORDS)
def test_policies_of_many_actions(trained, kind):
    model, state, folder = trained
    name, change = RECORDS[kind]
    policies = state["rings"]["policies"]
    assert len(policies["entries"]) > 100
    save_npz(folder / "bad.npz", with_leaf(state, ("rings", "policies", name), change))
    assert is_refused(model, folder / "bad.npz", [(kind,)])


@pytest.mark.parametrize(
    ("space", "allowed", "others"),
    [
        (spaces.Discrete(4, start=2), [2, 5], [1, 6, -(2**63)]),
        (spaces.MultiDiscrete([2, 3], start=[0, -1]), [[0, -1], [1, 1]], [[2, 0], [0, -2], [0, 2]]),
        (spaces.MultiDiscrete([28], np.int8, start=[100]), [[100], [127]], [[99], [-128]]),
    ],
    ids=str,
)
def test_classes_are_those_of_the_space(space, allowed, others):
    assert is_in_space(np.array(allowed, space.dtype), space).all()
    assert not is_in_space(np.array(allowed[0]) + 0.5, space).any()
    for other in others:
        found = is_in_space(np.array([allowed[0], other], space.dtype), space)
        assert found[0].all() and not found[1].all()


@pytest.mark.parametrize("change", [c if c == "deleted" else pytest.param(c, marks=pytest.mark.slow) for c in CHANGES])
def test_checkpoints(change, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where logs go
    model = tiny_model(TinyEnv(), buffer_size=300, **KWARGS).learn(60)
    path = save_checkpoint(model, tmp_path)
    state = load_checkpoint(tmp_path)
    refused = 0
    for leaf in leaves(state)[1:]:
        if leaf[0] == "replay_buffer" and len(leaf) > 1:
            continue
        try:
            save_npz(path, with_leaf(state, leaf, CHANGES[change]))
        except (TypeError, ValueError, OverflowError):
            continue
        try:
            resumed = resume(tmp_path, TinyEnv())
        except ValueError as error:
            assert "checkpoint" in str(error) or "`" in str(error), f"{leaf}: {error}"
            refused += 1
        else:
            if leaf[0] == "settings":  # which are as they are, a billion simulations if need be
                continue
            try:
                resumed.learn(4, reset_num_timesteps=False)
            except ValueError as error:
                assert leaf[0] in ("policy", "optimizer") and "must be" in str(error), f"{leaf}: {error}"
    assert refused > 10


def test_small_files_do_not_take_much_memory(trained):
    """Zeros can be compressed to a thousandth."""
    model, state, folder = trained
    save_npz(folder / "buffer.npz", state)
    name = json.loads(np.load(folder / "buffer.npz")["structure"].tobytes())["rings"]["rewards"]["array of the file"]
    with ZipFile(folder / "buffer.npz") as file, ZipFile(folder / "bomb.npz", "w", ZIP_DEFLATED, compresslevel=9) as bomb:
        for member in file.namelist():
            if member != f"{name}.npy":
                bomb.writestr(member, file.read(member))
        with bomb.open(f"{name}.npy", "w", force_zip64=True) as content:
            header = {"descr": "<f4", "fortran_order": False, "shape": (2**26, 1)}
            np.lib.format.write_array_header_1_0(content, header)  # type: ignore[arg-type]
            for _ in range(2**8):
                content.write(bytes(2**20))
    assert (folder / "bomb.npz").stat().st_size < 2**20
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"its \d+ bytes claim to hold arrays of 270\d+ bytes"):
            model.load_replay_buffer(folder / "bomb.npz")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2**24


def test_a_size_beyond_the_machines_memory_is_refused_with_the_figures(trained):
    model, state, folder = trained
    save_npz(folder / "bad.npz", {**state, "buffer_size": 10**12})
    with pytest.raises(ValueError, match=r"`buffer_size` 1000000000000 takes more than 4000.00 GB .* GB of memory"):
        model.load_replay_buffer(folder / "bad.npz")


LARGER: dict[str, Any] = {
    "net_arch": {"net_arch": [10**6]},
    "layers": {"net_arch": [64] * 1000},
    "latent_dim": {"latent_dim": 8 * 10**5},
    "num_bins": {"num_bins": 10**7},
}


@pytest.mark.parametrize("name", LARGER)
def test_networks_that_are_larger_than_their_weights_are_not_built(name, tmp_path):
    path = save_checkpoint(tiny_model(TinyEnv()), tmp_path)
    state = load_checkpoint(tmp_path)
    state["settings"]["policy_kwargs"] = encode(LARGER[name])
    save_npz(path, state)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for load in (resume, load_model):
        with pytest.raises(ValueError, match=r"`policy_kwargs`, are of larger networks than the file's, .* 0\.\d MB"):
            load(tmp_path, TinyEnv())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2e5, "kilobytes"


class TensorBuffer(SequenceReplayBuffer):
    """A user's, which keeps more than the networks have."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.beside = th.zeros(5_000_000)


def test_the_memory_of_a_replay_buffer_is_not_that_of_networks(tmp_path):
    save_checkpoint(tiny_model(TinyEnv(), replay_buffer_class=TensorBuffer).learn(20), tmp_path)
    for load in (resume, load_model):
        assert isinstance(load(tmp_path, TinyEnv()).learn(4, reset_num_timesteps=False).replay_buffer, TensorBuffer)


def test_a_file_does_not_decide_where_to_write(tmp_path):
    save_checkpoint(tiny_model(TinyEnv(), tensorboard_log=str(tmp_path / "logs")), tmp_path / "run")
    with pytest.warns(UserWarning, match=r"`tensorboard_log`: pass it to log there again, '.*logs'"):
        resumed = resume(tmp_path / "run", TinyEnv())
    resumed.learn(4, reset_num_timesteps=False)
    assert not (tmp_path / "logs").exists()
    resume(tmp_path / "run", TinyEnv(), tensorboard_log=str(tmp_path / "logs")).learn(4, reset_num_timesteps=False)
    assert (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maximize": True}, "`optimizer.maximize` must be False as in `optimizer_kwargs`, got True"),
        ({"amsgrad": True}, "`optimizer.amsgrad` must be False"),
        ({"fused": 1}, "`optimizer.fused` must be True"),
        ({"momentum": 0.9}, "`optimizer.momentum` is unknown to AdamW"),
        ({"betas": [2.0, 0.9]}, "Invalid beta"),
        ({"weight_decay": -5.0}, "Invalid weight_decay"),
    ],
    ids=str,
)
def test_groups_of_an_optimizer_are_those_that_it_can_have(change, message, tmp_path):
    path = save_checkpoint(tiny_model(TinyEnv()).learn(40), tmp_path)
    state = load_checkpoint(tmp_path)
    state["optimizer"]["param_groups"][0].update(change)
    save_npz(path, state)
    with pytest.raises(ValueError, match=message):
        resume(tmp_path, TinyEnv())


def test_what_others_keep_in_an_optimizers_groups_is_not_saved(tmp_path):
    """Schedulers of PyTorch add ``initial_lr``."""
    model = tiny_model(TinyEnv()).learn(40)
    th.optim.lr_scheduler.StepLR(model.policy.optimizer, 1)
    save_checkpoint(model, tmp_path)
    assert "initial_lr" not in resume(tmp_path, TinyEnv()).policy.optimizer.param_groups[0]


@given(st.data())
def test_bytes_of_any_kind(tmp_path_factory, data):
    """Files that were cut, had bytes changed, or were never ours."""
    folder = tmp_path_factory.mktemp("bytes")
    save_npz(
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
        tree = load_npz(folder / "tree")
    except ValueError as error:
        assert "damaged" in str(error)
    else:
        np.testing.assert_array_equal(tree["numbers"], np.arange(50.0))
        assert tree["name"] == "x" and tree["list"] == [1, None, {"a": True}] and th.equal(tree["tensor"], th.arange(3))


@given(st.data())
def test_members_of_any_kind(tmp_path_factory, data):
    """Files whose checksums are right, whatever is in them."""
    folder = tmp_path_factory.mktemp("members")
    save_npz(folder / "tree", {"numbers": np.arange(5.0), "name": "x", "list": [1, {"a": th.arange(3)}]})
    with ZipFile(folder / "tree") as file:
        members = {name: bytearray(file.read(name)) for name in file.namelist()}
    for _ in range(data.draw(st.integers(1, 3))):
        content = members[data.draw(st.sampled_from(sorted(members)))]
        if data.draw(st.booleans()):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        else:
            start = data.draw(st.integers(0, len(content) - 1))
            content[start : start + data.draw(st.integers(0, 9))] = data.draw(st.binary(min_size=1, max_size=9))
    with ZipFile(folder / "tree", "w") as file:
        for name, content in members.items():
            file.writestr(name, bytes(content))
    try:
        tree = load_npz(folder / "tree")
    except ValueError as error:
        assert "damaged" in str(error)
    else:
        assert isinstance(tree, dict)
        save_npz(folder / "tree", tree)
