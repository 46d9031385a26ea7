"""The decoder reads what latents hold, and changes nothing."""

import numpy as np
import pytest
import torch as th
from conftest import differences, snapshot, tiny_envs, tiny_model
from gymnasium import spaces

from sb3_muzero import MuZero
from sb3_muzero.models.decoder import DecoderProbe

BITS = spaces.Box(0, 255, (3, 6, 6), np.uint8)


def probe_of(model: MuZero, **kwargs) -> DecoderProbe:
    return DecoderProbe(model.policy.represent, model.observation_space, model.device, **kwargs)


def test_vectors():
    model = tiny_model(tiny_envs(1))
    before = snapshot(model)
    seen = th.rand(2_000, 3) * 2 - 1
    probe = probe_of(model)
    assert probe.fit(seen[200:], seen[:200], num_updates=800) > 0.95
    assert differences(before, snapshot(model)) == []
    with th.no_grad():
        latents = model.policy.represent(seen[:50])
    assert (probe(latents) - seen[:50]).abs().mean() < 0.1
    assert not any(parameter is mine for parameter in probe.parameters() for mine in model.policy.parameters())


def test_time_stamps():
    space = spaces.Box(0, np.inf, (1,), np.float64)
    model = tiny_model(tiny_envs(1, observation_space=space))
    seen = 1.7e9 + 60 * th.rand(1_000, 1, dtype=th.float64)
    model.policy.latent_model.update_statistics(seen)
    assert probe_of(model).fit(seen[200:], seen[:200], num_updates=300) > 0.9


def test_nothing_is_read_where_nothing_is_held():
    model = tiny_model(tiny_envs(1))
    with th.no_grad():
        for parameter in model.policy.latent_model.representation.parameters():
            parameter.zero_()
    assert probe_of(model).fit(th.rand(500, 3), th.rand(100, 3), num_updates=200) < 0.05


def test_where_nothing_varies_nothing_is_explained():
    assert probe_of(tiny_model(tiny_envs(1))).fit(th.ones(50, 3), th.ones(20, 3), num_updates=5) == 0.0


def test_quantities_of_different_size_count_alike():
    """Of three, one is in the latents, a thousand times as large as the others; a fourth never changes."""
    space = spaces.Box(-2000.0, 2000.0, (4,), np.float32)
    model = tiny_model(tiny_envs(1, observation_space=space), policy_kwargs={"norm_obs": False})
    with th.no_grad():
        first = model.policy.latent_model.representation[0]
        first.weight[:, 1:] = 0.0
        first.weight[:, 0] /= 1000
    seen = (th.rand(2_000, 4) * 2 - 1) * th.tensor([1000.0, 1.0, 1.0, 0.0])
    assert 0.2 < probe_of(model).fit(seen[200:], seen[:200], num_updates=500) < 0.4


def test_images_and_the_newest_frame_of_a_stack():
    model = tiny_model(tiny_envs(1, observation_space=BITS), "CnnPolicy")
    places = th.randint(108, (1_000,))  # of a single bright pixel
    seen = th.nn.functional.one_hot(places, 108).reshape(-1, 3, 6, 6).byte() * 255
    probe = probe_of(model)
    assert probe(th.rand(2, 64)).shape == (2, 3, 6, 6)
    assert probe.fit(seen[100:], seen[:100], num_updates=600) > 0.8
    newest = probe_of(model, frame_stack=3)
    assert newest.shape == (1, 6, 6)
    np.testing.assert_array_equal(newest.newest(seen), seen[:, 2:] / 255)


@pytest.mark.parametrize("space", [spaces.Discrete(5), spaces.Dict({"a": spaces.Discrete(2)}), spaces.Box(0, 1, (2, 3, 4))])
def test_other_observations_are_refused(space):
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    model = tiny_model(tiny_envs(1, observation_space=space), policy)
    with pytest.raises(ValueError, match="vectors or images with channels first, got"):
        probe_of(model)
