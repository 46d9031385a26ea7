"""Images: convolutional policies see and learn them, and frames of a stack are stored once."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import TinyEnv, differences, scramble, sequences_of, snapshot, tiny_envs, tiny_model
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecFrameStack, VecNormalize, VecTransposeImage

from sb3_muzero import CnnPolicy, MuZero, ResNetPolicy
from sb3_muzero.common.serialization import load_npz, save_npz
from sb3_muzero.models.augmentation import ImageAugmentation
from sb3_muzero.models.resnet import ConvDynamics, ImageNorm, action_planes
from sb3_muzero.policies import MuZeroPolicy
from sb3_muzero.replay.reading import stacked_on_device

POLICIES: dict[str, type[MuZeroPolicy]] = {"CnnPolicy": CnnPolicy, "ResNetPolicy": ResNetPolicy}
SMALL = spaces.Box(0, 255, (2, 10, 10), np.uint8)
LARGE = spaces.Box(0, 255, (1, 84, 84), np.uint8)


class Spotted(gym.Env):
    """A bright pixel somewhere on the left or on the right; the action that names its side is rewarded."""

    observation_space = spaces.Box(0, 255, (1, 10, 10), np.uint8)
    action_space = spaces.Discrete(2)

    def _show(self):
        image = np.zeros(self.observation_space.shape, np.uint8)
        row, column = self.np_random.integers(10, size=2)
        image[0, row, column] = 255
        self.side = int(column >= 5)
        return image

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._show(), {}

    def step(self, action):
        self.steps += 1
        reward = float(action == self.side)
        return self._show(), reward, self.steps == 20, False, {}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("space", [SMALL, LARGE, spaces.Box(0, 255, (40, 36, 3), np.uint8)], ids=["small", "large", "last"])
def test_training_saving_and_predicting(tmp_path, policy, space):
    env = TinyEnv(space)
    model = scramble(tiny_model(env, policy=policy, reanalyze_ratio=0.5).learn(40))
    assert model.replay_buffer.observations.frames.dtype == np.uint8
    observations = np.stack(env.shown[0])
    expected = model.predict(observations, deterministic=True)[0]
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    for loaded in (MuZero.load(tmp_path / "model"), POLICIES[policy].load(tmp_path / "policy")):
        np.testing.assert_array_equal(loaded.predict(observations, deterministic=True)[0], expected)
    assert model.predict(observations[0], deterministic=True)[0] == expected[0]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_convolutional_model_sees_each_pixel_and_steps_by_the_action(policy):
    model = scramble(tiny_model(TinyEnv(SMALL), policy=policy, policy_kwargs=dict(latent_norm="none"))).policy
    image = th.randint(255, SMALL.shape, dtype=th.uint8)
    images = image.repeat(200, 1, 1, 1)
    images.view(200, -1)[range(200), range(200)] ^= 255
    with th.no_grad():
        changes = (model.represent(images) - model.represent(image[None])).abs().amax(-1)
        assert (changes > 1e-6).all()
        latents = model.represent(image[None]).repeat(3, 1)
        successors = model.latent_model.dynamics(latents, model.latent_model.action_encoder(th.arange(3))).latent
    assert successors.shape == latents.shape
    assert th.pdist(successors).min() > 1e-3


@pytest.mark.parametrize("policy", POLICIES)
def test_a_convolutional_model_sees_how_bright_it_is(policy):
    model = tiny_model(TinyEnv(SMALL), policy=policy).policy
    dark, bright = (model.represent(th.full((1, *SMALL.shape), value, dtype=th.uint8)) for value in (40, 200))
    assert (dark - bright).abs().max() > 1e-3


def test_heads_take_any_number_of_batch_axes():
    policy = scramble(tiny_model(TinyEnv(SMALL), policy="ResNetPolicy")).policy
    latents = policy.represent(th.randint(255, (6, *SMALL.shape), dtype=th.uint8))
    flat, square = policy.latent_model.prediction(latents), policy.latent_model.prediction(latents.unflatten(0, (2, 3)))
    for a, b in zip(flat, square, strict=True):
        th.testing.assert_close(a.unflatten(0, (2, 3)), b)


def test_a_silent_unit_that_wakes_is_not_thrown_to_the_clip():
    norm = tiny_model(TinyEnv(SMALL), policy="CnnPolicy").policy.latent_model.input_norm
    for _ in range(500):
        norm.update_statistics(th.zeros(64, len(norm.mean)))
    assert norm(th.full((1, len(norm.mean)), 0.01)).abs().max() <= 1.01


def test_bfloat16_computes_the_same_with_fewer_digits(tmp_path):
    images = th.randint(255, (16, *SMALL.shape), dtype=th.uint8, generator=th.Generator().manual_seed(0))
    exact = scramble(tiny_model(TinyEnv(SMALL), policy="ResNetPolicy")).policy
    rough = tiny_model(TinyEnv(SMALL), policy="ResNetPolicy", policy_kwargs=dict(bf16=True)).policy
    rough.load_state_dict(exact.state_dict())
    with th.no_grad():
        for policy in (exact, rough):
            latent = policy.represent(images)
            successor = policy.latent_model.dynamics(latent, policy.latent_model.action_encoder(th.arange(16) % 3))
            policy.found = [latent, *successor, *policy.latent_model.prediction(successor.latent)]
    for a, b in zip(exact.found, rough.found, strict=True):
        assert b.dtype == th.float32
        assert 0 < (a - b).norm() < 0.03 * a.norm()
    convolution = next(m for m in rough.latent_model.dynamics.modules() if isinstance(m, th.nn.Conv2d))
    assert convolution.weight.is_contiguous(memory_format=th.channels_last) and not convolution.weight.is_contiguous()
    rough.save(tmp_path / "policy")
    assert ResNetPolicy.load(tmp_path / "policy").bf16
    tiny_model(TinyEnv(SMALL), policy="ResNetPolicy", policy_kwargs=dict(bf16=True)).learn(40)


def test_residual_networks_are_of_the_size_of_efficientzeros():
    """Half the channels where the image is largest; see its Appendix A."""
    space = spaces.Box(0, 255, (4, 96, 96), np.uint8)
    policy = ResNetPolicy(space, spaces.Discrete(6), lambda _: 1e-3, num_channels=64)
    sizes = []
    for module in policy.latent_model.representation.modules():
        if isinstance(module, th.nn.Conv2d):
            module.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[1:])))
    latent = policy.represent(th.zeros(1, 4, 96, 96, dtype=th.uint8))
    assert list(dict.fromkeys(sizes)) == [(32, 48, 48), (64, 24, 24), (64, 12, 12), (64, 6, 6)]
    assert latent.shape == (1, 64 * 6 * 6)


def test_the_norm_of_images_is_that_of_one_group_in_either_memory_format():
    images, norm = th.randn(5, 6, 3, 4), ImageNorm(6)
    th.nn.init.normal_(norm.weight)
    expected = th.nn.functional.group_norm(images, 1, norm.weight, norm.bias)
    th.testing.assert_close(norm(images), expected)
    th.testing.assert_close(norm(images.contiguous(memory_format=th.channels_last)), expected)


def test_flat_latents_of_images_are_planned_with_in_compiled_code():
    assert tiny_model(TinyEnv(LARGE), policy="CnnPolicy").policy.uncompiled_reason is None


@pytest.mark.parametrize("norm_obs", [True, False])
def test_features_are_scaled_by_what_training_has_seen(norm_obs):
    model = tiny_model(TinyEnv(SMALL), policy="CnnPolicy", policy_kwargs=dict(norm_obs=norm_obs)).learn(200)
    images = sequences_of(model.replay_buffer, np.arange(150), np.zeros(150, int), 1, 1).observations[0]
    latent_model = model.policy.latent_model
    with th.no_grad():
        features = latent_model.features_extractor(images / 255)
        scaled = latent_model.input_norm(features)
    varied = features.std(0) > 0.01
    assert features[:, varied].std(0).median() < 0.2
    if norm_obs:  # the extractor moves on, and its statistics follow
        assert 0.25 < scaled[:, varied].std(0).median() < 2
    else:
        assert th.equal(scaled, features)


BOARDS = {
    "bool": spaces.Box(0, 1, (6, 7, 3), np.bool_),
    "int8": spaces.Box(-1, 1, (6, 7, 3), np.int8),
    "large": spaces.Box(0, 1, (40, 36, 3), np.float32),
    "uint8 planes": spaces.Box(0, 1, (6, 6, 2), np.uint8),
    "MultiBinary": spaces.MultiBinary([6, 7, 3]),
    "chess": spaces.Box(0, 1, (8, 8, 111), np.bool_),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", BOARDS)
def test_boards_are_learned_from_whichever_axis_has_the_channels(name, policy, tmp_path):
    space = BOARDS[name]
    rows, columns, channels = space.shape
    first: Any = spaces.Box(0, 1, (channels, rows, columns), space.dtype)
    kwargs = dict(random_shift=0) | (dict(channels_last=True) if name == "chess" else {})
    board = TinyEnv(space)
    last = tiny_model(board, policy, policy_kwargs=kwargs).learn(40)
    transposed = gym.wrappers.TransformObservation(TinyEnv(space), lambda obs: np.moveaxis(obs, -1, 0), first)
    expected = tiny_model(transposed, policy, policy_kwargs=dict(random_shift=0)).learn(40)
    assert last.policy.image_shape == expected.policy.image_shape == (channels, rows, columns)
    assert last._n_updates > 0 and differences(snapshot(last), snapshot(expected)) == []
    scramble(last).save(tmp_path / "model")
    observations = np.stack(board.shown[0])
    actions = last.predict(observations, deterministic=True)[0]
    loaded = MuZero.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(observations, deterministic=True)[0], actions)


@pytest.mark.parametrize(
    ("policy", "kwargs"),
    [
        ("CnnPolicy", dict(random_shift=2, random_intensity=0.3)),
        ("ResNetPolicy", dict(num_channels=8, num_blocks=2, action_grid=(1, 3), random_shift=1, net_arch=[16])),
    ],
)
def test_settings_are_saved_with_the_policy(tmp_path, policy, kwargs):
    original = scramble(tiny_model(TinyEnv(SMALL), policy=policy, policy_kwargs=kwargs)).policy
    original.save(tmp_path / "policy")
    loaded = POLICIES[policy].load(tmp_path / "policy", device="cpu")
    assert {name: getattr(loaded, name) for name in kwargs} == kwargs
    images = th.randint(255, (4, *SMALL.shape), dtype=th.uint8)
    assert th.equal(original.predict_values(images), loaded.predict_values(images))
    assert loaded.latent_model.augmentation.shift == kwargs["random_shift"]


def test_images_that_sb3_transposes_are_not_transposed_twice():
    env = TinyEnv(spaces.Box(0, 255, (40, 36, 3), np.uint8))
    with pytest.raises(ValueError, match="`channels_last` must not be True for images of uint8"):
        tiny_model(env, "CnnPolicy", policy_kwargs=dict(channels_last=True))
    assert tiny_model(env, "CnnPolicy", policy_kwargs=dict(channels_last=False)).policy.image_shape == (3, 40, 36)


def test_the_target_follows_the_statistics_of_features():
    model = tiny_model(TinyEnv(SMALL), policy="CnnPolicy", target_update_interval=1).learn(40)
    online, target = model.policy.latent_model.input_norm, model.policy.latent_model_target.input_norm
    assert online.count > 0 and all(map(th.equal, online.buffers(), target.buffers()))


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_no_image_is_refused_by_name(policy):
    with pytest.raises(ValueError, match="`observation_space` must be images"):
        tiny_model("CartPole-v1", policy=policy)


def test_images_are_shifted_and_scaled_each_by_itself():
    images = th.zeros(400, 2, 9, 9)
    images[:, :, 4, 4] = 1
    changed = ImageAugmentation(2, 0.0)(images)
    spots = changed.argmax(dim=2).amax(-1), changed.argmax(dim=3).amax(-1)  # of each channel
    for places in spots:
        assert sorted(set(places.flatten().tolist())) == [2, 3, 4, 5, 6]
        assert (places[:, 0] == places[:, 1]).all(), "channels stay together"
    assert (changed.sum((2, 3)) == 1).all()
    factors = ImageAugmentation(0, 0.05)(th.ones(4_000, 1, 2, 2)).flatten(1)
    assert (factors == factors[:, :1]).all() and abs(factors.std() - 0.048) < 0.003 and (factors - 1).abs().max() <= 0.1001
    ramp = th.arange(8.0).expand(1, 1, 8, 8)
    assert set(ImageAugmentation(3, 0.0)(ramp).unique().tolist()) <= set(range(8)), "edges are repeated"


@pytest.mark.parametrize("policy", POLICIES)
def test_only_the_loss_sees_changed_images(policy):
    model = scramble(tiny_model(TinyEnv(LARGE), policy=policy, policy_kwargs=dict(latent_norm="none"))).policy
    images = th.randint(255, (5, *LARGE.shape), dtype=th.uint8)
    assert th.equal(model.represent(images), model.represent(images))
    first, second = (model.latent_model.represent(images, augment=True) for _ in range(2))
    assert not th.allclose(first, second)
    as_they_are = tiny_model(TinyEnv(LARGE), policy=policy, policy_kwargs=dict(random_shift=0, random_intensity=0.0)).policy
    assert th.equal(as_they_are.latent_model.represent(images, augment=True), as_they_are.represent(images))


def test_the_loss_changes_the_first_observation_and_those_that_latents_are_compared_with():
    model = tiny_model(TinyEnv(LARGE), policy="CnnPolicy").learn(40)
    calls = []
    for network in (model.policy.latent_model, model.policy.latent_model_target):
        plain = network.represent
        network.represent = lambda obs, augment=False, plain=plain: (calls.append(augment), plain(obs, augment))[1]
    model.train(1, 4)
    assert sorted(calls) == [False, True, True], "bootstraps see images as they are"


@pytest.mark.parametrize(
    "kwargs",
    [dict(random_shift=-1), dict(random_shift=1.5), dict(random_intensity=-0.1), dict(random_intensity=np.nan)],
    ids=str,
)
def test_impossible_changes_are_refused(kwargs):
    with pytest.raises(ValueError, match="at least 0"):
        tiny_model(TinyEnv(LARGE), policy="CnnPolicy", policy_kwargs=kwargs)


def test_images_are_not_shifted_out_of_sight():
    with pytest.raises(ValueError, match="`random_shift` must be below"):
        tiny_model(TinyEnv(SMALL), policy="CnnPolicy", policy_kwargs=dict(random_shift=10))


@pytest.mark.parametrize("kwargs", [dict(num_channels=0), dict(num_blocks=-1)], ids=str)
def test_impossible_sizes_of_residual_networks_are_refused(kwargs):
    with pytest.raises(ValueError, match="`num_channels` must be"):
        tiny_model(TinyEnv(SMALL), policy="ResNetPolicy", policy_kwargs=kwargs)


def test_actions_are_places_of_the_image():
    rows, columns = np.indices((6, 8))
    assert all((action_planes(th.eye(8), 6, 8, (1, 8))[action, 0].numpy() == (columns == action)).all() for action in range(8))
    quarters = action_planes(th.eye(4), 6, 8, (2, 2))[:, 0].numpy()
    assert (quarters.argmax(0) == 2 * (rows // 3) + columns // 4).all() and (quarters.sum(0) == 1).all()
    finer = action_planes(th.eye(15 * 15), 8, 8, (15, 15))  # than the latents of a board of 15
    assert finer.shape == (225, 4, 8, 8) and len(finer.unique(dim=0)) == 225 and finer.flatten(1).any(1).all()
    assert th.equal(action_planes(th.eye(4), 6, 8).mean((2, 3)), th.eye(4))


def test_residual_networks_see_which_place_an_action_is_about():
    """A stone is set where the action is, which planes of ones tell nobody."""
    th.manual_seed(1)
    planes = action_planes(th.eye(36), 6, 6, (6, 6))
    dynamics = ConvDynamics((4, 6, 6), planes.shape[1], 5, 0, [], th.nn.ReLU, "none")
    optimizer = th.optim.Adam(dynamics.parameters(), 0.01)
    for _ in range(150):
        latents, actions = th.rand(64, 4 * 36), th.randint(36, (64,))
        stones = dynamics(latents, planes[actions]).latent.reshape(64, 4, 36)[:, 0]
        loss = th.nn.functional.cross_entropy(stones, actions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (stones.argmax(1) == actions).float().mean() > 0.95


def test_images_whose_actions_are_places_are_not_shifted_by_default():
    models = {
        grid: tiny_model(TinyEnv(LARGE), "ResNetPolicy", policy_kwargs=dict(action_grid=grid)) for grid in (None, (1, 3))
    }
    assert models[None].policy.random_shift > 0 == models[1, 3].policy.random_shift


@pytest.mark.parametrize("grid", [(3,), (2, 2), (-1, -3), (3, 1, 1), 3, (None, 3), (1.0, 3.0)], ids=str)
def test_grids_of_other_than_all_actions_are_refused(grid):
    with pytest.raises(ValueError, match=r"`action_grid` must be .* 3, got"):
        tiny_model(TinyEnv(SMALL), policy="ResNetPolicy", policy_kwargs=dict(action_grid=grid))


@pytest.mark.parametrize("kwargs", [dict(latent_dim=64), dict(latent_norm="simnorm"), dict(norm_obs=True)], ids=str)
def test_settings_of_no_use_to_residual_networks_are_refused(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        tiny_model(TinyEnv(SMALL), policy="ResNetPolicy", policy_kwargs=kwargs)


def test_games_of_minatar():
    minatar = pytest.importorskip("sb3_muzero.envs.minatar", reason="minatar is not installed")
    env = minatar.ImageObservation(gym.make("MinAtar/SpaceInvaders-v1"))
    check_env(env)
    seen, _ = env.reset(seed=3)
    again, _ = env.reset(seed=3)
    np.testing.assert_array_equal(seen, again)
    assert seen.dtype == np.uint8 and seen.shape == (6, 10, 10) and set(np.unique(seen)) == {0, 255}
    assert env.spec.max_episode_steps == 2500
    raw, _ = env.unwrapped.reset(seed=3)
    np.testing.assert_array_equal(seen, raw.transpose(2, 0, 1) * 255)
    tiny_model(env, policy="CnnPolicy").learn(60)


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_a_spot_is_learned_to_be_seen(policy):
    # What comes next is chance here, so that there is nothing for latents to be consistent with
    settings = dict(n_steps=5, num_simulations=4, consistency_coef=0.0)
    model = MuZero(policy, Spotted(), seed=0, device="cpu", **settings).learn(6_000)
    assert evaluate_policy(model, model.get_env(), n_eval_episodes=10)[0] >= 19


def stacked(space: spaces.Box, n_envs: int = 2, length: int = 7, **kwargs) -> VecEnv:
    return VecFrameStack(tiny_envs(n_envs, observation_space=space, length=length, **kwargs), n_stack=4)


FRAMES = {
    "channel first": spaces.Box(0, 255, (1, 84, 84), np.uint8),
    "channel last": spaces.Box(0, 255, (84, 84, 1), np.uint8),
    "colours": spaces.Box(0, 255, (48, 40, 3), np.uint8),
    "vectors": spaces.Box(-1, 1, (3,), np.float32),
}


def rows_of(buffer, ids: np.ndarray) -> np.ndarray:
    return ids // buffer.n_envs % buffer.buffer_size


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("terminates", [False, True])
@pytest.mark.parametrize("buffer_size", [1_000, 60])
def test_each_frame_is_stored_once_and_read_as_the_stack_it_came_in(name, terminates, buffer_size, tmp_path):
    space = FRAMES[name]
    model = tiny_model(stacked(space, terminates=terminates), buffer_size=buffer_size, learning_starts=1_000)
    whole, buffer = [], model.replay_buffer
    original = buffer.add
    buffer.add = lambda obs, *rest, **search: (whole.append((obs.copy(), rest[0].copy())), original(obs, *rest, **search))
    model.learn(160)
    del buffer.add

    frame_bytes = int(np.prod(space.shape)) * space.dtype.itemsize
    assert buffer.observations.frames.nbytes == buffer_size * frame_bytes

    save_npz(tmp_path / "buffer", buffer.state())
    buffer.load_state(load_npz(tmp_path / "buffer"))
    oldest = len(whole) - buffer.size()
    first = 3 if buffer.full else 0  # the frames before are gone
    for env in range(2):
        ages = np.arange(first, buffer.size())
        sequences = sequences_of(buffer, ages, np.full_like(ages, env), 2, 1)
        for i, age in enumerate(ages):
            expected = whole[oldest + age][0][env]
            np.testing.assert_array_equal(sequences.observations[0, i], expected)
            np.testing.assert_array_equal(sequences.observations[1, i], whole[oldest + age][1][env])
        positions = np.repeat([[0], [1]], len(ages), axis=1)
        on_gpu = stacked_on_device(buffer, positions, sequences.ids[0])
        assert th.equal(on_gpu, sequences.observations[:2])
    ids = buffer.sample(2_000, unroll_steps=1, n_steps=1).ids[0]
    assert not buffer.full or not np.isin(rows_of(buffer, ids), (buffer.pos + np.arange(3)) % buffer.buffer_size).any()


def test_stacks_are_joined_over_saved_and_continued_training(tmp_path):
    env = stacked(LARGE)
    model = tiny_model(env, policy="CnnPolicy").learn(80)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = MuZero.load(tmp_path / "model", env=stacked(LARGE))
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.learn(80, reset_num_timesteps=False)  # each step is checked
    assert loaded.replay_buffer.size() == 80


def test_environments_that_somebody_else_resets_begin_other_episodes():
    """SB3 goes on from the observation that it saw last: that step is of no episode, the next one begins another."""
    model = tiny_model(stacked(LARGE, length=60), policy="CnnPolicy").learn(40)
    evaluate_policy(model, model.get_env(), n_eval_episodes=3, warn=False)
    with pytest.warns(UserWarning, match="stepped outside of training"):
        model.learn(80, reset_num_timesteps=False)
    ends = model.replay_buffer.observations.ends[:60]
    assert ends[20].all(), "the step from one to the other"
    assert ends.sum(axis=0).max() <= 2, "and its end"


def test_a_buffer_loaded_amid_episodes_begins_others(tmp_path):
    model = tiny_model(stacked(LARGE), policy="CnnPolicy").learn(30)
    rows = model.replay_buffer.size()
    model.save_replay_buffer(tmp_path / "buffer")
    model.learn(16, reset_num_timesteps=False)
    model.load_replay_buffer(tmp_path / "buffer")
    model.learn(40, reset_num_timesteps=False)
    assert model.replay_buffer.size() > rows and model.replay_buffer.observations.ends[rows - 1].all()


def test_the_oldest_frames_of_a_full_buffer_are_not_drawn_by_priority_either():
    settings = dict(frame_stack=4, priority_exponent=0.6)
    model = tiny_model(stacked(LARGE), buffer_size=60, replay_buffer_kwargs=settings, learning_starts=1_000).learn(160)
    buffer = model.replay_buffer
    lost = (buffer.pos + np.arange(3)) % buffer.buffer_size
    ids = buffer.sample(500, unroll_steps=1, n_steps=1).ids[0]
    assert not np.isin(rows_of(buffer, ids), lost).any()
    leaves = (lost[:, None] * 2 + np.arange(2)).ravel()
    assert (buffer.sampler.priorities[leaves] == 0).all()


def test_a_buffer_without_priorities_gets_none_for_the_oldest_frames(tmp_path):
    uniform = tiny_model(stacked(LARGE), buffer_size=60, learning_starts=1_000).learn(160).replay_buffer
    settings = dict(priority_exponent=0.6)
    buffer = tiny_model(stacked(LARGE), buffer_size=60, replay_buffer_kwargs=settings).replay_buffer
    save_npz(tmp_path / "buffer", uniform.state())
    buffer.load_state(load_npz(tmp_path / "buffer"))
    lost = (buffer.pos + np.arange(3)) % buffer.buffer_size
    assert buffer.full and not np.isin(rows_of(buffer, buffer.sample(500, unroll_steps=1, n_steps=1).ids[0]), lost).any()


def test_environments_set_later_are_asked_for_their_stacks(tmp_path):
    model = tiny_model(stacked(LARGE), policy="CnnPolicy").learn(40)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = MuZero.load(tmp_path / "model")
    loaded.set_env(stacked(LARGE))
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.learn(20, reset_num_timesteps=False)
    whole = DummyVecEnv([lambda: TinyEnv(spaces.Box(0, 255, (4, 84, 84), np.uint8))] * 2)
    with pytest.raises(ValueError, match="`env` must stack 4 frames"):
        loaded.set_env(whole)
    loaded.replay_buffer.reset()
    loaded.set_env(whole)
    loaded.learn(20)
    assert loaded.replay_buffer.frame_stack == 1
    loaded.set_env(stacked(LARGE))
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded.replay_buffer.frame_stack == 1, "whole stacks can be of any kind"


def test_training_goes_on_amid_an_episode(tmp_path):
    env = stacked(LARGE, length=60)
    model = tiny_model(env, policy="CnnPolicy").learn(40)
    model.save(tmp_path / "model")
    loaded = MuZero.load(tmp_path / "model", env=env, force_reset=False)
    resets = env.get_attr("resets")
    with pytest.warns(UserWarning, match="has not seen count as zeros"):
        loaded.learn(40, reset_num_timesteps=False)
    assert env.get_attr("resets") == resets


def test_what_the_first_frame_is_repeated_for_is_refused():
    """gymnasium's ``FrameStackObservation`` begins like that."""
    one_plane = spaces.Box(0, 255, (84, 84), np.uint8)
    env = DummyVecEnv([lambda: gym.wrappers.FrameStackObservation(TinyEnv(one_plane), 4)])
    with pytest.raises(ValueError, match="zeros before an episode's first"):
        tiny_model(env, policy="CnnPolicy", replay_buffer_kwargs=dict(frame_stack=4)).learn(40)


@pytest.mark.parametrize("shape", [(17, 9, 9), (12, 8, 8)])
def test_planes_that_sb3_takes_for_rows_are_refused(shape):
    env = DummyVecEnv([lambda: TinyEnv(spaces.Box(0, 255, shape, np.uint8))])
    with (
        pytest.raises(ValueError, match=r"`env` has images of shape.*skip=True"),
        pytest.warns(UserWarning, match="channels-last"),
    ):
        tiny_model(env, policy="CnnPolicy")
    assert tiny_model(VecTransposeImage(env, skip=True), policy="CnnPolicy").learn(20).policy.image_shape == shape


@pytest.mark.parametrize("stacks", [False, True])
def test_images_that_sb3_transposes_around_vec_normalize(stacks):
    env = DummyVecEnv([lambda: TinyEnv(spaces.Box(0, 255, (36, 40, 3), np.uint8))])
    normalized = VecNormalize(env, norm_obs=False)
    model = tiny_model(VecFrameStack(normalized, 4) if stacks else normalized, policy="CnnPolicy").learn(40)
    assert model.replay_buffer.observations.frames.shape[2:] == (3, 36, 40)
    shown = np.stack(env.envs[0].shown[0][:-1]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(model.replay_buffer.observations.frames[: len(shown), 0], shown)


def test_stacks_of_another_number_of_frames_are_refused():
    with pytest.raises(ValueError, match="not stacks of 2"):
        tiny_model(stacked(LARGE), policy="CnnPolicy", replay_buffer_kwargs=dict(frame_stack=2)).learn(40)


@pytest.mark.parametrize("frame_stack", [0, -1, 3])
def test_impossible_stacks_are_refused(frame_stack):
    with pytest.raises(ValueError, match="`frame_stack` must be an integer"):
        tiny_model(stacked(LARGE), replay_buffer_kwargs=dict(frame_stack=2.0))
    with pytest.raises(ValueError, match="`frame_stack` must be 1 or divide"):
        tiny_model(stacked(LARGE), replay_buffer_kwargs=dict(frame_stack=frame_stack))
    with pytest.raises(ValueError, match="`buffer_size` must be above `frame_stack`"):
        tiny_model(stacked(LARGE), buffer_size=8)


def test_stacks_of_another_kind_are_refused():
    class Reversed(VecTransposeImage):
        def transpose_observations(self, observations):
            return super().transpose_observations(observations)[:, ::-1].copy()

    env = Reversed(stacked(FRAMES["channel last"]))
    with pytest.raises(ValueError, match="frame_stack"):
        tiny_model(env).learn(40)
    tiny_model(env, replay_buffer_kwargs=dict(frame_stack=1)).learn(40)


def test_stacks_of_boxes_that_are_no_images_are_stored_whole():
    space = spaces.Box(-1, 1, (2, 3), np.float32)
    model = tiny_model(VecFrameStack(DummyVecEnv([lambda: TinyEnv(space)]), 4)).learn(40)
    assert model.replay_buffer.frame_stack == 1
    assert model.replay_buffer.observations.frames.shape[2:] == (2, 12)


@pytest.mark.parametrize("in_dict", [False, True])
@pytest.mark.parametrize("shape, axis", [((6, 10, 10), "first"), ((12, 12, 3), "last")])
def test_stacks_that_sb3_takes_for_images_of_the_other_layout_are_refused(shape, axis, in_dict):
    """SB3 takes an image's smallest axis for its channels: of 4 times 6 channels and 10 pixels, the pixels."""
    image = spaces.Box(0, 255, shape, np.uint8)
    policy, space = ("MultiInputPolicy", spaces.Dict({"image": image})) if in_dict else ("CnnPolicy", image)
    env = stacked(space)
    other = "last" if axis == "first" else "first"
    with pytest.raises(ValueError, match=rf"stacked images along their {axis} axis, .* for channels-{other}: "):
        tiny_model(env, policy=policy)
    if axis == "first":
        model = tiny_model(VecTransposeImage(env, skip=True), policy=policy).learn(40)
        assert in_dict or model.replay_buffer.observations.frames.shape[2:] == shape
        model.predict(env.reset())


class ChannelsFirst(VecEnvWrapper):
    """Does by itself what ``VecTransposeImage`` does, alone or as part of a Dict."""

    def __init__(self, venv: VecEnv, in_dict: bool) -> None:
        height, width, channels = venv.observation_space.shape
        image = spaces.Box(0, 255, (channels, height, width), np.uint8)
        super().__init__(venv, spaces.Dict({"image": image}) if in_dict else image)
        self.in_dict = in_dict

    def reset(self):
        return self.changed(self.venv.reset())

    def step_wait(self):
        observations, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = self.changed(info["terminal_observation"])
        return self.changed(observations), rewards, dones, infos

    def changed(self, images):
        images = np.moveaxis(images, -1, -3)
        return {"image": images} if self.in_dict else images


@pytest.mark.parametrize("in_dict", [False, True])
def test_stacks_that_a_wrapper_has_changed_are_taken_as_they_are(in_dict):
    env = ChannelsFirst(stacked(FRAMES["channel last"]), in_dict)
    model = tiny_model(env, policy="MultiInputPolicy" if in_dict else "CnnPolicy").learn(40)
    assert model.get_env() is env and model.replay_buffer.frame_stack == (1 if in_dict else 4)
