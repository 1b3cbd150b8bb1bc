"""Reading a YAML: bases, overrides, interpolation, and what is wrong with it, all at once."""

from dataclasses import asdict

import pytest

from composer_attn.errors import ConfigError
from composer_attn.runs.components.config_check import load_checked
from composer_attn.runs.config.schema import load_config

MINIMAL = """
run_name: small
model: {name: resnet10, num_classes: 10}
train_dataset: {name: synthetic, num_samples: 8, num_classes: 10, size: 32}
optimizer: {name: sgd, lr: 0.1}
batch_size: 4
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "run.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def mistakes_of(path, overrides=()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_checked(path, list(overrides))
    assert str(caught.value).splitlines() == [str(mistake) for mistake in caught.value.mistakes]
    return str(caught.value).splitlines()


def test_values_types_and_defaults(write):
    config = load_checked(write(MINIMAL))
    assert (config.run_name, config.batch_size, config.seed) == ("small", 4, 17)
    assert config.model == {"name": "resnet10", "num_classes": 10}
    assert config.save_folder == "runs/small"
    assert config.eval_dataset is None


def test_overrides_win_over_the_file_which_wins_over_its_base(write):
    write(MINIMAL, "base.yaml")
    path = write("base: base.yaml\nbatch_size: 6\noptimizer: {lr: 0.2}\nseed: 1", "variant.yaml")
    config = load_checked(path, ["seed=2", "optimizer.momentum=0.9"])
    assert (config.batch_size, config.seed) == (6, 2)
    assert config.optimizer == {"name": "sgd", "lr": 0.2, "momentum": 0.9}


def test_interpolation_and_environment(write, monkeypatch):
    monkeypatch.setenv("BATCH", "8")
    config = load_checked(
        write(MINIMAL.replace("batch_size: 4", "batch_size: ${oc.env:BATCH}")),
        ["run_name=seed-${seed}"],
    )
    assert (config.batch_size, config.run_name) == (8, "seed-17")
    assert config.save_folder == "runs/seed-17"


def test_a_resolved_config_loads_again_as_the_same(write):
    from omegaconf import OmegaConf

    config = load_checked(write(MINIMAL))
    again = load_checked(write(OmegaConf.to_yaml(OmegaConf.structured(config)), "again.yaml"))
    assert asdict(again) == asdict(config)


def test_every_mistake_of_keys_and_types_comes_at_once(write):
    path = write("modle: {name: resnet10}\nbatch_size: many\noptimizer: {name: sgd}\nseed: x\n")
    lines = mistakes_of(path, ["foo=1"])
    assert f"{path}: modle: unknown key 'modle'; did you mean 'model'?" in lines[0]
    assert f"{path}: batch_size: Value 'many'" in lines[1]
    assert f"{path}: seed: Value 'x'" in lines[2]
    assert "command line: foo: unknown key 'foo'" in lines[3]
    assert [line.split(": ")[1] for line in lines[4:]] == ["model", "train_dataset"]


@pytest.mark.parametrize(
    ("override", "key", "near"),
    [
        ("model.name=resnet_10", "model.name", "did you mean 'resnet10'?"),
        ("train_dataset.name=digit", "train_dataset.name", "did you mean 'digits'?"),
        ("train_dataset.sise=3", "train_dataset.sise", "did you mean 'size'?"),
        ("optimizer.name=sgdd", "optimizer.name", "did you mean 'sgd'?"),
        ("optimizer.lrr=3", "optimizer.lrr", "did you mean 'lr'?"),
        ("scheduler.name=cosine", "scheduler.name", "did you mean 'cosine_annealing"),
        ("algorithms.ecaa.b=1", "algorithms.ecaa", "did you mean 'eca'?"),
        ("algorithms.eca.kernel=3", "algorithms.eca.kernel", "did you mean 'kernel_size'?"),
        ("algorithms.eca.filter_fn=len", "algorithms.eca.filter_fn", "Valid: b, backend, exclude"),
        ("algorithms=[eca]", "algorithms", "must be a mapping"),
        ("algorithms.eca=3", "algorithms.eca", "must be {argument: value}"),
        ("callbacks.lr_monitr.x=1", "callbacks.lr_monitr", "did you mean 'lr_monitor'?"),
        ("loggers.tensorbord.x=1", "loggers.tensorbord", "did you mean 'tensorboard'?"),
        ("max_duration=10 epochs", "max_duration", "90ep, 1000ba"),
        ("save_interval=0ep", "save_interval", "must be more than 0"),
        ("model.name=[1]", "model.name", "unknown model [1]"),
        ("eval_interval=often", "eval_interval", "90ep, 1000ba"),
        ("precision=fp23", "precision", "did you mean 'fp32'?"),
        ("device=gpus", "device", "did you mean 'gpu'?"),
        ("batch_size=0", "batch_size", "at least 1"),
        ("device_train_microbatch_size=1.5", "device_train_microbatch_size", "or auto"),
        ("run_name=${nope}", "run_name", "Interpolation key 'nope' not found"),
        ("train_dataset.size=${oc.env:NOT_SET_AT_ALL}", "train_dataset", "NOT_SET_AT_ALL"),
    ],
)
def test_a_mistake_is_named_with_its_key_and_what_is_valid(write, override, key, near):
    (line, *more) = mistakes_of(write(MINIMAL), [override])
    assert f": {key}: " in line
    assert near in line
    assert not more or key == "run_name"  # save_folder builds on it


def test_mistakes_in_a_base_name_the_base_file(write):
    base = write(MINIMAL.replace("lr: 0.1", "lrr: 0.1"), "base.yaml")
    (line,) = mistakes_of(write("base: base.yaml\nseed: 3\n", "variant.yaml"))
    assert line.startswith(f"{base}: optimizer.lrr: ")


def test_a_needed_argument_that_is_missing_is_named(write):
    text = MINIMAL.replace("name: synthetic, num_samples: 8, num_classes: 10", "name: digits")
    (line,) = mistakes_of(write(text))
    assert "train_dataset: digits needs the argument 'split'" in line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a list\n", "must be a mapping"),
        ("model: {name: resnet10\n", "is not plain YAML"),
        ("model: !!python/object/apply:os.system ['touch hacked']\n", "is not plain YAML"),
        ("base: nowhere.yaml\n", "nowhere.yaml: cannot be read: No such file"),
        ("base: run.yaml\n", "leads back"),
        ("base: ${oc.env:NOT_SET_AT_ALL}\n", "NOT_SET_AT_ALL"),
        ("\x00", "is not plain YAML"),
    ],
)
def test_files_that_are_not_configs(write, monkeypatch, tmp_path, text, says):
    monkeypatch.chdir(tmp_path)
    (line,) = mistakes_of(write(text))
    assert says in line
    assert not (tmp_path / "hacked").exists()


def test_a_file_that_is_not_there(tmp_path):
    (line,) = mistakes_of(tmp_path / "absent.yaml")
    assert line.endswith("absent.yaml: cannot be read: No such file or directory")


@pytest.mark.parametrize("override", ["seed", "=3"])
def test_an_override_without_key_or_value(write, override):
    (line,) = mistakes_of(write(MINIMAL), [override])
    assert "must be key=value" in line


def test_load_config_alone_does_not_look_at_names(write):
    file = load_config(write(MINIMAL), ["model.name=resnet11"])
    assert file.config.model["name"] == "resnet11"
    assert file.source_of("model.name") == "command line"
    assert file.source_of("model.num_classes").endswith("run.yaml")
