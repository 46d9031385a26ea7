"""Plans with a latent model: checks the settings of its searches and chooses the backend that computes them."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from sb3_muzero.search.backends.cuda_graphs import CudaGraphCache
from sb3_muzero.search.backends.numba.compiled_model import CompiledModel
from sb3_muzero.search.backends.numba.fused import is_cached
from sb3_muzero.search.backends.snapshot import UnsupportedModelError
from sb3_muzero.search.checks import SETTINGS, check_setting
from sb3_muzero.search.gumbel import gumbel_muzero_search
from sb3_muzero.search.puct import muzero_search
from sb3_muzero.search.types import RecurrentFn, RootOutput, SearchOutput

SEARCHES: dict[str, Callable[..., SearchOutput]] = {"gumbel": gumbel_muzero_search, "puct": muzero_search}
DEFAULTS = {name: inspect.getfullargspec(search).kwonlydefaults or {} for name, search in SEARCHES.items()}
"""Keyword arguments of each search function."""

NOISE = {"gumbel_scale", "dirichlet_fraction", "temperature"}
"""Settings by which the searches explore; all are 0 in a deterministic search."""

MAX_COMPILED_MODELS = 2
"""Compiled models that a planner keeps: of the online and of the target model."""


class PlannerSettings(NamedTuple):
    """
    Settings of a planner.

    :param search: search algorithm, ``"gumbel"`` (Gumbel MuZero) or ``"puct"`` (MuZero).
    :param num_simulations: number of simulations per decision.
    :param search_kwargs: settings to pass to the search function; None for its defaults.
    :param discount: factor from the value of the next state to the value of this one; negative where the opponent moves next.
    """

    search: str = "gumbel"
    num_simulations: int = 16
    search_kwargs: dict[str, Any] | None = None
    discount: float = 0.99

    def check(self) -> None:
        """
        :raises ValueError: naming the setting, what was given and what is allowed.
        """
        if self.search not in SEARCHES:
            raise ValueError(f"`search` must be one of {sorted(SEARCHES)}, got {self.search!r}")
        if not isinstance(self.search_kwargs, (dict, type(None))):
            raise ValueError(f"`search_kwargs` must be a dictionary, got {self.search_kwargs!r}")
        check_setting("num_simulations", self.num_simulations)
        allowed = DEFAULTS[self.search].keys() & SETTINGS
        for name, value in (self.search_kwargs or {}).items():
            if name not in allowed:
                raise ValueError(f"`search_kwargs` of the {self.search} search has no {name!r}; it takes {sorted(allowed)}")
            if name != "max_depth" or value is not None:
                check_setting(name, value)


class Planner:
    """
    Searches with a latent model. The simulations run in compiled code if the compiled planner supports the model, and in
    PyTorch otherwise.

    :param settings: settings of the searches; may be replaced between searches.
    """

    QVALUE_SCOPE, MIN_RANGE = "tree", 2.0
    """What Q values are rescaled over by default, and their minimum range in units of the value error."""
    is_cached = staticmethod(is_cached)
    """Whether the compiled search is cached on disk, so that the first search does not compile."""

    def __init__(self, settings: PlannerSettings) -> None:
        self.settings = settings
        self._compiled_models: list[CompiledModel] = []
        self.cuda_graphs = CudaGraphCache()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_compiled_models": []}  # they hold addresses in this process's memory

    def plan(
        self,
        model: Any,
        obs: Any,
        deterministic: bool = False,
        exploration: float = 1.0,
        value_error: float = 0.0,
        action_masks: np.ndarray | None = None,
    ) -> SearchOutput:
        """
        Search from a batch of observations.

        :param model: the ``LatentModel`` to search with.
        :param obs: observations. Shape ``[B, *obs_shape]``.
        :param deterministic: whether to search without noise; no random number is then drawn.
        :param exploration: factor of the noise.
        :param value_error: mean absolute error of the model's values. By default, Q values are rescaled over the whole tree,
            and their range is taken to be at least twice this error.
        :param action_masks: True for actions that are legal at the root; None if all are legal. Below the root all actions
            are legal (MuZero, Appendix A). Shape ``[B, mask_dim]``, bool.
        :return: the result of the search.
        :raises ValueError: for an invalid setting or model output, naming it and what is wrong.
        """
        search, _, search_kwargs, _ = self.settings
        kwargs = DEFAULTS[search] | {
            "action_masks": action_masks,
            "qvalue_scope": self.QVALUE_SCOPE,
            "min_qvalue_range": max(1e-8, self.MIN_RANGE * value_error),
            **(search_kwargs or {}),
        }
        for name in NOISE & kwargs.keys():
            kwargs[name] = 0.0 if deterministic else exploration * kwargs[name]
        if search == "puct":
            kwargs["dirichlet_fraction"] = min(kwargs["dirichlet_fraction"], 1.0)
        with torch.no_grad():
            return self.search(model, obs, deterministic, kwargs)

    def search(self, model: Any, obs: Any, deterministic: bool, kwargs: dict[str, Any]) -> SearchOutput:
        """
        :param model: the ``LatentModel`` to search with.
        :param obs: observations. Shape ``[B, *obs_shape]``.
        :param deterministic: whether to draw no random number.
        :param kwargs: keyword arguments of the search function.
        :return: the result of the search.
        """
        root, recurrent_fn = self.root_inference(model, obs)
        search, num_simulations, *_ = self.settings
        return SEARCHES[search](root, recurrent_fn, num_simulations, **kwargs)

    def compiled_model(self, model: Any) -> CompiledModel:
        """
        Get the compiled model of a latent model, translated again if the structure of the model has changed.

        :param model: a ``LatentModel``.
        :return: the compiled model, to use for the next search only.
        :raises UnsupportedModelError: if the compiled planner does not support the model; the message says why.
        """
        compiled = next((known for known in self._compiled_models if known.model is model), None)
        if compiled is None or not compiled.is_current():
            check_inference(model)
            others = [known for known in self._compiled_models if known.model is not model]
            compiled = self.compile(model)
            self._compiled_models = [*others, compiled][-MAX_COMPILED_MODELS:]
        compiled.discount = self.settings.discount
        return compiled

    def compile(self, model: Any) -> CompiledModel:
        """
        :param model: a ``LatentModel``.
        :return: its compiled model.
        :raises UnsupportedModelError: if the compiled planner does not support it.
        """
        check_encoder(model.action_encoder, getattr(model.action_encoder, "is_one_hot", False))
        return CompiledModel(model, self.settings.discount)

    def root_inference(self, model: Any, obs: Any) -> tuple[RootOutput, RecurrentFn]:
        """
        Evaluate the root states in the backend that the search will run in.

        :param model: a ``LatentModel``.
        :param obs: observations. Shape ``[B, *obs_shape]``.
        :return: the model's output for the root states, and the ``recurrent_fn`` to search with.
        """
        try:
            compiled = self.compiled_model(model)
        except UnsupportedModelError:
            root = self.root_output(model, obs)
            actions = torch.zeros(len(root.value), dtype=torch.int64, device=root.value.device)
            step = partial(model.recurrent_inference, discount=self.settings.discount)
            return root, self.graphed_step(model, step, (root.latent, actions))
        return compiled.initial_inference(model.features(obs)), compiled

    def root_output(self, model: Any, obs: Any) -> RootOutput:
        """
        :param model: a ``LatentModel``.
        :param obs: observations. Shape ``[B, *obs_shape]``.
        :return: the model's output for the root states, computed in PyTorch.
        """
        return self.cuda_graphed("root", model.initial_inference, (obs,), model)(obs)

    def graphed_step(self, model: Any, step: Callable[..., Any], inputs: tuple) -> Callable[..., Any]:
        """
        :param model: a ``LatentModel``.
        :param step: computes a step of the model in PyTorch.
        :param inputs: inputs as those it will get.
        :return: its CUDA graph, or the function itself without a GPU.
        """
        used = [model]
        if type(model).recurrent_inference.__module__.startswith("sb3_muzero."):  # which uses no features extractor
            used = [model.action_encoder, model.dynamics, model.prediction, model.value_support, model.reward_support]
            used += [] if model.turn_head is None else [model.turn_head]
        return self.cuda_graphed("step", step, inputs, model, self.settings.discount, used=used)

    def cuda_graphed(
        self,
        name: str,
        function: Callable[..., Any],
        inputs: tuple,
        model: Any,
        *constants: Any,
        used: list[Any] | None = None,
    ) -> Callable[..., Any]:
        """
        Get the CUDA graph of a function of a model.

        :param name: name of the function, unique among the functions of the model.
        :param function: the function; it must depend on nothing but its inputs, the model and ``constants``.
        :param inputs: its next inputs, nests of tensors.
        :param model: the model.
        :param constants: numbers that the function depends on.
        :param used: modules that the function uses; the whole model by default.
        :return: the graph, which overwrites the output of its previous call; without a GPU, the function itself.
        """
        graphs = self.cuda_graphs.of_thread[name, id(model)]  # type: ignore[index]
        return graphs.get(function, inputs, [model] if used is None else used, model.training, *constants)


def check_inference(model: Any) -> None:
    """
    :param model: a ``LatentModel``.
    :raises UnsupportedModelError: if the inference of its class is not that of this package.
    """
    for name in ("features", "represent", "initial_inference", "recurrent_inference"):
        owner = next(kind for kind in type(model).__mro__ if name in vars(kind))
        if not owner.__module__.startswith("sb3_muzero.models."):
            reason = f"{owner.__qualname__} overrides {name}, which is not supported by the compiled planner"
            raise UnsupportedModelError(reason)


def check_encoder(encoder: Any, is_known: bool) -> None:
    """
    :param encoder: module that encodes actions.
    :param is_known: whether it says that it encodes them as the compiled planner does.
    :raises UnsupportedModelError: if it does not, or is a module of another package.
    """
    if not (is_known and type(encoder).__module__.startswith(("sb3_muzero.", "torch.nn."))):
        raise UnsupportedModelError("an encoding of actions other than one-hot is not supported by the compiled planner")
