"""MuZeroPolicy: networks and search together act; ``predict`` plans."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_muzero.common.validation import CLASSES, MAX_MAGNITUDE, check_number, is_in_space
from sb3_muzero.models.categorical import CategoricalSupport
from sb3_muzero.models.mlp import LATENT_NORMS, Dynamics, LatentModel, Prediction, Representation, RunningNorm
from sb3_muzero.search import (
    CompiledModel,
    RecurrentFn,
    RecurrentOutput,
    RootOutput,
    SearchOutput,
    UnsupportedModelError,
    gumbel_muzero_search,
    gumbel_settings,
    muzero_search,
    puct_settings,
)
from sb3_muzero.search.backends.cuda_graphs import CudaGraphCache
from sb3_muzero.search.checks import check_action_masks

SEARCHES: dict[str, Callable[..., SearchOutput]] = {"gumbel": gumbel_muzero_search, "puct": muzero_search}
SETTINGS: dict[str, Callable[..., tuple]] = {"gumbel": gumbel_settings, "puct": puct_settings}
# The noise with which either search explores
NOISE: dict[str, dict[str, float]] = {
    name: {noise: inspect.signature(SEARCHES[name]).parameters[noise].default for noise in noises}
    for name, noises in {"gumbel": ("gumbel_scale",), "puct": ("dirichlet_fraction", "temperature")}.items()
}


def check_search_settings(search: str, num_simulations: int, search_kwargs: dict[str, Any] | None) -> None:
    """
    :param search: "gumbel" or "puct"
    :param num_simulations: Simulations per decision
    :param search_kwargs: Keyword arguments for the search function
    :raises ValueError: naming the setting, what was given and what is allowed
    """
    if search not in SEARCHES:
        raise ValueError(f"`search` must be one of {sorted(SEARCHES)}, got {search!r}")
    if not isinstance(search_kwargs, (dict, type(None))):
        raise ValueError(f"`search_kwargs` must be a dictionary, got {search_kwargs!r}")
    check_number("num_simulations", num_simulations)
    parameters = inspect.signature(SEARCHES[search]).parameters
    settings = {name: parameters[name].default for name in inspect.getfullargspec(SETTINGS[search]).kwonlyargs}
    unknown = set(search_kwargs or {}) - set(settings)
    if unknown:
        raise ValueError(f"`search_kwargs` of the {search} search has no {sorted(unknown)}; it takes {sorted(settings)}")
    SETTINGS[search](num_simulations, 1, **settings | (search_kwargs or {}))


class MuZeroPolicy(BasePolicy):
    """
    Policy class of MuZero: a latent model, its target copy and the search that acts.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param net_arch: Hidden widths of each of the three networks, ``[64]`` by default
    :param activation_fn: Activation function
    :param latent_dim: Size of the latent; a multiple of 8 for SimNorm
    :param latent_norm: Normalisation of latents: "simnorm", "minmax" or "none"
    :param num_bins: Bins of the value and the reward support. On CartPole 51 and 21 learned in half the steps of 101, whose
        finer resolution the noise of the targets fills (10 trial seeds, median 3000 steps with both)
    :param value_support: Lowest and highest value that can be represented, in the environment's reward units;
        by default the support fits itself to the targets
    :param reward_support: The same for rewards
    :param norm_obs: Scale Box observations other than images by their running statistics, and so the features of an extractor
        that is learned: those of convolutions have much in common and little apart. Without, latents of SB3's
        ``SimpleMultiObsEnv`` stayed 0.0003 from each other and nothing was learned, with it they were 1.2 apart
    :param representation_class: Module to use for h, called as ``Representation``
    :param dynamics_class: Module to use for g, called as ``Dynamics``
    :param prediction_class: Module to use for f, called as ``Prediction``
    :param features_extractor_class: Features extractor to use, ``default_features_extractor`` by default
    :param features_extractor_kwargs: Keyword arguments
        to pass to the features extractor.
    :param normalize_images: Whether to normalize images or not,
         dividing by 255.0 (True by default)
    :param optimizer_class: The optimizer to use,
        ``th.optim.AdamW`` by default
    :param optimizer_kwargs: Additional keyword arguments,
        excluding the learning rate, to pass to the optimizer
    :param discount: Factor from the value of the next state to the value of this one that the search plans with; negative
        where the next state is the opponent's
    :param num_simulations: Simulations per decision
    :param search: "gumbel" or "puct"
    :param search_kwargs: Keyword arguments for ``gumbel_muzero_search`` or ``muzero_search``; by default Q values are
        normalised over the whole tree, and over no less than twice ``value_error``: what is smaller than the model's own error
        is not to become a preference. That error is about 10 on CartPole-v1 and 5 on LunarLander-v3; a range of 2 made
        CartPole, one of 90 LunarLander slow
    :raises ValueError: for a setting outside of what is allowed, which the message names
    """

    action_space: spaces.Discrete
    latent_model: LatentModel
    latent_model_target: LatentModel
    value_error: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        net_arch: list[int] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        latent_dim: int = 64,
        latent_norm: str = "simnorm",
        num_bins: int = 51,
        value_support: tuple[float, float] | None = None,
        reward_support: tuple[float, float] | None = None,
        norm_obs: bool = True,
        representation_class: Callable[..., nn.Module] = Representation,
        dynamics_class: Callable[..., nn.Module] = Dynamics,
        prediction_class: Callable[..., nn.Module] = Prediction,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.AdamW,
        optimizer_kwargs: dict[str, Any] | None = None,
        discount: float = 0.99,
        num_simulations: int = 16,
        search: str = "gumbel",
        search_kwargs: dict[str, Any] | None = None,
    ) -> None:
        check_search_settings(search, num_simulations, search_kwargs)
        if latent_norm not in LATENT_NORMS:
            raise ValueError(f"`latent_norm` must be one of {sorted(LATENT_NORMS)}, got {latent_norm!r}")
        if latent_dim < 1 or (latent_norm == "simnorm" and latent_dim % 8 != 0):
            raise ValueError(f"`latent_dim` must be positive, and a multiple of 8 for SimNorm, got {latent_dim}")
        if optimizer_kwargs is None and optimizer_class is th.optim.AdamW:
            optimizer_kwargs = {"weight_decay": 1e-4, "fused": True}
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class or self.default_features_extractor(observation_space),
            features_extractor_kwargs,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            normalize_images=normalize_images,
        )
        self.net_arch = [64] if net_arch is None else net_arch
        self.activation_fn = activation_fn
        self.latent_dim = latent_dim
        self.latent_norm = latent_norm
        self.num_bins = num_bins
        self.value_support = value_support
        self.reward_support = reward_support
        self.norm_obs = norm_obs
        self.representation_class = representation_class
        self.dynamics_class = dynamics_class
        self.prediction_class = prediction_class
        self.discount = discount
        self.num_simulations = num_simulations
        self.search = search
        self.search_kwargs = search_kwargs or {}
        self._compiled_models: dict[str, CompiledModel] = {}
        self.augmentation: nn.Module | None = None
        # Mean distance between values and their targets in recent batches. Priorities make it larger than that of all data,
        # which is as well: with importance weights MiniGrid-DoorKey-5x5 took 38 k and over 50 k steps, without 16 and 24 k
        self.register_buffer("value_error", th.zeros(()))
        self._cuda_graphs = CudaGraphCache()
        self._build(lr_schedule)

    @staticmethod
    def default_features_extractor(observation_space: spaces.Space) -> type[BaseFeaturesExtractor]:
        """
        :param observation_space: Observation space
        :return: What makes features of its observations, unless the user says otherwise
        :raises ValueError: for a space that this policy is not made for
        """
        if isinstance(observation_space, spaces.Dict):
            raise ValueError("Dict observations need MultiInputPolicy, or a features extractor for them")
        return FlattenExtractor

    def _build(self, lr_schedule: Schedule) -> None:
        """
        Create the model, its target copy and the optimizer.

        :param lr_schedule: Learning rate schedule
            lr_schedule(1) is the initial learning rate
        """
        self.latent_model = self.make_latent_model()
        self.latent_model_target = self.make_latent_model()
        self.update_target()
        self.latent_model_target.train(False).requires_grad_(False)
        self.optimizer = self.optimizer_class(  # type: ignore[call-arg]
            self.latent_model.parameters(),
            lr=lr_schedule(1),
            **self.optimizer_kwargs,
        )

    def make_latent_model(self) -> LatentModel:
        """:return: A freshly initialised latent model on the policy's device"""
        features_extractor = self.make_features_extractor()
        features_dim = features_extractor.features_dim
        space = self.observation_space
        parts = space.values() if isinstance(space, spaces.Dict) else [space]
        has_quantities = any(isinstance(part, spaces.Box) and not is_image_space(part) for part in parts)
        is_learned = any(True for _ in features_extractor.parameters())
        # An extractor that learns moves on and wakes silent units. Breakout of MinAtar reached 9.1 after 100 k frames
        # with these, 6.9 with those of observations (trial seed 100). The unit of what it takes as it is says nothing
        min_var = 1e-4 * th.as_tensor(getattr(features_extractor, "learned_features", is_learned), dtype=th.float32)
        statistics: dict[str, Any] = {"clip": 10.0, "min_momentum": 0.05, "min_var": min_var} if is_learned else {}
        normalized = self.norm_obs and (is_learned or has_quantities)
        return LatentModel(
            features_extractor,
            RunningNorm(features_dim, **statistics) if normalized else nn.Identity(),
            *self.make_networks(features_dim),
            CategoricalSupport(self.num_bins, self.value_support),
            CategoricalSupport(self.num_bins, self.reward_support),
        ).to(self.device)

    def make_networks(self, features_dim: int) -> tuple[nn.Module, nn.Module, nn.Module]:
        """
        :param features_dim: Size of the features extractor's output
        :return: Representation, dynamics and prediction
        """
        num_actions = int(self.action_space.n)
        hidden = {"net_arch": self.net_arch, "activation_fn": self.activation_fn}
        latent = {"latent_dim": self.latent_dim, "latent_norm": self.latent_norm, **hidden}
        return (
            self.representation_class(features_dim=features_dim, **latent),
            self.dynamics_class(num_actions=num_actions, **latent),
            self.prediction_class(latent_dim=self.latent_dim, num_actions=num_actions, num_bins=self.num_bins, **hidden),
        )

    @th.no_grad()
    def update_target(self, tau: float = 1.0) -> None:
        """
        Move the target model towards the online model.

        :param tau: The soft update coefficient ("Polyak update", between 0 and 1), 1 for a copy
        """
        targets, online = self.latent_model_target, self.latent_model
        th._foreach_lerp_(list(targets.parameters()), list(online.parameters()), tau)
        for target, buffer in zip(targets.buffers(), online.buffers(), strict=True):  # running statistics and supports
            target.copy_(buffer)

    def fit_supports(self, values: th.Tensor, rewards: th.Tensor) -> None:
        """
        Widen supports that fit themselves until they hold the given targets, in the online and the target model alike.
        A value never exceeds the extreme reward received for ever, so its support never grows beyond that.

        :param values: Value targets, any shape
        :param rewards: Reward targets, any shape
        """
        everything = (-float("inf"), float("inf"))
        reward_bounds = self.latent_model.reward_support.expanded_bounds(rewards, everything, headroom=0.0)
        self._move_support("reward", reward_bounds)
        low, high = self.latent_model.reward_support.bounds.tolist()
        if self.discount < 0:  # what one player gets the other one pays
            low, high = -max(-low, high), max(-low, high)
        horizon = 1 / (1 - abs(self.discount)) if abs(self.discount) < 1 else float("inf")
        limits = (low * horizon if low < 0 else 0.0, high * horizon if high > 0 else 0.0)
        self._move_support("value", self.latent_model.value_support.expanded_bounds(values, limits, headroom=1.0))

    def _move_support(self, name: str, bounds: tuple[float, float] | None) -> None:
        if bounds is not None:
            for model in (self.latent_model, self.latent_model_target):
                getattr(model, f"{name}_support").rescale_head(bounds, getattr(model.prediction, f"{name}_head"))

    def represent(self, obs: PyTorchObs, model: LatentModel | None = None, augment: bool = False) -> th.Tensor:
        """
        :param obs: Observations as stored, with any number of batch axes, shape ``[..., *obs_shape]``, or a dictionary of such
        :param model: The online model by default
        :param augment: Whether to change images at random, for the loss
        :return: Latents, shape ``[..., latent_dim]``
        """
        part: Any = obs
        space: Any = self.observation_space
        if isinstance(space, spaces.Dict):
            key = next(iter(space))
            part, space = part[key], space[key]
        preprocessed = self._preprocess(obs)
        if augment and self.augmentation is not None:
            preprocessed = self.augmentation(preprocessed)
        latents = (model or self.latent_model).represent(preprocessed)
        return latents.unflatten(0, part.shape[: part.dim() - len(space.shape)])

    def _preprocess(self, obs: PyTorchObs) -> PyTorchObs:
        """All batch axes in one, then SB3's preprocessing; discrete parts count from 0 there."""
        if isinstance(self.observation_space, spaces.Dict):
            return {key: self._preprocess_part(obs[key], space) for key, space in self.observation_space.items()}  # type: ignore
        return self._preprocess_part(obs, self.observation_space)  # type: ignore[arg-type]

    def _preprocess_part(self, obs: th.Tensor, space: spaces.Space) -> th.Tensor:
        if isinstance(space, CLASSES):
            if np.any(space.start):  # number by number, since nothing can be copied to a GPU in a recorded function
                starts = [th.full((), int(start), device=obs.device) for start in np.ravel(space.start)]
                obs = obs - th.stack(starts).view(np.shape(space.start))
        flat = obs.reshape(-1, *space.shape)  # type: ignore[misc]
        preprocessed = preprocess_obs(flat, space, normalize_images=self.normalize_images)
        return preprocessed.reshape(len(flat), *(preprocessed.shape[1:] or (1,)))  # type: ignore[union-attr]

    @th.no_grad()
    def update_statistics(self, obs: PyTorchObs) -> None:
        """
        Let running statistics of the model's input see a batch of training data.

        :param obs: Observations, shape ``[..., *obs_shape]``
        """
        if isinstance(self.latent_model.input_norm, RunningNorm):
            self.latent_model.input_norm.update_statistics(self.latent_model.features_extractor(self._preprocess(obs)))

    def predict_values(self, obs: PyTorchObs, model: LatentModel | None = None) -> th.Tensor:
        """
        Values that the prediction function gives, without search.

        :param obs: Observations, shape ``[..., *obs_shape]``
        :param model: The online model by default
        :return: Values in the units of the rewards (those of VecNormalize, where it is used), shape ``[..., 1]``
        """
        model = model or self.latent_model
        value_logits = model.prediction(self.represent(obs, model)).value_logits
        return model.value_support.expectation(value_logits).unsqueeze(-1)

    def plan(
        self,
        obs: PyTorchObs,
        deterministic: bool = False,
        exploration: float = 1.0,
        model: LatentModel | None = None,
        action_masks: np.ndarray | None = None,
    ) -> SearchOutput:
        """
        Search from each observation, all in one batch.

        :param obs: Observations, shape ``[B, *obs_shape]``
        :param deterministic: Without the noise that explores; draws no random number then
        :param exploration: What that noise is multiplied by
        :param model: The online model by default
        :param action_masks: True for legal actions, shape ``[B, num_actions]``, bool; all by default. Deeper in the
            tree nothing is known of them (MuZero, Appendix A), but what the policy has learned
        :return: The search's result; ``action`` counts from 0
        """
        model = model or self.latent_model
        settings: dict[str, Any] = {"qvalue_scope": "tree", "min_qvalue_range": max(1e-8, 2 * self.value_error.item())}
        settings.update(self.search_kwargs)
        for name, default in NOISE[self.search].items():
            settings[name] = 0.0 if deterministic else exploration * settings.get(name, default)
        if action_masks is not None:
            settings["action_masks"] = action_masks
        if self.search == "puct":
            settings["dirichlet_fraction"] = min(settings["dirichlet_fraction"], 1.0)
        with th.no_grad():
            root, recurrent_fn = self._root_inference(obs, model)
            return SEARCHES[self.search](root, recurrent_fn, self.num_simulations, **settings)

    def compiled_model(self, model: LatentModel | None = None) -> CompiledModel:
        """
        The compiled planner's view of a model of MLPs in float32 on the CPU.

        :param model: The online model by default
        :return: The model as it is now; call this before each search
        :raises UnsupportedModelError: if the compiled planner does not support the model, with the reason
        """
        model = model or self.latent_model
        for owner, base, name in (
            (self, MuZeroPolicy, "represent"),
            (self, MuZeroPolicy, "_recurrent_inference"),
            (model, LatentModel, "represent"),
        ):
            if getattr(type(owner), name) is not getattr(base, name):
                raise UnsupportedModelError(
                    f"{type(owner).__qualname__} overrides {name}, which is not supported by the compiled planner"
                )
        name = self._name_of(model)
        compiled = self._compiled_models.get(name)
        if compiled is None or compiled.model is not model or not compiled.is_current():
            self._compiled_models[name] = compiled = CompiledModel(model, self.discount)
        compiled.discount = self.discount
        return compiled

    @property
    def uncompiled_reason(self) -> str | None:
        """Why the PyTorch planner is used and not the compiled one, which is many times faster; ``None`` if it is not."""
        try:
            self.compiled_model()
        except UnsupportedModelError as reason:
            return str(reason)
        return None

    def _root_inference(self, obs: PyTorchObs, model: LatentModel) -> tuple[RootOutput, RecurrentFn]:
        try:
            compiled = self.compiled_model(model)
        except UnsupportedModelError:
            root = self.cuda_graphed("root", partial(self._initial_inference, model=model), (obs,), model)(obs)
            recurrent_fn: RecurrentFn = self._recurrent_inference
            if model is not self.latent_model:
                recurrent_fn = partial(self._recurrent_inference, model=model)
            actions = th.zeros(len(root.latent), dtype=th.int64, device=root.latent.device)
            used: list[Any] = [model.dynamics, model.prediction, model.value_support, model.reward_support]
            return root, self.cuda_graphed("step", recurrent_fn, (root.latent, actions), model, used, self.discount)
        return compiled.initial_inference(model.features_extractor(self._preprocess(obs))), compiled

    CUDA_GRAPHED = (
        "represent",
        "predict_values",
        "_preprocess",
        "_preprocess_part",
        "_initial_inference",
        "_recurrent_inference",
    )
    """Methods that functions with a CUDA graph call."""

    def cuda_graphed(
        self,
        name: str,
        function: Callable[..., Any],
        inputs: tuple,
        model: LatentModel,
        used: list[nn.Module] | None = None,
        *constants: Any,
    ) -> Callable[..., Any]:
        """
        :param name: Identifies the function
        :param function: The function. If a subclass overrides one of the methods ``CUDA_GRAPHED``, it is returned as it is
        :param inputs: Its next inputs, nests of tensors
        :param model: The online or target model that it uses
        :param used: All modules that it uses, by default the whole model
        :param constants: All other numbers that it depends on
        :return: On a GPU the function as a CUDA graph, which overwrites its previous output; else the function itself
        """
        if any(getattr(type(self), name) is not getattr(MuZeroPolicy, name) for name in self.CUDA_GRAPHED):
            return function
        graphs = self._cuda_graphs.of_thread[name, self._name_of(model)]
        return graphs.get(function, inputs, [model] if used is None else used, model.training, *constants)

    def _name_of(self, model: LatentModel) -> str:
        return "online" if model is self.latent_model else "target"

    def _initial_inference(self, obs: PyTorchObs, model: LatentModel) -> RootOutput:
        latent = self.represent(obs, model)
        predicted = model.prediction(latent)
        return RootOutput(predicted.policy_logits, model.value_support.expectation(predicted.value_logits), latent)

    def _recurrent_inference(self, latent: th.Tensor, action: th.Tensor, model: LatentModel | None = None) -> RecurrentOutput:
        model = model or self.latent_model
        next_latent = model.dynamics(latent, action)
        predicted = model.prediction(next_latent)
        reward = model.reward_support.expectation(predicted.reward_logits)
        return RecurrentOutput(
            reward,
            th.full_like(reward, self.discount),
            predicted.policy_logits,
            model.value_support.expectation(predicted.value_logits),
            next_latent,
        )

    def forward(self, obs: PyTorchObs, deterministic: bool = True) -> th.Tensor:
        return self._predict(obs, deterministic=deterministic)

    def _predict(
        self, observation: PyTorchObs, deterministic: bool = True, action_masks: np.ndarray | None = None
    ) -> th.Tensor:
        actions = self.plan(observation, deterministic=deterministic, action_masks=action_masks).action
        return th.as_tensor(actions + self.action_space.start, device=self.device)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Plan an action for each observation.

        :param observation: An observation or a batch of them
        :param state: Handed back: the policy has none
        :param episode_start: Not used
        :param deterministic: Without the noise that explores
        :param action_masks: True for legal actions, shape ``[num_actions]`` or ``[B, num_actions]``; all by default
        :return: The actions and ``state``
        :raises ValueError: for observations of another shape than the observation space's, or that are not finite, and for
            masks of another shape or without a legal action
        """
        if action_masks is None or isinstance(observation, tuple):  # which is an error there
            return super().predict(observation, state, episode_start, deterministic)
        obs_tensor, vectorized_env = self.obs_to_tensor(observation)
        part = next(iter(obs_tensor.values())) if isinstance(obs_tensor, dict) else obs_tensor
        masks = check_action_masks(action_masks, len(part), int(self.action_space.n))
        self.set_training_mode(False)
        with th.no_grad():
            actions = self._predict(obs_tensor, deterministic, masks).cpu().numpy()
        return actions if vectorized_env else actions[0], state

    def obs_to_tensor(self, observation: np.ndarray | dict[str, np.ndarray]) -> tuple[PyTorchObs, bool]:
        parts = observation if isinstance(observation, dict) else {"": observation}
        for array in map(np.asarray, parts.values()):
            if array.dtype.kind not in "biuf":
                raise ValueError(f"Observations must be numbers, got an array of dtype {array.dtype}")
        result = super().obs_to_tensor(observation)  # which knows keys and shapes
        whole = self.observation_space
        for key, space in whole.items() if isinstance(whole, spaces.Dict) else [("", whole)]:
            array = np.asarray(parts[key])
            fits = is_in_space(array, space)
            if not fits.all():
                allowed = f"of {space}" if isinstance(space, CLASSES) else f"finite and none beyond {MAX_MAGNITUDE:g}"
                raise ValueError(f"Observations must be {allowed}, got {array[~fits][0]} in {array.shape}")
        return result

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_compiled_models": {}}  # they belong to this process's memory

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            dict(
                net_arch=self.net_arch,
                activation_fn=self.activation_fn,
                latent_dim=self.latent_dim,
                latent_norm=self.latent_norm,
                num_bins=self.num_bins,
                value_support=self.value_support,
                reward_support=self.reward_support,
                norm_obs=self.norm_obs,
                representation_class=self.representation_class,
                dynamics_class=self.dynamics_class,
                prediction_class=self.prediction_class,
                lr_schedule=self._dummy_schedule,  # dummy lr schedule, not needed for loading policy alone
                optimizer_class=self.optimizer_class,
                optimizer_kwargs=self.optimizer_kwargs,
                features_extractor_class=self.features_extractor_class,
                features_extractor_kwargs=self.features_extractor_kwargs,
                discount=self.discount,
                num_simulations=self.num_simulations,
                search=self.search,
                search_kwargs=self.search_kwargs,
            )
        )
        return data

    def set_training_mode(self, mode: bool) -> None:
        """
        Put the policy in either training or evaluation mode. The target model always stays in evaluation mode.

        :param mode: if true, set to training mode, else set to evaluation mode
        """
        if self.latent_model.training != mode:
            self.latent_model.train(mode)
        self.training = mode


MlpPolicy = MuZeroPolicy
