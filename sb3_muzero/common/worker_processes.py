"""Errors of environments in other processes."""

import contextlib
from collections.abc import Iterator
from multiprocessing.connection import wait

from stable_baselines3.common.vec_env import VecEnv


@contextlib.contextmanager
def naming_dead_workers(env: VecEnv) -> Iterator[None]:
    """
    Says which environment's process has ended, where a ``SubprocVecEnv`` only finds its pipe closed.

    :param env: The environments that are used meanwhile
    :raises EOFError: with that message
    :raises ConnectionError: with that message
    """
    try:
        yield
    except (EOFError, ConnectionError) as error:
        processes = getattr(env.unwrapped, "processes", [])
        # A worker's pipe closes shortly before its process ends
        ended = wait([process.sentinel for process in processes], timeout=1.0)
        dead = [index for index, process in enumerate(processes) if process.sentinel in ended]
        if not dead:
            raise  # of something else, such as a callback
        processes[dead[0]].join()
        raise type(error)(
            f"The worker process of environment {', '.join(map(str, dead))} has ended (exit code "
            f"{processes[dead[0]].exitcode}). If the environment raised an exception, its traceback is printed above (in "
            f"stderr); use DummyVecEnv to debug it, and make new environments to go on training (`model.set_env`)"
            f"{f'. {error}' if str(error) else ''}"
        ) from error
