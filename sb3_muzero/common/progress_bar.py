"""SB3's progress bar with the mean return and the time split."""

import time
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn
from stable_baselines3.common.callbacks import ProgressBarCallback
from stable_baselines3.common.utils import safe_mean
from tqdm.rich import tqdm


class MuZeroProgressBar(ProgressBarCallback):
    """
    Progress bar that shows the steps, the mean return of the latest episodes and the model's time split. In a two-player game
    it leaves out the return, to which both players have added.

    :param compiles: Whether the first search compiles the planner
    """

    EVERY = 0.5  # seconds between two descriptions

    def __init__(self, compiles: bool) -> None:
        super().__init__()
        self._compiles = compiles

    def _on_training_start(self) -> None:
        # tqdm's default columns leave no room for a description in 80 characters
        columns = (BarColumn(bar_width=None), MofNCompleteColumn(), TimeElapsedColumn(), "<", TimeRemainingColumn(),
                   "{task.description}")  # fmt: skip
        self.pbar = tqdm(total=self.locals["total_timesteps"] - self.model.num_timesteps, progress=columns)
        self._described_at = time.monotonic()

    def _on_step(self) -> bool:
        compiles = self._compiles and self._searches_next()
        if compiles or time.monotonic() - self._described_at > self.EVERY:
            self._described_at = time.monotonic()
            self.pbar.set_description_str(self._describe(), refresh=False)
        return super()._on_step()

    def _searches_next(self) -> bool:
        """Whether the next step runs the first search."""
        model: Any = self.model
        return self.num_timesteps >= model.learning_starts and model.time_split["search"] == 0

    def _describe(self) -> str:
        episodes = None if self.model.two_player else self.model.ep_info_buffer  # type: ignore[attr-defined]
        mean_return = f"return {safe_mean([episode['r'] for episode in episodes]):.4g}, " if episodes else ""
        shares: dict[str, float] = self.model.time_split.shares()  # type: ignore[attr-defined]
        if self._compiles and self._searches_next():
            return f"{mean_return}the first search compiles"
        learning = shares["learning"] + shares["reanalysis"]
        return f"{mean_return}env {shares['environment']:.0%} search {shares['search']:.0%} learn {learning:.0%}"
