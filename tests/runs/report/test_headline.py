"""What the page says first, and what it says of each difference."""

import json
import re

import pytest

from composer_attn.runs.report import write_report
from composer_attn.runs.report.compare import compare
from composer_attn.runs.report.headline import headline
from composer_attn.runs.report.records import find_records
from tests.runs.runs_on_disk import write_run

MINUS = "\N{MINUS SIGN}"


def comparison(folder, **variants):
    """Compare variants given by the accuracies of their seeds."""
    for name, accuracies in variants.items():
        for seed, accuracy in enumerate(accuracies):
            attention = None if name == "plain" else name
            write_run(folder / f"{name}{seed}", attention, seed, accuracy)
    return compare(find_records([folder]))


def shown(folder, images=360, **variants):
    """Compare variants with one seed, given by the images that they classify wrongly."""
    for name, wrong in variants.items():
        attention = None if name == "plain" else name
        write_run(folder / name, attention, wrong=wrong, images=images)
    return compare(find_records([folder]))


def test_three_of_360_images_name_no_best_variant(tmp_path):
    found = shown(tmp_path, plain=range(12), squeeze_excite=range(5, 14), eca=range(11))
    assert headline(found) == (
        "No variant can be called best: the highest accuracy, 97.50% with squeeze_excite, is not "
        "distinguishable from that of eca and plain (one seed each)."
    )
    contrast = found.contrast(found.variants[1])
    assert (contrast.verdict, contrast.basis) == ("not distinguishable", "images")
    assert contrast.images == ((3, 360),)
    assert contrast.estimate == pytest.approx(3 / 360)


def test_one_seed_is_never_more_than_ahead(tmp_path):
    found = shown(tmp_path, plain=range(40), eca=range(4))
    assert headline(found) == (
        "With this one seed eca is ahead with 98.89%, +10.00 points from plain (95% interval +8.05 "
        "to +10.00; one seed each): more than the choice of images explains, but another seed may "
        "order the variants differently."
    )
    verdict = found.contrast(found.variants[1]).verdict
    assert verdict == "more than the choice of images explains, in one seed"


def test_seeds_that_agree_crown_the_best(tmp_path):
    found = comparison(tmp_path, plain=(0.90, 0.91, 0.92), eca=(0.95, 0.955, 0.97))
    assert headline(found).startswith("eca has the highest accuracy, 95.83%: +4.83 points from")
    assert "; 3 seeds each)" in headline(found)


def test_within_the_noise_of_seeds_no_variant_is(tmp_path):
    found = comparison(tmp_path, plain=(0.90, 0.93, 0.92), eca=(0.93, 0.92, 0.94))
    assert "not distinguishable from that of plain (3 seeds each)" in headline(found)


def test_the_best_of_many_has_to_be_further_ahead(tmp_path):
    # Ahead of plain by 0.01, 0.02, 0.03 and 0.02: distinguishable alone, not as the best of six.
    ahead = (0.01, 0.02, 0.03, 0.02)
    plain = (0.90, 0.91, 0.90, 0.92)
    best = tuple(a + b for a, b in zip(plain, ahead, strict=True))
    two = comparison(tmp_path / "two", plain=plain, eca=best)
    assert headline(two).startswith("eca has the highest accuracy")
    for size in (3, 5, 7, 9, 11):
        for seed, accuracy in enumerate(plain):
            algorithms = {"squeeze_excite": {"latent_channels": size}}
            folder = tmp_path / "two" / f"{size}-{seed}"
            write_run(folder, None, seed, accuracy, algorithms=algorithms)
    many = compare(find_records([tmp_path / "two"]))
    assert many.contrast(many.variants[-1]).distinguishable
    assert headline(many).startswith("No variant can be called best: the highest accuracy")


def test_one_seed_is_not_crowned_over_several(tmp_path):
    found = comparison(tmp_path, plain=(0.90, 0.91, 0.92), eca=(0.99,))
    assert headline(found) == (
        "No variant can be called best: only plain has 3 seeds. Not compared, as they have fewer "
        "seeds: eca."
    )
    contrast = found.contrast(found.variants[1])
    assert contrast.verdict == "not distinguishable: one seed against 3"
    # Of the seed that both have.
    assert contrast.estimate == pytest.approx(0.09)


def test_other_seeds_are_compared_without_pairs(tmp_path):
    for seed, accuracy in enumerate((0.90, 0.91, 0.92)):
        write_run(tmp_path / f"plain{seed}", None, seed, accuracy)
        write_run(tmp_path / f"eca{seed}", "eca", seed + 10, accuracy + 0.05)
    found = compare(find_records([tmp_path]))
    contrast = found.contrast(found.variants[1])
    assert (contrast.basis, contrast.verdict) == ("separate seeds", "distinguishable")
    # Equal variances: t(4) = 2.77645 times the square root of 2 s^2 / 3.
    half = 2.77645 * (2 * 0.01**2 / 3) ** 0.5
    assert contrast.interval.high == pytest.approx(0.05 + half, rel=1e-5)


def test_seeds_that_all_differ_by_the_same_say_nothing_of_spread(tmp_path):
    found = comparison(tmp_path, plain=(0.90, 0.91), eca=(0.92, 0.93))
    contrast = found.contrast(found.variants[1])
    assert contrast.verdict == "not distinguishable: every seed differs by the same"
    equal = comparison(tmp_path / "equal", plain=(0.90, 0.91), eca=(0.90, 0.91))
    assert equal.contrast(equal.variants[1]).verdict == "not distinguishable"


def test_without_predictions_one_seed_has_no_interval(tmp_path):
    found = comparison(tmp_path, plain=(0.90,), eca=(0.95,))
    assert found.contrast(found.variants[1]).interval is None
    assert "No variant can be called best" in headline(found)


def test_predictions_of_another_evaluation_are_not_counted(tmp_path):
    write_run(tmp_path / "plain", wrong=range(10), images=100)
    path = tmp_path / "plain" / "summary.json"
    path.write_text(path.read_text().replace('"accuracy": 0.9', '"accuracy": 0.8'))
    assert find_records([tmp_path])[0].counts is None


def test_the_page_shows_counts_and_intervals(tmp_path):
    shown(tmp_path / "runs", plain=range(12), eca=range(9))
    page = write_report([tmp_path / "runs"], tmp_path / "out").read_text()
    assert "351 of 360 images" in page
    assert "95% interval 95.3% to 98.7%" in page  # Wilson's, of 351 in 360
    assert "+3 of 360 images" in page
    low, high = re.search(r"95% interval (\S+) to (\S+)</small>", page).groups()
    assert low.startswith(MINUS)
    assert float(high) == pytest.approx(0.83)  # all of the changed images were gained
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    eca = rows["variants"][1]
    assert (eca["accuracy_low"], eca["accuracy_high"]) == pytest.approx((0.9532, 0.9868), abs=1e-4)
    assert [(run["right_images"], run["images"]) for run in rows["runs"]] == [
        (348, 360),
        (351, 360),
    ]
