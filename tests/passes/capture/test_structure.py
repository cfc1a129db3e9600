"""Containers among arguments and results: taken apart, put together as the same class, or refused by name."""

from __future__ import annotations

import dataclasses
import functools
import threading
import types
import typing
from collections import OrderedDict, defaultdict, deque

import numpy as np
import pytest
import torch
from hosts.small import Net, batch, net
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

import resfx
from resfx.errors import CaptureError
from resfx.passes.capture.structure import Flattener, build, restore

T = torch.ones(2)


class Pair(typing.NamedTuple):
    x: typing.Any
    extra: typing.Any = None


class Grown(Pair):
    """A NamedTuple's subclass."""


class Dict(dict):
    pass


class Attributes(dict):
    """A dict whose attributes are its items."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.__dict__ = self


class List(list):
    pass


class Ordered(OrderedDict):
    pass


class Defaults(defaultdict):
    pass


@dataclasses.dataclass
class Plain:
    x: typing.Any
    n: int = 3


@dataclasses.dataclass(slots=True)
class Slots:
    x: typing.Any


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: typing.Any


class Private:
    __slots__ = ("__x", "gone")

    def __init__(self, x):
        self.__x = x

    @property
    def x(self):
        return self.__x


class Half(Private):
    """Slots in the base, a ``__dict__`` below, and itself inside."""

    def __init__(self, x):
        super().__init__(x)
        self.me = self


WRAPS = {
    "namedtuple": Pair, "namedtuple's subclass": Grown, "dict subclass": lambda t: Dict(x=t),
    "dict with attributes": lambda t: Attributes(x=t), "list subclass": lambda t: List([t]),
    "ordered": lambda t: OrderedDict(x=t), "ordered subclass": lambda t: Ordered(x=t),
    "defaultdict": lambda t: defaultdict(list, x=t), "defaultdict subclass": lambda t: Defaults(list, x=t),
    "deque": lambda t: deque([t]), "dataclass": Plain, "slots": Slots, "frozen": Frozen, "private slots": Private,
    "half slots, cyclic": Half, "namespace": lambda t: types.SimpleNamespace(x=t),
    "nested": lambda t: Dict(x=t, more=[Slots(Pair(t, {"k": List([t])}))]),
}  # fmt: skip


def tensor(value) -> Tensor:
    return value["x"] if isinstance(value, dict) else value[0] if isinstance(value, (list, tuple, deque)) else value.x


@pytest.mark.parametrize("kind", WRAPS)
def test_round_trip(kind):
    value = WRAPS[kind](T)
    flat, again = Flattener(), Flattener()
    template = flat.flatten(value)
    made = build(template, flat.leaves)
    assert type(made) is type(value) and made is not value and tensor(made) is T
    assert again.flatten(made) == template and all(a is b for a, b in zip(flat.leaves, again.leaves, strict=True))
    if kind == "half slots, cyclic":
        assert made.me is made and not hasattr(made, "gone")
    if kind.startswith("defaultdict"):
        assert made["new"] == []
    if kind == "dict with attributes":
        made.y = 1
        assert made["y"] == 1


@pytest.mark.parametrize("kind", ["namedtuple", "dict subclass", "slots", "nested", "half slots, cyclic"])
def test_through_a_rewritten_model(kind):
    wrap = WRAPS[kind]

    class Through(Net):
        def forward(self, value):
            h = self.body(tensor(value))
            return self.out(h), wrap(h), value

    model = net(Through)
    new = resfx.rewrite(net(Through), "ddl", (wrap(batch()),))
    given = wrap(batch(2, 4))
    want, got = model(given), new(given)
    assert torch.equal(want[0], got[0]) and type(got[1]) is type(want[1])
    flat = Flattener()
    flat.flatten(got)
    assert torch.equal(tensor(got[1]), tensor(want[1])) and not any(isinstance(t, FakeTensor) for t in flat.leaves)
    assert type(got[2]) is type(given) and (got[2] is given or kind == "namedtuple")


def test_an_object_is_written_back_in_place():
    class Writes(Net):
        def forward(self, x, state):
            state.rows.append(x * 2)
            state["last"] = x
            return super().forward(x)

    class State(dict):
        def __init__(self):
            super().__init__()
            self.rows = []

    new, state = resfx.rewrite(net(Writes), "ddl", (batch(), State())), State()
    rows = state.rows
    new(batch(), state)
    assert state.rows is rows and torch.equal(rows[0], batch() * 2) and state["last"] is not None
    assert isinstance(state["last"], Tensor) and not isinstance(state["last"], FakeTensor)


def test_what_an_object_holds_stays_the_same_object():
    state = types.SimpleNamespace(layers=[T], table={"a": [T]}, pair=(T, 1))
    before = state.layers, state.table, state.table["a"], state.pair
    flat = Flattener(known=[state])
    restore(state, flat.state(state), flat.leaves, [state])
    assert all(a is b for a, b in zip(before, (state.layers, state.table, state.table["a"], state.pair), strict=True))


def test_arrays_and_opaque_constants():
    class Masked(Net):
        def forward(self, x, mask):
            return super().forward(x) * torch.from_numpy(mask)

    model, lock, mask = net(Masked), threading.Lock(), np.arange(8, dtype=np.float32)
    new = resfx.rewrite(net(Masked), "ddl", (batch(), mask))
    for m in (mask, mask.copy(), mask * 2):
        assert torch.equal(new(batch(), m), model(batch(), m))
    assert len(new.variants) == 2, "equal arrays share a graph"
    assert build(Flattener().flatten(lock), []) is lock
    template = Flattener().flatten(mask)
    assert type(build(template, [])) is np.ndarray and build(template, []) is not mask


def yields(t):
    yield t


def cyclic():
    value: list = []
    value.append(value)
    return value


@pytest.mark.parametrize(("value", "name", "found"), [
    (lambda: {T: 1}, "dict", "tensors for keys"), (lambda: {T}, "set", "cannot be taken out"),
    (lambda: yields(T), "generator", "only once"), (lambda: iter([T]), "list_iterator", "only once"),
    (cyclic, "list", "contains itself"), (lambda: functools.partial(torch.add, T), "partial", "function over tensors"),
    (lambda: (lambda t: lambda: t)(T), "function", "function over tensors"),
    (lambda: types.MappingProxyType({"x": T}), "mappingproxy", "cannot be taken out"),
    (lambda: np.array([T, 1], dtype=object), "ndarray", "cannot be taken out"),
])  # fmt: skip
def test_what_hides_tensors_is_refused_by_class(value, name, found):
    with pytest.raises(CaptureError, match=f"cannot take a {name} apart[\\s\\S]*{found}"):
        Flattener().flatten(value())
    if name == "ndarray":  # no array can be made of what a trace has for tensors
        return

    class Returns(Net):
        def forward(self, x):
            return super().forward(x), value() if name in ("dict", "list") else {"hidden": value()}

    with pytest.raises(CaptureError, match=f"cannot take a {name} apart"):
        resfx.scan(net(Returns), batch())


def test_a_model_without_gradients():
    """Some kernels exist without gradients only, such as flex attention on a processor."""

    class NoGradients(Net):
        def forward(self, x):
            if torch.is_grad_enabled():
                raise NotImplementedError("no backward here")
            return super().forward(x)

    model = net(NoGradients)
    with torch.no_grad():
        assert len(resfx.scan(model, batch()).sites) == 2
        new = resfx.rewrite(model, "ddl", batch(), check=False)
        assert torch.equal(new(batch(2)), model(batch(2)))
    with pytest.raises(NotImplementedError, match="no backward here"):
        new(batch(2))
