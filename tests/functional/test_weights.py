"""Weights of unknown origin: whole and fitting ones load, anything else is refused unread."""

import pickle
import zipfile

import pytest
import torch
from torch import nn

from composer_attn import apply_eca, apply_squeeze_excite, load_weights
from composer_attn.errors import CheckpointError, TornCheckpointError


def network(width: int = 8) -> nn.Sequential:
    layers = [nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, width, 3)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))


def same(first: nn.Module, second: nn.Module) -> bool:
    states = first.state_dict(), second.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(tensor, states[1][name]) for name, tensor in states[0].items()
    )


class Attack:
    """What a hostile file holds: a call that its unpickling makes."""

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


def state(**changes):
    return network().state_dict() | changes


def nan() -> torch.Tensor:
    return torch.full((4,), torch.nan)


REFUSED = {
    "code": (lambda f: torch.save({"model": Attack()}, f), "safe to load: it names _?io.open$"),
    "a bare pickle of code": (lambda f: f.write_bytes(pickle.dumps(Attack())), "safe to load"),
    "a whole module": (lambda f: torch.save(network(), f), "safe to load: it names "),
    "another width": (
        lambda f: torch.save(network(9).state_dict(), f),
        r"0\.weight is \(9, 3, 3, 3\), the model's is \(8, 3, 3, 3\); .* and \d+ more$",
    ),
    "a name missing": (
        lambda f: torch.save({k: v for k, v in state().items() if k != "5.bias"}, f),
        r"another network: 5\.bias is missing$",
    ),
    "a name too many": (
        lambda f: torch.save(state(extra=nan()), f),
        "another network: extra has no place in the model$",
    ),
    "NaN": (lambda f: torch.save(state(**{"5.bias": nan()}), f), r"holds NaN in 5\.bias: "),
    "one number for many": (
        lambda f: torch.save(state(**{"5.weight": torch.zeros(1).expand(4, 8)}), f),
        r"holds less than the 128 bytes of 5\.weight$",
    ),
    "no tensors": (lambda f: torch.save({"lr": 0.1}, f), "holds no state dict"),
    "attention for a plain network": (
        lambda f: torch.save(state(**{"0.attention.conv.weight": torch.ones(1, 1, 3)}), f),
        r"0\.attention\.conv\.weight has no place in the model$",
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
        with pytest.raises(CheckpointError, match=r"safe to load: it names _?io\.open$"):
            load_weights(network(), file)
        assert open in torch.serialization.get_safe_globals()
    assert set(torch.serialization.get_safe_globals()) == set(declared)
    assert not file.with_name("attacked").exists()
