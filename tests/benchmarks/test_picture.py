"""README's picture shows what docs/benchmarks.md prints."""

from benchmarks.picture import NAMES, draw, rows
from tests.commands import ROOT


def test_the_picture_is_of_the_run_that_the_page_prints():
    page = (ROOT / "docs" / "benchmarks.md").read_text().splitlines()
    found = rows()
    assert len(found) == 2 * len(NAMES)
    for (_, variant), row in found.items():
        ratio = f" {float(row['ratio']):.2f} ("
        kept = f"(+{100 * (float(row['saved_ratio']) - 1):.1f}%)"
        printed = [line for line in page if line.startswith(f"| {variant} |")]
        assert any(ratio in line and kept in line for line in printed), (variant, ratio, kept)


def test_it_is_drawn(tmp_path):
    draw(rows(), tmp_path / "cost.png")
    assert (tmp_path / "cost.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
