"""The same search of the same model by mctx (https://github.com/google-deepmind/mctx): networks and settings in JAX."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from sb3_muzero.models.categorical import CategoricalSupport
from sb3_muzero.models.normalization import RunningNorm, SimNorm
from sb3_muzero.policies import MuZeroPolicy

MCTX_QVALUES: dict[str, Any] = {"qvalue_scope": "node", "min_qvalue_range": 1e-8}  # how mctx normalises Q values
CONSIDERED_ACTIONS, VALUE_SCALE, MAXVISIT_INIT = 16, 0.1, 50.0  # Gumbel: both libraries' defaults, given to both
DIRICHLET_FRACTION, DIRICHLET_ALPHA, PB_C_INIT, PB_C_BASE = 0.25, 0.3, 1.25, 19652.0  # PUCT: the paper's
SEARCH_KWARGS: dict[str, dict[str, Any]] = {
    "gumbel": {
        "max_num_considered_actions": CONSIDERED_ACTIONS,
        "value_scale": VALUE_SCALE,
        "maxvisit_init": MAXVISIT_INIT,
    },
    "puct": {
        "dirichlet_fraction": DIRICHLET_FRACTION,
        "dirichlet_alpha": DIRICHLET_ALPHA,
        "pb_c_init": PB_C_INIT,
        "pb_c_base": PB_C_BASE,
    },
}


class ScalarSupport(nn.Sequential):
    """Support of a scalar head: the output is the value. Without children, it compiles to no layer."""

    def __init__(self, bounds: tuple[float, float]) -> None:
        super().__init__()
        self.register_buffer("bounds", torch.tensor(bounds))  # read by the policy

    def expectation(self, output: torch.Tensor) -> torch.Tensor:
        return output.squeeze(-1)


def use_threads(threads: int) -> None:
    """Give PyTorch, the search and JAX so many threads; to be called before JAX is imported."""
    torch.set_num_threads(threads)  # the search takes as many as PyTorch
    os.environ["OMP_NUM_THREADS"] = os.environ["NPROC"] = str(threads)
    os.environ["JAX_PLATFORMS"] = "cpu"
    eigen = "true" if threads > 1 else "false"
    flags = f"--xla_cpu_multi_thread_eigen={eigen} intra_op_parallelism_threads={threads}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()


def jax_module(module: Any) -> tuple[Any, Callable[[Any, Any], Any]]:
    """:return: the module's parameters as JAX arrays, and the function ``f(parameters, x)`` that it computes"""
    import jax
    import jax.numpy as jnp

    def array(tensor: torch.Tensor) -> Any:
        return jnp.array(tensor.detach().numpy())

    def normalize(x: Any, epsilon: float) -> Any:
        return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + epsilon)

    if isinstance(module, SimNorm):
        size = module.group_size
        return (), lambda p, x: jax.nn.softmax(normalize(x, 1e-5).reshape(*x.shape[:-1], -1, size), axis=-1).reshape(x.shape)
    if isinstance(module, nn.Linear):
        return (array(module.weight.T.contiguous()), array(module.bias)), lambda p, x: x @ p[0] + p[1]
    if isinstance(module, nn.LayerNorm):
        epsilon = module.eps
        return (array(module.weight), array(module.bias)), lambda p, x: normalize(x, epsilon) * p[0] + p[1]
    if isinstance(module, RunningNorm):
        clip = module.clip
        parameters = (array(module.mean), array((module.var + 1e-8).rsqrt()))
        return parameters, lambda p, x: jnp.clip((x - p[0]) * p[1], -clip, clip)
    if isinstance(module, CategoricalSupport):
        return array(module.bins), lambda p, x: jax.nn.softmax(x, axis=-1) @ p
    if isinstance(module, ScalarSupport):
        return (), lambda p, x: x[..., 0]
    if isinstance(module, nn.ReLU):
        return (), lambda p, x: jax.nn.relu(x)
    if isinstance(module, nn.Sequential):
        parts = [jax_module(child) for child in module]

        def in_turn(parameters: Any, x: Any) -> Any:
            for p, (_, function) in zip(parameters, parts, strict=True):
                x = function(p, x)
            return x

        return [p for p, _ in parts], in_turn
    raise TypeError(f"{module} is not supported in JAX here")


def mctx_search(
    policy: MuZeroPolicy, obs: torch.Tensor, num_simulations: int, deterministic: bool = False
) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """:return: the same search of the same model by mctx: gives actions and action weights when they are there"""
    import jax
    import jax.numpy as jnp
    import mctx

    model: Any = policy.latent_model
    settings, num_actions = policy.planner.settings, policy.actions.num_candidates
    modules = {name: getattr(model, name) for name in ("input_norm", "representation", "value_support", "reward_support")}
    modules |= {name: getattr(model.dynamics, name) for name in ("latent_head", "reward_head")}
    modules |= {name: getattr(model.prediction, name) for name in ("policy_head", "value_head")}
    modules |= {"dynamics": model.dynamics.trunk, "prediction": model.prediction.trunk}
    translated = {name: jax_module(module) for name, module in modules.items()}

    def run(params: Any, names: str, x: Any) -> Any:
        for name in names.split():
            x = translated[name][1](params[name], x)
        return x

    def recurrent_fn(params: Any, key: Any, action: Any, latent: Any) -> Any:
        inputs = jnp.concatenate([latent, jax.nn.one_hot(action, num_actions, dtype=latent.dtype)], axis=-1)
        hidden = run(params, "dynamics", inputs)
        reward = run(params, "reward_head reward_support", hidden)
        latent = run(params, "latent_head", hidden)
        hidden = run(params, "prediction", latent)
        value = run(params, "value_head value_support", hidden)
        prior_logits = run(params, "policy_head", hidden)
        discount = jnp.full_like(reward, settings.discount)
        return mctx.RecurrentFnOutput(reward=reward, discount=discount, prior_logits=prior_logits, value=value), latent

    def search(params: Any, key: Any, observations: Any) -> Any:
        latent = run(params, "input_norm representation", observations)
        hidden = run(params, "prediction", latent)
        value = run(params, "value_head value_support", hidden)
        root = mctx.RootFnOutput(prior_logits=run(params, "policy_head", hidden), value=value, embedding=latent)
        kwargs: dict[str, Any]
        if settings.search == "gumbel":
            planner = mctx.gumbel_muzero_policy
            kwargs = {"max_num_considered_actions": CONSIDERED_ACTIONS, "gumbel_scale": 0.0 if deterministic else 1.0}
            kwargs["qtransform"] = lambda tree, node: mctx.qtransform_completed_by_mix_value(
                tree, node, value_scale=VALUE_SCALE, maxvisit_init=MAXVISIT_INIT
            )
        else:
            planner, kwargs = mctx.muzero_policy, dict(SEARCH_KWARGS["puct"])
            if deterministic:
                kwargs |= {"dirichlet_fraction": 0.0, "temperature": 0.0}
        output = planner(params, key, root, recurrent_fn, num_simulations, **kwargs)
        return output.action, output.action_weights

    jitted = jax.jit(search)
    params = {name: p for name, (p, _) in translated.items()}
    observations = jnp.array(obs.numpy())
    keys = list(jax.random.split(jax.random.key(0), 16))  # drawing them anew is not part of the search

    def call() -> tuple[np.ndarray, np.ndarray]:
        keys.append(keys.pop(0))
        return jax.block_until_ready(jitted(params, keys[0], observations))

    return call


def check_agreement(policy: MuZeroPolicy, obs: torch.Tensor) -> str:
    """:return: how far the two searches agree without noise, where they must, except for ties that rounding decides"""
    num_simulations = policy.planner.settings.num_simulations
    ours = policy.plan(obs, deterministic=True).action_weights
    theirs = np.asarray(mctx_search(policy, obs, num_simulations, deterministic=True)()[1])
    difference = np.abs(ours - theirs).max(axis=1)
    if (difference > 1e-2).sum() > 0.05 * len(obs):
        raise SystemExit("The searches of this package and mctx disagree, so their speed cannot be compared")
    return (
        f"action weights of ours and mctx without noise, {len(obs)} roots, {num_simulations} simulations: largest "
        f"difference {difference.max():.1e}, more than 1e-3 at {int((difference > 1e-3).sum())} roots"
    )
