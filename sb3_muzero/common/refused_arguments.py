"""Arguments of SB3's other algorithms whose part the search plays here."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

Init = TypeVar("Init", bound=Callable[..., None])

NOISE_ARGUMENTS = ("action_noise", "use_sde", "sde_sample_freq", "use_sde_at_warmup")
"""Names of SB3's arguments for exploration by noise on actions."""


def refuse_noise_arguments(init: Init) -> Init:
    """
    :param init: Constructor of ``MuZero``
    :return: The same, which for ``NOISE_ARGUMENTS`` raises a ``TypeError`` that says what explores instead
    """

    @functools.wraps(init)
    def checked(*args: Any, **kwargs: Any) -> None:
        for name in kwargs.keys() & NOISE_ARGUMENTS:
            raise TypeError(
                f"There is no argument `{name}`: MuZero explores by search, with noise that `exploration` scales; leave it out"
            )
        init(*args, **kwargs)

    return checked  # type: ignore[return-value]
