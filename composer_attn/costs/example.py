"""Example inputs: their conversion, model copies to run them on, and error messages."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from composer_attn.errors import ArgumentError, first_few, first_line
from composer_attn.surgery.channel_counts import CONVOLUTIONS

Example = Tensor | tuple | None
Trial = tuple[AbstractContextManager, nn.Module, tuple]


def as_arguments(example: Example) -> tuple:
    """Convert an example to the tuple of a model's positional arguments.

    Raises:
        ArgumentError: it is neither a tensor nor a tuple.
    """
    if isinstance(example, Tensor):
        return (example,)
    if isinstance(example, tuple):
        return example
    raise ArgumentError(
        "example must be a tensor, or a tuple of the model's positional arguments (for a model "
        f"that takes a list: example=(images,)); got a {type(example).__name__}"
    )


def fake_trial(model: nn.Module, arguments: tuple) -> Trial:
    """Copy a model and its arguments as fake tensors, which have shapes but no values.

    Tensors on the meta device are treated as CPU tensors.

    Returns:
        The context to run the copy under, the copy, and the arguments.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    # Modules may hold real tensors in plain attributes.
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(tensor: Tensor) -> Tensor:
        if tensor.is_meta:  # as a CPU tensor, for which operations are checked as usual
            with mode:
                found = torch.empty_like(tensor, device="cpu", requires_grad=False)
        else:
            found = mode.from_tensor(tensor.detach(), static_shapes=True)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(found, tensor.requires_grad)
        return found.requires_grad_(tensor.requires_grad)

    # deepcopy does not copy objects that are in its memo.
    memo = {id(tensor): fake(tensor) for tensor in (*model.parameters(), *model.buffers())}
    return mode, copy.deepcopy(model, memo), tree_map_only(Tensor, fake, arguments)


def real_trial(model: nn.Module, arguments: tuple) -> Trial:
    """Copy a model and its arguments with values, for forwards that depend on them."""

    def clone(tensor: Tensor) -> Tensor:
        return tensor.detach().clone().requires_grad_(tensor.requires_grad)

    return nullcontext(), copy.deepcopy(model), tree_map_only(Tensor, clone, arguments)


TRIALS: tuple[Callable[[nn.Module, tuple], Trial], ...] = (fake_trial, real_trial)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Enable gradients whatever the caller's mode, and preserve the random states."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=list(devices)))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        # Neither the flop counter nor fake tensors work with compiled code.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def check_dtypes(network: nn.Module) -> None:
    """Make plain convolutions reject inputs of another dtype, which fake tensors do not."""
    forwards = {kind.forward for kind in CONVOLUTIONS}

    def check(module: nn.Module, args: tuple) -> None:
        given, wanted = args[0].dtype, module.weight.dtype
        if given != wanted and not torch.is_autocast_enabled(args[0].device.type):
            raise TypeError(f"a convolution with {wanted} weights cannot be given {given} inputs")

    for module in network.modules():
        if type(module).forward in forwards:
            module.register_forward_pre_hook(check)


def failure_message(model: nn.Module, arguments: tuple, error: Exception) -> str:
    """Return the message for a forward that fails on an example: what was given, and expected."""
    given = [_describe(leaf) for leaf in tree_leaves(arguments)] or ["no arguments"]
    why = first_line(error)
    return (
        f"the model's forward fails on the example: {type(error).__name__}: {why}. "
        f"Given: {first_few(given)}. {_expected(model)}"
    )


def _expected(model: nn.Module) -> str:
    for name, module in model.named_modules():
        if isinstance(module, CONVOLUTIONS):
            letters = ("L", "H, W", "D, H, W")[len(module.kernel_size) - 1]
            weight = module.weight
            return (
                f"Expected: the first convolution, {name or 'the model itself'}, takes "
                f"(N, {module.in_channels}, {letters}), and its weights are {_dtype(weight)} on "
                f"{weight.device}"
            )
    return "Expected: what the model's forward takes"


def _describe(leaf: object) -> str:
    if isinstance(leaf, Tensor):
        return f"a tensor {tuple(leaf.shape)}, {_dtype(leaf)} on {leaf.device}"
    return f"a {type(leaf).__name__}"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
