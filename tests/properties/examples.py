"""The number of examples for each property."""

from hypothesis import HealthCheck, settings


def examples(count: int) -> settings:
    """Run a number of examples, the same ones each time, with no deadline."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
