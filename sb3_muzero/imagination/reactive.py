"""Acts in the real environment with an agent that was trained in an imagined one."""

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy

from sb3_muzero.imagination.world import encode_flat
from sb3_muzero.muzero import MuZero


class ReactiveAgent:
    """
    Agent that acts by a policy over latent states, without search.

    :param agent: Algorithm or policy that was trained with latent states as observations
    :param model: The model whose representation function gives them
    :raises ValueError: for an agent that observes anything else
    """

    def __init__(self, agent: BaseAlgorithm | BasePolicy, model: MuZero) -> None:
        self.agent = agent
        self.model = model
        self.observation_space, self.action_space = model.observation_space, model.action_space
        sample, _ = model.policy.obs_to_tensor(self.observation_space.sample())
        shape = tuple(encode_flat(model.policy, sample).shape[1:])
        if agent.observation_space.shape != shape or agent.action_space != self.action_space:
            raise ValueError(
                f"`agent` must observe latent states of the model, of shape {shape}, and choose actions of "
                f"{self.action_space}, got one for {agent.observation_space} and {agent.action_space}"
            )

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Get the agent's action from an observation of the real environment, or a batch of them.

        :param observation: the input observation
        :param state: The last hidden states of a recurrent policy
        :param episode_start: Whether episodes begin, for a recurrent policy
        :param deterministic: Whether or not to return deterministic actions
        :return: the agent's action and its next hidden state
        :raises ValueError: for observations outside of the observation space
        """
        obs_tensor, is_batch = self.model.policy.obs_to_tensor(observation)
        latents = encode_flat(self.model.policy, obs_tensor).numpy(force=True)
        return self.agent.predict(latents if is_batch else latents[0], state, episode_start, deterministic)


def as_real(agent: BaseAlgorithm | BasePolicy, model: MuZero) -> ReactiveAgent:
    """
    Make an agent that was trained in an imagined environment act in the real one. It also fits ``evaluate_policy``. An agent
    whose observations were decoded needs no such step: it observes what the environment shows.

    :param agent: Algorithm or policy that was trained with latent states as observations
    :param model: The model that imagined the environment
    :return: Agent with SB3's ``predict``
    :raises ValueError: for an agent that observes anything else than latent states of the model
    """
    return ReactiveAgent(agent, model)
