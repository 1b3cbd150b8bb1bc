"""Check that all ranks performed the same surgery: otherwise DDP would mix up gradients."""

import hashlib

from composer.utils import dist

from composer_attn.errors import RanksError, first_few
from composer_attn.surgery import SurgeryPlan

_Line = tuple[str, ...]


def check_plans_agree(algorithm: str, plan: SurgeryPlan) -> None:
    """Check that all ranks attended the same sites; to be called on every rank.

    Hashes are exchanged first, the plans only if the hashes differ.

    Raises:
        RanksError: they differ; the message states the sites and the ranks.
    """
    lines = _lines(algorithm, plan)
    hashes = dist.all_gather_object(hashlib.sha256(repr(lines).encode()).hexdigest())
    if len(set(hashes)) == 1:
        return
    everyone = dist.all_gather_object(lines)
    rank = next(rank for rank, other in enumerate(everyone) if other != everyone[0])
    only = [_only(everyone[0], everyone[rank]), _only(everyone[rank], everyone[0])]
    raise RanksError(
        f"the ranks attend different modules: only on rank 0 {only[0]}; only on rank {rank} "
        f"{only[1]}. Give every rank the same model and the same algorithms"
    )


def _lines(algorithm: str, plan: SurgeryPlan) -> list[_Line]:
    sites = (
        (site.name or "the model itself", site.side, f"{site.channels} channels",
         f"{site.parameters} parameters")
        for site in plan.chosen
    )  # fmt: skip
    return [(algorithm,), *sites]


def _only(lines: list[_Line], others: list[_Line]) -> str:
    return first_few([" ".join(line) for line in lines if line not in others]) or "nothing"
