"""Dict observations: stored as they come, seen by the policy in all their parts, and learned from."""

import numpy as np
import pytest
import torch as th
from conftest import TinyEnv, scramble, sequences_of, tiny_envs, tiny_model
from gymnasium import spaces
from stable_baselines3.common.envs import SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_muzero import MuZero
from sb3_muzero.exploration.count_bonus import CountBonus
from sb3_muzero.replay.packing import FramePacking

PARTS = spaces.Dict(
    {
        "vector": spaces.Box(-1, 1, (3,), np.float32),
        "matrix": spaces.Box(-1, 1, (2, 2), np.float64),
        "image": spaces.Box(0, 255, (3, 40, 40), np.uint8),
        "discrete": spaces.Discrete(4, start=2),
        "several": spaces.MultiDiscrete([3, 2]),
        "bits": spaces.MultiBinary(4),
    }
)


def shown(env: TinyEnv, episode: int, key: str) -> np.ndarray:
    return np.stack([observation[key] for observation in env.shown[episode][:11]])


@pytest.mark.parametrize("terminates", [False, True])
def test_the_buffer_keeps_every_part_as_it_came(terminates):
    env = TinyEnv(PARTS, terminates=terminates)
    model = tiny_model(env, policy="MultiInputPolicy").learn(48)
    sequences = sequences_of(model.replay_buffer, np.arange(4) * 10, np.zeros(4, int), 10, 1)
    assert sequences.lengths.tolist() == [10] * 4 and sequences.terminated.tolist() == [terminates] * 4
    for key in PARTS:
        for episode in range(4):
            np.testing.assert_array_equal(sequences.observations[key][:, episode], shown(env, episode, key))
        assert sequences.observations[key].numpy().dtype == PARTS[key].dtype


@pytest.mark.parametrize("key", list(PARTS))
def test_the_policy_sees_every_part(key):
    # Random convolutions drown out what is beside them
    parts = spaces.Dict({name: part for name, part in PARTS.items() if name != "image" or key == "image"})
    model = scramble(tiny_model(TinyEnv(parts), policy="MultiInputPolicy").learn(32))
    one = {name: np.stack([part.sample()] * 20) for name, part in parts.items()}
    several = one | {key: np.stack([PARTS[key].sample() for _ in range(20)])}
    spreads = [
        np.ptp(model.policy.represent({name: th.as_tensor(part) for name, part in obs.items()}).detach().numpy(), axis=0).max()
        for obs in (one, several)
    ]
    assert spreads[0] < 1e-4 < spreads[1]


def test_predictions_alone_and_in_a_batch():
    env = TinyEnv(PARTS)
    model = tiny_model(env, policy="MultiInputPolicy").learn(32)
    batch = {key: shown(env, 0, key) for key in PARTS}
    actions, _ = model.predict(batch, deterministic=True)
    alone, _ = model.predict({key: part[0] for key, part in batch.items()}, deterministic=True)
    assert actions.shape == (11,) and alone.shape == () and alone == actions[0]


def test_observations_that_are_not_finite_are_refused_by_the_name_of_their_part():
    class Broken(TinyEnv):
        def _show(self):
            observation = super()._show()
            return observation | {"matrix": observation["matrix"] * (np.nan if self.steps == 7 else 1)}

    with pytest.raises(ValueError, match=r"'matrix'.*step"):
        tiny_model(Broken(PARTS), policy="MultiInputPolicy").learn(48)


@pytest.mark.parametrize("novelty_coef", [0.0, 0.5])
def test_with_everything_else(tmp_path, novelty_coef):
    vectors = spaces.Dict({key: PARTS[key] for key in ("vector", "discrete")})
    env = VecNormalize(tiny_envs(2, observation_space=vectors), norm_obs_keys=["vector"])
    settings = dict(reanalyze_ratio=1.0, n_steps=1, replay_buffer_kwargs=dict(priority_exponent=0.6))
    model = tiny_model(env, policy="MultiInputPolicy", novelty_coef=novelty_coef, **settings).learn(600)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = MuZero.load(tmp_path / "model", env=env)
    loaded.load_replay_buffer(tmp_path / "buffer")
    np.testing.assert_array_equal(loaded.replay_buffer.observations.frames, model.replay_buffer.observations.frames)
    updates = loaded._n_updates
    loaded.learn(100, reset_num_timesteps=False)
    assert loaded._n_updates > updates > 0


def test_small_images_among_the_parts():
    small = spaces.Dict({"image": spaces.Box(0, 255, (7, 7, 3), np.uint8), "direction": spaces.Discrete(4)})
    model = tiny_model(TinyEnv(small), policy="MultiInputPolicy").learn(40)
    assert model._n_updates > 0


def test_quantities_among_the_parts_are_scaled_as_a_vector_is():
    units = spaces.Dict({"metres": spaces.Box(-1e4, 1e4, (3,), np.float32), "code": spaces.Discrete(2)})
    policy = tiny_model(TinyEnv(units), policy="MultiInputPolicy").learn(400).policy
    obs, _ = policy.obs_to_tensor({"metres": np.full((1, 3), 5e3, np.float32), "code": np.zeros(1, np.int64)})
    model = policy.latent_model
    assert model.input_norm(model.features_extractor(policy.latent_model.preprocess(obs))).abs().max() < 3
    bucket_ids = spaces.Dict({"code": spaces.Discrete(2)})
    assert isinstance(tiny_model(TinyEnv(bucket_ids), policy="MultiInputPolicy").policy.latent_model.input_norm, nn.Identity)


def test_quantities_beside_an_image_are_scaled_whatever_their_unit():
    parts = {"metres": spaces.Box(-1e-3, 1e-3, (3,), np.float32), "image": spaces.Box(0, 255, (1, 12, 12), np.uint8)}
    space = spaces.Dict(parts)
    model = tiny_model(TinyEnv(space), policy="MultiInputPolicy").learn(400)
    observations = sequences_of(model.replay_buffer, np.arange(300), np.zeros(300, int), 1, 1).observations
    latent_model, policy = model.policy.latent_model, model.policy
    first = {key: part[0] for key, part in observations.items()}
    scaled = latent_model.input_norm(latent_model.features_extractor(policy.latent_model.preprocess(first)))
    is_metres = ~np.array(latent_model.features_extractor.learned_features)
    assert is_metres.sum() == 3
    assert 0.7 < scaled[:, is_metres].std(0).min() and scaled[:, is_metres].std(0).max() < 1.4


def test_float_images_need_no_scaling_where_the_policy_is_told_so():
    floats = spaces.Dict({"image": spaces.Box(0, 1, (3, 40, 40), np.float32), "code": spaces.Discrete(2)})
    for normalize_images, sees_an_image in ((True, False), (False, True)):
        kwargs = dict(normalize_images=normalize_images)
        policy = tiny_model(TinyEnv(floats), policy="MultiInputPolicy", policy_kwargs=kwargs).policy
        assert any(isinstance(module, nn.Conv2d) for module in policy.modules()) == sees_an_image


def test_another_space_is_refused_by_name():
    with pytest.raises(ValueError, match="must be a Dict for MultiInputPolicy"):
        tiny_model("CartPole-v1", policy="MultiInputPolicy")


def test_integer_parts_are_counted_as_they_are_beside_real_ones():
    space = spaces.Dict({"key": spaces.Discrete(2), "place": spaces.Box(-1, 1, (6,), np.float32)})
    visits = CountBonus(space)
    rows = np.zeros(500, FramePacking(space, ()).given)
    rows["place"] = np.random.default_rng(0).uniform(-1, 1, (500, 6))
    visits.fit(rows)
    with_key = rows.copy()
    with_key["key"] = 1
    assert (visits.bucket_ids(rows) != visits.bucket_ids(with_key)).all()
    assert len(np.unique(visits.bucket_ids(rows))) < 400, "places fall into cells"


def test_vec_normalize_scales_its_parts_of_what_is_sampled():
    vectors = spaces.Dict({key: PARTS[key] for key in ("vector", "matrix")})
    env = VecNormalize(tiny_envs(2, observation_space=vectors), norm_obs_keys=["vector"])
    model = tiny_model(env, policy="MultiInputPolicy", learning_starts=1_000).learn(80)
    ages, envs = np.arange(20), np.zeros(20, int)
    raw, scaled = (sequences_of(model.replay_buffer, ages, envs, 2, 2, env=normalize) for normalize in (None, env))
    np.testing.assert_array_equal(raw.observations["matrix"], scaled.observations["matrix"])
    expected = env.normalize_obs({key: part.numpy() for key, part in raw.observations.items()})["vector"]
    np.testing.assert_allclose(scaled.observations["vector"], expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("pictures", [0, 1])
def test_the_grid_of_sb3_is_solved(pictures):
    np.random.seed(pictures)  # which draw its vectors and images
    model = MuZero("MultiInputPolicy", SimpleMultiObsEnv(random_start=False), seed=0, device="cpu").learn(9_000)
    assert evaluate_policy(model, model.get_env(), n_eval_episodes=5)[0] == pytest.approx(0.5)  # the shortest way
