"""Models that surgery cannot handle are refused, by name, before anything changes."""

import copy

import pytest
import torch
from composer.utils.dist import initialize_dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer

from composer_attn.errors import ModelError, OptimizerError
from composer_attn.functional import attended_modules, detach_attention
from tests import snapshots
from tests.networks import NETWORKS
from tests.surgeries import each_surgery, names


@pytest.fixture
def process_group():
    """A group of this process alone: Composer's, as other tests have it; it stays.

    Taking it apart can hang, and Composer wants none that is not its own.
    """
    initialize_dist("cpu")


def small():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.Sequential(nn.Conv2d(16, 16, 3)))


def assert_refused(surgery, model, message, **options):
    before = snapshots.of_model(model)
    for function in (surgery.apply, surgery.plan):
        with pytest.raises(ModelError, match=message):
            function(model, **options)
    assert snapshots.of_model(model) == before


@each_surgery
def test_a_model_in_distributed_data_parallel(surgery, process_group):
    model = nn.parallel.DistributedDataParallel(small())
    message = "the model is a DistributedDataParallel, .*: apply it to the plain model, then wrap"
    assert_refused(surgery, model, message)
    assert_refused(surgery, nn.Sequential(model), "^0 is a DistributedDataParallel")


@each_surgery
def test_an_attended_model_trains_in_distributed_data_parallel(surgery, process_group, recwarn):
    model = small()
    surgery.apply(model)
    wrapped = nn.parallel.DistributedDataParallel(model)
    for _ in range(2):
        wrapped(torch.randn(2, 3, 8, 8)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert [str(w.message) for w in recwarn if "stride" in str(w.message).lower()] == []
    with pytest.raises(ModelError, match="DistributedDataParallel"):
        detach_attention(wrapped)


@each_surgery
@pytest.mark.parametrize("part", ["the model", "1"])
def test_a_model_sharded_by_fully_shard(surgery, process_group, part):
    model = small()
    fully_shard(model if part == "the model" else model[1], mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(ModelError, match=f"{part} is a FSDPModule, .* then call fully_shard"):
        surgery.apply(model)
    assert attended_modules(model) == {}


@each_surgery
def test_a_model_in_fully_sharded_data_parallel(surgery):
    # Without an accelerator FSDP can not be built, only made: its class is what is looked at.
    model = FullyShardedDataParallel.__new__(FullyShardedDataParallel)
    nn.Module.__init__(model)
    with pytest.raises(ModelError, match=r"is a FullyShardedDataParallel.* then wrap in FSDP$"):
        surgery.apply(nn.Sequential(small(), model))


@each_surgery
def test_a_model_in_torch_compile(surgery):
    model = torch.compile(small())
    assert_refused(surgery, model, r"the model is a OptimizedModule, .* then call torch\.compile")


@each_surgery
@pytest.mark.parametrize("part", ["the model", "1.0"])
def test_a_model_compiled_in_place(surgery, part):
    model = small()
    (model if part == "the model" else model[1][0]).compile()
    assert_refused(surgery, model, f"^{part} is a OptimizedModule")


@each_surgery
@pytest.mark.parametrize("compiler", [torch.jit.script, None], ids=["scripted", "traced"])
def test_a_scripted_part_of_a_model(surgery, compiler):
    compiler = compiler or (lambda part: torch.jit.trace(part, torch.randn(1, 16, 8, 8)))
    model = small()
    model[1] = compiler(model[1])
    with pytest.raises(ModelError, match=r"^1 is a ScriptModule, .* use torch\.jit\.trace"):
        surgery.apply(model)
    assert attended_modules(model) == {}
    with pytest.raises(ModelError, match="ScriptModule"):
        surgery.plan(torch.jit.script(small()))


def lazy():
    return nn.LazyConv2d(16, 3)


def replaced():
    conv = nn.Conv2d(3, 16, 3)
    conv.forward = lambda x: x
    return conv


def occupied():
    conv = nn.Conv2d(3, 16, 3)
    conv.attention = nn.Identity()
    return conv


def occupied_by_a_value():
    conv = nn.Conv2d(3, 16, 3)
    conv.attention = None
    return conv


def complex_valued():
    return nn.Conv2d(3, 16, 3, dtype=torch.complex64)


def without_parameters():
    conv = nn.Conv2d(3, 16, 3, bias=False)
    weight = conv.weight.detach()
    del conv.weight
    conv.register_buffer("weight", weight)
    return conv


TROUBLES = [
    (lazy, "lazy, and not initialized yet: run one forward pass first"),
    (replaced, "its forward was replaced on the instance"),
    (occupied, "it already has an attribute named 'attention'"),
    (occupied_by_a_value, "it already has an attribute named 'attention'"),
    (complex_valued, r"its weights are torch\.complex64, not real floating point"),
    (without_parameters, "it has no parameters, whose device and dtype"),
]
each_trouble = pytest.mark.parametrize(("build", "message"), TROUBLES)


@each_surgery
@each_trouble
def test_a_site_that_cannot_be_attended(surgery, build, message):
    model = nn.Sequential(nn.Conv2d(3, 16, 1), build())
    modules = [list(vars(module)) for module in model]
    for function in (surgery.apply, surgery.plan):
        with pytest.raises(ModelError, match=f"name them in exclude:\n  1: {message}"):
            function(model)
    assert [list(vars(module)) for module in model] == modules
    assert attended_modules(model) == {}
    assert type(model[0]) is nn.Conv2d


@each_surgery
@each_trouble
def test_such_a_site_may_be_excluded(surgery, build, message):
    model = nn.Sequential(nn.Conv2d(3, 16, 1), build())
    assert names(surgery.apply(model, exclude="1").chosen) == ("0",)


@each_surgery
def test_all_such_sites_are_listed_in_one_error(surgery):
    model = nn.Sequential(*(build() for build, _ in TROUBLES))
    with pytest.raises(ModelError) as caught:
        surgery.apply(model)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == [f"  {i}" for i in range(len(TROUBLES))]


@each_surgery
def test_a_lazy_convolution_is_fine_after_its_first_forward_pass(surgery):
    model = nn.Sequential(lazy())
    model(torch.randn(1, 3, 8, 8))
    assert names(surgery.apply(model).chosen) == ("0",)
    assert isinstance(copy.deepcopy(model)[0], nn.Conv2d)


@each_surgery
def test_an_optimizer_that_shards_its_state(surgery, process_group):
    model = NETWORKS["residual"].build()
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1)
    before = snapshots.of_model(model)
    with pytest.raises(OptimizerError, match="ZeroRedundancyOptimizer never updates parameters"):
        surgery.apply(model, optimizers=optimizer)
    assert snapshots.of_model(model) == before
