"""Models that are tables: the latent of a state is its index. Every test of the search plans with one of these."""

from dataclasses import dataclass

import numpy as np
import torch

from sb3_muzero.search import AfterstateOutput, ChanceModel, RecurrentOutput, RootOutput


@dataclass
class TabularModel:
    """
    :param next_state: deterministic successor. Shape ``[S, A]``, int.
    :param reward: of the edge. Shape ``[S, A]``.
    :param discount: of the edge. Shape ``[S, A]``.
    :param prior_logits: Shape ``[S, A]``.
    :param value: Shape ``[S]``.
    """

    next_state: np.ndarray
    reward: np.ndarray
    discount: np.ndarray
    prior_logits: np.ndarray
    value: np.ndarray

    def root(self, states: np.ndarray) -> RootOutput:
        return RootOutput(self.prior_logits[states], self.value[states], states)

    def step(self, state: np.ndarray, action: np.ndarray) -> RecurrentOutput:
        after = self.next_state[state, action]
        return RecurrentOutput(
            self.reward[state, action], self.discount[state, action], self.prior_logits[after], self.value[after], after
        )

    def torch_root(self, states: np.ndarray) -> RootOutput:
        return RootOutput(*map(torch.as_tensor, self.root(states)))

    def torch_step(self, state: torch.Tensor, action: torch.Tensor) -> RecurrentOutput:
        return RecurrentOutput(*map(torch.as_tensor, self.step(state.numpy(), action.numpy())))


@dataclass
class TabularChanceModel:
    """
    :param afterstate_value: Shape ``[S, A]``; the latent of an afterstate is the pair of state and action.
    :param chance_logits: Shape ``[S, A, C]``.
    :param next_state: of the outcome. Shape ``[S, A, C]``, int.
    :param reward: of the outcome. Shape ``[S, A, C]``.
    :param discount: of the outcome. Shape ``[S, A, C]``.
    :param prior_logits: Shape ``[S, A]``.
    :param value: Shape ``[S]``.
    """

    afterstate_value: np.ndarray
    chance_logits: np.ndarray
    next_state: np.ndarray
    reward: np.ndarray
    discount: np.ndarray
    prior_logits: np.ndarray
    value: np.ndarray

    def root(self, states: np.ndarray) -> RootOutput:
        return RootOutput(self.prior_logits[states], self.value[states], states)

    def act(self, state: np.ndarray, action: np.ndarray) -> AfterstateOutput:
        return AfterstateOutput(self.chance_logits[state, action], self.afterstate_value[state, action], (state, action))

    def step(self, afterstate: tuple[np.ndarray, np.ndarray], outcome: np.ndarray) -> RecurrentOutput:
        edge = *afterstate, outcome
        after = self.next_state[edge]
        return RecurrentOutput(self.reward[edge], self.discount[edge], self.prior_logits[after], self.value[after], after)

    @property
    def chance_model(self) -> ChanceModel:
        return ChanceModel(self.act, self.step)

    def in_torch(self) -> "TabularChanceModel":
        return TabularChanceModel(*(torch.as_tensor(table) for table in vars(self).values()))


def random_chance_model(
    seed: int, num_states: int, num_actions: int, num_outcomes: int, discount: str = "single"
) -> TabularChanceModel:
    """:param discount: as in ``random_model``, of the outcomes."""
    rng = np.random.default_rng(seed)
    after = random_model(seed, num_states, num_actions * num_outcomes, discount)
    edges = (num_states, num_actions, num_outcomes)
    return TabularChanceModel(
        afterstate_value=rng.normal(size=edges[:2]).astype(np.float32),
        chance_logits=rng.normal(scale=2.0, size=edges).astype(np.float32),
        next_state=after.next_state.reshape(edges),
        reward=after.reward.reshape(edges),
        discount=after.discount.reshape(edges),
        prior_logits=rng.normal(scale=2.0, size=edges[:2]).astype(np.float32),
        value=after.value,
    )


def random_model(seed: int, num_states: int, num_actions: int, discount: str = "single") -> TabularModel:
    """
    :param discount: "single" (0.9, some terminal edges), "two_player" (-1, some terminal edges) or "random" in [-1, 1].
    """
    rng = np.random.default_rng(seed)
    edges = (num_states, num_actions)
    discounts = {"single": np.full(edges, 0.9), "two_player": np.full(edges, -1.0), "random": rng.uniform(-1.0, 1.0, edges)}
    return TabularModel(
        next_state=rng.integers(num_states, size=edges),
        reward=rng.normal(size=edges).astype(np.float32),
        discount=np.where(rng.random(edges) < 0.1, 0.0, discounts[discount]).astype(np.float32),
        prior_logits=rng.normal(scale=2.0, size=edges).astype(np.float32),
        value=rng.normal(size=num_states).astype(np.float32),
    )


def bandit(prior_logits: list[float], rewards: list[float]) -> TabularModel:
    """One state whose actions end the episode with these rewards, and a terminal state after it."""
    num_actions = len(rewards)
    return TabularModel(
        next_state=np.ones((2, num_actions), np.int64),
        reward=np.array([rewards, [0.0] * num_actions], np.float32),
        discount=np.zeros((2, num_actions), np.float32),
        prior_logits=np.array([prior_logits, [0.0] * num_actions], np.float32),
        value=np.zeros(2, np.float32),
    )
