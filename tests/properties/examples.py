"""How many examples a property is tried on."""

from hypothesis import HealthCheck, settings


def examples(count: int) -> settings:
    """Try so many examples, the same ones each time, however long each takes."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
