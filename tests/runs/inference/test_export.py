"""Exported files: compared before they are kept, with a card that says how to use them."""

import importlib.util
import json
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from composer_attn import load_run
from composer_attn.errors import ArgumentError, ExportError, MissingExtraError
from composer_attn.runs.data.digits import digits
from composer_attn.runs.inference import export as exporting
from composer_attn.runs.inference.export import export
from composer_attn.runs.inference.exported_model import open_exported
from composer_attn.runs.inference.formats import FORMATS
from composer_attn.runs.inference.model_card import card_paths, read_card, sha256_of
from composer_attn.runs.inference.predict import predict
from tests.commands import invoke, run

HERE = [
    name
    for name, each in FORMATS.items()
    if each.library is None or importlib.util.find_spec(each.library)
]


@pytest.fixture
def loaded(trained):
    return load_run(trained[0])


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
    """Return a function that exports the run to a format, once, and its file and card."""
    folder, loaded = tmp_path_factory.mktemp("exported"), load_run(trained[0])

    @cache
    def file(to):
        return export(loaded, to, folder / f"small{FORMATS[to].ending}", samples=100)

    return file


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_formats_that_are_tried_are_those_of_the_tests_environment():
    assert set(HERE) == set(FORMATS)


@pytest.mark.parametrize("to", HERE)
def test_a_file_takes_batches_of_any_size_and_its_card_says_what_it_is(loaded, to, files):
    path, card = files(to)
    images, labels = digits("test", size=8).dataset.tensors
    compute = FORMATS[to].read(path)
    with torch.inference_mode():
        expected = loaded.network(images)
        for count in (1, 2, 7, 360):
            torch.testing.assert_close(compute(images[:count]), expected[:count], rtol=0, atol=1e-4)
    written = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert written == json.loads(card.as_json())
    assert written["sha256"][path.name] == sha256_of(path)
    assert written["classes"] == list("0123456789")
    assert written["input"]["shape"] == ["batch", 3, 8, 8]
    assert written["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert written["model"]["algorithms"]["squeeze_excite"]["min_channels"] == 128
    library = {FORMATS[to].library} - {None}
    assert set(written["versions"]) >= {"python", "torch", "composer-attn", *library}
    assert written["licence"] == ""
    tested = written["evaluation"]
    spread = torch.tensor([index * 360 // 100 for index in range(100)])
    right = (expected[spread].argmax(1) == labels[spread]).float().mean().item()
    assert tested["accuracy_before"] == pytest.approx(right)
    assert tested["accuracy_after"] == pytest.approx(right, abs=0.011)
    assert tested["samples"] == 100
    assert tested["largest_difference"] < 1e-4
    text = path.with_name(f"{path.name}.md").read_text()
    assert f"| accuracy of this file | {tested['accuracy_after']:.2%} |" in text
    assert "9. 9\n" in text
    assert not [name for name in names_in(path.parent) if name.startswith(".")]


def test_a_round_trip_to_files_and_a_fresh_process_gives_the_same(trained, digit_files, files):
    folder, _ = trained
    code = (
        "import sys; from composer_attn.cli import app\n"
        "for source in sys.argv[1:4]:\n"
        "    command = ['predict', source, *sys.argv[4:], '--json', '--top', '10']\n"
        "    app(command, standalone_mode=False)\n"
        "    print('---')"
    )
    sources = [folder, files("onnx")[0], files("torch_export")[0]]
    done = run(sys.executable, "-c", code, *map(str, [*sources, *digit_files]), cwd=folder)
    assert done.returncode == 0, done.stderr
    documents = [json.loads(text) for text in done.stdout.split("---\n") if text]
    expected = predict(load_run(folder), digit_files, top=10)
    assert len(documents) == 3
    for document in documents:
        for found, prediction in zip(document, expected, strict=True):
            assert found["image"] == prediction.image
            probabilities = {g["name"]: g["probability"] for g in found["guesses"]}
            before = {g.name: g.probability for g in prediction.guesses}
            assert probabilities == pytest.approx(before, abs=1e-4)
            assert sum(probabilities.values()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("fold", [True, False])
def test_norms_are_folded_unless_asked_not_to(loaded, fold, tmp_path):
    norms = [m for m in loaded.network.modules() if isinstance(m, nn.BatchNorm2d)]
    path, _ = export(loaded, "torch_export", tmp_path / "model.pt2", samples=8, fold=fold)
    graph = torch.export.load(path).graph
    kept = [node for node in graph.nodes if "batch_norm" in str(node.target)]
    assert len(kept) == (0 if fold else len(norms))
    assert [m for m in loaded.network.modules() if isinstance(m, nn.BatchNorm2d)] == norms


def test_the_whole_evaluation_set_is_compared_by_default(trained, capfd):
    folder, summary = trained
    command = ["export", str(folder), "--to", "torchscript", "--checkpoint", "last", "--json"]
    assert invoke(*command) == 0
    tested = json.loads(capfd.readouterr().out)["evaluation"]
    assert tested["samples"] == 360
    assert tested["accuracy_before"] == pytest.approx(summary.metrics["accuracy"])
    assert (folder / "model.torchscript").is_file()


@pytest.mark.parametrize("found", ["another", "nan", "shape", "fixed", "raises"])
def test_a_file_that_differs_is_not_kept(loaded, found, tmp_path, monkeypatch):
    def computed(images):
        logits = loaded.network(images)
        if found == "raises" or (found == "fixed" and len(images) == 1):
            raise RuntimeError("it takes batches of 2\nand no others")
        return {"another": logits + 0.01, "nan": logits * torch.nan}.get(found, logits[:, :-1])

    def write(network, example, path):
        assert example.shape == (2, 3, 8, 8)
        path.write_text("a file")

    before = exporting.FORMATS["torch_export"]
    faulty = {"torch_export": type(before)(before.ending, write, lambda path: computed)}
    monkeypatch.setattr(exporting, "FORMATS", faulty)
    words = {
        "raises": "does not run on 1 images of 8x8: it takes batches of 2$",
        "fixed": "does not run on 1 images",
        "another": r"was not kept: on 64 evaluation .* by up to .*e-0[23] of the largest",
    }.get(found, "by up to inf")
    out = tmp_path / "small.pt2"
    out.write_text("what was there before")
    with pytest.raises(ExportError, match=words):
        export(loaded, "torch_export", out, samples=64)
    assert names_in(tmp_path) == {"small.pt2"}
    assert out.read_text() == "what was there before"


def test_a_network_that_no_exporter_takes_is_an_error_of_ours(loaded, tmp_path):
    class Asks(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :10] if images.sum() > 0 else images.flatten(1)[:, 10:20]

    object.__setattr__(loaded, "network", Asks().eval())
    with pytest.raises(ExportError, match="cannot be exported to torch_export"):
        export(loaded, "torch_export", tmp_path / "asks.pt2")
    assert names_in(tmp_path) == set()


def test_what_is_asked_wrongly_is_refused_before_anything_is_written(loaded, tmp_path):
    for arguments, words in (
        ({"to": "onyx"}, "unknown format 'onyx'. Did you mean 'onnx'"),
        ({"to": "onnx", "out": tmp_path / "model.pt2"}, "must have a name that ends in .onnx"),
        ({"to": "onnx", "samples": 0}, "samples must be"),
        ({"to": "onnx", "tolerance": 0.0}, "tolerance must be more than 0"),
    ):
        with pytest.raises(ArgumentError, match=words.split("'. ")[0]):
            export(loaded, **arguments)
    assert names_in(tmp_path) == set()


def test_exit_codes_tell_a_file_that_differs_from_a_wrong_question(trained, tmp_path, capfd):
    folder, _ = trained
    out = ["--out", str(tmp_path / "x.onnx"), "--samples", "8"]
    assert invoke("export", str(folder), *out, "--tolerance", "1e-12") == 1
    assert "was not kept" in capfd.readouterr().err
    assert invoke("export", str(folder), "--to", "gguf") == 2
    assert names_in(tmp_path) == set()


def test_a_missing_library_names_its_extra(loaded, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    for to, extra in (("onnx", "export"), ("openvino", "openvino")):
        with pytest.raises(MissingExtraError, match=rf"pip install 'composer-attn\[{extra}\]'"):
            export(loaded, to, tmp_path / f"x{FORMATS[to].ending}")
    assert names_in(tmp_path) == set()


def test_a_file_without_its_card_or_with_anothers_is_refused(loaded, tmp_path):
    path, _ = export(loaded, "onnx", tmp_path / "a.onnx", samples=8)
    assert open_exported(path).classes == loaded.classes
    card = card_paths(path)[0]
    text = card.read_text()
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ArgumentError, match="is not the file of its card"):
        open_exported(path)
    for wrong in ("[]", "{}", "no json", text.replace('"crop": 8', '"crop": null')):
        card.write_text(wrong)
        with pytest.raises(ArgumentError, match="is not the model card of an exported file"):
            read_card(path)
    card.unlink()
    with pytest.raises(ArgumentError, match=r"there is no model card a\.onnx\.json next to"):
        open_exported(path)


def test_torchscript_is_not_run_for_others(loaded, tmp_path):
    path, _ = export(loaded, "torchscript", tmp_path / "a.torchscript", samples=8)
    with pytest.raises(ArgumentError, match="and is not run"):
        open_exported(path)
