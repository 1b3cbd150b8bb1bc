"""Files that accept images of any size, from networks that do."""

import pytest
import torch
from torch import nn

from composer_attn import load_run
from composer_attn.errors import ArgumentError, ExportError
from composer_attn.runs.inference.export import export
from composer_attn.runs.inference.exported_model import open_exported
from composer_attn.runs.inference.formats import FORMATS
from tests.commands import invoke

SIZED = [name for name, each in FORMATS.items() if each.write_dynamic_size]


@pytest.fixture
def loaded(trained):
    return load_run(trained[0], overrides=["eval_dataset.size=64"])


def test_all_formats_but_torchscript_have_images_of_any_size():
    assert SIZED == ["onnx", "torch_export", "openvino"]


@pytest.mark.parametrize("to", SIZED)
def test_a_file_takes_images_of_any_size(loaded, to, tmp_path):
    out = tmp_path / f"a{FORMATS[to].ending}"
    path, card = export(loaded, to, out, samples=16, dynamic_size=True)
    assert card.input["shape"] == ["batch", 3, "height", "width"]
    compute = open_exported(path).compute
    with torch.inference_mode():
        for shape in ((1, 3, 64, 64), (3, 3, 80, 112), (2, 3, 101, 67)):
            images = torch.randn(shape)
            expected = loaded.network(images)
            torch.testing.assert_close(compute(images), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("to", SIZED)
def test_without_the_option_a_file_keeps_the_size_of_the_run(loaded, to, tmp_path):
    path, card = export(loaded, to, tmp_path / f"a{FORMATS[to].ending}", samples=16)
    assert card.input["shape"] == ["batch", 3, 64, 64]
    with pytest.raises(Exception, match=r"64|[Ss]ize|[Dd]imension"):
        open_exported(path).compute(torch.randn(1, 3, 80, 80))


class Fixed(nn.Module):
    """A network of one size, because of its linear layer."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 8, stride=8), nn.Flatten(), nn.Linear(4 * 8 * 8, 10)
        )

    def forward(self, images):
        return self.layers(images)


class Branching(nn.Module):
    """A network of any size in eager mode, of which a trace sees one branch."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images):
        return self.layers(images) * (1 if int(images.shape[2]) == 64 else 2)


@pytest.mark.parametrize("to", SIZED)
@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Fixed, "dynamic_size: the network does not accept images of another size, such as 96x128"),
        (Branching, r"was not kept|cannot be exported|does not run on"),
    ],
)
def test_a_network_that_does_not_allow_it_is_refused_in_one_line(
    loaded, network, words, to, tmp_path
):
    object.__setattr__(loaded, "network", network().eval())
    with pytest.raises(ExportError, match=words) as error:
        export(loaded, to, tmp_path / f"a{FORMATS[to].ending}", samples=16, dynamic_size=True)
    assert len(str(error.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_format_of_one_size_is_refused(loaded, trained, tmp_path, capfd):
    with pytest.raises(ArgumentError, match="dynamic_size works with onnx, torch_export, openvino"):
        export(loaded, "torchscript", tmp_path / "a.torchscript", dynamic_size=True)
    assert list(tmp_path.iterdir()) == []
    folder, size = str(trained[0]), "eval_dataset.size=64"
    command = ["export", folder, size, "--dynamic-size", "--samples", "8"]
    assert invoke(*command, "--out", str(tmp_path / "a.onnx")) == 0
    assert invoke(*command, "--to", "torchscript") == 2
    assert len(capfd.readouterr().err.splitlines()) == 1
