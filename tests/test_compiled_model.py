"""The compiled model equals the PyTorch modules whose memory it reads, and says so where it cannot."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch as th
from conftest import tiny_model
from gymnasium import spaces
from torch import nn

from sb3_muzero.models.base import LatentModel
from sb3_muzero.models.mlp import Dynamics, Prediction
from sb3_muzero.models.normalization import MinMaxNorm, SimNorm
from sb3_muzero.policies import MuZeroPolicy
from sb3_muzero.search import CompiledModel, UnsupportedModelError, gumbel_muzero_search
from sb3_muzero.search.backends.numba import translate

ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.SiLU, nn.ELU, nn.GELU, nn.LeakyReLU, nn.Sigmoid, nn.Mish, nn.Identity]
BOUNDS = {"value_support": (-3.0, 40.0), "reward_support": (-1.0, 5.0)}


def make_policy(num_actions=3, num_features=5, seed=0, **kwargs) -> MuZeroPolicy:
    """A policy of random weights, the heads' included."""
    observation_space = spaces.Box(-1, 1, (num_features,))
    settings = {"latent_dim": 16, "net_arch": [24], "num_bins": 21, **kwargs}
    policy = MuZeroPolicy(observation_space, spaces.Discrete(num_actions), lambda _: 1e-2, **settings)
    policy.set_training_mode(False)
    return scramble(policy, seed)


@th.no_grad()
def scramble(policy: MuZeroPolicy, seed: int) -> MuZeroPolicy:
    generator = th.Generator().manual_seed(seed)
    for parameter in policy.latent_model.parameters():
        parameter.add_(0.5 * th.randn(parameter.shape, generator=generator))
    return policy


def observations(batch_size: int, num_features: int = 5) -> th.Tensor:
    return 2 * th.rand(batch_size, num_features, generator=th.Generator().manual_seed(1)) - 1


def compiled_model(policy: MuZeroPolicy) -> CompiledModel:
    return policy.planner.compiled_model(policy.latent_model)


def plan_in_torch(policy: MuZeroPolicy, obs: th.Tensor):
    def refuse(model=None):
        raise UnsupportedModelError("this is the reference")

    policy.planner.compiled_model = refuse  # type: ignore[method-assign]
    try:
        return policy.plan(obs, deterministic=True)
    finally:
        del policy.planner.compiled_model


def assert_close(found, expected, rtol=1e-4):
    for name in set(expected._fields) - {"candidates", "node_candidates"}:
        a, b = (np.asarray(getattr(output, name)) for output in (found, expected))
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-4 + 1e-5 * np.abs(b).max(), err_msg=name)


def assert_same_model(policy: MuZeroPolicy, batch_size: int = 9) -> None:
    """Inference at the root and of one step."""
    compiled = compiled_model(policy)
    model = policy.latent_model
    obs = observations(batch_size, policy.observation_space.shape[0])
    action = th.arange(batch_size) % policy.action_space.n
    with th.no_grad():
        latent = policy.represent(obs)
        root = model.prediction(latent)
        found = compiled.initial_inference(model.features_extractor(obs))
        np.testing.assert_allclose(found.latent, latent, atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(found.prior_logits, root.policy_logits, atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(found.value, model.value_support.expectation(root.value_logits), atol=1e-4, rtol=1e-4)
        assert_close(
            compiled(latent, action), policy.latent_model.recurrent_inference(latent, action, policy.planner.settings.discount)
        )


def assert_same_plan(policy: MuZeroPolicy, batch_size: int = 9) -> None:
    """Whole searches: the same trees but for rounding."""
    assert policy.uncompiled_reason is None
    obs = observations(batch_size, policy.observation_space.shape[0])
    found, expected = policy.plan(obs, deterministic=True), plan_in_torch(policy, obs)
    np.testing.assert_array_equal(found.visit_counts, expected.visit_counts)
    np.testing.assert_array_equal(found.action, expected.action)
    np.testing.assert_array_equal(found.tree.parents, expected.tree.parents)
    for name in ("value", "qvalues", "action_weights"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=2e-4, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("activation_fn", ACTIVATIONS)
def test_activations(activation_fn):
    assert_same_model(make_policy(activation_fn=activation_fn, **BOUNDS))


@pytest.mark.parametrize("activation_fn", ACTIVATIONS)
def test_activations_far_from_zero(activation_fn):
    """Where exponentials overflow or vanish."""
    policy = make_policy(activation_fn=activation_fn, latent_norm="none", net_arch=[])
    spread = nn.Sequential(nn.Linear(1, 7, bias=False), nn.Identity() if activation_fn is nn.Identity else activation_fn())
    with th.no_grad():
        spread[0].weight.copy_(th.tensor([[1.0], [-1.0], [20.0], [-20.0], [200.0], [-200.0], [0.01]]))
    policy.latent_model.input_norm = spread
    policy.latent_model.representation = nn.Identity()
    policy.latent_model.dynamics = Dynamics(7, 3, 21, [], nn.ReLU, "none")
    policy.latent_model.prediction = Prediction(7, 3, 21, [], nn.ReLU)
    obs = th.linspace(-3, 3, 33)[:, None]
    with th.no_grad():
        np.testing.assert_allclose(compiled_model(policy).initial_inference(obs).latent, spread(obs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("latent_norm", ["simnorm", "minmax", "none"])
@pytest.mark.parametrize("net_arch", [[], [64], [32, 48]])
@pytest.mark.parametrize("search", ["gumbel", "puct"])
def test_architectures(latent_norm, net_arch, search):
    policy = make_policy(latent_norm=latent_norm, net_arch=net_arch, search=search, **BOUNDS)
    assert_same_model(policy)
    assert_same_plan(policy)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 9, 16, 33])
@pytest.mark.parametrize("num_actions", [2, 18])
@pytest.mark.parametrize("search", ["gumbel", "puct"])
def test_batches(batch_size, num_actions, search):
    policy = make_policy(num_actions=num_actions, num_features=3, search=search, **BOUNDS)
    assert_same_model(policy, batch_size)
    assert_same_plan(policy, batch_size)


@pytest.mark.parametrize("bounds", [(-1e4, 1e4), (0.0, 1e-3), None])
def test_supports(bounds):
    """None is a support that has seen nothing: both bounds are 0, and so is every value."""
    assert_same_model(make_policy(value_support=bounds, reward_support=bounds))
    assert_same_plan(make_policy(value_support=bounds, reward_support=bounds))


@pytest.mark.parametrize(("latent_dim", "num_bins", "num_actions"), [(8, 2, 1), (40, 101, 5), (128, 601, 3)])
def test_widths(latent_dim, num_bins, num_actions):
    assert_same_model(make_policy(latent_dim=latent_dim, num_bins=num_bins, num_actions=num_actions, **BOUNDS))


def test_input_statistics():
    policy = make_policy(**BOUNDS)
    policy.latent_model.update_statistics(5 * observations(50) + 2)
    assert_same_model(policy)


def test_new_weights_are_used():
    policy = make_policy(**BOUNDS)
    compiled, obs = compiled_model(policy), observations(4)
    before = compiled.initial_inference(obs)
    policy.latent_model.prediction(policy.represent(obs)).policy_logits[:, 0].sum().backward()
    policy.optimizer.step()
    assert np.abs(compiled.initial_inference(obs).prior_logits - before.prior_logits).max() > 1e-3
    assert_same_model(policy)
    policy.load_state_dict(make_policy(seed=7, **BOUNDS).state_dict())
    assert_same_model(policy)
    assert_same_plan(policy)
    policy.latent_model.value_support.rescale_head((-5.0, 80.0), policy.latent_model.prediction.value_head)
    assert_same_model(policy)
    for parameter in policy.latent_model.parameters():
        parameter.data = parameter.data.clone() * 0.5
    assert_same_model(policy)


class ResidualDynamics(Dynamics):
    def forward(self, latent, action):
        output = super().forward(latent, action)
        return output._replace(latent=0.5 * latent + 0.5 * output.latent)


class InheritedDynamics(Dynamics):
    pass


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def replace(path: str, module: nn.Module):
    def change(policy):
        owner, name = path.rsplit(".", 1)
        setattr(policy.get_submodule(owner), name, module)

    return change


UNCOMPILED = {
    "forward hook": lambda p: p.latent_model.representation[0].register_forward_hook(lambda m, x, y: 2 * y),
    "forward pre-hook": lambda p: p.latent_model.prediction.register_forward_pre_hook(lambda m, x: (2 * x[0],)),
    "own forward": lambda p: setattr(p.latent_model.dynamics, "forward", lambda latent, action: latent),
    "subclassed layer": replace("latent_model.prediction.policy_head", Doubled(24, 3)),
    "unknown layer": replace("latent_model.prediction.trunk", nn.Sequential(nn.Linear(16, 24), nn.Softplus())),
    "approximate GELU": replace("latent_model.prediction.trunk", nn.Sequential(nn.Linear(16, 24), nn.GELU("tanh"))),
    "weight norm": lambda p: nn.utils.parametrizations.weight_norm(p.latent_model.dynamics.trunk[0]),
    "double precision": lambda p: p.latent_model.dynamics.double(),
    "not contiguous": lambda p: setattr(p.latent_model.dynamics.trunk[0].weight, "data", th.zeros(19, 24).t()),
}


@pytest.mark.parametrize("change", UNCOMPILED.values(), ids=UNCOMPILED)
@pytest.mark.parametrize("has_planned", [False, True])
def test_what_is_not_compiled(change, has_planned):
    policy = make_policy(**BOUNDS)
    if has_planned:
        policy.plan(observations(2))
    change(policy)
    with pytest.raises(UnsupportedModelError):
        compiled_model(policy)
    assert policy.uncompiled_reason


def new_parameter(policy):
    layer = policy.latent_model.dynamics.latent_head[0]
    layer.weight = nn.Parameter(1.5 * layer.weight)


def fewer_bins(policy):
    """In the memory where the others were."""
    model = policy.latent_model
    head, support = model.prediction.value_head, model.value_support
    head.weight.data, head.bias.data, support.grid = head.weight.data[:11], head.bias.data[:11], support.grid[:11]


CHANGES = {
    "new parameter": new_parameter,
    "no bias": lambda p: setattr(p.latent_model.prediction.policy_head, "bias", None),
    "fewer bins": fewer_bins,
    "other bins": lambda p: setattr(p.latent_model.value_support, "bounds", th.tensor([-9.0, 9.0])),
    "constant": lambda p: setattr(p.latent_model.input_norm, "clip", 0.1),
    "layer of a sequence": lambda p: p.latent_model.dynamics.latent_head.__setitem__(-1, nn.Tanh()),
    "one more layer": lambda p: p.latent_model.prediction.trunk.append(nn.Tanh()),
    "whole network": replace("latent_model.dynamics", Dynamics(16, 3, 21, [8], nn.Tanh, "minmax")),
    "discount": lambda p: setattr(p.planner, "settings", p.planner.settings._replace(discount=0.5)),
    "whole model": lambda p: setattr(p, "latent_model", make_policy(seed=5, **BOUNDS).latent_model),
}


@pytest.mark.parametrize("net_arch", [[24], []])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_after_a_plan_are_noticed(change, net_arch):
    policy = make_policy(net_arch=net_arch, **BOUNDS)
    before = policy.plan(observations(9), deterministic=True)
    change(policy)
    assert_same_plan(policy)
    assert np.abs(policy.plan(observations(9), deterministic=True).value - before.value).max() > 1e-3


def test_reordered_layers_are_noticed():
    policy = make_policy(net_arch=[], **BOUNDS)
    policy.latent_model.prediction.trunk = nn.Sequential(nn.Linear(16, 16), nn.Tanh())
    policy.plan(observations(9))
    modules = policy.latent_model.prediction.trunk._modules
    modules["0"] = modules.pop("0")
    assert_same_plan(policy)


def test_a_transposed_square_weight_is_noticed():
    policy = make_policy(net_arch=[], **BOUNDS)
    layer = nn.Linear(16, 16)
    policy.latent_model.prediction.trunk = nn.Sequential(layer)
    policy.plan(observations(9))
    layer.weight.data = layer.weight.data.t()
    assert "contiguous" in policy.uncompiled_reason


def test_attributes_that_mean_nothing_may_be_anything():
    policy = make_policy(**BOUNDS)
    for note in (th.zeros(3), th.ones(3), np.zeros(3), None, 1):
        policy.latent_model.note = note
        assert_same_plan(policy)


def test_a_weight_that_is_no_parameter_is_not_compiled():
    """Nobody would notice when its memory moves."""
    policy = make_policy(**BOUNDS)
    layer = policy.latent_model.dynamics.trunk[0]
    weight = layer.weight.detach().clone()
    del layer.weight
    layer.weight = weight
    assert "neither parameters nor buffers" in policy.uncompiled_reason


def test_a_compiled_model_outlives_its_parameters():
    """Whoever keeps it plans with what the parameters were, not with freed memory."""
    policy = make_policy(**BOUNDS)
    compiled, obs = compiled_model(policy), observations(9)
    expected = compiled.initial_inference(obs)
    policy.latent_model.double()
    assert not compiled.is_current()
    junk = [th.full((n,), 1e9) for n in range(1, 2000)]
    assert_close(compiled.initial_inference(obs), expected)
    del junk


def test_a_model_that_did_not_change_is_translated_once():
    policy = make_policy(**BOUNDS)
    compiled = compiled_model(policy)
    policy.latent_model.prediction(policy.represent(observations(4))).value_logits.mean().backward()
    policy.optimizer.step()
    assert compiled_model(policy) is compiled


@pytest.mark.parametrize("search", ["gumbel", "puct"])
def test_the_result_does_not_depend_on_threads(search):
    policy, obs = make_policy(search=search, **BOUNDS), observations(73)
    alone = policy.plan(obs, deterministic=True)
    th.set_num_threads(3)
    try:
        together = policy.plan(obs, deterministic=True)
    finally:
        th.set_num_threads(1)
    for name, array in alone.tree._asdict().items():
        np.testing.assert_array_equal(getattr(together.tree, name), array, err_msg=name)
    np.testing.assert_array_equal(together.action_weights, alone.action_weights)


def test_threads_may_plan_with_one_policy_at_once():
    policy = make_policy(num_simulations=50, **BOUNDS)
    batches = [observations(40) * scale for scale in (0.2, 0.5, 1.0, 2.0)] * 5
    expected = [policy.plan(obs, deterministic=True) for obs in batches]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda obs: policy.plan(obs, deterministic=True), batches))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.tree.children_visits, other.tree.children_visits)
        np.testing.assert_array_equal(one.value, other.value)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_failing_root_is_named(threads):
    """Whichever block and thread it is in."""
    policy, bad = make_policy(**BOUNDS), observations(40)
    compiled = compiled_model(policy)
    root = compiled.initial_inference(policy.latent_model.features_extractor(bad))
    root.latent[37] = np.nan
    th.set_num_threads(threads)
    try:
        with pytest.raises(ValueError, match=r"recurrent_fn's .* in row 37"):
            gumbel_muzero_search(root, compiled, 4)
        root.value[21] = np.inf
        with pytest.raises(ValueError, match=r"root's value must be finite .* got inf in row 21"):
            gumbel_muzero_search(root, compiled, 4)
    finally:
        th.set_num_threads(1)
    assert_same_plan(policy, 40)


@pytest.mark.parametrize("dynamics_class", [ResidualDynamics, InheritedDynamics])
def test_custom_dynamics_plan_in_torch(dynamics_class):
    policy = make_policy(dynamics_class=dynamics_class, **BOUNDS)
    assert dynamics_class.__name__ in policy.uncompiled_reason
    obs = observations(3)
    found, expected = policy.plan(obs, deterministic=True), plan_in_torch(policy, obs)
    np.testing.assert_array_equal(found.value, expected.value)


class SeparateHeads(Prediction):
    def forward(self, latent):
        return super().forward(latent)


def test_a_registered_module_is_compiled(monkeypatch):
    policy = make_policy(prediction_class=SeparateHeads, **BOUNDS)
    assert "SeparateHeads is not supported by the compiled planner" in policy.uncompiled_reason
    monkeypatch.setattr(translate, "_REGISTRY", translate._REGISTRY.copy())
    translate.register(SeparateHeads, "prediction")
    assert_same_plan(policy)
    with pytest.raises(ValueError, match=r"kind must be one of .*simnorm.* got 'attention'"):
        translate.register(SeparateHeads, "attention")


def test_overridden_inference_plans_in_torch():
    class Pessimist(LatentModel):
        def recurrent_inference(self, latent, action, discount):
            output = super().recurrent_inference(latent, action, discount)
            return output._replace(value=output.value - 100)

    policy = MuZeroPolicy(spaces.Box(-1, 1, (5,)), spaces.Discrete(2), lambda _: 1e-3)
    policy.latent_model.__class__ = Pessimist
    assert "Pessimist" in policy.uncompiled_reason
    assert policy.plan(observations(2)).value.max() < -50


SHARED = nn.Tanh()


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Linear(5, 7), SHARED, nn.Linear(7, 16), SHARED],
        [nn.Linear(5, 16), nn.LayerNorm(16, elementwise_affine=False)],
        [nn.Flatten(), nn.Linear(5, 9, bias=False), nn.LayerNorm(9, bias=False), nn.Tanh(), nn.Linear(9, 16)],
        [nn.LayerNorm(5, eps=1e-2), nn.Linear(5, 16), nn.LeakyReLU(0.3), nn.ELU(0.5), SimNorm(4)],
        [nn.Sequential(nn.Linear(5, 16), nn.Sequential()), MinMaxNorm(0.1)],
    ],
)
def test_sequences_of_layers(layers):
    policy = make_policy(**BOUNDS)
    policy.latent_model.representation = nn.Sequential(*layers)
    assert_same_model(scramble(policy, 3))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda policy: pickle.loads(pickle.dumps(policy))])
def test_copies_plan_with_their_own_weights(duplicate):
    policy = make_policy(**BOUNDS)
    policy.plan(observations(2))
    twin = duplicate(policy)
    before = policy.plan(observations(2), deterministic=True)
    scramble(twin, 5)
    assert_same_plan(twin)
    assert_close(policy.plan(observations(2), deterministic=True)._replace(tree=0), before._replace(tree=0), rtol=0)
    assert not np.allclose(twin.plan(observations(2), deterministic=True).value, before.value)


@pytest.mark.parametrize("name", ["dynamics", "representation"])
def test_nan_is_reported(name):
    policy = make_policy(**BOUNDS)
    with th.no_grad():
        next(policy.latent_model.get_submodule(name).parameters())[0, 0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        policy.plan(observations(11))


@pytest.mark.parametrize("head", ["prediction.policy_head", "prediction.value_head", "dynamics.reward_head"])
def test_nan_in_a_head_is_reported(head):
    policy = make_policy(**BOUNDS)
    with th.no_grad():
        policy.latent_model.get_parameter(f"{head}.bias")[1] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        policy.plan(observations(3))


def test_wrong_features_are_turned_away():
    compiled = CompiledModel(make_policy(**BOUNDS).latent_model, 0.9)
    with pytest.raises(ValueError, match="features"):
        compiled.initial_inference(np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match="latent"):
        compiled(np.zeros((2, 15), np.float32), np.zeros(2, np.int64))


def test_a_root_with_other_actions_than_the_model_is_refused():
    model = compiled_model(tiny_model("CartPole-v1").policy)
    root = model.initial_inference(th.zeros(1, 4))
    with pytest.raises(ValueError, match="prior_logits"):
        gumbel_muzero_search(root._replace(prior_logits=np.zeros((1, 400), np.float32)), model, 4)
