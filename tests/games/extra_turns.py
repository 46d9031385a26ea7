"""Two small games with extra turns, and their exact solutions."""

from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np


class Boxes(gym.Env):
    """
    Dots and boxes: players draw lines around boxes in a row. Who completes boxes wins as many points, and moves again.

    :param num_boxes: Boxes in the row
    """

    two_player = True

    def __init__(self, num_boxes: int = 2) -> None:
        self.num_boxes = num_boxes
        self.observation_space = gym.spaces.MultiBinary(3 * num_boxes + 1)
        self.action_space = gym.spaces.Discrete(3 * num_boxes + 1)
        self.history: list[tuple[int, float, bool]] = []  # player, reward and whether the game ended, of all moves ever
        self.lines = np.zeros(3 * num_boxes + 1, np.int8)
        self.to_play = 0

    def observation(self) -> np.ndarray:
        return self.lines.copy()

    def action_masks(self) -> np.ndarray:
        return self.lines == 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.lines = np.zeros_like(self.lines)
        self.to_play = 0
        return self.observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.lines[action] == 0
        before = points_of(tuple(self.lines))
        self.lines[action] = 1
        reward, is_over = float(points_of(tuple(self.lines)) - before), bool(self.lines.all())
        self.history.append((self.to_play, reward, is_over))
        if reward == 0:
            self.to_play = 1 - self.to_play
        return self.observation(), reward, is_over, False, {}


def points_of(lines: tuple[int, ...]) -> int:
    """:return: how many boxes are complete; lines are the tops, the bottoms and the sides of all boxes"""
    n = (len(lines) - 1) // 3
    return sum(lines[i] and lines[n + i] and lines[2 * n + i] and lines[2 * n + i + 1] for i in range(n))


@cache
def values_of_lines(lines: tuple[int, ...], alternating: bool = False) -> tuple[float, ...]:
    """
    :param lines: position.
    :param alternating: whether to err, as if players moved in turn.
    :return: what each move is worth to the mover, as difference of the points to come; minus infinity for drawn lines.
    """
    values = [-np.inf] * len(lines)
    for action in np.flatnonzero(np.array(lines) == 0).tolist():
        after = (*lines[:action], 1, *lines[action + 1 :])
        points = points_of(after) - points_of(lines)
        sign = 1 if points > 0 and not alternating else -1
        future = 0.0 if all(after) else max(values_of_lines(after, alternating))
        values[action] = points + sign * future
    return tuple(values)


class Heap(gym.Env):
    """Take one to three from a heap; who takes the last one wins, and who leaves 1, 5, 9, ... moves again."""

    two_player = True
    observation_space = gym.spaces.Discrete(21)
    action_space = gym.spaces.Discrete(3)
    left, player = 20, 0

    def observation(self) -> int:
        return self.left

    def action_masks(self) -> np.ndarray:
        return np.arange(1, 4) <= self.left

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict]:
        super().reset(seed=seed)
        self.left, self.player = int(self.np_random.integers(12, 21)), 0
        return self.left, {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict]:
        assert self.action_masks()[action]
        self.left -= int(action) + 1
        if self.left % 4 != 1:
            self.player = 1 - self.player
        return self.left, float(self.left == 0), self.left == 0, False, {}


class TellingHeap(Heap):
    """The same, and it says whose turn it is."""

    @property
    def to_play(self) -> int:
        return self.player


@cache
def values_of_heap(left: int, alternating: bool = False) -> tuple[float, ...]:
    """
    :param left: size of the heap.
    :param alternating: whether to err, as if players moved in turn.
    :return: what each move is worth to the mover; minus infinity for illegal ones.
    """
    values = [-np.inf] * 3
    for action in range(min(left, 3)):
        after = left - action - 1
        sign = 1 if after % 4 == 1 and not alternating else -1
        values[action] = sign * max(values_of_heap(after, alternating)) if after > 0 else 1.0
    return tuple(values)


def share_of_errors(moves: np.ndarray) -> float:
    """
    :param moves: for heaps from 1 to 20.
    :return: share of those moves that are not among the best, among heaps where it matters.
    """
    values = [[value for value in values_of_heap(left) if value > -np.inf] for left in range(1, 21)]
    contested = [left for left in range(1, 21) if len(set(values[left - 1])) > 1]
    return float(np.mean([values[left - 1][moves[left - 1]] < max(values[left - 1]) for left in contested]))
