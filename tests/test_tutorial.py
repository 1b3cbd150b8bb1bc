"""The tutorial, followed to the letter by somebody who has a folder of images."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.commands import ROOT, run

PAGE = (ROOT / "docs" / "tutorial.md").read_text()
COMMANDS = re.findall(r"^```sh\n(.*?)\n```$", PAGE, re.DOTALL | re.MULTILINE)
(RECIPE,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
COLOURS = {"cat": (200, 60, 40), "dog": (60, 160, 60), "horse": (40, 70, 190)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Lay out images of three classes, as the page says, of several sizes and file formats."""
    folder = tmp_path_factory.mktemp("tutorial")
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for name, colour in COLOURS.items():
            images = folder / "photos" / split / name
            images.mkdir(parents=True)
            for number in range(count):
                shape = (150 + 10 * number, 200, 3)
                pixels = random.normal(colour, 40, shape).clip(0, 255).astype(np.uint8)
                ending = ("jpg", "png", "JPEG")[number % 3]
                Image.fromarray(pixels).save(images / f"{number:03}.{ending}")
    (folder / "photos.yaml").write_text(RECIPE)
    return folder


def follow(command: str, folder, *overrides: str) -> str:
    assert command in COMMANDS
    done = run(*command.split(), *overrides, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_page_has_the_commands_that_are_tried_here():
    assert [command.split()[1] for command in COMMANDS] == [
        "validate", "plan", "train", "train", "study", "evaluate", "predict", "export",
    ]  # fmt: skip


def test_the_recipe_is_valid_and_planned(folder):
    assert follow("composer-attn validate photos.yaml", folder) == "photos.yaml: valid\n"
    planned = follow("composer-attn plan photos.yaml --batch 32", folder)
    assert "on 32 x 3x128x128" in planned
    assert "15 of 20 candidates chosen" in planned


def test_a_dry_run_builds_everything_and_trains_nothing(folder):
    follow("composer-attn train --dry-run photos.yaml", folder)
    assert not (folder / "runs").exists()


def test_training_leaves_what_the_page_says(folder):
    follow("composer-attn train photos.yaml", folder, "max_duration=1ep")
    left = folder / "runs" / "photos"
    summary = json.loads((left / "summary.json").read_text())
    assert (left / "config.yaml").is_file()
    assert (left / "latest-rank0.pt").exists()
    assert summary["skipped_images"] == 0
    _use(folder, left)


def _use(folder, left):
    """Follow what the page says after training, on the run that is there."""
    evaluated = follow("composer-attn evaluate runs/photos", folder)
    assert "on 12 images" in evaluated
    ask = "composer-attn predict runs/photos photos/val/cat/000.jpg --top 3"
    predicted = follow(ask, folder)
    assert predicted.startswith("photos/val/cat/000.jpg: ")
    assert all(name in predicted for name in COLOURS)
    follow("composer-attn export runs/photos --to torch_export", folder)
    card = json.loads((left / "model.pt2.json").read_text())
    assert card["classes"] == list(COLOURS)
    assert card["preprocessing"]["resize"] == 146
    assert card["evaluation"]["samples"] == 12


def test_the_study_ends_with_a_page(folder):
    """With fewer variants, seeds, steps and pixels than the page has: each run is a process."""
    (command,) = [command for command in COMMANDS if " study " in command]
    short = command.replace("plain,squeeze_excite,eca", "plain,eca").replace("seeds 2", "seeds 1")
    sizes = [
        f"{data}_dataset.{key}"
        for data in ("train", "eval")
        for key in ("size=32", "num_workers=0")
    ]
    done = run(*short.split(), "max_duration=1ba", *sizes, cwd=folder, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    out = folder / "runs" / "photos_study"
    assert (out / "report.html").is_file()
    results = json.loads((out / "results.json").read_text())
    assert [variant["variant"] for variant in results["variants"]] == ["plain", "eca"]
