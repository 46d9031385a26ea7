"""
RL Zoo (https://github.com/DLR-RM/rl-baselines3-zoo) with MuZero among its algorithms.

    python -m sb3_muzero.zoo train --algo muzero --env CartPole-v1

runs the Zoo's own program with all its options. ``import sb3_muzero.zoo`` registers MuZero with the Zoo, for other scripts.
"""

import contextlib
import difflib
import functools
import importlib
import inspect
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

from gymnasium import spaces

from sb3_muzero.common.evaluation_checks import callback_warning
from sb3_muzero.common.extras import missing_extra
from sb3_muzero.common.time_limits import time_limit_kwargs
from sb3_muzero.muzero import MuZero

try:
    import optuna
    from huggingface_hub.repocard import metadata_save
    from rl_zoo3 import ALGOS
    from rl_zoo3.exp_manager import ExperimentManager
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
    from rl_zoo3.utils import SimpleLinearSchedule, create_test_env

    hub: Any = importlib.import_module("huggingface_sb3.push_to_hub")  # the package has a function of that name
except ImportError as error:
    raise missing_extra("zoo", error) from error

# The Zoo's programs: modules to run, or functions to call where another module has imported them
PROGRAMS = {
    "train": "rl_zoo3.train:train",
    "tune": "rl_zoo3.train:train",
    "enjoy": "rl_zoo3.enjoy:enjoy",
    "benchmark": "rl_zoo3.benchmark",
    "record-video": "rl_zoo3.record_video",
    "record-training": "rl_zoo3.record_training",
    "push-to-hub": "rl_zoo3.push_to_hub",
    "load-from-hub": "rl_zoo3.load_from_hub",
    "plot-train": "rl_zoo3.plots.plot_train:plot_train",
    "plot-from-file": "rl_zoo3.plots.plot_from_file:plot_from_file",
    "all-plots": "rl_zoo3.plots.all_plots:all_plots",
}

# In the package where it is installed, beside it in a checkout
CONF_FILE = next(file for folder in Path(__file__).parents[:2] if (file := folder / "zoo_configs" / "muzero.yml").exists())


def sample_muzero_params(
    trial: optuna.Trial,
    n_actions: int,
    n_envs: int,
    additional_args: dict[str, Any],
    action_space: spaces.Space | None = None,
) -> dict[str, Any]:
    """
    Sampler for MuZero hyperparams.

    :param trial: Optuna's trial
    :param n_actions: Not used
    :param n_envs: Not used
    :param additional_args: Not used
    :param action_space: If it is not Discrete, the sampler also suggests how candidates are drawn. By default Discrete
    :return: Arguments of ``MuZero``
    """
    candidates: dict[str, Any] = {}
    if action_space is not None and not isinstance(action_space, spaces.Discrete):
        candidates = {
            "num_candidates_pow": trial.suggest_int("num_candidates_pow", 2, 4),
            "inner_share": trial.suggest_categorical("inner_share", [0.25, 0.5, 1.0]),
            "value_scale": trial.suggest_float("value_scale", 0.05, 1.0, log=True),
        }
    if isinstance(action_space, spaces.Box):
        candidates["num_bins"] = trial.suggest_categorical("num_bins", [None, 7, 15])
    return convert_muzero_params(
        candidates
        | {
            "one_minus_gamma": trial.suggest_float("one_minus_gamma", 0.003, 0.05, log=True),
            "learning_rate": trial.suggest_float("learning_rate", 2e-4, 5e-3, log=True),
            "batch_size_pow": trial.suggest_int("batch_size_pow", 5, 8),
            "train_freq": trial.suggest_int("train_freq", 1, 8),
            "n_steps": trial.suggest_int("n_steps", 1, 50, log=True),
            "num_simulations_pow": trial.suggest_int("num_simulations_pow", 2, 5),
            "unroll_steps": trial.suggest_int("unroll_steps", 2, 5),
            "reanalyze_ratio": trial.suggest_categorical("reanalyze_ratio", [0.0, 0.5, 1.0]),
            "target_update_interval": trial.suggest_int("target_update_interval", 20, 500, log=True),
            "ent_coef": trial.suggest_categorical("ent_coef", [0.0, 0.03, 0.1, 0.3]),
            "consistency_coef": trial.suggest_categorical("consistency_coef", [0.0, 0.5, 2.0]),
            "novelty_coef": trial.suggest_categorical("novelty_coef", [0.0, 0.1, 0.5]),
            "net_arch": trial.suggest_categorical("net_arch", ["small", "medium", "big"]),
        }
    )


def convert_muzero_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    :param sampled_params: What a trial suggested
    :return: Arguments of ``MuZero``
    """
    hyperparams = sampled_params.copy()
    hyperparams["gamma"] = 1 - hyperparams.pop("one_minus_gamma")
    for name in ("batch_size", "num_simulations"):
        hyperparams[name] = 2 ** hyperparams.pop(f"{name}_pow")
    width = {"small": 64, "medium": 128, "big": 256}[hyperparams.pop("net_arch")]
    policy_kwargs: dict[str, Any] = {"net_arch": [width], "latent_dim": width}
    if "num_candidates_pow" in hyperparams:
        num_candidates = 2 ** hyperparams.pop("num_candidates_pow")
        num_inner_candidates = int(num_candidates * hyperparams.pop("inner_share"))
        action_kwargs = dict(num_candidates=num_candidates, num_inner_candidates=num_inner_candidates)
        bins = {"num_bins": hyperparams.pop("num_bins")} if "num_bins" in hyperparams else {}
        policy_kwargs["action_kwargs"] = action_kwargs | bins
        hyperparams["search_kwargs"] = {"value_scale": hyperparams.pop("value_scale")}
    return hyperparams | {"policy_kwargs": policy_kwargs}


def register() -> None:
    """Register MuZero wherever the Zoo looks up an algorithm."""
    ALGOS["muzero"] = MuZero
    HYPERPARAMS_SAMPLER["muzero"] = sample_muzero_params
    HYPERPARAMS_CONVERTER["muzero"] = convert_muzero_params
    # The Zoo's programs import the class by name, so its methods are replaced
    ExperimentManager.read_hyperparameters = _with_our_conf_file(ExperimentManager.read_hyperparameters)  # type: ignore
    prepare = ExperimentManager._preprocess_action_noise
    ExperimentManager._preprocess_action_noise = _with_action_space(prepare)  # type: ignore
    ExperimentManager.create_envs = _with_time_limit(ExperimentManager.create_envs)  # type: ignore
    ExperimentManager._preprocess_hyperparams = _with_our_notation(ExperimentManager._preprocess_hyperparams)  # type: ignore
    ExperimentManager.create_callbacks = _without_evaluation_of_games(ExperimentManager.create_callbacks)  # type: ignore


def _with_our_conf_file(read_hyperparameters: Any) -> Any:
    @functools.wraps(read_hyperparameters)
    def wrapped(self: ExperimentManager) -> Any:
        is_default = Path(self.config) == Path(inspect.getfile(ExperimentManager)).parent / "hyperparams" / "muzero.yml"
        if is_default:
            self.config = str(CONF_FILE)
        return read_hyperparameters(self)

    return wrapped


def _with_action_space(preprocess_action_noise: Any) -> Any:
    """Tells our sampler the action space, of which the Zoo passes on no more than the number of components of a Box."""

    @functools.wraps(preprocess_action_noise)
    def wrapped(self: ExperimentManager, hyperparams: dict[str, Any], saved_hyperparams: dict[str, Any], env: Any) -> Any:
        HYPERPARAMS_SAMPLER["muzero"] = functools.partial(sample_muzero_params, action_space=env.action_space)
        return preprocess_action_noise(self, hyperparams, saved_hyperparams, env)

    return wrapped


def _time_limit_kwargs(env_id: str) -> dict[str, int]:
    """``time_limit_kwargs``, which says so."""
    kwargs = time_limit_kwargs(env_id)
    for limit in kwargs.values():
        print(f"{env_id} has no time limit: episodes of evaluations are truncated after {limit} steps")
    return kwargs


def _with_time_limit(create_envs: Any) -> Any:
    @functools.wraps(create_envs)
    def wrapped(self: ExperimentManager, n_envs: int, eval_env: bool = False, no_log: bool = False) -> Any:
        if eval_env and self.algo == "muzero":
            self.eval_env_kwargs = {**_time_limit_kwargs(self.env_name.gym_id), **self.eval_env_kwargs}
        return create_envs(self, n_envs, eval_env, no_log)

    return wrapped


def _create_test_env(env_id: str, **kwargs: Any) -> Any:
    """The Zoo's ``create_test_env`` with a time limit, since pushing to the hub evaluates the agent."""
    env_kwargs = {**_time_limit_kwargs(env_id), **(kwargs.pop("env_kwargs", None) or {})}
    return create_test_env(env_id, env_kwargs=env_kwargs, **kwargs)


def _with_our_notation(preprocess_hyperparams: Any) -> Any:
    """``lin_`` and ``dict()`` for MuZero's own arguments, and an error for arguments that it does not have."""

    @functools.wraps(preprocess_hyperparams)
    def wrapped(self: ExperimentManager, hyperparams: dict[str, Any]) -> Any:
        if self.algo != "muzero":
            return preprocess_hyperparams(self, hyperparams)
        for name in ("exploration", "novelty_coef"):
            value = hyperparams.get(name)
            if isinstance(value, str):
                if not value.startswith("lin_"):
                    raise ValueError(f"`{name}` must be a number or lin_<start>, got {value!r}")
                hyperparams[name] = SimpleLinearSchedule(value.removeprefix("lin_"))
        if isinstance(hyperparams.get("search_kwargs"), str):
            hyperparams["search_kwargs"] = eval(hyperparams["search_kwargs"])
        result = preprocess_hyperparams(self, hyperparams)
        arguments = inspect.signature(MuZero).parameters
        for name in result[0].keys() - arguments:
            close = difflib.get_close_matches(name, arguments, n=1)
            raise ValueError(
                f"MuZero has no hyperparameter `{name}` (in {self.config} or -params)"
                + (f": did you mean `{close[0]}`?" if close else f", but {', '.join(arguments)}")
            )
        return result

    return wrapped


def _without_evaluation_of_games(create_callbacks: Any) -> Any:
    """Leaves out the Zoo's evaluation of two-player games, which an illegal move would end, with a warning."""

    @functools.wraps(create_callbacks)
    def wrapped(self: ExperimentManager) -> None:
        create_callbacks(self)
        for callback in list(self.callbacks):
            if self.algo == "muzero" and (warning := callback_warning(callback, two_player=True)) is not None:
                warnings.warn(f"Training without evaluation (`--eval-freq -1`). {warning}")
                self.callbacks.remove(callback)

    return wrapped


def main() -> None:
    """
    Run one of the Zoo's programs.

    :raises SystemExit: for an unknown program
    """
    usage = f"usage: python -m sb3_muzero.zoo {{{','.join(PROGRAMS)}}} ... (each has its own --help)"
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(usage)
        return
    if name not in PROGRAMS:
        raise SystemExit(f"{usage}\nerror: unknown program {name!r}")
    if name == "tune":
        arguments = ["--optimize-hyperparameters", *arguments]
    sys.argv = [f"{sys.argv[0]} {name}", *arguments]
    module, _, function = PROGRAMS[name].partition(":")
    # The Zoo's `push-to-hub` calls a function that huggingface_sb3 has renamed
    metadata = hub._generate_metadata
    if not hasattr(hub, "generate_metadata"):
        hub.generate_metadata = lambda *args: metadata(*args).to_dict()
    patches = {
        "subprocess.call": _call,
        "huggingface_hub.repocard.metadata_save": _save_model_card,
        "rl_zoo3.utils.create_test_env": _create_test_env,
    }
    with contextlib.ExitStack() as stack:
        for target, replacement in patches.items():
            stack.enter_context(mock.patch(target, replacement))
        if function:
            getattr(importlib.import_module(module), function)()
        else:
            runpy.run_module(module, run_name="__main__")


def _call(command: list[str], *args: Any, **kwargs: Any) -> int:
    """``subprocess.call`` that runs the Zoo's programs through this module."""
    ours = {("python", "enjoy.py"): "enjoy", ("python", "-m", "rl_zoo3.record_video"): "record-video"}
    for theirs, name in ours.items():
        if tuple(command[: len(theirs)]) == theirs:
            command = [sys.executable, "-m", "sb3_muzero.zoo", name, *command[len(theirs) :]]
    return subprocess.Popen(command, *args, **kwargs).wait()


def _save_model_card(path: Path, metadata: dict[str, Any]) -> None:
    """``metadata_save`` that replaces the commands of the Zoo's model card by those of this module."""
    card = path.read_text()
    for program in PROGRAMS:
        card = card.replace(f"rl_zoo3.{program.replace('-', '_')} ", f"sb3_muzero.zoo {program} ")
    path.write_text(card.replace("pip install rl_zoo3", 'pip install "sb3_muzero[zoo]"'))
    metadata_save(path, metadata)


register()

if __name__ == "__main__":
    main()
