"""The algorithm: collect with search, store, sample, reanalyze, learn."""

import time
from copy import copy
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule

from sb3_muzero.collector import Collector
from sb3_muzero.common.evaluation_checks import predict_warning
from sb3_muzero.common.refused_arguments import refuse_noise_arguments
from sb3_muzero.common.space_checks import check_spaces
from sb3_muzero.common.turns import has_to_play
from sb3_muzero.common.validation import COUNTABLE_SPACES, SETTINGS, check_muzero_arguments, check_number
from sb3_muzero.common.vec_env_checks import check_axes, check_two_player, is_two_player
from sb3_muzero.learning.learner import Learner, LearnerSettings
from sb3_muzero.learning.reanalyze import Reanalyzer
from sb3_muzero.learning.symmetries import Symmetries, apply_symmetries, symmetries_of
from sb3_muzero.off_policy import SequenceOffPolicyAlgorithm
from sb3_muzero.policies import CnnPolicy, ImagePolicy, MlpPolicy, MultiInputPolicy, MuZeroPolicy, ResNetPolicy
from sb3_muzero.replay.sequences import SequenceSamples
from sb3_muzero.search.planner import PlannerSettings

SelfMuZero = TypeVar("SelfMuZero", bound="MuZero")


class MuZero(SequenceOffPolicyAlgorithm):
    """
    MuZero: plans with Monte Carlo tree search inside a latent model that it learns.

    Paper: https://arxiv.org/abs/1911.08265 (MuZero), https://openreview.net/forum?id=bERaNdoegnO (Gumbel MuZero, the default
    search), https://arxiv.org/abs/2111.00210 (EfficientZero, the consistency loss), https://arxiv.org/abs/2104.06303 (Sampled
    MuZero, for Box, MultiDiscrete and MultiBinary actions)

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, ResNetPolicy, MultiInputPolicy)
    :param env: The environment to learn from (if registered in Gym, can be str). If it has ``two_player = True``, each step is
        one ply of a zero-sum game against itself, and observation and reward are those of the player who moves. Players move
        in turn, unless its attribute ``to_play`` says who is to move, 0 or 1; its attribute ``symmetries`` (see
        ``sb3_muzero.learning.symmetries``) lists rotations and reflections that augment the sequences
    :param learning_rate: The learning rate, it can be a function of the current progress remaining (from 1 to 0)
    :param buffer_size: size of the replay buffer
    :param learning_starts: how many steps of the model to collect transitions for before learning starts;
        actions are random until then, and as long as no reward signal was seen: until a reward differs from the first one or
        an episode terminates, unless there is an exploration bonus to plan for
    :param batch_size: Number of sequences for each gradient update
    :param tau: the soft update coefficient of the target network ("Polyak update", between 0 and 1)
    :param gamma: the discount factor
    :param train_freq: Update the model every ``train_freq`` steps. Alternatively pass a tuple of frequency and unit
        like ``(5, "step")`` or ``(2, "episode")``.
    :param gradient_steps: How many gradient steps to do after each rollout (see ``train_freq``)
        Set to ``-1`` means to do as many gradient steps as steps done in the environment during the rollout.
    :param replay_buffer_class: Replay buffer class to use, a ``SequenceReplayBuffer``, which ``None`` selects.
    :param replay_buffer_kwargs: Keyword arguments to pass to the replay buffer on creation.
    :param n_steps: Environment steps of the value targets before they bootstrap from the target network
    :param n_steps_half_life: Environment steps after which the value targets of a stored transition have half as many steps
        (never less than 1), since later actions were those of an old policy (EfficientZero, Section 4.3)
    :param num_simulations: Simulations of the search per decision
    :param search: "gumbel" (Gumbel MuZero) or "puct" (MuZero)
    :param search_kwargs: Keyword arguments for ``sb3_muzero.search.gumbel_muzero_search`` or ``muzero_search``
    :param unroll_steps: Steps that the model is unrolled over in training
    :param reanalyze_ratio: Fraction of each batch of sequences whose steps are searched again with the target network (MuZero
        Reanalyze, https://arxiv.org/abs/2104.06294); the new policy targets also replace the old ones in the replay buffer.
        Where the horizon of the value target is a single step (``n_steps``, ``n_steps_half_life``), the value of the new
        policy replaces the return of that step
    :param target_update_interval: update the target network every ``target_update_interval`` gradient steps
    :param ent_coef: Entropy coefficient for the loss calculation. The search sharpens the policy even where values differ by
        chance; the entropy bonus counteracts that
    :param vf_coef: Value function coefficient for the loss calculation
    :param reward_coef: Reward coefficient for the loss calculation
    :param consistency_coef: Coefficient of the latents' self-supervised consistency for the loss calculation
    :param max_grad_norm: The maximum value for the gradient clipping
    :param exploration: Factor of the noise of acting (Gumbel noise; with PUCT the temperature, and Dirichlet noise, which its
        policy targets contain); it can be a function of the current progress remaining (from 1 to 0)
    :param exploration_steps_per_episode: Number of steps at the start of each episode whose actions are selected with that
        noise; later actions are the most probable of the improved policy (30 in board games, MuZero, Appendix D)
    :param novelty_coef: Exploration bonus for a first visit, as a multiple of the mean absolute value of non-zero rewards; the
        n-th visit of the same region adds that over the square root of n to the reward, less the mean bonus of all visits.
        It can be a function of the current progress remaining. Use 0.1 to 1 where random actions do not find the goal
    :param random_action_repeat: Steps between new random actions, on average, while no reward signal was seen after the
        warm-up (temporally extended exploration, https://arxiv.org/abs/2006.01782)
    :param stats_window_size: Window size for the rollout logging: number of episodes to average over
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation, see ``MuZeroPolicy``
    :param verbose: Verbosity level: 0 for no output, 1 for info messages (such as device or wrappers used), 2 for debug
        messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run; with ``auto`` on the GPU if possible.
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: for an argument or an observation space that is not supported, which the message names
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "ResNetPolicy": ResNetPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }

    policy: MuZeroPolicy
    exploration: FloatSchedule
    novelty_coef: FloatSchedule
    learner: Learner
    reanalyzer: Reanalyzer

    @refuse_noise_arguments
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
        env = maybe_make_env(env, verbose)
        check_spaces(env)
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
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
            sde_support=False,
            supported_action_spaces=(spaces.Box, *COUNTABLE_SPACES),
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
        # What the environment tells; `None` until it is asked
        self.two_player: bool | None = None
        self.predict_turns = False
        self.symmetries: Symmetries | None = None
        self._init_run()

        if not (isinstance(self.policy_class, type) and issubclass(self.policy_class, MuZeroPolicy)):
            raise ValueError(f"`policy` must be a MuZeroPolicy, got {self.policy_class}")
        if _init_setup_model:
            self._check_arguments()
            self._setup_model()

    @property
    def discount(self) -> float:
        """Factor from the next state's value to that of this one: ``gamma``, negative where the next mover is the opponent."""
        check_number("gamma", self.gamma)
        return -self.gamma if self.two_player else self.gamma

    @property
    def planner_settings(self) -> PlannerSettings:
        """Settings of the searches."""
        check_number("num_simulations", self.num_simulations)
        return PlannerSettings(self.search, self.num_simulations, copy(self.search_kwargs), self.discount)

    @property
    def learner_settings(self) -> LearnerSettings:
        """Settings of the updates."""
        coefs = (1.0, self.ent_coef, self.vf_coef, self.reward_coef, self.consistency_coef, 1.0)
        losses = dict(zip(("policy", "entropy", "value", "reward", "consistency", "turn"), coefs, strict=True))
        return LearnerSettings(self.discount, losses, self.max_grad_norm, self.tau, self.target_update_interval)

    def _apply_planner_settings(self) -> None:
        """Let searches follow settings that were assigned since, or raise ``ValueError``."""
        if self.learner.policy is not self.policy:  # the user has assigned another one
            self.collector.policy = self.learner.policy = self.reanalyzer.policy = self.policy
        wanted = (self.search, self.num_simulations, self.search_kwargs, -self.gamma if self.two_player else self.gamma)
        if wanted != self.policy.planner.settings or self.num_simulations is True:  # which equals 1
            settings = self.planner_settings
            settings.check()
            self.policy.planner.settings = settings

    def _apply_settings(self) -> None:
        """Let searches and updates follow settings that were assigned since, or raise ``ValueError``."""
        self._apply_planner_settings()
        if [getattr(self, name) for name in SETTINGS] != self._checked_settings:
            self._check_arguments()
            self.exploration, self.novelty_coef = FloatSchedule(self.exploration), FloatSchedule(self.novelty_coef)
            self.learner.settings = self.learner_settings
            self._checked_settings = [getattr(self, name) for name in SETTINGS]

    def _check_arguments(self) -> None:
        """:raises ValueError: naming the argument, what was given and what is allowed"""
        check_muzero_arguments(self)
        self.planner_settings.check()

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.exploration, self.novelty_coef = FloatSchedule(self.exploration), FloatSchedule(self.novelty_coef)
        self.set_random_seed(self.seed)
        if self.env is not None and self.two_player is None:
            self.two_player, self.predict_turns = is_two_player(self.env), has_to_play(self.env)
        if getattr(self, "replay_buffer", None) is None:
            self.replay_buffer = self._make_replay_buffer()
        settings = self.planner_settings._asdict() | {"predict_turns": self.predict_turns}
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space, self.action_space, self.lr_schedule, **settings, **self.policy_kwargs
        ).to(self.device)
        self.learner = Learner(self.policy, self.learner_settings)
        self.reanalyzer = Reanalyzer(self.policy)
        self.collector = Collector(self.policy, self.env)
        self._convert_train_freq()
        if isinstance(self.policy, ImagePolicy):
            check_axes(self.env)
        if self.verbose >= 1 and (message := self.policy.planner_message()) is not None:
            print(message)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        self._checked_settings = []  # the environments may be others
        self._apply_settings()
        self._convert_train_freq()
        assert self.env is not None
        self.symmetries = symmetries_of(self.env)
        result = super()._setup_learn(*args, **kwargs)
        check_two_player(self.env, self.two_player, self.uses_action_masks, self.symmetries is not None, self.novelty_coef)
        return result

    def learn(
        self: SelfMuZero,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | tuple[int, str] | None = 4,
        tb_log_name: str = "MuZero",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        use_masking: bool | None = None,
    ) -> SelfMuZero:
        """
        Return a trained model. For the other arguments see SB3's ``learn``.

        :param log_interval: Episodes between two logs, and at most 2 000 steps; or a tuple like ``(1000, "step")``; or None
        :param use_masking: Whether to use the environment's ``action_masks()`` (sb3-contrib's convention); by default if it
            has that method, or its environments have
        :return: the trained model
        :raises ValueError: for a setting outside of its range, and for ``use_masking=True`` with an environment without masks
        """
        self._use_masking = use_masking
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, Any]:
        """
        Select actions by search, or at random during the warm-up.

        :param learning_starts: Number of steps before learning for the warm-up phase
        :param action_noise: Not used: the search explores
        :param n_envs: Number of environments
        :return: Actions for the environments, and the ``Decision`` that SB3 hands on to ``_store_transition``
        """
        self._log_if_due()
        self._apply_settings()
        self.collector.num_timesteps = self.num_timesteps
        self.collector.exploration_steps_per_episode = self.exploration_steps_per_episode
        progress, is_warmup = self._current_progress_remaining, self.num_timesteps < self.learning_starts
        if self.num_timesteps < learning_starts or not (self.warmup.reward_signal_seen or self.novelty_coef(progress) > 0):
            decision = self.collector.act_randomly(1.0 if is_warmup else self.random_action_repeat)
        else:
            decision = self.collector.act(self._last_obs, exploration=self.exploration(progress))
            self.time_split["search"] += decision.seconds
            for name, value in decision.scalars().items():
                self.logger.record_mean(f"search/{name}", value)
        self._acted_at = time.perf_counter()
        return self.policy.actions.to_env(decision.actions), decision

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        if self.replay_buffer.size() == 0 or gradient_steps < 1:
            return
        start, reanalysis_before = time.perf_counter(), self.time_split["reanalysis"]
        self._apply_settings()
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)

        logs: list[dict[str, th.Tensor]] = []
        for _ in range(gradient_steps):
            samples = self.sample(batch_size, self.unroll_steps)
            reanalysis_start = time.perf_counter()
            samples, search_update = self.reanalyzer(samples, self.reanalyze_ratio, self._n_updates)
            if search_update is not None:
                self.replay_buffer.update_search(*search_update)
            self.time_split["reanalysis"] += time.perf_counter() - reanalysis_start
            policy_age = samples.policy_age(self._n_updates)
            if self.symmetries is not None:
                samples = apply_symmetries(samples, self.symmetries, self.symmetries.sample(batch_size))
            result = self.learner.update(samples, self._n_updates, self.num_timesteps)
            if result is None:
                continue
            self.replay_buffer.update_priorities(samples.ids[0], result.value_errors)
            logs.append({**result.scalars, "policy_age": policy_age})
            self._n_updates += 1

        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/skipped_updates", self.learner.skipped_updates)
        if logs:
            means = th.stack([th.stack([value.float() for value in log.values()]) for log in logs]).mean(0)
            for name, value in zip(logs[0], means.tolist(), strict=True):
                self.logger.record(f"train/{name}", value)
        reanalysis = self.time_split["reanalysis"] - reanalysis_before
        self.time_split["learning"] += time.perf_counter() - start - reanalysis

    def sample(self, batch_size: int, unroll_steps: int, with_bonus: bool = True) -> SequenceSamples:
        """
        Draw sequences as training does.

        :param batch_size: Number of sequences B
        :param unroll_steps: Steps K that the model is to be unrolled over
        :param with_bonus: Whether rewards have the exploration bonus, if there is one
        :return: The sequences
        """
        self._apply_settings()
        return self.replay_buffer.sample(
            batch_size,
            env=self._vec_normalize_env,
            unroll_steps=unroll_steps,
            n_steps=self.n_steps,
            n_steps_half_life=self.n_steps_half_life,
            bonus_coef=self.novelty_coef(self._current_progress_remaining) if with_bonus else 0.0,
            progress_remaining=self._current_progress_remaining,
        )

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """``MuZeroPolicy.predict``, with one warning of missing action masks and of evaluations that do not fit."""
        self._apply_planner_settings()
        self.run_warnings.warn(*predict_warning(self, action_masks, episode_start))
        return self.policy.predict(observation, state, episode_start, deterministic, action_masks)
