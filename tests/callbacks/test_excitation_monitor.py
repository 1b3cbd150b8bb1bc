"""The monitor in Trainers: when it records, what it logs and stores, and what it leaves as is."""

import copy
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from composer import Callback
from composer.algorithms.warnings import NoEffectWarning
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from composer_attn import (
    ECA,
    ExcitationMonitor,
    SqueezeExcite,
    apply_squeeze_excite,
    attended_modules,
)
from composer_attn.callbacks import excitations
from composer_attn.callbacks.excitation_monitor import _report
from composer_attn.callbacks.tally import FIGURES, Tally
from composer_attn.errors import ArgumentError, IdleGatesWarning, PatternError
from tests.callbacks.monitored import CLASSES, SE, dataset, fit, network, steps


@pytest.mark.parametrize(
    ("interval", "expected"),
    [("2ba", [2, 4, 6]), (4, [4]), ("1ep", [3, 6]), ("2ep", [6]), ("100ba", [])],
)
def test_figures_are_logged_on_the_steps_that_complete_an_interval(interval, expected):
    _, logged = fit(ExcitationMonitor(interval))
    for layer in ("0", "2"):
        for name in FIGURES:
            assert steps(logged, f"excitation/{layer}/{name}") == expected
    assert not [key for key in logged.data if "histogram" in key]


class Excitations(Callback):
    """Computes the excitations of the step itself, before the optimizer changes them."""

    def before_train_batch(self, state, logger):
        images, network = state.batch[0], state.model.module
        with torch.no_grad():
            x = nn.Conv2d.forward(network[0], images)
            first = network[0].attention.excitation(x)
        self.last = first.double()


def test_figures_are_those_of_the_whole_batch_also_in_microbatches():
    own = Excitations()
    for micro in (4, 1):
        _, logged = fit(
            ExcitationMonitor("6ba"), callbacks=[own], device_train_microbatch_size=micro
        )
        figures = {name: logged.data[f"excitation/0/{name}"][-1][1] for name in FIGURES}
        s = own.last
        assert s.shape == (4, 16)
        assert figures["mean"] == pytest.approx(s.mean().item(), rel=1e-5)
        assert figures["std"] == pytest.approx(s.std(correction=0).item(), rel=1e-4)
        assert figures["saturated_low"] == (s < 0.05).double().mean()
        assert figures["saturated_high"] == (s > 0.95).double().mean()
        assert figures["dead"] == (s < 0.05).all(0).double().mean()
        shares = s.mean(0) / s.mean(0).sum()
        entropy = -(shares * shares.log()).sum() / np.log(16)
        assert figures["entropy"] == pytest.approx(entropy.item(), rel=1e-6)


class Watch(Callback):
    """Notes at which moments anything hangs on the attentions."""

    def __init__(self):
        self.looking = []

    def note(self, state, moment):
        for module in state.model.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
        found = attended_modules(state.model).values()
        if any("observer" in vars(attention) for attention in found):
            self.looking.append((state.timestamp.batch.value, moment))

    def before_forward(self, state, logger):
        self.note(state, "forward")

    def batch_start(self, state, logger):
        self.note(state, "between")

    def batch_end(self, state, logger):
        self.note(state, "between")

    def eval_start(self, state, logger):
        self.note(state, "between")

    def eval_end(self, state, logger):
        self.note(state, "between")

    def fit_end(self, state, logger):
        self.note(state, "between")


def test_nothing_hangs_on_the_model_between_logging_steps():
    watch = Watch()
    evaluation = {"eval_dataloader": DataLoader(dataset(), batch_size=4), "eval_interval": "1ba"}
    fit(ExcitationMonitor("3ba"), callbacks=[watch], **evaluation)
    assert watch.looking == [(2, "forward"), (5, "forward")]


def test_monitoring_does_not_change_training():
    watched, _ = fit(
        ExcitationMonitor("1ba"), algorithms=[SqueezeExcite(**SE), ECA(min_channels=99)]
    )
    alone, _ = fit(None, algorithms=[SqueezeExcite(**SE), ECA(min_channels=99)])
    for mine, theirs in zip(
        watched.state.model.state_dict().values(),
        alone.state.model.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(mine, theirs)


def test_a_step_that_fails_leaves_nothing_behind():
    class Fails(Callback):
        def after_forward(self, state, logger):
            raise RuntimeError("out of everything")

    model = network()
    with pytest.raises(RuntimeError, match="out of everything"):
        fit(ExcitationMonitor("1ba"), model=model, callbacks=[Fails()])
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all("observer" not in vars(a) for a in attended_modules(copied).values())


def test_layers_are_chosen_by_pattern():
    _, logged = fit(ExcitationMonitor("6ba", layers=["2"]))
    assert steps(logged, "excitation/2/mean") == [6]
    assert steps(logged, "excitation/0/mean") == []


def test_a_pattern_that_matches_nothing_stops_before_training():
    with pytest.raises(PatternError, match=r"layers pattern 'layer9.\*' matches none of 2"):
        fit(ExcitationMonitor("6ba", layers="layer9.*"))


def test_the_histogram_is_logged_on_request():
    _, logged = fit(ExcitationMonitor("6ba", histogram=True))
    found = [v[-1][1] for k, v in logged.data.items() if k.startswith("excitation/0/histogram/")]
    assert len(found) == 10
    assert sum(found) == pytest.approx(1)


def test_a_model_without_attention_is_worth_a_warning():
    with pytest.warns(NoEffectWarning, match="no added attention"):
        fit(ExcitationMonitor("1ba"), algorithms=[])


def set_logits(model, value: float):
    """Give every gate the same logit, whatever comes in; nothing is left to train."""
    apply_squeeze_excite(model, **SE, bias=True)
    for attention in attended_modules(model).values():
        nn.init.zeros_(attention.last_layer.weight)
        nn.init.constant_(attention.last_layer.bias, value)
        attention.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("logit", "complaints"),
    [(10.0, ["saturated", "the same for every sample"]), (0.0, ["the same for every sample"])],
)
def test_gates_that_do_nothing_are_worth_a_warning_once(logit, complaints):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(ExcitationMonitor("1ba", patience=3), algorithms=[], model=set_logits(network(), logit))
    said = [str(w.message) for w in caught if w.category is IdleGatesWarning]
    assert len(said) == 2 * len(complaints)  # two layers
    for complaint in complaints:
        assert sum(complaint in text and "for 3 logging steps" in text for text in said) == 2
    assert {text.split(":")[0] for text in said} == {"0", "2"}


def test_gates_that_work_are_not(recwarn):
    fit(ExcitationMonitor("1ba", patience=2))
    assert not [w for w in recwarn if w.category is IdleGatesWarning]


def evaluated(folder: Path, monitor: ExcitationMonitor, data: TensorDataset, **options):
    loader = DataLoader(data, batch_size=5)
    trainer, _ = fit(monitor, eval_dataloader=loader, save_folder=str(folder), **options)
    return trainer, excitations.read(folder)


def test_evaluation_keeps_means_and_deviations_by_class(tmp_path):
    data = dataset(13)
    trainer, kept = evaluated(tmp_path, ExcitationMonitor(classes=[3, 0, 4]), data)
    network, (images, labels) = trainer.state.model.module, data.tensors
    with torch.no_grad():
        first = nn.Conv2d.forward(network[0], images)
        s = network[0].attention.excitation(first).double().numpy()
    assert kept.batch == 6
    assert kept.classes == (3, 0, 4)
    assert [layer.name for layer in kept.layers] == ["0", "2"]
    assert kept.samples.tolist() == [*[(labels == c).sum().item() for c in (3, 0, 4)], 13]
    assert kept.samples[2] == 0  # no sample of that class
    for row, label in enumerate((3, 0)):
        own = s[labels.numpy() == label]
        np.testing.assert_allclose(kept.layers[0].mean[row], own.mean(0), rtol=1e-5)
        np.testing.assert_allclose(kept.layers[0].std[row], own.std(0), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(kept.layers[0].mean[-1], s.mean(0), rtol=1e-5)
    np.testing.assert_allclose(kept.layers[0].std[-1], s.std(0), rtol=1e-3, atol=1e-6)
    assert np.isnan(kept.layers[0].mean[2]).all()
    assert kept.layers[0].figures["mean"] == pytest.approx(s.mean(), rel=1e-6)


def test_one_hot_labels_are_labels_and_others_are_left_out(tmp_path):
    images, labels = dataset().tensors
    _, plain = evaluated(tmp_path / "plain", ExcitationMonitor(classes=[0, 1]), dataset())
    onehot = TensorDataset(images, nn.functional.one_hot(labels, CLASSES).float())
    trainer, _ = fit(None)
    state = trainer.state
    watcher = ExcitationMonitor(classes=[0, 1])
    watcher.eval_start(state, trainer.logger)
    state.batch = (images, onehot.tensors[1])
    watcher.eval_before_forward(state, trainer.logger)
    state.model.module(images)
    watcher.eval_after_forward(state, trainer.logger)
    found = watcher._tallies["0"]
    np.testing.assert_allclose(found.mean().numpy(), plain.layers[0].mean, rtol=1e-5)
    state.batch = {"images": images}
    watcher.eval_before_forward(state, trainer.logger)
    state.model.module(images)
    watcher.eval_after_forward(state, trainer.logger)
    counted = [(labels == 0).sum().item(), (labels == 1).sum().item(), 24]
    assert found.samples().tolist() == counted


def test_excitations_are_kept_where_the_argument_says(tmp_path):
    monitor = ExcitationMonitor(folder=str(tmp_path / "own"))
    evaluated(tmp_path / "run", monitor, dataset())
    assert (tmp_path / "own" / excitations.FILE).is_file()
    assert excitations.read(tmp_path / "run") is None


def test_a_file_that_was_cut_off_reads_as_none(tmp_path):
    _, kept = evaluated(tmp_path, ExcitationMonitor(), dataset())
    assert kept.classes == tuple(range(10))
    file = tmp_path / excitations.FILE
    file.write_bytes(file.read_bytes()[:-100])
    assert excitations.read(tmp_path) is None


@pytest.mark.slow
def test_compiled_models_are_monitored_without_recompilation():
    from torch._dynamo.utils import counters

    counters.clear()
    _, logged = fit(
        ExcitationMonitor("2ba"), compile_config={"fullgraph": True, "backend": "eager"}
    )
    graphs = counters["stats"]["unique_graphs"]
    counters.clear()
    torch._dynamo.reset()
    fit(None, compile_config={"fullgraph": True, "backend": "eager"})
    assert steps(logged, "excitation/2/mean") == [2, 4, 6]
    assert graphs == counters["stats"]["unique_graphs"] > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"interval": "1dur"}, "interval must be a number of ba or ep, like 100ba; got '1dur'"),
        ({"interval": "0ba"}, "got '0ba'"),
        ({"interval": "often"}, "got 'often'"),
        ({"layers": [3]}, "layers must be a glob pattern"),
        ({"classes": 3}, r"classes must be labels, like \[0, 7\]; got 3"),
        ({"classes": [-1]}, "classes must be a whole number >= 0; got -1"),
        ({"patience": 0}, "patience must be a whole number >= 1; got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, says):
    with pytest.raises(ArgumentError, match=says):
        ExcitationMonitor(**arguments)


def test_a_site_that_sees_other_samples_counts_for_all_classes_together():
    attention = attended_modules(set_logits(network(), 0.0))["module.0"]
    tally = Tally(attention, 2, False, torch.device("cpu"))
    labels = torch.tensor([0, 1])
    members = (torch.tensor([0, 1]), torch.tensor([0, 1]))
    _report(tally, labels, members, False, torch.rand(6, 16))
    assert tally.samples().tolist() == [0, 0, 6]
