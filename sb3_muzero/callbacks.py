"""
The callbacks of this package, in one place:

- ``ResumableCheckpointCallback`` saves runs that ``checkpointing.resume`` continues
- ``DiagnosticsCallback`` logs errors of the model, the search and the values
- ``MuZeroWandbCallback`` is the same with pictures and videos for Weights & Biases
- ``SelfPlayEvalCallback`` evaluates agents of two-player games

Each is imported on first use, so that none needs the libraries of another.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_muzero.analysis.diagnostics_callback import DiagnosticsCallback
    from sb3_muzero.analysis.wandb_callback import MuZeroWandbCallback
    from sb3_muzero.checkpointing.callback import ResumableCheckpointCallback
    from sb3_muzero.games.self_play import SelfPlayEvalCallback

__all__ = ["DiagnosticsCallback", "MuZeroWandbCallback", "ResumableCheckpointCallback", "SelfPlayEvalCallback"]

_MODULES = {
    "DiagnosticsCallback": "sb3_muzero.analysis.diagnostics_callback",
    "MuZeroWandbCallback": "sb3_muzero.analysis.wandb_callback",
    "ResumableCheckpointCallback": "sb3_muzero.checkpointing.callback",
    "SelfPlayEvalCallback": "sb3_muzero.games.self_play",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
