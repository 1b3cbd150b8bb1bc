"""Files of torch.export that somebody else made: read, but nothing in them runs."""

import io
import json
import re
import zipfile
from contextlib import suppress

import pytest
import torch
from torch import nn
from torch.export import Dim

from composer_attn import apply_squeeze_excite
from composer_attn.errors import CheckpointError
from composer_attn.runs.inference.exported_program import is_guard, load_exported_program

# The ends of entries' names, as torch 2.7 writes them, and as newer versions do.
PROGRAM = ("serialized_exported_program.json", "models/model.json")
INPUTS = ("serialized_example_inputs.pt", "data/sample_inputs/model.pt")
CONVOLUTION = r"torch\.ops\.aten\.conv2d\.default"
SIZE = r"Symbol\('s\d+', positive=True, integer=True\)"


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
    """Write a copy of a file, in which some entries, by the ends of their names, are changed."""
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(out, "w") as after:
        for entry in before.infolist():
            content = before.read(entry)
            for end, change in parts.items():
                content = change(content) if entry.filename.endswith(end) else content
            after.writestr(entry.filename, content)
    return out


def replaced(pattern, new):
    def go(content):
        text, count = re.subn(pattern, lambda _: new, content.decode(), count=1)
        assert count == 1
        return text.encode()

    return {PROGRAM: go}


def guarded(*guards):
    def go(content):
        return json.dumps(json.loads(content) | {"guards_code": guards}).encode()

    return {PROGRAM: go}


def in_old_format(path):
    with zipfile.ZipFile(path) as archive:
        return PROGRAM[0] in archive.namelist()


def test_what_torch_wrote_is_read(exported, tmp_path):
    network, images, path = exported
    again = crafted(path, tmp_path / "again.pt2", {})
    for each in (path, again):
        loaded = load_exported_program(each).module()
        torch.testing.assert_close(loaded(images[:1]), network(images[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "parts",
    [
        replaced(SIZE, "__import__('os').mkdir('made')"),
        replaced(SIZE, "Symbol('s0', open('made', 'w'))"),
        replaced(SIZE, "exit()"),
        replaced(CONVOLUTION, "torch.hub.load"),
        replaced(CONVOLUTION, "torch.ops.load_library"),
        replaced(CONVOLUTION, "torch.ops.aten.from_file.default"),
        replaced(CONVOLUTION, "_operator.methodcaller"),
        replaced(
            r"torch\.ops\.aten\.conv2d\.default", "torch.ops.quantized_decomposed.add.default"
        ),
        replaced('"name": "conv2d"', '"name": "x = open(1) #"'),
        replaced(r"builtins\.tuple", "collections.defaultdict"),
        guarded("L['x'].size()[0] > 1", "__import__('os').mkdir('made')"),
        guarded("L['x'].size()[open('made', 'w')] > 1"),
        guarded("L['x'].new_zeros(1).size()[0] > 1"),
        guarded("max(L['x'].size()[0], key=print) > 1"),
        guarded("torch.hub.load('L', 'x') > 1"),
        guarded("(lambda: 1)() == 1"),
    ],
)
def test_what_is_more_than_operations_on_tensors_is_refused(exported, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = crafted(exported[2], tmp_path / "crafted.pt2", parts)
    with pytest.raises(CheckpointError, match=r"holds more than operations|is not a torch.export"):
        load_exported_program(path)
    assert [each.name for each in tmp_path.iterdir()] == ["crafted.pt2"]


def attack(made):
    """Return a pickle, as torch saves it, that makes a file when it is loaded."""

    class Attack:
        def __reduce__(self):
            return made.touch, ()

    file = io.BytesIO()
    torch.save({"weight": Attack()}, file)
    return file.getvalue()


def check_attack(path, made, part):
    with pytest.raises(CheckpointError, match=f"holds more than tensors in its {part}"):
        load_exported_program(path)
    assert not made.exists()
    with suppress(Exception):
        torch.export.load(path)
    assert made.exists()  # the file is what it claims to be


def test_code_among_the_example_inputs_is_not_run(exported, tmp_path):
    made = tmp_path / "made"
    content = attack(made)
    path = crafted(exported[2], tmp_path / "crafted.pt2", {INPUTS: lambda _: content})
    check_attack(path, made, f".*({'|'.join(INPUTS)})")


def test_code_among_the_weights_is_not_run(exported, tmp_path):
    made = tmp_path / "made"
    content = attack(made)

    def pickled(listing):
        listing = json.loads(listing)
        next(iter(listing["config"].values()))["use_pickle"] = True
        return json.dumps(listing).encode()

    parts = {"serialized_state_dict.pt": lambda _: content}
    if not in_old_format(exported[2]):
        parts = {"weights/weight_0": lambda _: content, "model_weights_config.json": pickled}
    path = crafted(exported[2], tmp_path / "crafted.pt2", parts)
    check_attack(path, made, ".*(serialized_state_dict.pt|model_weights_config.json)")


def test_other_entries_are_refused(exported, tmp_path):
    path = crafted(exported[2], tmp_path / "more.pt2", {})
    with zipfile.ZipFile(path, "a") as archive:
        folder = "" if in_old_format(path) else archive.namelist()[0].partition("/")[0] + "/"
        archive.writestr(f"{folder}data/aotinductor/model/made.so", b"")
    with pytest.raises(CheckpointError, match=r"is not a torch\.export file"):
        load_exported_program(path)


@pytest.mark.parametrize(
    "guard",
    [
        "(L['input'].size()[2] // 2) != 1",
        "(torch.sym_max(1, L['input'].size()[2] // 2)*L['input'].size()[3]) % 2 == 0",
        "L['args'][0].size()[0] >= 2 and L['args'][0].size()[0] <= max(64, 2)",
    ],
)
def test_guards_that_compare_sizes_are_harmless(guard):
    assert is_guard(guard)


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
