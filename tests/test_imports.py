"""What is imported by whom: no feature needs the libraries of another."""

import builtins
import json
import subprocess
import sys

import pytest

from sb3_muzero import callbacks
from sb3_muzero.games.adapters import from_open_spiel, from_pettingzoo

HEAVY = {"wandb", "matplotlib", "PIL", "pandas", "ray"}
SCRIPT = """
import json, sys
import sb3_muzero
loaded = [sorted(sys.modules)]
from sb3_muzero.callbacks import ResumableCheckpointCallback
loaded.append(sorted(sys.modules))
from sb3_muzero.callbacks import DiagnosticsCallback, SelfPlayEvalCallback
loaded.append(sorted(sys.modules))
from sb3_muzero.callbacks import MuZeroWandbCallback
loaded.append(sorted(sys.modules))
print(json.dumps(loaded))
"""


def test_only_what_draws_imports_what_it_draws_with():
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    package, checkpoints, diagnostics, pictures = (set(names) for names in json.loads(result.stdout))
    assert package & HEAVY == checkpoints & HEAVY == diagnostics & HEAVY == set()
    assert {"wandb", "matplotlib", "PIL"} <= pictures
    assert "sb3_muzero.games" not in checkpoints


def test_callbacks_are_found_by_name():
    assert dir(callbacks) == sorted(callbacks.__all__)
    for name in callbacks.__all__:
        assert getattr(callbacks, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'EvalCallback'"):
        callbacks.EvalCallback  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'EvalCallback'"):
        from sb3_muzero.callbacks import EvalCallback  # noqa: F401


@pytest.fixture
def hide(monkeypatch):
    """Makes a library one that is not installed."""

    def hide_module(hidden: str, *importers: str) -> None:
        original = builtins.__import__

        def missing(name, *args, **kwargs):
            if name.partition(".")[0] == hidden:
                raise ModuleNotFoundError(f"No module named {hidden!r}", name=hidden)
            return original(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", missing)
        monkeypatch.setitem(sys.modules, hidden, None)
        for name in [name for name in sys.modules if name.startswith((f"{hidden}.", *importers))]:
            monkeypatch.delitem(sys.modules, name)

    return hide_module


@pytest.mark.parametrize(
    "library, module, extra",
    [("rl_zoo3", "sb3_muzero.zoo", "zoo"), ("minatar", "sb3_muzero.envs.minatar", "comparisons")],
)
def test_a_missing_extra_says_its_command(library, module, extra, hide):
    hide(library, module)
    with pytest.raises(ImportError, match=rf'{library}.*: pip install "sb3_muzero\[{extra}\]"'):
        __import__(module)


@pytest.mark.parametrize(
    "library, make", [("pettingzoo", lambda: from_pettingzoo("tictactoe_v3")), ("pyspiel", lambda: from_open_spiel("hex"))]
)
def test_a_missing_library_of_games_says_its_command(library, make, hide):
    hide(library)
    with pytest.raises(ImportError, match=rf'{library}.*: pip install "sb3_muzero\[games\]"'):
        make()
