"""Published networks, made by surgery: they have the published size, and the page shows them."""

import pytest

from benchmarks.bn_inception import BNInception
from benchmarks.published import (
    COMPLEXITIES,
    COMPLEXITIES_HEAD,
    NETWORKS,
    NETWORKS_HEAD,
    count,
    of_complexity,
    of_network,
    published,
)
from tests.commands import ROOT

PAGE = (ROOT / "docs" / "published.md").read_text().splitlines()
QUICK = {"models.resnet18()", "models.efficientnet_b0()", "models.mobilenet_v2()"}


def marked(rows, quick):
    return [
        pytest.param(
            row,
            marks=() if row.plain in quick else pytest.mark.slow,
            id=f"{row.plain}-{row.recipe}".replace(" ", ""),
        )
        for row in rows
    ]


@pytest.mark.parametrize("row", marked(NETWORKS, QUICK))
def test_a_network_has_the_published_size_and_its_row_on_the_page(row):
    found = count(row)
    assert found.parameters[1] == (published(row) or found.parameters[1])
    assert found.sites
    assert found.parameters[1] != found.parameters[0]
    assert of_network(row) in PAGE


@pytest.mark.parametrize("row", marked(COMPLEXITIES, {'create("mobilenetv1_100")'}))
def test_attention_adds_the_multiply_accumulates_of_the_senet_paper(row):
    found = count(row)
    assert of_complexity(row) in PAGE
    if row.name == "Inception-ResNet-v2":  # another network than the paper's
        assert found.macs[0] / 1e9 > 1.1 * row.gflops[0]
        assert round(found.added, 4) == 0.0200
        return
    assert abs(found.macs[0] / 1e9 - row.gflops[0]) < 0.06 * row.gflops[0]
    assert abs(found.added - row.printed) <= 10**-row.digits


@pytest.mark.slow
def test_the_senet_paper_counts_squeeze_and_excitation_but_not_the_scaling():
    row = next(row for row in COMPLEXITIES if row.name == "ResNet-152")
    found = count(row)
    excitation, elements = (found.macs[1] - found.macs[0]) / 1e9, found.squeezed / 1e9
    fits = [abs(excitation + n * elements - row.printed) <= 0.01 for n in range(3)]
    assert fits == [False, True, False]


def test_the_page_has_no_other_rows():
    first, second = (
        PAGE.index(head.splitlines()[0]) for head in (NETWORKS_HEAD, COMPLEXITIES_HEAD)
    )
    assert PAGE[first + 2 + len(NETWORKS)] == PAGE[second + 2 + len(COMPLEXITIES)] == ""


def test_published_sizes_are_compared_with_something():
    assert sum(row.parameters is not None for row in NETWORKS) >= 25


def test_bn_inception_is_that_of_the_paper():
    widths = [module.channels for module in BNInception().inceptions]
    assert widths == [256, 320, 576, 576, 576, 608, 608, 1056, 1024, 1024]
