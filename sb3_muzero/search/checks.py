"""Checks of arguments, roots and model outputs, which compiled code relies on."""

from functools import lru_cache
from math import isfinite
from typing import Any

import numpy as np
import torch

from sb3_muzero.common.numeric import is_integer, is_number
from sb3_muzero.search.state import MAX_VALUE, NODE_SCOPE, TREE_SCOPE, Leaves, Roots, SearchSettings

ARRAYS = (np.ndarray, torch.Tensor)

# The kernels compute in float32, divide by positive settings and multiply by two of them
POSITIVE, NOT_NEGATIVE = (1e-30, 1e18), (0.0, 1e18)
RANGES: dict[str, tuple[float, float]] = {
    "min_qvalue_range": POSITIVE,
    "gumbel_scale": NOT_NEGATIVE,
    "value_scale": NOT_NEGATIVE,
    "maxvisit_init": NOT_NEGATIVE,
    "dirichlet_fraction": (0.0, 1.0),
    "dirichlet_alpha": POSITIVE,
    "pb_c_init": NOT_NEGATIVE,
    "pb_c_base": POSITIVE,
    "temperature": (0.0, np.inf),
}
COUNTS = ("num_simulations", "max_depth", "max_num_considered_actions")
QVALUE_SCOPES = {"node": NODE_SCOPE, "tree": TREE_SCOPE}
SETTINGS = {"qvalue_scope", *COUNTS, *RANGES}
"""Names of all settings of the searches."""


def to_numpy(array: Any) -> np.ndarray:
    """
    :param array: a NumPy array, a tensor on any device, or anything NumPy can read.
    :return: the same on the host, sharing memory where possible.
    """
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        return (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    return np.asarray(array)


def check_dense(name: str, tree: Any) -> None:
    """
    :param name: name of the tree.
    :param tree: an array or tensor, or a nest of such.
    :raises ValueError: for a tensor whose numbers are not in plain memory; the message names it, the kind and the remedy.
    """
    if isinstance(tree, np.ndarray):
        return
    leaves = {name: tree} if isinstance(tree, torch.Tensor) else named_leaves(name, tree)
    for leaf_name, leaf in leaves.items():
        if not isinstance(leaf, torch.Tensor):
            continue
        if leaf.is_nested:
            kind, remedy = "nested", "pad it with `torch.nested.to_padded_tensor`"
        elif leaf.is_meta:
            kind, remedy = "meta", "compute it on a device that holds its numbers"
        elif leaf.is_quantized:
            kind, remedy = "quantized", "convert it with `dequantize()`"
        elif leaf.layout is not torch.strided:
            kind, remedy = str(leaf.layout), "convert it with `to_dense()`"
        else:
            continue
        raise ValueError(f"{leaf_name} must be a dense tensor, got a {kind} one: {remedy}")


def check_shape(name: str, array: Any, shape: tuple[int, ...]) -> None:
    """
    :param name: name of the field.
    :param array: an array or tensor.
    :param shape: the shape it has to have.
    :raises ValueError: if it has another.
    """
    given = getattr(array, "shape", None)
    if given is None or tuple(given) != shape:
        found = f"a {type(array).__name__}" if given is None else f"shape {list(given)}"
        raise ValueError(f"{name} must be an array of shape {list(shape)}, got {found}")


def check_numbers(name: str, array: Any, shape: tuple[int, ...]) -> None:
    """
    :param name: name of the field.
    :param array: an array or tensor.
    :param shape: the shape it has to have.
    :raises ValueError: if the shape differs or these are not real numbers.
    """
    check_shape(name, array, shape)
    is_real = not array.is_complex() if isinstance(array, torch.Tensor) else np.asarray(array).dtype.kind in "fiub"
    if not is_real:
        raise ValueError(f"{name} must hold real numbers, got {array.dtype}")


def to_float32(name: str, array: Any, shape: tuple[int, ...]) -> np.ndarray:
    """
    :param name: name of the field.
    :param array: real numbers.
    :param shape: the shape it has to have.
    :return: a float32 array on the host.
    :raises ValueError: if the shape differs or these are not real numbers in a dense array.
    """
    check_dense(name, array)
    check_numbers(name, array, shape)
    numbers = to_numpy(array)
    if numbers.dtype == np.float32:
        # Read-only arrays have another Numba type and would compile the kernels again
        return numbers if numbers.flags.carray else numbers.copy()
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(numbers, dtype=np.float32)


def check_finite(name: str, array: np.ndarray, first_row: int = 0, largest: float = MAX_VALUE) -> None:
    """
    :param name: name of the field.
    :param array: one row per root. Shape ``[B, ...]``.
    :param first_row: index of the first row, for the message.
    :param largest: largest magnitude allowed.
    :raises ValueError: if a row holds NaN, infinity or a number of larger magnitude.
    """
    _refuse(name, array, ~(np.abs(array) <= largest), f"finite and at most {largest:g} in size", first_row)


def _refuse(name: str, array: np.ndarray, bad: np.ndarray, allowed: str, first_row: int) -> None:
    """:raises ValueError: if a number is bad, naming what is allowed"""
    if bad.any():
        where = tuple(np.argwhere(bad)[0])
        raise ValueError(f"{name} must be {allowed}, got {array[where]} in row {first_row + where[0]}")


def check_prior_logits(
    name: str, prior_logits: np.ndarray, action_masks: np.ndarray | None = None, first_row: int = 0
) -> None:
    """
    :param name: name of the field.
    :param prior_logits: policy logits. Shape ``[B, A]``.
    :param action_masks: True for legal actions; None if all are legal. Shape ``[B, A]``.
    :param first_row: index of the first row, for the message.
    :raises ValueError: if a row holds NaN, plus infinity or a number above ``MAX_VALUE``, or gives no legal action
        a probability.
    """
    allowed = f"minus infinity or finite and at most {MAX_VALUE:g}"
    _refuse(name, prior_logits, ~(prior_logits <= MAX_VALUE), allowed, first_row)
    possible = np.isfinite(prior_logits)
    if action_masks is not None:
        possible &= action_masks
    if not possible.any(axis=1).all():
        row = int(np.argmin(possible.any(axis=1)))
        raise ValueError(
            f"{name} must be finite for at least one legal action of each row, "
            f"got {prior_logits[row].tolist()} in row {first_row + row}"
        )


def check_action_masks(action_masks: Any, batch_size: int, num_actions: int) -> np.ndarray:
    """
    :param action_masks: True (or 1) for legal actions. Shape ``[B, A]`` or, for a single state, ``[A]``.
    :param batch_size: number of states ``B``.
    :param num_actions: number of actions ``A``.
    :return: the masks. Shape ``[B, A]``, bool.
    :raises ValueError: for masks of another shape, with other entries, or without a legal action.
    """
    check_dense("`action_masks`", action_masks)
    masks = to_numpy(action_masks)
    is_single = batch_size == 1 and masks.ndim == 1
    if masks.shape != (shape := (num_actions,) if is_single else (batch_size, num_actions)):
        raise ValueError(f"`action_masks` must have the shape {list(shape)}, got {list(masks.shape)}")
    if masks.dtype != np.bool_ and (masks.dtype.kind not in "iuf" or not np.isin(masks, (0, 1)).all()):
        raise ValueError(f"`action_masks` must be True where an action is legal and False elsewhere, got {action_masks}")
    masks = masks.reshape(batch_size, num_actions).astype(np.bool_)
    if not (some_legal := masks.any(axis=1)).all():
        where = "" if is_single else f" in row {int(some_legal.argmin())}"
        raise ValueError(f"`action_masks` must leave an action to choose from, got none{where}")
    return masks


def named_leaves(name: str, tree: Any) -> dict[str, Any]:
    """
    :param name: name of the tree.
    :param tree: an array or tensor, or a nest of such in dictionaries, tuples and named tuples.
    :return: its leaves in the order of ``tree_map`` by their names, e.g. ``latent['board']`` or ``latent[0]``.
    """
    if isinstance(tree, dict):
        parts = [(f"{name}[{key!r}]", part) for key, part in tree.items()]
    elif isinstance(tree, tuple):
        parts = [(f"{name}[{index}]", part) for index, part in enumerate(tree)]
    else:
        return {name: tree}
    return {leaf_name: leaf for part_name, part in parts for leaf_name, leaf in named_leaves(part_name, part).items()}


def check_root_latent(latent: Any, batch_size: int) -> None:
    """
    :param latent: latent states of the roots.
    :param batch_size: number of roots ``B``.
    :raises ValueError: unless each leaf is an array or tensor with a row for each root, and all of one kind and device.
    """
    check_dense("root's latent", latent)
    leaves = named_leaves("root's latent", latent)
    for name, leaf in leaves.items():
        if not isinstance(leaf, ARRAYS) or tuple(leaf.shape[:1]) != (batch_size,):
            given = getattr(leaf, "shape", type(leaf).__name__)
            raise ValueError(f"{name} must be an array or tensor of shape [{batch_size}, ...], got {given}")
    if len(leaves) != 1:
        places = {str(leaf.device) if isinstance(leaf, torch.Tensor) else "NumPy" for leaf in leaves.values()}
        if len(places) != 1:
            raise ValueError(f"root's latent must be of NumPy arrays or of tensors on one device, got {sorted(places)}")


def check_roots(roots: Roots, settings: SearchSettings) -> None:
    """
    :param roots: roots.
    :param settings: settings of the search.
    :raises ValueError: naming the field and the row with invalid numbers.
    """
    shape = (-1, settings.num_actions)
    check_prior_logits("root's prior_logits", roots.prior_logits.reshape(shape), roots.action_masks.reshape(shape))
    check_finite("root's value", roots.value)


def check_leaves(leaves: Leaves, first_row: int = 0) -> None:
    """
    :param leaves: the model's output for one simulation.
    :param first_row: root of the first leaf.
    :raises ValueError: naming the field and the row with invalid numbers.
    """
    check_finite("recurrent_fn's reward", leaves.reward, first_row)
    check_finite("recurrent_fn's discount", leaves.discount, first_row, largest=1.0)
    check_finite("recurrent_fn's value", leaves.value, first_row)
    check_prior_logits("recurrent_fn's prior_logits", leaves.prior_logits, first_row=first_row)


def check_setting(name: str, value: Any) -> Any:
    """
    :param name: name of a setting of a search, one of ``SETTINGS``.
    :param value: what was given.
    :return: the setting as the kernels take it.
    :raises ValueError: naming the setting, what was given and what is allowed.
    """
    try:
        return _check_setting(name, value)
    except TypeError:  # it cannot be hashed
        return _check_setting.__wrapped__(name, value)


@lru_cache(maxsize=256, typed=True)
def _check_setting(name: str, value: Any) -> Any:
    """``check_setting``, cached: every search checks its settings."""
    if name == "qvalue_scope":
        if value not in QVALUE_SCOPES:
            raise ValueError(f"`qvalue_scope` must be one of {sorted(QVALUE_SCOPES)}, got {value!r}")
        return QVALUE_SCOPES[value]
    if name in COUNTS:
        if not (is_integer(value) and 1 <= value < 2**31):
            raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}")
        return int(value)
    low, high = RANGES[name]
    if not (is_number(value) and isfinite(value) and low <= value <= high):
        allowed = f"at least {low:g}" + (f" and at most {high:g}" if isfinite(high) else "")
        raise ValueError(f"`{name}` must be a number {allowed}, got {value!r}")
    return float(value)


def check_generator(generator: Any) -> Any:
    """
    :param generator: source of randomness, or None.
    :return: the generator, or NumPy's global state for None.
    :raises ValueError: if it is neither.
    """
    if generator is None:
        return np.random
    if not isinstance(generator, np.random.Generator):
        raise ValueError(f"`generator` must be a numpy.random.Generator or None, got {generator!r}")
    return generator
