"""Hypothesis strategies: random module trees, arguments of surgeries, optimizers."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from composer_attn.functional import apply_eca, apply_squeeze_excite, plan_eca, plan_squeeze_excite
from composer_attn.surgery.sites import PLACEMENTS
from tests.properties.nodes import CONTAINERS, LEAVES, SIZE
from tests.properties.observed import seed

CHANNELS = (4, 8, 16)

# Nothing is ever attended in these; they are rare, so that most examples do something.
_REFUSED = ("lazy", "scripted", "occupied", "replaced")


@dataclass(frozen=True)
class Tree:
    """A random network: printable, so that a failing one can be written down.

    Attributes:
        kind: a key of ``LEAVES`` or of ``CONTAINERS``.
        parts: of a container; a number is one of the parts before it, shared.
    """

    kind: str
    parts: tuple["Tree | int", ...] = ()

    def build(self, channels: int) -> nn.Module:
        if self.kind in LEAVES:
            return LEAVES[self.kind](channels)
        built: list[nn.Module] = []
        for part in self.parts:
            built.append(built[part] if isinstance(part, int) else part.build(channels))
        return CONTAINERS[self.kind](built)

    def has(self, *kinds: str) -> bool:
        return self.kind in kinds or any(
            part.has(*kinds) for part in self.parts if isinstance(part, Tree)
        )


@dataclass(frozen=True)
class Network:
    """A tree and how it is found: its width, its precision, its mode."""

    tree: Tree
    channels: int
    double: bool
    training: bool

    def build(self) -> nn.Module:
        seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of lazy and deprecated modules
            model = self.tree.build(self.channels)
            if self.double and not self.runs_not() and not self.tree.has("cycle", "quantized"):
                model.double()
        for module in model.modules():  # train() would go round in circles
            module.training = self.training
        return model

    def batch(self, model: nn.Module) -> torch.Tensor:
        dtypes = {p.dtype for p in model.parameters()} or {torch.float32}
        return torch.randn(2, self.channels, SIZE, SIZE, dtype=min(dtypes, key=str))

    def runs_not(self) -> bool:
        """Return whether the network has parts that are not initialized yet."""
        return self.tree.has("lazy")


@st.composite
def _containers(draw, parts):
    found: list[Tree | int] = draw(st.lists(parts, min_size=1, max_size=3))
    if draw(st.integers(0, 4)) == 4:
        found.append(draw(st.integers(0, len(found) - 1)))
    return Tree(draw(st.sampled_from(sorted(CONTAINERS))), tuple(found))


_sound = st.sampled_from([kind for kind in LEAVES if kind not in _REFUSED])
_kinds = st.integers(0, 19).flatmap(lambda i: st.sampled_from(_REFUSED) if i == 19 else _sound)
trees = st.recursive(st.builds(Tree, _kinds), _containers, max_leaves=6)
networks = st.builds(
    Network, trees, st.sampled_from(CHANNELS), st.integers(0, 5).map(lambda i: i == 5),
    st.booleans(),
)  # fmt: skip

junk = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**3), st.floats(), st.text(max_size=5),
    st.binary(max_size=3), st.lists(st.integers(), max_size=2), st.just(object),
    st.dictionaries(st.text(max_size=3), st.integers(-3, 9), max_size=2), st.just(nn.ReLU()),
    st.complex_numbers(), st.just(torch.tensor(3)),
    st.sampled_from([10**20, 2**63 - 1, 10**400]),
)  # fmt: skip

_patterns = st.one_of(
    st.sampled_from(["*", "0*", "*conv*", "parts.*", "*part0*", "module.*", "", "nowhere", "*["]),
    st.lists(st.sampled_from(["*", "0", "*1*", "nowhere"]), max_size=2),
)


def _names_long(name: str, module: nn.Module) -> bool:
    return len(name) % 2 == 0


def _says_yes(name: str, module: nn.Module) -> bool:
    return True


_VALID: dict[str, st.SearchStrategy] = {
    "min_channels": st.sampled_from([1, 4, 8, 16, 17, None]),
    "placement": st.sampled_from(sorted(PLACEMENTS)),
    "replace": st.booleans(),
    "include": st.none() | _patterns,
    "exclude": st.none() | _patterns,
    "filter_fn": st.sampled_from([None, _says_yes, _names_long]),
    "start": st.sampled_from(["paper", "identity"]),
    "gate": st.sampled_from(["sigmoid", "hard_sigmoid", "tanh", "relu"]),
    "squeeze": st.sampled_from(["avg", "max", "none"]),
}
_OWN: dict[str, dict[str, st.SearchStrategy]] = {
    "eca": {
        "kernel_size": st.sampled_from(
            [None, 1, 3, 5, {"*": 3}, {"0*": 3, "*": 5}, 4, {"nowhere": 3}, {"*": 2}, {}]
        ),
        "gamma": st.sampled_from([2, 1, -3.5, 0.1, 1e-300, 5e-324, 1e300]),
        "b": st.sampled_from([1, 0, -2, 1e3, 1.7e308]),
    },
    "squeeze_excite": {
        "latent_channels": st.one_of(
            st.integers(1, 16), st.floats(0, 1), st.sampled_from([64, 1 / 16, {"*": 3}])
        ),
        "bias": st.booleans(),
    },
}
_FUNCTIONS = {
    "eca": (apply_eca, plan_eca),
    "squeeze_excite": (apply_squeeze_excite, plan_squeeze_excite),
}


@dataclass(frozen=True)
class Surgery:
    """One of the surgeries with arguments, valid or not."""

    name: str
    arguments: dict[str, Any]

    def apply(self, model: nn.Module, **options):
        return self._quietly(0, model, options)

    def plan(self, model: nn.Module, **options):
        return self._quietly(1, model, options)

    def _quietly(self, which: int, model: nn.Module, options: dict):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of nothing to attend
            return _FUNCTIONS[self.name][which](model, **self.arguments, **options)


@st.composite
def surgeries(draw, wrong: bool = True) -> Surgery:
    """Some arguments of a surgery; in a quarter of the cases, one of them has an arbitrary type."""
    name = draw(st.sampled_from(sorted(_OWN)))
    valid = {**_VALID, **_OWN[name]}
    named = draw(st.lists(st.sampled_from(sorted(valid)), unique=True, max_size=3))
    arguments = {"min_channels": 1, **{key: draw(valid[key]) for key in named}}
    if wrong and draw(st.integers(0, 3)) == 3:
        key = draw(st.sampled_from(sorted(valid)))
        # An error in the caller's own filter is for the caller to fix.
        not_called = junk.filter(lambda value: key != "filter_fn" or not callable(value))
        arguments[key] = draw(not_called)
    return Surgery(name, arguments)


@dataclass(frozen=True)
class Grouping:
    """How a network's parameters are distributed over optimizers.

    Attributes:
        kinds: class names of torch.optim; none at all is a valid choice.
        deal: which of the optimizers' groups each parameter goes to, over and over; -1: none.
        groups: of each optimizer.
        named: whether the optimizers know their parameters' names.
        stepped: whether a training step was taken, so that there is state.
        param_group: the argument of the surgery.
    """

    kinds: tuple[str, ...]
    deal: tuple[int, ...]
    groups: int
    named: bool
    stepped: bool
    param_group: Any

    def build(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        parameters = [
            (n, p) for n, p in model.named_parameters()
            if not isinstance(p, nn.UninitializedParameter)
        ]  # fmt: skip
        dealt: list[list] = [[] for _ in range(self.groups * len(self.kinds))]
        for i, parameter in enumerate(parameters):
            to = self.deal[i % len(self.deal)]
            if to >= 0 and dealt:
                dealt[to % len(dealt)].append(parameter if self.named else parameter[1])
        found = []
        for i, kind in enumerate(self.kinds):
            held = dealt[i * self.groups : (i + 1) * self.groups]
            groups = [{"params": group} for group in held if group]
            if groups:
                groups = groups[:1] if kind == "LBFGS" else groups
                found.append(getattr(torch.optim, kind)(groups, lr=1e-3))
        return found


groupings = st.builds(
    Grouping,
    kinds=st.one_of(
        st.just(()),
        *[
            st.lists(
                st.sampled_from(
                    ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop"] + ["LBFGS"] * (size > 1)
                ),
                min_size=1, max_size=size,
            ).map(tuple)
            for size in (1, 2)
        ],
    ),
    deal=st.one_of(st.just((0,)), st.lists(st.integers(-1, 4), min_size=1, max_size=4).map(tuple)),
    groups=st.integers(1, 3),
    named=st.booleans(),
    stepped=st.booleans(),
    param_group=st.one_of(st.none(), st.none(), st.integers(-1, 3), junk),
)  # fmt: skip
