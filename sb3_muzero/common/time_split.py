"""Wall-clock time of the parts of training."""


class TimeSplit(dict[str, float]):
    """Seconds spent in each part of training. ``environment`` includes the callbacks."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(("environment", "search", "reanalysis", "learning"), 0.0))

    def shares(self) -> dict[str, float]:
        """:return: Fraction of the total time for each part, 0 if no time was recorded"""
        total = sum(self.values())
        return {part: seconds / total if total > 0 else 0.0 for part, seconds in self.items()}
