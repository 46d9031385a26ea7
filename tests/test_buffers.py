"""The replay ring: sequences equal a brute-force reading of the history, whatever the ring has been through."""

from itertools import pairwise

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch as th
from conftest import TinyEnv, differences, sequences_of, tiny_model
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_muzero.common.serialization import load_npz, save_npz
from sb3_muzero.exploration.count_bonus import CountBonus
from sb3_muzero.replay.reading import read_sequences
from sb3_muzero.replay.replay_buffer import SequenceReplayBuffer
from sb3_muzero.replay.sequences import SearchStatistics

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
            "masks": rng.random((n_envs, NUM_ACTIONS)) < 0.5,
        }
        reset = np.array([[next(serial)] for _ in range(n_envs)], dtype=np.float32)
        obs = np.where(end[:, None], reset, successor)


def filled(buffer: SequenceReplayBuffer, steps: list[dict]) -> SequenceReplayBuffer:
    for step in steps:
        step = dict(step)
        buffer.add(search=SearchStatistics(0, step.pop("policy"), action_masks=step.pop("masks")), **step)
    return buffer


def make_buffer(size: int, n_envs: int, **kwargs) -> SequenceReplayBuffer:
    box, discrete = spaces.Box(-np.inf, np.inf, (1,)), spaces.Discrete(NUM_ACTIONS)
    return SequenceReplayBuffer(size * n_envs, box, discrete, "cpu", n_envs, reward_bonus=CountBonus, **kwargs)


def assert_equal_to_history(buffer: SequenceReplayBuffer, pasts: list[list[dict]], unroll: int = 3, n: int = 4) -> None:
    """:param pasts: The steps of each environment that are to be in the buffer; "cut" ends a sequence, too"""
    for env, stored in enumerate(pasts):
        for start in range(len(stored)):
            s = sequences_of(buffer, np.array([start]), np.array([env]), unroll, n)
            episode = []
            for step in stored[start : start + unroll + n]:
                episode.append(step)
                if step["done"] or step.get("cut"):
                    break
            length, last, n_stored = len(episode), episode[-1], min(n, buffer.size())
            assert s.lengths.item() == min(length, unroll + n_stored)
            assert s.terminated.item() == (last["done"] and not last["truncated"])
            states = [step["obs"] for step in episode] + [last["next_obs"]]
            for k in range(unroll + 1):
                assert s.observations[k, 0].numpy() == states[min(k, length)]
                assert s.bootstrap_observations[k, 0].numpy() == states[min(k + n_stored, length)]
                expected_policy = episode[k]["policy"] if k < length else np.zeros(NUM_ACTIONS)
                assert np.array_equal(s.policies[k, 0].numpy(), expected_policy)
                assert np.array_equal(
                    s.action_masks[k, 0].numpy(), episode[k]["masks"] if k < length else [True] * NUM_ACTIONS
                )
            for i in range(unroll + n_stored):
                assert s.rewards[i, 0].item() == (episode[i]["reward"] if i < length else 0.0)
            for i in range(min(unroll, length)):
                assert s.actions[i, 0].item() == episode[i]["action"]
            assert ((s.actions >= 0) & (s.actions < NUM_ACTIONS)).all()


def of_env(step: dict, env: int) -> dict:
    truncated = step["infos"][env]["TimeLimit.truncated"]
    return {key: part[env] for key, part in step.items() if key != "infos"} | {"truncated": truncated}


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("size, steps", [(50, 20), (50, 50), (20, 57), (7, 40)])
def test_sequences_equal_brute_force(n_envs, size, steps):
    past = list(history(steps, n_envs, np.random.default_rng(0)))
    buffer = filled(make_buffer(size, n_envs), past)
    assert_equal_to_history(buffer, [[of_env(step, env) for step in past[-size:]] for env in range(n_envs)])


def one_episode(rng: np.random.Generator, length: int, serial: float) -> list[dict]:
    """Steps of an episode, with observations that no ``history`` has"""
    return [
        {
            "obs": np.float32([serial + i]),
            "next_obs": np.float32([serial + i + 1]),
            "action": int(rng.integers(NUM_ACTIONS)),
            "reward": np.float32(rng.normal()),
            "done": i == length - 1,
            "truncated": serial % 2 == 1,
            "policy": rng.dirichlet(np.ones(NUM_ACTIONS)).astype(np.float32),
            "masks": rng.random(NUM_ACTIONS) < 0.5,
        }
        for i in range(length)
    ]


def add_episode(buffer: SequenceReplayBuffer, steps: list[dict], env: int | None = None) -> None:
    parts = {key: np.array([step[key] for step in steps]) for key in ("obs", "action", "reward", "policy", "masks")}
    observations = np.concatenate([parts["obs"], steps[-1]["next_obs"][None]])
    search = SearchStatistics(0, parts["policy"], action_masks=parts["masks"])
    buffer.add_episode(observations, parts["action"], parts["reward"], not steps[-1]["truncated"], search, env)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [6, 25, 200])
def test_rows_and_episodes_can_be_mixed(size, seed, tmp_path):
    rng, n_envs = np.random.default_rng(seed), 3
    buffer = make_buffer(size, n_envs, priority_exponent=seed % 2)
    pasts: list[list[dict]] = [[] for _ in range(n_envs)]
    rows = history(60, n_envs, rng)
    for turn in range(40):
        if rng.random() < 0.6:
            step = next(rows)
            filled(buffer, [step])
            for env, past in enumerate(pasts):
                past.append(of_env(step, env))
        else:
            episode = one_episode(rng, int(rng.integers(1, 12)), 1e5 + 100 * turn + int(rng.integers(2)))
            env = None if rng.random() < 0.5 else int(rng.integers(n_envs))
            chosen = min(range(n_envs), key=lambda e: len(pasts[e])) if env is None else env
            add_episode(buffer, episode, env)
            if pasts[chosen]:
                pasts[chosen][-1]["cut"] = True
            pasts[chosen] += episode[-size:]
        if turn == 20:
            buffer.load_state(saved(buffer, tmp_path))
    stored = [past[-size:] for past in pasts]
    assert buffer.size() == max(map(len, stored)) and buffer.full == (buffer.size() == size)
    assert_equal_to_history(buffer, stored)
    sampled = buffer.sample(40_000, unroll_steps=1, n_steps=1).observations[0].flatten().tolist()
    assert set(sampled) == {float(step["obs"][0]) for past in stored for step in past}


def test_of_an_episode_longer_than_the_ring_the_newest_steps_stay():
    buffer = make_buffer(10, 2)
    episode = one_episode(np.random.default_rng(0), 35, 1e5)
    add_episode(buffer, episode, env=1)
    assert (buffer.size(), buffer.pos, buffer.full) == (10, 0, True)
    assert_equal_to_history(buffer, [[], episode[-10:]])


def test_of_stacked_frames_an_episode_is_stored_as_rows_are():
    space, frames = spaces.Box(-np.inf, np.inf, (3,)), np.r_[0.0, 0.0, np.arange(1.0, 9.0)]
    stacks = np.stack([frames[i : i + 3] for i in range(8)])
    buffer = SequenceReplayBuffer(40, space, spaces.Discrete(NUM_ACTIONS), "cpu", 2, frame_stack=3)
    for _ in range(2):
        for obs, next_obs in pairwise(stacks):
            done = np.full(2, next_obs[-1] == 8)
            buffer.add(np.stack([obs] * 2), np.stack([next_obs] * 2), np.zeros(2), np.zeros(2), done, [{}, {}])
        buffer.add_episode(stacks, np.zeros(7), np.zeros(7), True, env=0)
    ages = np.arange(20)
    observations = sequences_of(buffer, ages[2:], np.zeros(18, int), 1, 1).observations
    np.testing.assert_array_equal(observations[0], np.concatenate([stacks[:7]] * 4)[-18:])
    np.testing.assert_array_equal(observations[1], np.concatenate([stacks[1:]] * 4)[-18:])
    with pytest.raises(ValueError, match="not stacks of 3"):
        buffer.add_episode(stacks[::-1], np.zeros(7), np.zeros(7), True)
    with pytest.raises(ValueError, match="at least one step"):
        buffer.add_episode(stacks[:1], np.zeros(0), np.zeros(0), True)


@pytest.mark.parametrize(("recent_fraction", "num_recent"), [(1.0, 40), (0.5, 20)])
def test_environments_of_unequal_length_are_sampled_uniformly(recent_fraction, num_recent):
    np.random.seed(0)
    buffer, lengths = make_buffer(40, 3, recent_fraction=recent_fraction), (40, 25, 5)
    episodes = [one_episode(np.random.default_rng(0), length, 1e5 * (env + 1)) for env, length in enumerate(lengths)]
    for env, episode in enumerate(episodes):
        add_episode(buffer, episode, env)
    ids = buffer.sample(70_000, unroll_steps=1, n_steps=1).ids[0]
    counts = [np.bincount(ids[ids % 3 == env] // 3, minlength=length) for env, length in enumerate(lengths)]
    recent, others = zip(*((count[-num_recent:], count[:-num_recent]) for count in counts), strict=True)
    num = sum(map(len, recent))
    np.testing.assert_allclose(np.concatenate(recent), 70_000 * (7 / 8 / num + 1 / 8 / 70), rtol=0.2)
    np.testing.assert_allclose(np.concatenate(others), 70_000 / 8 / 70, rtol=0.4)


@pytest.mark.parametrize("happened", ["overwritten", "reset", "loaded", "an episode overwrote it"])
def test_answers_that_come_late_change_nothing(happened, tmp_path):
    past = list(history(30, 2, np.random.default_rng(0)))
    buffer = filled(make_buffer(10, 2, priority_exponent=1.0), past[:10])
    ids = sequences_of(buffer, np.arange(10).repeat(2), np.tile(np.arange(2), 10), 1, 1).ids[0]
    is_gone = np.ones(20, bool)
    if happened == "overwritten":
        filled(buffer, past[10:14])
        is_gone = np.arange(20) < 8
    elif happened == "an episode overwrote it":
        add_episode(buffer, one_episode(np.random.default_rng(0), 4, 1e5), env=1)
        is_gone = (np.arange(20) < 8) & (np.arange(20) % 2 == 1)
    elif happened == "reset":
        buffer.reset()
        filled(buffer, past[10:20])
    else:
        buffer.load_state(saved(buffer, tmp_path))
    before = buffer.policies.copy(), buffer.model_versions.copy(), buffer.sampler.priorities[np.arange(20)]
    buffer.update_search(ids, np.full((20, NUM_ACTIONS), 0.25), 9)
    buffer.update_priorities(ids, np.where(is_gone, 100.0, 7.0))
    assert (buffer.model_versions == 9).sum() == (~is_gone).sum()
    places = np.arange(20)[is_gone]
    for array, old in ((buffer.policies, before[0]), (buffer.model_versions, before[1])):
        np.testing.assert_array_equal(array.reshape(20, -1)[places], old.reshape(20, -1)[places])
    np.testing.assert_array_equal(buffer.sampler.priorities[places], before[2][places])
    np.testing.assert_array_equal(buffer.sampler.priorities[np.arange(20)[~is_gone]], 7.0)
    assert (buffer.policies.reshape(20, -1)[~is_gone] == 0.25).all()
    filled(buffer, past[20:21])
    assert buffer.sampler.priorities[buffer.index.places(buffer.index.ends - 2)].max() <= 7, "nor the largest error"


@pytest.mark.parametrize("handle_timeout_termination", [True, False])
def test_time_limits_terminate_only_if_they_are_told_to(handle_timeout_termination):
    buffer = make_buffer(20, 1, handle_timeout_termination=handle_timeout_termination)
    arguments = np.zeros((1, 1)), np.ones((1, 1)), np.zeros(1, int), np.zeros(1)
    buffer.add(*arguments, np.array([True]), [{"TimeLimit.truncated": True}])
    buffer.add(*arguments, np.array([True]), [{}])
    buffer.add(*arguments, np.array([False]), [{}])
    buffer.add_episode(np.zeros((3, 1)), np.zeros(2, int), np.zeros(2), terminated=False)
    terminated = sequences_of(buffer, np.array([0, 1, 2, 3]), np.zeros(4, int), 1, 3).terminated
    assert terminated.tolist() == [not handle_timeout_termination, True, False, not handle_timeout_termination]
    model = tiny_model(TinyEnv(), replay_buffer_kwargs=dict(handle_timeout_termination=handle_timeout_termination)).learn(20)
    assert model.replay_buffer.handle_timeout_termination == handle_timeout_termination


def test_random_actions_keep_their_masks():
    masks = np.array([[True, False, True]])
    buffer = make_buffer(20, 1)
    row = np.zeros((1, 1)), np.zeros((1, 1)), np.zeros(1, int), np.zeros(1), np.zeros(1, bool), [{}]
    buffer.add(*row)
    buffer.add(*row, search=SearchStatistics(action_masks=masks))
    samples = sequences_of(buffer, np.array([0]), np.array([0]), 1, 1)
    assert samples.action_masks[:, 0].tolist() == [[True] * 3, masks[0].tolist()] and not samples.policies.any()


def test_candidates_of_a_search_come_back(tmp_path):
    buffer, candidates = make_buffer(20, 1), np.array([[2, 0, 1]])
    row = np.zeros((1, 1)), np.zeros((1, 1)), np.zeros(1, int), np.zeros(1), np.zeros(1, bool), [{}]
    buffer.add(*row, search=SearchStatistics(0, np.full((1, 3), 1 / 3)))
    assert sequences_of(buffer, np.array([0]), np.array([0]), 1, 1).candidates is None
    buffer.add(*row, search=SearchStatistics(0, np.full((1, 3), 1 / 3), candidates))
    buffer.add(*row, search=SearchStatistics(0, np.full((1, 3), 1 / 3), candidates))
    buffer.update_search(np.array([2]), np.full((1, 3), 1 / 3), 0, candidates[:, ::-1])
    buffer.load_state(saved(buffer, tmp_path))
    samples = sequences_of(buffer, np.array([1]), np.array([0]), 1, 1)
    assert samples.candidates[:, 0].tolist() == [[2, 0, 1], [1, 0, 2]]


@pytest.mark.parametrize(("recent_fraction", "num_recent"), [(1.0, 20), (0.75, 15), (0.46, 10), (1e-9, 1)])
def test_every_transition_is_sampled_recent_ones_more_and_the_newest_and_the_last_of_an_episode_too(
    recent_fraction, num_recent
):
    np.random.seed(0)
    past = list(history(30, 2, np.random.default_rng(1)))
    buffer = filled(make_buffer(20, 2, recent_fraction=recent_fraction), past)
    sampled = buffer.sample(32_000, unroll_steps=2, n_steps=2).observations[0].flatten().tolist()
    stored = np.array([[float(step["obs"][env, 0]) for env in range(2)] for step in past[-20:]])
    counts = np.array([[sampled.count(obs) for obs in row] for row in stored])
    assert counts.sum() == 32_000
    np.testing.assert_allclose(counts[-num_recent:], 100 + 14_000 / num_recent, rtol=0.2)
    np.testing.assert_allclose(counts[:-num_recent], 100, rtol=0.4)


@pytest.mark.parametrize("recent_fraction", [0.0, 1.5, float("nan")])
def test_a_share_outside_of_its_range_is_refused(recent_fraction):
    with pytest.raises(ValueError, match="`recent_fraction` must be above 0 and at most 1"):
        make_buffer(20, 2, recent_fraction=recent_fraction)


def test_saving_keeps_priorities_and_visits(tmp_path):
    past = list(history(40, 2, np.random.default_rng(2)))
    whole = filled(make_buffer(30, 2, priority_exponent=0.6), past[:35])
    whole.update_priorities(whole.index.stored(), np.random.default_rng(0).random(60))
    whole.bonus.MIN_TRANSITIONS = 1
    whole.sample(8, unroll_steps=2, n_steps=3, bonus_coef=1.0)  # counting starts here
    sampled = []
    loaded = make_buffer(30, 2, priority_exponent=0.6)
    loaded.load_state(saved(whole, tmp_path))
    loaded.bonus.MIN_TRANSITIONS = 1
    for buffer in (whole, loaded):
        filled(buffer, past[35:])
        np.random.seed(0)
        sampled.append(buffer.sample(64, unroll_steps=2, n_steps=3, bonus_coef=1.0))
    np.testing.assert_array_equal(sampled[0].ids - whole.index.first[0], sampled[1].ids - loaded.index.first[0])
    np.testing.assert_array_equal(sampled[0].weights, sampled[1].weights)
    np.testing.assert_array_equal(sampled[0].rewards, sampled[1].rewards)


def test_a_reset_between_two_learn_calls_cuts_the_episode():
    buffer = make_buffer(20, 1)
    info = [{}]
    buffer.add(np.array([[1.0]]), np.array([[2.0]]), np.array([0]), np.array([1.0]), np.array([False]), info)
    buffer.cut()
    buffer.add(np.array([[7.0]]), np.array([[8.0]]), np.array([0]), np.array([1.0]), np.array([False]), info)
    s = sequences_of(buffer, np.array([0]), np.array([0]), 2, 2)
    assert s.lengths.item() == 1 and not s.terminated.item()
    assert s.observations.flatten().tolist() == [1.0, 2.0, 2.0]


def test_saving_keeps_sequences_and_goes_on(tmp_path):
    past = list(history(45, 2, np.random.default_rng(2)))
    for size in (30, 100):
        whole = filled(make_buffer(size, 2), past)
        half = make_buffer(7, 2)
        half.load_state(saved(filled(make_buffer(size, 2), past[:33]), tmp_path))
        resumed = filled(half, past[33:])
        ages, envs = np.arange(whole.size()), np.arange(whole.size()) % 2
        np.random.seed(0)
        expected = sequences_of(whole, ages, envs, 3, 4)
        np.random.seed(0)
        assert differences(expected._replace(ids=None), sequences_of(resumed, ages, envs, 3, 4)._replace(ids=None)) == []


def saved(buffer, folder):
    save_npz(folder / "buffer", buffer.state())
    return load_npz(folder / "buffer")


def test_memory_is_allocated_lazily_and_observations_are_stored_once_in_their_dtype(tmp_path):
    space = spaces.Box(0, 255, (84, 84), dtype=np.uint8)
    buffer = SequenceReplayBuffer(10**6, space, spaces.Discrete(2), "cpu", 1)
    assert not any(isinstance(value, np.ndarray) for value in vars(buffer).values())
    save_npz(tmp_path / "empty", buffer.state())
    assert (tmp_path / "empty").stat().st_size < 100_000
    small = SequenceReplayBuffer(100, space, spaces.Discrete(2), "cpu", 1)
    obs = np.zeros((1, 84, 84), dtype=np.uint8)
    for _ in range(250):
        small.add(obs, obs, np.array([0]), np.array([0.0]), np.array([True]), [{}])
    assert small.observations.frames.dtype == np.uint8
    assert len(small.observations.finals) <= 256, "slots of overwritten episode ends are used again"
    assert small.observations.frames.nbytes == 100 * 84 * 84


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
    sequence = sequences_of(buffer, np.array([0, 0]), np.array([0, 1]), 5, 1)
    assert np.array_equal(sequence.observations.numpy(), np.stack(observations))


def test_priorities_come_back_with_another_exponent(tmp_path):
    past = list(history(20, 1, np.random.default_rng(1)))
    errors = np.random.default_rng(2).uniform(0.5, 2.0, size=20)
    buffers = {exponent: filled(make_buffer(20, 1, priority_exponent=exponent), past) for exponent in (0.0, 0.2, 1.0)}
    for buffer in buffers.values():
        buffer.update_priorities(np.arange(20), errors)
    for exponent in (0.2, 1.0):
        for other in (0.2, 1.0):
            loaded = make_buffer(20, 1, priority_exponent=other)
            loaded.load_state(saved(buffers[exponent], tmp_path))
            np.testing.assert_allclose(loaded.sampler.priorities[np.arange(20)], errors**other)
        loaded.load_state(saved(buffers[0.0], tmp_path))
        assert (loaded.sampler.priorities[np.arange(20)] == 1).all()


@pytest.mark.parametrize("steps", [35, 80])
def test_units_of_novelty_are_those_of_what_is_stored(steps):
    buffer = filled(make_buffer(60, 2), list(history(steps, 2, np.random.default_rng(3))))
    buffer.bonus.MIN_TRANSITIONS = 1
    buffer.sample(8, unroll_steps=2, n_steps=3, bonus_coef=1.0)
    stored = buffer.observations.frames[: buffer.size()].reshape(buffer.size() * 2, -1)
    np.testing.assert_allclose(buffer.bonus.bonus._cells[0][1]._mean, stored.mean(axis=0), rtol=1e-5)


def test_a_file_with_actions_that_there_are_not_is_refused(tmp_path):
    buffer = filled(make_buffer(60, 1), list(history(10, 1, np.random.default_rng(3))))
    for action in (-1, int(buffer.action_space.n)):
        state = saved(buffer, tmp_path)
        state["rings"]["actions"][4] = action
        with pytest.raises(ValueError, match="`actions` must"):
            make_buffer(60, 1).load_state(state)


def test_a_file_whose_only_priority_is_zero_is_refused(tmp_path):
    state = saved(filled(make_buffer(60, 1, priority_exponent=0.6), list(history(1, 1, np.random.default_rng(3)))), tmp_path)
    state["sampler"]["priorities"][0] = 0
    with pytest.raises(ValueError, match="`priorities` must have a sum above 0"):
        make_buffer(60, 1, priority_exponent=0.6).load_state(state)


def test_steps_without_search_store_zeros():
    buffer = make_buffer(60, 1)
    for search in (SearchStatistics(7, np.full((1, NUM_ACTIONS), 1 / NUM_ACTIONS)), None):
        buffer.add(np.zeros((1, 1)), np.zeros((1, 1)), np.zeros(1), np.zeros(1), np.zeros(1, bool), [{}], search)
    sequence = sequences_of(buffer, np.array([0, 1]), np.array([0, 0]), 1, 1)
    assert sequence.model_versions[0].tolist() == [7, 0]
    assert sequence.policies[0].sum(dim=-1).tolist() == pytest.approx([1, 0])


def test_room_for_final_observations_is_used_again(tmp_path):
    """However many episodes have come and gone."""
    buffer = make_buffer(20, 1)
    for step in range(500):
        buffer.add(np.array([[step]]), np.array([[step + 1]]), np.zeros(1), np.ones(1), np.array([True]), [{}])
    assert len(buffer.observations.finals) == 32
    loaded = make_buffer(20, 1)
    loaded.load_state(saved(buffer, tmp_path))
    for step in range(500):
        loaded.add(np.array([[step]]), np.array([[step + 1]]), np.zeros(1), np.ones(1), np.array([True]), [{}])
    assert len(loaded.observations.finals) == 20


def test_novelty_counts_where_it_is_asked_for_as_soon_as_there_is_enough():
    buffer = filled(make_buffer(60, 1), list(history(40, 1, np.random.default_rng(3))))
    asked = {"bonus_coef": 1.0}
    for least, novelty, counts in ((40, {}, False), (41, asked, False), (40, asked, True)):
        buffer.bonus.MIN_TRANSITIONS = least
        buffer.sample(8, unroll_steps=2, n_steps=3, **novelty)
        assert (buffer.bonus.bucket_ids is not None) == counts


def test_tensors_share_memory_only_if_they_may():
    buffer, array = make_buffer(60, 1), np.zeros(3)
    assert not np.shares_memory(buffer.to_torch(array).numpy(), array)
    assert np.shares_memory(buffer.to_torch(array, copy=False).numpy(), array)


def test_large_errors_come_back(tmp_path):
    buffer, loaded = (make_buffer(20, 1, priority_exponent=0.5) for _ in range(2))
    filled(buffer, list(history(20, 1, np.random.default_rng(1))))
    buffer.update_priorities(np.zeros(1, int), np.array([1e30]))
    loaded.load_state(saved(buffer, tmp_path))
    assert loaded.sampler._largest_error == 1e30 and loaded.sampler.priorities.total == buffer.sampler.priorities.total


def test_small_errors_come_back(tmp_path):
    buffer, loaded = (make_buffer(20, 1, priority_exponent=1.0) for _ in range(2))
    filled(buffer, list(history(20, 1, np.random.default_rng(1))))
    buffer.update_priorities(np.arange(20), np.full(20, 1e-6))
    loaded.load_state(saved(buffer, tmp_path))
    assert 0 < loaded.sampler.priorities.total == buffer.sampler.priorities.total < 1e-4


def test_priorities_decide_and_importance_weights_correct():
    np.random.seed(0)
    past = list(history(30, 2, np.random.default_rng(1)))
    buffer = filled(make_buffer(20, 2, priority_exponent=0.5, importance_exponent=1.0), past)
    stored = np.array([[float(step["obs"][env, 0]) for env in range(2)] for step in past[-20:]])
    ages, envs = (grid.flatten() for grid in np.meshgrid(np.arange(20), np.arange(2), indexing="ij"))
    errors = np.random.rand(40) * (np.arange(40) % 4 > 0)
    buffer.update_priorities(sequences_of(buffer, ages, envs, 2, 2).ids[0], errors)
    samples = buffer.sample(64_000, unroll_steps=2, n_steps=2)
    sampled, weights = samples.observations[0].flatten().numpy(), samples.weights.numpy()
    shares = np.array([(sampled == obs).mean() for obs in stored.flatten()])
    expected = np.sqrt(np.maximum(errors, buffer.sampler.MIN_PRIORITY_FRACTION * errors.max()))
    np.testing.assert_allclose(shares, expected / expected.sum(), atol=2e-4, rtol=0.05)
    assert (shares > 0).all() and weights.max() == 1
    corrected = np.array([weights[sampled == obs].sum() for obs in stored.flatten()])
    np.testing.assert_allclose(corrected, corrected.mean(), rtol=0.15)


def test_the_unit_of_the_errors_does_not_matter():
    past = list(history(30, 2, np.random.default_rng(1)))
    errors = np.random.default_rng(0).random(40)
    drawn = []
    for unit in (2.0**-20, 1.0, 2.0**20):
        buffer = filled(make_buffer(20, 2, priority_exponent=0.5), past[:20])
        buffer.update_priorities(buffer.index.stored(), errors * unit)
        filled(buffer, past[20:])
        np.random.seed(0)
        drawn.append(buffer.sample(1000, unroll_steps=2, n_steps=2).ids[0])
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[2], drawn[1])


def test_new_data_have_the_highest_priority_and_overwrite_the_old():
    np.random.seed(0)
    past = list(history(30, 1, np.random.default_rng(1)))
    buffer = filled(make_buffer(20, 1, priority_exponent=1.0), past[:20])
    assert buffer.sampler.priorities.total == 20, "1 each, as long as no error is known"
    buffer.update_priorities(np.arange(20), np.full(20, 7.0))
    buffer.update_priorities(np.arange(20), np.zeros(20))
    filled(buffer, past[20:25])
    sampled = buffer.sample(5000, unroll_steps=2, n_steps=2).observations[0].flatten().numpy()
    newest = [float(step["obs"][0, 0]) for step in past[20:25]]
    assert np.isin(sampled, newest).mean() > 0.99


def test_an_exceptional_error_is_forgotten():
    """And ordinary ones are not: new steps come before nearly all others."""
    past, rng = list(history(1_100, 1, np.random.default_rng(1))), np.random.default_rng(0)
    buffer = filled(make_buffer(1_100, 1, priority_exponent=1.0), past[:1_000])
    buffer.update_priorities(np.arange(1), np.array([100.0]))
    for _ in range(300):
        ids = rng.integers(0, 1_000, size=64)
        buffer.update_priorities(ids, rng.exponential(size=64))
    priorities = buffer.sampler.priorities
    filled(buffer, past[1_000:])
    old, new = priorities[np.arange(1_000)], priorities[np.arange(1_000, 1_100)]
    assert 0.2 < new.sum() / priorities.total < 0.5
    assert (new[0] > old).mean() > 0.97


def test_of_stacks_of_two_frames_the_oldest_is_not_drawn_by_priority():
    space, discrete = spaces.Box(-np.inf, np.inf, (2,)), spaces.Discrete(NUM_ACTIONS)
    buffer = SequenceReplayBuffer(20, space, discrete, "cpu", frame_stack=2, priority_exponent=1.0)
    for frame in range(30):
        stacks = np.array([[[frame, frame + 1]], [[frame + 1, frame + 2]]])
        buffer.add(*stacks, np.zeros(1), np.zeros(1), np.zeros(1, bool), [{}])
    assert np.flatnonzero(buffer.sampler.priorities[np.arange(20)] == 0).tolist() == [buffer.pos]


@pytest.mark.parametrize("error", [np.nan, np.inf, -1.0])
def test_a_priority_that_is_none_is_refused(error):
    buffer = filled(make_buffer(20, 1, priority_exponent=1.0), list(history(5, 1, np.random.default_rng(1))))
    with pytest.raises(ValueError, match="finite and at least 0"):
        buffer.update_priorities(np.zeros(1, int), np.array([error]))


def test_actions_beyond_the_end_are_any():
    buffer = filled(make_buffer(20, 1), list(history(5, 1, np.random.default_rng(1))))
    actions = sequences_of(buffer, np.full(200, buffer.size() - 1), np.zeros(200, int), 5, 1).actions
    assert actions[1:].unique().tolist() == list(range(NUM_ACTIONS))


def test_old_sequences_bootstrap_sooner():
    np.random.seed(0)
    buffer = filled(make_buffer(100, 2), list(history(50, 2, np.random.default_rng(1))))
    samples = buffer.sample(500, unroll_steps=2, n_steps=16, n_steps_half_life=20.0)
    ages = 2 * (49 - samples.ids[0] // 2)
    np.testing.assert_array_equal(samples.horizons.numpy(), np.maximum(np.round(16 * 0.5 ** (ages / 20)), 1))
    assert (buffer.sample(500, unroll_steps=2, n_steps=16).horizons == 16).all()


def test_a_horizon_moves_the_bootstrap_observation():
    past = [dict(step, done=np.array([False])) for step in history(20, 1, np.random.default_rng(0))]
    buffer = filled(make_buffer(30, 1), past)
    samples = read_sequences(buffer, np.array([3, 3]), 2, 5, horizons=np.array([1, 4]))
    rows = samples.bootstrap_observations[..., 0].numpy().T
    assert rows.tolist() == [[float(past[3 + h + k]["obs"][0, 0]) for k in range(3)] for h in (1, 4)]


@pytest.mark.parametrize("action", [-1, 2])
def test_actions_that_there_are_not_are_not_stored(action):
    """As those of an environment whose first action is 1."""
    buffer = SequenceReplayBuffer(8, spaces.Box(-9, 9, (1,)), spaces.Discrete(2, start=1), n_envs=2)
    with pytest.raises(ValueError, match=rf"`action` must be indices from 0 to 1, got \[ ?1 {action}\]"):
        buffer.add(np.zeros((2, 1)), np.zeros((2, 1)), np.array([1, action]), np.zeros(2), np.zeros(2, bool), [{}, {}])
    assert buffer.size() == 0


def test_novelty_is_added_to_the_reward_and_fades():
    def step(state: int, successor: int, reward: float = 0.0) -> dict:
        obs, next_obs = np.array([[state]], np.float32), np.array([[successor]], np.float32)
        return dict(
            obs=obs, next_obs=next_obs, action=np.array([0]), reward=np.array([reward]), done=np.array([False]), infos=[{}]
        )

    def rewards(*ages: int) -> list[float]:
        starts, envs = np.array(ages), np.zeros(len(ages), int)
        return sequences_of(buffer, starts, envs, 1, 1, bonus_coef=3.0).rewards[0].tolist()

    buffer = make_buffer(100, 1)
    for age in range(6):
        buffer.add(**step(age % 2, 1 - age % 2))
    assert rewards(0, 1) == [0.0, 0.0], "six transitions do not tell how wide a region is"
    buffer.bonus.MIN_TRANSITIONS = 6
    assert rewards(0, 1) == pytest.approx([0.0, 0.0]), "both states are as new as the average visit"
    buffer.add(**step(0, 1, 8.0))
    buffer.add(**step(1, 100, -2.0))  # the successors are now 1 four times, 0 three times and 100 once
    mean, unit = (2 + np.sqrt(3) + 1) / 8, 5 * 3.0  # 5: the mean size of the two rewards
    expected = [unit * (1 / 2 - mean), unit * (3**-0.5 - mean), 8 + unit * (1 / 2 - mean), -2 + unit * (1 - mean)]
    assert rewards(0, 1, 6, 7) == pytest.approx(expected)
    for _ in range(5):
        buffer.add(**step(100, 1))
    mean = (3 + np.sqrt(3) + 1) / 13
    expected = [unit * (1 / 3 - mean), unit * (3**-0.5 - mean), -2 + unit * (1 - mean)]
    assert rewards(0, 1, 7) == pytest.approx(expected), "what was visited again is less new"


def test_novelty_is_in_the_unit_of_normalised_rewards():
    past = list(history(40, 1, np.random.default_rng(3)))
    normalize = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]), norm_obs=False)
    normalize.ret_rms.var = np.array(100.0)
    read = []
    for env in (None, normalize):
        buffer = filled(make_buffer(50, 1), past)
        buffer.bonus.MIN_TRANSITIONS = 1
        read.append(sequences_of(buffer, np.arange(30), np.zeros(30, int), 1, 1, env, bonus_coef=1.0).rewards)
    th.testing.assert_close(read[1], read[0] / 10)


def test_exponents_outside_of_their_range_are_refused():
    for exponent in (-1.0, float("inf")):
        with pytest.raises(ValueError, match="`priority_exponent` must be at least 0"):
            make_buffer(20, 2, priority_exponent=exponent)
    with pytest.raises(ValueError, match="`importance_exponent` must be between 0 and 1"):
        make_buffer(20, 2, priority_exponent=1.0, importance_exponent=1.5)


def test_returns_of_more_steps_than_are_stored_take_no_more_memory_than_those():
    model = tiny_model(n_steps=2**31 - 1).learn(40)
    samples = model.sample(8, 3)
    assert len(samples.rewards) == 3 + 40 and samples.horizons.max() == 40


def test_a_file_takes_memory_for_what_it_holds_whatever_size_it_claims():
    buffer = SequenceReplayBuffer(100, spaces.Box(-1, 1, (3,)), spaces.Discrete(3), "cpu")
    observations = np.zeros((1, 3), np.float32)
    for _ in range(20):
        buffer.add(observations, observations, np.zeros(1), np.ones(1), np.zeros(1, bool), [{}])
    state = buffer.state() | {"buffer_size": 10**8}
    before = psutil.Process().memory_info().rss
    buffer.load_state(state)
    assert buffer.size() == 20 and buffer.buffer_size == 10**8
    assert psutil.Process().memory_info().rss - before < 1e8
