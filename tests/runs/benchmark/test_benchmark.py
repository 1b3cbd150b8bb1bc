"""Latency and throughput with and without attention, on this machine."""

import csv
import io
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image
from rich.console import Console

from composer_attn.errors import ArgumentError, ConfigError, MissingExtraError, SaveError
from composer_attn.functional import attended_modules
from composer_attn.fusion.fused_norms import is_fused
from composer_attn.runs.benchmark import variants as ways
from composer_attn.runs.benchmark.command import parse_batches, run_benchmark
from composer_attn.runs.benchmark.measure import Row, measure
from composer_attn.runs.benchmark.results import show, write_results
from composer_attn.runs.benchmark.subject import find_subject
from composer_attn.runs.benchmark.variants import VARIANTS, prepare
from tests.commands import invoke
from tests.runs.inference.conftest import train_in, trained

__all__ = ["trained"]

EAGER = ("attended", "fused", "folded", "plain_folded")


@pytest.fixture(scope="module")
def subject():
    return find_subject("resnet10", "eca", {"min_channels": 64}, "32")


def test_a_subject_by_name_has_two_networks_of_equal_weights(subject):
    assert (subject.name, subject.attention) == ("resnet10", "eca (min_channels=64)")
    assert subject.image == (3, 32, 32)
    assert not attended_modules(subject.plain)
    assert len(attended_modules(subject.attended)) == 12
    assert not any(module.training for module in subject.attended.modules())
    own, other = subject.plain.state_dict(), subject.attended.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in own.items())


def test_the_image_is_a_size_a_shape_or_the_networks_own():
    assert find_subject("resnet10", "eca", {}, "3x32x48").image == (3, 32, 48)
    assert find_subject("simplified_efficientnet", "eca", {}, None).image == (3, 56, 56)
    assert find_subject("timm/resnet10t", "squeeze_excite", {}, None).image == (3, 176, 176)


def test_a_run_is_measured_with_the_attention_that_it_was_trained_with(trained, tmp_path):
    folder, summary = trained
    found = find_subject(str(folder), None, {}, None)
    assert (found.name, found.attention) == ("tiny", "SqueezeExcitation")
    assert found.image == (3, 8, 8)
    assert len(attended_modules(found.attended)) == summary.attended_layers
    assert not any(map(is_fused, found.attended.modules()))
    assert not attended_modules(found.plain)
    assert find_subject(str(folder / "latest-rank0.pt"), None, {}, "16").image == (3, 16, 16)
    with pytest.raises(ArgumentError, match="tiny was trained with attention, which is measured"):
        find_subject(str(folder), "eca", {}, None)


def test_a_run_without_attention_asks_for_one(tmp_path):
    folder = tmp_path / "bare"
    train_in(folder, "algorithms.squeeze_excite=null", "max_duration=1ba", "run_name=bare")
    with pytest.raises(ArgumentError, match="bare was trained without attention"):
        find_subject(str(folder), None, {}, None)
    found = find_subject(str(folder), "eca", {"min_channels": 256}, None)
    assert len(attended_modules(found.attended)) == 6


def test_every_variant_is_measured_in_turn(subject):
    (small, large) = measure(subject, [1, 3], rounds=3, variants=(*EAGER, "onnxruntime"))
    for batch, rows in ((1, small), (3, large)):
        assert [row.variant for row in rows] == ["plain", *EAGER, "onnxruntime"]
        for row in rows:
            assert (row.batch, row.note) == (batch, "")
            assert 0 < row.lower_quartile_ms <= row.median_ms <= row.upper_quartile_ms
            assert row.images_per_second == pytest.approx(1e3 * batch / row.median_ms, rel=0.01)
            assert row.ratio_lower_quartile <= row.ratio <= row.ratio_upper_quartile
        assert rows[0].ratio == 1


def test_variants_compute_what_they_are_called(subject):
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = {True: subject.attended(images), False: subject.plain(images)}
    for name in (*EAGER, "plain", "onnxruntime", "plain_onnxruntime"):
        found = prepare(name, subject, images)(images)
        torch.testing.assert_close(found, expected[VARIANTS[name].attended], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(expected[True], expected[False])
    assert not any(map(is_fused, subject.attended.modules()))


@pytest.mark.slow
def test_compiled_networks_are_measured(subject):
    (rows,) = measure(subject, [2], rounds=2, variants=("compiled", "plain_compiled"))
    assert [(row.variant, row.note) for row in rows] == [
        ("plain", ""), ("compiled", ""), ("plain_compiled", ""),
    ]  # fmt: skip


def test_what_cannot_run_here_is_named_with_the_reason(subject, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    def compiles_nothing(network, **options):
        def run(images):
            raise RuntimeError("backend='inductor' raised:\nInvalidCxxCompiler: no C++ compiler")

        return run

    monkeypatch.setattr(torch, "compile", compiles_nothing)
    differs = replace(VARIANTS["folded"], prepare=lambda network, _: lambda x: 2 * network(x))
    monkeypatch.setitem(ways.VARIANTS, "folded", differs)
    names = ("attended", "folded", "compiled", "onnxruntime")
    (rows,) = measure(subject, [2], rounds=2, variants=names)
    notes = {row.variant: row.note for row in rows if row.median_ms is None}
    assert notes == {
        "folded": "not measured: its outputs differ from the network's",
        "compiled": "backend='inductor' raised: InvalidCxxCompiler: no C++ compiler",
        "onnxruntime": "ONNX Runtime needs onnxruntime: pip install 'composer-attn[export]'",
    }
    text = io.StringIO()
    show(rows, Console(file=text, width=160))
    assert "composer-attn[export]" in text.getvalue()


def test_a_network_without_norms_is_not_folded():
    subject = find_subject("squeezenet1_1", "eca", {}, "64")
    (rows,) = measure(subject, [1], rounds=2, variants=("attended", "folded"))
    assert [row.median_ms is None for row in rows] == [False, False, True]
    assert rows[2].note.startswith("no norm was folded")


def test_results_are_a_table_and_a_picture(tmp_path):
    measured = {
        "median_ms": 2.0, "lower_quartile_ms": 1.5, "upper_quartile_ms": 2.5,
        "images_per_second": 500.0,
        "ratio": 1.0, "ratio_lower_quartile": 0.9, "ratio_upper_quartile": 1.1,
    }  # fmt: skip
    rows = [
        Row(batch, name, **({} if name == "compiled" else measured), note="why" * (batch > 1))
        for batch in (1, 8)
        for name in ("plain", "attended", "compiled")
    ]
    settings = {"model": "net", "attention": "eca", "image": "3x8x8", "device": "cpu", "threads": 2}
    write_results(rows, settings, tmp_path / "new" / "folder")
    with (tmp_path / "new/folder/benchmark.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [(row["batch"], row["variant"], row["median_ms"]) for row in read[:3]] == [
        ("1", "plain", "2.0"), ("1", "attended", "2.0"), ("1", "compiled", ""),
    ]  # fmt: skip
    assert read[0]["model"] == "net"
    with Image.open(tmp_path / "new/folder/benchmark.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
    assert len(list((tmp_path / "new/folder").iterdir())) == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="cannot be written"):
        write_results(rows, settings, tmp_path / "file" / "folder")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"batches": [0]}, "batch must be a whole number >= 1; got 0"),
        ({"rounds": 1}, "rounds must be a whole number >= 2; got 1"),
        ({"variants": ["fuzed"]}, "unknown variant 'fuzed'; did you mean 'fused'"),
        ({"device": "gpu"}, "device must be cpu, cuda or cuda:INDEX; got 'gpu'"),
        ({"device": "meta"}, "device must be cpu, cuda or cuda:INDEX; got 'meta'"),
        ({"model": "resnet10000"}, "there is no model, and no file, named 'resnet10000'"),
        ({"model": "ssdlite320_mobilenet_v3_large"}, "takes a list of images"),
        ({"algorithm": None}, "set --algorithm to"),
        ({"image": "3x"}, "image must be CHANNELSxHEIGHTxWIDTH"),
        ({"image": "1x32x32"}, "the network does not run on images 2x1x32x32"),
        ({"arguments": {"kernel": 3}}, "kernel"),
        ({"arguments": {"min_channels": 9999}}, "eca attends no module of resnet10"),
    ],
)
def test_what_is_asked_wrongly_is_refused(changed, words, tmp_path):
    asked = {
        "model": "resnet10", "algorithm": "eca", "arguments": {}, "image": "32", "batches": [2],
        "device": "cpu", "rounds": 2, "variants": ["attended"], "output": tmp_path / "out",
    }  # fmt: skip
    with pytest.raises((ArgumentError, ConfigError), match=words):
        run_benchmark(**asked | changed)
    assert list(tmp_path.iterdir()) == []


def test_batches_are_numbers_separated_by_commas():
    assert parse_batches("1, 8,64") == [1, 8, 64]
    for text in ("", "1,,2", "0", "1.5", "many"):
        with pytest.raises(ArgumentError, match="batch must be whole numbers"):
            parse_batches(text)


def test_without_matplotlib_nothing_is_measured(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"matplotlib: pip install 'composer-attn\[report"):
        run_benchmark("resnet10", "eca", {}, "32", [1], "cpu", 2, ["attended"], tmp_path / "out")


def test_the_command_prints_and_writes(tmp_path, capfd):
    command = ["benchmark", "resnet10", "reduction=8", "--algorithm", "squeeze_excite"]
    command += ["--image", "32", "--batch", "1,2", "--rounds", "2", "--variants", "attended,fused"]
    out = tmp_path / "out"
    assert invoke(*command, "--output", str(out)) == 2
    capfd.readouterr()
    command[2] = "latent_channels=8"
    assert invoke(*command, "--min-channels", "256", "--output", str(out)) == 0
    printed = capfd.readouterr().out
    assert "resnet10, squeeze_excite (min_channels=256, latent_channels=8)" in printed
    assert "batch 2" in printed
    assert {path.name for path in out.iterdir()} == {"benchmark.csv", "benchmark.png"}
    assert invoke(*command, "--batch", "0", "--output", str(out)) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1
