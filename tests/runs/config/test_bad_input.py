"""Bad input by the command line: one readable line, exit code 2, nothing trained or written."""

import sys

import pytest
import torch
from composer import Trainer

from tests.commands import invoke, run
from tests.pictures import write_image_folder

CONFIG = """
run_name: small
model: {name: resnet10, num_classes: 10}
train_dataset: {name: synthetic, num_samples: 8, num_classes: 10, size: 32}
optimizer: {name: sgd, lr: 0.01}
batch_size: 4
max_duration: 1ba
device: cpu
"""

ON_IMAGES = """
base: run.yaml
train_dataset: {name: image_folder, root: images/train, augmentation: resnet, size: 32}
"""

# Overrides of the config above, and what the one line has to say.
OVERRIDES = {
    "unknown key": (["batchsize=4"], "line: batchsize: unknown key 'batchsize'; did you mean"),
    "unknown name": (["optimizer.name=sdg"], "line: optimizer.name: unknown optimizer 'sdg'; did"),
    "unknown argument": (["optimizer.lrr=1"], "line: optimizer.lrr: unknown argument of sgd"),
    "wrong type of a key": (["batch_size=many"], "line: batch_size: Value 'many'"),
    "a list for a section": (["model=[resnet18]"], "line: model: must be a mapping"),
    "wrong type of an argument": (["optimizer.lr=fast"], "optimizer.lr: must be float; got 'fast'"),
    "wrong type for Composer": (
        ["algorithms.mixup.alpha=x"], "line: algorithms.mixup.alpha: must be float; got 'x'",
    ),
    "wrong type of a loader's argument": (
        ["train_dataset.num_workers=all"], "train_dataset.num_workers: must be int; got 'all'",
    ),
    "a number for a time": (
        ["scheduler={name: cosine_annealing_with_warmup, t_warmup: 5}"],
        "line: scheduler.t_warmup: must be str; got 5",
    ),
    "an argument out of range": (
        ["algorithms.eca.kernel_size=4"], "line: algorithms.eca: kernel_size must be odd",
    ),
    "an argument that Composer refuses": (
        ["algorithms.progressive_resizing.mode=cut"],
        "line: algorithms.progressive_resizing: ValueError: mode 'cut' is not supported",
    ),
    "no_decay of something else": (
        ["optimizer.no_decay=[biases]"], "any of bias, norm, attention; got ['biases']",
    ),
    "no_decay that is no list": (
        ["optimizer.no_decay=bias"], "line: optimizer: no_decay must be a list of any of",
    ),
    "no_decay of lists": (["optimizer.no_decay=[[bias]]"], "optimizer: no_decay must be a list of"),
    "a duration without a unit": (
        ["max_duration=ten"], "line: max_duration: must be a time like 90ep, 1000ba or 0.5dur",
    ),
    "a duration of nothing": (
        ["max_duration=0ep"], "line: max_duration: must be a number of ep, ba or sp, like 90ep",
    ),
    "a duration of itself": (["max_duration=1dur"], "must be a number of ep, ba or sp, like"),
    "a duration in tokens": (["max_duration=9tok"], "must be a number of ep, ba or sp, like 90ep"),
    "an interval": (["save_interval=often"], "line: save_interval: must be a time like 90ep"),
    "a seed below 0": (["seed=-1"], "line: seed: must be from 0 to 2**32 - 1; got -1"),
    "no timeout": (["dist_timeout=0"], "line: dist_timeout: must be more than 0 seconds; got 0.0"),
    "checkpoints below all": (
        ["save_num_checkpoints_to_keep=-2"], "save_num_checkpoints_to_keep: must be at least -1",
    ),
    "no batch": (["batch_size=16"], "train_dataset: 8 samples do not fill one batch of 16"),
    "classes beyond the model's": (
        ["train_dataset.num_classes=20"], "train_dataset: it has 20 classes, but the model has 10",
    ),
    "a save folder that is a file": (
        ["save_folder=run.yaml"], "save_folder: cannot be written: [Errno 17] File exists",
    ),
    "a save folder below a file": (
        ["save_folder=run.yaml/x"], "save_folder: cannot be written: [Errno 20] Not a directory",
    ),
    "a save folder elsewhere": (
        ["save_folder=s3://bucket/x"], "line: save_folder: must be a local folder; got 's3://buc",
    ),
    "no such weights": (["model.weights=w.pth"], "line: model: there is no file 'w.pth'"),
    "weights of another network": (
        ["model.weights=./resnet10.pth", "model.name=timm/test_resnet"],
        "model: ./resnet10.pth holds weights of a different network: ",
    ),
    "weights that are none": (
        ["model.weights=./run.yaml"], "model: ./run.yaml holds no readable weights",
    ),
    "no such checkpoint": (["load_path=absent.pt"], "load_path: there is no file 'absent.pt'"),
    "a folder as the checkpoint": (["load_path=images"], "load_path: there is no file 'images'"),
    "no checkpoint": (["load_path=run.yaml"], "load_path: run.yaml is not a checkpoint, or is"),
    "no checkpoint of Composer's": (
        ["load_path=resnet10.pth"], "composer-attn: resnet10.pth is not a Composer checkpoint: ",
    ),
    "no such data folder": (
        ["train_dataset.root=images/nowhere"], "train_dataset: FileNotFoundError: [Errno 2] No",
    ),
    "an empty data folder": (
        ["train_dataset.root=images/empty"], "train_dataset: FileNotFoundError: Couldn't find any",
    ),
    "classes without images": (
        ["train_dataset.root=images/classes"], "train_dataset: FileNotFoundError: Found no valid",
    ),
    "one class only": (
        ["train_dataset.root=images/one"], "train_dataset: images/one holds one class only",
    ),
    "other classes to evaluate": (
        ["eval_dataset={name: image_folder, root: images/other, augmentation: center_crop}"],
        "eval_dataset: its 2 classes are not the 3 of train_dataset; only in one: class1, class2",
    ),
    "a pattern that matches nothing": (
        ["algorithms.eca.include=nowhere.*"], "include pattern 'nowhere.*' matches none of 12",
    ),
    "no such device": (["device=tpu"], "device: ImportError: Unable to import torch_xla"),
    "a precision that the device lacks": (
        ["precision=amp_fp16"], "Precision.AMP_FP16 is not supported for CPU training",
    ),
    "an adaptive batch without a GPU": (
        ["device_train_microbatch_size=auto"], "adaptive device_train_microbatch_size on GPU",
    ),
    "a logger's file in the way": (
        ["loggers.file.filename=run.yaml/log.txt"], "Composer refused the run: ",
    ),
}  # fmt: skip

FILES = {
    "absent": (None, "bad.yaml: cannot be read: No such file or directory"),
    "binary": (bytes(range(256)), "bad.yaml: is not plain YAML: "),
    "a checkpoint": ("torch", "bad.yaml: is not plain YAML: "),
    "half a mapping": (b"model: {name: resnet10\n", "bad.yaml: is not plain YAML: "),
    "a list": (b"- model\n", "bad.yaml: must be a mapping of keys to values"),
    "a tag that runs code": (
        b"run_name: !!python/object/apply:os.system ['touch attacked']\n", "is not plain YAML: ",
    ),
    "a tag that builds an object": (b"seed: !!python/name:os.system\n", "bad.yaml: is not plain"),
    "a key twice": (b"seed: 1\nseed: 2\n", "bad.yaml: is not plain YAML: "),
    "an interpolation of nothing": (
        CONFIG.encode() + b"seed: ${oc.env:NOT_SET_ANYWHERE}\n", "bad.yaml: seed: ",
    ),
    "an unknown key": (CONFIG.encode() + b"sede: 1\n", "bad.yaml: sede: unknown key 'sede'"),
    "a base that is absent": (b"base: other.yaml\n", "other.yaml: cannot be read: No such file"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the config, images in several states, and a network's weights."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)
    (tmp_path / "images.yaml").write_text(ON_IMAGES)
    images = write_image_folder(tmp_path / "images", images=2)
    for root, classes in (("empty", []), ("classes", [0, 1]), ("one", [0]), ("other", [0, 3])):
        for label in classes:
            (images / root / f"class{label}").mkdir(parents=True)
            if root != "classes":
                source = images / "train" / "class0" / "0.jpg"
                (images / root / f"class{label}" / "0.jpg").write_bytes(source.read_bytes())
        (images / root).mkdir(exist_ok=True)
    torch.save({"fc.bias": torch.zeros(10)}, tmp_path / "resnet10.pth")
    return tmp_path


@pytest.fixture
def refused(folder, capfd, monkeypatch):
    """Return a function from arguments of ``train`` to the one line that refuses them."""

    def fit(*_, **__):
        pytest.fail("it trained")

    monkeypatch.setattr(Trainer, "fit", fit)

    def refused(*arguments: str) -> str:
        before = listing(folder)
        capfd.readouterr()
        assert invoke("train", *arguments) == 2
        printed = capfd.readouterr()
        assert printed.out == ""
        assert listing(folder) == before
        # Composer's progress bar wipes its lines, which leaves blank ones.
        (line,) = [line.strip() for line in printed.err.splitlines() if line.strip()]
        assert line.startswith("composer-attn: ")
        return line

    return refused


def listing(folder) -> dict:
    """List everything in a folder, and how large it is."""
    return {path: path.stat().st_size for path in folder.rglob("*")}


@pytest.mark.parametrize(("overrides", "says"), OVERRIDES.values(), ids=OVERRIDES)
def test_a_run_that_cannot_be_is_refused(refused, overrides, says):
    on_images = any("root" in text for text in overrides)
    assert says in refused("images.yaml" if on_images else "run.yaml", *overrides)


@pytest.mark.parametrize(("content", "says"), FILES.values(), ids=FILES)
def test_a_file_that_is_not_a_config_is_refused(refused, folder, content, says):
    if content == "torch":
        torch.save({"seed": 1}, folder / "bad.yaml")
    elif content is not None:
        (folder / "bad.yaml").write_bytes(content)
    assert says in refused("bad.yaml")
    assert not (folder / "attacked").exists()


def test_a_folder_is_not_a_config(refused):
    assert "images: cannot be read: Is a directory" in refused("images")


def test_a_config_without_permission_to_read_it(refused, monkeypatch):
    # As root every file can be read, so what the system would say is said for it.
    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("composer_attn.runs.config.schema.OmegaConf.load", forbidden)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert refused("run.yaml").endswith("run.yaml: cannot be read: Permission denied")


def test_a_save_folder_without_permission_to_write_into_it(refused, folder, monkeypatch):
    (folder / "kept").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "save_folder: cannot be written: no permission" in refused(
        "run.yaml", "save_folder=kept"
    )


def test_a_gpu_that_is_not_there(refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "device: ValueError: DeviceGPU cannot be created" in refused("run.yaml", "device=gpu")


@pytest.mark.parametrize(
    ("logger", "module"),
    [("wandb", "wandb"), ("mlflow", "mlflow"), ("tensorboard", "torch.utils.tensorboard")],
)
def test_a_logger_whose_package_is_missing_names_the_extra(refused, logger, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    line = refused("run.yaml", f"loggers.{logger}={{}}")
    assert f"loggers.{logger}: " in line
    assert f"pip install 'mosaicml[{logger}]'" in line


@pytest.mark.parametrize(
    ("dataset", "module", "extra"),
    [
        ("{name: digits, split: train}", "sklearn", "demo"),
        ("{name: mds, local: x, augmentation: resnet, num_classes: 9}", "streaming", "streaming"),
    ],
)
def test_a_dataset_whose_package_is_missing_names_the_extra(
    refused, folder, dataset, module, extra, monkeypatch
):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    (folder / "other.yaml").write_text(f"base: run.yaml\ntrain_dataset: {dataset}\n")
    line = refused("other.yaml")
    assert f"pip install 'composer-attn[{extra}]'" in line


def test_every_mistake_comes_at_once(folder, capfd):
    overrides = ["modle.name=x", "seed=x", "batch_size=y"]
    assert invoke("train", "run.yaml", *overrides) == 2
    lines = capfd.readouterr().err.splitlines()
    keys = [line.split("command line: ")[1].split(":")[0] for line in lines]
    assert keys == ["modle", "seed", "batch_size"]


def test_a_separate_process_ends_the_same_way(folder):
    before = listing(folder)
    command = ("composer-attn", "train", "images.yaml", "train_dataset.root=images/one")
    done = run(*command, cwd=folder)
    assert done.returncode == 2
    assert done.stdout == ""
    says = "composer-attn: train_dataset: images/one holds one class only: 'class0'\n"
    # Composer's main imports torchao, about whose enums torch 2.14 logs two lines.
    ours = [line for line in done.stderr.splitlines(True) if "torch/utils/_pytree.py" not in line]
    assert ours == [says]
    assert listing(folder) == before
