"""SB3's OffPolicyAlgorithm with a replay buffer of sequences."""

from sb3_muzero.off_policy.algorithm import SequenceOffPolicyAlgorithm

__all__ = ["SequenceOffPolicyAlgorithm"]
