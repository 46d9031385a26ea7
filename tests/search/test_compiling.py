"""Compiled functions on disk: never out of date, replaced where they are damaged, and not needed."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest

from sb3_muzero.common import jit
from sb3_muzero.search.backends.numba.chance import run_chance_simulations
from sb3_muzero.search.backends.numba.fused import evaluate, run_simulations
from sb3_muzero.search.kernels import expand_and_backup, initialize_roots, select_leaves, select_root_actions


def test_every_kernel_on_disk_belongs_to_the_present_sources():
    steps = initialize_roots, select_leaves, expand_and_backup, select_root_actions
    for compiled in (*steps, evaluate, run_simulations, run_chance_simulations):
        assert compiled._cache._cache_file._source_stamp == jit.SOURCES


def test_other_sources_are_compiled_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))

    def double():
        compiled = jit.njit_cached(twice)
        return compiled(2), sum(compiled.stats.cache_hits.values())

    assert double() == (4, 0)
    assert double() == (4, 1)
    monkeypatch.setattr(jit, "SOURCES", "other")
    assert double() == (4, 0)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "garbage": lambda content: b"garbage" * 100,
    "zeros at the end": lambda content: content[:-99] + bytes(99),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_damaged_files_are_compiled_anew_and_replaced(damage, suffix, tmp_path, monkeypatch):
    """As a power cut or a full disk leaves them."""
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))
    jit.njit_cached(twice)(2)
    (file,) = tmp_path.rglob(f"*{suffix}")
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    with pytest.warns(UserWarning, match=f"Compiled functions in {file.parent} are damaged .*twice") as found:
        compiled = jit.njit_cached(twice)
        assert compiled(2) == 4 and compiled(2.5) == 5.0 and len(compiled.stats.cache_hits) == 0
    assert len(found) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = jit.njit_cached(twice)
        assert compiled(2) == 4 and compiled(2.5) == 5.0 and sum(compiled.stats.cache_hits.values()) == 2


def test_a_file_of_another_process_is_not_taken_for_ones_own(tmp_path, monkeypatch):
    """Two that compile for other types at the same time may choose one name."""
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))
    compiled = jit.njit_cached(twice)
    assert compiled(2) == 4 and compiled(2.5) == 5.0
    first, second = sorted(tmp_path.rglob("*.nbc"))
    first.write_bytes(second.read_bytes())
    compiled = jit.njit_cached(twice)
    assert compiled(2.5) == 5.0 and compiled(2) == 4 and sum(compiled.stats.cache_hits.values()) == 1


@pytest.mark.parametrize("fails", ["save", "load"])
def test_errors_of_the_disk_stop_nothing(fails, tmp_path, monkeypatch):
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))

    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    jit.njit_cached(twice)(2)
    monkeypatch.setattr(jit.IndexDataCacheFile, "_save_data" if fails == "save" else "_load_index", fail)
    with pytest.warns(UserWarning, match="No space left"):
        assert jit.njit_cached(twice)(2.5 if fails == "save" else 2) in (4, 5.0)


def test_without_a_folder_to_write_to_it_compiles_all_the_same(monkeypatch):
    njit = jit.njit

    def without_a_locator(**options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function 'twice': no locator available")
        return njit(**options)

    monkeypatch.setattr(jit, "njit", without_a_locator)
    compiled = jit.njit_cached(twice)
    assert compiled(2) == 4 and not jit.is_on_disk(compiled)


def twice(x):
    return 2 * x


@pytest.fixture(autouse=True)
def _warn_again(monkeypatch):
    monkeypatch.setattr(jit, "_damaged_folders", set())
