"""The networks to compare: plain, with other libraries' attention, and with ours."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import timm
import torchvision
import typer
from composer.algorithms.squeeze_excite import apply_squeeze_excite as composers_squeeze_excite
from torch import nn

from composer_attn import apply_eca, apply_squeeze_excite, fold_norms, fuse_attention

LATENT_CHANNELS, MIN_CHANNELS = 64, 128  # Composer's own defaults


@dataclass(frozen=True)
class Variant:
    """One network, and how it runs.

    Attributes:
        name: its name for ``--variants``.
        build: builds the network from the name of a model.
        fused: whether attention is fused with batch norm.
        norms: whether every other norm is fused, too.
        recompute: whether convolutions compute fused inputs again in backward.
        compiled: whether the whole network goes through torch.compile.
        folded: whether its norms are folded into its convolutions, for evaluation alone.
    """

    name: str
    build: Callable[[str], nn.Module]
    fused: bool = False
    compiled: bool = False
    norms: bool = False
    recompute: bool = False
    folded: bool = False

    def make(self, model: str, backend: str) -> nn.Module:
        """Build the network, fused or folded if requested; not compiled yet."""
        network = self.build(model)
        if self.folded:
            fold_norms(network.eval())
        if self.fused:
            fuse_attention(network, backend, norms=self.norms, recompute=self.recompute)
        return network


def _plain(model: str) -> nn.Module:
    """Build a network as published; ``timm/NAME`` is one of timm's."""
    package, _, name = model.rpartition("/")
    return timm.create_model(name) if package == "timm" else torchvision.models.get_model(name)


def _eca_replaced(model: str) -> nn.Module:
    network = _plain(model)
    apply_eca(network, replace=True)
    return network


def _composer_se(model: str) -> nn.Module:
    network = _plain(model)
    composers_squeeze_excite(network, LATENT_CHANNELS, MIN_CHANNELS)
    return network


def _timm_plain(model: str) -> nn.Module:
    return timm.create_model(model)


def _timm_se(model: str) -> nn.Module:
    return timm.create_model(f"se{model}")


def _timm_eca(model: str) -> nn.Module:
    return timm.create_model(model, block_args={"attn_layer": "eca"})


def _se(model: str) -> nn.Module:
    network = _plain(model)
    apply_squeeze_excite(network, LATENT_CHANNELS, MIN_CHANNELS)
    return network


def _eca(model: str) -> nn.Module:
    network = _plain(model)
    apply_eca(network, min_channels=MIN_CHANNELS)
    return network


def _se_residual(model: str) -> nn.Module:
    network = _plain(model)
    apply_squeeze_excite(network, 1 / 16, 1, placement="residual", bias=True)
    return network


def _eca_residual(model: str) -> nn.Module:
    network = _plain(model)
    apply_eca(network, min_channels=1, placement="residual")
    return network


_PEERS = {
    "plain": _plain,
    "composer_se": _composer_se,
    "timm_plain": _timm_plain,
    "timm_se": _timm_se,
    "timm_eca": _timm_eca,
}
_OURS = {"se": _se, "eca": _eca, "se_residual": _se_residual, "eca_residual": _eca_residual}


def _table() -> dict[str, Variant]:
    found = []
    for (name, build), compiled in product(_PEERS.items(), (False, True)):
        found.append(Variant(name + "_compiled" * compiled, build, compiled=compiled))
    for (name, build), compiled, fused in product(_OURS.items(), (False, True), (True, False)):
        full = name + "_unfused" * (not fused) + "_compiled" * compiled
        found.append(Variant(full, build, fused, compiled))
    # With the attention that a network came with, or ours in its place.
    found += [
        Variant("own", _plain),
        Variant("own_fused", _plain, fused=True),
        Variant("own_fused_norms", _plain, fused=True, norms=True),
        Variant("own_fused_recompute", _plain, fused=True, recompute=True),
        Variant("own_fused_norms_recompute", _plain, fused=True, norms=True, recompute=True),
        Variant("eca_replaced", _eca_replaced),
        Variant("eca_replaced_fused", _eca_replaced, fused=True),
        Variant("eca_replaced_fused_recompute", _eca_replaced, fused=True, recompute=True),
    ]
    for (name, build), compiled in product((_PEERS | _OURS).items(), (False, True)):
        full = f"{name}_folded" + "_compiled" * compiled
        found.append(Variant(full, build, compiled=compiled, folded=True))
    return {variant.name: variant for variant in found}


VARIANTS = _table()

EAGER = (
    *("plain", "composer_se", "timm_plain", "timm_se", "timm_eca"),
    *("se", "se_unfused", "eca", "eca_unfused"),
    *("se_residual", "se_residual_unfused", "eca_residual", "eca_residual_unfused"),
)
COMPILED = (
    *("plain_compiled", "composer_se_compiled", "timm_se_compiled", "timm_eca_compiled"),
    *("se_compiled", "se_unfused_compiled", "eca_compiled", "eca_unfused_compiled"),
)
FOLDED = ("plain_folded", "se", "se_folded", "eca", "eca_folded", "timm_se", "timm_se_folded")


OWN = (
    *("own", "own_fused", "own_fused_norms", "own_fused_recompute", "own_fused_norms_recompute"),
    *("eca_replaced", "eca_replaced_fused", "eca_replaced_fused_recompute"),
)


def chosen(names: str, baseline: str = "plain") -> list[Variant]:
    """Look up names separated by commas; the baseline always comes first.

    Raises:
        typer.BadParameter: there is no such variant.
    """
    groups = {
        "eager": EAGER,
        "compiled": COMPILED,
        "folded": FOLDED,
        "with_own": OWN,
        "all": (*EAGER, *COMPILED),
    }
    parts = (baseline, *names.split(","))
    wanted = [name.strip() for part in parts for name in groups.get(part, (part,))]
    unknown = [name for name in wanted if name not in VARIANTS]
    if unknown:
        raise typer.BadParameter(
            f"no variant {', '.join(unknown)}; there are {', '.join(groups)} and "
            f"{', '.join(VARIANTS)}"
        )
    return [VARIANTS[name] for name in dict.fromkeys(wanted)]
