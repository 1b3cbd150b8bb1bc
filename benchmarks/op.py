"""What does attention fused with batch norm cost, compared with batch norm alone and with a copy?

python -m benchmarks.op --layout channels_last --threads 1
python -m benchmarks.op --order norm_activation_attention --activation silu --shapes efficientnet
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from composer.algorithms.squeeze_excite import SqueezeExcite2d
from torch import Tensor, nn

from benchmarks.common import (
    RATIO,
    RESULTS,
    Device,
    Layout,
    append,
    ratios,
    show,
    surroundings,
    take_turns,
    timed,
)
from composer_attn.attention import EfficientChannelAttention, SqueezeExcitation
from composer_attn.ops import (
    attend_then_normalize,
    normalize_activate_attend,
    normalize_then_attend,
)
from composer_attn.ops.activations import ACTIVATIONS, find_activation, phi

# The attended feature maps of ResNet-50, for 128x128 images on a CPU and 224x224 on a GPU.
SHAPES = {
    "cpu": "16x128x32x32,16x128x16x16,16x512x16x16,16x256x8x8,16x1024x8x8,16x512x4x4,16x2048x4x4",
    "cuda": "256x64x56x56,256x256x56x56,256x128x28x28,256x512x28x28,256x1024x14x14,256x2048x7x7",
}
# The attended feature maps of EfficientNet-B0, for 128x128 images.
EFFICIENTNET = "16x32x64x64,16x96x32x32,16x144x32x32,16x240x16x16,16x480x8x8,16x672x8x8,16x1152x4x4"
_LATENT = 64
# Feature maps read and written. Forward reads twice and writes once, with one more read if the
# activation comes before the attention; backward reads two maps twice and writes one.
_PASSES = {
    "attention_norm_activation": 8, "norm_attention_activation": 8, "norm_activation_attention": 9
}  # fmt: skip
_PASSES_OF_COPY = 2
_MINIMUM = 0.02  # seconds per measurement: short actions are repeated


class Dtype(str, Enum):
    """Dtype of the feature map; parameters are float32."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Attention(str, Enum):
    """Kind of attention."""

    SE = "se"
    ECA = "eca"


class Order(str, Enum):
    """Order of attention, norm and activation."""

    ATTENTION_NORM_ACTIVATION = "attention_norm_activation"
    NORM_ATTENTION_ACTIVATION = "norm_attention_activation"
    NORM_ACTIVATION_ATTENTION = "norm_activation_attention"


Act = Enum("Act", {name.upper(): name for name in ACTIVATIONS}, type=str)


@dataclass(frozen=True)
class Contender:
    """A function of a feature map, and its trainable parameters."""

    name: str
    forward: Callable[[Tensor], Tensor]
    parameters: list[nn.Parameter]


@dataclass(frozen=True)
class Site:
    """The operations to measure.

    Attributes:
        order: order of attention, norm and activation.
        activation: kind of activation.
        attention: kind of attention.
    """

    order: Order
    activation: Act
    attention: Attention

    def modules(self, x: Tensor, attention: nn.Module | None, norm: nn.Module) -> Tensor:
        """Compute the modules one after another, with the activation in place, as in networks."""
        attention = attention or nn.Identity()
        if self.order is Order.NORM_ACTIVATION_ATTENTION:
            return attention(self._activated(norm(x)))
        first = self.order is Order.ATTENTION_NORM_ACTIVATION
        return self._activated(norm(attention(x)) if first else attention(norm(x)))

    def joint(self, x: Tensor, attention: nn.Module, norm: nn.Module, backend: str) -> Tensor:
        """Compute them fused."""
        name = self.activation.value
        if self.order is Order.NORM_ACTIVATION_ATTENTION:
            return normalize_activate_attend(x, norm, name, attention, backend)
        first = self.order is Order.ATTENTION_NORM_ACTIVATION
        function = attend_then_normalize if first else normalize_then_attend
        return function(x, attention, norm, backend, activation=name)

    def _activated(self, z: Tensor) -> Tensor:
        return z.relu_() if self.activation.value == "relu" else phi(z, self._found)

    @property
    def _found(self):
        return find_activation(self.activation.value)

    def ours(self, channels: int) -> nn.Module:
        """Build this package's attention."""
        if self.attention is Attention.ECA:
            return EfficientChannelAttention(channels)
        return SqueezeExcitation(channels, _LATENT)


def contenders(site: Site, channels: int, backends: list[str], device: str):
    """Build batch norm alone, with Composer's SE, with our attention, and fused with ours."""
    found = []

    def add(name: str, module: nn.Module | None, joint: str | None = None) -> None:
        norm = nn.BatchNorm2d(channels).to(device)
        module = None if module is None else module.to(device)

        def forward(x: Tensor) -> Tensor:
            if joint is not None:
                return site.joint(x, module, norm, joint)
            return site.modules(x, module, norm)

        trained = [*norm.parameters(), *(() if module is None else module.parameters())]
        found.append(Contender(name, forward, trained))

    add("batch norm", None)
    add("Composer's SE, batch norm", SqueezeExcite2d(channels, _LATENT))
    add(f"{site.attention.value}, batch norm", site.ours(channels))
    for backend in backends:
        add(f"{site.attention.value} + batch norm, {backend}", site.ours(channels), backend)
    return found


def measure(
    shape: tuple[int, ...], entries: list[Contender], dtype: Dtype, layout: Layout, device: str,
    rounds: int, passes: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Time forward and backward of each contender and a copy, in interleaved rounds."""
    x, dy = (
        torch.randn(shape, device=device, dtype=getattr(torch, dtype.value))
        .to(memory_format=layout.memory_format)
        for _ in range(2)
    )  # fmt: skip
    x.requires_grad_()
    target = torch.empty_like(dy)

    def step(entry: Contender) -> None:
        # Layers run in 16 bits under autocast, as they do in a network.
        with torch.autocast(device, x.dtype, enabled=x.dtype != torch.float32):
            y = entry.forward(x)
        torch.autograd.grad(y, [x, *entry.parameters], dy)

    actions = [lambda: target.copy_(dy), *(lambda entry=entry: step(entry) for entry in entries)]
    first = [timed(action) for action in actions]
    repeats = [max(1, round(_MINIMUM / timed(action))) for action in actions]
    turns = take_turns([_repeated(*pair) for pair in zip(actions, repeats, strict=True)], rounds)
    copy, *seconds = [[s / n for s in turn] for turn, n in zip(turns, repeats, strict=True)]
    return [
        {
            "shape": "x".join(map(str, shape)),
            "what": entry.name,
            "milliseconds": round(1e3 * sorted(own)[len(own) // 2], 4),
            **ratios(own, seconds[0]),
            "share_of_copy_bandwidth": _share(own, copy, passes),
            "first_call_seconds": round(before, 2),
        }
        for entry, own, before in zip(entries, seconds, first[1:], strict=True)
    ]


def _repeated(action: Callable[[], Any], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            action()

    return run


def _share(seconds: list[float], copy: list[float], passes: int) -> float:
    """Time for a copy of as many bytes as the fused passes move, divided by the time taken."""
    limit = ratios(copy, seconds)["ratio"] * passes / _PASSES_OF_COPY
    return round(limit, 3)


def main(
    device: Annotated[Device, typer.Option(help="Device to run on.")] = Device.CPU,
    dtype: Annotated[Dtype, typer.Option(help="Dtype of the feature map.")] = Dtype.FLOAT32,
    layout: Annotated[Layout, typer.Option(help="Memory format of the feature map.")] = Layout.NCHW,
    shapes: Annotated[
        str,
        typer.Option(
            help="Such as 16x256x28x28,16x512x14x14; efficientnet for B0's; default: ResNet-50's."
        ),
    ] = "",
    attention: Annotated[Attention, typer.Option(help="Kind of attention.")] = Attention.SE,
    order: Annotated[
        Order, typer.Option(help="Order of the operations.")
    ] = Order.ATTENTION_NORM_ACTIVATION,
    activation: Annotated[Act, typer.Option(help="Activation, fused as well.")] = Act.RELU,
    backends: Annotated[
        str, typer.Option(help="Backends to measure; default: auto,reference.")
    ] = "",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: torch's default.")] = 0,
    rounds: Annotated[int, typer.Option(min=2, help="Timed rounds.")] = 15,
    results: Annotated[Path, typer.Option(help="CSV file to append to.")] = RESULTS / "op.csv",
) -> None:
    """Time attention with batch norm, forward and backward, against batch norm alone."""
    torch.manual_seed(0)
    if threads:
        torch.set_num_threads(threads)
    asked = backends.split(",") if backends else ["auto", "reference"]
    settings = surroundings(device.value) | {
        "dtype": dtype.value, "layout": layout.value, "order": order.value,
        "activation": activation.value, "rounds": rounds,
    }  # fmt: skip
    shapes = EFFICIENTNET if shapes == "efficientnet" else shapes or SHAPES[device.value]
    site, rows = Site(order, activation, attention), []
    for text in shapes.split(","):
        shape = tuple(map(int, text.split("x")))
        entries = contenders(site, shape[1], asked, device.value)
        passes = _PASSES[order.value]
        rows += measure(shape, entries, dtype, layout, device.value, rounds, passes)
    title = "{order}, {activation}, fwd+bwd, {dtype}, {layout}, {threads} threads, {device}"
    columns = ("shape", "what", "ms", "/ batch norm (quartiles)", "of copy bandwidth", "first s")
    line = (
        "{shape}|{what}|{milliseconds:.3f}|" + RATIO + "|"
        "{share_of_copy_bandwidth:.0%}|{first_call_seconds:.2f}"
    )
    show(title.format(**settings), columns, [line.format(**row).split("|") for row in rows])
    append(results, [settings | row for row in rows])


if __name__ == "__main__":
    typer.run(main)
