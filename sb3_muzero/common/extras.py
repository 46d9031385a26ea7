"""Optional dependencies, which are installed as extras of this package."""


def missing_extra(extra: str, error: ImportError) -> ImportError:
    """
    :param extra: Name of the extra
    :param error: Error of the failed import
    :return: An error whose message contains the command that installs the extra
    """
    return ImportError(f'{error}: pip install "sb3_muzero[{extra}]"', name=error.name)
