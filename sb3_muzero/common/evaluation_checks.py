"""Warnings for evaluations that do not fit: without action masks, or of two-player games with one return for both players."""

from collections.abc import Iterator
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, EvalCallback

from sb3_muzero.common.vec_env_checks import is_two_player

MATCHES = "use `sb3_muzero.callbacks.SelfPlayEvalCallback` and `sb3_muzero.games.match.play_match`"

ONE_RETURN = (
    "adds up the rewards of both players, which gives 1.0 for any decided game, and SB3's own takes illegal moves. To see who "
    f"wins, {MATCHES}"
)


def evaluation_callbacks(callback: BaseCallback) -> Iterator[EvalCallback]:
    """
    :param callback: Callback
    :return: Evaluation callbacks of SB3 and sb3-contrib in it: itself, in a list, or as the child of another
    """
    found = [callback]
    for current in found:  # which grows meanwhile
        if isinstance(current, EvalCallback):
            yield current
        for value in vars(current).values():
            children = value if isinstance(value, list | tuple) else [value]
            found += [child for child in children if isinstance(child, BaseCallback) and child not in found]


def callback_warning(callback: BaseCallback, two_player: bool | None) -> str | None:
    """
    :param callback: What was passed to ``learn``
    :param two_player: Whether the model plays both sides of a game
    :return: Warning of an evaluation callback that can't tell who wins, ``None`` if there is none. One whose environment
        plays the opponent's moves can
    """
    for evaluation in evaluation_callbacks(callback):
        if two_player and is_two_player(evaluation.eval_env):
            return f"{type(evaluation).__name__} does not fit two-player games: it {ONE_RETURN}"
    return None


def predict_warning(model: Any, action_masks: Any, episode_start: Any) -> tuple[str, str | None]:
    """
    :param model: ``MuZero`` model
    :param action_masks: What ``predict`` was given
    :param episode_start: The same; SB3's and sb3-contrib's ``evaluate_policy`` pass it
    :return: Topic and text of a warning, without text if there is none
    """
    if action_masks is None and model.uses_action_masks:
        evaluate = "evaluate with sb3_contrib's MaskableEvalCallback and common.maskable.evaluation"
        return "missing masks", (
            "The model was trained with action masks, but `predict` was given none: it may choose illegal actions. Pass "
            f"`action_masks`, and {f'to evaluate, {MATCHES}' if model.two_player else evaluate}"
        )
    if model.two_player and episode_start is not None:
        return "evaluation", f"Where each step is a move of the next player, `evaluate_policy` {ONE_RETURN}"
    return "evaluation", None
