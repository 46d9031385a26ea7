"""The algorithm: collect with search, store, sample, targets, loss, step."""

import contextlib
import copy
import inspect
import io
import pathlib
import time
import warnings
from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, PyTorchObs, RolloutReturn, Schedule
from stable_baselines3.common.utils import FloatSchedule
from torch import nn

from sb3_muzero.actions import make_actions
from sb3_muzero.checkpointing.run_state import (
    FORMAT,
    checkpoints_in,
    decode,
    is_missing,
    load_checkpoint,
    load_run_state,
    random_state_kept,
    run_state,
    save_checkpoint,
)
from sb3_muzero.cnn_policies import CnnPolicy, ImagePolicy, MultiInputPolicy, ResNetPolicy
from sb3_muzero.common.action_masks import has_action_masks
from sb3_muzero.common.progress_bar import MuZeroProgressBar
from sb3_muzero.common.pytree import tree_map
from sb3_muzero.common.serialization import atomic_write, load_npz, save_npz
from sb3_muzero.common.time_split import TimeSplit
from sb3_muzero.common.validation import (
    ARGUMENT_RANGES,
    check_finite,
    check_number,
    check_observation_space,
    check_schedule,
    check_train_freq,
    schedule_values,
)
from sb3_muzero.common.vec_env_checks import check_axes, frames_in_observation
from sb3_muzero.exploration.warmup import repeated_random_actions
from sb3_muzero.learning.losses import LossTerms, muzero_loss
from sb3_muzero.learning.symmetries import Symmetries, apply_symmetries, is_two_player, symmetries_of
from sb3_muzero.learning.targets import UnrollTargets, needs_bootstrap, unroll_targets
from sb3_muzero.policies import MlpPolicy, MuZeroPolicy, check_search_settings
from sb3_muzero.replay.replay_buffer import SequenceReplayBuffer, SequenceSamples
from sb3_muzero.search import SearchOutput, is_cached
from sb3_muzero.search.checks import check_action_masks

SelfMuZero = TypeVar("SelfMuZero", bound="MuZero")


def with_suffix(path: str | pathlib.Path, suffix: str) -> pathlib.Path:
    """:return: The path, as SB3 completes it"""
    path = pathlib.Path(path)
    return path if path.suffix else path.with_name(f"{path.name}{suffix}")


class MuZero(OffPolicyAlgorithm):
    """
    MuZero: plans with Monte Carlo tree search inside a latent model that it learns.

    Paper: https://arxiv.org/abs/1911.08265 (MuZero), https://openreview.net/forum?id=bERaNdoegnO (Gumbel MuZero, the default
    search), https://arxiv.org/abs/2111.00210 (EfficientZero, the consistency loss)

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, ResNetPolicy, MultiInputPolicy)
    :param env: The environment to learn from (if registered in Gym, can be str). With ``two_player = True`` of it each step is
        one ply of a zero-sum game against itself, and observation and reward are those of the player who moves; its attribute
        ``symmetries`` (see ``sb3_muzero.learning.symmetries``) says how a board may be turned, which the loss then sees, too
    :param learning_rate: The learning rate, it can be a function
        of the current progress remaining (from 1 to 0)
    :param buffer_size: size of the replay buffer
    :param learning_starts: how many steps of the model to collect transitions for before learning starts;
        actions are random until then, and for as long as there is nothing to plan for:
        until a reward differs from the first one or an episode terminates, unless there is novelty to plan for
    :param batch_size: Number of sequences for each gradient update
    :param tau: the soft update coefficient of the target network ("Polyak update", between 0 and 1)
    :param gamma: the discount factor
    :param train_freq: Update the model every ``train_freq`` steps. Alternatively pass a tuple of frequency and unit
        like ``(5, "step")`` or ``(2, "episode")``.
    :param gradient_steps: How many gradient steps to do after each rollout (see ``train_freq``)
        Set to ``-1`` means to do as many gradient steps as steps done in the environment
        during the rollout.
    :param replay_buffer_class: Replay buffer class to use, a ``SequenceReplayBuffer``, which ``None`` selects.
    :param replay_buffer_kwargs: Keyword arguments to pass to the replay buffer on creation.
    :param n_steps: Environment steps of the value targets before they bootstrap from the target network. On
        CartPole, agents with 40 drifted off the track less often than with 20 or 10 (4 trial seeds, 8000 steps).
    :param n_steps_half_life: Environment steps after which the value targets of a stored transition have half as many steps
        (never less than 1): what an old policy did later says little about the present one (EfficientZero, Section 4.3)
    :param num_simulations: Simulations of the search per decision
    :param search: "gumbel" (Gumbel MuZero) or "puct" (MuZero)
    :param search_kwargs: Keyword arguments for ``sb3_muzero.search.gumbel_muzero_search`` or ``muzero_search``
    :param unroll_steps: Steps that the model is unrolled over in training. The paper's 5 learned CartPole as fast as 3
        (10 trial seeds, median 2500 and 2250 steps), at half as much computation again
    :param reanalyze_ratio: Share of each batch whose first step is searched again with the target network (MuZero Reanalyze,
        https://arxiv.org/abs/2104.06294); the new policy target also replaces the old one in the replay buffer. Where the
        horizon of the value target is a single step (``n_steps``, ``n_steps_half_life``), the value of acting by the new
        policy takes the place of that step, which may have been a bad one. LunarLander learns several times as fast with 1
        (see zoo_configs); CartPole does without, and 0.5 made it slower (10 trial seeds)
    :param target_update_interval: update the target network every ``target_update_interval`` gradient steps;
        on CartPole both 25 and 200 learned slower than 100 (2 trial seeds)
    :param ent_coef: Entropy coefficient for the loss calculation. The search sharpens the policy in whatever direction its
        values differ, by chance too; entropy undoes what does not come again and again. CartPole-v1 was
        solved after 4250 steps without it (median of 10 trial seeds, worst 5500), and after 2500 with 0.1 (worst 5000)
    :param vf_coef: Value function coefficient for the loss calculation
    :param reward_coef: Reward coefficient for the loss calculation
    :param consistency_coef: Coefficient of the latents' self-supervised consistency for the loss calculation;
        on CartPole 0.5 learned slower than 2 (2 trial seeds)
    :param max_grad_norm: The maximum value for the gradient clipping
    :param exploration: What the noise of acting (Gumbel noise; Dirichlet noise and temperature with PUCT) is multiplied by;
        it can be a function of the current progress remaining (from 1 to 0). The policy targets are free of it
    :param exploration_steps_per_episode: Number of steps at the start of each episode whose actions are selected with that
        noise; later actions are the most probable of the improved policy. MuZero plays its board games like this: 30 plies
        with noise (MuZero, Appendix D)
    :param novelty_coef: Bonus for a first visit, as a multiple of the mean size of the rewards other than zero; the n-th
        visit of the same region adds that over the square root of n to the reward that is learned, less the mean bonus of all
        visits: without that, staying alive was worth more than the goal, and MiniGrid-DoorKey-5x5 stayed at a return of 0.05.
        It can be a function of the current progress remaining. Turn it on (0.1 to 1) where random actions do not find the goal
    :param random_action_repeat: Steps between new random actions, on average, while there is nothing to plan for after the
        warm-up. Repeated actions find in Acrobot or MountainCar what independent ones (1) hardly ever meet (temporally
        extended exploration, https://arxiv.org/abs/2006.01782): 41 goals in 40 000 steps of Acrobot-v1, against 1.
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
        the reported success rate, mean episode length, and mean reward over
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation, see ``MuZeroPolicy``
    :param verbose: Verbosity level: 0 for no output, 1 for info messages (such as device or wrappers used), 2 for
        debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run.
        Setting it to auto, the code will be run on the GPU if possible.
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: for an argument or an observation space outside of what is allowed, which the message names
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "ResNetPolicy": ResNetPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    MAX_SKIPPED_UPDATES = 10

    policy: MuZeroPolicy
    replay_buffer: SequenceReplayBuffer
    action_space: spaces.Discrete
    exploration: FloatSchedule
    novelty_coef: FloatSchedule

    def __init__(
        self,
        policy: str | type[MuZeroPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        buffer_size: int = 1_000_000,  # 1e6
        learning_starts: int = 500,
        batch_size: int = 64,
        tau: float = 1.0,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 4,
        gradient_steps: int = 1,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        n_steps: int = 40,
        n_steps_half_life: float = float("inf"),
        num_simulations: int = 16,
        search: str = "gumbel",
        search_kwargs: dict[str, Any] | None = None,
        unroll_steps: int = 3,
        reanalyze_ratio: float = 0.0,
        target_update_interval: int = 100,
        ent_coef: float = 0.1,
        vf_coef: float = 0.25,
        reward_coef: float = 1.0,
        consistency_coef: float = 2.0,
        max_grad_norm: float = 10,
        exploration: float | Schedule = 1.0,
        novelty_coef: float | Schedule = 0.0,
        exploration_steps_per_episode: float = float("inf"),
        random_action_repeat: float = 4.0,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        if hasattr(env, "observation_space"):
            check_observation_space(env.observation_space)
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau=tau,
            gamma=gamma,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            action_noise=None,  # No action noise
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
            sde_support=False,
            supported_action_spaces=(spaces.Discrete,),
            support_multi_env=True,
        )
        self.n_steps = n_steps
        self.n_steps_half_life = n_steps_half_life
        self.num_simulations = num_simulations
        self.search = search
        self.search_kwargs = search_kwargs
        self.unroll_steps = unroll_steps
        self.reanalyze_ratio = reanalyze_ratio
        self.target_update_interval = target_update_interval
        self.ent_coef = ent_coef
        self.vf_coef = vf_coef
        self.reward_coef = reward_coef
        self.consistency_coef = consistency_coef
        self.max_grad_norm = max_grad_norm
        self.exploration = exploration  # type: ignore[assignment]  # a FloatSchedule from _setup_model on
        self.novelty_coef = novelty_coef  # type: ignore[assignment]
        self.random_action_repeat = random_action_repeat
        self.exploration_steps_per_episode = exploration_steps_per_episode
        self._episode_steps = np.zeros(0, dtype=np.int64)
        # What the environment says of itself; `None` until it is asked
        self.two_player: bool | None = None
        self.symmetries: Symmetries | None = None
        self._random_actions: np.ndarray | None = None
        self._first_reward: float | None = None
        # Whether the environment has shown anything that one action could be preferred for
        self.reward_signal_seen = False
        # What the last decision's search found, None where the action was random
        self.last_search: SearchOutput | None = None
        # Which actions were legal then, None where the environment does not say
        self._last_action_masks: np.ndarray | None = None
        self._use_masking: bool | None = None
        self.time_split = TimeSplit()
        # Whose loss or gradient was not finite
        self._skipped_updates = self._skipped_in_a_row = 0
        self._acted_at = 0.0
        # Whether a callback has been told to end the run
        self.interrupted = False
        # What is to be done when ``learn`` ends, however it does
        self.after_learning = contextlib.ExitStack()
        # Folders where this run's checkpoints are, and its steps when it was saved there or resumed
        self._checkpoints: dict[pathlib.Path, int] = {}
        self.uses_action_masks = False

        if not (isinstance(self.policy_class, type) and issubclass(self.policy_class, MuZeroPolicy)):
            raise ValueError(f"`policy` must be a MuZeroPolicy, got {self.policy_class}: is this another algorithm's?")
        if _init_setup_model:
            self._check_arguments()
            self._setup_model()

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name not in self.policy_aliases:
            raise ValueError(
                f"Policy {policy_name} unknown: MuZero has {sorted(self.policy_aliases)}, or pass a MuZeroPolicy class"
            )
        return super()._get_policy_from_name(policy_name)

    def _check_arguments(self) -> None:
        """:raises ValueError: naming the argument, what was given and what is allowed"""
        for _, _, names in ARGUMENT_RANGES:
            for name in names:
                check_number(name, getattr(self, name))
        for name in ("learning_rate", "exploration", "novelty_coef"):
            check_schedule(name, getattr(self, name))
        check_train_freq(self.train_freq)
        check_search_settings(self.search, self.num_simulations, self.search_kwargs)
        for name in ("policy_kwargs", "replay_buffer_kwargs"):
            if not isinstance(getattr(self, name), dict):
                raise ValueError(f"`{name}` must be a dictionary, got {getattr(self, name)!r}")
        check_observation_space(self.observation_space)
        if self.buffer_size < self.n_envs * (self.unroll_steps + 1):
            raise ValueError(
                f"`buffer_size` must hold a sequence of `unroll_steps` + 1 steps for each of {self.n_envs} environments, "
                f"at least {self.n_envs * (self.unroll_steps + 1)}, got {self.buffer_size}"
            )
        given = self.replay_buffer_class
        if given is not None and not (isinstance(given, type) and issubclass(given, SequenceReplayBuffer)):
            raise ValueError(f"`replay_buffer_class` must be a SequenceReplayBuffer, got {given}")

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.exploration = FloatSchedule(self.exploration)
        self.novelty_coef = FloatSchedule(self.novelty_coef)
        self.set_random_seed(self.seed)
        if self.env is not None and self.two_player is None:
            self.two_player = is_two_player(self.env)
        if getattr(self, "replay_buffer", None) is None:
            self._make_replay_buffer()
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space,
            self.action_space,
            self.lr_schedule,
            discount=self.discount,
            num_simulations=self.num_simulations,
            search=self.search,
            search_kwargs=self.search_kwargs,
            **self.policy_kwargs,
        )
        self.policy = self.policy.to(self.device)
        if isinstance(self.policy, ImagePolicy):
            check_axes(self.env)
        self._convert_train_freq()
        if self.verbose >= 1:
            if self.policy.uncompiled_reason is not None:
                print(f"Planning runs in PyTorch, not in compiled code: {self.policy.uncompiled_reason}")
            elif not is_cached():
                print("The first search compiles the planner, which takes some seconds and is cached on disk")

    def _make_replay_buffer(self) -> None:
        num_frames = frames_in_observation(self.env)
        stacked = {"frame_stack": num_frames} if num_frames > 1 else {}
        self.replay_buffer = (self.replay_buffer_class or SequenceReplayBuffer)(  # type: ignore[assignment]
            self.buffer_size,
            self.observation_space,
            self.action_space,
            device=self.device,
            n_envs=self.n_envs,
            **(stacked | self.replay_buffer_kwargs),
        )

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        As SB3's. The replay buffer stores each frame of a stack once: for environments that stack another number of frames an
        empty one is replaced, and one with transitions refused, unless it stores stacks whole.

        :param env: The environment for learning a policy
        :param force_reset: Whether training begins with a reset
        :raises ValueError: for other spaces or another number of environments, and where the replay buffer can't go on
        """
        super().set_env(env, force_reset)
        buffer = self.replay_buffer
        num_frames = self.replay_buffer_kwargs.get("frame_stack", frames_in_observation(self.env))
        assert isinstance(buffer, SequenceReplayBuffer)
        if buffer.size() == 0 and buffer.frame_stack != num_frames:
            self._make_replay_buffer()
        elif buffer.frame_stack not in (1, num_frames):
            raise ValueError(
                f"`env` must stack {buffer.frame_stack} frames as those did that filled the replay buffer, got "
                f"{num_frames}: call `model.replay_buffer.reset()` before, to do without what it holds"
            )

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        self._check_arguments()
        self.interrupted = False
        # What was assigned since
        self._convert_train_freq()
        self.exploration, self.novelty_coef = FloatSchedule(self.exploration), FloatSchedule(self.novelty_coef)
        if reset_num_timesteps or self._last_obs is None:
            self.replay_buffer.cut()
        if reset_num_timesteps or self._last_obs is None or len(self._episode_steps) != self.n_envs:
            self._episode_steps = np.zeros(self.n_envs, dtype=np.int64)
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        self._set_up_masking()
        self._set_up_players()
        self.time_split = TimeSplit()
        seen = self._last_obs if self._vec_normalize_env is None else self._last_original_obs
        check_finite("observation", seen, self.num_timesteps, space=self.observation_space)
        return result

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        if progress_bar:
            callbacks = callback if isinstance(callback, list) else [callback]
            converted = [part if isinstance(part, BaseCallback) else ConvertCallback(part) for part in callbacks]
            callback = CallbackList([*converted, MuZeroProgressBar(compiles=not is_cached())])
        return super()._init_callback(callback)

    def _set_up_masking(self) -> None:
        assert self.env is not None
        supported = has_action_masks(self.env)
        if self._use_masking and not supported:
            raise ValueError(
                "`use_masking=True`, but the environment has no method `action_masks`: "
                "add it, or wrap the environment in sb3_contrib.common.wrappers.ActionMasker"
            )
        self.uses_action_masks = supported if self._use_masking is None else self._use_masking

    def _set_up_players(self) -> None:
        """:raises ValueError: for what makes no sense in a game, or is another kind of game than before"""
        assert self.env is not None
        self.symmetries = symmetries_of(self.env)
        if self.two_player != (given := is_two_player(self.env)):
            raise ValueError(f"The model is of `two_player={self.two_player}`, but the environment has `two_player={given}`")
        if (self.two_player or self.symmetries) and self._vec_normalize_env is not None and self._vec_normalize_env.norm_obs:
            raise ValueError("`VecNormalize` scales each cell of a board differently: set `norm_obs=False`")
        if self.two_player and not self.uses_action_masks:
            raise ValueError(
                "A two-player game must say which moves are legal: the environment needs a method `action_masks`, and "
                "`use_masking` must not be False"
            )
        if self.two_player and any(coef > 0 for _, coef in schedule_values(self.novelty_coef)):
            raise ValueError("`novelty_coef` must be 0 in a two-player game, where what one player gets the other one pays")

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> RolloutReturn:
        """
        Collect experiences with search and store them. A rollout that stops midway has taken a step that was not stored,
        so the next one starts from a reset.

        :return: How much was collected, and whether to go on
        """
        continues = False
        try:
            rollout = super().collect_rollouts(*args, **kwargs)
            continues = rollout.continue_training
        except (EOFError, ConnectionError):
            if not self.interrupted:
                raise
            rollout = RolloutReturn(0, 0, continue_training=False)  # Ctrl-C has ended a SubprocVecEnv's processes, too
        finally:
            if not continues:
                self._last_obs = None
        return rollout

    def _sample_action(
        self,
        learning_starts: int,
        action_noise: ActionNoise | None = None,
        n_envs: int = 1,
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Sample actions by search, or at random during the warm-up.

        :param learning_starts: Number of steps before learning for the warm-up phase.
        :param action_noise: Not used: the search explores
        :param n_envs: Number of environments
        :return: actions for the environments and their indices, counted from 0, for the replay buffer
        """
        assert self.env is not None
        masks = None
        if self.uses_action_masks:
            masks = check_action_masks(get_action_masks(self.env), self.n_envs, int(self.action_space.n))
        self._last_action_masks = masks
        novelty = self.novelty_coef(self._current_progress_remaining)
        if self.num_timesteps < learning_starts or not (self.reward_signal_seen or novelty > 0):
            self.last_search = None
            repeat = self.random_action_repeat if self.num_timesteps >= self.learning_starts else 1.0
            actions = repeated_random_actions(make_actions(self.action_space), self._random_actions, n_envs, repeat, masks)
            self._random_actions = actions
        else:
            assert self._last_obs is not None, "self._last_obs was not set"
            start = time.perf_counter()
            obs_tensor, _ = self.policy.obs_to_tensor(self._last_obs)
            exploration = self.exploration(self._current_progress_remaining)
            self.last_search = self.policy.plan(obs_tensor, exploration=exploration, action_masks=masks)
            seconds = time.perf_counter() - start
            self.time_split["search"] += seconds
            self._log_search(self.last_search, seconds)
            is_opening = self._episode_steps < self.exploration_steps_per_episode
            actions = np.where(is_opening, self.last_search.action, self.last_search.action_weights.argmax(axis=1))
        self._acted_at = time.perf_counter()
        return actions + self.action_space.start, actions

    def _log_search(self, search: SearchOutput, seconds: float) -> None:
        weights = search.action_weights
        entropy = -(weights * np.log(np.maximum(weights, np.finfo(weights.dtype).tiny))).sum(-1)
        self.logger.record_mean("search/root_value", float(search.value.mean()))
        self.logger.record_mean("search/policy_entropy", float(entropy.mean()))
        self.logger.record_mean("search/depth", float(search.tree.node_depths.max(axis=-1).mean()))
        self.logger.record_mean("search/simulations_per_second", self.policy.num_simulations * len(weights) / seconds)

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        self.time_split["environment"] += time.perf_counter() - self._acted_at
        # VecNormalize's running statistics spread one environment's NaN to all: look at what came in
        normalize = self._vec_normalize_env
        raw_reward = reward if normalize is None else normalize.get_original_reward()
        raw_obs, space = new_obs if normalize is None else normalize.get_original_obs(), self.observation_space
        check_finite("observation", raw_obs, self.num_timesteps, space=space)
        check_finite("reward", raw_reward, self.num_timesteps)
        for i in np.flatnonzero(dones):
            if infos[i].get("terminal_observation") is not None:
                check_finite("terminal observation", infos[i]["terminal_observation"], self.num_timesteps, int(i), space)
        self._look_for_reward_signal(raw_reward, dones, infos)
        assert isinstance(replay_buffer, SequenceReplayBuffer)
        if self.last_search is not None:
            replay_buffer.store_search(self.last_search.action_weights, self.last_search.value, self._n_updates)
        if self._last_action_masks is not None:
            replay_buffer.store_action_masks(self._last_action_masks)
        self._episode_steps = np.where(dones, 0, self._episode_steps + 1)
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    def _look_for_reward_signal(self, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
        rewards = np.asarray(rewards, np.float32)  # as they are stored, and in files
        if self._first_reward is None:
            self._first_reward = float(rewards[0])
        terminated = any(done and not info.get("TimeLimit.truncated", False) for done, info in zip(dones, infos, strict=True))
        if terminated or (rewards != self._first_reward).any():
            self.reward_signal_seen = True

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        if self.replay_buffer.size() == 0 or gradient_steps < 1:
            return
        start, reanalysis_before = time.perf_counter(), self.time_split["reanalysis"]
        # Switch to train mode (this affects batch norm / dropout)
        self.policy.set_training_mode(True)
        # Update learning rate according to schedule
        self._update_learning_rate(self.policy.optimizer)
        parameters = [parameter for group in self.policy.optimizer.param_groups for parameter in group["params"]]

        logs = []
        for _ in range(gradient_steps):
            samples = self.sample(batch_size, self.unroll_steps)
            reanalysis_start = time.perf_counter()
            policy_age, reanalyzed_values = self._reanalyze(samples)
            self.time_split["reanalysis"] += time.perf_counter() - reanalysis_start
            if self.symmetries is not None:
                samples = apply_symmetries(
                    samples, self.symmetries, np.random.randint(len(self.symmetries.actions), size=batch_size)
                )
            self.policy.update_statistics(tree_map(lambda part: part[0], samples.observations))
            targets = self.targets(samples, reanalyzed_values)
            known_values = targets.values[targets.value_weights > 0]
            if not bool(known_values.isfinite().all() & targets.rewards.isfinite().all()):
                self._skip_update("a target of values or rewards")
                continue
            self.policy.fit_supports(known_values, targets.rewards)
            clipped = self.policy.latent_model.value_support.out_of_range(known_values).float().mean()

            # Optimize the policy
            terms, loss, gradients = self._backward(samples, targets, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            # Clip gradient norm
            grad_norm = th.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
            if not bool((loss.detach() + grad_norm).isfinite()):
                broken = [name for name, term in zip(LossTerms._fields, terms[:5], strict=False) if not bool(term.isfinite())]
                self._skip_update(f"the {' and the '.join(broken)} loss" if broken else "a gradient")
                continue
            self._skipped_in_a_row = 0
            self.policy.optimizer.step()
            self.policy.value_error.lerp_(terms.value_errors.mean(), 1 / min(self._n_updates + 1, 100))
            self.replay_buffer.update_priorities(samples.starts, terms.value_errors.cpu().numpy())
            scalars = [loss, *terms[:5], terms.value_errors.mean(), grad_norm, clipped, policy_age]
            logs.append(th.stack([scalar.detach() for scalar in scalars]))

            # Increase update counter
            self._n_updates += 1
            if self._n_updates % self.target_update_interval == 0:
                self.policy.update_target(self.tau)

        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/skipped_updates", self._skipped_updates)
        if logs:  # else all updates were left out
            names = ("loss", "policy_loss", "entropy_loss", "value_loss", "reward_loss", "consistency_loss", "value_error",
                     "grad_norm", "value_target_clipped", "policy_age")  # fmt: skip
            for name, value in zip(names, th.stack(logs).mean(0).tolist(), strict=True):
                self.logger.record(f"train/{name}", value)
        reanalysis = self.time_split["reanalysis"] - reanalysis_before
        self.time_split["learning"] += time.perf_counter() - start - reanalysis

    def _skip_update(self, cause: str) -> None:
        """:raises FloatingPointError: after ``MAX_SKIPPED_UPDATES`` in a row"""
        self._skipped_updates += 1
        self._skipped_in_a_row += 1
        message = f"Update {self._n_updates} after {self.num_timesteps} steps is left out: {cause} is not finite"
        if self._skipped_in_a_row >= self.MAX_SKIPPED_UPDATES:
            raise FloatingPointError(f"{message}, for the {self._skipped_in_a_row}th time in a row: lower `learning_rate`?")
        warnings.warn(message)

    def can_learn(self) -> bool:
        """
        Tell whether an update could be made. Asking changes nothing.

        :return: Whether the loss of a batch and its gradients are finite
        """
        if self._n_updates == 0 or self.replay_buffer.size() == 0:
            return True
        parameters = [parameter for group in self.policy.optimizer.param_groups for parameter in group["params"]]
        was_training = self.policy.training
        self.policy.set_training_mode(False)  # else batch statistics would move
        with random_state_kept():
            samples = self.sample(self.batch_size, self.unroll_steps, with_bonus=False)
            _, loss, gradients = self._backward(samples, self.targets(samples), parameters)
        self.policy.set_training_mode(was_training)
        norm = th.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
        return bool((loss + norm).isfinite())

    def sample(self, batch_size: int, unroll_steps: int, with_bonus: bool = True) -> SequenceSamples:
        """
        Draw sequences as training does.

        :param batch_size: Number of sequences B
        :param unroll_steps: Steps K that the model is to be unrolled over
        :param with_bonus: Whether rewards have the bonus for novelty, if there is one
        :return: The sequences
        """
        return self.replay_buffer.sample(
            batch_size,
            env=self._vec_normalize_env,
            unroll_steps=unroll_steps,
            n_steps=self.n_steps,
            n_steps_half_life=self.n_steps_half_life,
            novelty_coef=self.novelty_coef(self._current_progress_remaining) if with_bonus else 0.0,
            progress_remaining=self._current_progress_remaining,
        )

    def targets(self, samples: SequenceSamples, reanalyzed_values: th.Tensor | None = None) -> UnrollTargets:
        """
        :param samples: The sequences
        :param reanalyzed_values: See ``unroll_targets``; none by default
        :return: What the model should say of them
        """
        if reanalyzed_values is None:
            reanalyzed_values = th.full(samples.policies.shape[:2], th.nan, device=self.device)
        return unroll_targets(samples, self._bootstrap_values(samples), reanalyzed_values, self.discount)

    def weighted_losses(self, terms: LossTerms) -> list[th.Tensor]:
        """
        :param terms: Terms of the loss
        :return: Each times its coefficient, in the order of ``LossTerms``
        """
        coefs = (1.0, self.ent_coef, self.vf_coef, self.reward_coef, self.consistency_coef)
        return [coef * term for coef, term in zip(coefs, terms[:5], strict=True)]

    def _backward(
        self, samples: SequenceSamples, targets: UnrollTargets, parameters: list[nn.Parameter]
    ) -> tuple[LossTerms, th.Tensor, list[th.Tensor | None]]:
        """:return: Terms of the loss, the loss, and its gradients, all of which the next call may overwrite"""

        def backward(
            read: dict[str, PyTorchObs], targets: UnrollTargets
        ) -> tuple[LossTerms, th.Tensor, list[th.Tensor | None]]:
            terms = muzero_loss(self.policy, samples._replace(**read), targets)  # type: ignore[arg-type]
            loss: th.Tensor = sum(self.weighted_losses(terms))  # type: ignore[assignment]  # never 0, the sum of nothing
            self.policy.optimizer.zero_grad()
            loss.backward()
            return LossTerms(*map(th.Tensor.detach, terms)), loss.detach(), [parameter.grad for parameter in parameters]

        model, augmentation = self.policy.latent_model, self.policy.augmentation
        used: list[nn.Module] = [model] if augmentation is None else [model, augmentation]
        coefs = (self.ent_coef, self.vf_coef, self.reward_coef, self.consistency_coef)
        read = {"observations": samples.observations, "actions": samples.actions, "weights": samples.weights}
        inputs = (read if samples.action_masks is None else {**read, "action_masks": samples.action_masks}, targets)
        if type(self).weighted_losses is not MuZero.weighted_losses:
            return backward(*inputs)
        return self.policy.cuda_graphed("backward", backward, inputs, model, used, *coefs, *map(id, parameters))(*inputs)

    def dump_logs(self) -> None:
        """Write log data."""
        for part, share in self.time_split.shares().items():
            self.logger.record(f"time/{part}_share", share)
        super().dump_logs()

    @th.no_grad()
    def _bootstrap_values(self, samples: SequenceSamples) -> th.Tensor:
        needed, model = needs_bootstrap(samples), self.policy.latent_model_target
        if self.device.type == "cuda":  # which need not wait then, and which finds no shape new
            predict = partial(self.policy.predict_values, model=model)
            inputs = (samples.bootstrap_observations,)
            values = self.policy.cuda_graphed("values", predict, inputs, model)(*inputs).squeeze(-1)
            return th.where(needed, values, 0.0)
        values = th.zeros(needed.shape, device=self.device)
        values[needed] = self.policy.predict_values(
            tree_map(lambda part: part[needed], samples.bootstrap_observations), model
        ).squeeze(-1)
        return values

    @th.no_grad()
    def _reanalyze(self, samples: SequenceSamples) -> tuple[th.Tensor, th.Tensor]:
        """
        Search the first step of sequences again, with the target network.

        :param samples: The sequences, which get the new policies
        :return: Mean age of the policies at position 0, in gradient updates; and values for the sequences among them whose
            horizon is a single step, the search's at position 0 and the target network's behind it, NaN elsewhere, shape
            ``[K + 1, B]``
        """
        batch_size = samples.starts.shape[1]
        reanalyzed_values = th.full((len(samples.policies), batch_size), th.nan, device=self.device)
        count = round(self.reanalyze_ratio * batch_size)
        if count > 0:
            chosen = np.random.permutation(batch_size)[:count]
            model = self.policy.latent_model_target
            observations = tree_map(lambda part: part[:, chosen], samples.observations)
            roots = tree_map(lambda part: part[0], observations)
            masks = None if samples.action_masks is None else samples.action_masks[0, chosen].numpy(force=True)
            search = self.policy.plan(roots, deterministic=True, model=model, action_masks=masks)
            samples.policies[0, chosen] = th.as_tensor(search.action_weights, device=self.device)
            samples.model_versions[chosen] = self._n_updates
            self.replay_buffer.update_search(samples.starts[:, chosen], search.action_weights, search.value, self._n_updates)

            is_stale = (samples.horizons[chosen] == 1).numpy(force=True)
            stale = chosen[is_stale]
            if len(stale) > 0:
                reanalyzed_values[0, stale] = th.as_tensor(search.improved_value[is_stale], device=self.device)
                successors = tree_map(lambda part: part[1:, is_stale], observations)
                reanalyzed_values[1:, stale] = self.policy.predict_values(successors, model).squeeze(-1)
        searched = (samples.policies[0].sum(-1) > 0).numpy(force=True)
        age = np.mean(self._n_updates - samples.model_versions[searched]) if searched.any() else 0.0
        return th.tensor(age, dtype=th.float32, device=self.device), reanalyzed_values

    def learn(
        self: SelfMuZero,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "MuZero",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        use_masking: bool | None = None,
    ) -> SelfMuZero:
        """
        Return a trained model.

        :param total_timesteps: The total number of samples (env steps) to train on
        :param callback: callback(s) called at every step with state of the algorithm.
        :param log_interval: the number of episodes before logging
        :param tb_log_name: the name of the run for TensorBoard logging
        :param reset_num_timesteps: whether or not to reset the current timestep number (used in logging)
        :param progress_bar: Display a progress bar using tqdm and rich.
        :param use_masking: Whether to ask the environment's ``action_masks()`` (sb3-contrib's convention) which actions are
            legal; by default if it has that method
        :return: the trained model
        :raises ValueError: for arguments of the model that were assigned since and are not allowed, and if masks are demanded
            of an environment without
        """
        self._use_masking = use_masking
        with contextlib.ExitStack() as self.after_learning:
            return super().learn(
                total_timesteps=total_timesteps,
                callback=callback,
                log_interval=log_interval,
                tb_log_name=tb_log_name,
                reset_num_timesteps=reset_num_timesteps,
                progress_bar=progress_bar,
            )

    @property
    def discount(self) -> float:
        """Factor from the next state's value to that of this one: ``gamma``, negative where the next mover is the opponent."""
        return -self.gamma if self.two_player else self.gamma

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """``MuZeroPolicy.predict``, with a warning where a model that was trained with action masks is given none."""
        if action_masks is None and self.uses_action_masks:
            warnings.warn(
                "The model was trained with action masks, but `predict` was given none: it may choose illegal actions. Pass "
                "`action_masks`, and evaluate with sb3_contrib's MaskableEvalCallback and common.maskable.evaluation"
            )
        return self.policy.predict(observation, state, episode_start, deterministic, action_masks)

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save all the attributes of the object and the model parameters in a zip-file. A file that is there already stays whole
        until the new one is on disk.

        :param path: path to the file where the rl agent should be saved
        :param exclude: name of parameters that should be excluded in addition to the default ones
        :param include: name of parameters that might be excluded but should be included anyway
        """
        if isinstance(path, (str, pathlib.Path)):
            path = with_suffix(path, ".zip")
            if path.is_dir():
                warnings.warn(f"Path '{path}' is a folder. Will save instead to {path}_2")
                path = path.with_name(f"{path.name}_2")
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                super().save(file, exclude, include)
        else:
            super().save(path, exclude, include)

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """
        Save the replay buffer, in a format that runs no code when it is loaded (``sb3_muzero.common.serialization``).

        :param path: Path to the file where the replay buffer should be saved; folders are created, and ``.pkl`` is added to a
            name without suffix, as SB3 does, though it is no pickle
        """
        if isinstance(path, (str, pathlib.Path)):
            path = with_suffix(path, ".pkl")
            path.parent.mkdir(parents=True, exist_ok=True)
        save_npz(path, self.replay_buffer.state())

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """
        Load what ``save_replay_buffer`` saved. The buffer takes the file's size, and keeps its other settings.

        :param path: Path to the replay buffer.
        :param truncate_last_traj: Accepted for SB3's calling convention
        :raises ValueError: for another kind of file, a damaged one, other spaces or another number of environments;
            nothing is replaced then
        """
        buffer = copy.copy(self.replay_buffer)
        buffer.load_state(load_npz(with_suffix(path, ".pkl") if isinstance(path, (str, pathlib.Path)) else path))
        self.replay_buffer = buffer
        self._last_obs = None  # no step of the running episodes is in it
        if buffer.size() > 0:
            rewards, terminals = buffer.rewards[: buffer.size()], buffer.terminals[: buffer.size()]
            self._first_reward = float(rewards[0, 0])
            self.reward_signal_seen = bool(terminals.any() or (rewards != rewards[0, 0]).any())

    def settings(self) -> dict[str, Any]:
        """:return: Arguments of the constructor as they are now, without the environment"""
        names = {"policy": "policy_class", "stats_window_size": "_stats_window_size"}
        without = {"env", "_init_setup_model"}
        own = inspect.signature(type(self)).parameters.values()
        several = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        arguments = [parameter.name for parameter in own if parameter.kind not in several]
        if len(arguments) < len(own):  # a subclass that hands on the others
            arguments += [name for name in inspect.signature(MuZero).parameters if name not in arguments]
        return {name: getattr(self, names.get(name, name)) for name in arguments if name not in without}

    def save_checkpoint(self, folder: str | pathlib.Path, keep: int = 2) -> pathlib.Path:
        """
        Save all that this run consists of, to ``resume`` it, between two rollouts: ``ResumableCheckpointCallback`` does it.

        :param folder: Where checkpoints are, which is created
        :param keep: How many stay, this one among them
        :return: Its file, which is whole or not there at all
        :raises OSError: if it can't be written; the others stay then
        :raises FloatingPointError: if the networks are beyond repair; the others stay then, too
        :raises ValueError: for a folder of another run
        """
        self.check_checkpoint_folder(folder)
        if not self.can_learn():
            raise FloatingPointError("the networks' loss or its gradients are not finite")
        state = run_state(self, self.settings())
        if missing := [name for name, value in state["settings"].items() if is_missing(value)]:
            warnings.warn(f"`resume` will have to be given {', '.join(missing)} again, which no file can hold")
        if (why_not := state["environments"]["why_not"]) is not None:
            warnings.warn(f"Resumed from this checkpoint, episodes will begin anew: {why_not}")  # which Python shows once
        path = save_checkpoint(pathlib.Path(folder), state, keep)
        self._checkpoints[path.parent.resolve()] = self.num_timesteps
        return path

    def check_checkpoint_folder(self, folder: str | pathlib.Path) -> None:
        """
        :param folder: Where checkpoints are to be saved
        :raises ValueError: if those that are there are none of this run, or its steps are counted from 0 again since
        """
        there = checkpoints_in(folder)
        saved_at = self._checkpoints.get(pathlib.Path(folder).resolve())
        if there and (saved_at is None or self.num_timesteps < saved_at):
            raise ValueError(
                f"The folder holds checkpoints of another run, {there[-1]} the newest, and this one is at step "
                f"{self.num_timesteps}: go on with that one (`MuZero.resume`, then `learn` with `reset_num_timesteps=False`), "
                f"or name another folder"
            )

    @classmethod
    def resume(
        cls: type[SelfMuZero],
        folder: str | pathlib.Path,
        env: GymEnv | str,
        restore_environments: bool = False,
        **changes: Any,
    ) -> SelfMuZero:
        """
        Go on with a run from its newest whole checkpoint: call ``learn`` with the steps that are left and
        ``reset_num_timesteps=False``. No code is run that is in the file.

        :param folder: Where ``ResumableCheckpointCallback`` has put checkpoints
        :param env: Environments of the same kind and number, wrapped as they were
        :param restore_environments: Whether environments go on amid their episodes, so that the run ends with the very
            parameters that it would have had without an interruption. They are unpickled, which does run code: only for files
            that you trust. Otherwise episodes begin anew
        :param changes: Arguments of the constructor that are to be others, or that no file can hold, as functions. The
            optimizer keeps what it had, but for the learning rate
        :return: The model
        :raises FileNotFoundError: if there is no checkpoint
        :raises ValueError: if none is whole, for other environments, for settings that are missing, and another `buffer_size`
        """
        if "buffer_size" in changes:
            raise ValueError(
                f"`buffer_size` can't be changed by `resume`, got {changes['buffer_size']}: it is the checkpoint's"
            )
        state = load_checkpoint(folder)
        if state.get("format") != FORMAT:
            raise ValueError(f"The checkpoint in {folder} was written by another version of sb3_muzero")
        try:
            settings = {name: decode(value, name) for name, value in state["settings"].items() if name not in changes}
            model = cls(env=env, **settings, **changes)
            load_run_state(model, state, restore_environments)
        except (
            ValueError,
            KeyError,
            TypeError,
            IndexError,
            AttributeError,
            RuntimeError,
            AssertionError,
            ArithmeticError,
        ) as error:
            why = str(error) if isinstance(error, ValueError) else repr(error)
            raise ValueError(f"The checkpoint in {folder} does not fit `env`, the arguments or this version: {why}") from error
        model._checkpoints[pathlib.Path(folder).resolve()] = model.num_timesteps
        return model

    def _excluded_save_params(self) -> list[str]:
        of_this_run = ["last_search", "_last_action_masks", "_random_actions", "_episode_steps", "symmetries"]
        of_learning = ["time_split", "_acted_at", "interrupted", "after_learning", "_checkpoints"]
        return [*super()._excluded_save_params(), *of_this_run, *of_learning]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts = ["policy", "policy.optimizer"]

        return state_dicts, []
