"""Weights of unknown origin: intact, matching ones load, anything else is refused unread."""

import argparse
import collections
import datetime
import decimal
import pathlib
import pickle
import sys
import types
import uuid
import zipfile

import numpy as np
import pytest
import torch
from torch import nn
from yacs.config import CfgNode

from composer_attn import apply_eca, apply_squeeze_excite, load_weights
from composer_attn.errors import ArgumentError, CheckpointError, TornCheckpointError
from composer_attn.functional.files import open_safely
from composer_attn.functional.inert import INERT, Inert


def network(width: int = 8, classes: int = 4) -> nn.Sequential:
    layers = [nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, width, 3)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def same(first: nn.Module, second: nn.Module) -> bool:
    states = first.state_dict(), second.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(tensor, states[1][name]) for name, tensor in states[0].items()
    )


class Attack:
    """A call that unpickling a malicious file makes."""

    def __reduce__(self):
        return open, ("attacked", "w")


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "weights.pt"


@pytest.mark.parametrize("apply", [apply_eca, apply_squeeze_excite])
def test_an_attended_networks_weights_load_into_an_attended_network(apply, file):
    first, second = network(), network()
    for model in (first, second):
        apply(model, min_channels=8)
    torch.save(first.state_dict(), file)
    assert load_weights(second, file) == ()
    assert same(first, second)


def test_plain_weights_load_into_an_attended_network_whose_attention_stays(file):
    plain, model = network(), network()
    torch.save({"state_dict": {f"module.{k}": v for k, v in plain.state_dict().items()}}, file)
    apply_eca(model, min_channels=8)
    attention = model[0].attention.conv.weight.clone()
    own = ("0.attention.conv.weight", "2.attention.conv.weight")
    assert load_weights(model, file) == own
    assert torch.equal(model[0].attention.conv.weight, attention)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in plain.state_dict().items())


def test_weights_in_the_format_of_old_load(file):
    first, second = network(), network()
    torch.save(first.state_dict(), file, _use_new_zipfile_serialization=False)
    load_weights(second, file)
    assert same(first, second)


WRAPPERS = ("_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod.", "module.module.")


@pytest.mark.parametrize("prefix", WRAPPERS)
@pytest.mark.parametrize("attended", [False, True])
def test_names_that_wrappers_added_are_known(prefix, attended, file):
    first, second = network(), network()
    if attended:
        apply_eca(first, min_channels=8)
        apply_eca(second, min_channels=8)
    torch.save({f"{prefix}{name}": t for name, t in first.state_dict().items()}, file)
    assert load_weights(second, file) == ()
    assert same(first, second)


def test_names_that_a_wrapper_added_within_are_known(file):
    """As of a backbone that was compiled, or wrapped, by itself; on both sides."""
    first, second = (nn.Sequential(network(), network()) for _ in range(2))
    first[0] = nn.DataParallel(first[0])
    first[1] = torch.compile(first[1], backend="eager")
    torch.save(first.state_dict(), file)
    assert any("1._orig_mod." in name for name in first.state_dict())
    load_weights(second, file)
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
    torch.save(network().state_dict(), file)
    wrapped = nn.DataParallel(network())
    load_weights(wrapped, file)
    assert torch.equal(wrapped.module[5].bias, torch.load(file)["5.bias"])


class Named(nn.Module):
    """A network with a child of a wrapper's name, and one of the same name beside."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)
        self.module = nn.ModuleDict({"conv": nn.Conv2d(1, 1, 1)})


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_network_with_a_child_of_a_wrappers_name_gets_its_own(wrapped, file):
    first, second = Named(), Named()
    torch.save((nn.DataParallel(first) if wrapped else first).state_dict(), file)
    load_weights(second, file)
    assert same(first, second)


def test_a_tensor_that_the_file_holds_under_two_names_is_refused(file):
    torch.save(state(**{"module.5.bias": torch.ones(4)}), file)
    with pytest.raises(CheckpointError, match=r"module\.5\.bias is not in the model$"):
        load_weights(network(), file)


BESIDE = {
    "args": argparse.Namespace(lr=0.1, dirs=[pathlib.Path("runs")], nested=argparse.Namespace(x=1)),
    "best_acc1": np.float64(77.5),
    "numbers": [np.int64(3), np.bool_(True), np.float32(0.5), np.arange(3), np.dtype("int8")],
    "when": datetime.datetime(2026, 11, 26, tzinfo=datetime.timezone.utc),
    "dates": (datetime.date.today(), datetime.time(3), datetime.timedelta(1)),
    "place": pathlib.Path("x"),
    "others": (pathlib.PureWindowsPath("x"), uuid.uuid4(), decimal.Decimal(1), range(3), {1, 2}),
    "simple": types.SimpleNamespace(a=1),
    "counts": collections.defaultdict(list, a=[1]),
    "config": CfgNode({"depth": 50, "stem": {"stride": 2}}),
    "version": torch.__version__,
    "by date": {datetime.date.today(): np.float64(1)},
}


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [True, False], ids=["nested", "flat"])
def test_what_scripts_store_beside_weights_is_ignored(beside, zipped, nested, file):
    first, second = network(), network()
    weights = first.state_dict()
    content = {"model": weights, "epoch": 3} if nested else dict(weights)
    content[beside] = BESIDE[beside]
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    load_weights(second, file)
    assert same(first, second)


def test_a_config_by_the_name_of_weights_is_not_taken_for_them(file):
    first, second = network(), network()
    torch.save({"model": CfgNode({"depth": 50}), "net": first.state_dict()}, file)
    load_weights(second, file)
    assert same(first, second)


def test_none_of_it_is_built(file):
    torch.save({"args": BESIDE["args"], "when": BESIDE["when"], "best": np.float64(1)}, file)
    found = open_safely(file, INERT)
    assert {name: type(value) for name, value in found.items()} == dict.fromkeys(found, Inert)
    declared = torch.serialization.get_safe_globals()
    assert not [name for name in declared if name is Inert or name in INERT]


@pytest.mark.parametrize("zipped", [True, False])
def test_code_among_plain_data_is_refused_all_the_same(zipped, file):
    content = {"model": state(), "args": argparse.Namespace(x=Attack()), "when": BESIDE["when"]}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="safe to load"):
        load_weights(network(), file)
    assert not file.with_name("attacked").exists()


def test_a_composer_checkpoint_is_a_nest_of_weights(file):
    first, second = network(), network()
    weights = {f"module.{name}": tensor for name, tensor in first.state_dict().items()}
    rng = [{"numpy": np.random.get_state(), "torch": torch.get_rng_state()}]
    took = datetime.timedelta(seconds=3)
    torch.save({"state": {"model": weights, "timestamp": {"took": took}}, "rng": rng}, file)
    load_weights(second, file)
    assert same(first, second)


@pytest.mark.parametrize("classes", [9, 4], ids=["another size", "the same size"])
@pytest.mark.parametrize("ignore", [["5."], "5.", ("5.weight", "5.bias", "nowhere.")], ids=str)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_is_ignored_stays_the_models_own(classes, ignore, prefix, file):
    first, second = network(classes=classes), network()
    apply_eca(second, min_channels=8, include="2")
    torch.save({f"{prefix}{name}": t for name, t in first.state_dict().items()}, file)
    head = second[5].weight.clone(), second[5].bias.clone()
    own = {"2.attention.conv.weight", "5.weight", "5.bias"}
    assert set(load_weights(second, file, ignore=ignore)) == own
    assert torch.equal(second[5].weight, head[0])
    assert torch.equal(second[5].bias, head[1])
    assert torch.equal(second[2].weight, first[2].weight)
    assert torch.equal(second[1].running_mean, first[1].running_mean)


def test_what_is_ignored_may_be_missing_in_the_file_or_in_the_model(file):
    first = {name: t for name, t in network().state_dict().items() if not name.startswith("5.")}
    torch.save(first | {"old.weight": torch.zeros(3)}, file)
    second = network()
    assert load_weights(second, file, ignore=["old.", "5."]) == ("5.weight", "5.bias")
    assert torch.equal(second[0].weight, first["0.weight"])


@pytest.mark.parametrize("ignore", ["", ["fc.", ""], [3], 3])
def test_ignoring_all_of_it_or_nonsense_is_refused(ignore, file):
    torch.save(state(), file)
    with pytest.raises(ArgumentError, match="ignore must be"):
        load_weights(network(), file, ignore=ignore)


@pytest.fixture
def safetensors():
    return pytest.importorskip("safetensors.torch")


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
@pytest.mark.parametrize("attended", [False, True])
def test_safetensors_load(safetensors, attended, name, file):
    first, second = network(), network()
    apply_eca(second, min_channels=8)
    if attended:
        apply_eca(first, min_channels=8)
    safetensors.save_file(first.state_dict(), file.with_name(name))
    kept = load_weights(second, file.with_name(name))
    assert len(kept) == (0 if attended else 2)
    assert all(torch.equal(second.state_dict()[n], t) for n, t in first.state_dict().items())


def test_safetensors_without_the_package_say_what_to_install(safetensors, file, monkeypatch):
    safetensors.save_file(state(), file)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        load_weights(network(), file)


def test_safetensors_cut_anywhere_are_torn_and_others_refused(safetensors, file):
    path = file.with_name("weights.safetensors")
    safetensors.save_file(state(), path)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 256), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(TornCheckpointError):
            load_weights(network(), path)
    safetensors.save_file(state(**{"5.bias": nan()}), path)
    with pytest.raises(CheckpointError, match=r"holds NaN in 5\.bias"):
        load_weights(network(), path)
    safetensors.save_file(network(9).state_dict(), path)
    with pytest.raises(CheckpointError, match="of a different network"):
        load_weights(network(), path)


def state(**changes):
    return network().state_dict() | changes


def nan() -> torch.Tensor:
    return torch.full((4,), torch.nan)


REFUSED = {
    "code": (lambda f: torch.save({"model": Attack()}, f), "safe to load: it refers to _?io.open$"),
    "a bare pickle of code": (lambda f: f.write_bytes(pickle.dumps(Attack())), "safe to load"),
    "a whole module": (lambda f: torch.save(network(), f), "safe to load: it refers to "),
    "another width": (
        lambda f: torch.save(network(9).state_dict(), f),
        r"0\.weight is \(9, 3, 3, 3\), the model's is \(8, 3, 3, 3\); .* and \d+ more$",
    ),
    "a name missing": (
        lambda f: torch.save({k: v for k, v in state().items() if k != "5.bias"}, f),
        r"different network: 5\.bias is missing$",
    ),
    "a name too many": (
        lambda f: torch.save(state(extra=nan()), f),
        "different network: extra is not in the model$",
    ),
    "NaN": (lambda f: torch.save(state(**{"5.bias": nan()}), f), r"holds NaN in 5\.bias: "),
    "one number for many": (
        lambda f: torch.save(state(**{"5.weight": torch.zeros(1).expand(4, 8)}), f),
        r"holds fewer than the 128 bytes of 5\.weight$",
    ),
    "no tensors": (lambda f: torch.save({"lr": 0.1}, f), "holds no state dict"),
    "attention for a plain network": (
        lambda f: torch.save(state(**{"0.attention.conv.weight": torch.ones(1, 1, 3)}), f),
        r"0\.attention\.conv\.weight is not in the model$",
    ),
}


@pytest.mark.parametrize(("write", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_has_changed_and_run_nothing(write, says, file):
    write(file)
    model = network()
    torch.manual_seed(0)
    before = network()
    before.load_state_dict(model.state_dict())
    with pytest.raises(CheckpointError, match=says) as caught:
        load_weights(model, file)
    assert not isinstance(caught.value, TornCheckpointError)
    assert len(str(caught.value).splitlines()) == 1
    assert same(model, before)
    assert [path.name for path in file.parent.iterdir()] == ["weights.pt"]


def test_a_file_that_would_swell_is_refused_before_it_does(file):
    torch.save(state(), file)
    bomb = file.with_name("bomb.pt")
    with zipfile.ZipFile(file) as plain, zipfile.ZipFile(bomb, "w") as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry), zipfile.ZIP_STORED)
        packed.writestr("archive/data/100", bytes(100_000_000), zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 1_000_000
    with pytest.raises(CheckpointError, match=r"would unpack to 100,\d+,\d+ bytes from \d+,\d+:"):
        load_weights(network(), bomb)


def test_a_file_cut_anywhere_is_known_to_be_torn(file):
    torch.save(state(padding=torch.zeros(4096)), file)
    whole = file.read_bytes()
    lengths = [*range(0, len(whole), 1024), len(whole) - 1]
    assert len(lengths) > 20
    for length in lengths:
        file.write_bytes(whole[:length])
        with pytest.raises(TornCheckpointError):
            load_weights(network(), file)


def test_one_flipped_bit_is_noticed(file):
    torch.save(state(), file)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(TornCheckpointError):
        load_weights(network(), file)


def test_what_others_declared_safe_is_not_safe_here(file):
    torch.save({"model": Attack()}, file)
    declared = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([open]):
        with pytest.raises(CheckpointError, match=r"safe to load: it refers to _?io\.open$"):
            load_weights(network(), file)
        assert open in torch.serialization.get_safe_globals()
    assert set(torch.serialization.get_safe_globals()) == set(declared)
    assert not file.with_name("attacked").exists()
