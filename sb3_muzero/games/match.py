"""Matches between two players, with scores by seat, and Elo ratings."""

import warnings
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_muzero.common.numeric import is_integer
from sb3_muzero.common.validation import check_integer
from sb3_muzero.common.vec_env_checks import wrapper_attr
from sb3_muzero.games.players import Player, RandomPlayer

EMPTY_BOARD: dict[str, Any] = {"moves": ()}
"""Option for ``reset`` of our games, so that they do not begin with random moves."""

MAX_PLIES = 10_000
"""Plies of a match's game after its opening, so that a match always ends."""


class Score(NamedTuple):
    """
    Results of some games for one of the players.

    :param wins: Games won
    :param draws: Games drawn
    :param losses: Games lost
    """

    wins: int
    draws: int
    losses: int

    @property
    def points(self) -> float:
        """Share of the points, a draw being half of one."""
        return (self.wins + self.draws / 2) / sum(self)

    def __add__(self, other: Any) -> "Score":
        return Score(*(a + b for a, b in zip(self, other, strict=True)))

    def __str__(self) -> str:
        return f"{self.points:.1%} of the points (+{self.wins} ={self.draws} -{self.losses})"


class Opening(NamedTuple):
    """
    The beginning of a game.

    :param seed: Seed of its ``reset``, which determines all chance in the game
    :param moves: The first moves
    """

    seed: int
    moves: tuple[int, ...]


def random_openings(make_env: Callable[[], gym.Env], count: int, num_plies: int, seed: int | None) -> list[Opening]:
    """
    :param make_env: Makes the game
    :param count: Number of openings
    :param num_plies: Number of random moves of each, after which the game is not over
    :param seed: Seed of the draws
    :return: The openings, with repetitions only if there are not enough different ones
    :raises ValueError: if no game is that long, or for a number of plies that is no integer of at least 0
    """
    check_integer("opening_plies", num_plies, 0)
    env, player, seeds = make_env(), RandomPlayer(seed), np.random.default_rng(seed)
    openings: dict[tuple[bytes, tuple[int, ...]], Opening] = {}
    tries = 0
    while len(openings) < count and tries < 1000:
        tries += 1
        game_seed = int(seeds.integers(2**31))
        observation, _ = env.reset(seed=game_seed, options=EMPTY_BOARD)
        start = np.asarray(spaces.flatten(env.observation_space, observation)).tobytes()
        moves: tuple[int, ...] = ()
        done = False
        while len(moves) < num_plies and not done:
            moves += (int(player.act([env])[0]),)
            _, _, terminated, truncated, _ = env.step(moves[-1])
            done = terminated or truncated
        if not done and (start, moves) not in openings:
            openings[start, moves], tries = Opening(game_seed, moves), 0
    if not openings:
        raise ValueError(f"`opening_plies` must leave something to play, got {num_plies}")
    return list(islice(cycle(openings.values()), count))


def check_num_games(name: str, num_games: Any) -> None:
    """
    :param name: The argument
    :param num_games: What was given
    :raises ValueError: naming the argument, what was given and what is allowed
    """
    if not is_integer(num_games) or num_games < 2 or num_games % 2 != 0:
        raise ValueError(
            f"`{name}` must be an even integer of at least 2, half of the games in either seat, got {num_games!r}"
        )


def check_player(name: str, player: Any) -> None:
    """
    :param name: The argument
    :param player: What was given
    :raises ValueError: if it has no method ``act``, as a model, or is a class
    """
    if isinstance(player, type) or not callable(getattr(player, "act", None)):
        raise ValueError(f"`{name}` must be a player, such as `RandomPlayer()` or `ModelPlayer(model)`, got {player}")


def play_games(players: Sequence[Player], envs: Sequence[gym.Env], openings: Sequence[Opening]) -> np.ndarray:
    """
    Play all games in parallel, so that a model plans the moves of all games in which it is to move as one batch. A game
    that goes on for ``MAX_PLIES`` is a draw.

    :param players: The first and the second player
    :param envs: A game for each opening. Who begins has the first seat; players move in turn, unless the game's ``to_play``
        says who is to move
    :param openings: How each game begins
    :return: Results for the first player: 1, 0 or -1, as the sum of the game's rewards has it, shape ``[len(envs)]``
    :raises ValueError: for a game that is over after its opening, though it was not when that was drawn
    """
    gains, seats = np.zeros(len(envs)), [0] * len(envs)
    first: list[int | None] = []

    def step(i: int, move: int) -> bool:
        _, reward, terminated, truncated, _ = envs[i].step(move)
        gains[i] += float(reward) * (1 if seats[i] == 0 else -1)
        if terminated or truncated:
            return True
        seats[i] = 1 - seats[i] if first[i] is None else envs[i].get_wrapper_attr("to_play") ^ first[i]
        return False

    for i, (env, opening) in enumerate(zip(envs, openings, strict=True)):
        env.reset(seed=opening.seed, options=EMPTY_BOARD)
        first.append(wrapper_attr(env, "to_play"))
        if any(step(i, move) for move in opening.moves):
            raise ValueError(
                "The same moves from the same seed led elsewhere: `reset(seed=...)` must decide all chance in a game"
            )
    running = list(range(len(envs)))
    for _ in range(MAX_PLIES):
        over: set[int] = set()
        for player, moving in [(players[seat], [i for i in running if seats[i] == seat]) for seat in (0, 1)]:
            moves = player.act([envs[i] for i in moving]) if moving else ()
            over |= {i for i, move in zip(moving, moves, strict=True) if step(i, int(move))}
        running = [i for i in running if i not in over]
        if not running:
            break
    if running:
        warnings.warn(f"{len(running)} of {len(envs)} games were still running after {MAX_PLIES} plies and count as draws")
        gains[running] = 0
    return np.sign(gains.round(9)).astype(np.int64)


def play_match(
    player: Player,
    opponent: Player,
    make_env: Callable[[], gym.Env],
    num_games: int = 100,
    opening_plies: int = 2,
    seed: int | None = None,
) -> tuple[Score, Score]:
    """
    Play a match: half of the games in either seat, each opening once in both.

    :param player: The player that is scored
    :param opponent: The other player
    :param make_env: Makes the game
    :param num_games: Games in all, an even number
    :param opening_plies: Number of random moves that begin each game; with 0, deterministic players repeat the same game
    :param seed: Seed of the openings, and of all chance in the games
    :return: Scores in the first and in the second seat
    :raises ValueError: for an odd number of games, openings that end the game, and objects that are no players
    """
    check_num_games("num_games", num_games)
    check_player("player", player)
    check_player("opponent", opponent)
    openings = random_openings(make_env, num_games // 2, opening_plies, seed)
    envs = [make_env() for _ in openings]
    scores = []
    for seat, players in enumerate(((player, opponent), (opponent, player))):
        results = play_games(players, envs, openings) * (1 if seat == 0 else -1)
        scores.append(Score(*(int((results == result).sum()) for result in (1, 0, -1))))
    return scores[0], scores[1]


def elo_ratings(points: np.ndarray, games: np.ndarray) -> np.ndarray:
    """
    Maximum-likelihood ratings in Elo's model (Bradley-Terry), by Newton's method. Each pair that has played gets an additional
    draw, so that the rating of a player who won all games is finite.

    :param points: Points of the row player against the column player, shape ``[P, P]``
    :param games: Number of games between both, shape ``[P, P]``
    :return: Ratings, of which the first one is 0, shape ``[P]``
    """
    points, games = points + 0.5 * (games > 0), games + 1.0 * (games > 0)
    ratings = np.zeros(len(points))  # in units of a factor e of the odds
    for _ in range(200):
        expected = 1 / (1 + np.exp(ratings[None] - ratings[:, None]))
        weights = games * expected * (1 - expected)
        step = np.linalg.lstsq(np.diag(weights.sum(1)) - weights, (points - games * expected).sum(1), rcond=None)[0]
        ratings += np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-9:
            break
    return (ratings - ratings[0]) * 400 / np.log(10)
