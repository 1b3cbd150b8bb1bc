"""Register the algorithms with Composer's checkpoint loading.

A checkpoint names each algorithm by its class, and its repr is evaluated in
``composer.algorithms``. There, ``SqueezeExcite`` is Composer's own, hence the distinct class names.
"""

import composer.algorithms as known
from composer.core import Algorithm


def register(*algorithms: type[Algorithm]) -> None:
    """Add algorithm classes to ``composer.algorithms``, overwriting nothing."""
    for algorithm in algorithms:
        if not hasattr(known, algorithm.__name__):
            setattr(known, algorithm.__name__, algorithm)
