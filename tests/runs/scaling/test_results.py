"""The best candidate is the best, and what is within the noise is said to be."""

import csv
import json
from dataclasses import replace

import pytest

from composer_attn.runs.components.config_check import load_checked
from composer_attn.runs.scaling.page import write_page
from composer_attn.runs.scaling.results import TOGETHER, Result, read_results
from composer_attn.runs.scaling.table import headline, noise, results_table
from tests.runs.report.test_page import Page
from tests.runs.scaling.recipes import small_plan, write_runs

SEEDS = range(17, 18)


@pytest.fixture(scope="module")
def plan():
    return small_plan()


def everything(plan):
    return [*plan.trained, *(c for line in plan.larger.values() for c in line)]


def test_the_best_is_the_most_accurate_within_the_budget(plan, tmp_path):
    plan = replace(plan, terms=plan.terms._replace(tolerance=0.15))
    beside = next(c for c in plan.trained[1:] if not plan.meets(c))
    best = [c for c in plan.grid if plan.meets(c)][2]
    reached = {beside.name: 0.99, best.name: 0.9}
    write_runs(everything(plan), tmp_path, lambda c, _: reached.get(c.name, 0.5))
    results = read_results(plan, SEEDS, tmp_path)
    assert results.best.candidate is best
    assert results.rivals == []
    assert "90.00%" in headline(results)
    assert noise(results) == "Every other candidate is less accurate by more than the noise."


def test_of_equally_accurate_candidates_the_cheapest_is_best(plan, tmp_path):
    write_runs(everything(plan), tmp_path, lambda c, _: 0.9)
    results = read_results(plan, SEEDS, tmp_path)
    assert results.best.candidate.size.macs == min(c.size.macs for c in plan.grid)
    assert len(results.rivals) == 9
    assert "not distinguishable from any of the 9 other candidates on 400 images" in noise(results)
    assert "with 1 seed." in noise(results)


def test_the_mean_over_seeds_counts(plan, tmp_path):
    lucky, steady = plan.grid[1], plan.grid[7]
    seeds = range(17, 20)
    reached = {(lucky.name, 17): 0.95, (steady.name, 17): 0.9}
    write_runs(
        everything(plan), tmp_path,
        lambda c, seed: reached.get((c.name, seed), 0.9 if c is steady else 0.5), seeds,
    )  # fmt: skip
    results = read_results(plan, seeds, tmp_path)
    assert results.best.candidate is steady
    assert results.best.accuracies == (0.9, 0.9, 0.9)


def test_the_error_is_that_of_the_images_and_of_the_seeds(plan):
    one = Result(plan.recipe, (0.9,), 400)
    # A proportion of 404 images, of which 362 are right (Agresti and Coull).
    assert one.error == pytest.approx((362 / 404 * 42 / 404 / 404) ** 0.5)
    several = Result(plan.recipe, (0.88, 0.9, 0.92), 400)
    assert several.error**2 - one.error**2 == pytest.approx(0.02**2 / 3)
    assert Result(plan.recipe, (1.0,), 400).error > 0
    assert Result(plan.recipe, (0.88, 0.9, 0.92), None).error == pytest.approx(0.02 / 3**0.5)


def test_differences_within_the_noise_are_not_differences(plan, tmp_path):
    best, near, far = plan.grid[4], plan.grid[0], plan.grid[1]
    reached = {best.name: 0.9, near.name: 0.87, far.name: 0.8}
    write_runs(everything(plan), tmp_path, lambda c, _: reached.get(c.name, 0.5))
    results = read_results(plan, SEEDS, tmp_path)
    # 12 and 40 of 400 images; two standard errors of the difference are about 18.
    assert [result.candidate for result in results.rivals] == [near]
    assert "not distinguishable from 1 of the 9" in noise(results)


def test_lines_go_from_the_recipe_through_the_budget_to_larger_networks(plan, tmp_path):
    write_runs(everything(plan), tmp_path, lambda c, _: 0.5 + c.growth / 100)
    lines = read_results(plan, SEEDS, tmp_path).lines
    assert [line.name for line in lines] == ["depth", "width", "resolution", TOGETHER]
    for line in lines:
        assert [point.candidate.phi for point in line.points] == [0, 1, 2]
        assert line.points[0].candidate is plan.recipe
        growth = [point.candidate.growth for point in line.points]
        assert growth == sorted(growth)
        assert all(len(point.accuracies) == 1 for point in line.points)


def test_the_line_of_all_follows_the_most_accurate_of_those_that_scale_all(tmp_path):
    plan = small_plan(steps=4, phi=1)
    compound = [c for c in plan.grid if plan.is_compound(c) and plan.meets(c)]
    assert len(compound) > 1
    write_runs(list(plan.trained), tmp_path, lambda c, _: 0.9 if c is compound[1] else 0.8)
    (line,) = [x for x in read_results(plan, SEEDS, tmp_path).lines if x.name == TOGETHER]
    assert line.base == compound[1].base
    assert [point.candidate for point in line.points] == [plan.recipe, compound[1]]


def test_results_are_written_as_a_page_a_picture_and_data(plan, tmp_path):
    best = plan.grid[4]
    write_runs(everything(plan), tmp_path, lambda c, _: 0.95 if c is best else 0.9)
    page = write_page(read_results(plan, SEEDS, tmp_path), tmp_path)
    assert page.name == "scaling.html"
    text = page.read_text()
    parsed = Page(text)
    assert parsed.open == []
    (svg,) = parsed.all("svg")
    assert svg["aria-label"].startswith("Accuracy against multiply-accumulates. depth 90.0% at ")
    assert "all together 90.0% at 2.14 M, 95.0% at 4.11 M" in svg["aria-label"]
    assert "var(--series-4)" in text
    for link in parsed.all("a"):
        assert link["href"].startswith("#") or (tmp_path / link["href"]).is_file()
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert len(rows) == 15
    assert all(float(row["accuracy"]) in (0.9, 0.95) for row in rows)
    data = json.loads((tmp_path / "results.json").read_text())
    assert (data["best"], data["budget"], data["evaluated"]) == (best.name, 2.0, 400)
    assert [row["macs"] for row in data["networks"][1:11]] == [c.size.macs for c in plan.grid]
    assert all(
        row["alpha"] * row["beta"] ** 2 * row["gamma"] ** 2 == pytest.approx(2)
        for row in data["networks"][1:]
    )


def test_the_best_can_be_trained_as_a_recipe_of_its_own(plan, tmp_path):
    best = plan.grid[4]
    write_runs(everything(plan), tmp_path, lambda c, _: 0.95 if c is best else 0.9)
    write_page(read_results(plan, SEEDS, tmp_path), tmp_path)
    config = load_checked(tmp_path / "best.yaml")
    assert config.model == best.config.model
    assert config.train_dataset["size"] == best.size.image
    assert (config.run_name, config.save_folder) == ("small_scaled", "runs/small_scaled")
    assert not config.autoresume


def test_what_failed_is_left_out_and_said(plan, tmp_path):
    gone = {plan.grid[4].name, plan.grid[0].name}
    write_runs(everything(plan), tmp_path, lambda c, _: None if c.name in gone else 0.9)
    results = read_results(plan, SEEDS, tmp_path)
    assert results.best is not None
    assert [line.name for line in results.lines] == ["depth", "width", "resolution"]
    assert write_page(results, tmp_path).read_text().count(">failed<") == 2


def test_without_any_result_nothing_is_best(plan, tmp_path):
    write_runs(everything(plan), tmp_path, lambda c, _: None)
    results = read_results(plan, SEEDS, tmp_path)
    text = write_page(results, tmp_path).read_text()
    assert "No candidate has finished" in text
    assert "<svg" not in text
    assert not (tmp_path / "best.yaml").exists()
    assert results_table(results).row_count == 1 + 10 + 3
