"""What the time of training goes to."""


class TimeSplit(dict[str, float]):
    """Seconds that went to each part of training; ``environment`` is its steps with the callbacks that follow them."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(("environment", "search", "reanalysis", "learning"), 0.0))

    def shares(self) -> dict[str, float]:
        """:return: The same as shares of their sum, which may be 0"""
        total = sum(self.values())
        return {part: seconds / total if total > 0 else 0.0 for part, seconds in self.items()}
