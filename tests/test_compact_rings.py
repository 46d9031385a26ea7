"""What a replay buffer stores in less memory reads as if it was stored whole; what is larger than memory is warned of."""

import gc
import tracemalloc
import weakref
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from conftest import TinyEnv, differences, tiny_envs, tiny_model
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecFrameStack

from sb3_muzero.common.serialization import load_npz, save_npz
from sb3_muzero.replay import compact_rings, memory
from sb3_muzero.replay.compact_rings import BitRing, SparseRing
from sb3_muzero.replay.replay_buffer import SequenceReplayBuffer
from sb3_muzero.replay.sequences import SearchStatistics

NUMBER = spaces.Box(-np.inf, np.inf, (1,))
CHESS = spaces.Box(0, 1, (8, 8, 111), np.bool_)


def some_legal(rng: np.random.Generator, num: int, num_actions: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """:return: Random masks and policies over what they allow, shape ``[num, num_actions]``"""
    masks, weights = np.zeros((num, num_actions), np.bool_), np.zeros((num, num_actions), np.float32)
    for row in range(num):
        legal = rng.choice(num_actions, size=rng.integers(1, most + 1), replace=False)
        masks[row, legal] = True
        weights[row, legal] = rng.dirichlet(np.ones(len(legal)))
    return masks, weights


def used(num_actions: int, folder) -> list:
    """:return: All that is read from a buffer with a history of every kind"""
    rng, n_envs = np.random.default_rng(num_actions), 2
    buffer = SequenceReplayBuffer(60, NUMBER, spaces.Discrete(num_actions), "cpu", n_envs)
    read, num_turns = [], 50 if num_actions < 1000 else 8
    for turn in range(num_turns):
        masks, weights = some_legal(rng, 9, num_actions, num_actions if turn % 3 == 0 else min(num_actions, 4))
        # Also steps that were not searched, and from the fifth on with masks
        weights[:1] = 0.0 if turn % 7 == 0 else weights[:1]
        search = SearchStatistics(turn, None if turn % 11 == 5 else weights[:n_envs], action_masks=masks[:n_envs])
        search = search if turn > 4 else search._replace(action_masks=None)
        row = rng.normal(size=(2, n_envs, 1)), rng.integers(num_actions, size=n_envs), rng.normal(size=n_envs)
        buffer.add(*row[0], *row[1:], rng.random(n_envs) < 0.2, [{}] * n_envs, search)
        if turn % 5 == 4:
            searched = SearchStatistics(turn, weights[:3], action_masks=None if turn < 5 else masks[:3])
            buffer.add_episode(rng.normal(size=(4, 1)), rng.integers(num_actions, size=3), np.zeros(3), True, searched)
        stored = buffer.index.stored()
        buffer.update_search(rng.choice(stored, size=4), weights[-4:], turn)
        if turn == num_turns // 2:
            save_npz(folder / "buffer", buffer.state())
            buffer.load_state(load_npz(folder / "buffer"))
        np.random.seed(turn)
        read.append(buffer.sample(16, unroll_steps=3, n_steps=2)._asdict())
        read.append({"policies": buffer.policies[: buffer.size()] + 0, "row": buffer.policies[0, 1] + 0})
        if buffer.action_masks is not None:
            read.append({"masks": buffer.action_masks[: buffer.size()], "row": buffer.action_masks[0, 1]})
    return read


@pytest.mark.parametrize("num_actions", [1, 2, 5, 9, 300, 70_000])
def test_policies_without_their_zeros_read_as_whole_ones(num_actions, tmp_path, monkeypatch):
    read = []
    for most in (num_actions, num_actions - 1):
        monkeypatch.setattr(compact_rings, "MAX_DENSE_LENGTH", most)
        read.append(used(num_actions, tmp_path))
    assert differences(*read) == []


def test_rings_are_read_as_they_were_written():
    rng = np.random.default_rng(0)
    masks, weights = some_legal(rng, 40, 300, 300)
    for ring, rows in ((BitRing(20, 2, (300,)), masks), (SparseRing(20, 2, 300), weights)):
        assert not ring[:].any(), "what was never written is empty"
        for row in range(20):
            ring[row] = rows[2 * row : 2 * row + 2]
        assert ring[:].dtype == rows.dtype
        np.testing.assert_array_equal(ring[:], rows.reshape(20, 2, 300))
        np.testing.assert_array_equal(ring[3, 1], rows[7])
        ring[np.array([3, 4]), np.array([1, 0])] = rows[:2]
        np.testing.assert_array_equal(ring[3:5, 1], rows[[0, 9]])


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 1, (3, 4, 5), np.bool_),
        spaces.MultiBinary([3, 4, 5]),
        spaces.Dict({"bits": spaces.MultiBinary(11), "board": spaces.Box(0, 1, (3, 3), np.bool_), "number": NUMBER}),
    ],
    ids=["Box", "MultiBinary", "Dict"],
)
def test_binary_observations_are_stored_as_bits(space, tmp_path):
    env = TinyEnv(space, length=5)
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    buffer = tiny_model(env, policy=policy, novelty_coef=0.1).learn(60).replay_buffer
    save_npz(tmp_path / "buffer", buffer.state())
    loaded = SequenceReplayBuffer(1, space, env.action_space, "cpu", reward_bonus=buffer.reward_bonus)
    loaded.load_state(load_npz(tmp_path / "buffer"))
    for read in (buffer, loaded):
        observations = read.sequences(np.arange(0, 60, 5), np.zeros(12, int), 5, 1).observations
        for key, part in space.items() if isinstance(space, spaces.Dict) else [((), space)]:
            shown = np.array([[observation[key] for observation in episode] for episode in env.shown[:12]])
            stored = (observations[key] if key else observations).numpy().swapaxes(0, 1)
            assert stored.dtype == part.dtype
            np.testing.assert_array_equal(stored, shown)
            if key != "number":
                assert read.observations.frames[key][0, 0].nbytes == -(-int(np.prod(part.shape)) // 8)


def test_stacks_of_binary_frames_are_those_of_bytes():
    read = []
    for dtype in (np.bool_, np.uint8):
        env = VecFrameStack(tiny_envs(2, observation_space=spaces.Box(0, 1, (11,), dtype), length=7), 3)
        buffer = tiny_model(env, buffer_size=80, learning_starts=100).learn(90).replay_buffer
        assert buffer.frame_stack == 3 and (buffer.observations.frames.shape[2:] == (2,)) == (dtype == np.bool_)
        stacks = buffer.sequences(np.arange(3, 40), np.arange(37) % 2, 4, 2).observations.numpy()
        assert stacks.dtype == dtype
        read.append(stacks.astype(np.float32))
    assert read[0].any()
    np.testing.assert_array_equal(*read)


def test_bits_other_than_zero_and_one_are_refused():
    class Broken(TinyEnv):
        def _show(self):
            return super()._show() + 2 * (self.steps == 7)

    with pytest.raises(ValueError, match=r"Environment 0 returned .* at step 7, which is not in MultiBinary\(4\)"):
        tiny_model(Broken(spaces.MultiBinary(4))).learn(20)
    model = tiny_model(TinyEnv(spaces.MultiBinary(4)))
    with pytest.raises(ValueError, match=r"must be in MultiBinary\(4\), got 2"):
        model.predict(np.array([0, 1, 2, 1], np.int8))


def add_moves(buffer: SequenceReplayBuffer, steps: int, most: int, rng: np.random.Generator) -> None:
    observations = rng.random((steps + 1, *buffer.obs_shape)) < 0.5
    masks, weights = some_legal(rng, steps, buffer.action_space.n, most)
    for i in range(steps):
        search = SearchStatistics(i, weights[i : i + 1], action_masks=masks[i : i + 1])
        done = np.array([i % 80 == 79])
        buffer.add(observations[i][None], observations[i + 1][None], np.zeros(1), np.zeros(1), done, [{}], search)


def test_a_million_steps_of_chess_take_less_than_3_gb():
    rng, steps = np.random.default_rng(0), 3000
    buffer = SequenceReplayBuffer(steps, CHESS, spaces.Discrete(4672), "cpu")
    tracemalloc.start()
    add_moves(buffer, 1, 69, rng)
    empty = tracemalloc.get_traced_memory()[0]
    add_moves(buffer, steps, 69, rng)  # 35 legal moves in the mean, as in games of masters
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert taken > empty, "all is traced"
    step_bytes = memory.step_bytes(buffer, memory.examples(buffer))
    assert taken / steps < 2500 and 1e6 * step_bytes < 3e9
    assert step_bytes == pytest.approx(taken / steps, rel=0.05), "the figure counts all"


def test_a_buffer_that_is_no_longer_needed_gives_its_memory_back_at_once():
    buffer = SequenceReplayBuffer(100, CHESS, spaces.Discrete(4672), "cpu")
    add_moves(buffer, 10, 69, np.random.default_rng(0))
    known = weakref.ref(buffer)
    gc.disable()
    try:
        del buffer
        assert known() is None
    finally:
        gc.enable()


def test_masks_take_no_memory_before_they_are_written():
    buffer = SequenceReplayBuffer(10**6, NUMBER, spaces.Discrete(4000), "cpu")
    before = psutil.Process().memory_info().rss
    for masks in (None, np.ones((1, 4000), np.bool_)):
        search = SearchStatistics(action_masks=masks)
        buffer.add(np.zeros((1, 1)), np.ones((1, 1)), np.zeros(1), np.zeros(1), np.zeros(1), [{}], search)
    assert psutil.Process().memory_info().rss - before < 50e6
    assert buffer.action_masks[:2].all() and buffer.action_masks.nbytes == 5e8


def with_memory(monkeypatch: pytest.MonkeyPatch, total: float, available: float) -> None:
    known = SimpleNamespace(total=total, available=available)
    monkeypatch.setattr(memory, "psutil", SimpleNamespace(virtual_memory=lambda: known))


def test_more_than_is_available_is_said(monkeypatch):
    with_memory(monkeypatch, 1e9, 1000)
    with pytest.warns(UserWarning, match="a full replay buffer takes 0.00GB.*`buffer_size=[0-9]+` fits") as warned:
        tiny_model(TinyEnv(), buffer_size=2000).learn(1100)
    assert len([warning for warning in warned if "`buffer_size=" in str(warning.message)]) == 1


def test_more_than_is_available_is_warned_of_once_and_what_fits_is_not(monkeypatch, recwarn):
    with_memory(monkeypatch, 8e9, 5e9)
    rng = np.random.default_rng(0)
    everything = SequenceReplayBuffer(10**6, NUMBER, spaces.Discrete(2000), "cpu")
    figure = "With `buffer_size=1000000` a full replay buffer takes 8.09GB, .* has 5.00GB .* `buffer_size=610000` fits"
    with pytest.warns(UserWarning, match=figure):
        everything.add(np.zeros((1, 1)), np.ones((1, 1)), np.zeros(1), np.zeros(1), np.zeros(1), [{}])
    for buffer_size in (10**6, 610_000):
        fitting = everything if buffer_size == 10**6 else SequenceReplayBuffer(610_000, NUMBER, spaces.Discrete(2000), "cpu")
        fitting.add(np.zeros((1, 1)), np.ones((1, 1)), np.zeros(1), np.zeros(1), np.zeros(1), [{}])
    add_moves(SequenceReplayBuffer(10**6, CHESS, spaces.Discrete(4672), "cpu"), 1100, 69, rng)
    assert not recwarn.list


def test_what_is_known_after_a_thousand_steps_counts(monkeypatch):
    """That there are many legal moves, and an episode at each step, whose last observation is stored, too."""
    with_memory(monkeypatch, 10e9, 8e9)
    rng = np.random.default_rng(0)
    many = SequenceReplayBuffer(10**6, CHESS, spaces.Discrete(4672), "cpu")
    add_moves(many, 1, 69, rng)
    with pytest.warns(UserWarning, match=r"`buffer_size=\d+` fits"):
        add_moves(many, 1001, 4672, rng)
    short = SequenceReplayBuffer(10**6, spaces.Box(0, 255, (84, 84), np.uint8), spaces.Discrete(2), "cpu")
    image = np.zeros((1, 84, 84), np.uint8)
    with pytest.warns(UserWarning, match=r"takes 14\..*GB"):
        for _ in range(1001):
            short.add(image, image, np.zeros(1), np.zeros(1), np.array([True]), [{}])
