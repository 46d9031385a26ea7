"""The parts that MuZero wires: another policy, nested latents, candidates, episodes that do not fit."""

from copy import deepcopy

import numpy as np
import pytest
import torch as th
from conftest import TinyEnv, differences, scramble, sequences_of, tiny_envs, tiny_model
from gymnasium import spaces
from torch import nn

from sb3_muzero.learning.losses import muzero_loss
from sb3_muzero.replay.replay_buffer import SequenceReplayBuffer
from sb3_muzero.replay.sequences import SearchStatistics

BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)


def test_a_policy_that_is_assigned_acts_and_is_trained() -> None:
    model, other = tiny_model(tiny_envs()).learn(40), tiny_model(tiny_envs(), seed=1).policy
    model.policy = other
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    model.learn(40, reset_num_timesteps=False)
    assert differences(before, other.state_dict())
    assert model.collector.policy is model.learner.policy is model.reanalyzer.policy is other


def test_the_first_step_is_stored_from_the_observation_that_was_acted_on() -> None:
    model = tiny_model(tiny_envs()).learn(20)
    env = tiny_envs()
    model.set_env(env, force_reset=False)
    model._last_obs = env.reset()
    first = model._last_obs.copy()
    model.learn(4, reset_num_timesteps=False)
    np.testing.assert_array_equal(model.replay_buffer.observations.frames[20, 0], first[0])


class Halves(nn.Module):
    """A representation whose latents are nested."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, features: th.Tensor) -> dict[str, th.Tensor]:
        first, second = self.inner(features).chunk(2, dim=-1)
        return {"first": first, "second": second}


class Joined(nn.Module):
    """A network of the whole latent, which gets it as two halves."""

    def __init__(self, inner: nn.Module, splits: bool) -> None:
        super().__init__()
        self.inner, self.splits = inner, splits
        self.value_head, self.reward_head = getattr(inner, "value_head", None), getattr(inner, "reward_head", None)

    def forward(self, latent: dict[str, th.Tensor], *action: th.Tensor):
        output = self.inner(th.cat([latent["first"], latent["second"]], dim=-1), *action)
        if not self.splits:
            return output
        return output._replace(latent=dict(zip(("first", "second"), output.latent.chunk(2, dim=-1), strict=True)))


def nest(network: nn.Module) -> None:
    network.representation = Halves(network.representation)
    network.dynamics, network.prediction = Joined(network.dynamics, True), Joined(network.prediction, False)


def test_losses_of_nested_latents_are_those_of_the_single_tensor() -> None:
    model = scramble(tiny_model(tiny_envs()).learn(60))
    samples = model.sample(8, 3)
    targets, single = model.learner.targets(samples), model.policy.latent_model
    nested = deepcopy(single)
    nest(nested)
    expected, found = (muzero_loss(network, model.policy.actions, samples, targets).losses for network in (single, nested))
    for name in ("policy", "entropy", "value", "reward"):
        th.testing.assert_close(found[name], expected[name], msg=name)
    assert 0 < found["consistency"] < 2 * 3


def test_nested_latents_plan_and_learn() -> None:
    model = tiny_model(tiny_envs())
    nest(model.policy.latent_model)
    nest(model.policy.latent_model_target)
    model.learn(60)
    assert model._n_updates > 0 and model.logger.name_to_value["train/consistency_loss"] > 0
    assert model.predict(np.zeros((2, 3), np.float32))[0].shape == (2,)


def make_buffer() -> SequenceReplayBuffer:
    return SequenceReplayBuffer(40, BOX, spaces.Discrete(3), device="cpu")


def add(buffer: SequenceReplayBuffer, search: SearchStatistics | None) -> None:
    obs = np.zeros((1, 3), np.float32)
    buffer.add(obs, obs, np.zeros(1, int), np.zeros(1), np.zeros(1, bool), [{}], search)


def test_steps_without_candidates_have_all_actions_in_their_order() -> None:
    buffer, weights = make_buffer(), np.full((1, 3), 1 / 3, np.float32)
    add(buffer, SearchStatistics(1, weights))
    add(buffer, SearchStatistics(1, weights, candidates=np.array([[2, 0, 1]])))
    add(buffer, SearchStatistics(1, weights))
    ids = buffer.index.stored()
    candidates = sequences_of(buffer, np.arange(3), np.zeros(3, int), 1, 1).candidates
    assert candidates is not None and candidates[0].tolist() == [[0, 1, 2], [2, 0, 1], [0, 1, 2]]
    buffer.update_search(ids[1:2], weights, 2)
    candidates = sequences_of(buffer, np.arange(3), np.zeros(3, int), 1, 1).candidates
    assert candidates is not None and candidates[0, 1].tolist() == [0, 1, 2]


@pytest.mark.parametrize(("num_observations", "num_policies"), [(5, 5), (8, 5), (6, 6)])
def test_an_episode_whose_parts_do_not_fit_is_refused_and_changes_nothing(num_observations, num_policies) -> None:
    buffer = make_buffer()
    add(buffer, None)
    before = buffer.observations.ends.copy()
    weights = np.full((num_policies, 3), 1 / 3, np.float32)
    with pytest.raises(ValueError, match=r"`observations` must be one more|`search` must be of the 5 steps"):
        buffer.add_episode(
            np.zeros((num_observations, 3), np.float32), np.zeros(5, int), np.zeros(5), True, SearchStatistics(1, weights)
        )
    assert buffer.size() == 1 and (buffer.observations.ends == before).all()


def test_a_schedule_that_is_assigned_is_used_when_sequences_are_drawn() -> None:
    model = tiny_model(TinyEnv()).learn(40)
    model.novelty_coef = 0.1
    assert model.sample(4, 2).rewards.isfinite().all()
