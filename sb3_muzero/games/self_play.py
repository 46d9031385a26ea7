"""Evaluation of agents during self-play: matches against opponents and against the agent's own checkpoints."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from sb3_muzero.common.validation import check_integer
from sb3_muzero.games.match import Score, check_num_games, check_player, elo_ratings, play_match, random_openings
from sb3_muzero.games.players import ModelPlayer, Player


class MatchResult(NamedTuple):
    """
    One evaluation against one opponent.

    :param num_timesteps: Environment steps of training so far
    :param opponent: Name of the opponent
    :param first: The agent's score in games in which it moves first
    :param second: In games in which it moves second
    """

    num_timesteps: int
    opponent: str
    first: Score
    second: Score


class SelfPlayEvalCallback(BaseCallback):
    """
    Callback for evaluating an agent of a two-player game, in place of SB3's ``EvalCallback`` and sb3-contrib's
    ``MaskableEvalCallback``, which add up the rewards of both players.

    Logs the fraction of points against each opponent, by seat, and an Elo rating among the agent's own checkpoints, of which
    the first one has 0. The agent plays without noise. In a run that ``resume`` continues, ratings and the best model start
    anew.

    :param make_env: Makes the game
    :param opponents: Players by name, as ``{"minimax_2": MinimaxPlayer(2)}``
    :param n_eval_games: Number of games against each opponent, an even number, half of them in either seat
    :param eval_freq: Evaluate the agent every ``eval_freq`` call of the callback, and keep it as a checkpoint.
    :param opening_plies: Number of random moves that begin each game
    :param max_checkpoints: Number of the latest checkpoints that the agent plays against; 0 for none
    :param best_model_save_path: Path to a folder where the best model (by points over all opponents) will be saved.
    :param seed: Seed of the openings, which are the same in each evaluation
    :param verbose: Verbosity level: 0 for no output, 1 for results
    :raises ValueError: for an odd number of games; before training, for another game than the model's, and for openings or
        opponents that do not fit the game
    """

    def __init__(
        self,
        make_env: Callable[[], gym.Env],
        opponents: Mapping[str, Player],
        n_eval_games: int = 40,
        eval_freq: int = 10_000,
        opening_plies: int = 2,
        max_checkpoints: int = 3,
        best_model_save_path: str | Path | None = None,
        seed: int = 0,
        verbose: int = 1,
    ) -> None:
        super().__init__(verbose)
        for name, opponent in opponents.items():
            check_player(f"opponents[{name!r}]", opponent)
        check_num_games("n_eval_games", n_eval_games)
        for name, number in (("eval_freq", eval_freq), ("opening_plies", opening_plies), ("max_checkpoints", max_checkpoints)):
            check_integer(name, number, 0)
        self.make_env = make_env
        self.opponents = dict(opponents)
        self.n_eval_games = n_eval_games
        self.eval_freq = eval_freq
        self.opening_plies = opening_plies
        self.max_checkpoints = max_checkpoints
        self.best_model_save_path = None if best_model_save_path is None else Path(best_model_save_path)
        self.seed = seed
        self.results: list[MatchResult] = []
        self.best_points = -np.inf
        self.checkpoints: list[ModelPlayer] = []
        self._points = np.zeros((0, 0))
        self._games = np.zeros((0, 0))

    def _init_callback(self) -> None:
        env = self.make_env()
        env.reset()
        try:
            ModelPlayer(self.model.policy).act([env])  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"`make_env` must make the game that the model learns: {error}") from error
        random_openings(self.make_env, 1, self.opening_plies, self.seed)
        for name, opponent in self.opponents.items():
            try:
                opponent.act([env])
            except ValueError as error:
                raise ValueError(f"`opponents` must be players of this game, which {name!r} is not: {error}") from error

    def _match(self, player: Player, opponent: Player) -> tuple[Score, Score]:
        return play_match(player, opponent, self.make_env, self.n_eval_games, self.opening_plies, self.seed)

    def _on_step(self) -> bool:
        if self.eval_freq > 0 and self.n_calls % self.eval_freq == 0:
            self._evaluate()
        return True

    def _evaluate(self) -> None:
        player, total = ModelPlayer(self.model.policy), Score(0, 0, 0)  # type: ignore[arg-type]
        for name, opponent in self.opponents.items():
            result = MatchResult(self.num_timesteps, name, *self._match(player, opponent))
            self.results.append(result)
            total += result.first + result.second
            self.logger.record(f"eval/{name}", (result.first + result.second).points)
            self.logger.record(f"eval/{name}_first", result.first.points)
            self.logger.record(f"eval/{name}_second", result.second.points)
            if self.verbose >= 1:
                print(f"{self.num_timesteps} steps: {name}, first {result.first}, second {result.second}")
        if self.max_checkpoints > 0:
            rating = self._rate(player)
            self.logger.record("eval/elo", rating)
            if self.verbose >= 1:
                print(f"{self.num_timesteps} steps: Elo {rating:.0f} among {len(self._points)} checkpoints")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)
        if self.best_model_save_path is not None and self.opponents and total.points > self.best_points:
            self.best_points = total.points
            self.best_model_save_path.mkdir(parents=True, exist_ok=True)
            self.model.save(self.best_model_save_path / "best_model")

    def _rate(self, player: Player) -> float:
        """Play against the most recent checkpoints, become one, and rate all anew."""
        count = len(self._points)
        self._points, self._games = (np.pad(table, (0, 1)) for table in (self._points, self._games))
        for back, checkpoint in enumerate(reversed(self.checkpoints), start=1):
            first, second = self._match(player, checkpoint)
            points = (first + second).points * self.n_eval_games
            self._points[count, count - back] = points
            self._points[count - back, count] = self.n_eval_games - points
            self._games[count, count - back] = self._games[count - back, count] = self.n_eval_games
        self.checkpoints = [*self.checkpoints, ModelPlayer(copy.deepcopy(self.model.policy))][-self.max_checkpoints :]  # type: ignore
        return float(elo_ratings(self._points, self._games)[-1])
