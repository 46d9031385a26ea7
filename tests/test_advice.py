"""Every advice of a message is followed to the letter here, and what it was given for then trains, loads or plays."""

import ast
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import psutil
import pytest
import torch as th
import wandb
from conftest import TinyEnv, tiny_envs, tiny_model
from gymnasium import spaces
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.callbacks import EveryNTimesteps
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize, VecTransposeImage

import sb3_muzero
import sb3_muzero.games.adapters
from sb3_muzero import MlpPolicy, MuZero
from sb3_muzero.analysis.plotting import plot_model_errors
from sb3_muzero.analysis.recording import play
from sb3_muzero.analysis.report import write_report
from sb3_muzero.callbacks import DiagnosticsCallback, MuZeroWandbCallback, ResumableCheckpointCallback
from sb3_muzero.checkpointing import resume, save_checkpoint
from sb3_muzero.common.extras import missing_extra
from sb3_muzero.exploration.count_bonus import CountBonus
from sb3_muzero.games import ConnectFourEnv, TicTacToeEnv
from sb3_muzero.games.match import play_match
from sb3_muzero.games.players import ModelPlayer, RandomPlayer
from sb3_muzero.games.simulator import with_rules
from sb3_muzero.imagination import ImaginedEnv, ImaginedVecEnv, fit_decoder, fit_renderer
from sb3_muzero.models.decoder import DecoderProbe
from sb3_muzero.models.mlp import Dynamics, Prediction
from sb3_muzero.replay.replay_buffer import SequenceReplayBuffer
from sb3_muzero.search.planner import DEFAULTS

PACKAGE = Path(sb3_muzero.__file__).parent
ADVICE = re.compile(
    r"\b(use|wrap|wrapped|pass|passed|call|set|try|add|install|import|lower|smaller|without|unset|needs?|needed|subtract|leave|"
    r"as after|as it was|instead|did you|such as|continue|if necessary|would restore|to discard|take|takes)\b|policy_kwargs=|"
    r"_kwargs=|\(env|pip install"
)
NO_ADVICE = (
    "games/board_games.py", "games/match.py", "search/", "replay/samplers.py", "analysis/cli.py", "common/serialization.py",
    "checkpointing/memory_limit.py", "replay/serialization.py",
)  # fmt: skip
"""Where ``ADVICE`` only finds requirements."""
FOLLOWED: list[str] = []
"""Parts of the messages whose advice a test follows."""
ELSEWHERE = {
    "pass it to log there again": "test_hostile_files.py: test_a_file_does_not_decide_where_to_write",
    "has not ended after": "test_run_warnings.py: test_a_registered_task_without_time_limit_is_warned_of_at_construction",
    "has no time limit": "test_run_warnings.py: test_a_registered_task_without_time_limit_is_warned_of_at_construction",
    "fewer than one update per 100": "test_run_warnings.py: test_enough_updates_are_not_warned_of",
    "makes hardly any updates": "test_run_warnings.py: test_enough_updates_are_not_warned_of",
    "by `to_play` whose turn it is": "games/test_turns.py: test_runs_are_saved_loaded_and_resumed",
    "add an attribute `to_play`": "games/test_turns.py: test_runs_are_saved_loaded_and_resumed",
    "with `MuZero.load(path)`": "test_save_load.py: test_load_for_enjoyment_only",
    "The worker process of environment": (
        "test_vec_envs.py: test_an_exception_in_a_subprocess_names_the_environment_and_where_its_traceback_is"
    ),
    "set `extra_turns=True`": "games/test_adapters.py: test_games_that_are_not_for_two_in_turn_and_zero_sum_are_errors",
    "Training without evaluation": "test_zoo.py: test_a_two_player_game_is_not_evaluated",
}
"""Of those that are tested with what they are about."""


def follows(*parts: str) -> Callable[[Any], Any]:
    """:return: Decorator of a test that follows the advice of the messages in which these words stand"""
    FOLLOWED.extend(parts)
    return lambda test: test


def texts(tree: ast.AST) -> dict[str, str]:
    """:return: The strings that are given a name"""
    return {
        target.id: ast.unparse(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant | ast.JoinedStr)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def messages() -> list[tuple[str, str]]:
    """:return: File and constant text of each message that the package raises or warns of"""
    trees = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
    constants = {name: text for tree in trees.values() for name, text in texts(tree).items() if name.isupper()}
    found = []
    for file, tree in trees.items():
        names = constants | texts(tree)
        for node in ast.walk(tree):
            is_warning = isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "warn"
            if is_warning or (isinstance(node, ast.Raise) and node.exc is not None):
                words = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and type(part.value) is str]
                words += [names[part.id] for part in ast.walk(node) if isinstance(part, ast.Name) and part.id in names]
                found.append((file, " ".join(words)))
    return found


def test_every_advice_has_a_test():
    advice = [(file, text) for file, text in messages() if ADVICE.search(text) and not file.startswith(NO_ADVICE)]
    assert len(advice) > 30
    for name in ELSEWHERE.values():
        file, test = name.split(": ")
        assert f"def {test}" in (Path(__file__).parent / file).read_text()
    left_out = [(file, text) for file, text in advice if not any(part in text for part in (*FOLLOWED, *ELSEWHERE))]
    assert left_out == [], "add a test that follows this advice, decorated with `follows`"


class LegalMoves(TinyEnv):
    """Of three actions two are legal."""

    def action_masks(self) -> np.ndarray:
        return np.array([True, False, True])


def minigrid() -> gymnasium.Env:
    pytest.importorskip("minigrid")
    return gymnasium.make("MiniGrid-Empty-5x5-v0", max_steps=10)


def pettingzoo(name: str) -> Any:
    return pytest.importorskip(f"pettingzoo.classic.{name}").env()


def observing(space: spaces.Space) -> Callable[[], TinyEnv]:
    return lambda: TinyEnv(space)


class Acting(TinyEnv):
    """Takes actions of any space."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.taken[-1].append(action)
        return self._show(), float(len(self.taken[-1]) % 2), len(self.taken[-1]) >= self.length, False, {}


def acting(space: spaces.Space) -> Callable[[], TinyEnv]:
    return lambda: Acting(action_space=space)


BOX = spaces.Box(-1, 1, (2,), np.float32)
GRAPH = spaces.Graph(BOX, spaces.Discrete(4))
SEQUENCE = spaces.Sequence(BOX)
ENCODED = spaces.Box(0, 99, (1,), np.float32)
REFUSED: dict[str, tuple[Callable[[], Any], str, dict[str, Any]]] = {
    # What is learned from, the policy, and what the advice leaves to the user
    "MiniGrid": (minigrid, "MlpPolicy", {}),
    "MiniGrid, Dict": (minigrid, "MultiInputPolicy", {}),
    "Blackjack": (lambda: "Blackjack-v1", "MlpPolicy", {}),
    "PettingZoo": (lambda: pettingzoo("tictactoe_v3"), "MlpPolicy", {}),
    "PettingZoo, boards": (lambda: pettingzoo("connect_four_v3"), "ResNetPolicy", {}),
    "Tuple": (observing(spaces.Tuple([BOX, spaces.Discrete(3)])), "MlpPolicy", {}),
    "Tuple with a Graph": (observing(spaces.Tuple([GRAPH, BOX])), "MlpPolicy", {}),
    "Text": (observing(spaces.Text(5)), "MlpPolicy", {}),
    "OneOf": (observing(getattr(spaces, "OneOf", spaces.Tuple)([BOX, spaces.Discrete(3)])), "MlpPolicy", {}),
    "Graph": (observing(GRAPH), "MlpPolicy", {"encode": lambda graph: np.float32([len(graph.nodes)]), "space": ENCODED}),
    "Sequence": (observing(SEQUENCE), "MlpPolicy", {"encode": lambda parts: np.float32([len(parts)]), "space": ENCODED}),
    "Dict with a Graph": (observing(spaces.Dict(a=GRAPH, b=BOX)), "MultiInputPolicy", {}),
    "Dict with a Sequence and a Text": (observing(spaces.Dict(a=SEQUENCE, b=spaces.Text(3))), "MultiInputPolicy", {}),
    "Dict with a Text": (observing(spaces.Dict(a=BOX, b=spaces.Text(3))), "MultiInputPolicy", {}),
    "Dict in a Dict": (observing(spaces.Dict(a=spaces.Dict(x=BOX), b=BOX)), "MultiInputPolicy", {}),
    "Dict of integers": (observing(spaces.Dict({0: BOX, 1: spaces.Discrete(3)})), "MultiInputPolicy", {}),
    "Dict of nothing": (observing(spaces.Dict({"": BOX})), "MultiInputPolicy", {}),
    "Dict for an MLP": (observing(spaces.Dict(a=BOX)), "MlpPolicy", {}),
    "Dict for a CNN": (observing(spaces.Dict(a=BOX)), "ResNetPolicy", {}),
    "vector for MultiInputPolicy": (TinyEnv, "MultiInputPolicy", {}),
    "vector for a CNN": (TinyEnv, "CnnPolicy", {}),
    "plane for a CNN": (observing(spaces.Box(0, 255, (9, 9), np.uint8)), "CnnPolicy", {}),
    "floats for a CNN": (observing(spaces.Box(-5, 5, (2, 9, 9), np.float32)), "ResNetPolicy", {}),
    "Box actions without bounds": (acting(spaces.Box(-np.inf, np.inf, (2, 2))), "MlpPolicy", {}),
    "Box actions with one bound": (acting(spaces.Box(0, np.inf, (1,), np.float64)), "MlpPolicy", {}),
    "Box actions with some bounds": (acting(spaces.Box(np.float32([-np.inf, 3]), np.float32([5, np.inf]))), "MlpPolicy", {}),
    "Box of integers without bounds": (acting(spaces.Box(-1, 2**59 - 1, (2,), np.int64)), "MlpPolicy", {}),
    "Box of integers with one bound": (acting(spaces.Box(0, 2**64 - 1, (1,), np.uint64)), "MlpPolicy", {}),
    "MultiBinary of two axes": (acting(spaces.MultiBinary([2, 3])), "MlpPolicy", {}),
    "constant actions": (
        acting(spaces.Box(np.float32([0, 1]), np.float32([1, 1]))),
        "MlpPolicy",
        {"complete": lambda action: np.append(action, np.float32(1)), "space": spaces.Box(0, 1, (1,))},
    ),
    "Tuple of actions": (acting(spaces.Tuple([BOX, BOX])), "MlpPolicy", {"choices": [(np.zeros(2, np.float32),) * 2] * 3}),
    "Dict of actions": (acting(spaces.Dict(a=spaces.Discrete(3))), "MlpPolicy", {"choices": [{"a": 0}, {"a": 2}]}),
}  # fmt: skip


@follows("wrap each environment in", "from_pettingzoo(env)", "are not empty", "must be non-empty strings", ": use MlpPolicy")
@follows(": use MultiInputPolicy", "use MlpPolicy", "`policy_kwargs=dict(normalize_images=False)` takes", "encode them as")
@follows("supports the observation spaces")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_refused_spaces(name):
    make, policy, given = REFUSED[name]
    env, kwargs, refusals = make(), {}, []
    while True:
        try:
            tiny_model(env, policy, policy_kwargs=dict(kwargs)).learn(40)
            break
        except (ValueError, AssertionError) as error:
            refusals.append(str(error))
        assert len(refusals) < 4 and "<bound method" not in refusals[-1], refusals
        known = {"gymnasium": gymnasium, "sb3_muzero": sb3_muzero, "np": np, **given}
        env = gymnasium.make(env) if isinstance(env, str) else env
        wrapper = re.search(r"`([\w.]+\(env.*?\))`", refusals[-1])
        other = re.search(r"use `?(\w+Policy)", refusals[-1])
        arguments = re.search(r"`policy_kwargs=(dict\(.*?\))`", refusals[-1])
        assert wrapper or other or arguments, refusals
        if wrapper is not None:
            env = eval(wrapper[1], known, {"env": env})
        if other is not None:
            policy = other[1]
        if arguments is not None:
            kwargs |= eval(arguments[1])
    assert 1 <= len(refusals) <= 2
    if name.startswith("MiniGrid"):
        assert "'mission'" in refusals[0]


@follows("MultiInputPolicy, or a features extractor")
@pytest.mark.parametrize("follow", [{"policy": "MultiInputPolicy"}, {"features_extractor_class": CombinedExtractor}], ids=str)
def test_dict_observations(follow):
    env = TinyEnv(spaces.Dict(a=BOX, b=spaces.Discrete(3)))
    with pytest.raises(ValueError, match="Dict observations need MultiInputPolicy, or a features extractor for them"):
        tiny_model(env, MlpPolicy)
    policy = follow.pop("policy", MlpPolicy)
    tiny_model(env, policy, policy_kwargs=follow).learn(40)


@follows("`learn(use_masking=False)` ignores them")
def test_masks_of_continuous_actions():
    class Masked(TinyEnv):
        def action_masks(self) -> np.ndarray:
            return np.ones(2, np.bool_)

    env = Masked(action_space=BOX)
    with pytest.raises(ValueError, match=r"masks need a Discrete, .*, got Box.*; `learn\(use_masking=False\)` ignores them"):
        tiny_model(env).learn(30)
    tiny_model(env).learn(30, use_masking=False)


@follows("MuZero explores by search")
@pytest.mark.parametrize("name", ["action_noise", "use_sde", "sde_sample_freq", "use_sde_at_warmup"])
def test_noise_of_other_algorithms(name):
    env = TinyEnv(action_space=BOX)
    with pytest.raises(TypeError, match=rf"`{name}`.*: MuZero explores by search, with noise that `exploration`"):
        tiny_model(env, **{name: None})
    tiny_model(env, exploration=2.0).learn(30)


@follows("if the channels come last, use")
@pytest.mark.parametrize("channels_last", [True, False])
def test_axes_of_boards(channels_last):
    env = TinyEnv(spaces.Box(0, 1, (8, 8, 11), np.bool_))
    with pytest.warns(UserWarning, match=r"8 channels of 8 x 11 cells: if the channels come last, use") as caught:
        tiny_model(env, "ResNetPolicy")
    advice = re.findall(r"channels_last=\w+", str(caught[0].message))
    assert advice == ["channels_last=True", "channels_last=False"]
    model = tiny_model(env, "ResNetPolicy", policy_kwargs=dict(channels_last=channels_last)).learn(40)
    assert model.policy.image_shape == ((11, 8, 8) if channels_last else (8, 8, 11))


@follows("which is lost in float32")
def test_precision():
    def clock(offset: float) -> gymnasium.Env:
        space = spaces.Box(0, np.inf, (2,), np.float64)
        return gymnasium.wrappers.TransformObservation(TinyEnv(), lambda obs: 60 * np.float64(obs[:2]) + 1.7e9 - offset, space)

    norm_obs: dict[str, Any] = {"policy_kwargs": {"norm_obs": False}}
    with pytest.warns(UserWarning, match=r"around 1\.7e\+09 differ by \d+ only, which is lost in float32: subtract") as caught:
        tiny_model(clock(0), **norm_obs).learn(40)
    assert len(caught) == 1
    offset = re.search(r"subtract (\S+) from them", str(caught[0].message))
    assert offset is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_model(clock(float(offset[1])), **norm_obs).learn(40)


@follows("`num_channels` and `num_blocks`")
def test_size_of_a_resnet():
    env = TinyEnv(spaces.Box(0, 255, (2, 9, 9), np.uint8))
    with pytest.raises(ValueError, match=r"does not use \['latent_dim'\]; set its size by `num_channels` and `num_blocks`"):
        tiny_model(env, "ResNetPolicy", policy_kwargs=dict(latent_dim=32))
    tiny_model(env, "ResNetPolicy", policy_kwargs=dict(num_channels=8, num_blocks=1)).learn(40)


@follows("use `VecNormalize(VecFrameStack(env, ...))`")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_wrappers_around_vec_normalize():
    refusal = r"use `VecNormalize\(VecFrameStack\(env, \.\.\.\)\)`, and `VecNormalize\(VecTransposeImage\(env\)\)`"
    env = tiny_envs(observation_space=spaces.Box(-1, 1, (2, 4), np.float32))
    with pytest.raises(ValueError, match=refusal):
        tiny_model(VecFrameStack(VecNormalize(env), 3))
    tiny_model(VecNormalize(VecFrameStack(env, 3))).learn(40)
    env = tiny_envs(observation_space=spaces.Dict(image=spaces.Box(0, 255, (12, 9, 3), np.uint8), vector=BOX))
    with pytest.raises(ValueError, match=refusal):  # SB3 transposes around it
        tiny_model(VecNormalize(env, norm_obs_keys=["vector"]), "MultiInputPolicy")
    tiny_model(VecNormalize(VecTransposeImage(env), norm_obs_keys=["vector"]), "MultiInputPolicy").learn(40)


@follows("else transpose its images", "use channels-first images, wrapped in")
@pytest.mark.filterwarnings("ignore:Treating image space")
def test_axes_of_images():
    env = tiny_envs(observation_space=spaces.Box(0, 255, (17, 9, 9), np.uint8))
    with pytest.raises(ValueError, match=r"wrap it in `VecTransposeImage\(env, skip=True\)`, else transpose its images"):
        tiny_model(env, "CnnPolicy")
    tiny_model(VecTransposeImage(env, skip=True), "CnnPolicy").learn(40)
    image = spaces.Box(0, 255, (9, 17, 9), np.uint8)
    transposed = gymnasium.wrappers.TransformObservation(env.envs[0], lambda obs: np.moveaxis(obs, -1, 0), image)
    tiny_model(transposed, "CnnPolicy").learn(40)
    for shape in ((6, 10, 10), (12, 12, 3)):
        env = VecFrameStack(tiny_envs(observation_space=spaces.Box(0, 255, shape, np.uint8)), 4)
        with pytest.raises(ValueError, match="use channels-first images, wrapped in"):
            tiny_model(env, "CnnPolicy")
        if shape[2] == 3:
            env = VecFrameStack(tiny_envs(observation_space=spaces.Box(0, 255, (3, 12, 12), np.uint8)), 4)
        tiny_model(VecTransposeImage(env, skip=True), "CnnPolicy").learn(40)


@follows("`symmetries` require the Box observations", "set `norm_obs=False`", "the environment needs a method")
def test_two_player_games():
    for symmetries, setting in ((True, "symmetries` require"), (False, "scales each cell")):
        game = DummyVecEnv([lambda symmetries=symmetries: TicTacToeEnv(symmetries=symmetries)])
        with pytest.raises(ValueError, match=f"{setting}.*set `norm_obs=False`"):
            tiny_model(VecNormalize(game)).learn(40)
        tiny_model(VecNormalize(game, norm_obs=False)).learn(40)
    with pytest.raises(ValueError, match="`symmetries` require the Box observations of the environment itself"):
        tiny_model(VecFrameStack(DummyVecEnv([ConnectFourEnv]), 2)).learn(40)
    tiny_model(DummyVecEnv([ConnectFourEnv])).learn(40)

    class Duel(TinyEnv):
        two_player = True

    with pytest.raises(ValueError, match="the environment needs a method `action_masks`, and `use_masking` must not be False"):
        tiny_model(Duel()).learn(40)
    Duel.action_masks = LegalMoves.action_masks  # type: ignore[attr-defined]
    tiny_model(Duel()).learn(40, use_masking=None)


@follows("but the environment has no method `action_masks`", "The model was trained with action masks, but `predict`")
@follows("wrap it as it was for training")
def test_action_masks(tmp_path):
    with pytest.raises(ValueError, match=r"Add it, or wrap the environment in sb3_contrib\.common\.wrappers\.ActionMasker"):
        tiny_model(TinyEnv()).learn(40, use_masking=True)
    tiny_model(LegalMoves()).learn(40, use_masking=True)
    model = tiny_model(ActionMasker(TinyEnv(), lambda env: np.array([True, False, True]))).learn(40, use_masking=True)
    with pytest.warns(UserWarning, match="Pass `action_masks`"):
        model.predict(np.zeros(3, np.float32))
    assert model.predict(np.zeros(3, np.float32), action_masks=np.array([False, False, True]))[0] == 2
    model.save(tmp_path / "model")
    loaded = MuZero.load(tmp_path / "model", env=TinyEnv())
    with pytest.raises(ValueError, match="wrap it as it was for training"):
        play(loaded, loaded.get_env(), 1, 20, True)
    loaded = MuZero.load(tmp_path / "model", env=ActionMasker(TinyEnv(), lambda env: np.array([True, False, True])))
    play(loaded, loaded.get_env(), 1, 20, True)


@follows("must leave `frame_stack` at", "stores them whole", "`model.replay_buffer.reset()`")
def test_frame_stacks():
    with pytest.raises(ValueError, match="must leave `frame_stack` at 2"):
        tiny_model(VecFrameStack(VecNormalize(tiny_envs()), 2), replay_buffer_kwargs=dict(frame_stack=1))
    tiny_model(VecFrameStack(VecNormalize(tiny_envs()), 2)).learn(40)
    four = spaces.Box(-1, 1, (4,), np.float32)
    with pytest.raises(ValueError, match=r"`replay_buffer_kwargs=dict\(frame_stack=1\)` stores them whole"):
        tiny_model(TinyEnv(four), replay_buffer_kwargs=dict(frame_stack=2)).learn(40)
    tiny_model(TinyEnv(four), replay_buffer_kwargs=dict(frame_stack=1)).learn(40)
    model = tiny_model(VecFrameStack(tiny_envs(observation_space=spaces.Box(-1, 1, (2,), np.float32)), 2)).learn(40)
    with pytest.raises(ValueError, match=r"call `model\.replay_buffer\.reset\(\)` to discard its transitions"):
        model.set_env(TinyEnv(four))
    model.replay_buffer.reset()
    model.set_env(TinyEnv(four))
    model.learn(40)


@follows("Will save instead to", "in which `buffer_size=")
def test_files_and_memory(tmp_path, monkeypatch, recwarn):
    (tmp_path / "model.zip").mkdir()
    with pytest.warns(UserWarning, match="Will save instead to .*model.zip_2"):
        tiny_model(TinyEnv()).save(tmp_path / "model")
    MuZero.load(tmp_path / "model.zip_2")
    available = psutil.virtual_memory()._replace(available=100_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: available)
    with pytest.warns(UserWarning, match=r"in which `buffer_size=\d+` fits") as told:
        tiny_model(TinyEnv(), buffer_size=100_000).learn(40)
    recwarn.clear()
    (fitting,) = re.findall(r"`buffer_size=(\d+)` fits", str(told[0].message))
    tiny_model(TinyEnv(), buffer_size=int(fitting)).learn(40)
    assert len(recwarn) == 0


@follows("a list of widths such as", "a torch.nn.Linear", "try a lower `learning_rate`", "with a `reward_bonus`")
@pytest.mark.filterwarnings("ignore:Skipping update")
def test_networks_and_updates():
    with pytest.raises(ValueError, match=r"`net_arch` must be a list of widths such as \[128, 128\], got {'pi'"):
        tiny_model(TinyEnv(), policy_kwargs=dict(net_arch={"pi": [64], "vf": [64]}))
    tiny_model(TinyEnv(), policy_kwargs=dict(net_arch=[128, 128])).learn(40)

    class OtherHeads(Prediction):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.value_head = th.nn.Sequential(self.value_head)  # type: ignore[assignment]

    class OldDynamics(Dynamics):
        def forward(self, latent: th.Tensor, action: th.Tensor) -> th.Tensor:  # type: ignore[override]
            return super().forward(latent, action).latent

    with pytest.raises(
        ValueError, match=r"must return a DynamicsOutput\(latent, reward_logits\), got <class 'torch\.Tensor'>"
    ):
        tiny_model(TinyEnv(), policy_kwargs=dict(dynamics_class=OldDynamics)).learn(40)

    class OtherReward(Dynamics):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.reward_head = th.nn.Sequential(self.reward_head)  # type: ignore[assignment]

    with pytest.raises(ValueError, match=r"needs `reward_head`, a torch\.nn\.Linear, on the dynamics function"):
        tiny_model(TinyEnv(), policy_kwargs=dict(dynamics_class=OtherReward))
    with pytest.raises(ValueError, match=r"needs `value_head`, a torch\.nn\.Linear, on the prediction function"):
        tiny_model(TinyEnv(), policy_kwargs=dict(prediction_class=OtherHeads))
    tiny_model(TinyEnv(), policy_kwargs=dict(prediction_class=Prediction)).learn(40)
    with pytest.raises((FloatingPointError, ValueError), match="try a lower `learning_rate`"):
        tiny_model(TinyEnv(), learning_rate=1e38, train_freq=(1, "episode"), gradient_steps=100).learn(100)
    tiny_model(TinyEnv(), learning_rate=1e-3).learn(60)
    model = tiny_model(TinyEnv()).learn(40)
    options: dict[str, Any] = dict(unroll_steps=2, n_steps=2, bonus_coef=0.5)
    for reward_bonus in (None, CountBonus):
        buffer = SequenceReplayBuffer(100, model.observation_space, model.action_space, reward_bonus=reward_bonus)
        buffer.add_episode(np.zeros((11, 3), np.float32), np.zeros(10, np.int64), np.zeros(10), True)
        if reward_bonus is None:
            with pytest.raises(ValueError, match="`bonus_coef` above 0 needs a replay buffer with a `reward_bonus`"):
                buffer.sample(4, **options)
        else:
            buffer.sample(4, **options)


@pytest.mark.parametrize("search", DEFAULTS)
def test_settings_of_a_search(search):
    with pytest.raises(ValueError, match="has no 'depth'; it takes") as refusal:
        tiny_model(TinyEnv(), search=search, search_kwargs=dict(depth=3))
    for name in ast.literal_eval(str(refusal.value).split("it takes ")[1]):
        tiny_model(TinyEnv(), search=search, search_kwargs={name: DEFAULTS[search][name]})


@follows(": did you mean `")
def test_hyperparameters_of_the_zoo(tmp_path, monkeypatch):
    pytest.importorskip("rl_zoo3")
    from test_zoo import train

    arguments = ["--algo", "muzero", "--env", "CartPole-v1", "-n", "40", "-params"]
    with pytest.raises(ValueError, match="did you mean `learning_rate`"):
        train(monkeypatch, tmp_path, *arguments, "learning_rat:0.001")
    train(monkeypatch, tmp_path, *arguments, "learning_rate:0.001")


@follows("did the run take `log_freq` steps?", "as after `MuZero.load`", "can't be in")
def test_analysis(tmp_path):
    with pytest.raises(ValueError, match="did the run take `log_freq` steps"):
        plot_model_errors([], [])
    diagnostics = DiagnosticsCallback(log_freq=40)
    model = tiny_model(TinyEnv()).learn(80, callback=diagnostics)
    plot_model_errors(diagnostics.timesteps, diagnostics.errors)
    with pytest.raises(ValueError, match=r"`model` must have an empty replay buffer, as after `MuZero\.load`"):
        write_report(model, model.get_env(), tmp_path / "report.html", num_episodes=1, max_steps=100)
    model.save(tmp_path / "model")
    loaded = MuZero.load(tmp_path / "model", env=TinyEnv())
    write_report(loaded, loaded.get_env(), tmp_path / "report.html", num_episodes=1, max_steps=100)
    nested = EveryNTimesteps(10, ResumableCheckpointCallback(1, tmp_path / "checkpoints"))
    with pytest.raises(ValueError, match="can't be in EveryNTimesteps: give it its own `save_freq`"):
        tiny_model(TinyEnv()).learn(40, callback=nested)
    tiny_model(TinyEnv()).learn(40, callback=ResumableCheckpointCallback(save_freq=10, save_path=tmp_path / "checkpoints"))


@follows("A decoder needs")
@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (3,)), spaces.Box(0, 255, (1, 9, 9), np.uint8)], ids=str)
def test_decoders(space):
    with pytest.raises(ValueError, match="needs observations that are vectors or images with channels first"):
        policy = tiny_model(TinyEnv(spaces.Box(-1, 1, (2, 3)))).policy
        DecoderProbe(policy.represent, policy.observation_space)
    policy = tiny_model(TinyEnv(space)).policy
    observations = th.as_tensor(np.stack([space.sample() for _ in range(20)]))
    DecoderProbe(policy.represent, space).fit(observations, observations, num_updates=1)


@follows(
    "need a model for one player", "need a model without action masks", "replay buffer is empty", "needs a decoder of images"
)
def test_imagination(tmp_path):
    with pytest.raises(ValueError, match="train a model in an environment that plays the opponent's moves"):
        ImaginedVecEnv(tiny_model(DummyVecEnv([TicTacToeEnv])))
    with pytest.raises(ValueError, match=r"Train it with `learn\(\.\.\., use_masking=False\)`, in an environment"):
        ImaginedVecEnv(tiny_model(LegalMoves()).learn(40))
    ImaginedVecEnv(tiny_model(LegalMoves()).learn(40, use_masking=False)).reset()

    model = tiny_model(TinyEnv()).learn(40)
    model.save_replay_buffer(tmp_path / "buffer")
    model.replay_buffer.reset()
    for make in (ImaginedVecEnv, fit_decoder):
        with pytest.raises(ValueError, match=r"pass `observations` to .*or load the buffer with `model\.load_replay_buffer"):
            make(model)
    ImaginedVecEnv(model, np.zeros((1, 3), np.float32)).reset()
    model.load_replay_buffer(tmp_path / "buffer")
    ImaginedVecEnv(model).reset()

    model = tiny_model("CartPole-v1").learn(40)
    with pytest.raises(ValueError, match=r"pass `renderer=sb3_muzero\.imagination\.fit_renderer\(model, env\)`"):
        ImaginedEnv(model, render_mode="rgb_array")
    with pytest.raises(ValueError, match=r"`env` must render frames: make it with `render_mode=\"rgb_array\"`, got None"):
        fit_renderer(model, gymnasium.make("CartPole-v1"))
    renderer = fit_renderer(model, gymnasium.make("CartPole-v1", render_mode="rgb_array"), num_steps=9, num_updates=1)
    env = ImaginedEnv(model, render_mode="rgb_array", renderer=renderer)
    env.reset(seed=0)
    assert env.render().shape == (43, 64, 3)


@follows("call `wandb.init()`")
def test_wandb(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"call `wandb\.init\(\)` before training"):
        tiny_model(TinyEnv()).learn(40, callback=MuZeroWandbCallback(log_freq=20))
    with wandb.init():
        tiny_model(TinyEnv()).learn(40, callback=MuZeroWandbCallback(log_freq=20))


@follows("leave out `action_kwargs`")
def test_planning_with_rules_weighs_all_moves():
    env = ConnectFourEnv()
    for num_candidates in (4, 7):
        model = tiny_model(env, policy_kwargs=dict(action_kwargs=dict(num_candidates=num_candidates)))
        with pytest.raises(ValueError, match=r"leave out `action_kwargs`, got .*'num_candidates'"):
            with_rules(model.policy, env.rules)
    with_rules(tiny_model(env).policy, env.rules)


@follows("which models need in matches", "must be a player, such as")
def test_matches():
    model = tiny_model(DummyVecEnv([TicTacToeEnv]))
    for player in (model, ModelPlayer):
        with pytest.raises(ValueError, match=r"such as `RandomPlayer\(\)` or `ModelPlayer\(model\)`"):
            play_match(player, RandomPlayer(), TicTacToeEnv, 2)
    play_match(ModelPlayer(model), RandomPlayer(), TicTacToeEnv, 2)

    class Bare(gymnasium.Env):
        """Tic-tac-toe whose observation and masks come with its steps only."""

        def __init__(self) -> None:
            self.game = TicTacToeEnv()
            self.observation_space, self.action_space = self.game.observation_space, self.game.action_space
            self.two_player = True
            self.reset, self.step = self.game.reset, self.game.step

        def action_masks(self) -> np.ndarray:
            return self.game.action_masks()

    with pytest.raises(ValueError, match=r"lacks the method `observation\(\)`, which models need"):
        ModelPlayer(model).act([Bare()])
    Bare.observation = lambda self: self.game.observation()  # type: ignore[attr-defined]
    play_match(ModelPlayer(model), RandomPlayer(), Bare, 2)
    game = TicTacToeEnv()
    for move in (0, 3, 1, 4, 2):
        game.reset() if move == 0 else None
        game.step(move)
    with pytest.raises(ValueError, match="call `reset` first"):
        game.step(5)
    game.reset()
    game.step(5)


@follows(
    "pass its folder", "another folder", "`buffer_size` can't be changed", "must be passed to `resume`", "pass it to `resume("
)
@follows("import it first, or pass it to `resume`", "be wrapped in VecNormalize", "must be wrapped as in the checkpoint")
@follows("resume without `restore_environments`", "would restore them")
def test_checkpoints(tmp_path):
    run = tiny_model(TinyEnv()).learn(40, callback=ResumableCheckpointCallback(20, tmp_path / "a"))
    with pytest.raises(
        ValueError, match=r"continue that run \(`resume`, then `learn` with `reset_num_timesteps=False`\), or use"
    ):
        tiny_model(TinyEnv()).learn(40, callback=ResumableCheckpointCallback(20, tmp_path / "a"))
    tiny_model(TinyEnv()).learn(40, callback=ResumableCheckpointCallback(20, tmp_path / "another"))
    resumed = resume(tmp_path / "a", TinyEnv())
    resumed.learn(20, callback=ResumableCheckpointCallback(20, tmp_path / "a"), reset_num_timesteps=False)
    assert resumed.num_timesteps == run.num_timesteps + 20

    with pytest.warns(UserWarning, match="learning_rate cannot be serialized and must be passed to `resume`"):
        save_checkpoint(tiny_model(TinyEnv(), learning_rate=lambda progress: 1e-3 * progress), tmp_path / "b")
    with pytest.raises(ValueError, match=r"pass it to `resume\(learning_rate=\.\.\.\)`"):
        resume(tmp_path / "b", TinyEnv())
    resume(tmp_path / "b", TinyEnv(), learning_rate=lambda progress: 1e-3 * progress).learn(40, reset_num_timesteps=False)

    normalized = VecNormalize(tiny_envs())
    save_checkpoint(tiny_model(normalized).learn(40), tmp_path / "c")
    with pytest.raises(ValueError, match="must be wrapped in VecNormalize, as in the checkpoint"):
        resume(tmp_path / "c", TinyEnv())
    with pytest.raises(ValueError, match="must be wrapped in VecNormalize with `norm_obs=True`"):
        resume(tmp_path / "c", VecNormalize(tiny_envs(), norm_obs=False))
    resume(tmp_path / "c", VecNormalize(tiny_envs(), norm_obs=True)).learn(40, reset_num_timesteps=False)

    save_checkpoint(tiny_model(OneWay()), tmp_path / "d")
    with pytest.raises(ValueError, match="resume without `restore_environments`"):
        resume(tmp_path / "d", OneWay(), restore_environments=True)
    resume(tmp_path / "d", OneWay()).learn(40, reset_num_timesteps=False)

    make = lambda: gymnasium.wrappers.NormalizeObservation(TinyEnv())  # noqa: E731
    model = tiny_model(make()).learn(40)
    save_checkpoint(model, tmp_path / "e")
    with pytest.warns(UserWarning, match="`restore_environments=True` or SB3's VecNormalize would restore them"):
        resume(tmp_path / "e", make())
    restored = resume(tmp_path / "e", make(), restore_environments=True)
    restored.learn(40, reset_num_timesteps=False)
    save_checkpoint(tiny_model(OneWay.Wrapped()), tmp_path / "f")
    with pytest.raises(ValueError, match="must be wrapped as in the checkpoint"):
        resume(tmp_path / "f", TinyEnv(), restore_environments=True)
    resume(tmp_path / "f", OneWay.Wrapped(), restore_environments=True).learn(40, reset_num_timesteps=False)
    (file,) = (tmp_path / "f").glob("*.npz")
    with pytest.raises(FileNotFoundError, match="which is a file: pass its folder"):
        resume(file, OneWay.Wrapped())
    resume(file.parent, OneWay.Wrapped())


class OneWay(TinyEnv):
    def __setstate__(self, state: Any) -> None:
        raise OSError("the simulator's port is taken")

    class Wrapped(gymnasium.Wrapper):
        def __init__(self) -> None:
            super().__init__(TinyEnv())


def test_classes_of_a_checkpoint_are_imported_first(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text("import torch\nclass Act(torch.nn.ReLU): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import my_networks  # type: ignore[import-not-found]

    save_checkpoint(tiny_model(TinyEnv(), policy_kwargs={"activation_fn": my_networks.Act}), tmp_path / "a")
    del sys.modules["my_networks"]
    with pytest.raises(ValueError, match=r"`policy_kwargs` was my_networks\.Act, .*: import it first, or pass it to `resume`"):
        resume(tmp_path / "a", TinyEnv())
    resume(tmp_path / "a", TinyEnv(), policy_kwargs={"activation_fn": my_networks.Act})
    import my_networks

    resume(tmp_path / "a", TinyEnv()).learn(40, reset_num_timesteps=False)


@follows("unset NUMBA_DISABLE_JIT")
@pytest.mark.parametrize("value", ["1", "0"])
def test_compiled_code(value):
    environment = {"NUMBA_DISABLE_JIT": value, "PATH": "", "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", "import sb3_muzero"], env=environment, capture_output=True, text=True)
    assert (done.returncode == 0) == (value == "0")
    assert ("unset NUMBA_DISABLE_JIT" in done.stderr) == (value == "1")


def test_extras_exist():
    """``pip install "sb3_muzero[...]"`` names what pyproject.toml defines."""
    project = (PACKAGE.parent / "pyproject.toml").read_text()
    defined = re.findall(r"^(\w+) = \[", project.split("[project.optional-dependencies]")[1].split("[tool.")[0], re.MULTILINE)
    named = re.findall(r'missing_extra\("(\w+)"', " ".join(path.read_text() for path in PACKAGE.rglob("*.py")))
    assert len(named) >= 3 and set(named) <= set(defined)
    assert 'pip install "sb3_muzero[games]"' in str(missing_extra("games", ImportError("no chess")))
