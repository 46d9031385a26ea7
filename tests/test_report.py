"""``python -m sb3_muzero report`` describes a model in one file, for every kind of environment."""

import shutil
import struct
import subprocess
from html.parser import HTMLParser

import gymnasium as gym
import numpy as np
import pytest
from conftest import TinyEnv, differences, sequences_of, snapshot, tiny_envs, tiny_model
from gymnasium import spaces
from matplotlib.figure import Figure
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from sb3_muzero.__main__ import main
from sb3_muzero.analysis import report
from sb3_muzero.analysis.recording import play, record_frames
from sb3_muzero.checkpointing import save_checkpoint
from sb3_muzero.games import TicTacToeEnv


class Page(HTMLParser):
    """What a page shows and refers to."""

    VOID = ("meta", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[str] = []
        self.references: list[str] = []
        self.open: list[str] = []
        self.headings: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.open == [], "tags that are not closed"

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href") and not value.startswith("data:")]
        if tag == "img":
            self.images.append(dict(attrs)["src"])
            assert dict(attrs)["alt"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


def run(*args) -> None:
    main(["report", *map(str, args)])


@pytest.fixture(autouse=True)
def hasty_decoder(monkeypatch):
    monkeypatch.setattr(report, "DECODER_UPDATES", 20)


SECTIONS = ["Decisions", "Open-loop predictions", "Diagnostics", "Latent space", "Settings"]


def test_command_line(tmp_path, capsys):
    model = tiny_model("CartPole-v1").learn(200)
    model.save(tmp_path / "model.zip")
    run(
        tmp_path / "model.zip",
        "--env",
        "CartPole-v1",
        "--episodes",
        8,
        "--max-steps",
        2000,
        "--output",
        tmp_path / "page.html",
    )
    assert "wrote" in capsys.readouterr().out
    page = Page((tmp_path / "page.html").read_text())
    assert page.headings == ["MuZero on CartPole-v1", "Results", *SECTIONS]
    assert page.references == []  # nothing is fetched
    assert len(page.images) >= 6
    assert {"num_simulations", "mean return", "value_bias", "dormant_units"} <= set(page.text)
    assert page.text[page.text.index("trained") + 1] == "200"

    chromium = shutil.which("chromium")
    if chromium:  # where there is one, it shows the page
        options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        shot = tmp_path / "shot.png"
        command = [chromium, *options.split(), "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path}/c"]
        subprocess.run(
            [*command, "--window-size=1200,4000", f"--screenshot={shot}", (tmp_path / "page.html").as_uri()],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        assert struct.unpack(">II", shot.read_bytes()[16:24]) == (1200, 4000)


class MaskedEnv(TinyEnv):
    """Every other step the first action is illegal."""

    def action_masks(self):
        return np.array([self.steps % 2 == 0, True, True])


BITS = spaces.Box(0, 255, (2, 8, 8), np.uint8)
ENVS = {
    "images": lambda: tiny_envs(2, observation_space=BITS),
    "stacked": lambda: VecFrameStack(tiny_envs(2, observation_space=BITS), 2),
    "dict": lambda: tiny_envs(2, observation_space=spaces.Dict({"image": BITS, "code": spaces.Discrete(3)})),
    "discrete": lambda: tiny_envs(2, observation_space=spaces.Discrete(5)),
    "normalized": lambda: VecNormalize(tiny_envs(2)),
    "masked": lambda: DummyVecEnv([MaskedEnv] * 2),
    "endless": lambda: tiny_envs(2, length=10**9),
    "truncated": lambda: tiny_envs(2, terminates=False),
    "action start": lambda: tiny_envs(2, action_space=spaces.Discrete(2, start=5)),
}


@pytest.mark.parametrize("kind", ENVS)
def test_every_kind_of_environment(kind, tmp_path):
    env = ENVS[kind]()
    policy = {"images": "CnnPolicy", "stacked": "CnnPolicy", "dict": "MultiInputPolicy"}.get(kind, "MlpPolicy")
    model = tiny_model(env, policy).learn(60)
    before = snapshot(model)
    model.replay_buffer.reset()
    report.write_report(model, model.get_env(), tmp_path / "page.html", num_episodes=8, max_steps=200)
    assert differences(before, snapshot(model)) == []
    page = Page((tmp_path / "page.html").read_text())
    assert page.headings == ["MuZero on an environment", "Results", *SECTIONS]
    complete = page.text[page.text.index("complete episodes") + 1]
    assert (complete == "0") == (kind == "endless")
    decoded = not any("Observations are not reconstructed" in text for text in page.text)
    assert decoded == (kind not in ("dict", "discrete"))


def test_a_checkpoint_is_reported_on(tmp_path):
    save_checkpoint(tiny_model(tiny_envs(2)).learn(40), tmp_path)
    gym.register("Tiny-v0", TinyEnv)
    run(tmp_path, "--env", "Tiny-v0", "--output", tmp_path / "report.html", "--episodes", 8)
    assert "40" in Page((tmp_path / "report.html").read_text()).text
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="There is no checkpoint in"):
        run(tmp_path / "empty", "--env", "Tiny-v0")


def test_a_games_results_are_of_different_games(tmp_path, monkeypatch):
    """Without noise an agent plays one game against itself again and again."""
    model = tiny_model(TicTacToeEnv()).learn(60)
    model.replay_buffer.reset()
    values = []
    monkeypatch.setattr(report.plotting, "plot_value_calibration", lambda values_, returns: values.append(values_) or Figure())
    report.write_report(model, model.get_env(), tmp_path / "page.html", num_episodes=24)
    page = Page((tmp_path / "page.html").read_text()).text
    assert "with exploration noise" in page and "deterministic" not in page
    assert 0 <= float(page[page.index("decided games") + 1]) <= 1
    assert len(np.unique(values[0])) > 9, "more than one game's"


def test_played_episodes_are_those_of_the_environment():
    env = tiny_envs(2, length=7)
    model = tiny_model(env).learn(40)
    env.reset()
    first = [len(one.shown) for one in env.envs]
    buffer = model.replay_buffer
    buffer.reset()
    played = play(model, env, 8, 50, deterministic=True, replay_buffer=buffer)
    assert [len(episode.actions) for episode in played.episodes] == [7] * 6 + [4] * 2
    assert [episode.terminated for episode in played.episodes] == [True] * 6 + [False] * 2
    assert played.lengths == [7] * 6 and played.cut_short == 2
    for i, one in enumerate(env.envs):
        episodes = [played.episodes[j] for j in (i, 2 + i, 4 + i, 6 + i)]
        for number, episode in enumerate(episodes, start=first[i]):
            np.testing.assert_array_equal(episode.observations, one.shown[number])
            assert list(episode.actions) == one.taken[number]
            assert list(episode.rewards) == one.rewards[number]
        assert played.returns[3 * i : 3 * i + 3] == [episode.rewards.sum() for episode in episodes[:3]]
    assert buffer.size() == 25
    assert buffer.terminals[:25].sum() == 6


class PaidAtTheEnd(TinyEnv):
    """Pays 1 for 40 steps, and nothing for less."""

    def step(self, action):
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float(terminated and self.length == 40), terminated, truncated, info


def test_short_episodes_count_no_more_than_long_ones():
    env = DummyVecEnv([lambda: PaidAtTheEnd(length=2), lambda: PaidAtTheEnd(length=40)])
    played = play(tiny_model(env), env, 8, 10_000, deterministic=True)
    assert sorted(played.lengths) == [2] * 4 + [40] * 4 and np.mean(played.returns) == 0.5
    assert len(played.episodes) == 8


def test_returns_are_the_environments_own():
    """Not those that VecNormalize, or a wrapper around Monitor, made of the rewards."""
    normalized = VecNormalize(tiny_envs(2))
    wrapped = make_vec_env(TinyEnv, 2, wrapper_class=gym.wrappers.TransformReward, wrapper_kwargs={"func": lambda r: r / 10})
    for env in (normalized, wrapped):
        played = play(tiny_model(env), env, 6, 1000, deterministic=False)
        shown = [sum(rewards) for one in env.unwrapped.envs for rewards in one.unwrapped.rewards if len(rewards) == 10]
        assert sorted(played.returns) == sorted(shown) and max(shown) >= 1


@pytest.mark.parametrize("stack", [1, 2])
def test_what_is_stored_is_sampled_as_it_was_seen(stack):
    """Normalised once, ends of episodes too."""
    env = VecNormalize(VecFrameStack(tiny_envs(2), stack) if stack > 1 else tiny_envs(2))
    model = tiny_model(env).learn(60)
    env.training = False
    model.replay_buffer.reset()
    played = play(model, env, 4, 1000, deterministic=True, replay_buffer=model.replay_buffer)
    samples = sequences_of(model.replay_buffer, np.zeros(2, int), np.arange(2), 10, 1, env)
    for i in range(2):
        np.testing.assert_allclose(samples.observations[:, i], np.array(played.episodes[i].observations), atol=1e-5)
        np.testing.assert_allclose(samples.rewards[:10, i], played.episodes[i].rewards, atol=1e-5)


def test_illegal_actions_are_not_played():
    model = tiny_model(DummyVecEnv([MaskedEnv] * 2)).learn(60)
    for episode in play(model, model.get_env(), 6, 1000, deterministic=False).episodes:
        assert episode.action_masks[np.arange(len(episode.actions)), episode.actions].all()


def test_a_model_plays_with_masks_if_it_was_trained_with_them():
    model = tiny_model(DummyVecEnv([MaskedEnv] * 2)).learn(60)
    for look in (lambda env: play(model, env, 6, 100, deterministic=True), lambda env: record_frames(model, env, 10)):
        with pytest.raises(ValueError, match="trained with action masks, but the environment has no method `action_masks`"):
            look(tiny_envs(2))
    model.learn(60, use_masking=False)
    assert all(episode.action_masks is None for episode in play(model, model.get_env(), 6, 100, deterministic=True).episodes)


def test_bad_input(tmp_path):
    missing = tmp_path / "missing.zip"
    with pytest.raises(SystemExit, match=r"`model`: there is no .*missing\.zip"):
        run(missing, "--env", "CartPole-v1")
    DQN("MlpPolicy", "CartPole-v1", buffer_size=10, device="cpu").save(tmp_path / "dqn.zip")
    with pytest.raises(SystemExit, match=r"(?s)dqn\.zip can't be loaded.*must be MuZero's"):
        run(tmp_path / "dqn.zip", "--env", "CartPole-v1")
    tiny_model("CartPole-v1").save(tmp_path / "model.zip")
    with pytest.raises(SystemExit, match=r"(?s)`--env Acrobot-v1`.*--env-wrapper"):
        run(tmp_path / "model.zip", "--env", "Acrobot-v1")
    with pytest.raises(SystemExit, match=r"(?s)`--env Nowhere-v0` can't be made.*`--gym-packages`"):
        run(tmp_path / "model.zip", "--env", "Nowhere-v0")
    with pytest.raises(SystemExit, match=r"`--gym-packages nowhere` can't be imported"):
        run(tmp_path / "model.zip", "--env", "CartPole-v1", "--gym-packages", "nowhere")
    with pytest.raises(SystemExit, match=r"`--env-wrapper`: there is no nowhere\.Wrapper"):
        run(tmp_path / "model.zip", "--env", "CartPole-v1", "--env-wrapper", "nowhere.Wrapper")
    wrong = {
        ("--max-steps", 5): "`--max-steps` must be at least 100, got 5",
        ("--episodes", 0): "`--episodes` must be at least 1, got 0",
        ("--frame-stack", -3): "`--frame-stack` must be at least 1, got -3",
        ("--output", tmp_path / "nodir" / "x.html"): "`--output`: there is no .*nodir",
        ("--vec-normalize", "nope.pkl"): r"`--vec-normalize`: there is no nope\.pkl",
        ("--env-kwargs", "foo=1"): "(?s)can't be made.*foo.*`--env-kwargs`",
    }
    for options, message in wrong.items():
        with pytest.raises(SystemExit, match=message):
            run(tmp_path / "model.zip", "--env", "CartPole-v1", *options)
    model = tiny_model("CartPole-v1").learn(30)
    with pytest.raises(ValueError, match="`model` must have an empty replay buffer"):
        report.write_report(model, model.get_env(), tmp_path / "page.html")


@pytest.mark.parametrize("stack", [1, 4])
def test_what_was_trained_normalized_needs_its_statistics(stack, tmp_path):
    env = make_vec_env("CartPole-v1", 1)
    env = VecNormalize(VecFrameStack(env, stack) if stack > 1 else env)
    tiny_model(env).learn(60).save(tmp_path / "model.zip")
    env.save(tmp_path / "statistics.pkl")
    arguments = [tmp_path / "model.zip", "--env", "CartPole-v1", "--frame-stack", stack, "--output", tmp_path / "page.html"]
    run(*arguments, "--episodes", 8, "--vec-normalize", tmp_path / "statistics.pkl")
    page = Page((tmp_path / "page.html").read_text())
    assert float(page.text[page.text.index("mean return") + 1]) > 5  # steps, not normalised rewards
    if stack > 1:
        arguments[4] = 1
        with pytest.raises(SystemExit, match=r"`--vec-normalize .*statistics\.pkl` is of another environment"):
            run(*arguments, "--vec-normalize", tmp_path / "statistics.pkl")
