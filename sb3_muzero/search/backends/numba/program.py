"""
A compiled model as a program, a table of layers, with the layers' implementations and the interpreter that runs them.

The activations of ``LANES`` rows form a group of shape ``[width, LANES]``, in which each row has its own lane. All loops are
vectorised over rows, whatever the widths of the layers, and no sum runs across lanes. Parameters are read in place from
PyTorch's memory. All architectures share one compiled signature, and therefore one entry in the on-disk cache.
"""

from typing import Any, NamedTuple

import numpy as np

from sb3_muzero.common.jit import njit_inline, njit_uncached
from sb3_muzero.search.backends.numba.matmul import linear, linear_of_one_row, linear_of_two_groups
from sb3_muzero.search.backends.numba.simd import (
    FLOAT_BYTES,
    LANES,
    LANES_BYTES,
    absolute,
    exponential,
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
"""Largest number of rows that a program runs on at once."""


class Program(NamedTuple):
    """
    A model as a table of layers.

    :param layers: code, number of outputs, address of the weight and address of the bias (0 for none) of each layer.
        Shape ``[num_layers, 4]``, int64.
    :param constants: constant of each layer, e.g. the epsilon of a layer normalisation. Shape ``[num_layers]``, float32.
    :param sections: index of the first layer of each section (a function of the model), followed by the number of layers.
        Shape ``[num_sections + 1]``, int64.
    :param activation_buffers: activations while the program runs. Row ``r`` of a block is lane ``r % LANES`` of group
        ``r // LANES``. Shape ``[num_buffers, GROUPS, max_width, LANES]``, float32.
    """

    layers: np.ndarray
    constants: np.ndarray
    sections: np.ndarray
    activation_buffers: np.ndarray


ZERO, HALF, ONE, TWO = np.float32(0.0), np.float32(0.5), np.float32(1.0), np.float32(2.0)
INFINITY = np.float32(np.inf)
SQRT_HALF = np.float32(0.70710678)
VARIANCE_EPSILON = np.float32(1e-8)
MISH_HIGH = np.float32(20.0)
# Abramowitz and Stegun 7.1.26: erf to 1.5e-7
ERF_P = np.float32(0.3275911)
ERF_1, ERF_2, ERF_3 = np.float32(0.254829592), np.float32(-0.284496736), np.float32(1.421413741)
ERF_4, ERF_5 = np.float32(-1.453152027), np.float32(1.061405429)


@njit_inline
def sigmoid(x: Any) -> Any:
    """1 / (1 + e ** -x)."""
    return splat(ONE) / (splat(ONE) + exponential(splat(ZERO) - x))


@njit_inline
def gelu(x: Any) -> Any:
    """x * Phi(x), to an error of 1e-7."""
    scaled = absolute(x) * splat(SQRT_HALF)
    t = splat(ONE) / multiply_add(splat(ERF_P), scaled, splat(ONE))
    tail = multiply_add(splat(ERF_5), t, splat(ERF_4))
    tail = multiply_add(tail, t, splat(ERF_3))
    tail = multiply_add(tail, t, splat(ERF_2))
    tail = multiply_add(tail, t, splat(ERF_1))
    tail = splat(HALF) * tail * t * exponential(splat(ZERO) - scaled * scaled)
    return x * where_positive(x, splat(ONE) - tail, tail)


@njit_inline
def mish(x: Any) -> Any:
    """x * tanh(ln(1 + e ** x)) as a ratio of polynomials in e ** x."""
    power = exponential(minimum(splat(MISH_HIGH), x))
    product = power * (power + splat(TWO))
    return x * (product / (product + splat(TWO)))


@njit_inline
def activation(code: int, constant: float, x: Any) -> Any:
    """Apply the activation function with this code to a vector."""
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


@njit_uncached
def activate(code: int, constant: float, width: int, x: int, y: int) -> None:
    """Apply an activation to each unit."""
    for offset in range(0, width * LANES_BYTES, LANES_BYTES):
        store(y + offset, activation(code, constant, load(x + offset)))


@njit_inline
def moment(x: int, end: int, centre: Any, is_second: bool) -> Any:
    """
    Sum over the units of each row of the differences from ``centre``, or of their squares. Uses four partial sums, because
    each addition has to wait for the previous one.
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


@njit_uncached
def layer_norm(width: int, weight: int, bias: int, epsilon: float, x: int, y: int) -> None:
    """
    Scale each row to mean 0 and variance 1.

    :param weight: address of the scale, or 0 for none. Shape ``[width]``.
    :param bias: address of the shift, or 0 for none. Shape ``[width]``.
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


@njit_inline
def largest(x: int, end: int) -> Any:
    """Maximum over the units of each row, which lie between the addresses ``x`` and ``end``; four partial ones."""
    high0 = high1 = high2 = high3 = load(x)
    whole_end = end - (end - x) % (4 * LANES_BYTES)
    for address in range(x, whole_end, 4 * LANES_BYTES):
        high0, high1 = maximum(load(address), high0), maximum(load(address + LANES_BYTES), high1)
        high2, high3 = maximum(load(address + 2 * LANES_BYTES), high2), maximum(load(address + 3 * LANES_BYTES), high3)
    for address in range(whole_end, end, LANES_BYTES):
        high0 = maximum(load(address), high0)
    return maximum(maximum(high0, high1), maximum(high2, high3))


@njit_uncached
def group_softmax(width: int, group_size: int, x: int, y: int) -> None:
    """Softmax over each ``group_size`` units."""
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


@njit_uncached
def min_max(width: int, epsilon: float, x: int, y: int) -> None:
    """Scale each row to [0, 1]; ranges are clamped to at least ``epsilon``."""
    end = width * LANES_BYTES
    high = largest(x, x + end)
    low = load(x)
    for offset in range(LANES_BYTES, end, LANES_BYTES):
        low = minimum(load(x + offset), low)
    scale = splat(ONE) / maximum(splat(epsilon), high - low)
    for offset in range(0, end, LANES_BYTES):
        store(y + offset, (load(x + offset) - low) * scale)


@njit_uncached
def expectation(width: int, grid: int, bounds: int, x: int, y: int) -> None:
    """
    Expected value of a categorical distribution over bins, given its logits.

    :param grid: address of the positions of the bins between the bounds, from 0 to 1. Shape ``[width]``.
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


@njit_uncached
def standardize(width: int, mean: int, variance: int, clip: float, x: int, y: int) -> None:
    """
    Normalise each unit by a given mean and variance.

    :param mean: address of the means. Shape ``[width]``.
    :param variance: address of the variances. Shape ``[width]``.
    :param clip: largest absolute value of the result.
    """
    for unit in range(width):
        scale = splat(ONE) / square_root(load_splat(variance + unit * FLOAT_BYTES) + splat(VARIANCE_EPSILON))
        normal = (load(x + unit * LANES_BYTES) - load_splat(mean + unit * FLOAT_BYTES)) * scale
        store(y + unit * LANES_BYTES, minimum(splat(clip), maximum(splat(-clip), normal)))


@njit_uncached
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


@njit_uncached
def apply(program: Program, section: int, num_rows: int, width: int, source: int, target: int) -> int:
    """
    Run one section of a program on a block of rows.

    :param program: the program.
    :param section: index of the section.
    :param num_rows: number of rows, at most ``BLOCK``.
    :param width: number of inputs.
    :param source: index of the activation buffer with the inputs, which are not changed.
    :param target: index of the first of two activation buffers to work in.
    :return: index of the activation buffer with the outputs.
    """
    start = program.activation_buffers.ctypes.data
    group_bytes = program.activation_buffers.shape[2] * LANES_BYTES
    buffer_bytes = GROUPS * group_bytes
    packed = start + (program.activation_buffers.shape[0] - 1) * buffer_bytes
    for index in range(program.sections[section], program.sections[section + 1]):
        code, outputs = program.layers[index, CODE], program.layers[index, WIDTH]
        weight, bias = program.layers[index, WEIGHT], program.layers[index, BIAS]
        constant = program.constants[index]
        buffer = target + 1 if source == target else target
        x, y = start + source * buffer_bytes, start + buffer * buffer_bytes
        if code == LINEAR and num_rows == 1:
            linear_of_one_row(width, outputs, weight, bias, x, y, packed)
        elif code == LINEAR and num_rows > LANES:
            linear_of_two_groups(width, outputs, weight, bias, x, y, group_bytes)
        else:
            for offset in range(0, group_bytes * (1 + (num_rows - 1) // LANES), group_bytes):
                apply_to_group(code, constant, width, outputs, weight, bias, x + offset, y + offset)
        source, width = buffer, outputs
    return source
