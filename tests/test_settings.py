"""Tuned settings are arguments that exist: what RL Zoo does not use itself, it gives to the constructor."""

import inspect
from pathlib import Path

import pytest
import yaml

from sb3_muzero import MuZero

SECTIONS = yaml.safe_load((Path(__file__).parent.parent / "zoo_configs" / "muzero.yml").read_text())
OF_THE_ZOO = {"n_timesteps", "n_envs", "env_wrapper", "env_kwargs", "frame_stack"}


@pytest.mark.parametrize("section", SECTIONS)
def test_sections_have_arguments_of_the_constructor(section):
    settings = SECTIONS[section].keys() - OF_THE_ZOO
    assert "policy" in settings and settings <= inspect.signature(MuZero).parameters.keys()
