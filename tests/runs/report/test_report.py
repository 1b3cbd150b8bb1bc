"""The report: its numbers, and runs in every state that may be found on disk."""

import csv
import json
import re
from math import nan, sqrt
from statistics import stdev

import pytest
import yaml

from composer_attn.errors import ConfigError
from composer_attn.runs import report as report_package
from composer_attn.runs.report import write_report
from composer_attn.runs.report.compare import compare
from composer_attn.runs.report.page import NONE
from composer_attn.runs.report.records import find_records
from tests.commands import invoke
from tests.runs.runs_on_disk import write_run

NUMBERS = {
    "plain": (0.90, 0.92, 0.94),
    "eca": (0.95, 0.96, 0.97),
    "squeeze_excite": (0.9, 0.95, 0.925),
}
T2 = 4.302652729911275  # quantile 0.975 of Student's t with two degrees of freedom
SPEEDS = {"plain": 100.0, "eca": 90.0, "squeeze_excite": 80.0}


@pytest.fixture
def study(tmp_path):
    """Three variants with three seeds."""
    for name, accuracies in NUMBERS.items():
        for seed, accuracy in enumerate(accuracies):
            write_run(
                tmp_path / "study" / f"{name}-seed{seed}",
                None if name == "plain" else name,
                seed,
                accuracy,
                speed=SPEEDS[name] + seed,
                parameters=1000 + 10 * len(name),
            )
    return tmp_path / "study"


def page_of(*folders, out):
    return write_report(list(folders), out).read_text()


def notices_of(page: str) -> str:
    found = re.search(r'class="notices".*?</section>', page, re.DOTALL)
    return found[0] if found else ""


def test_results_are_means_and_spreads_over_seeds(study, tmp_path):
    write_report([study], tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = {row["variant"]: row for row in results["variants"]}
    assert list(rows) == ["plain", "squeeze_excite", "eca"]
    plain = rows["plain"]
    for name, accuracies in NUMBERS.items():
        row = rows[name]
        assert (row["runs"], row["finished"]) == (3, 3)
        assert row["accuracy"] == pytest.approx(sum(accuracies) / 3)
        assert row["accuracy_spread"] == pytest.approx(stdev(accuracies))
        assert row["images_per_second"] == SPEEDS[name] + 1
        assert row["speed_relative_to_plain"] == pytest.approx((SPEEDS[name] + 1) / 101)
        assert row["parameters"] == 1000 + 10 * len(name)
        assert row["peak_memory"] == 100 * 2**20
        if name != "plain":
            difference = row["accuracy"] - plain["accuracy"]
            assert row["difference_to_plain"] == pytest.approx(difference)
    # By seed ECA is ahead by 0.05, 0.04, 0.03: the half-width of the interval is t(2) s / sqrt(3).
    assert rows["eca"]["difference_low"] == pytest.approx(0.04 - T2 * 0.01 / sqrt(3))
    assert rows["eca"]["difference_high"] == pytest.approx(0.04 + T2 * 0.01 / sqrt(3))
    assert rows["eca"]["difference_is"] == "distinguishable"
    assert rows["eca"]["difference_interval_of"] == "paired seeds"
    # And SE by 0, 0.03, -0.015.
    half = T2 * stdev([0, 0.03, -0.015]) / sqrt(3)
    assert rows["squeeze_excite"]["difference_high"] == pytest.approx(0.005 + half)
    assert rows["squeeze_excite"]["difference_is"] == "not distinguishable"
    assert plain["difference_is"] is None
    assert plain["accuracy_low"] == pytest.approx(0.92 - T2 * 0.02 / sqrt(3))
    assert results["notices"] == []


def test_the_table_has_a_row_for_each_run(study, tmp_path):
    write_report([study], tmp_path / "out")
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert {row["state"] for row in rows} == {"finished"}
    first = rows[0]
    assert (first["variant"], first["seed"], float(first["accuracy"])) == ("plain", "0", 0.9)
    assert first["command"] == f"composer-attn train {study / 'plain-seed0' / 'config.yaml'}"


def test_the_command_of_a_run_that_would_resume_names_another_folder(tmp_path):
    write_run(tmp_path / "run", autoresume=True)
    page = page_of(tmp_path / "run", out=tmp_path / "out")
    assert f"train {tmp_path / 'run' / 'config.yaml'} save_folder=runs/again" in page


def test_plots_are_written_as_svg_and_png(study, tmp_path):
    write_report([study], tmp_path / "out")
    plots = tmp_path / "out" / "plots"
    names = {path.stem for path in plots.glob("*.svg")}
    assert names == {path.stem for path in plots.glob("*.png")}
    assert {
        "accuracy_by_images",
        "accuracy_by_time",
        "loss_by_images",
        "loss_by_time",
        "accuracy_by_seconds_cost",
        "accuracy_by_parameters_cost",
        "excitation_by_depth",
        "excitation_eca_layer1_0_conv1",
        "excitation_squeeze_excite_layer2_0_conv1",
    } <= names
    for path in plots.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    # What an earlier report had drawn, and this one has not, goes.
    write_report([study / "plain-seed0"], tmp_path / "out")
    assert not list(plots.glob("excitation*"))


def test_the_config_of_every_run_is_on_the_page(study, tmp_path):
    page = page_of(study, out=tmp_path / "out")
    for run in study.iterdir():
        assert f"composer-attn train {run / 'config.yaml'}" in page
        assert f"run_name: {run.name}" in page
    assert "1,030" in page  # parameters
    assert "1.00\N{MULTIPLICATION SIGN}" in page
    assert "90.00%" not in page  # of one seed, where there are three
    assert "92.00%" in page
    assert "± 2.00" in page


def test_one_seed_has_no_spread_and_the_page_says_so(study, tmp_path):
    page = page_of(study / "plain-seed0", study / "eca-seed0", out=tmp_path / "out")
    assert "not distinguishable: one seed, images not known" in page
    assert "Each variant was trained with one seed" in notices_of(page)


def test_an_interrupted_run_is_shown_as_far_as_it_came(study, tmp_path):
    write_run(tmp_path / "cut", "eca", 5, 0.5, finished=False)
    page = page_of(study, tmp_path / "cut", out=tmp_path / "out")
    said = notices_of(page)
    assert f"eca, seed 5: the run in {tmp_path / 'cut'} has no summary" in said
    assert "after 2 epochs (20 batches)" in said
    variant = compare(find_records([study, tmp_path / "cut"])).variants[-1]
    assert (variant.name, len(variant.runs)) == ("eca", 4)
    assert variant.closing("images_per_second").count == 3


def test_nothing_but_interrupted_runs_still_make_a_page(tmp_path):
    write_run(tmp_path / "cut", "eca", finished=False)
    page = page_of(tmp_path / "cut", out=tmp_path / "out")
    assert "has no summary" in notices_of(page)
    assert "There is no plain run here" in notices_of(page)


def test_a_folder_without_a_run_beside_one_with_is_said(study, tmp_path):
    (tmp_path / "empty").mkdir()
    page = page_of(study, tmp_path / "empty", out=tmp_path / "out")
    assert f"{tmp_path / 'empty'} has neither a summary nor a training history" in notices_of(page)


def test_a_loss_that_came_apart_is_said(study, tmp_path):
    write_run(tmp_path / "apart", "eca", 9, None, losses=(1.0, nan, nan))
    page = page_of(study, tmp_path / "apart", out=tmp_path / "out")
    said = notices_of(page)
    assert "eca, seed 9: the loss is NaN (not a number) from epoch 2 on" in said
    assert "eca, seed 9: no value was computed for accuracy" in said
    row = compare(find_records([study, tmp_path / "apart"])).variants[-1]
    assert row.name == "eca"
    assert "nan" not in page.lower().replace("nan (not a number)", "")


def test_runs_of_different_recipes_are_said_and_kept_apart(study, tmp_path):
    write_run(tmp_path / "other", None, 0, 0.5, batch_size=32, speed=50.0)
    write_run(tmp_path / "other_eca", "eca", 0, 0.6, batch_size=32, speed=40.0)
    folders = [study, tmp_path / "other", tmp_path / "other_eca"]
    page = page_of(*folders, out=tmp_path / "out")
    assert "different recipes; they differ, attention aside, in batch_size (256 / 32)" in (
        notices_of(page).replace("&#34;", '"')
    )
    results = json.loads((tmp_path / "out" / "results.json").read_text())["variants"]
    assert len(results) == 5
    other = next(row for row in results if row["accuracy"] == 0.6)
    assert other["variant"] == "eca [other_eca]"
    assert other["difference_to_plain"] == pytest.approx(0.1)
    assert other["speed_relative_to_plain"] == pytest.approx(0.8)


def test_arguments_tell_variants_of_one_attention_apart(tmp_path):
    for size in (3, 5):
        write_run(tmp_path / f"k{size}", algorithms={"eca": {"kernel_size": size}})
    found = compare(find_records([tmp_path / "k3", tmp_path / "k5"]))
    assert [v.label for v in found.variants] == ["eca (kernel_size=3)", "eca (kernel_size=5)"]


def test_long_arguments_stand_once_below_and_not_in_legends(tmp_path):
    for number in (1, 2):
        given = {"include": [f"layer{number}.0.conv1", f"layer{number}.0.conv2"], "kernel_size": 3}
        write_run(tmp_path / f"eca{number}", algorithms={"eca": given})
    named = {"squeeze_excite": {"placement": "residual", "latent_channels": 0.0625}}
    write_run(tmp_path / "ends", algorithms=named, variant="se at branch ends")
    folders = [tmp_path / "eca1", tmp_path / "eca2", tmp_path / "ends"]
    found = compare(find_records(folders))
    assert [v.label for v in found.variants] == ["se at branch ends", "eca 1", "eca 2"]
    page = page_of(*folders, out=tmp_path / "out")
    settings = re.search(r'<dl class="settings".*?</dl>', page, re.DOTALL)[0]
    assert settings.count("<code>") == 3
    assert "squeeze_excite: placement=residual, latent_channels=0.0625" in settings
    assert page.count("layer1.0.conv2&#39;]") == 1


def test_an_attended_run_without_a_monitor_is_said(tmp_path):
    write_run(tmp_path / "plain")
    write_run(tmp_path / "eca", "eca", watched=False)
    page = page_of(tmp_path / "plain", tmp_path / "eca", out=tmp_path / "out")
    assert "eca: no excitations were recorded" in notices_of(page)
    assert "What the gates learned" not in page


def test_broken_files_are_left_out(study, tmp_path):
    run = study / "eca-seed0"
    (run / "summary.json").write_text('{"metrics": {"accur')
    (run / "config.yaml").write_text("a: [")
    with (run / "history.jsonl").open("a") as file:
        file.write('{"kind": "train", "ba')
    (run / "excitations.npz").write_bytes(b"PK")
    record = find_records([run])[0]
    assert (record.summary, record.config, record.excitations) == (None, {}, None)
    assert len(record.history) == 4
    assert "has no summary" in notices_of(page_of(study, out=tmp_path / "out"))


def test_different_versions_and_ranks_are_said(study, tmp_path):
    path = study / "eca-seed0" / "summary.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"versions": {"torch": "2.13"}, "ranks": 8}))
    said = notices_of(page_of(study, out=tmp_path / "out"))
    assert "different numbers of processes" in said
    assert "different versions" in said


def test_published_figures_stand_beside_ours_where_the_network_is_the_same(tmp_path):
    model = {"name": "resnet50", "num_classes": 1000}
    write_run(tmp_path / "plain", accuracy=0.7512, parameters=25_557_032, model=model)
    write_run(tmp_path / "eca", "eca", accuracy=0.7701, parameters=25_557_118, model=model)
    page = page_of(tmp_path / "plain", tmp_path / "eca", out=tmp_path / "out")
    table = re.search(r'<section id="published".*?</section>', page, re.DOTALL)[0]
    row = re.search(r"<tr>(?:(?!</tr>).)*top-1(?:(?!</tr>).)*</tr>", table, re.DOTALL)[0]
    cells = re.findall(r"<td>([^<]+)<br><em>([^<]+)</em></td>", row)
    assert cells == [("75.20", "75.12"), ("76.71", NONE), ("77.48", "77.01")]
    assert "ECA-Net (Wang et al., 2020), table 3" in row
    assert "<em>25,557,118</em>" in table
    other = dict(model, num_classes=10)
    write_run(tmp_path / "ten", model=other)
    assert 'id="published"' not in page_of(tmp_path / "ten", out=tmp_path / "out")


def test_without_evaluation_the_page_still_comes(tmp_path):
    folder = write_run(tmp_path / "run", accuracy=None)
    values = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(values | {"metrics": {}}))
    (folder / "history.jsonl").unlink()
    assert "no evaluation, and so no accuracy" in notices_of(page_of(folder, out=tmp_path / "out"))


def test_the_command_writes_and_names_the_page(study, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert invoke("report", "study") == 0
    assert capfd.readouterr().out.strip() == "report/report.html"
    assert (tmp_path / "report" / "report.html").is_file()


def test_folders_that_are_not_there_or_hold_nothing_are_refused(tmp_path, capfd):
    assert invoke("report", str(tmp_path / "absent")) == 2
    assert "absent: there is no such folder" in capfd.readouterr().err
    assert invoke("report", str(tmp_path)) == 2
    assert "holds no run: none of config.yaml, summary.json" in capfd.readouterr().err


def test_a_place_that_cannot_be_written_is_refused(study, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--out: cannot be written"):
        write_report([study], tmp_path / "file" / "out")


def test_a_missing_library_is_named_with_the_command_that_brings_it(study, tmp_path, monkeypatch):
    monkeypatch.setattr(report_package, "_LIBRARIES", ("jinja2", "no_such_library"))
    with pytest.raises(ConfigError, match=r"needs no_such_library: pip install 'composer-attn\[r"):
        write_report([study], tmp_path / "out")


def test_names_with_markup_in_them_are_shown_as_text(tmp_path):
    config = {"model": {"name": "<script>alert(1)</script>", "num_classes": 10}}
    page = page_of(write_run(tmp_path / "run", **config), out=tmp_path / "out")
    assert "<script>alert" not in page
    shown = re.search(r"<code>(run_name: run.*?)</code>", page, re.DOTALL)[1]
    assert (
        yaml.safe_load(shown.replace("&lt;", "<").replace("&gt;", ">"))["model"] == config["model"]
    )
