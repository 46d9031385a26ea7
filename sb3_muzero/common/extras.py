"""Libraries that only one feature needs, and that are installed as an extra of this package."""


def missing_extra(extra: str, error: ImportError) -> ImportError:
    """
    :param extra: Name of the extra
    :param error: What went wrong without it
    :return: The error to raise, with the command that installs the extra
    """
    return ImportError(f'{error}: pip install "sb3_muzero[{extra}]"', name=error.name)
