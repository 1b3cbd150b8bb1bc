"""Average precision of boxes, masks and keypoints: torchmetrics' and COCO's numbers."""

from copy import deepcopy
from math import exp, isnan

import pytest
import torch
from torchmetrics.detection import MeanAveragePrecision

from composer_attn.runs.models.detection.average_precision import box_metrics, mask_metrics
from composer_attn.runs.models.detection.keypoint_precision import keypoint_metrics
from tests.two_ranks import on_two_ranks


def images(seed=0, count=6, noise=3.0):
    generator = torch.Generator().manual_seed(seed)
    found, truth = [], []
    for _ in range(count):
        corner = torch.rand(4, 2, generator=generator) * 200
        size = torch.rand(4, 2, generator=generator) * 100 + 10
        boxes = torch.cat([corner, corner + size], 1)
        labels = torch.randint(1, 4, (4,), generator=generator)
        moved = boxes + noise * torch.randn(4, 4, generator=generator)
        scores = torch.rand(4, generator=generator)
        found.append({"boxes": moved, "labels": labels, "scores": scores})
        truth.append({"boxes": boxes, "labels": labels, "iscrowd": torch.tensor([0, 0, 0, 1])})
    return found, truth


def updated(metrics, found, truth):
    for metric in metrics.values():
        metric.update(found, truth)
    return {name: metric.compute().item() for name, metric in metrics.items()}


def test_the_figures_are_those_of_torchmetrics():
    found, truth = images()
    values = updated(box_metrics(), found, truth)
    reference = MeanAveragePrecision(backend="faster_coco_eval")
    reference.update(found, truth)
    expected = reference.compute()
    assert set(values) == {"map", "map_50", "map_75", "map_small", "map_medium", "map_large"}
    for name, value in values.items():
        assert value == expected[name].item()
    assert 0.3 < values["map"] < values["map_50"] <= 1


def test_perfect_detections_have_a_precision_of_1_and_absent_sizes_no_figure():
    box = torch.tensor([[10.0, 10.0, 20.0, 20.0]])
    found = [{"boxes": box, "labels": torch.tensor([1]), "scores": torch.tensor([0.9])}]
    values = updated(box_metrics(), found, [{"boxes": box, "labels": torch.tensor([1])}])
    assert values["map"] == values["map_50"] == values["map_small"] == 1
    assert isnan(values["map_medium"])
    assert isnan(values["map_large"])


def test_copies_and_resets_keep_the_figures_of_one_evaluation_together():
    found, truth = images()
    metrics = box_metrics()
    copies = deepcopy(metrics)
    first = updated(copies, found, truth)
    for metric in copies.values():
        metric.reset()
    assert updated(copies, found, truth) == pytest.approx(first, nan_ok=True)
    perfect = [{**t, "scores": torch.ones(4)} for t in truth]
    assert updated(metrics, perfect, truth)["map"] == 1


def test_masks_of_probabilities_are_cut_at_one_half():
    mask = torch.zeros(1, 40, 40, dtype=torch.uint8)
    mask[0, 5:35, 5:35] = 1
    box, label = torch.tensor([[5.0, 5.0, 35.0, 35.0]]), torch.tensor([1])
    probability = torch.where(mask == 1, 0.6, 0.4)[:, None]
    found = [{"boxes": box, "labels": label, "scores": torch.tensor([0.9]), "masks": probability}]
    truth = [{"boxes": box, "labels": label, "masks": mask}]
    values = updated(mask_metrics(), found, truth)
    assert values["mask_map"] == values["map"] == 1
    found[0]["masks"] = torch.where(mask == 1, 0.4, 0.6)[:, None]
    values = updated(mask_metrics(), found, truth)
    assert values["mask_map"] == 0
    assert values["map"] == 1


def person(moved=0.0, points=17):
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(1, points, 2, generator=generator) * 80 + 10
    places[..., 0] += moved
    keypoints = torch.cat([places, torch.full((1, points, 1), 2.0)], 2)
    box = torch.tensor([[5.0, 5.0, 105.0, 105.0]])
    return {"boxes": box, "labels": torch.tensor([1]), "keypoints": keypoints}


def test_keypoints_are_compared_by_object_keypoint_similarity():
    area, moved = 4000.0, 7.0
    truth = [person() | {"iscrowd": torch.tensor([0]), "area": torch.tensor([area])}]
    exact = [person() | {"scores": torch.tensor([0.9])}]
    assert updated(keypoint_metrics(17), exact, truth)["keypoint_map"] == pytest.approx(1)
    sigmas = [0.026, *[0.025] * 2, *[0.035] * 2, *[0.079] * 2, *[0.072] * 2, *[0.062] * 2,
              *[0.107] * 2, *[0.087] * 2, *[0.089] * 2]  # fmt: skip
    # exp(-d^2 / (2 s^2 k^2)), with k = 2 sigma and s^2 the area, over the annotated points.
    similarity = sum(exp(-(moved**2) / (2 * area * (2 * s) ** 2)) for s in sigmas) / 17
    reached = sum(similarity >= 0.5 + 0.05 * i for i in range(10)) / 10
    assert 0 < reached < 1
    found = [person(moved) | {"scores": torch.tensor([0.9])}]
    values = updated(keypoint_metrics(17), found, truth)
    assert values["keypoint_map"] == pytest.approx(reached)
    assert values["map"] == 1  # of the boxes


def test_keypoints_are_evaluated_again_as_composer_does():
    metrics = keypoint_metrics(17)
    truth = [{**person(), "iscrowd": torch.tensor([0])}]
    found = [{**person(), "scores": torch.tensor([0.9])}]
    for _ in range(2):
        for metric in metrics.values():  # which moves metrics that still hold images
            metric.to("cpu").reset()
        assert updated(metrics, found, truth)["keypoint_map"] == pytest.approx(1)


def test_keypoints_without_a_detection_or_without_an_object():
    truth = [person(points=4) | {"iscrowd": torch.tensor([0]), "area": torch.tensor([400.0])}]
    nothing = {name: value[:0] for name, value in person(points=4).items()}
    found = [nothing | {"scores": torch.zeros(0)}]
    assert updated(keypoint_metrics(4), found, truth)["keypoint_map"] == 0
    empty = [nothing | {"iscrowd": torch.zeros(0, dtype=torch.long), "area": torch.zeros(0)}]
    assert isnan(updated(keypoint_metrics(4), found, empty)["keypoint_map"])


def of_rank(rank: int) -> dict[str, float]:
    found, truth = images(count=5)
    part = slice(0, 3) if rank == 0 else slice(3, 5)
    return updated(box_metrics(), found[part], truth[part])


@pytest.mark.slow
def test_ranks_with_different_numbers_of_images_agree(tmp_path):
    whole = updated(box_metrics(), *images(count=5))
    for figures in on_two_ranks(of_rank, tmp_path):
        assert figures == pytest.approx(whole, nan_ok=True)
