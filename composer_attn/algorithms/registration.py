"""Make our algorithms known to Composer's checkpoint loading.

A checkpoint names each algorithm by its class, and evaluates its repr in ``composer.algorithms``.
There, ``SqueezeExcite`` is Composer's own: our classes have names that cannot be confused with it.
"""

import composer.algorithms as known
from composer.core import Algorithm


def register(*algorithms: type[Algorithm]) -> None:
    """Put algorithm classes beside Composer's own, overwriting nothing."""
    for algorithm in algorithms:
        if not hasattr(known, algorithm.__name__):
            setattr(known, algorithm.__name__, algorithm)
