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
    load,
    load_number,
    load_splat,
    multiply_add,
    splat,
    store,
    store_number,
    total,
)

ZERO = np.float32(0.0)


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
    stride = inputs * FLOAT_BYTES
    last = outputs - 1
    for first in range(0, outputs, 8):
        # Past the end, the last output is computed again
        o1, o2, o3, o4 = min(first + 1, last), min(first + 2, last), min(first + 3, last), min(first + 4, last)
        o5, o6, o7 = min(first + 5, last), min(first + 6, last), min(first + 7, last)
        w0, w1, w2, w3 = weight + first * stride, weight + o1 * stride, weight + o2 * stride, weight + o3 * stride
        w4, w5, w6, w7 = weight + o4 * stride, weight + o5 * stride, weight + o6 * stride, weight + o7 * stride
        y0 = y1 = y2 = y3 = y4 = y5 = y6 = y7 = splat(ZERO)
        if bias != 0:
            y0, y1 = load_splat(bias + first * FLOAT_BYTES), load_splat(bias + o1 * FLOAT_BYTES)
            y2, y3 = load_splat(bias + o2 * FLOAT_BYTES), load_splat(bias + o3 * FLOAT_BYTES)
            y4, y5 = load_splat(bias + o4 * FLOAT_BYTES), load_splat(bias + o5 * FLOAT_BYTES)
            y6, y7 = load_splat(bias + o6 * FLOAT_BYTES), load_splat(bias + o7 * FLOAT_BYTES)
        for i in range(inputs):
            offset = i * FLOAT_BYTES
            unit = load(x + i * LANES_BYTES)
            y0 = multiply_add(load_splat(w0 + offset), unit, y0)
            y1 = multiply_add(load_splat(w1 + offset), unit, y1)
            y2 = multiply_add(load_splat(w2 + offset), unit, y2)
            y3 = multiply_add(load_splat(w3 + offset), unit, y3)
            y4 = multiply_add(load_splat(w4 + offset), unit, y4)
            y5 = multiply_add(load_splat(w5 + offset), unit, y5)
            y6 = multiply_add(load_splat(w6 + offset), unit, y6)
            y7 = multiply_add(load_splat(w7 + offset), unit, y7)
        store(y + first * LANES_BYTES, y0)
        store(y + o1 * LANES_BYTES, y1)
        store(y + o2 * LANES_BYTES, y2)
        store(y + o3 * LANES_BYTES, y3)
        store(y + o4 * LANES_BYTES, y4)
        store(y + o5 * LANES_BYTES, y5)
        store(y + o6 * LANES_BYTES, y6)
        store(y + o7 * LANES_BYTES, y7)


@njit_uncached
def linear_of_two_groups(inputs: int, outputs: int, weight: int, bias: int, x: int, y: int, group_bytes: int) -> None:
    """
    ``linear`` for two groups of rows, six outputs at a time. Each weight that is loaded is used twice, so that arithmetic
    and not memory is the bottleneck.

    :param group_bytes: bytes from the first group to the second, of inputs and outputs.
    """
    stride = inputs * FLOAT_BYTES
    last = outputs - 1
    for first in range(0, outputs, 6):
        o1, o2, o3 = min(first + 1, last), min(first + 2, last), min(first + 3, last)
        o4, o5 = min(first + 4, last), min(first + 5, last)
        w0, w1, w2 = weight + first * stride, weight + o1 * stride, weight + o2 * stride
        w3, w4, w5 = weight + o3 * stride, weight + o4 * stride, weight + o5 * stride
        y0 = y1 = y2 = y3 = y4 = y5 = splat(ZERO)
        if bias != 0:
            y0, y1 = load_splat(bias + first * FLOAT_BYTES), load_splat(bias + o1 * FLOAT_BYTES)
            y2, y3 = load_splat(bias + o2 * FLOAT_BYTES), load_splat(bias + o3 * FLOAT_BYTES)
            y4, y5 = load_splat(bias + o4 * FLOAT_BYTES), load_splat(bias + o5 * FLOAT_BYTES)
        z0, z1, z2, z3, z4, z5 = y0, y1, y2, y3, y4, y5
        for i in range(inputs):
            offset = i * FLOAT_BYTES
            unit, other = load(x + i * LANES_BYTES), load(x + group_bytes + i * LANES_BYTES)
            factor = load_splat(w0 + offset)
            y0, z0 = multiply_add(factor, unit, y0), multiply_add(factor, other, z0)
            factor = load_splat(w1 + offset)
            y1, z1 = multiply_add(factor, unit, y1), multiply_add(factor, other, z1)
            factor = load_splat(w2 + offset)
            y2, z2 = multiply_add(factor, unit, y2), multiply_add(factor, other, z2)
            factor = load_splat(w3 + offset)
            y3, z3 = multiply_add(factor, unit, y3), multiply_add(factor, other, z3)
            factor = load_splat(w4 + offset)
            y4, z4 = multiply_add(factor, unit, y4), multiply_add(factor, other, z4)
            factor = load_splat(w5 + offset)
            y5, z5 = multiply_add(factor, unit, y5), multiply_add(factor, other, z5)
        store(y + first * LANES_BYTES, y0)
        store(y + group_bytes + first * LANES_BYTES, z0)
        store(y + o1 * LANES_BYTES, y1)
        store(y + group_bytes + o1 * LANES_BYTES, z1)
        store(y + o2 * LANES_BYTES, y2)
        store(y + group_bytes + o2 * LANES_BYTES, z2)
        store(y + o3 * LANES_BYTES, y3)
        store(y + group_bytes + o3 * LANES_BYTES, z3)
        store(y + o4 * LANES_BYTES, y4)
        store(y + group_bytes + o4 * LANES_BYTES, z4)
        store(y + o5 * LANES_BYTES, y5)
        store(y + group_bytes + o5 * LANES_BYTES, z5)


@njit_uncached
def linear_of_one_row(inputs: int, outputs: int, weight: int, bias: int, x: int, y: int, packed: int) -> None:
    """
    ``linear`` for the row in the first lane, as dot products over the inputs. The results fill all lanes.

    :param packed: address of a scratch buffer for the row's inputs. Shape ``[inputs]``.
    """
    for i in range(inputs):
        store_number(packed + i * FLOAT_BYTES, load_number(x + i * LANES_BYTES))
    stride = inputs * FLOAT_BYTES
    whole = inputs // LANES * LANES_BYTES
    last = outputs - 1
    for first in range(0, outputs, 4):
        o1, o2, o3 = min(first + 1, last), min(first + 2, last), min(first + 3, last)
        w0, w1, w2, w3 = weight + first * stride, weight + o1 * stride, weight + o2 * stride, weight + o3 * stride
        y0 = y1 = y2 = y3 = splat(ZERO)
        for offset in range(0, whole, LANES_BYTES):
            units = load(packed + offset)
            y0 = multiply_add(load(w0 + offset), units, y0)
            y1 = multiply_add(load(w1 + offset), units, y1)
            y2 = multiply_add(load(w2 + offset), units, y2)
            y3 = multiply_add(load(w3 + offset), units, y3)
        t0, t1, t2, t3 = total(y0), total(y1), total(y2), total(y3)
        for offset in range(whole, stride, FLOAT_BYTES):
            unit = load_number(packed + offset)
            t0 += load_number(w0 + offset) * unit
            t1 += load_number(w1 + offset) * unit
            t2 += load_number(w2 + offset) * unit
            t3 += load_number(w3 + offset) * unit
        if bias != 0:
            t0 += load_number(bias + first * FLOAT_BYTES)
            t1 += load_number(bias + o1 * FLOAT_BYTES)
            t2 += load_number(bias + o2 * FLOAT_BYTES)
            t3 += load_number(bias + o3 * FLOAT_BYTES)
        store(y + first * LANES_BYTES, splat(t0))
        store(y + o1 * LANES_BYTES, splat(t1))
        store(y + o2 * LANES_BYTES, splat(t2))
        store(y + o3 * LANES_BYTES, splat(t3))
