"""Validation of models and sites before anything is changed."""

from torch import nn

from composer_attn.errors import ArgumentError, ModelError
from composer_attn.surgery.attend import CHILD
from composer_attn.surgery.names import walk
from composer_attn.surgery.orphans import check_no_orphans
from composer_attn.surgery.sites import CandidateSite

# Where a convolution and the norm folded into it keep what they were before.
FOLDED = "_attn_folded"

# Wrappers that register the parameters at construction, and what to do instead.
_WRAPPERS = {
    "DistributedDataParallel": "apply it to the plain model, then wrap in DistributedDataParallel",
    "FullyShardedDataParallel": "apply it to the plain model, then wrap in FSDP",
    "FSDPModule": "apply it to the plain model, then call fully_shard",
    "OptimizedModule": "apply it to the plain model, then call torch.compile",
    "ScriptModule": "apply it to the Python model, then use torch.jit.trace",
}


def check_model(model: nn.Module, orphans: bool = False, folded: bool = False) -> None:
    """Check that no part of a model is wrapped, compiled, scripted or folded.

    Args:
        model: the network.
        orphans: whether orphaned attention is allowed.
        folded: whether folded norms are allowed.

    Raises:
        ArgumentError: it is not a module.
        ModelError: it is wrapped, compiled or scripted, as a whole or in part; its norms are
            folded; or it holds orphaned attention, whose module was rebuilt or given another class.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module; got a {type(model).__name__}")
    for name, module in walk(model):
        bases = {cls.__name__ for cls in type(module).__mro__}
        if module._compiled_call_impl is not None:
            bases.add("OptimizedModule")
        for wrapper in bases & set(_WRAPPERS):
            raise ModelError(
                f"{name or 'the model'} is a {wrapper}, on which surgery is not safe: "
                f"{_WRAPPERS[wrapper]}"
            )
        if not folded and FOLDED in vars(module):
            raise ModelError(
                f"{name or 'the model'} is folded, with a norm or into a convolution, by "
                "fold_norms: call unfold_norms first"
            )
    if not orphans:
        check_no_orphans(model)


def check_sites(sites: list[CandidateSite], model: nn.Module) -> None:
    """Raise one error that lists all chosen sites that cannot be attended."""
    troubles = {candidate.name: _trouble(candidate, model) for candidate in sites}
    lines = [f"  {name or 'the model'}: {trouble}" for name, trouble in troubles.items() if trouble]
    if lines:
        raise ModelError(
            "these sites cannot be attended; fix them, or name them in exclude:\n"
            + "\n".join(lines)
        )


def _trouble(candidate: CandidateSite, model: nn.Module) -> str:
    if "forward" in vars(candidate.module):
        return "its forward was replaced on the instance, where extending its class has no effect"
    if isinstance(candidate.module, nn.Sequential):
        return "a Sequential, which would run its attention as another child"
    if hasattr(candidate.module, CHILD):
        return f"it already has an attribute named {CHILD!r}"
    parameters = list(model.get_submodule(candidate.owner).parameters())
    if any(isinstance(p, nn.UninitializedParameter) for p in parameters):
        return "lazy, and not initialized yet: run one forward pass first"
    if not parameters:
        return "it has no parameters, whose device and dtype its attention could share"
    if not parameters[0].is_floating_point():
        return f"its weights are {parameters[0].dtype}, not real floating point"
    return ""
