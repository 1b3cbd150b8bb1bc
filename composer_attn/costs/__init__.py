"""The costs of a surgery on an example input: parameters, multiply-accumulates, memory."""

from composer_attn.costs.example import Example
from composer_attn.costs.measure import measured

__all__ = ["Example", "measured"]
