"""Policy class of MuZero."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_muzero.actions import make_actions
from sb3_muzero.common.validation import COUNTABLE_SPACES, MAX_MAGNITUDE, is_in_space
from sb3_muzero.models.base import LatentModel
from sb3_muzero.models.categorical import CategoricalSupport
from sb3_muzero.models.encoders import CenteredFeatures, MultiInputExtractor, Preprocessor, needs_float64
from sb3_muzero.models.mlp import Dynamics, Prediction, Representation, hidden_layers, zero_linear
from sb3_muzero.models.normalization import LATENT_NORMS, RunningNorm
from sb3_muzero.search import SearchOutput, UnsupportedModelError
from sb3_muzero.search.planner import Planner, PlannerSettings


class MuZeroPolicy(BasePolicy):
    """
    Policy class of MuZero: the latent model, its target network, and the planner that selects actions.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param net_arch: Widths of the hidden layers in each of the three networks, ``[64]`` by default
    :param activation_fn: Activation function
    :param latent_dim: Size of the latent state; a multiple of 8 for SimNorm
    :param latent_norm: Normalization of the latent state: "simnorm", "minmax" or "none"
    :param num_bins: Number of bins of the value and reward supports
    :param value_support: Lowest and highest value that can be represented, in the environment's reward units.
        By default the range adapts to the targets
    :param reward_support: Lowest and highest reward that can be represented. By default the range adapts to the targets
    :param norm_obs: Whether to normalize Box observations (except images) and the output of a trainable features extractor
        with running statistics
    :param representation_class: Module of the representation function h, with the arguments of ``Representation``
    :param dynamics_class: Module of the dynamics function g, with the arguments of ``Dynamics``
    :param prediction_class: Module of the prediction function f, with the arguments of ``Prediction``
    :param features_extractor_class: Features extractor to use, ``default_features_extractor`` by default
    :param features_extractor_kwargs: Keyword arguments
        to pass to the features extractor.
    :param normalize_images: Whether to normalize images or not,
         dividing by 255.0 (True by default)
    :param optimizer_class: The optimizer to use,
        ``th.optim.AdamW`` by default
    :param optimizer_kwargs: Additional keyword arguments,
        excluding the learning rate, to pass to the optimizer
    :param action_kwargs: Keyword arguments of the actions: ``num_candidates`` and ``num_inner_candidates`` that the search
        draws at the root and below it, and ``num_bins`` for a categorical distribution of each component of a Box, see
        ``SampledActions`` and ``BoxActions``. Without any, a search considers all Discrete actions
    :param predict_turns: Whether the model predicts if the same player moves again, for two-player games with extra turns
    :param discount: Discount factor of the search; negative in two-player games, where the opponent moves next
    :param num_simulations: Number of simulations per decision
    :param search: "gumbel" or "puct"
    :param search_kwargs: Keyword arguments for ``gumbel_muzero_search`` or ``muzero_search``. By default Q values are
        normalized over the whole tree, and over at least twice the model's value error, so that errors are not amplified;
        where candidates are drawn, whose values differ less, over the node
    :raises ValueError: for an invalid argument
    """

    latent_model: LatentModel
    latent_model_target: LatentModel
    value_error: th.Tensor
    channels_last = False
    """Whether observations are images or boards whose channels come last."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
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
        action_kwargs: dict[str, Any] | None = None,
        predict_turns: bool = False,
        discount: float = 0.99,
        num_simulations: int = 16,
        search: str = "gumbel",
        search_kwargs: dict[str, Any] | None = None,
    ) -> None:
        settings = PlannerSettings(search, num_simulations, search_kwargs, discount)
        settings.check()
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
        self.predict_turns = predict_turns
        self.action_kwargs = action_kwargs
        self.actions = make_actions(action_space, action_kwargs)
        self.planner = self.make_planner(settings)
        self.register_buffer("value_error", th.zeros(()))
        self._build(lr_schedule)

    def default_features_extractor(self, observation_space: spaces.Space) -> type[BaseFeaturesExtractor]:
        """
        :param observation_space: Observation space
        :return: Features extractor that is used by default
        :raises ValueError: if the policy does not support the space
        """
        if isinstance(observation_space, spaces.Dict):
            raise ValueError("Dict observations need MultiInputPolicy, or a features extractor for them")
        return FlattenExtractor

    def _build(self, lr_schedule: Schedule) -> None:
        """
        Create the model, the target network and the optimizer.

        :param lr_schedule: Learning rate schedule
            lr_schedule(1) is the initial learning rate
        """
        self.latent_model = self.make_latent_model()
        self.latent_model_target = self.make_latent_model()
        self.update_target()
        self.latent_model_target.train(False).requires_grad_(False)
        self.optimizer = self.optimizer_class(  # type: ignore[call-arg]
            self.latent_model.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs
        )

    def make_planner(self, settings: PlannerSettings) -> Planner:
        """
        :param settings: Settings of the searches
        :return: Planner with these settings
        """
        return self.actions.make_planner(settings)

    def make_latent_model(self) -> LatentModel:
        """:return: A newly initialized latent model on the policy's device"""
        features_extractor = self.make_features_extractor()
        features_dim = features_extractor.features_dim
        space = self.observation_space
        parts = space.values() if isinstance(space, spaces.Dict) else [space]
        has_vectors = any(isinstance(part, spaces.Box) and not is_image_space(part) for part in parts)
        is_learned = any(True for _ in features_extractor.parameters())
        # Learned features drift, and inactive units must not be scaled up
        min_var = 1e-4 * th.as_tensor(getattr(features_extractor, "learned_features", is_learned), dtype=th.float32)
        statistics: dict[str, Any] = {"clip": 10.0, "min_momentum": 0.05, "min_var": min_var} if is_learned else {}
        normalized = self.norm_obs and (is_learned or has_vectors)
        # Extractors that pass numbers on. All others expect float32
        centered = normalized and type(features_extractor) in (FlattenExtractor, MultiInputExtractor)
        centered = centered and any(map(needs_float64, parts))
        value_support = CategoricalSupport(self.num_bins, self.value_support)
        reward_support = CategoricalSupport(self.num_bins, self.reward_support)
        networks = self.make_networks(features_dim)
        return LatentModel(
            Preprocessor(space, self.normalize_images, self.channels_last, keeps_float64=centered),
            CenteredFeatures(features_extractor) if centered else features_extractor,
            RunningNorm(features_dim, **statistics) if normalized else nn.Identity(),
            *networks,
            value_support,
            reward_support,
            self.make_augmentation(),
            self.make_turn_head(networks[0]) if self.predict_turns else None,
        ).to(self.device)

    def make_turn_head(self, representation: nn.Module) -> nn.Module:
        """
        :param representation: Representation function h
        :return: Head that predicts if the same player moves again, initialized to zero, which is if they do not
        """
        latent_dim = math.prod(getattr(representation, "latent_shape", (self.latent_dim,)))
        last = zero_linear([latent_dim, *self.net_arch][-1], 1)
        return nn.Sequential(*hidden_layers(latent_dim, self.net_arch, self.activation_fn), last)

    def make_augmentation(self) -> nn.Module | None:
        """:return: Data augmentation of observations in the loss, ``None`` for none"""
        return None

    def make_networks(self, features_dim: int) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
        """
        :param features_dim: Size of the features extractor's output
        :return: Representation, action encoder, dynamics and prediction
        """
        hidden = {"latent_dim": self.latent_dim, "net_arch": self.net_arch, "activation_fn": self.activation_fn}
        latent = {"latent_norm": self.latent_norm, **hidden}
        return (
            self.representation_class(features_dim=features_dim, **latent),
            self.actions.make_encoder(),
            self.dynamics_class(action_dim=self.actions.encoding_dim, num_bins=self.num_bins, **latent),
            self.prediction_class(num_actions=self.actions.num_policy_outputs, num_bins=self.num_bins, **hidden),
        )

    @th.no_grad()
    def update_target(self, tau: float = 1.0) -> None:
        """
        Update the target network.

        :param tau: The soft update coefficient ("Polyak update", between 0 and 1), 1 for a copy
        """
        targets, online = self.latent_model_target, self.latent_model
        th._foreach_lerp_(list(targets.parameters()), list(online.parameters()), tau)
        for target, buffer in zip(targets.buffers(), online.buffers(), strict=True):
            target.copy_(buffer)  # running statistics, bounds of the supports

    def represent(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: Raw observations, shape ``[..., *obs_shape]``, or a dictionary of them
        :return: Latent states of the online model, shape ``[..., latent_dim]``
        """
        return self.latent_model.represent(obs)

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        """
        Predict values with the online model, without search.

        :param obs: Raw observations, shape ``[..., *obs_shape]``
        :return: Values in units of the reward (normalized if ``VecNormalize`` is used), shape ``[..., 1]``
        """
        return self.latent_model.predict_values(obs)

    def plan(
        self,
        obs: PyTorchObs,
        deterministic: bool = False,
        exploration: float = 1.0,
        model: LatentModel | None = None,
        action_masks: np.ndarray | None = None,
    ) -> SearchOutput:
        """
        Run one batched search from all observations.

        :param obs: Raw observations, shape ``[B, *obs_shape]``
        :param deterministic: Whether to search without exploration noise. No random numbers are drawn then
        :param exploration: Scale of the exploration noise
        :param model: Latent model, the online model by default
        :param action_masks: True for legal actions, bool, shape ``[B, mask_dim]``. By default all actions are legal
        :return: Search results; ``action`` contains indices of candidates
        """
        model, value_error = model or self.latent_model, self.value_error.item()
        return self.planner.plan(model, obs, deterministic, exploration, value_error, action_masks)

    @property
    def uncompiled_reason(self) -> str | None:
        """Why the compiled planner does not support the model, ``None`` if it does."""
        try:
            self.planner.compiled_model(self.latent_model)
        except UnsupportedModelError as reason:
            return str(reason)
        return None

    def planner_message(self) -> str | None:
        """:return: Message about the planner to print before training, ``None`` for none"""
        if (reason := self.uncompiled_reason) is not None:
            return f"Using the PyTorch planner: {reason}"
        compiles = "The first search compiles the planner, which takes some seconds and is cached on disk"
        return None if self.planner.is_cached() else compiles

    def forward(self, obs: PyTorchObs, deterministic: bool = True) -> th.Tensor:
        return self._predict(obs, deterministic=deterministic)

    def _predict(
        self, observation: PyTorchObs, deterministic: bool = True, action_masks: np.ndarray | None = None
    ) -> th.Tensor:
        search = self.plan(observation, deterministic=deterministic, action_masks=action_masks)
        return th.as_tensor(self.actions.to_env(search.selected_actions), device=self.device)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Get the policy action from an observation, or a batch of observations, by search.

        :param observation: the input observation
        :param state: Not used, returned unchanged
        :param episode_start: Not used
        :param deterministic: Whether or not to return deterministic actions (search without exploration noise)
        :param action_masks: True for legal actions, shape ``[num_actions]`` or ``[B, num_actions]``, of MultiDiscrete and
            MultiBinary actions those of all components, one after the other. By default all actions are legal
        :return: the model's action and ``state``
        :raises ValueError: for an empty batch, for observations outside of the observation space, and for masks with a wrong
            shape or without a legal action
        """
        if action_masks is None or isinstance(observation, tuple):  # super() explains the tuple of Gym's reset
            return super().predict(observation, state, episode_start, deterministic)
        obs_tensor, vectorized_env = self.obs_to_tensor(observation)
        self.set_training_mode(False)
        with th.no_grad():
            actions = self._predict(obs_tensor, deterministic, action_masks).cpu().numpy()
        return actions if vectorized_env else actions[0], state

    def obs_to_tensor(self, observation: np.ndarray | dict[str, np.ndarray]) -> tuple[PyTorchObs, bool]:
        parts = observation if isinstance(observation, dict) else {"": observation}
        for array in map(np.asarray, parts.values()):
            if array.dtype.kind not in "biuf":
                raise ValueError(f"Observations must be numbers, got an array of dtype {array.dtype}")
        result = super().obs_to_tensor(observation)  # checks keys and shapes
        whole = self.observation_space
        for key, space in whole.items() if isinstance(whole, spaces.Dict) else [("", whole)]:
            array = np.asarray(parts[key])
            if array.size == 0:
                raise ValueError(f"`observation` must hold at least one observation, got an array of shape {array.shape}")
            fits = is_in_space(array, space)
            if not fits.all():
                allowed = f"in {space}" if isinstance(space, COUNTABLE_SPACES) else f"finite and at most {MAX_MAGNITUDE:g}"
                raise ValueError(f"Observations must be {allowed}, got {array[~fits][0]} in {array.shape}")
        return result

    def _get_constructor_parameters(self) -> dict[str, Any]:
        # Arguments are attributes of the same name, also those of subclasses
        classes = [cls for cls in type(self).__mro__ if issubclass(cls, MuZeroPolicy)]
        names = [name for cls in reversed(classes) for name in inspect.signature(cls.__init__).parameters]
        data = {name: getattr(self, name) for name in names if hasattr(self, name)} | self.planner.settings._asdict()
        data["lr_schedule"] = self._dummy_schedule  # dummy lr schedule, not needed for loading policy alone
        return data

    def set_training_mode(self, mode: bool) -> None:
        """
        Put the policy in either training or evaluation mode. The target network always stays in evaluation mode.

        :param mode: if true, set to training mode, else set to evaluation mode
        """
        if self.latent_model.training != mode:
            self.latent_model.train(mode)
        self.training = mode


MlpPolicy = MuZeroPolicy
