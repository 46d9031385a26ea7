"""Collects transitions from vectorized environments, with the statistics of their searches."""

import time
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_muzero.common.action_masks import get_action_masks
from sb3_muzero.common.pytree import tree_map
from sb3_muzero.common.turns import Turns
from sb3_muzero.common.validation import check_finite
from sb3_muzero.common.vec_env_checks import normalized_frames
from sb3_muzero.exploration.warmup import repeated_random_actions
from sb3_muzero.policies import MuZeroPolicy
from sb3_muzero.replay.sequences import SearchStatistics
from sb3_muzero.search import SearchOutput

TINY = np.finfo(np.float32).tiny


class Decision(NamedTuple):
    """
    Selected actions of all environments, and the search that selected them.

    :param actions: Actions as ``Actions`` represents them, shape ``[n_envs, *action_shape]``
    :param search: What the search found, ``None`` where actions are random
    :param action_masks: True for legal actions, shape ``[n_envs, mask_dim]``; ``None`` if the environments were not asked
    :param seconds: How long the search took
    :param root_values: Values of the observations under the improved policy, shape ``[n_envs]``; ``None`` without search
    :param to_play: Whose turn it was, see ``Turns``
    """

    actions: np.ndarray
    search: SearchOutput | None
    action_masks: np.ndarray | None
    seconds: float = 0.0
    root_values: np.ndarray | None = None
    to_play: np.ndarray | None = None

    def scalars(self) -> dict[str, float]:
        """:return: Figures of the search to log, means over the environments"""
        assert self.search is not None and self.root_values is not None
        weights = self.search.action_weights
        entropy = -(weights * np.log(np.maximum(weights, TINY))).sum(-1)
        num_simulations = self.search.visit_counts.sum()
        return {
            "root_value": float(self.root_values.mean()),
            "policy_entropy": float(entropy.mean()),
            "depth": float(self.search.tree.node_depths.max(axis=-1).mean()),
            "simulations_per_second": float(num_simulations / self.seconds),
        }


class Step(NamedTuple):
    """
    Transitions of one step of all environments.

    :param decision: The actions and their search
    :param new_obs: Observations after the step; where an episode ended, the first of the next episode
    :param final_obs: The same, but where an episode ended its final observation
    :param rewards: As the environments give them, shape ``[n_envs]``
    :param dones: Whether an episode ended, shape ``[n_envs]``
    :param infos: Info dictionary of each environment
    :param raw_new_obs: ``new_obs`` as it was before ``VecNormalize``
    :param raw_final_obs: ``final_obs`` as it was before ``VecNormalize``
    :param raw_rewards: ``rewards`` as they were before ``VecNormalize``
    :param turn_signs: See ``Turns.signs``
    """

    decision: Decision
    new_obs: Any
    final_obs: Any
    rewards: np.ndarray
    dones: np.ndarray
    infos: list[dict[str, Any]]
    raw_new_obs: Any
    raw_final_obs: Any
    raw_rewards: np.ndarray
    turn_signs: np.ndarray | None

    def statistics(self, model_version: int) -> SearchStatistics:
        """
        :param model_version: Gradient updates of the model that searched
        :return: What the replay buffer stores of the decision and of its turns
        """
        _, search, masks, _, root_values, _ = self.decision
        if search is None:
            return SearchStatistics(action_masks=masks, turn_signs=self.turn_signs)
        found = search.action_weights, search.candidates, root_values
        return SearchStatistics(model_version, *found, masks, self.turn_signs)


def final_observations(new_obs: Any, dones: np.ndarray, infos: list[dict[str, Any]], normalize: VecNormalize | None) -> Any:
    """
    :param new_obs: What ``VecEnv.step`` returned, which resets environments that are done
    :param dones: Which these are, shape ``[n_envs]``
    :param infos: Hold their ``terminal_observation``
    :param normalize: Whose normalization is undone for final observations
    :return: The observations, with final ones in the place of those of a reset
    """
    if not dones.any():
        return new_obs
    result = tree_map(np.array, new_obs)
    for env in np.flatnonzero(dones).tolist():
        final = infos[env].get("terminal_observation")
        if final is None:
            continue
        if normalize is not None:
            final = normalize.unnormalize_obs(final)
        if isinstance(result, dict):
            for key, part in result.items():
                part[env] = final[key]
        else:
            result[env] = final
    return result


class Collector:
    """
    Acts in vectorized environments: with search, or at random.

    :param policy: Policy that plans
    :param env: The environments, which ``set_env`` sets, too
    :param use_masking: Whether to ask the environments which actions are legal
    :param exploration_steps_per_episode: Steps at the start of an episode whose actions are selected with exploration noise
    """

    env: VecEnv
    normalize: VecNormalize | None
    num_timesteps: int = 0
    """Environment steps so far, for messages; training sets it to its own."""
    raw_obs: Any
    """Observations that the environments are at, as they were before ``VecNormalize``."""

    def __init__(
        self,
        policy: MuZeroPolicy,
        env: VecEnv | None = None,
        use_masking: bool = False,
        exploration_steps_per_episode: float = float("inf"),
    ) -> None:
        self.policy = policy
        self.use_masking = use_masking
        self.exploration_steps_per_episode = exploration_steps_per_episode
        self.episode_steps = np.zeros(0, dtype=np.int64)
        self.random_actions: np.ndarray | None = None
        if env is not None:
            self.set_env(env)

    def set_env(self, env: VecEnv) -> None:
        """
        :param env: The environments to act in from now on
        :raises ValueError: if wrappers around ``VecNormalize`` change what it has normalized, other than by stacking frames
        """
        self.env = env
        self.normalize = unwrap_vec_normalize(env)
        self.num_frames = normalized_frames(env)
        self.turns = Turns(env, self.policy.predict_turns)
        if len(self.episode_steps) != env.num_envs:
            self.reset()

    def reset(self) -> None:
        """Forget running episodes: the environments are reset."""
        self.episode_steps = np.zeros(self.env.num_envs, dtype=np.int64)

    def begin(self, obs: Any) -> Any:
        """
        :param obs: What a reset of the environments returned
        :return: The same as it was before ``VecNormalize``
        """
        self.raw_obs = obs
        if self.normalize is not None and self.normalize.norm_obs:
            self.raw_obs = self.normalize.get_original_obs()
            if self.num_frames > 1:
                self.raw_obs = np.concatenate([np.zeros_like(self.raw_obs)] * (self.num_frames - 1) + [self.raw_obs], axis=1)
        return self.raw_obs

    def state(self) -> dict[str, Any]:
        """:return: Where the running episodes are"""
        return {"episode_steps": self.episode_steps, "random_actions": self.random_actions}

    def load_state(self, state: dict[str, Any]) -> None:
        """:param state: What ``state`` returned"""
        self.episode_steps, self.random_actions = state["episode_steps"], state["random_actions"]

    def action_masks(self) -> np.ndarray | None:
        """
        :return: True for legal actions, shape ``[n_envs, num_actions]``; ``None`` without masking
        :raises ValueError: for masks of another shape, or without any legal action, naming the environment and the step
        """
        if not self.use_masking:
            return None
        masks, actions = get_action_masks(self.env), self.policy.actions
        try:
            return actions.check_masks(masks, self.env.num_envs)
        except ValueError:
            for env, mask in enumerate(masks):
                try:
                    actions.check_masks(mask, 1)
                except ValueError as error:
                    raise ValueError(f"Environment {env} at step {self.num_timesteps}: {error}") from None
            raise

    def act_randomly(self, repeat: float = 1.0) -> Decision:
        """
        :param repeat: Steps between new actions, on average
        :return: Random legal actions
        """
        masks, last = self.action_masks(), self.random_actions
        self.random_actions = repeated_random_actions(self.policy.actions, last, self.env.num_envs, repeat, masks)
        return Decision(self.random_actions, None, masks, to_play=self.turns.to_play())

    def act(self, obs: Any, deterministic: bool = False, exploration: float = 1.0) -> Decision:
        """
        Plan an action for each environment.

        :param obs: Observations of the environments, shape ``[n_envs, *obs_shape]``
        :param deterministic: Whether to act without exploration noise
        :param exploration: Factor of the noise
        :return: The actions and their search
        """
        masks, start = self.action_masks(), time.perf_counter()
        obs_tensor, _ = self.policy.obs_to_tensor(obs)
        search = self.policy.plan(obs_tensor, deterministic=deterministic, exploration=exploration, action_masks=masks)
        explores = self.episode_steps < self.exploration_steps_per_episode
        search = search._replace(action=np.where(explores, search.action, search.action_weights.argmax(axis=1)))
        seconds = time.perf_counter() - start
        return Decision(search.selected_actions, search, masks, seconds, search.improved_value, self.turns.to_play())

    def step(self, decision: Decision) -> Step:
        """
        Step all environments.

        :param decision: Actions to take
        :return: The transitions
        """
        return self.make_step(decision, *self.env.step(self.policy.actions.to_env(decision.actions)))

    def make_step(self, decision: Decision, new_obs: Any, rewards: np.ndarray, dones: np.ndarray, infos: Any) -> Step:
        """
        :param decision: Actions that were taken
        :param new_obs: Observations that ``VecEnv.step`` returned, shape ``[n_envs, *obs_shape]``
        :param rewards: Rewards that it returned, shape ``[n_envs]``
        :param dones: Whether episodes ended, shape ``[n_envs]``
        :param infos: Info dictionary of each environment
        :return: The transitions, with and without the normalization of ``VecNormalize``
        """
        self.num_timesteps += self.env.num_envs
        self.episode_steps = np.where(dones, 0, self.episode_steps + 1)
        final_obs = final_observations(new_obs, dones, infos, None)
        self.raw_obs, raw_final_obs = self._raw_observations(new_obs, final_obs, dones, infos)
        raw_rewards = rewards if self.normalize is None else self.normalize.get_original_reward()
        signs = self.turns.signs(decision.to_play, dones)
        return Step(decision, new_obs, final_obs, rewards, dones, infos, self.raw_obs, raw_final_obs, raw_rewards, signs)

    def _raw_observations(self, new_obs: Any, final_obs: Any, dones: np.ndarray, infos: Any) -> tuple[Any, Any]:
        if self.normalize is None or not self.normalize.norm_obs:
            return new_obs, final_obs
        raw_obs: Any = self.normalize.get_original_obs()
        if self.num_frames == 1:
            return raw_obs, final_observations(raw_obs, dones, infos, self.normalize)
        length = raw_obs.shape[1]
        newest = [{name: info[name][-length:] for name in ("terminal_observation",) if name in info} for info in infos]
        raw_final_obs = final_observations(raw_obs, dones, newest, self.normalize)
        older = self.raw_obs[:, length:]
        begun = np.where(dones.reshape(-1, *[1] * (older.ndim - 1)), 0, older).astype(older.dtype)
        return np.concatenate([begun, raw_obs], axis=1), np.concatenate([older, raw_final_obs], axis=1)


def validate_step(step: Step, observation_space: spaces.Space, num_timesteps: int) -> None:
    """
    :param step: What environments returned
    :param observation_space: Observation space
    :param num_timesteps: Environment steps so far, for the message
    :raises ValueError: for an observation or a reward that cannot be learned from, naming the environment
    """
    # VecNormalize's running statistics spread NaN of one environment to all: look at what came in
    check_finite("observation", step.raw_new_obs, num_timesteps, space=observation_space)
    check_finite("reward", step.raw_rewards, num_timesteps)
    for env in np.flatnonzero(step.dones).tolist():
        if (final := step.infos[env].get("terminal_observation")) is not None:
            check_finite("terminal observation", final, num_timesteps, env, observation_space)
