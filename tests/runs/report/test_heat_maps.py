"""Heat maps on the page, from trained runs, and what the page says where there are none."""

import json
import re
import shutil

import pytest
import yaml

from composer_attn.runs.report import heat_maps, write_report
from composer_attn.runs.report.compare import compare
from composer_attn.runs.report.records import find_records
from tests.runs.inference.conftest import CONFIG, train_in
from tests.runs.report.test_page import Page
from tests.runs.runs_on_disk import write_run

RECIPE, ATTENTION = CONFIG.replace("21ba", "7ba").split("algorithms:")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of runs: plain, and with SE."""
    folder = tmp_path_factory.mktemp("study")
    train_in(folder / "plain", config=RECIPE)
    train_in(folder / "se", config=f"{RECIPE}algorithms:{ATTENTION}")
    return folder


@pytest.fixture
def study(runs, tmp_path):
    """A copy of the runs, to be changed."""
    return shutil.copytree(runs, tmp_path / "study")


def svgs_of(page: str) -> list[str]:
    labels = [svg["aria-label"] for svg in Page(page).all("svg")]
    return [label for label in labels if label.startswith("Evaluation image")]


def notices_of(folder) -> list[str]:
    told = json.loads((folder / "results.json").read_text())["notices"]
    return [notice for notice in told if "heat maps" in notice]


def test_the_page_shows_the_same_images_under_all_variants(runs, tmp_path):
    page = write_report([runs], tmp_path / "out").read_text()
    labels = svgs_of(page)
    assert len(labels) == heat_maps.IMAGES == 6
    classes = set()
    for number, label in enumerate(labels, 1):
        form = rf"Evaluation image {number}, of class (\d); feature map of (\w+)\. "
        form += r"plain predicts \d \([\d.]+%\); squeeze_excite predicts \d \([\d.]+%\)\."
        found = re.fullmatch(form, label)
        assert found, label
        classes.add(found[1])
        assert (tmp_path / "out" / "plots" / f"heat_map_{number}.png").is_file()
        assert (tmp_path / "out" / "plots" / f"heat_map_{number}.svg").is_file()
    assert len(classes) == 6
    assert 'href="#heat-maps"' in page
    section = re.search(r'<section id="heat-maps".*?</section>', page, re.DOTALL)[0]
    assert section.count("data:image/png;base64") == 6 * 3
    assert "src=" not in section
    assert notices_of(tmp_path / "out") == []
    assert Page(page).open == []


def test_without_captum_the_page_says_what_to_install(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(heat_maps, "find_spec", lambda name: None)
    page = write_report([runs / "se"], tmp_path / "out").read_text()
    assert svgs_of(page) == []
    assert 'id="heat-maps"' not in page
    (told,) = notices_of(tmp_path / "out")
    assert told.endswith("heat maps need captum: pip install 'composer-attn[heatmaps]'")


def drawn(runs, tmp_path, monkeypatch) -> tuple[list[str], list[str]]:
    """Return the alternative texts of two images' heat maps, and the notices."""
    monkeypatch.setattr(heat_maps, "IMAGES", 2)
    plots, told = heat_maps.draw_heat_maps(compare(find_records([runs])), tmp_path / "plots")
    return [plot.alt for plot in plots], told


def test_runs_without_a_checkpoint_have_no_maps_and_need_no_word(tmp_path, monkeypatch):
    write_run(tmp_path / "runs" / "plain")
    assert drawn(tmp_path / "runs", tmp_path, monkeypatch) == ([], [])


def test_a_variant_that_cannot_be_loaded_is_left_out_and_said(study, tmp_path, monkeypatch):
    for checkpoint in (study / "se").glob("*.pt"):
        checkpoint.write_bytes(b"PK\x03\x04")
    shown, told = drawn(study, tmp_path, monkeypatch)
    assert len(shown) == 2
    assert all("plain predicts" in alt and "squeeze_excite" not in alt for alt in shown)
    assert [each.split(": ")[:2] for each in told] == [
        ["squeeze_excite", "its heat maps are not shown"]
    ]
    for checkpoint in (study / "plain").glob("*.pt"):
        checkpoint.write_bytes(b"")
    shutil.rmtree(tmp_path / "plots")
    shown, told = drawn(study, tmp_path, monkeypatch)
    assert shown == []
    assert len(told) == 2
    assert not (tmp_path / "plots").exists()


def test_a_variant_evaluated_on_other_data_is_left_out_and_said(study, tmp_path, monkeypatch):
    config = study / "se" / "config.yaml"
    text = config.read_text()
    assert text.count("split: test") == 1
    config.write_text(text.replace("split: test", "split: train"))
    shown, told = drawn(study, tmp_path, monkeypatch)
    assert len(shown) == 2
    assert told == ["squeeze_excite: its heat maps are not shown: it was evaluated on other data"]


def test_data_that_are_gone_are_said(study, tmp_path, monkeypatch):
    gone = {"name": "image_folder", "root": "nowhere", "augmentation": "center_crop", "size": 8}
    for name in ("plain", "se"):
        config = study / name / "config.yaml"
        content = yaml.safe_load(config.read_text())
        config.write_text(yaml.safe_dump(content | {"eval_dataset": gone}))
    shown, told = drawn(study, tmp_path, monkeypatch)
    assert shown == []
    assert len(told) == 2
    assert all("eval_dataset: " in each and "nowhere" in each for each in told)
