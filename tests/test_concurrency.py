"""Several things at once: models in threads, environments in processes, and processes that compile at the same time."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import cartpole_observations, differences, scramble, snapshot, tiny_model
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv
from torch import nn

from sb3_muzero.callbacks import ResumableCheckpointCallback


def in_threads(*functions: Callable[[], Any]) -> list[Any]:
    """:return: What each gives, all having run at once"""
    results: dict[int, Any] = {}

    def run(index: int) -> None:
        try:
            results[index] = functions[index]()
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results.values():
        if isinstance(result, BaseException):
            raise result
    return [results[index] for index in range(len(functions))]


def test_training_in_a_thread_gives_the_same_model(tmp_path):
    expected = snapshot(tiny_model().learn(100))
    callback = ResumableCheckpointCallback(50, tmp_path)  # signals are for the main thread
    (model,) = in_threads(lambda: tiny_model().learn(100, callback=callback))
    assert differences(snapshot(model), expected) == []


WAYS_TO_PLAN = pytest.mark.parametrize("policy_kwargs", [{}, {"activation_fn": nn.Softplus}], ids=["compiled", "torch"])


@WAYS_TO_PLAN
def test_two_models_train_at_once(policy_kwargs):
    models = [tiny_model(env, policy_kwargs=policy_kwargs) for env in ("CartPole-v1", "Acrobot-v1")]
    in_threads(*(lambda model=model: model.learn(300) for model in models))
    for model in models:
        assert model.num_timesteps >= 300 and model._n_updates > 50
        assert all(tensor.isfinite().all() for tensor in model.policy.state_dict().values() if tensor.is_floating_point())


@WAYS_TO_PLAN
def test_threads_may_plan_with_one_model(policy_kwargs):
    model = scramble(tiny_model(num_simulations=16, policy_kwargs=policy_kwargs))

    def plan(batch: np.ndarray) -> np.ndarray:
        return model.predict(batch, deterministic=True)[0]

    batches = [cartpole_observations(count, seed=count) for count in (1, 3, 8, 40)]
    expected = [plan(batch) for batch in batches]
    planned = in_threads(*(lambda batch=batch: [plan(batch) for _ in range(50)] for batch in batches))
    for actions, alone in zip(planned, expected, strict=True):
        assert (np.array(actions) == alone).all()


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])  # fork: test_vec_envs
def test_environments_in_processes_give_the_same_model(start_method):
    expected = tiny_model(make_vec_env("CartPole-v1", 2, seed=5)).learn(80)  # threads and compiled code are there by now
    kwargs = {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": start_method}}
    env = make_vec_env("CartPole-v1", 2, seed=5, **kwargs)
    try:
        model = tiny_model(env).learn(80)
    finally:
        env.close()
    assert differences(snapshot(model), snapshot(expected)) == []


PLANS = """
import numpy as np
from sb3_muzero import MuZero
from sb3_muzero.search import is_cached
print(is_cached())
model = MuZero("MlpPolicy", "CartPole-v1", seed=0, device="cpu")
print(model.predict(np.array([[0.1, -0.2, 0.03, 0.4]] * 3, np.float32), deterministic=True)[0].tolist())
print(is_cached())
"""


def plan_elsewhere(program: str = PLANS, **environment: str) -> "subprocess.Popen[str]":
    """:return: A process that plans, and says whether the compiled planner was and is on disk"""
    kwargs: Any = {"env": {**os.environ, **environment}, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", program], **kwargs)


@pytest.mark.slow
def test_processes_that_compile_at_the_same_time(tmp_path):
    processes = [plan_elsewhere(NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(3)]
    outputs = [process.communicate(timeout=500) for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    plans = [output.splitlines()[1:] for output, _ in outputs]
    assert plans[0] == plans[1] == plans[2] and plans[0][1] == "True", outputs
    output, errors = plan_elsewhere(NUMBA_CACHE_DIR=str(tmp_path)).communicate(timeout=500)
    assert output.splitlines() == ["True", *plans[0]], errors


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"NUMBA_CACHE_DIR": "/dev/null/none"}, {"HOME": "/dev/null/none"}], ids=str)
def test_folders_that_are_not_there_or_not_for_us(environment):
    known = plan_elsewhere().communicate(timeout=500)[0].splitlines()
    process = plan_elsewhere(**environment)
    output, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    assert output.splitlines()[1] == known[1]


FULL = (
    """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))  # no compiled function is that small
"""
    + PLANS
)


@pytest.mark.slow
def test_a_disk_that_is_full_when_planning_is_compiled(tmp_path):
    known = plan_elsewhere().communicate(timeout=500)[0].splitlines()
    process = plan_elsewhere(FULL, NUMBA_CACHE_DIR=str(tmp_path))
    output, errors = process.communicate(timeout=500)
    assert output.splitlines() == ["False", known[1], "False"], errors
    assert "could not be cached on disk" in errors
