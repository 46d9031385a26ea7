"""
Linear layers, y = W x + b, for a group of ``LANES`` rows, for two groups at once, and for a single row.

Weights are read in place from PyTorch's memory. The variants differ in what they keep in registers.
"""

import numpy as np

from sb3_muzero.common.jit import njit_uncached
from sb3_muzero.search.backends.numba.simd import (
    FLOAT_BYTES,
    LANES,
    LANES_BYTES,
    add_product,
    load,
    load_number,
    load_splat,
    multiply_add,
    output_numbers,
    splat,
    store,
    store_number,
    strided,
    total,
)

ZERO, ONE = np.float32(0.0), np.float32(1.0)
# Outputs that are computed at once
FOUR, SIX, EIGHT = tuple(range(4)), tuple(range(6)), tuple(range(8))
ZEROS = (ZERO,) * 8


@njit_uncached
def linear(inputs: int, outputs: int, weight: int, bias: int, x: int, y: int) -> None:
    """
    y = W x + b for one group of rows, eight outputs at a time.

    :param inputs: number of inputs.
    :param outputs: number of outputs.
    :param weight: address of W. Shape ``[outputs, inputs]``.
    :param bias: address of b, or 0 for none. Shape ``[outputs]``.
    :param x: address of the inputs. Shape ``[inputs, LANES]``.
    :param y: address of the outputs. Shape ``[outputs, LANES]``.
    """
    for first in range(0, outputs, 8):
        numbers = output_numbers(first, EIGHT, outputs - 1)
        weights = strided(weight, numbers, inputs * FLOAT_BYTES)
        sums = load_splat(strided(bias, numbers, FLOAT_BYTES)) if bias != 0 else splat(ZEROS[:8])
        for i in range(inputs):
            factors = load_splat(strided(weights, i, FLOAT_BYTES))
            sums = multiply_add(factors, load(x + i * LANES_BYTES), sums)
        store(strided(y, numbers, LANES_BYTES), sums)


@njit_uncached
def linear_of_two_groups(inputs: int, outputs: int, weight: int, bias: int, x: int, y: int, group_bytes: int) -> None:
    """
    ``linear`` for two groups of rows, six outputs at a time. Each weight that is loaded is used twice, so that arithmetic
    and not memory is the bottleneck.

    :param group_bytes: bytes from the first group to the second, of inputs and outputs.
    """
    for first in range(0, outputs, 6):
        numbers = output_numbers(first, SIX, outputs - 1)
        weights = strided(weight, numbers, inputs * FLOAT_BYTES)
        sums = load_splat(strided(bias, numbers, FLOAT_BYTES)) if bias != 0 else splat(ZEROS[:6])
        others = sums
        for i in range(inputs):
            factors = load_splat(strided(weights, i, FLOAT_BYTES))
            sums = multiply_add(factors, load(x + i * LANES_BYTES), sums)
            others = multiply_add(factors, load(x + group_bytes + i * LANES_BYTES), others)
        store(strided(y, numbers, LANES_BYTES), sums)
        store(strided(y + group_bytes, numbers, LANES_BYTES), others)


@njit_uncached
def linear_of_one_row(inputs: int, outputs: int, weight: int, bias: int, x: int, y: int, packed: int) -> None:
    """
    ``linear`` for the row in the first lane, as dot products over the inputs. The results fill all lanes.

    :param packed: address of a scratch buffer for the row's inputs. Shape ``[inputs]``.
    """
    for i in range(inputs):
        store_number(packed + i * FLOAT_BYTES, load_number(x + i * LANES_BYTES))
    end, whole = inputs * FLOAT_BYTES, inputs // LANES * LANES_BYTES
    for first in range(0, outputs, 4):
        numbers = output_numbers(first, FOUR, outputs - 1)
        weights = strided(weight, numbers, inputs * FLOAT_BYTES)
        vectors = splat(ZEROS[:4])
        for offset in range(0, whole, LANES_BYTES):
            vectors = multiply_add(load(strided(weights, offset, 1)), load(packed + offset), vectors)
        sums = total(vectors)
        for offset in range(whole, end, FLOAT_BYTES):
            sums = add_product(load_number(strided(weights, offset, 1)), load_number(packed + offset), sums)
        if bias != 0:
            sums = add_product(load_number(strided(bias, numbers, FLOAT_BYTES)), ONE, sums)
        store(strided(y, numbers, LANES_BYTES), splat(sums))
