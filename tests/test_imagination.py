"""Imagined environments do what the model predicts, and agents that are trained inside act in the real ones."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import TinyEnv, differences, scramble, snapshot, tiny_envs, tiny_model
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from PIL import Image
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_muzero import MuZero
from sb3_muzero.__main__ import main
from sb3_muzero.actions import make_actions
from sb3_muzero.analysis import imagine_command
from sb3_muzero.common.random_state import random_state
from sb3_muzero.games import TicTacToeEnv
from sb3_muzero.imagination import ImaginedEnv, ImaginedVecEnv, as_real, fit_decoder, fit_renderer
from sb3_muzero.models.decoder import psnr

ACTION_SPACES = [
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([2, 3], start=[4, -1]),
    spaces.MultiDiscrete([[2, 3], [3, 2]]),
    spaces.MultiBinary(3),
    spaces.Box(np.array([[-1.0, 0.0]], np.float32), np.array([[3.0, 0.5]], np.float32)),
    spaces.Box(-2, 3, (2,), np.int64),
]
BITS = spaces.Box(0, 255, (2, 6, 6), np.uint8)


def trained(env=None, policy="MlpPolicy", **kwargs) -> MuZero:
    return scramble(tiny_model(tiny_envs(2) if env is None else env, policy, **kwargs).learn(40))


@pytest.fixture(scope="module")
def model() -> MuZero:
    return trained()


def latents_of(model: MuZero, observations) -> np.ndarray:
    with th.no_grad():
        return model.policy.represent(model.policy.obs_to_tensor(observations)[0]).numpy()


@pytest.mark.parametrize("space", ACTION_SPACES, ids=str)
def test_actions_of_the_environment_and_of_the_model_are_translated_both_ways(space):
    actions = make_actions(space)
    space.seed(0)
    taken = np.stack([space.sample() for _ in range(9)])
    np.testing.assert_allclose(actions.to_env(actions.check(actions.from_env(taken), 9)), taken, atol=1e-6)
    if isinstance(space, spaces.Box):
        assert np.abs(actions.from_env(space.high[None] + 1e-6)).max() <= 1  # as SAC's actions may be
    shaped = taken.reshape(3, 3, *space.shape)
    np.testing.assert_array_equal(actions.from_env(shaped).reshape(9, -1), actions.from_env(taken).reshape(9, -1))


@pytest.mark.parametrize("space", ACTION_SPACES[:5], ids=str)
def test_steps_are_those_of_the_model(space):
    """Rewards are expected ones; the value of the last state is part of the last reward."""
    model = trained(tiny_envs(2, action_space=space))
    env, policy = ImaginedVecEnv(model, num_envs=3, horizon=2), model.policy
    env.seed(1)
    latent = env.reset()
    for is_last in (False, True):
        actions = np.stack([env.action_space.sample() for _ in range(3)])
        observations, rewards, dones, infos = env.step(actions)
        with th.no_grad():
            chosen = th.as_tensor(policy.actions.from_env(actions))
            next_latent, logits = policy.latent_model.step(th.as_tensor(latent), policy.latent_model.action_encoder(chosen))
            expected = policy.latent_model.reward_support.expectation(logits)
            if is_last:
                predicted = policy.latent_model.prediction(next_latent).value_logits
                expected += model.gamma * policy.latent_model.value_support.expectation(predicted)
        np.testing.assert_allclose(rewards, expected, rtol=1e-5)
        latent = np.stack([info["terminal_observation"] for info in infos]) if is_last else observations
        np.testing.assert_allclose(latent, next_latent, rtol=1e-5)
        assert rewards.dtype == np.float32 and dones.all() == dones.any() == is_last


def test_the_value_counts_once_on_policy(model):
    """PPO adds its own value to rewards of truncations only."""
    env = ImaginedVecEnv(model, num_envs=2, horizon=2)
    agent = PPO("MlpPolicy", env, n_steps=4, batch_size=8, seed=0, device="cpu")
    given, step_wait = [], env.step_wait

    def step_and_copy() -> tuple:
        step = step_wait()
        given.append(step[1].copy())  # since PPO adds in place
        return step

    env.step_wait = step_and_copy
    agent.learn(8)
    np.testing.assert_array_equal(agent.rollout_buffer.rewards.reshape(4, 2), np.stack(given))


def test_the_value_counts_once_off_policy(model):
    """DQN does not bootstrap from a state after which it is done, unless the episode was truncated."""
    agent = DQN("MlpPolicy", ImaginedVecEnv(model, num_envs=2, horizon=2), learning_starts=4, seed=0, device="cpu").learn(16)
    buffer = agent.replay_buffer
    np.testing.assert_array_equal(buffer.dones[:8, 0], [0, 1] * 4)
    assert not buffer.timeouts.any()
    assert (buffer.next_observations[1, 0] != buffer.observations[2, 0]).any()  # the final one, not that of the reset


def test_sac_trains_where_actions_are_continuous():
    model = trained(tiny_envs(2, action_space=ACTION_SPACES[4]))
    SAC("MlpPolicy", ImaginedVecEnv(model, num_envs=2), learning_starts=4, device="cpu").learn(12)


def test_muzero_trains_in_the_imagination_of_another_one(model):
    tiny_model(ImaginedVecEnv(model, num_envs=2)).learn(40)


def test_the_model_is_not_changed(model):
    before = snapshot(model)
    for mode in (True, False):
        model.policy.set_training_mode(mode)
        env = ImaginedVecEnv(model, num_envs=2)
        agent = PPO("MlpPolicy", env, n_steps=16, batch_size=16, device="cpu").learn(32)
        as_real(agent, model).predict(model.observation_space.sample())
        assert model.policy.training == model.policy.latent_model.training == mode
    assert differences(before, snapshot(model)) == []


class Dropout(th.nn.Sequential):
    def __init__(self, features_dim: int, latent_dim: int, **kwargs) -> None:
        super().__init__(th.nn.Linear(features_dim, latent_dim), th.nn.Dropout(0.5))


def test_imagined_in_evaluation_mode():
    model = trained(policy_kwargs={"representation_class": Dropout})
    model.policy.set_training_mode(True)
    env = ImaginedVecEnv(model, observations=np.ones((1, 3), np.float32), num_envs=2)
    first = env.reset()
    np.testing.assert_array_equal(first[0], first[1])


def test_a_seed_decides_everything(model):
    def run() -> tuple[np.ndarray, dict]:
        env = ImaginedVecEnv(model, num_envs=2)
        agent = PPO("MlpPolicy", env, n_steps=16, batch_size=16, seed=3, device="cpu").learn(32)
        return env.reset(), agent.get_parameters()

    first, second = run(), run()
    assert differences(first, second) == []
    env = ImaginedVecEnv(model, num_envs=8)
    starts = [(env.seed(seed), env.reset())[1] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(starts[0], starts[1])
    assert (starts[0] != starts[2]).any() and (starts[0] != env.reset()).any()
    single = ImaginedEnv(model)
    np.testing.assert_array_equal(single.reset(seed=5)[0], single.reset(seed=5)[0])


def begins_with(env: ImaginedVecEnv, allowed: np.ndarray) -> None:
    """All episodes begin at one of these latent states, and not always at the same one."""
    shown = [env.reset()]
    for _ in range(3 * env.horizon):
        observations, _, dones, _ = env.step(np.stack([env.action_space.sample() for _ in range(env.num_envs)]))
        shown += [observations[dones]]
    starts = np.concatenate(shown)
    distances = np.abs(starts[:, None] - allowed).max(-1)
    assert distances.min(1).max() < 1e-5
    assert len(set(distances.argmin(1))) > 3


def test_episodes_begin_at_stored_observations():
    tiny = TinyEnv(), TinyEnv()
    model = trained(DummyVecEnv([lambda: tiny[0], lambda: tiny[1]]))
    stored = [obs for env in tiny for episode in env.shown for obs in episode]
    begins_with(ImaginedVecEnv(model, num_envs=4, horizon=2), latents_of(model, np.stack(stored)))


def test_stored_observations_are_normalized_as_in_training():
    tiny = TinyEnv(length=1_000)
    env = VecNormalize(DummyVecEnv([lambda: tiny]))
    model = trained(env)
    stored = env.normalize_obs(np.stack(tiny.shown[0]))
    begins_with(ImaginedVecEnv(model, num_envs=4, horizon=2), latents_of(model, stored.astype(np.float32)))


@pytest.mark.parametrize(
    "policy, space",
    [("CnnPolicy", BITS), ("MultiInputPolicy", spaces.Dict({"a": spaces.Discrete(9)})), ("ResNetPolicy", BITS)],
)
def test_episodes_begin_at_given_observations(policy, space):
    env = tiny_envs(2, observation_space=space)
    model = tiny_model(VecFrameStack(env, 2) if policy == "CnnPolicy" else env, policy)
    seen = [model.observation_space.sample() for _ in range(9)]
    given = {"a": np.stack([obs["a"] for obs in seen])} if policy == "MultiInputPolicy" else np.stack(seen)
    imagined = ImaginedVecEnv(model, given, num_envs=4, horizon=2)
    assert imagined.observation_space.shape == latents_of(model, given).shape[1:]
    begins_with(imagined, latents_of(model, given))


def test_an_agent_acts_in_the_real_environment(model, tmp_path):
    agent = PPO("MlpPolicy", VecMonitor(ImaginedVecEnv(model)), n_steps=16, batch_size=64, seed=0, device="cpu").learn(512)
    assert len(agent.ep_info_buffer) > 0
    agent.save(tmp_path / "agent")
    real = as_real(PPO.load(tmp_path / "agent", device="cpu"), model)
    observations = np.stack([model.observation_space.sample() for _ in range(5)])
    actions, state = real.predict(observations, deterministic=True)
    assert state is None and actions.shape == (5,)
    expected, _ = agent.predict(latents_of(model, observations), deterministic=True)
    np.testing.assert_array_equal(actions, expected)
    assert real.predict(observations[0], deterministic=True)[0] == actions[0]
    mean, _ = evaluate_policy(real, model.get_env(), n_eval_episodes=2, warn=False)
    assert 0 <= mean <= 10


def test_decoded_observations_are_those_of_the_environment(model):
    decoder = fit_decoder(model, num_samples=200, num_updates=300)
    env = ImaginedVecEnv(model, num_envs=64, decoder=decoder)
    assert env.observation_space == model.observation_space
    decoded = env.reset()
    assert np.abs(latents_of(model, decoded) - latents_of(model, model.observation_space.sample()[None])).max() > 0
    assert all(map(env.observation_space.contains, decoded))
    agent = PPO("MlpPolicy", env, n_steps=4, batch_size=64, device="cpu").learn(64)
    agent.predict(model.observation_space.sample())  # acts in the real environment as it is


def test_decoded_images_have_the_type_of_the_environments():
    model = trained(tiny_envs(2, observation_space=BITS), "CnnPolicy")
    before, random_before = snapshot(model), random_state()
    decoder = fit_decoder(model, num_samples=50, num_updates=5)
    assert differences((before, random_before), (snapshot(model), random_state())) == []
    env = ImaginedEnv(model, decoder=decoder, render_mode="rgb_array")
    check_env(env, skip_render_check=True)
    assert env.reset(seed=0)[0].dtype == np.uint8 and env.render().shape == (6, 6, 3)


class Drawn(TinyEnv):
    """Shows its observation as the colour of its frame."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    render_mode = "rgb_array"

    def render(self) -> np.ndarray:
        return np.broadcast_to(np.uint8(127 * (1 + self.shown[-1][-1])), (40, 20, 3))


gym.register("ImaginedDrawn-v0", Drawn, max_episode_steps=12)


def test_what_is_imagined_is_rendered():
    model = tiny_model("ImaginedDrawn-v0").learn(60)
    renderer = fit_renderer(model, gym.make("ImaginedDrawn-v0"), num_steps=300, size=8, num_updates=300)
    assert renderer.shape == (3, 8, 4)
    colours = np.array([[0.5, -0.5, 0.0], [-0.9, 0.9, 0.3]], np.float32)
    for observation in colours:
        env = ImaginedEnv(model, observation[None], render_mode="rgb_array", renderer=renderer)
        assert env.render_mode == "rgb_array"
        env.reset(seed=0)
        frame = env.render()
        assert frame.dtype == np.uint8 and frame.shape == (8, 4, 3)
        np.testing.assert_allclose(frame.mean((0, 1)), 127 * (1 + observation), atol=40)
    check_env(env, skip_render_check=True)
    assert ImaginedEnv(model).render() is None


def test_invalid_arguments(model):
    two_player = tiny_model(DummyVecEnv([TicTacToeEnv]))
    with pytest.raises(ValueError, match="need a model for one player, got one of a two-player game"):
        ImaginedVecEnv(two_player, np.zeros((1, 2, 3, 3), np.uint8))
    with pytest.raises(ValueError, match="`horizon` must be an integer of at least 1, got 0"):
        ImaginedVecEnv(model, horizon=0)
    with pytest.raises(ValueError, match="`num_envs` must be an integer of at least 1, got 0"):
        ImaginedVecEnv(model, num_envs=0)
    with pytest.raises(ValueError, match="Observations must be finite"):
        ImaginedVecEnv(model, observations=np.full((2, 3), np.nan))
    with pytest.raises(ValueError, match="`action` must be indices from 0 to 2, got"):
        env = ImaginedVecEnv(model, num_envs=2)
        env.reset()
        env.step(np.array([0, 3]))
    with pytest.raises(ValueError, match=r"`render_mode` must be \"rgb_array\" or None, got 'human'"):
        ImaginedEnv(model, render_mode="human")
    wrong = fit_decoder(trained(tiny_envs(1, observation_space=spaces.Box(-1, 1, (5,)))), num_samples=9, num_updates=1)
    with pytest.raises(ValueError, match=r"`decoder` must decode observations of Box.*got one of arrays of shape \(5,\)"):
        ImaginedVecEnv(model, decoder=wrong)
    other = PPO("MlpPolicy", TinyEnv(), n_steps=8, batch_size=8, device="cpu")
    with pytest.raises(ValueError, match=r"`agent` must observe latent states of the model, of shape \(64,\)"):
        as_real(other, model)


def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(imagine_command, "fit_renderer", partial(fit_renderer, num_updates=5))
    model = tiny_model("ImaginedDrawn-v0").learn(60)
    model.save(tmp_path / "model.zip")
    common = ["imagine", str(tmp_path / "model.zip"), "--env", "ImaginedDrawn-v0", "--fit-steps", "40", "--size", "8"]
    main([*common, "--actions", *"0120", "--record", str(tmp_path / "imagined.gif")])
    shown = capsys.readouterr().out
    assert "4 real steps: reward 2, imagined" in shown and "PSNR after  1 steps: imagined" in shown
    with Image.open(tmp_path / "imagined.gif") as recording:
        assert recording.n_frames == 5 and recording.size == (3 * (4 + 2 + 4), 3 * 8)
    main([*common, "--steps", "3"])
    assert "3 real steps" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"`--actions` must be of Discrete\(3\), got 7"):
        main([*common, "--actions", "7"])

    def render(self) -> None:
        raise gym.error.DependencyNotInstalled("pygame is not installed")

    monkeypatch.setattr(Drawn, "render", render)
    with pytest.raises(SystemExit, match=r'pygame is not installed: pip install "sb3_muzero\[plots\]"'):
        main(common)


def test_psnr():
    black = np.zeros((2, 2, 3))
    assert psnr(black, black) == np.inf
    assert psnr(black, black + 0.1) == pytest.approx(20.0)
    assert psnr(np.uint8(black + 250), np.uint8(black + 255), 255) == pytest.approx(20 * np.log10(255 / 5))


@pytest.mark.slow
def test_ppo_learns_cartpole_in_imagination_and_does_not_unlearn_it():
    model = MuZero("MlpPolicy", "CartPole-v1", seed=100, device="cpu").learn(10_000)
    agent = PPO("MlpPolicy", ImaginedVecEnv(model), n_steps=128, batch_size=256, n_epochs=4, seed=0, device="cpu")
    env = make_vec_env("CartPole-v1", 10, seed=99)
    for _ in range(2):
        agent.learn(100_000, reset_num_timesteps=False)
        assert evaluate_policy(as_real(agent, model), env, n_eval_episodes=20)[0] >= 475
