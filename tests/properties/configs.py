"""Hypothesis strategies: random run configs, from nearly valid to no YAML at all."""

import yaml
from hypothesis import strategies as st

from composer_attn.runs.components.registry import (
    ALGORITHMS,
    CALLBACKS,
    LOGGERS,
    OPTIMIZERS,
    SCHEDULERS,
)
from composer_attn.runs.config.schema import KEYS

VALID = {
    "run_name": "small",
    "model": {"name": "resnet10", "num_classes": 10},
    "train_dataset": {"name": "synthetic", "num_samples": 8, "num_classes": 10, "size": 32},
    "optimizer": {"name": "sgd", "lr": 0.01},
    "scheduler": {"name": "cosine_annealing"},
    "algorithms": {"eca": {"min_channels": 64}},
    "batch_size": 4,
    "max_duration": "1ba",
}

_SENSIBLE = {
    "algorithms": [{"squeeze_excite": {"latent_channels": 0.5}}, {"eca": {"placement": "norm"}}],
    "eval_dataset": [VALID["train_dataset"], None],
    "scheduler": [None, {"name": "linear"}],
    "optimizer": [{"name": "decoupled_adamw", "lr": 1, "no_decay": ["bias"]}],
    "callbacks": [{"lr_monitor": {}}, {"lr_monitor": None}],
    "loggers": [{"file": {}}],
    "device_train_microbatch_size": ["auto", 2],
    "precision": ["fp32", "amp_bf16"],
    "parallelism": ["fsdp2"],
    "seed": [0, "7"],
    "save_interval": ["1ba", "0.5dur"],
    "compile": [True, "no"],
}

# Building these on the meta device takes a few milliseconds.
_MODELS = ["resnet10", "resnet18", "timm/test_resnet", "timm/nothing", "resnet", "timm/", ""]
_ARGUMENTS = [
    "name", "lr", "momentum", "weight_decay", "no_decay", "betas", "num_classes", "num_samples",
    "size", "weights", "pretrained", "min_channels", "latent_channels", "kernel_size", "include",
    "exclude", "placement", "replace", "gate", "squeeze", "start", "param_group", "t_max",
    "t_warmup", "alpha", "filter_fn", "params", "self", "args", "kwargs", "smoothing", "bias",
]  # fmt: skip

_texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)
_scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 300), st.floats(), st.sampled_from(_MODELS), _texts,
    st.sampled_from([
        "${seed}", "${nothing}", "${", "${oc.env:NOT_SET}", "???", "10ep", "1ba", "-3ep", "0.5dur",
        "nan", "1e400", "conv", "residual", "avg", "tanh", "identity", "amp_bf16", "fp32", "cpu",
        "!!python/object:x", "../../x", 10**400, -(10**30), 2**63,
    ]),
)  # fmt: skip
_names = st.one_of(
    *[st.sampled_from(sorted(kind.table)) for kind in (ALGORITHMS, CALLBACKS, LOGGERS)],
    *[st.sampled_from(sorted(kind.table)) for kind in (OPTIMIZERS, SCHEDULERS)],
    st.sampled_from(_MODELS), st.sampled_from(_ARGUMENTS), _texts,
)  # fmt: skip
_keys = st.one_of(_names, _names, st.integers(-1, 3), st.none(), st.booleans(), st.floats(0, 1))
values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=3),
    max_leaves=5,
)
_named = st.builds(
    lambda name, arguments: {"name": name, **arguments},
    _names, st.dictionaries(st.sampled_from(_ARGUMENTS), values, max_size=2),
)  # fmt: skip
_several = st.dictionaries(
    st.sampled_from(sorted(ALGORITHMS.table)),
    st.dictionaries(st.sampled_from(_ARGUMENTS), values, max_size=2) | values,
    max_size=2,
)


@st.composite
def configs(draw) -> dict:
    """A valid config, a few keys of which hold something else, anything, or are not there."""
    config = dict(VALID)
    for key in draw(st.lists(st.sampled_from([*KEYS, "base", "unknown"]), max_size=2, unique=True)):
        if draw(st.integers(0, 9)) == 9:
            config.pop(key, None)
        elif key in _SENSIBLE and draw(st.booleans()):
            config[key] = draw(st.sampled_from(_SENSIBLE[key]))
        elif isinstance(VALID.get(key), dict) and draw(st.booleans()):
            added = draw(st.dictionaries(st.sampled_from(_ARGUMENTS), values, max_size=2))
            config[key] = {**config.get(key, {}), **added}
        else:
            config[key] = draw(st.one_of(values, _named, _several))
    return config


@st.composite
def texts(draw) -> bytes:
    """What a file may hold: a config, a piece of one, a config with bytes changed, anything."""
    kind = draw(st.sampled_from(["config"] * 9 + ["bytes", "text", "changed"]))
    if kind == "bytes":
        return draw(st.binary(max_size=40))
    if kind == "text":
        return draw(_texts).encode()
    text = yaml.safe_dump(draw(configs()), allow_unicode=True).encode()
    if kind == "changed":
        start = draw(st.integers(0, len(text)))
        return text[:start] + draw(st.binary(max_size=3)) + text[start + draw(st.integers(0, 9)) :]
    return text


_paths = st.lists(
    st.one_of(st.sampled_from(KEYS), _names, st.integers(0, 2).map(str)), min_size=1, max_size=3
).map(".".join)
_several_overrides = st.lists(
    st.one_of(
        st.builds(lambda path, value: f"{path}={value}", _paths, values),
        st.builds(lambda path, value: f"{path}={value}", _paths, _texts),
        _texts,
    ),
    max_size=2,
)
overrides = st.sampled_from([False, False, True]).flatmap(
    lambda some: _several_overrides if some else st.just([])
)
