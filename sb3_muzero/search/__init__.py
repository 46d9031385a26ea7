"""MuZero and Gumbel MuZero search over a learned model, for batches of states. Independent of Stable-Baselines3."""

from sb3_muzero.search.backends.numba.chance_model import CompiledChanceModel
from sb3_muzero.search.backends.numba.compiled_model import CompiledModel
from sb3_muzero.search.backends.numba.fused import is_cached
from sb3_muzero.search.backends.snapshot import UnsupportedModelError
from sb3_muzero.search.gumbel import gumbel_muzero_search
from sb3_muzero.search.loop import Backend
from sb3_muzero.search.puct import muzero_search
from sb3_muzero.search.tree import Tree
from sb3_muzero.search.types import AfterstateOutput, ChanceModel, RecurrentFn, RecurrentOutput, RootOutput, SearchOutput

__all__ = [
    "AfterstateOutput",
    "Backend",
    "ChanceModel",
    "CompiledChanceModel",
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
