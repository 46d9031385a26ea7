"""Plans with a latent model: the settings of its searches, and where they are computed."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from sb3_muzero.search.backends.cuda_graphs import CudaGraphCache
from sb3_muzero.search.backends.numba.compiled_model import CompiledModel
from sb3_muzero.search.backends.snapshot import UnsupportedModelError
from sb3_muzero.search.gumbel import gumbel_muzero_search, gumbel_settings
from sb3_muzero.search.puct import muzero_search, puct_settings
from sb3_muzero.search.types import RecurrentFn, RootOutput, SearchOutput

SEARCHES: dict[str, Callable[..., SearchOutput]] = {"gumbel": gumbel_muzero_search, "puct": muzero_search}
SETTINGS: dict[str, Callable[..., tuple]] = {"gumbel": gumbel_settings, "puct": puct_settings}
# The noise with which each search explores
NOISE: dict[str, dict[str, float]] = {
    name: {noise: inspect.signature(SEARCHES[name]).parameters[noise].default for noise in noises}
    for name, noises in {"gumbel": ("gumbel_scale",), "puct": ("dirichlet_fraction", "temperature")}.items()
}


class PlannerSettings(NamedTuple):
    """
    Settings of the searches.

    :param search: "gumbel" (Gumbel MuZero) or "puct" (MuZero)
    :param num_simulations: Simulations per decision
    :param search_kwargs: Keyword arguments for the search function
    :param discount: Factor from the value of the next state to that of this one; negative where the opponent moves next
    """

    search: str = "gumbel"
    num_simulations: int = 16
    search_kwargs: dict[str, Any] | None = None
    discount: float = 0.99

    def check(self) -> None:
        """:raises ValueError: naming the setting, what was given and what is allowed"""
        if self.search not in SEARCHES:
            raise ValueError(f"`search` must be one of {sorted(SEARCHES)}, got {self.search!r}")
        if not isinstance(self.search_kwargs, (dict, type(None))):
            raise ValueError(f"`search_kwargs` must be a dictionary, got {self.search_kwargs!r}")
        parameters = inspect.signature(SEARCHES[self.search]).parameters
        settings = {name: parameters[name].default for name in inspect.getfullargspec(SETTINGS[self.search]).kwonlyargs}
        unknown = set(self.search_kwargs or {}) - set(settings)
        if unknown:
            raise ValueError(
                f"`search_kwargs` of the {self.search} search has no {sorted(unknown)}; it takes {sorted(settings)}"
            )
        SETTINGS[self.search](self.num_simulations, 1, **settings | (self.search_kwargs or {}))


class Planner:
    """
    Searches with a latent model: in compiled code where that supports the model, else in PyTorch, one inference a simulation.

    :param settings: Settings of the searches, which may be replaced at any time
    """

    MAX_COMPILED_MODELS = 2
    """Compiled models that are kept: the online and the target model."""

    def __init__(self, settings: PlannerSettings) -> None:
        self.settings = settings
        self._compiled_models: list[CompiledModel] = []
        self.cuda_graphs = CudaGraphCache()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_compiled_models": []}  # they belong to this process's memory

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
        Search from each observation, all in one batch.

        :param model: A ``LatentModel``
        :param obs: Observations, shape ``[B, *obs_shape]``
        :param deterministic: Whether to search without noise, which draws no random number
        :param exploration: Factor of the noise
        :param value_error: Mean error of the model's values: by default Q values are normalized over the whole tree, and over
            no less than twice this error
        :param action_masks: True for legal actions at the root, shape ``[B, num_actions]``, bool; all by default. Deeper in
            the tree no action is masked (MuZero, Appendix A)
        :return: The search's result
        """
        search, num_simulations, search_kwargs, _ = self.settings
        kwargs: dict[str, Any] = {"qvalue_scope": "tree", "min_qvalue_range": max(1e-8, 2 * value_error)}
        kwargs.update(search_kwargs or {})
        for name, default in NOISE[search].items():
            kwargs[name] = 0.0 if deterministic else exploration * kwargs.get(name, default)
        if action_masks is not None:
            kwargs["action_masks"] = action_masks
        if search == "puct":
            kwargs["dirichlet_fraction"] = min(kwargs["dirichlet_fraction"], 1.0)
        with torch.no_grad():
            root, recurrent_fn = self.root_inference(model, obs)
            return SEARCHES[search](root, recurrent_fn, num_simulations, **kwargs)

    def compiled_model(self, model: Any) -> CompiledModel:
        """
        :param model: A ``LatentModel``
        :return: The same in compiled code, as it is now; ask for it before each search
        :raises UnsupportedModelError: saying what is not supported
        """
        for name in ("features", "represent", "initial_inference", "recurrent_inference"):
            function = getattr(type(model), name)
            if not function.__module__.startswith("sb3_muzero.models."):
                raise UnsupportedModelError(
                    f"{type(model).__qualname__} overrides {name}, which is not supported by the compiled planner"
                )
        if not getattr(model.action_encoder, "is_one_hot", False):
            raise UnsupportedModelError("an encoding of actions other than one-hot is not supported by the compiled planner")
        compiled = next((known for known in self._compiled_models if known.model is model), None)
        if compiled is None or not compiled.is_current():
            others = [known for known in self._compiled_models if known.model is not model]
            compiled = CompiledModel(model, self.settings.discount)
            self._compiled_models = [*others, compiled][-self.MAX_COMPILED_MODELS :]
        compiled.discount = self.settings.discount
        return compiled

    def root_inference(self, model: Any, obs: Any) -> tuple[RootOutput, RecurrentFn]:
        """
        :param model: A ``LatentModel``
        :param obs: Observations to plan from, shape ``[B, *obs_shape]``
        :return: What the model predicts for them, and what the search is to call for each step
        """
        try:
            compiled = self.compiled_model(model)
        except UnsupportedModelError:
            discount = self.settings.discount
            root = self.cuda_graphed("root", model.initial_inference, (obs,), model)(obs)
            actions = torch.zeros(len(root.value), dtype=torch.int64, device=root.value.device)
            step = partial(model.recurrent_inference, discount=discount)
            return root, self.cuda_graphed("step", step, (root.latent, actions), model, discount)
        return compiled.initial_inference(model.features(obs)), compiled

    def cuda_graphed(
        self, name: str, function: Callable[..., Any], inputs: tuple, model: Any, *constants: Any
    ) -> Callable[..., Any]:
        """
        :param name: Tells this function from the model's others
        :param function: A function of the model and of nothing else that changes
        :param inputs: What it is about to be called with: tensors and nothing else, in tuples and dictionaries
        :param model: The model that it uses
        :param constants: All numbers besides that it depends on
        :return: On a GPU one that replays a CUDA graph and overwrites what it returned before; else the function itself
        """
        graphs = self.cuda_graphs.of_thread[name, id(model)]  # type: ignore[index]
        return graphs.get(function, inputs, [model], model.training, *constants)
