"""Measure the costs of a surgery by running a copy of the network, plain and attended."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from composer_attn.costs.example import (
    TRIALS,
    Example,
    as_arguments,
    check_dtypes,
    failure_message,
    undisturbed,
)
from composer_attn.errors import ArgumentError, ModelError, first_line
from composer_attn.surgery.attend import CHILD
from composer_attn.surgery.channel_counts import CONVOLUTIONS
from composer_attn.surgery.plan import Site, SurgeryPlan
from composer_attn.surgery.site_cost import NetworkCost, SiteCost, notes_on

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode


def measured(
    plan: SurgeryPlan, model: nn.Module, example: Example, apply: Callable[[nn.Module], Any]
) -> SurgeryPlan:
    """Return a plan with its costs on an example; the model is not changed.

    A copy runs twice in evaluation mode with gradients enabled: first plain, then attended. It
    runs on fake tensors, which take almost no memory and time, or on real ones if the forward
    depends on values (as in detection networks).

    Args:
        plan: the plan.
        model: the network.
        example: a tensor, or a tuple of the forward's positional arguments.
        apply: applies the plan to a copy.

    Raises:
        ArgumentError: the example has the wrong type, or the model's forward fails on it.
        ModelError: the model cannot be copied, or fails once it is attended.
    """
    arguments = as_arguments(example)
    failure: Exception = ModelError("not tried")
    with undisturbed(model):
        for trial in TRIALS:
            try:
                plain, attended = _measure(plan, model, arguments, apply, trial)
            except Exception as error:  # whatever a forward raises
                failure = error
            else:
                return _with_costs(plan, plain, attended)
    raise failure


@dataclass
class _Reading:
    """Measurements of one forward pass.

    Attributes:
        parameters: number of parameters of the network.
        macs: multiply-accumulates, by the flop counter.
        saved: bytes of each storage that is saved for backward.
        sizes: spatial sizes of each site's calls.
        maps: storages of the feature maps that each site's attention takes and returns.
        inner: storages that were first saved inside each site's attention.
        inner_macs: multiply-accumulates of each site's attention.
        outputs: names of the convolutions whose output is the network's, up to weightless layers.
        widths: name and value of the argument that sizes each site's attention.
    """

    parameters: int = 0
    macs: int = 0
    saved: dict[StorageWeakRef, int] = field(default_factory=dict)
    sizes: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    maps: dict[str, list[StorageWeakRef]] = field(default_factory=dict)
    inner: dict[str, list[StorageWeakRef]] = field(default_factory=dict)
    inner_macs: dict[str, int] = field(default_factory=dict)
    outputs: set[str] = field(default_factory=set)
    widths: dict[str, tuple[str, Any]] = field(default_factory=dict)

    def cost(self) -> NetworkCost:
        return NetworkCost(self.parameters, self.macs, sum(self.saved.values()))


def _measure(plan, model, arguments, apply, trial) -> tuple[_Reading, _Reading]:
    try:
        context, network, copies = trial(model, arguments)
    except Exception as error:  # copying an attribute may raise anything
        why = first_line(error)
        raise ModelError(
            f"the example is run on a copy of the model, and the model cannot be copied: {why}"
        ) from error
    with context:
        try:
            plain = _read_plain(network.eval(), plan, copies)
        except Exception as error:
            raise ArgumentError(failure_message(model, arguments, error)) from error
        apply(network)
        return plain, _read_attended(network.eval(), plan, copies)


def _read_plain(network: nn.Module, plan: SurgeryPlan, arguments: tuple) -> _Reading:
    reading = _Reading()
    producers: dict[Any, str | None] = {}
    handles = [_watch_site(network, site, reading) for site in plan.sites]
    for name, module in network.named_modules():
        is_conv = isinstance(module, CONVOLUTIONS)
        if is_conv or (module._parameters and not module._modules):
            handles.append(_watch_producer(module, name if is_conv else None, producers))
    check_dtypes(network)
    with _metering(network, reading):
        output = network(*arguments)
    reading.outputs = _last_producers(output, producers)
    for handle in handles:
        handle.remove()
    return reading


def _read_attended(network: nn.Module, plan: SurgeryPlan, arguments: tuple) -> _Reading:
    reading = _Reading()
    current: list[str] = []
    with _metering(network, reading, current) as counter:
        for site in plan.chosen:
            module = network.get_submodule(site.name)
            # The module itself may be the attention, where it takes the place of another.
            attention = module._modules.get(CHILD, module)
            _watch_attention(site.name, attention, reading, current, counter)
        try:
            network(*arguments)
        except Exception as error:
            where = f"{current[-1] or 'the model'}: " if current else ""
            why = first_line(error)
            raise ModelError(
                f"{where}the model's forward works on the example, but not once it is attended: "
                f"{type(error).__name__}: {why}"
            ) from error
    return reading


@contextmanager
def _metering(
    network: nn.Module, reading: _Reading, current: list[str] | None = None
) -> "Iterator[FlopCounterMode]":
    """Measure parameters, multiply-accumulates, and the bytes saved for backward."""
    # Only here: from torch 2.15 on it loads Triton.
    from torch.utils.flop_counter import FlopCounterMode

    own = {_storage(tensor) for tensor in (*network.parameters(), *network.buffers())}

    def pack(tensor: Tensor) -> None:
        storage = _storage(tensor)
        if storage not in own and storage not in reading.saved:
            # A weak reference prevents reuse of the address without keeping the memory.
            reading.saved[storage] = tensor.untyped_storage().nbytes()
            if current:
                reading.inner.setdefault(current[-1], []).append(storage)

    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda nothing: nothing):
        yield counter
    reading.macs = counter.get_total_flops() // 2
    reading.parameters = sum(parameter.numel() for parameter in network.parameters())


def _storage(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def _watch_site(network: nn.Module, site: Site, reading: _Reading):
    """Record the feature map that a site's attention would take, at each call."""
    try:
        module, side = network.get_submodule(site.name), site.side
    except AttributeError:  # a shortcut without a module: the input of its block
        module, side = network.get_submodule(site.name.rpartition(".")[0]), "input"

    def note(module: nn.Module, args: tuple, output: Any) -> None:
        x = output if side == "output" else next(iter(args), None)
        if isinstance(x, Tensor):
            reading.sizes.setdefault(site.name, []).append(tuple(x.shape[2:]))
            reading.maps.setdefault(site.name, []).append(_storage(x))

    return module.register_forward_hook(note, prepend=True)


def _watch_producer(module: nn.Module, name: str | None, producers: dict[Any, str | None]):
    """Record the autograd node of a layer's output."""

    def note(module: nn.Module, args: tuple, output: Any) -> None:
        for tensor in _tensors(output):
            if tensor.grad_fn is not None:
                producers[tensor.grad_fn] = name

    return module.register_forward_hook(note, prepend=True)


def _watch_attention(name, attention, reading, current, counter) -> None:
    def enter(module: nn.Module, args: tuple) -> None:
        current.append(name)
        reading.maps.setdefault(name, []).append(_storage(args[0]))
        flops = reading.inner_macs.get(name, 0)
        reading.inner_macs[name] = flops - counter.get_total_flops() // 2

    def leave(module: nn.Module, args: tuple, output: Tensor) -> None:
        reading.inner_macs[name] += counter.get_total_flops() // 2
        reading.maps[name].append(_storage(output))
        # As if the scale were 1: a forward that depends on values runs as in the plain network.
        output.data.copy_(args[0])
        current.pop()

    attention.register_forward_pre_hook(enter)
    attention.register_forward_hook(leave)
    sized_by = getattr(attention, "sized_by", "")
    width = getattr(attention, sized_by, None) if isinstance(sized_by, str) and sized_by else None
    reading.widths[name] = ("", None) if width is None else (sized_by, width)


def _last_producers(output: Any, producers: dict[Any, str | None]) -> set[str]:
    """Return the convolutions among the first layers with weights, back from the outputs."""
    queue = [tensor.grad_fn for tensor in _tensors(output)]
    seen, found = set(), set[str]()
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node not in producers:
            queue += [following for following, _ in node.next_functions]
        elif (name := producers[node]) is not None:
            found.add(name)
    return found


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _with_costs(plan: SurgeryPlan, plain: _Reading, attended: _Reading) -> SurgeryPlan:
    whole = attended.cost()
    bytes_of = _extra_bytes(plan, plain, attended)
    sites = tuple(_priced(site, plain, attended, bytes_of, whole) for site in plan.sites)
    return replace(plan, sites=sites, plain=plain.cost(), attended=whole)


def _extra_bytes(plan: SurgeryPlan, plain: _Reading, attended: _Reading) -> dict[str, int]:
    """Attribute the difference in saved bytes to the attentions."""
    extra = {site.name: 0 for site in plan.chosen}
    for sign, reading in ((1, attended), (-1, plain)):
        counted = set()
        for name in extra:
            for storage in (*reading.maps.get(name, ()), *reading.inner.get(name, ())):
                if storage not in counted:
                    counted.add(storage)
                    extra[name] += sign * reading.saved.get(storage, 0)
    return extra


def _priced(
    site: Site, plain: _Reading, attended: _Reading, extra: dict[str, int], whole: NetworkCost
) -> Site:
    sizes = tuple(plain.sizes.get(site.name, ()))
    is_output = site.side == "output" and site.name in plain.outputs
    sized_by, width = attended.widths.get(site.name, ("", None))
    macs, kept = attended.inner_macs.get(site.name, 0), extra.get(site.name, 0)
    cost = SiteCost(
        sizes=sizes,
        sized_by=sized_by,
        width=width,
        macs=macs,
        activation_bytes=kept,
        parameters_share=site.parameters / max(1, whole.parameters),
        macs_share=macs / max(1, whole.macs),
        activation_share=kept / max(1, whole.activation_bytes),
    )
    return replace(site, cost=cost, notes=notes_on(sizes, is_output))
