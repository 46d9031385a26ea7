"""Which values count as numbers where an argument must be one."""

from typing import Any

import numpy as np

INTEGERS = (int, np.integer)
NUMBERS = (*INTEGERS, float, np.floating)


def is_number(value: Any) -> bool:
    """
    :param value: An argument
    :return: Whether it is a real number; booleans and strings are none
    """
    return isinstance(value, NUMBERS) and not isinstance(value, bool)


def is_integer(value: Any) -> bool:
    """
    :param value: An argument
    :return: Whether it is an integer; booleans are none
    """
    return isinstance(value, INTEGERS) and not isinstance(value, bool)
