"""Compiled functions on disk: never out of date, and not needed."""

from sb3_muzero.common import jit
from sb3_muzero.search.backends.numba.fused import evaluate, run_simulations
from sb3_muzero.search.kernels import expand_and_backup, initialize_roots, select_leaves, select_root_actions


def test_every_kernel_on_disk_belongs_to_the_present_sources():
    for compiled in (initialize_roots, select_leaves, expand_and_backup, select_root_actions, evaluate, run_simulations):
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
