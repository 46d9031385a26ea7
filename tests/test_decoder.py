"""The decoder reads what latents hold, and changes nothing."""

import numpy as np
import pytest
import torch as th
from conftest import differences, snapshot, tiny_envs, tiny_model
from gymnasium import spaces

from sb3_muzero.models.decoder import DecoderProbe, to_rgb

BITS = spaces.Box(0, 255, (3, 6, 6), np.uint8)


def test_vectors():
    model = tiny_model(tiny_envs(1))
    before = snapshot(model)
    seen = th.rand(2_000, 3) * 2 - 1
    probe = DecoderProbe(model.policy)
    assert probe.fit(seen[200:], seen[:200], num_updates=800) > 0.95
    assert differences(before, snapshot(model)) == []
    with th.no_grad():
        latents = model.policy.represent(seen[:50])
    assert (probe(latents) - seen[:50]).abs().mean() < 0.1
    assert not any(parameter is mine for parameter in probe.parameters() for mine in model.policy.parameters())


def test_nothing_is_read_where_nothing_is_held():
    model = tiny_model(tiny_envs(1))
    with th.no_grad():
        for parameter in model.policy.latent_model.representation.parameters():
            parameter.zero_()
    assert DecoderProbe(model.policy).fit(th.rand(500, 3), th.rand(100, 3), num_updates=200) < 0.05


def test_where_nothing_varies_nothing_is_explained():
    assert DecoderProbe(tiny_model(tiny_envs(1)).policy).fit(th.ones(50, 3), th.ones(20, 3), num_updates=5) == 0.0


def test_quantities_of_different_size_count_alike():
    """Of three, one is in the latents, a thousand times as large as the others; a fourth never changes."""
    space = spaces.Box(-2000.0, 2000.0, (4,), np.float32)
    model = tiny_model(tiny_envs(1, observation_space=space), policy_kwargs={"norm_obs": False})
    with th.no_grad():
        first = model.policy.latent_model.representation[0]
        first.weight[:, 1:] = 0.0
        first.weight[:, 0] /= 1000
    seen = (th.rand(2_000, 4) * 2 - 1) * th.tensor([1000.0, 1.0, 1.0, 0.0])
    assert 0.2 < DecoderProbe(model.policy).fit(seen[200:], seen[:200], num_updates=500) < 0.4


def test_images_and_the_newest_frame_of_a_stack():
    model = tiny_model(tiny_envs(1, observation_space=BITS), "CnnPolicy")
    places = th.randint(108, (1_000,))  # of a single bright pixel
    seen = th.nn.functional.one_hot(places, 108).reshape(-1, 3, 6, 6).byte() * 255
    probe = DecoderProbe(model.policy)
    assert probe(th.rand(2, 64)).shape == (2, 3, 6, 6)
    assert probe.fit(seen[100:], seen[:100], num_updates=600) > 0.8
    newest = DecoderProbe(model.policy, frame_stack=3)
    assert newest.shape == (1, 6, 6)
    np.testing.assert_array_equal(newest.newest(seen), seen[:, 2:] / 255)


@pytest.mark.parametrize("space", [spaces.Discrete(5), spaces.Dict({"a": spaces.Discrete(2)}), spaces.Box(0, 1, (2, 3, 4))])
def test_other_observations_are_refused(space):
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    model = tiny_model(tiny_envs(1, observation_space=space), policy)
    with pytest.raises(ValueError, match="vectors or images with channels first, got"):
        DecoderProbe(model.policy)


def test_colours():
    grey = to_rgb(th.full((1, 1, 2, 2), 0.5))
    np.testing.assert_allclose(grey, 0.5 * np.ones((1, 2, 2, 3)))
    rgb = th.rand(2, 3, 4, 5)
    np.testing.assert_array_equal(to_rgb(rgb), rgb.permute(0, 2, 3, 1))
    channels = th.eye(6).reshape(1, 6, 1, 6)
    shown = to_rgb(channels)[0, 0]
    assert len({tuple(colour) for colour in shown.tolist()}) == 6  # a colour each
    assert shown.max(-1).values.min() == 1.0
    assert to_rgb(th.zeros(1, 7, 2, 2)).max() == 0
