"""How everything here is compiled, and when a compiled function on disk is out of date."""

from hashlib import sha256
from pathlib import Path
from typing import Any

from numba import njit

# Nothing that is compiled here allocates; without reference counts (_nrt) it takes half the time, and compiles much faster
OPTIONS: Any = {"nogil": True, "error_model": "numpy", "_nrt": False}

COMPILED = ("compiling", "kernels", "lanes", "layers", "linear", "simulations", "state", "tree")
# Numba itself looks at the date of a function's own file only
SOURCES = sha256(b"".join((Path(__file__).parent / f"{name}.py").read_bytes() for name in COMPILED)).hexdigest()

part: Any = njit(forceinline=True, **OPTIONS)
"""
Compiles a part of kernels. It is inlined: a call of its own would copy the descriptors of all arrays, which takes longer than
most of what is called.
"""


def kernel(function: Any) -> Any:
    """
    Compile a function to be called from Python, and keep it on disk as long as none of the sources changes.

    :param function: the function.
    :return: the compiled one; where numba finds no folder to write to, every process compiles anew.
    """
    try:
        compiled = njit(cache=True, **OPTIONS)(function)
    except RuntimeError:
        return njit(**OPTIONS)(function)
    if (cache_file := _cache_file(compiled)) is not None:
        cache_file._source_stamp = SOURCES
    return compiled


def is_on_disk(compiled: Any) -> bool:
    """
    :param compiled: what ``kernel`` gave.
    :return: whether its first call does not have to wait for the compiler.
    """
    cache_file = _cache_file(compiled)
    return cache_file is not None and bool(cache_file._load_index())


def _cache_file(compiled: Any) -> Any:
    """Numba's inside, which may change."""
    return getattr(compiled._cache, "_cache_file", None)
