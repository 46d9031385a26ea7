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
ALL_LANES = tuple(range(LANES))

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


def _instruction(result: Any, operands: tuple[Any, ...], emit: Callable[..., Any]) -> Any:
    """
    :param result: Numba type of the result.
    :param operands: Numba types of the operands, one to three.
    :param emit: ``emit(builder, *operands)`` emits the LLVM instructions and returns the result.
    :return: an intrinsic. If operands are tuples, the instructions are emitted for each of their elements, and the result is
        a tuple. Loops over registers are unrolled in this way.
    """

    def define(*given: Any) -> tuple[Any, Any]:
        is_tuple = [isinstance(argument, types.UniTuple) for argument in given]
        size = max(argument.count if many else 0 for argument, many in zip(given, is_tuple, strict=True))

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            results = [
                emit(builder, *(builder.extract_value(a, i) if many else a for a, many in zip(args, is_tuple, strict=True)))
                for i in range(size or 1)
            ]
            if result is types.void:
                return context.get_dummy_value()
            return context.make_tuple(builder, signature.return_type, results) if size else results[0]

        takes = [types.UniTuple(kind, size) if many else kind for kind, many in zip(operands, is_tuple, strict=True)]
        returns = types.UniTuple(result, size) if size and result is not types.void else result
        return returns(*takes), codegen

    if len(operands) == 1:
        return intrinsic(lambda typing, a: define(a))
    if len(operands) == 2:
        return intrinsic(lambda typing, a, b: define(a, b))
    return intrinsic(lambda typing, a, b, c: define(a, b, c))


def _llvm(name: str, arity: int) -> Any:
    """
    :param name: name of an LLVM intrinsic.
    :param arity: number of operands.
    :return: a Numba intrinsic that takes that many vectors.
    """

    def call(builder: Any, *args: Any) -> Any:
        function_type = ir.FunctionType(VECTOR, [VECTOR] * arity)
        return builder.call(get_or_insert_function(builder.module, function_type, f"{name}.v{LANES}f32"), args)

    return _instruction(lanes, (lanes,) * arity, call)


def _power_of_two(builder: Any, exponent: Any) -> Any:
    """2 ** exponent for integral exponents from -126 to 127, by setting the exponent bits of a float32."""
    integer = builder.add(builder.fptosi(exponent, INT_VECTOR), ir.Constant(INT_VECTOR, [127] * LANES))
    return builder.bitcast(builder.shl(integer, ir.Constant(INT_VECTOR, [23] * LANES)), VECTOR)


TWO, THREE = (lanes,) * 2, (lanes,) * 3
ZEROS = ir.Constant(VECTOR, [0.0] * LANES)

# If an operand is NaN, both return the second one
maximum = _instruction(lanes, TWO, lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))
minimum = _instruction(lanes, TWO, lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b))
# a where c > 0, b elsewhere
where_positive = _instruction(lanes, THREE, lambda builder, c, a, b: builder.select(builder.fcmp_ordered(">", c, ZEROS), a, b))
absolute = _llvm("llvm.fabs", 1)
square_root = _llvm("llvm.sqrt", 1)
rint = _llvm("llvm.rint", 1)
multiply_add = _llvm("llvm.fmuladd", 3)
power_of_two = _instruction(lanes, (lanes,), _power_of_two)


def _shuffle(first: int) -> Any:
    order = ir.Constant(INT_VECTOR, [lane for i in range(first, first + LANES // 2) for lane in (i, LANES + i)])
    return _instruction(lanes, TWO, lambda builder, a, b: builder.shuffle_vector(a, b, order))


# Interleave the lower or the upper halves of a and b: a0 b0 a1 b1 ...
interleave_low = _shuffle(0)
interleave_high = _shuffle(LANES // 2)


def _overload_operator(function: Any, instruction: str) -> None:
    operation = _instruction(lanes, TWO, lambda builder, a, b: getattr(builder, instruction)(a, b))

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


def _load(kind: ir.Type) -> Callable[..., Any]:
    return lambda builder, address: builder.load(builder.inttoptr(address, kind.as_pointer()), align=4)


def _store(kind: ir.Type) -> Callable[..., Any]:
    return lambda builder, address, value: builder.store(value, builder.inttoptr(address, kind.as_pointer()), align=4)


def _total(builder: Any, value: Any) -> Any:
    """Sum over the lanes, computed pairwise by halving the vector."""
    size = LANES
    while size > 1:
        size //= 2
        low, high = (
            builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(INT32, size), list(range(first, first + size))))
            for first in (0, size)
        )
        value = builder.fadd(low, high)
    return builder.extract_element(value, INT32(0))


def _output_number(builder: Any, first: Any, index: Any, last: Any) -> Any:
    number = builder.add(first, index)
    return builder.select(builder.icmp_signed("<", number, last), number, last)


ADDRESS = types.int64

# The same number in every lane, the float32 at an address in every lane, and the sum over the lanes
splat = _instruction(lanes, (types.float32,), _splat)
load_splat = _instruction(lanes, (ADDRESS,), lambda builder, address: _splat(builder, _load(FLOAT)(builder, address)))
total = _instruction(types.float32, (lanes,), _total)
# The LANES float32 that start at an address
load = _instruction(lanes, (ADDRESS,), _load(VECTOR))
store = _instruction(types.void, (ADDRESS, lanes), _store(VECTOR))
# A float32 at an address
load_number = _instruction(types.float32, (ADDRESS,), _load(FLOAT))
store_number = _instruction(types.void, (ADDRESS, types.float32), _store(FLOAT))
# a * b + c, rounded twice
add_product = _instruction(types.float32, (types.float32,) * 3, lambda builder, a, b, c: builder.fadd(c, builder.fmul(a, b)))
# For integers: first + index, at most the last one; and start + index * stride
output_numbers = _instruction(ADDRESS, (ADDRESS,) * 3, _output_number)
strided = _instruction(
    ADDRESS, (ADDRESS,) * 3, lambda builder, start, index, stride: builder.add(start, builder.mul(index, stride))
)

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
def transpose(rows: Any) -> Any:
    """Transpose a matrix of ``LANES`` x ``LANES`` numbers, given and returned as a tuple of rows."""
    for _ in range(3):  # log2(LANES) rounds
        low, high = interleave_low(rows[:4], rows[4:]), interleave_high(rows[:4], rows[4:])
        rows = (low[0], high[0], low[1], high[1], low[2], high[2], low[3], high[3])
    return rows


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
        units = load(strided((r0, r1, r2, r3, r4, r5, r6, r7), unit, FLOAT_BYTES))
        store(strided(x + unit * LANES_BYTES, ALL_LANES, LANES_BYTES), transpose(units))


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
        units = load(strided(x + unit * LANES_BYTES, ALL_LANES, LANES_BYTES))
        store(strided(rows + unit * FLOAT_BYTES, ALL_LANES, row_bytes), transpose(units))
