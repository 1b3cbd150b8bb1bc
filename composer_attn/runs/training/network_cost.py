"""The cost of a network: parameters, multiply-accumulates, memory."""

import platform
import resource
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """Count the parameters of a model, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(network: nn.Module, image: Tensor) -> int:
    """Count the multiply-accumulates of the forward pass of one image with torch's flop counter.

    Convolutions and matrix products are counted, as in published tables; elementwise operations
    are not.

    Args:
        network: maps images to logits; its mode is left unchanged.
        image: ``(1, 3, H, W)``, on the network's device and in its dtype.
    """
    modes = {module: module.training for module in network.modules()}
    counter = FlopCounterMode(display=False)
    # Eagerly, since the counter cannot see into compiled code.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), counter:
        network.eval()(image)
    for module, training in modes.items():
        module.training = training
    return counter.get_total_flops() // 2


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: allocated on a GPU, or else used by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_name(device: torch.device) -> str:
    """Return the name of a device; of a CPU its model name, if known."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type.upper()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (named or [platform.processor() or platform.machine()])[0]
