"""
Planning with the rules of the game in place of the learned model, as AlphaZero does (https://arxiv.org/abs/1712.01815), for
comparisons with learned models.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th

from sb3_muzero.games.players import observe_boards
from sb3_muzero.games.rules import GOES_ON, WON, Rules, play_all
from sb3_muzero.models.base import LatentModel
from sb3_muzero.policies import CnnPolicy, MlpPolicy, MuZeroPolicy, ResNetPolicy
from sb3_muzero.search import RecurrentFn, RecurrentOutput, RootOutput
from sb3_muzero.search.planner import Planner, PlannerSettings

OUTCOME = -1
"""Index of the outcome in a position's row; the cells before it are the board."""


def simulator(rules: Rules, evaluate: Any, discount: float = -1.0) -> RecurrentFn:
    """
    :param rules: Of the game
    :param evaluate: Says of observations, shape ``[B, 2, num_rows, num_columns]``, their policy logits, shape
        ``[B, num_actions]``, and values for the mover, shape ``[B]``
    :param discount: Factor from the next player's value to the mover's
    :return: A ``recurrent_fn`` over boards and how their games stand, shape ``[B, cells + 1]``, int64; a game that is over
        stays as it is, and so does one in which an illegal move is tried
    """

    def step(positions: np.ndarray, actions: np.ndarray) -> RecurrentOutput:
        boards, outcomes = positions[:, :OUTCOME].astype(np.int8), positions[:, OUTCOME].copy()
        play_all(rules, boards, actions, outcomes)
        observations, legal = observe_boards(rules, boards)
        logits, values = evaluate(observations)
        goes_on = outcomes == GOES_ON
        logits = np.where(legal | ~goes_on[:, None] | ~legal.any(1, keepdims=True), logits, -np.inf)
        won_now = (outcomes == WON) & (positions[:, OUTCOME] == GOES_ON)
        after = np.concatenate([boards, outcomes[:, None]], axis=1)
        return RecurrentOutput(won_now.astype(np.float32), np.where(goes_on, discount, 0.0), logits, values * goes_on, after)

    return step


def positions_of(observations: np.ndarray) -> np.ndarray:
    """
    :param observations: Shape ``[B, 2, num_rows, num_columns]``
    :return: Positions whose game is not over, shape ``[B, cells + 1]``, int64
    """
    own, other = (observations.reshape(len(observations), 2, -1).transpose(1, 0, 2) > 0).astype(np.int64)
    boards = own - other
    return np.concatenate([boards, np.full((len(boards), 1), GOES_ON)], axis=1)


class RulesPlanner(Planner):
    """
    Plans with the rules of a game in the place of the dynamics.

    :param settings: Settings of the searches
    :param rules: Of the game
    """

    def __init__(self, settings: PlannerSettings, rules: Rules) -> None:
        super().__init__(settings)
        self.rules = rules

    def root_inference(self, model: LatentModel, obs: Any) -> tuple[RootOutput, RecurrentFn]:
        def evaluate(observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            root, _ = super(RulesPlanner, self).root_inference(model, th.as_tensor(observations, device=obs.device))
            return th.as_tensor(root.prior_logits).numpy(force=True), th.as_tensor(root.value).numpy(force=True)

        observations = obs.numpy(force=True)
        logits, values = evaluate(observations)
        positions = positions_of(observations)
        _, legal = observe_boards(self.rules, positions[:, :OUTCOME].astype(np.int8))
        logits = np.where(legal | ~legal.any(1, keepdims=True), logits, -np.inf)
        return RootOutput(logits, values, positions), simulator(self.rules, evaluate, self.settings.discount)


class PlansWithRules(MuZeroPolicy):
    """
    Mixin that makes a policy plan with the rules of a game, as AlphaZero does. Dynamics and rewards are still learned but not
    used: set ``unroll_steps=1``, ``consistency_coef=0`` and ``reward_coef=0``.

    :param rules: Of the game, as ``env.unwrapped.rules``
    :raises ValueError: for rules of another board, and for objects that are no rules
    """

    def __init__(self, *args: Any, rules: Rules, **kwargs: Any) -> None:
        if not isinstance(rules, Sequence) or len(rules) != len(Rules._fields):
            raise ValueError(f"`rules` must be those of a game, as `env.unwrapped.rules`, got {rules}")
        self.rules = rules = Rules(*rules)  # a model's file has it as a list
        super().__init__(*args, **kwargs)
        if not self.actions.has_fixed_candidates:
            raise ValueError(f"Planning with rules weighs all moves: leave out `action_kwargs`, got {self.action_kwargs}")
        shape, num_actions = (2, rules.num_rows, rules.num_columns), self.actions.num_candidates
        if (self.observation_space.shape, num_actions) != (shape, rules.num_actions):
            raise ValueError(
                f"`rules` must be those of the game, with observations of {self.observation_space.shape} and {num_actions} "
                f"moves, got {rules}"
            )

    def make_planner(self, settings: PlannerSettings) -> Planner:
        return RulesPlanner(settings, self.rules)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"rules": self.rules}


class SimulatorPolicy(PlansWithRules, MlpPolicy):
    """``MlpPolicy`` that plans with the rules."""


class SimulatorCnnPolicy(PlansWithRules, CnnPolicy):
    """``CnnPolicy`` that plans with the rules."""


class SimulatorResNetPolicy(PlansWithRules, ResNetPolicy):
    """``ResNetPolicy`` that plans with the rules."""


def with_rules(policy: MuZeroPolicy, rules: Rules) -> PlansWithRules:
    """
    :param policy: Trained on the game
    :param rules: Of the game, as ``env.unwrapped.rules``
    :return: A copy that plans with the rules instead of the learned model
    :raises ValueError: for an object that is no policy, and for rules of another board
    """
    if not isinstance(policy, MuZeroPolicy):
        raise ValueError(f"`policy` must be a model's policy, as `model.policy`, got a {type(policy).__name__}")
    kind: Any = type(policy)
    if not isinstance(policy, PlansWithRules):
        kind = type(f"Simulator{kind.__name__}", (PlansWithRules, kind), {})
    simulating = kind(**{**policy._get_constructor_parameters(), "rules": rules}).to(policy.device)
    simulating.load_state_dict(policy.state_dict())
    return simulating
