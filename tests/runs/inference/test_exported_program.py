"""Files of torch.export that somebody else made: read, but nothing in them runs."""

import io
import json
import zipfile
from contextlib import suppress

import pytest
import torch
from torch import nn
from torch.export import Dim

from composer_attn import apply_squeeze_excite
from composer_attn.errors import CheckpointError
from composer_attn.runs.inference.exported_program import load_exported_program

PROGRAM = "serialized_exported_program.json"
WEIGHTS = "serialized_state_dict.pt"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    apply_squeeze_excite(network, min_channels=8, latent_channels=2)
    images = torch.randn(2, 3, 8, 8)
    path = tmp_path_factory.mktemp("exported") / "model.pt2"
    shapes = ({0: Dim("batch")},)
    torch.export.save(torch.export.export(network, (images,), dynamic_shapes=shapes), path)
    return network, images, path


def crafted(path, out, parts):
    """Write a copy of a file with other parts, each made of what was there."""
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(out, "w") as after:
        for entry in before.infolist():
            content = before.read(entry)
            after.writestr(entry.filename, parts.get(entry.filename, lambda c: c)(content))
        for name in set(parts) - {entry.filename for entry in before.infolist()}:
            after.writestr(name, parts[name](b""))
    return out


def replaced(old, new):
    def go(content):
        assert old in content.decode()
        return content.decode().replace(old, new, 1).encode()

    return {PROGRAM: go}


def test_what_torch_wrote_is_read(exported, tmp_path):
    network, images, path = exported
    again = crafted(path, tmp_path / "again.pt2", {})
    for each in (path, again):
        loaded = load_exported_program(each).module()
        torch.testing.assert_close(loaded(images[:1]), network(images[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "parts",
    [
        replaced("Symbol('s0', positive=True, integer=True)", "__import__('os').mkdir('made')"),
        replaced("Symbol('s0', positive=True, integer=True)", "Symbol('s0', open('made', 'w'))"),
        replaced("Symbol('s0', positive=True, integer=True)", "exit()"),
        replaced("torch.ops.aten.conv2d.default", "torch.hub.load"),
        replaced("torch.ops.aten.conv2d.default", "torch.ops.load_library"),
        replaced("torch.ops.aten.conv2d.default", "torch.ops.aten.from_file.default"),
        replaced("torch.ops.aten.conv2d.default", "_operator.methodcaller"),
        replaced("torch.ops.aten.conv2d.default", "torch.ops.quantized_decomposed.add.default"),
        replaced('"name": "conv2d"', '"name": "x = open(1) #"'),
        replaced("builtins.tuple", "collections.defaultdict"),
        {"code/__init__.py": lambda _: b"import os"},
    ],
)
def test_what_is_more_than_operations_on_tensors_is_refused(exported, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = crafted(exported[2], tmp_path / "crafted.pt2", parts)
    with pytest.raises(CheckpointError, match=r"holds more than operations|is not a torch.export"):
        load_exported_program(path)
    assert [each.name for each in tmp_path.iterdir()] == ["crafted.pt2"]


@pytest.mark.parametrize("part", [WEIGHTS, "serialized_example_inputs.pt"])
def test_code_among_the_weights_is_not_run(exported, part, tmp_path):
    made = tmp_path / "made"

    class Attack:
        def __reduce__(self):
            return made.touch, ()

    file = io.BytesIO()
    torch.save({"weight": Attack()}, file)
    path = crafted(exported[2], tmp_path / "crafted.pt2", {part: lambda _: file.getvalue()})
    with pytest.raises(CheckpointError, match=f"holds more than tensors in its {part}"):
        load_exported_program(path)
    assert not made.exists()
    with suppress(Exception):
        torch.export.load(path)
    assert made.exists()  # the file is what it claims to be


def test_what_is_not_whole_is_refused(exported, tmp_path):
    path = tmp_path / "cut.pt2"
    whole = exported[2].read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no archive"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"is not a torch\.export file"):
            load_exported_program(path)
    crafted(exported[2], path, {PROGRAM: lambda content: json.dumps({"graph": 1}).encode()})
    with pytest.raises(CheckpointError, match=r"is not a torch\.export file"):
        load_exported_program(path)
