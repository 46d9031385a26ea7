"""
The layers of an MLP in compiled code, and the interpreter that runs a table of them.

Activations of ``LANES`` rows lie together, ``[width, LANES]``, and each row keeps to its lane: every loop is vectorised over
rows whatever the widths, no sum runs across lanes, and a weight once read serves all of them. Parameters are read in place
from PyTorch's memory. One signature fits every architecture, so the disk cache serves all models.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from sb3_muzero.common.jit import OPTIONS
from sb3_muzero.search.backends.numba.matmul import linear, linear_of_one_row, linear_of_two_groups
from sb3_muzero.search.backends.numba.simd import (
    FLOAT_BYTES,
    LANES,
    LANES_BYTES,
    absolute,
    exponential,
    inlined,
    load,
    load_splat,
    maximum,
    minimum,
    multiply_add,
    splat,
    square_root,
    store,
    where_positive,
)

# Codes of the layers
LINEAR, LAYER_NORM, GROUP_SOFTMAX, MINMAX, EXPECTATION, STANDARDIZE = range(6)
RELU, TANH, SILU, ELU, GELU, LEAKY_RELU, SIGMOID, MISH = range(6, 14)

# Columns of ``Program.layers``
CODE, WIDTH, WEIGHT, BIAS = range(4)

GROUPS = 2
BLOCK = GROUPS * LANES
"""Rows that a program runs on at once, at most."""

layer: Any = njit(**OPTIONS)


class Program(NamedTuple):
    """
    A model as a table of layers.

    :param layers: code, number of outputs, address of the weight and of the bias (0 for none) of each layer.
        Shape ``[num_layers, 4]``, int64.
    :param constants: the one constant that a layer may have. Shape ``[num_layers]``, float32.
    :param sections: the first layer of each of the model's functions, and the end. Shape ``[num_sections + 1]``, int64.
    :param rooms: where activations are kept while the program runs; row ``r`` of a block is lane ``r % LANES`` of group
        ``r // LANES``. Shape ``[num_rooms, GROUPS, max_width, LANES]``, float32.
    """

    layers: np.ndarray
    constants: np.ndarray
    sections: np.ndarray
    rooms: np.ndarray


ZERO, HALF, ONE, TWO = np.float32(0.0), np.float32(0.5), np.float32(1.0), np.float32(2.0)
INFINITY = np.float32(np.inf)
SQRT_HALF = np.float32(0.70710678)
VARIANCE_EPSILON = np.float32(1e-8)
MISH_HIGH = np.float32(20.0)
# Abramowitz and Stegun 7.1.26: erf to 1.5e-7
ERF_P = np.float32(0.3275911)
ERF_1, ERF_2, ERF_3 = np.float32(0.254829592), np.float32(-0.284496736), np.float32(1.421413741)
ERF_4, ERF_5 = np.float32(-1.453152027), np.float32(1.061405429)


@inlined
def sigmoid(x: Any) -> Any:
    """1 / (1 + e ** -x)."""
    return splat(ONE) / (splat(ONE) + exponential(splat(ZERO) - x))


@inlined
def gelu(x: Any) -> Any:
    """x * Phi(x), the exact one up to 1e-7."""
    scaled = absolute(x) * splat(SQRT_HALF)
    t = splat(ONE) / multiply_add(splat(ERF_P), scaled, splat(ONE))
    tail = multiply_add(splat(ERF_5), t, splat(ERF_4))
    tail = multiply_add(tail, t, splat(ERF_3))
    tail = multiply_add(tail, t, splat(ERF_2))
    tail = multiply_add(tail, t, splat(ERF_1))
    tail = splat(HALF) * tail * t * exponential(splat(ZERO) - scaled * scaled)
    return x * where_positive(x, splat(ONE) - tail, tail)


@inlined
def mish(x: Any) -> Any:
    """x * tanh(ln(1 + e ** x)), as a ratio of polynomials in e ** x."""
    power = exponential(minimum(splat(MISH_HIGH), x))
    product = power * (power + splat(TWO))
    return x * (product / (product + splat(TWO)))


@inlined
def activation(code: int, constant: float, x: Any) -> Any:
    """The activation function of that code."""
    if code == RELU:
        return maximum(splat(ZERO), x)
    if code == SILU:
        return x * sigmoid(x)
    if code == TANH:
        return splat(TWO) * sigmoid(x + x) - splat(ONE)
    if code == GELU:
        return gelu(x)
    if code == ELU:
        return where_positive(x, x, splat(constant) * (exponential(x) - splat(ONE)))
    if code == LEAKY_RELU:
        return where_positive(x, x, splat(constant) * x)
    if code == SIGMOID:
        return sigmoid(x)
    return mish(x)


@layer
def activate(code: int, constant: float, width: int, x: int, y: int) -> None:
    """Apply an activation to each unit."""
    for offset in range(0, width * LANES_BYTES, LANES_BYTES):
        store(y + offset, activation(code, constant, load(x + offset)))


@inlined
def moment(x: int, end: int, centre: Any, is_second: bool) -> Any:
    """
    Sum of the distances from ``centre``, or of their squares, of each row's units. Four partial sums, since each addition
    waits for the one before.
    """
    sum0 = sum1 = sum2 = sum3 = splat(ZERO)
    whole_end = end - (end - x) % (4 * LANES_BYTES)
    for address in range(x, whole_end, 4 * LANES_BYTES):
        unit0, unit1 = load(address) - centre, load(address + LANES_BYTES) - centre
        unit2, unit3 = load(address + 2 * LANES_BYTES) - centre, load(address + 3 * LANES_BYTES) - centre
        sum0, sum1 = sum0 + (unit0 * unit0 if is_second else unit0), sum1 + (unit1 * unit1 if is_second else unit1)
        sum2, sum3 = sum2 + (unit2 * unit2 if is_second else unit2), sum3 + (unit3 * unit3 if is_second else unit3)
    for address in range(whole_end, end, LANES_BYTES):
        unit0 = load(address) - centre
        sum0 = sum0 + (unit0 * unit0 if is_second else unit0)
    return (sum0 + sum1) + (sum2 + sum3)


@layer
def layer_norm(width: int, weight: int, bias: int, epsilon: float, x: int, y: int) -> None:
    """
    Scale each row to mean 0 and variance 1.

    :param weight: address of the factors to multiply by afterwards, or 0.
    :param bias: address of the terms to add afterwards, or 0.
    """
    end = x + width * LANES_BYTES
    inverse_width = splat(ONE / np.float32(width))
    mean = moment(x, end, splat(ZERO), False) * inverse_width
    squares = moment(x, end, mean, True)
    scale = splat(ONE) / square_root(multiply_add(squares, inverse_width, splat(epsilon)))
    for unit in range(width):
        normal = (load(x + unit * LANES_BYTES) - mean) * scale
        if weight != 0:
            normal = normal * load_splat(weight + unit * FLOAT_BYTES)
        if bias != 0:
            normal = normal + load_splat(bias + unit * FLOAT_BYTES)
        store(y + unit * LANES_BYTES, normal)


@inlined
def largest(x: int, end: int) -> Any:
    """The largest unit of each row, from the address ``x`` to the address ``end``; four at a time for the same reason."""
    high0 = high1 = high2 = high3 = load(x)
    whole_end = end - (end - x) % (4 * LANES_BYTES)
    for address in range(x, whole_end, 4 * LANES_BYTES):
        high0, high1 = maximum(load(address), high0), maximum(load(address + LANES_BYTES), high1)
        high2, high3 = maximum(load(address + 2 * LANES_BYTES), high2), maximum(load(address + 3 * LANES_BYTES), high3)
    for address in range(whole_end, end, LANES_BYTES):
        high0 = maximum(load(address), high0)
    return maximum(maximum(high0, high1), maximum(high2, high3))


@layer
def group_softmax(width: int, group_size: int, x: int, y: int) -> None:
    """A softmax over each ``group_size`` units."""
    group_bytes = group_size * LANES_BYTES
    for group in range(0, width * LANES_BYTES, group_bytes):
        high = largest(x + group, x + group + group_bytes)
        total = splat(ZERO)
        for offset in range(group, group + group_bytes, LANES_BYTES):
            power = exponential(load(x + offset) - high)
            store(y + offset, power)
            total = total + power
        scale = splat(ONE) / total
        for offset in range(group, group + group_bytes, LANES_BYTES):
            store(y + offset, load(y + offset) * scale)


@layer
def min_max(width: int, epsilon: float, x: int, y: int) -> None:
    """Scale each row to [0, 1]; a range below ``epsilon`` counts as ``epsilon``."""
    end = width * LANES_BYTES
    high = largest(x, x + end)
    low = load(x)
    for offset in range(LANES_BYTES, end, LANES_BYTES):
        low = minimum(load(x + offset), low)
    scale = splat(ONE) / maximum(splat(epsilon), high - low)
    for offset in range(0, end, LANES_BYTES):
        store(y + offset, (load(x + offset) - low) * scale)


@layer
def expectation(width: int, grid: int, bounds: int, x: int, y: int) -> None:
    """
    The mean of a softmax over bins.

    :param grid: address of the bins' places between the bounds, from 0 to 1. Shape ``[width]``.
    :param bounds: address of the lowest and the highest bin. Shape ``[2]``.
    """
    high = largest(x, x + width * LANES_BYTES)
    total = weighted = splat(ZERO)
    for unit in range(width):
        power = exponential(load(x + unit * LANES_BYTES) - high)
        total = total + power
        weighted = multiply_add(power, load_splat(grid + unit * FLOAT_BYTES), weighted)
    low = load_splat(bounds)
    store(y, low + (load_splat(bounds + FLOAT_BYTES) - low) * (weighted / total))


@layer
def standardize(width: int, mean: int, variance: int, clip: float, x: int, y: int) -> None:
    """
    Scale each unit by given statistics.

    :param mean: address of the means. Shape ``[width]``.
    :param variance: address of the variances. Shape ``[width]``.
    :param clip: largest absolute value afterwards.
    """
    for unit in range(width):
        scale = splat(ONE) / square_root(load_splat(variance + unit * FLOAT_BYTES) + splat(VARIANCE_EPSILON))
        normal = (load(x + unit * LANES_BYTES) - load_splat(mean + unit * FLOAT_BYTES)) * scale
        store(y + unit * LANES_BYTES, minimum(splat(clip), maximum(splat(-clip), normal)))


@layer
def apply_to_group(code: int, constant: float, width: int, outputs: int, weight: int, bias: int, x: int, y: int) -> None:
    """Run one layer on one group of rows."""
    if code == LINEAR:
        linear(width, outputs, weight, bias, x, y)
    elif code == LAYER_NORM:
        layer_norm(width, weight, bias, constant, x, y)
    elif code == GROUP_SOFTMAX:
        group_softmax(width, np.int64(constant), x, y)
    elif code == MINMAX:
        min_max(width, constant, x, y)
    elif code == EXPECTATION:
        expectation(width, weight, bias, x, y)
    elif code == STANDARDIZE:
        standardize(width, weight, bias, constant, x, y)
    else:
        activate(code, constant, width, x, y)


@layer
def apply(program: Program, section: int, num_rows: int, width: int, source: int, target: int) -> int:
    """
    Run one section of the program on a block of rows.

    :param section: number of the section.
    :param num_rows: number of rows, at most ``BLOCK``.
    :param width: number of inputs.
    :param source: number of the room with the inputs, which stay as they are.
    :param target: number of the first of two rooms to work in.
    :return: number of the room with the outputs.
    """
    start = program.rooms.ctypes.data
    group_bytes = program.rooms.shape[2] * LANES_BYTES
    room_bytes = GROUPS * group_bytes
    packed = start + (program.rooms.shape[0] - 1) * room_bytes
    for index in range(program.sections[section], program.sections[section + 1]):
        code, outputs = program.layers[index, CODE], program.layers[index, WIDTH]
        weight, bias = program.layers[index, WEIGHT], program.layers[index, BIAS]
        constant = program.constants[index]
        room = target + 1 if source == target else target
        x, y = start + source * room_bytes, start + room * room_bytes
        if code == LINEAR and num_rows == 1:
            linear_of_one_row(width, outputs, weight, bias, x, y, packed)
        elif code == LINEAR and num_rows > LANES:
            linear_of_two_groups(width, outputs, weight, bias, x, y, group_bytes)
        else:
            for offset in range(0, group_bytes * (1 + (num_rows - 1) // LANES), group_bytes):
                apply_to_group(code, constant, width, outputs, weight, bias, x + offset, y + offset)
        source, width = room, outputs
    return source
