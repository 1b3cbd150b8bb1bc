"""Every recipe in yamls/: its command, its mistakes, a training step; the digits for real."""

import pytest
import torch

from composer_attn.functional import attended_modules
from composer_attn.runs.components.config_check import load_checked
from composer_attn.runs.models.simplified_efficientnet import BLOCKS
from composer_attn.runs.training.build import build_parts, build_trainer
from composer_attn.runs.training.network_cost import count_parameters
from composer_attn.runs.training.train import train
from tests.commands import ROOT

RECIPES = sorted((ROOT / "yamls").glob("*.yaml"))

# Layers with attention of ours.
ATTENDED = {
    "digits_plain": 0,
    "digits_se": 9,
    "digits_eca": 9,
    "resnet50_imagenet_plain": 0,
    "resnet50_imagenet_se": 46,
    "resnet50_imagenet_eca": 16,
    "efficientnet_b0_imagenet_plain": 0,
    "efficientnet_b0_imagenet_se": 34,
    "efficientnet_b0_imagenet_eca": 16,
    "mobilenet_v2_imagenet_plain": 0,
    "mobilenet_v2_imagenet_se": 35,
    "mobilenet_v2_imagenet_eca": 35,
    "simplified_efficientnet_plain": 0,
    "simplified_efficientnet_se": 16,
    "simplified_efficientnet_condconv": 0,
    "imagenet_mds_se": 46,
    "finetune_digits_eca": 9,
    "finetune_flowers_efficientnet": 0,
    "finetune_pets_eca": 16,
    "scale_digits": 0,
    "deeplabv3_resnet50_voc_plain": 0,
    "deeplabv3_resnet50_voc_se": 46,
    "deeplabv3_resnet50_voc_eca": 16,
    "shapes_segmentation_eca": 3,
    "fasterrcnn_resnet50_coco_plain": 0,
    "fasterrcnn_resnet50_coco_se": 46,
    "fasterrcnn_resnet50_coco_eca": 16,
    "shapes_detection_eca": 4,
    "maskrcnn_resnet50_coco_plain": 0,
    "maskrcnn_resnet50_coco_se": 46,
    "maskrcnn_resnet50_coco_eca": 16,
    "shapes_instance_segmentation_eca": 4,
    "keypointrcnn_resnet50_coco_plain": 0,
    "keypointrcnn_resnet50_coco_se": 46,
    "keypointrcnn_resnet50_coco_eca": 16,
    "shapes_keypoints_eca": 4,
}
# Published, or counted with the peers' own code.
PARAMETERS = {
    "resnet50_imagenet_plain": 25_557_032,
    "resnet50_imagenet_se": 28_899_368,
    "resnet50_imagenet_eca": 25_557_118,
    "efficientnet_b0_imagenet_plain": 5_288_548,
    "efficientnet_b0_imagenet_se": 7_852_644,
    "efficientnet_b0_imagenet_eca": 4_652_084,
    "mobilenet_v2_imagenet_plain": 3_504_872,
    "mobilenet_v2_imagenet_se": 5_565_160,
    "imagenet_mds_se": 28_899_368,
    "finetune_pets_eca": 25_557_118 - 963 * 2049,
    "finetune_flowers_efficientnet": 5_288_548 - 898 * 1281,
    "scale_digits": 335_594,
    "deeplabv3_resnet50_voc_plain": 42_004_074,
    # Published for 91 outputs, with frozen norms, which have no parameters; here 4 outputs.
    "fasterrcnn_resnet50_coco_plain": 41_755_286 + 53_120 - 87 * 5 * 1025,
    # Likewise; the last layer of masks has 257 parameters for each output.
    "maskrcnn_resnet50_coco_plain": 44_401_393 + 53_120 - 87 * 5 * 1025 - 87 * 257,
    # Published for 2 outputs and 17 keypoints; here 4 and 4, of 512 channels by 4 x 4 pixels.
    "keypointrcnn_resnet50_coco_plain": (
        59_137_258 + 53_120 + 2 * 5 * 1025 - 13 * (512 * 4 * 4 + 1)
    ),
}
# What a test machine changes of a recipe: the data, how much of it, what needs a GPU, and the
# warm-up, in whose first two batches the learning rate is 0.
VARIANT = """
base: {recipe}
model: {model}
train_dataset: {{{data}, num_samples: 8}}
eval_dataset: {{{data}, num_samples: 2}}
batch_size: 4
max_duration: 2ba
scheduler: {scheduler}
precision: fp32
device: cpu
"""

# By task: what takes out the weights, and the data.
OF_TASKS = {
    "classification": (
        "{weights: null}",
        "name: synthetic, num_classes: NUM_CLASSES, size: 32",
    ),
    "semantic_segmentation": (
        "{weights_backbone: null}",
        "name: shapes_segmentation, split: train, size: 33",
    ),
    "detection": (
        "{weights_backbone: null, num_classes: 3, min_size: 64, max_size: 64, "
        "rpn_post_nms_top_n_train: 30, box_batch_size_per_image: 16}",
        "name: shapes, split: train, size: 48",
    ),
}
OF_TASKS["instance_segmentation"] = OF_TASKS["detection"]
OF_TASKS["keypoints"] = (
    OF_TASKS["detection"][0].replace("{", "{num_keypoints: 4, "),
    OF_TASKS["detection"][1],
)
# The same steps as those of their kin, on larger networks.
LONG = [
    f"{kind}rcnn_resnet50_coco_{kin}" for kind in ("mask", "keypoint") for kin in ("plain", "se")
]


each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)


def command_of(recipe) -> str:
    """Return how a recipe of this name is run: the small ones alone, ImageNet on 8 GPUs."""
    train = f"train yamls/{recipe.name}"
    if recipe.stem.startswith(
        ("digits", "simplified", "finetune_digits", "scale_digits", "shapes")
    ):
        return f"composer-attn {train}"
    nodes = " --world_size 16 --node_rank 0 --master_addr HOST --master_port 29500"
    return f"composer -n 8{nodes if 'mds' in recipe.stem else ''} -m composer_attn {train}"


@pytest.fixture
def classifiers(tmp_path, monkeypatch):
    """Make the files, empty ones, whose weights recipes of detectors start from."""
    monkeypatch.chdir(tmp_path)
    for name in ("resnet50_imagenet_se", "resnet50_imagenet_eca"):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "latest-rank0.pt").touch()


@pytest.fixture
def variant(tmp_path, classifiers):
    """Return a function that writes a recipe's variant for this machine, and loads it."""

    def variant(recipe):
        config = load_checked(recipe)
        model, data = OF_TASKS[config.task]
        data = data.replace("NUM_CLASSES", str(config.model.get("num_classes", 1000)))
        path = tmp_path / "variant.yaml"
        warms_up = "t_warmup" in (config.scheduler or {})
        scheduler = "{t_warmup: 0ba}" if warms_up else "{}"
        path.write_text(VARIANT.format(recipe=recipe, model=model, data=data, scheduler=scheduler))
        return load_checked(path)

    return variant


def test_every_recipe_is_known_and_there_are_36():
    assert len(RECIPES) == 36
    assert {path.stem for path in RECIPES} == set(ATTENDED)


@each_recipe
def test_a_recipe_opens_with_the_command_that_runs_it(recipe):
    assert recipe.read_text().splitlines()[0] == f"# {command_of(recipe)}"


@each_recipe
def test_a_recipe_is_without_mistakes_and_carries_its_own_name(recipe, classifiers):
    config = load_checked(recipe)
    assert config.run_name == recipe.stem
    assert config.save_folder == f"runs/{recipe.stem}"


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(r, marks=pytest.mark.slow if r.stem in LONG else ()) for r in RECIPES],
    ids=lambda path: path.stem,
)
def test_a_recipe_takes_training_steps(recipe, variant):
    config = variant(recipe)
    assert config.run_name == recipe.stem
    parts = build_parts(config)
    trainer = build_trainer(config, parts, save_folder=None)
    network = parts.model.module
    assert len(attended_modules(network)) == ATTENDED[recipe.stem]
    if recipe.stem in PARAMETERS:
        assert count_parameters(network) == PARAMETERS[recipe.stem]
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    trainer.fit()
    assert trainer.state.timestamp.batch == "2ba"
    loss = trainer.state.loss
    losses = loss.values() if isinstance(loss, dict) else [loss]  # of detectors there are several
    assert all(torch.isfinite(each).all() for each in losses)
    after = dict(network.named_parameters())
    frozen = [name for name, parameter in after.items() if not parameter.requires_grad]
    assert [name for name in before if torch.equal(before[name], after[name])] == frozen
    assert bool(frozen) == (config.train is not None)
    trainer.close()


def test_the_simplified_efficientnet_attends_the_expanded_width_with_reduction_4(variant):
    sizes = []
    for kind in ("plain", "se"):
        config = variant(ROOT / f"yamls/simplified_efficientnet_{kind}.yaml")
        parts = build_parts(config)
        build_trainer(config, parts, save_folder=None).close()
        sizes.append(count_parameters(parts.model))
    widths = [4 * channels_in for channels_in, _, _ in BLOCKS]
    # Two layers without bias: width -> width / 4 -> width.
    assert sizes[1] - sizes[0] == sum(2 * width * (width // 4) for width in widths)


@pytest.mark.parametrize(
    ("variant", "layers", "added"),
    [
        pytest.param("plain", 0, 0, marks=pytest.mark.slow),
        pytest.param("se", 9, 344_064, marks=pytest.mark.slow),
        ("eca", 9, 45),
    ],
)
def test_the_digits_recipes_reach_97_percent(variant, layers, added, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    summary = train(load_checked(ROOT / f"yamls/digits_{variant}.yaml", ["eval_interval=1dur"]))
    assert summary.metrics["accuracy"] >= 0.97
    assert summary.attended_layers == layers
    assert summary.parameters_before == 4_910_922
    assert summary.parameters_after - summary.parameters_before == added


# Of the recipes of shapes: as many steps an epoch, of half as many images, and one evaluation.
HALF = ["batch_size=4", "train_dataset.num_samples=256", "eval_interval=1dur"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "figure"), [("instance_segmentation", "mask_map"), ("keypoints", "keypoint_map")]
)
def test_masks_and_keypoints_of_shapes_are_learned(task, figure, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = ROOT / f"yamls/shapes_{task}_eca.yaml"
    summary = train(load_checked(recipe, [*HALF, "max_duration=4ep"]))  # of 5
    assert summary.metrics[figure] >= 0.4


@pytest.mark.slow
def test_the_detector_of_shapes_finds_most_of_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    summary = train(load_checked(ROOT / "yamls/shapes_detection_eca.yaml", HALF))
    assert summary.metrics["map"] >= 0.6
    assert summary.metrics["map_50"] >= 0.9
