"""Which values count as numbers where an argument must be one."""

from typing import Any

import numpy as np


def is_number(value: Any) -> bool:
    """
    :param value: An argument
    :return: Whether it is a real number; booleans and strings are none
    """
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def is_integer(value: Any) -> bool:
    """
    :param value: An argument
    :return: Whether it is an integer; booleans are none
    """
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
