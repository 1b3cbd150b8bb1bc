"""Read untrusted YAML: plain data, of limited size."""

import os

import yaml

from composer_attn.errors import ArgumentError

# The largest recipe has 1.5 kB, 60 nodes and 3 levels.
LARGEST = 1_000_000  # bytes
MOST_NODES = 10_000  # aliases count as the nodes that they refer to
DEEPEST = 20


def read_yaml(path: str | os.PathLike) -> str:
    """Return the text of a YAML file, checked to be small with all aliases expanded.

    Raises:
        ArgumentError: it is too large, nested too deeply, or expands to too many nodes.
        OSError, UnicodeDecodeError, yaml.YAMLError: it cannot be read.
    """
    with open(path, "rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ArgumentError(f"is larger than {LARGEST:,} bytes: too large for a config")
    text = content.decode()
    _measure(text)
    return text


def _measure(text: str) -> None:
    """Count nodes and levels from the event stream, without building or expanding anything."""
    sizes: dict[str | None, int] = {}  # number of nodes that each anchor refers to
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and the count at its start
    count = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            # An alias to an anchor that is still open is a circular reference.
            if any(event.anchor == anchor for anchor, _ in open_nodes):
                raise ArgumentError(f"*{event.anchor} refers to a node that contains it")
            count += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.NodeEvent):
            before, count = count, count + 1
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, before))
            elif event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor:
                sizes[anchor] = count - before
        if count > MOST_NODES:
            raise ArgumentError(f"holds more than {MOST_NODES:,} values, with aliases expanded")
        if len(open_nodes) > DEEPEST:
            raise ArgumentError(f"is nested deeper than {DEEPEST} levels")
