"""Action spaces: encoding, policy distribution, sampling and masks of actions."""

from sb3_muzero.actions.discrete import ActionTable, CategoricalPolicy, DiscreteActions, make_actions

__all__ = ["ActionTable", "CategoricalPolicy", "DiscreteActions", "make_actions"]
