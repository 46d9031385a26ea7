"""SIMD for Numba: a vector of ``LANES`` float32 numbers as a type with arithmetic, loads, stores and transposes."""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.core.cgutils import get_or_insert_function
from numba.extending import models, overload, register_model

from sb3_muzero.common.jit import njit_inline, njit_uncached

LANES = 8
"""Numbers per vector: one AVX register. LLVM uses several registers where they are narrower."""

FLOAT_BYTES = 4
LANES_BYTES = FLOAT_BYTES * LANES

FLOAT = ir.FloatType()
INT32 = ir.IntType(32)
VECTOR = ir.VectorType(FLOAT, LANES)
INT_VECTOR = ir.VectorType(INT32, LANES)

intrinsic: Any = extending.intrinsic  # whose type hints describe the decorated function


class LanesType(types.Type):
    """Numba type of a vector of ``LANES`` float32 numbers."""

    def __init__(self) -> None:
        super().__init__(name=f"Lanes({LANES})")


lanes = LanesType()


@register_model(LanesType)
class LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    """Data model of ``LanesType``: an LLVM vector."""

    def __init__(self, manager: Any, numba_type: LanesType) -> None:
        super().__init__(manager, numba_type, VECTOR)


def _elementwise(arity: int, instruction: Callable[..., Any]) -> Any:
    """
    :param arity: number of operands.
    :param instruction: ``instruction(builder, *operands)`` emits the LLVM instruction.
    :return: an intrinsic that takes that many vectors.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return instruction(builder, *args)

    if arity == 1:
        return intrinsic(lambda typing, a: (lanes(lanes), codegen))
    if arity == 2:
        return intrinsic(lambda typing, a, b: (lanes(lanes, lanes), codegen))
    return intrinsic(lambda typing, a, b, c: (lanes(lanes, lanes, lanes), codegen))


def _llvm(name: str, arity: int) -> Any:
    """
    :param name: name of an LLVM intrinsic.
    :param arity: number of operands.
    :return: a Numba intrinsic that takes that many vectors.
    """

    def call(builder: Any, *args: Any) -> Any:
        function_type = ir.FunctionType(VECTOR, [VECTOR] * arity)
        return builder.call(get_or_insert_function(builder.module, function_type, f"{name}.v{LANES}f32"), args)

    return _elementwise(arity, call)


def _power_of_two(builder: Any, exponent: Any) -> Any:
    """2 ** exponent for integral exponents from -126 to 127, by setting the exponent bits of a float32."""
    integer = builder.add(builder.fptosi(exponent, INT_VECTOR), ir.Constant(INT_VECTOR, [127] * LANES))
    return builder.bitcast(builder.shl(integer, ir.Constant(INT_VECTOR, [23] * LANES)), VECTOR)


# If an operand is NaN, both return the second one
maximum = _elementwise(2, lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))
minimum = _elementwise(2, lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b))
# a where c > 0, b elsewhere
where_positive = _elementwise(
    3, lambda builder, c, a, b: builder.select(builder.fcmp_ordered(">", c, ir.Constant(VECTOR, [0.0] * LANES)), a, b)
)
absolute = _llvm("llvm.fabs", 1)
square_root = _llvm("llvm.sqrt", 1)
rint = _llvm("llvm.rint", 1)
multiply_add = _llvm("llvm.fmuladd", 3)
power_of_two = _elementwise(1, _power_of_two)


def _shuffle(first: int) -> Any:
    order = ir.Constant(INT_VECTOR, [lane for i in range(first, first + LANES // 2) for lane in (i, LANES + i)])
    return _elementwise(2, lambda builder, a, b: builder.shuffle_vector(a, b, order))


# Interleave the lower or the upper halves of a and b: a0 b0 a1 b1 ...
interleave_low = _shuffle(0)
interleave_high = _shuffle(LANES // 2)


def _overload_operator(function: Any, instruction: str) -> None:
    operation = _elementwise(2, lambda builder, a, b: getattr(builder, instruction)(a, b))

    def implement(a, b):  # type: ignore[no-untyped-def]  # numba compares the signatures
        if isinstance(a, LanesType) and isinstance(b, LanesType):
            return lambda a, b: operation(a, b)
        return None

    overload(function)(implement)


_overload_operator(operator.add, "fadd")
_overload_operator(operator.sub, "fsub")
_overload_operator(operator.mul, "fmul")
_overload_operator(operator.truediv, "fdiv")


def _splat(builder: Any, scalar: Any) -> Any:
    vector = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), scalar, INT32(0))
    return builder.shuffle_vector(vector, ir.Constant(VECTOR, ir.Undefined), ir.Constant(INT_VECTOR, [0] * LANES))


@intrinsic
def splat(typing: Any, number: Any) -> Any:
    """The same number in every lane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat(builder, args[0])

    return lanes(types.float32), codegen


@intrinsic
def load_splat(typing: Any, address: Any) -> Any:
    """The float32 at an address in every lane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat(builder, builder.load(builder.inttoptr(args[0], FLOAT.as_pointer()), align=4))

    return lanes(types.int64), codegen


@intrinsic
def load(typing: Any, address: Any) -> Any:
    """The ``LANES`` float32 that start at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], VECTOR.as_pointer()), align=4)

    return lanes(types.int64), codegen


@intrinsic
def store(typing: Any, address: Any, value: Any) -> Any:
    """Write ``LANES`` float32 to an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], VECTOR.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, lanes), codegen


@intrinsic
def load_number(typing: Any, address: Any) -> Any:
    """The float32 at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], FLOAT.as_pointer()), align=4)

    return types.float32(types.int64), codegen


@intrinsic
def store_number(typing: Any, address: Any, value: Any) -> Any:
    """Write a float32 to an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], FLOAT.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), codegen


@intrinsic
def total(typing: Any, value: Any) -> Any:
    """Sum over the lanes, computed pairwise by halving the vector."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, size = args[0], LANES
        while size > 1:
            size //= 2
            low, high = (
                builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(INT32, size), list(range(first, first + size))))
                for first in (0, size)
            )
            value = builder.fadd(low, high)
        return builder.extract_element(value, INT32(0))

    return types.float32(lanes), codegen


LOG2_E = np.float32(1.44269504)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
EXP_LOW, EXP_HIGH = np.float32(-87.0), np.float32(88.0)
E0, E1, E2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
E3, E4, E5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
ONE = np.float32(1.0)


@njit_inline
def exponential(x: Any) -> Any:
    """e ** x with a relative error of 2e-7 (Cephes' range reduction and polynomial). Clamps x to [-87, 88]; NaN stays NaN."""
    x = minimum(splat(EXP_HIGH), maximum(splat(EXP_LOW), x))
    exponent = rint(x * splat(LOG2_E))
    rest = multiply_add(exponent, splat(-LN2_LOW), multiply_add(exponent, splat(-LN2_HIGH), x))
    result = multiply_add(splat(E0), rest, splat(E1))
    result = multiply_add(result, rest, splat(E2))
    result = multiply_add(result, rest, splat(E3))
    result = multiply_add(result, rest, splat(E4))
    result = multiply_add(result, rest, splat(E5))
    return (multiply_add(result, rest * rest, rest) + splat(ONE)) * power_of_two(exponent)


@njit_inline
def transpose(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> Any:
    """Transpose a matrix of ``LANES`` x ``LANES`` numbers, given and returned as rows."""
    for _ in range(3):  # log2(LANES) rounds
        a, b, c, d, e, f, g, h = (
            interleave_low(a, e),
            interleave_high(a, e),
            interleave_low(b, f),
            interleave_high(b, f),
            interleave_low(c, g),
            interleave_high(c, g),
            interleave_low(d, h),
            interleave_high(d, h),
        )
    return a, b, c, d, e, f, g, h


@njit_uncached
def rows_to_lanes(rows: np.ndarray, first: int, width: int, x: int) -> None:
    """
    Gather ``LANES`` rows into a group of activations, one row per lane.

    :param rows: addresses of the rows. Shape ``[BLOCK]``, int64.
    :param first: index of the first row in ``rows``.
    :param width: units of each row; rounded up to a multiple of ``LANES``.
    :param x: address of the group. Shape ``[width, LANES]``.
    """
    r0, r1, r2, r3 = rows[first], rows[first + 1], rows[first + 2], rows[first + 3]
    r4, r5, r6, r7 = rows[first + 4], rows[first + 5], rows[first + 6], rows[first + 7]
    for unit in range(0, width, LANES):
        i = unit * FLOAT_BYTES
        a, b, c, d = load(r0 + i), load(r1 + i), load(r2 + i), load(r3 + i)
        e, f, g, h = load(r4 + i), load(r5 + i), load(r6 + i), load(r7 + i)
        a, b, c, d, e, f, g, h = transpose(a, b, c, d, e, f, g, h)
        start = x + unit * LANES_BYTES
        store(start, a)
        store(start + LANES_BYTES, b)
        store(start + 2 * LANES_BYTES, c)
        store(start + 3 * LANES_BYTES, d)
        store(start + 4 * LANES_BYTES, e)
        store(start + 5 * LANES_BYTES, f)
        store(start + 6 * LANES_BYTES, g)
        store(start + 7 * LANES_BYTES, h)


@njit_uncached
def lanes_to_rows(x: int, width: int, rows: int, row_bytes: int) -> None:
    """
    Write a group of activations, one row per lane, to ``LANES`` consecutive rows.

    :param x: address of the group. Shape ``[width, LANES]``.
    :param width: units of each row; rounded up to a multiple of ``LANES``.
    :param rows: address of the first row.
    :param row_bytes: bytes from one row to the next.
    """
    for unit in range(0, width, LANES):
        start = x + unit * LANES_BYTES
        a, b, c, d = load(start), load(start + LANES_BYTES), load(start + 2 * LANES_BYTES), load(start + 3 * LANES_BYTES)
        start += 4 * LANES_BYTES
        e, f, g, h = load(start), load(start + LANES_BYTES), load(start + 2 * LANES_BYTES), load(start + 3 * LANES_BYTES)
        a, b, c, d, e, f, g, h = transpose(a, b, c, d, e, f, g, h)
        y = rows + unit * FLOAT_BYTES
        store(y, a)
        store(y + row_bytes, b)
        store(y + 2 * row_bytes, c)
        store(y + 3 * row_bytes, d)
        store(y + 4 * row_bytes, e)
        store(y + 5 * row_bytes, f)
        store(y + 6 * row_bytes, g)
        store(y + 7 * row_bytes, h)
