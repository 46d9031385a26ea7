"""What an action is: its space, its encoding for the dynamics, its distribution, its random draw, its legal values."""

from sb3_muzero.actions.discrete import ActionTable, CategoricalPolicy, DiscreteActions, make_actions

__all__ = ["ActionTable", "CategoricalPolicy", "DiscreteActions", "make_actions"]
