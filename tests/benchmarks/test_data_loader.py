"""The comparison of data pipelines: it runs, and compares what is comparable."""

import csv
import sys

import pytest
import torch

from benchmarks.data_loader import (
    Augmentation,
    Measured,
    Pipeline,
    compare,
    ours,
    reference,
    write_images,
)
from tests.commands import ROOT, run


@pytest.mark.parametrize("use_v2", [False, True])
def test_both_pipelines_give_the_same_pixels_where_nothing_is_random(tmp_path, use_v2):
    options = (write_images(tmp_path, 8), Augmentation.CENTER_CROP, 4, 0, "cpu")
    pipelines = (ours(*options), reference(*options, use_v2=use_v2))
    batches = [[each.finish(batch) for batch in each.loader] for each in pipelines]
    assert [len(found) for found in batches] == [2, 2]
    for (images, labels), (expected, expected_labels) in zip(*batches, strict=True):
        assert images.shape == (4, 3, 224, 224)
        torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)
        assert torch.equal(labels, expected_labels)


def test_ratios_are_those_of_passes_in_the_same_turn():
    pipelines = [Pipeline(name, None, None) for name in ("ours", "a", "b")]
    speeds = ([2.0, 4.0, 9.0], [1.0, 4.0, 3.0], [4.0, 8.0, 18.0])
    rows = compare(pipelines, [Measured(speed, 7) for speed in speeds])
    assert [row["peer"] for row in rows] == ["a", "b"]
    assert [row["ratio"] for row in rows] == [2.0, 0.5]
    quartiles = [(row["ratio_lower_quartile"], row["ratio_upper_quartile"]) for row in rows]
    assert quartiles == [(1.5, 2.5), (0.5, 0.5)]
    assert rows[0]["ours_images_per_second"] == 4.0


def test_it_runs_and_appends_what_it_measured(tmp_path):
    results = tmp_path / "new" / "loaders.csv"
    script = ("-m", "benchmarks.data_loader")
    amounts = ("--images", "8", "--batch-size", "4", "--passes", "2", "--num-workers", "1")
    done = run(sys.executable, *script, *amounts, "--results", str(results), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "8 images" in done.stdout
    with results.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["peer"] for row in rows] == ["torchvision", "torchvision, v2"]
    for row in rows:
        assert (row["images"], row["batch_size"], row["num_workers"]) == ("8", "4", "1")
        assert float(row["ratio"]) > 0
        # Labels are eight bytes each on both sides; a pixel is one byte, or a float32.
        pixels = 4 * 3 * 224 * 224
        assert int(row["ours_batch_bytes"]) == pixels + 4 * 8
        assert int(row["peer_batch_bytes"]) == 4 * pixels + 4 * 8
