"""Read YAML that somebody else may have written: plain data, of a size that a run can have."""

import os

import yaml

from composer_attn.errors import ArgumentError

# The longest recipe has 1.5 kB, 60 nodes, 3 levels.
LARGEST = 1_000_000  # bytes
MOST_NODES = 10_000  # each alias counts as what it stands for
DEEPEST = 20


def read_yaml(path: str | os.PathLike) -> str:
    """Return the text of a YAML file that is small however its aliases are written out.

    Raises:
        ArgumentError: it is too large, too deep, or swells.
        OSError, UnicodeDecodeError, yaml.YAMLError: it cannot be read.
    """
    with open(path, "rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ArgumentError(f"is larger than {LARGEST:,} bytes, which no config is")
    text = content.decode()
    _measure(text)
    return text


def _measure(text: str) -> None:
    """Count nodes and levels event by event: nothing is built, so nothing can swell."""
    sizes: dict[str | None, int] = {}  # of what each anchor stands for
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and the count when it began
    count = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            # Of an anchor that is not closed yet, an alias would lead back to itself.
            if any(event.anchor == anchor for anchor, _ in open_nodes):
                raise ArgumentError(f"*{event.anchor} stands for something that it is a part of")
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
            raise ArgumentError(f"holds more than {MOST_NODES:,} values, aliases written out")
        if len(open_nodes) > DEEPEST:
            raise ArgumentError(f"is nested deeper than {DEEPEST} levels")
