"""Print the table in docs/scaling.md: parameters and multiply-accumulates of EfficientNet-B0 to B7.

python -m benchmarks.compound_scaling
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from composer_attn.runs.models.efficientnet import PUBLISHED, efficientnet

# Table 2 of the paper: millions of parameters, billions of multiply-accumulates.
IN_THE_PAPER = dict(
    zip(
        PUBLISHED,
        ((5.3, 0.39), (7.8, 0.70), (9.2, 1.0), (12, 1.8), (19, 4.2), (30, 9.9), (43, 19), (66, 37)),
        strict=True,
    )
)


def count(name: str, attention: str) -> tuple[int, int]:
    """Count parameters and multiply-accumulates for one image, on the meta device."""
    depth, width, resolution = PUBLISHED[name]
    with torch.device("meta"):
        network = efficientnet(
            depth=depth, width=width, resolution=resolution, attention=attention
        ).eval()
        image = torch.empty(1, 3, network.image_size, network.image_size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(image)
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2


COLUMNS = (
    "network", "image", "published parameters", "parameters", "published MACs", "MACs",
    "ECA: parameters", "ECA: MACs", "without: parameters", "without: MACs",
)  # fmt: skip


def rows() -> list[list[str]]:
    """Return a row for each network."""
    found = []
    for name, (parameters, macs) in IN_THE_PAPER.items():
        side = round(224 * PUBLISHED[name].resolution)
        row = [name.rpartition("_")[2].upper(), f"{side}x{side}", f"{parameters}M"]
        counted = {attention: count(name, attention) for attention in ("se", "eca", "none")}
        row += [f"{counted['se'][0]:,}", f"{macs}B", f"{counted['se'][1] / 1e9:.2f}B"]
        for attention in ("eca", "none"):
            row += [f"{counted[attention][0]:,}", f"{counted[attention][1] / 1e9:.2f}B"]
        found.append(row)
    return found


if __name__ == "__main__":
    for row in (COLUMNS, ["---"] * len(COLUMNS), *rows()):
        print(f"| {' | '.join(row)} |")
