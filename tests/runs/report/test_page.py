"""The page as others meet it: a parser, and a real browser in light, in dark, on a phone."""

from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from composer_attn.runs.report import write_report
from tests.browser import VIEWS, look_at
from tests.runs.runs_on_disk import write_run

VOID = {"meta", "link", "br", "img", "use", "path"}


class Page(HTMLParser):
    """Collects elements, and complains of those that are not closed."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def all(self, tag: str) -> list[dict]:
        return [attributes for found, attributes in self.elements if found == tag]


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """A page of five runs, one of them interrupted."""
    folder = tmp_path_factory.mktemp("page")
    for name, accuracy in (("plain", 0.9), ("squeeze_excite", 0.92), ("eca", 0.95)):
        attention = None if name == "plain" else name
        write_run(folder / "runs" / name, attention, accuracy=accuracy)
    write_run(folder / "runs" / "two", "eca", 2, 0.96)
    write_run(folder / "runs" / "cut", "eca", 3, 0.5, finished=False)
    return write_report([folder / "runs"], folder / "out")


@pytest.fixture(scope="module")
def page(path) -> Page:
    return Page(path.read_text())


def test_every_element_is_closed(page):
    assert page.open == []


def test_nothing_is_loaded_from_elsewhere(page, path):
    text = path.read_text()
    assert "@import" not in text
    assert "url(http" not in text
    for tag, attributes in page.elements:
        assert "src" not in attributes, tag
        assert tag != "link" or attributes["href"] == "data:,"
    # What a link leads to is beside the page, or in it.
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    for link in page.all("a"):
        target = link["href"]
        assert target[1:] in ids if target.startswith("#") else (path.parent / target).is_file()


def test_ids_are_unique(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_plots_say_what_they_show(page):
    labels = [svg["aria-label"] for svg in page.all("svg")]
    assert len(labels) == len(set(labels)) == 5 + 2 + 1 + 4
    assert all(svg["role"] == "img" and "viewbox" in svg for svg in page.all("svg"))
    assert "At the end: plain 90; " in labels[0]
    assert labels[0].startswith("Accuracy per evaluation, by images seen")


def test_tables_have_headers_with_a_scope_and_a_caption(page):
    assert len(page.all("table")) == len(page.all("caption")) == 2
    assert all(header["scope"] in ("col", "row") for header in page.all("th"))


def test_headings_go_down_one_by_one(page):
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_it_tells_its_language_and_fits_a_phone(page):
    assert page.all("html") == [{"lang": "en"}]
    names = {meta.get("name"): meta.get("content") for meta in page.all("meta")}
    assert names["viewport"] == "width=device-width, initial-scale=1"
    assert names["color-scheme"] == "light dark"


@pytest.mark.slow
def test_a_real_browser_shows_it_in_light_in_dark_and_on_a_phone(path, tmp_path):
    found = look_at(path, tmp_path / "screenshots")
    assert set(found) == set(VIEWS)
    for view, seen in found.items():
        assert seen["messages"] == []
        assert seen["requests"] == [path.resolve().as_uri()]
        assert len(seen["plots"]) == 12
        assert seen["texts"] > 100
        assert seen["rows"] == 3
        assert seen["width"] <= seen["window"], f"{view} scrolls sideways"
        assert min(seen["plots"]) > 250
        assert seen["unfolded"] == [False, True]
        assert seen["focusable"] > 20
        assert (tmp_path / "screenshots" / f"{view}.png").stat().st_size > 50_000
    assert not found["light"]["dark"]
    assert found["dark"]["dark"]
    for view in ("light", "dark"):  # text in plots is as the page's own, and stands out
        ground, ink = found[view]["ground"], found[view]["ink"]
        assert contrast(ground, ink) > 7
    assert luminance(found["dark"]["ground"]) < 0.05 < luminance(found["light"]["ground"])


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, as WCAG defines it."""
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").rstrip(")").split(",")]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
