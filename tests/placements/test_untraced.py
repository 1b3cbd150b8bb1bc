"""Blocks that cannot be traced, in a network where others can."""

from torch import nn

from composer_attn import register_block
from composer_attn.functional import plan_eca
from composer_attn.surgery import blocks


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(self.conv1(x).relu())


class Unforeseeable(Block):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


def test_they_are_pointed_out_beside_those_that_can(monkeypatch):
    monkeypatch.setattr(blocks, "_registered", {})
    model = nn.Sequential(Block(), Unforeseeable())
    plan = plan_eca(model, min_channels=1, placement="residual")
    assert [(s.name, s.chosen) for s in plan.sites] == [("0.conv2", True), ("1", False)]
    assert plan.sites[1].kind == "Unforeseeable"
    assert "if a block, use register_block" in plan.sites[1].reason
    register_block(Unforeseeable, first="conv1", last="conv2")
    plan = plan_eca(model, min_channels=1, placement="residual")
    assert [s.name for s in plan.chosen] == ["0.conv2", "1.conv2"]
