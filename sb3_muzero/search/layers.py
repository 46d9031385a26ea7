"""
The layers of an MLP in compiled code, and the interpreter that runs a table of them.

Activations of ``LANES`` rows lie together, ``[width, LANES]``, and each row keeps to its lane: every loop is vectorised over
rows whatever the widths, no sum runs across lanes, and a weight once read serves all of them. Parameters are read in place
from PyTorch's memory. One signature fits every architecture, so the disk cache serves all models.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from sb3_muzero.search.kernels import OPTIONS
from sb3_muzero.search.lanes import (
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

FLOAT_BYTES = 4

layer: Any = njit(**OPTIONS)


class Program(NamedTuple):
    """
    A model as a table of layers.

    :param layers: code, number of outputs, address of the weight and of the bias (0 for none) of each layer.
        Shape ``[num_layers, 4]``, int64.
    :param constants: the one constant that a layer may have. Shape ``[num_layers]``, float32.
    :param sections: the first layer of each of the model's functions, and the end. Shape ``[num_sections + 1]``, int64.
    :param rooms: where activations are kept while the program runs. Shape ``[num_rooms, max_width, LANES]``, float32.
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


@layer
def linear(inputs: int, outputs: int, weight: int, bias: int, x: int, y: int) -> None:
    """
    y = W x + b for eight outputs at a time, whose sums stay in registers.

    :param weight: address of W. Shape ``[outputs, inputs]``.
    :param bias: address of b, or 0.
    """
    stride = inputs * FLOAT_BYTES
    last = outputs - 1
    for first in range(0, outputs, 8):
        # Beyond the last output the last one is computed again
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


@layer
def layer_norm(width: int, weight: int, bias: int, epsilon: float, x: int, y: int) -> None:
    """
    Scale each row to mean 0 and variance 1.

    :param weight: address of the factors to multiply by afterwards, or 0.
    :param bias: address of the terms to add afterwards, or 0.
    """
    end = width * LANES_BYTES
    inverse_width = splat(ONE / np.float32(width))
    total = splat(ZERO)
    for offset in range(0, end, LANES_BYTES):
        total = total + load(x + offset)
    mean = total * inverse_width
    squares = splat(ZERO)
    for offset in range(0, end, LANES_BYTES):
        centred = load(x + offset) - mean
        squares = multiply_add(centred, centred, squares)
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
    """The largest unit of each row, from the address ``x`` to the address ``end``."""
    result = load(x)
    for address in range(x + LANES_BYTES, end, LANES_BYTES):
        result = maximum(load(address), result)
    return result


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
def apply(program: Program, section: int, width: int, source: int, target: int) -> int:
    """
    Run one section of the program on ``LANES`` rows.

    :param section: number of the section.
    :param width: number of inputs.
    :param source: number of the room with the inputs, which stay as they are.
    :param target: number of the first of two rooms to work in.
    :return: number of the room with the outputs.
    """
    start = program.rooms.ctypes.data
    room_bytes = program.rooms.shape[1] * LANES_BYTES
    for index in range(program.sections[section], program.sections[section + 1]):
        code, outputs = program.layers[index, CODE], program.layers[index, WIDTH]
        weight, bias = program.layers[index, WEIGHT], program.layers[index, BIAS]
        constant = program.constants[index]
        room = target + 1 if source == target else target
        x, y = start + source * room_bytes, start + room * room_bytes
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
        source, width = room, outputs
    return source
