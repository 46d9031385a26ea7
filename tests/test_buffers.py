"""The replay ring: sequences equal a brute-force reading of the history, whatever the ring has been through."""

import pickle
from itertools import pairwise

import numpy as np
import pytest
from gymnasium import spaces

from sb3_muzero.buffers import SequenceReplayBuffer

NUM_ACTIONS = 3


def history(steps: int, n_envs: int, rng: np.random.Generator):
    """Random episodes. Observations are unique numbers, so that a mix-up can't go unnoticed."""
    serial = iter(range(10**6))
    obs = np.array([[next(serial)] for _ in range(n_envs)], dtype=np.float32)
    for _ in range(steps):
        end = rng.random(n_envs) < 0.15
        truncated = end & (rng.random(n_envs) < 0.5)
        successor = np.array([[next(serial)] for _ in range(n_envs)], dtype=np.float32)
        yield {
            "obs": obs,
            "next_obs": successor,
            "action": rng.integers(NUM_ACTIONS, size=n_envs),
            "reward": rng.normal(size=n_envs).astype(np.float32),
            "done": end,
            "infos": [{"TimeLimit.truncated": bool(t)} for t in truncated],
            "policy": rng.dirichlet(np.ones(NUM_ACTIONS), size=n_envs).astype(np.float32),
        }
        reset = np.array([[next(serial)] for _ in range(n_envs)], dtype=np.float32)
        obs = np.where(end[:, None], reset, successor)


def filled(buffer: SequenceReplayBuffer, steps: list[dict]) -> SequenceReplayBuffer:
    for step in steps:
        step = dict(step)
        buffer.store_search(step.pop("policy"), np.zeros(buffer.n_envs))
        buffer.add(**step)
    return buffer


def make_buffer(size: int, n_envs: int, **kwargs) -> SequenceReplayBuffer:
    box, discrete = spaces.Box(-np.inf, np.inf, (1,)), spaces.Discrete(NUM_ACTIONS)
    return SequenceReplayBuffer(size * n_envs, box, discrete, "cpu", n_envs, **kwargs)


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("size, steps", [(50, 20), (50, 50), (20, 57), (7, 40)])
def test_sequences_equal_brute_force(n_envs, size, steps):
    rng = np.random.default_rng(0)
    past = list(history(steps, n_envs, rng))
    buffer = filled(make_buffer(size, n_envs), past)
    stored = past[-size:]
    unroll, n = 3, 4
    for env in range(n_envs):
        for start in range(len(stored)):
            s = buffer.sequences(np.array([start]), np.array([env]), unroll, n)
            episode = []
            for step in stored[start : start + unroll + n]:
                episode.append(step)
                if step["done"][env]:
                    break
            length = len(episode)
            last = episode[-1]
            assert s.lengths.item() == length
            truncated = last["infos"][env]["TimeLimit.truncated"]
            assert s.terminated.item() == bool(last["done"][env] and not truncated)
            states = [step["obs"][env] for step in episode] + [last["next_obs"][env]]
            for k in range(unroll + 1):
                assert s.observations[k, 0].numpy() == states[min(k, length)]
                assert s.bootstrap_observations[k, 0].numpy() == states[min(k + n, length)]
                expected_policy = episode[k]["policy"][env] if k < length else np.zeros(NUM_ACTIONS)
                assert np.array_equal(s.policies[k, 0].numpy(), expected_policy)
            for i in range(unroll + n):
                assert s.rewards[i, 0].item() == (episode[i]["reward"][env] if i < length else 0.0)
            for i in range(min(unroll, length)):
                assert s.actions[i, 0].item() == episode[i]["action"][env]
            assert ((s.actions >= 0) & (s.actions < NUM_ACTIONS)).all()


@pytest.mark.parametrize(("recent_share", "num_recent"), [(1.0, 20), (0.75, 15), (0.46, 10), (1e-9, 1)])
def test_every_transition_is_sampled_recent_ones_more_and_the_newest_and_the_last_of_an_episode_too(recent_share, num_recent):
    np.random.seed(0)
    past = list(history(30, 2, np.random.default_rng(1)))
    buffer = filled(make_buffer(20, 2, recent_share=recent_share), past)
    sampled = buffer.sample(32_000, unroll_steps=2, n_steps=2).observations[0].flatten().tolist()
    stored = np.array([[float(step["obs"][env, 0]) for env in range(2)] for step in past[-20:]])
    counts = np.array([[sampled.count(obs) for obs in row] for row in stored])
    assert counts.sum() == 32_000
    np.testing.assert_allclose(counts[-num_recent:], 100 + 14_000 / num_recent, rtol=0.2)
    np.testing.assert_allclose(counts[:-num_recent], 100, rtol=0.4)


@pytest.mark.parametrize("recent_share", [0.0, 1.5, float("nan")])
def test_a_share_outside_of_its_range_is_refused(recent_share):
    with pytest.raises(ValueError, match="`recent_share` must be above 0 and at most 1"):
        make_buffer(20, 2, recent_share=recent_share)


def test_a_reset_between_two_learn_calls_cuts_the_episode():
    buffer = make_buffer(20, 1)
    info = [{}]
    buffer.add(np.array([[1.0]]), np.array([[2.0]]), np.array([0]), np.array([1.0]), np.array([False]), info)
    buffer.cut()
    buffer.add(np.array([[7.0]]), np.array([[8.0]]), np.array([0]), np.array([1.0]), np.array([False]), info)
    s = buffer.sequences(np.array([0]), np.array([0]), 2, 2)
    assert s.lengths.item() == 1 and not s.terminated.item()
    assert s.observations.flatten().tolist() == [1.0, 2.0, 2.0]


def test_pickle_keeps_sequences_and_goes_on(tmp_path):
    past = list(history(45, 2, np.random.default_rng(2)))
    for size in (30, 100):
        whole = filled(make_buffer(size, 2), past)
        half = pickle.loads(pickle.dumps(filled(make_buffer(size, 2), past[:33])))
        resumed = filled(half, past[33:])
        ages, envs = np.arange(whole.size()), np.arange(whole.size()) % 2
        np.random.seed(0)
        expected = whole.sequences(ages, envs, 3, 4)
        np.random.seed(0)
        for a, b in zip(expected, resumed.sequences(ages, envs, 3, 4), strict=True):
            assert (a == b).all()


def test_memory_is_allocated_lazily_and_observations_are_stored_once_in_their_dtype():
    space = spaces.Box(0, 255, (84, 84), dtype=np.uint8)
    buffer = SequenceReplayBuffer(10**6, space, spaces.Discrete(2), "cpu", 1)
    assert not any(isinstance(value, np.ndarray) for value in vars(buffer).values())
    assert len(pickle.dumps(buffer)) < 100_000
    small = SequenceReplayBuffer(100, space, spaces.Discrete(2), "cpu", 1)
    obs = np.zeros((1, 84, 84), dtype=np.uint8)
    for _ in range(250):
        small.add(obs, obs, np.array([0]), np.array([0.0]), np.array([True]), [{}])
    assert small.observations.dtype == np.uint8
    assert len(small.final_observations) <= 256, "slots of overwritten episode ends are used again"
    assert small.observations.nbytes == 100 * 84 * 84


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(5, start=2),
        spaces.MultiDiscrete([3, 4]),
        spaces.MultiBinary(6),
        spaces.MultiBinary([2, 3]),
        spaces.Box(-1, 1, (2, 3, 4), dtype=np.float64),
        spaces.Box(0, 9, (3,), dtype=np.int16),
    ],
)
def test_observation_spaces_come_back_as_they_went_in(space):
    space.seed(0)
    observations = [np.stack([np.asarray(space.sample()) for _ in range(2)]) for _ in range(6)]
    buffer = SequenceReplayBuffer(20, space, spaces.Discrete(2), "cpu", 2)
    for obs, successor in pairwise(observations):
        buffer.add(obs, successor, np.zeros(2), np.zeros(2), np.zeros(2, bool), [{}, {}])
    sequence = buffer.sequences(np.array([0, 0]), np.array([0, 1]), 5, 1)
    assert np.array_equal(sequence.observations.numpy(), np.stack(observations))
