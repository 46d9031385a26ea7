"""Callbacks that look at what MuZero alone has: a model, a search and values that can be checked."""

import time
from collections import deque
from functools import partial

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_muzero.diagnostics import (
    ModelErrors,
    discounted_returns,
    dormant_share,
    effective_rank,
    model_errors,
    policy_improvement,
)
from sb3_muzero.loss import LossTerms, muzero_loss, unroll
from sb3_muzero.muzero import MuZero
from sb3_muzero.observation_ring import map_observations


class DiagnosticsCallback(BaseCallback):
    """
    Log from time to time whether the model predicts, the search improves and the values come true. It changes nothing: with
    it and without, the same seed gives the same parameters.

    ============================ ======================================================================================
    logged                       what it is; what is healthy; what the alarm means
    ============================ ======================================================================================
    ``model_error/reward_k``     Mean absolute error of the reward after k imagined steps. Far below the size of a
                                 reward; growing with k: the dynamics lose what rewards depend on
    ``model_error/value_k``      Of the value from its target. Falls with training, and grows little with k. What is
                                 high at k = 0 already is noise of the returns, or a value that is not learned
    ``model_error/policy_k``     KL divergence of the policy from the search's. Below 0.1 once learning is done; high at
                                 k = 0: old search results contradict each other (``reanalyze_ratio``)
    ``model_error/consistency_k`` One minus the cosine between imagined and observed latents. Below 0.1; more than half
                                 of that between any two states: imagined states are not told apart
    ``diagnostics/policy_kl``    Of the search's policy from the network's: 0 if planning finds nothing new. It falls as
                                 the policy learns; 0 from the beginning: values are flat, nothing is to be found
    ``diagnostics/agreement``    Share of states where the likeliest action is the same before and after the search. 0.7
                                 and more late in training; 1 / number of actions: the network does not follow
    ``diagnostics/prior_entropy`` Of the network's policy, in nats. Near 0 with a low return: collapsed (``ent_coef``)
    ``diagnostics/search_entropy`` Of the search's policy, in nats
    ``diagnostics/value_bias``   Mean of root value minus the discounted return that followed, in episodes of late. Small
                                 against their spread; well above 0: values promise what does not come (novelty bonuses
                                 are part of values, and old data of priorities)
    ``diagnostics/value_correlation`` Between both. Above 0.5; near 0: the search plans by noise
    ``diagnostics/effective_rank`` Directions that latents make use of (Roy and Vetterli, 2007). Falling to a few:
                                 collapsed, states look alike to the model
    ``diagnostics/dormant_units`` Share of hidden units that hardly ever act (https://arxiv.org/abs/2302.12902). Above
                                 0.5: a layer has died, observations may need scaling
    ``diagnostics/replay_coverage`` Share of the stored steps that priorities leave in effect,
                                 :math:`(\\\\sum p)^2 / (n \\\\sum p^2)`; below 0.05 few steps are replayed again and again
    ``diagnostics/grad_norm_*``  Gradient norm of each weighted loss. One that is ten times the others rules the latents
    ``time/diagnostics_share``   Share of the time that all this took
    ============================ ======================================================================================

    :param log_freq: Environment steps between two measurements
    :param batch_size: Sequences that each is taken from
    :param unroll_steps: Depth K of ``model_error``; beyond the model's own ``unroll_steps`` it tells how far ahead planning
        can be trusted
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    """

    NUM_EPISODES = 100  # of late, whose returns the values are compared with

    model: MuZero

    def __init__(self, log_freq: int = 5_000, batch_size: int = 256, unroll_steps: int = 5, verbose: int = 0) -> None:
        super().__init__(verbose)
        for name, given in (("log_freq", log_freq), ("batch_size", batch_size), ("unroll_steps", unroll_steps)):
            if given < 1:
                raise ValueError(f"`{name}` must be at least 1, got {given}")
        self.log_freq = log_freq
        self.batch_size = batch_size
        self.unroll_steps = unroll_steps
        self.timesteps: list[int] = []
        self.errors: list[ModelErrors] = []
        # Root values and the returns that followed, of each episode
        self.episodes: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=self.NUM_EPISODES)

    def _init_callback(self) -> None:
        if not isinstance(self.model, MuZero):
            raise ValueError(f"DiagnosticsCallback is made for MuZero, got {type(self.model).__name__}")

    def _on_training_start(self) -> None:
        self._running: list[list[tuple[float, float]]] = [[] for _ in range(self.training_env.num_envs)]
        self._next = self.num_timesteps + self.log_freq
        self._started, self._seconds = time.perf_counter(), 0.0

    def _on_step(self) -> bool:
        search = self.model.last_search
        num_envs = len(self._running)
        values = np.full(num_envs, np.nan) if search is None else search.value
        for env, (value, reward) in enumerate(zip(values.tolist(), self.locals["rewards"].tolist(), strict=True)):
            self._running[env].append((value, reward))
        for env in np.flatnonzero(self.locals["dones"]).tolist():
            self._end_episode(env)
        return True

    def _end_episode(self, env: int) -> None:
        values, rewards = np.array(self._running[env]).T
        self._running[env] = []
        info = self.locals["infos"][env]
        last_value = 0.0
        if info.get("TimeLimit.truncated", False):
            obs, _ = self.model.policy.obs_to_tensor(info["terminal_observation"])
            with th.no_grad():
                last_value = self.model.policy.predict_values(obs).item()
        returns = discounted_returns(rewards, self.model.gamma, last_value)
        searched = ~np.isnan(values)
        if searched.any():
            self.episodes.append((values[searched], returns[searched]))

    def _on_rollout_end(self) -> None:
        # Not in `_on_step`, which is called before the step is stored
        if self.num_timesteps < self._next or self.num_timesteps <= self.model.learning_starts:
            return
        self._next = self.num_timesteps + self.log_freq
        start = time.perf_counter()
        numpy_state = np.random.get_state()
        with th.random.fork_rng(devices=[self.model.device] if self.model.device.type == "cuda" else []):
            self._measure()
        np.random.set_state(numpy_state)
        self._seconds += time.perf_counter() - start
        self.logger.record("time/diagnostics_share", self._seconds / (time.perf_counter() - self._started))

    def _measure(self) -> None:
        policy = self.model.policy
        policy.set_training_mode(False)
        samples = self.model.sample(self.batch_size, self.unroll_steps)
        targets = self.model.targets(samples)

        errors = model_errors(policy, samples, targets)
        self.timesteps.append(self.num_timesteps)
        self.errors.append(errors)
        for name, by_depth in errors._asdict().items():
            first = self.unroll_steps + 1 - len(by_depth)
            for depth, error in enumerate(by_depth.tolist(), start=first):
                self.logger.record(f"model_error/{name}_{depth}", error, exclude="stdout")

        roots = map_observations(lambda part: part[0], samples.observations)
        masks = None if samples.action_masks is None else samples.action_masks[0].numpy(force=True)
        gain = policy_improvement(policy.plan(roots, deterministic=True, action_masks=masks))
        self._record("policy_kl", gain.divergence)
        self._record("agreement", gain.agreement)
        self._record("prior_entropy", gain.prior_entropy)
        self._record("search_entropy", gain.improved_entropy)

        if self.episodes:
            values, returns = map(np.concatenate, zip(*self.episodes, strict=True))
            self._record("value_bias", float((values - returns).mean()))
            if values.std() > 0 and returns.std() > 0:
                self._record("value_correlation", float(np.corrcoef(values, returns)[0, 1]))

        with th.no_grad():
            latents = policy.represent(roots)
        self._record("effective_rank", effective_rank(latents))
        imagine = partial(unroll, policy, samples, augment=False)
        self._record("dormant_units", dormant_share(policy.latent_model, policy.activation_fn, imagine))

        priorities = self.model.replay_buffer.priorities
        if priorities is not None:
            shares = priorities[np.arange(self.model.replay_buffer.size() * self.model.n_envs)]
            self._record("replay_coverage", float(shares.sum() ** 2 / (len(shares) * (shares**2).sum())))

        parameters = list(policy.latent_model.parameters())
        losses = self.model.weighted_losses(muzero_loss(policy, samples, targets))
        for name, loss in zip(LossTerms._fields, losses, strict=False):  # value_errors is no loss
            gradients = th.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            norms = [gradient.norm() for gradient in gradients if gradient is not None]
            self._record(f"grad_norm_{name}", float(th.stack(norms).norm()))

    def _record(self, name: str, value: float) -> None:
        self.logger.record(f"diagnostics/{name}", value)
