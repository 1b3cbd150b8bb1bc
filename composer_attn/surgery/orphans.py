"""Orphaned attention: added by a surgery, under a module that no longer uses it."""

from torch import nn

from composer_attn.errors import ModelError, first_few
from composer_attn.surgery.attend import CHILD, is_attended
from composer_attn.surgery.names import walk
from composer_attn.surgery.registration import side_of


def find_orphans(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that hold an added attention but no longer pass anything through it.

    Such a module was assigned another class (``module.__class__ = ...``), or was rebuilt from the
    ``__dict__`` of an attended one.
    """
    return {
        name: module
        for name, module in walk(model)
        # A bare nn.Module is a container in a torch.fx GraphModule, whose graph calls the attention
        # itself; a scripted module has no class to extend.
        if type(module) is not nn.Module
        and isinstance(module._modules, dict)
        and not is_attended(module)
        and side_of(module._modules.get(CHILD))
    }


def describe_orphans(model: nn.Module) -> str:
    """Describe the modules of a model that hold orphaned attention; empty if there are none."""
    orphans = find_orphans(model)
    if not orphans:
        return ""
    listed = [f"{name or 'the model'} ({type(m).__name__})" for name, m in orphans.items()]
    return (
        f"{len(orphans)} modules hold attention that their output no longer passes through: "
        f"{first_few(listed)}. After the surgery something gave them another class, or rebuilt "
        "them: do that before the surgery. detach_attention removes such attention"
    )


def check_no_orphans(model: nn.Module) -> None:
    """Check that every added attention in a model is in use.

    Raises:
        ModelError: some are not.
    """
    trouble = describe_orphans(model)
    if trouble:
        raise ModelError(trouble)
