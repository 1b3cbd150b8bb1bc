"""The comparisons of training steps and of latencies: they run, and their figures make sense."""

import csv
import sys
from importlib.metadata import version

import pytest
import torch

from benchmarks import common
from benchmarks.variants import COMPILED, EAGER, FOLDED, VARIANTS, chosen
from composer_attn.fusion.fused_norms import is_fused
from tests.commands import ROOT, run

SMALL = ("--model", "resnet18", "--batch", "2", "--image", "32", "--warmups", "0")
NETWORKS = ["plain", "composer_se", "timm_eca", "se", "se_unfused"]


def rows_of(script, tmp_path, *amounts):
    results = tmp_path / "new" / "rows.csv"
    arguments = (*SMALL, *amounts, "--backend", "reference", "--variants", ",".join(NETWORKS))
    done = run(
        sys.executable, "-m", f"benchmarks.{script}", *arguments, "--results", str(results),
        cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "resnet18, batch 2 at 32x32" in done.stdout
    with results.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows] == NETWORKS
    for row in rows:
        assert (row["layout"], row["precision"], row["backend"]) == ("nchw", "fp32", "reference")
        assert row["torch"] == version("torch")
        assert float(row["ratio_lower_quartile"]) <= float(row["ratio"])
        assert float(row["ratio"]) <= float(row["ratio_upper_quartile"])
    assert float(rows[0]["ratio"]) == 1
    return {row["variant"]: row for row in rows}


@pytest.mark.slow
def test_training_steps_are_compared(tmp_path):
    rows = rows_of("train_step", tmp_path, "--steps", "2")
    for row in rows.values():
        assert float(row["step_ms"]) > 0
        assert int(row["saved_bytes"]) > 0
    plain, unfused = (int(rows[name]["saved_bytes"]) for name in ("plain", "se_unfused"))
    assert float(rows["se_unfused"]["saved_ratio"]) == pytest.approx(unfused / plain, abs=1e-3)
    assert unfused > plain


@pytest.mark.slow
def test_latencies_are_compared(tmp_path):
    rows = rows_of("inference", tmp_path, "--rounds", "2")
    assert all(float(row["latency_ms"]) > 0 for row in rows.values())


def test_the_peak_of_memory_is_that_of_the_action():
    size = 2**20

    def action():
        (torch.ones(size // 4) + 1).sum()  # two at a time
        torch.ones(size // 4).sum()

    assert 2 * size <= common.peak_bytes(action, "cpu") < 2.1 * size


def test_variants_are_what_they_are_called():
    assert set(EAGER) | set(COMPILED) | set(FOLDED) <= set(VARIANTS)
    assert [variant.name for variant in chosen("se,eca_unfused")] == ["plain", "se", "eca_unfused"]
    assert [variant.name for variant in chosen("se,eca", "eca")] == ["eca", "se"]
    for name, joined in (("se", True), ("se_unfused", False), ("composer_se", False)):
        network = VARIANTS[name].make("resnet18", "reference")
        assert any(map(is_fused, network.modules())) == joined


def test_variants_with_own_attention_fuse_it():
    ours = ["own_fused", "own_fused_norms", "own_fused_recompute", "own_fused_norms_recompute"]
    names = ["own", *ours, "eca_replaced", "eca_replaced_fused", "eca_replaced_fused_recompute"]
    assert [variant.name for variant in chosen("with_own")] == ["plain", *names]
    found = [VARIANTS[name].make("timm/seresnet18", "reference") for name in names]
    # 8 attentions, each with a norm, and 8 first norms of blocks, the stem's and 3 shortcuts'; to
    # recompute, 20 convolutions.
    joined = [sum(map(is_fused, model.modules())) for model in found]
    assert joined == [0, 16, 25, 16 + 20, 25 + 20, 0, 8, 8 + 20]
