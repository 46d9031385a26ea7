"""Batched planning over a learned model: MuZero and Gumbel MuZero search. Knows arrays and a model, nothing of SB3."""

from sb3_muzero.search.backends.numba.compiled_model import CompiledModel
from sb3_muzero.search.backends.numba.fused import is_cached
from sb3_muzero.search.backends.snapshot import UnsupportedModelError
from sb3_muzero.search.policies import gumbel_muzero_search, muzero_search
from sb3_muzero.search.tree import Tree
from sb3_muzero.search.types import RecurrentFn, RecurrentOutput, RootOutput, SearchOutput

__all__ = [
    "CompiledModel",
    "RecurrentFn",
    "RecurrentOutput",
    "RootOutput",
    "SearchOutput",
    "Tree",
    "UnsupportedModelError",
    "gumbel_muzero_search",
    "is_cached",
    "muzero_search",
]
