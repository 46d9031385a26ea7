"""Type checks for numeric arguments."""

from typing import Any

import numpy as np

INTEGERS = (int, np.integer)
NUMBERS = (*INTEGERS, float, np.floating)


def is_number(value: Any) -> bool:
    """
    :param value: Value to check
    :return: Whether it is a real number; a bool is not one
    """
    return isinstance(value, NUMBERS) and not isinstance(value, bool)


def is_integer(value: Any) -> bool:
    """
    :param value: Value to check
    :return: Whether it is an integer; a bool is not one
    """
    return isinstance(value, INTEGERS) and not isinstance(value, bool)
