"""The generated test of arguments says what comparing their templates says."""

from __future__ import annotations

import copy
from collections import OrderedDict, namedtuple
from types import SimpleNamespace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resfx.passes.capture.calls import carried
from resfx.passes.capture.structure import Flattener
from resfx.passes.fold.likeness import Likeness

Pair = namedtuple("Pair", "a b")
ATOMS = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from(["", "a", 0.0, 0.5, torch.float32]),
    st.builds(torch.zeros, st.integers(1, 2)),
)  # fmt: skip


def containers(inner):
    items = st.lists(inner, max_size=3)
    named = st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    return st.one_of(
        items, items.map(tuple), st.builds(Pair, inner, inner), named, named.map(OrderedDict),
        named.map(lambda fields: SimpleNamespace(**fields)),
    )  # fmt: skip


VALUES = st.recursive(ATOMS, containers, max_leaves=6)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(VALUES, min_size=1, max_size=3),
    st.lists(VALUES, max_size=2),
    st.dictionaries(st.sampled_from("xy"), VALUES),
    st.data(),
)
def test_it_says_what_templates_say(values, rest, named, data):
    def taken(values, rest, named):
        flat = Flattener()
        take = flat.flatten
        templates = {f"v{i}": take(v) for i, v in enumerate(values)}
        return {**templates, "args": [take(v) for v in rest], "kwargs": {k: take(v) for k, v in named.items()}}, flat

    def call(values, rest, named):
        return {**{f"v{i}": v for i, v in enumerate(values)}, "args": tuple(rest), "kwargs": named}

    templates, flat = taken(values, rest, named)
    slots = range(len(flat.leaves))
    likeness = Likeness(templates, {}, frozenset(), slots, [(t.dtype, t.device) for t in flat.leaves])
    like = lambda *parts: likeness.function(call(*parts), likeness.constants)
    found = like(values, rest, named)
    assert all(a is b for a, b in zip(found, flat.leaves, strict=True))
    others = [data.draw(st.one_of(st.just(v), VALUES)) for v in values]
    (now, other), (before, _) = taken(others, rest, named), (templates, flat)
    found = like(others, rest, named)
    if now == before:
        assert all(a is b for a, b in zip(found, other.leaves, strict=True))
    else:
        first = next(name for name in before if now[name] != before[name])
        assert found == f"argument {first!r}"


class Layer:
    """One of a cache: ``seen`` varies from call to call."""

    def __init__(self, seen, keys, inner):
        self.seen, self.keys, self.inner = seen, keys, inner


class Slotted:
    __slots__ = ("__dict__", "held")

    def __init__(self, held):
        self.held = held


LAYERS = st.builds(Layer, st.integers(0, 3), st.one_of(st.none(), st.builds(torch.zeros, st.integers(1, 2))), VALUES)
OBJECTS = st.one_of(LAYERS, VALUES.map(Slotted), VALUES.map(lambda v: SimpleNamespace(v=v)))


@st.composite
def caches(draw):
    """An object that holds others, some of them twice."""
    parts = draw(st.lists(OBJECTS, min_size=1, max_size=3))
    return SimpleNamespace(layers=[draw(st.sampled_from(parts)) for _ in range(draw(st.integers(1, 4)))])


@settings(max_examples=150, deadline=None)
@given(caches(), caches(), st.booleans())
def test_it_says_of_objects_what_their_states_say(one, other, same):
    varying = {(Layer, "seen")}

    def taken(value):
        flat = Flattener(varying=varying)
        return flat.state(value), [carried(leaf) for leaf in flat.leaves]

    def alike(a, b):
        return a is b if not isinstance(a, torch.Tensor) or a.numel() else a.shape == b.shape

    other = copy.deepcopy(one) if same else other
    (state, leaves), (now, found) = taken(one), taken(other)
    likeness = Likeness(
        {"cache": ("known", 0)}, {0: (SimpleNamespace, state)}, frozenset(), [(0, i) for i in range(len(leaves))],
        [(t.dtype, t.device) for t in leaves],
    )  # fmt: skip
    for value, was, tensors in ((one, state, leaves), (other, now, found)):
        said = likeness.function({"cache": value}, likeness.constants)
        if was == state:
            assert len(said) == len(tensors) and all(map(alike, said, tensors))
        else:
            assert said == "argument 'cache'"


def test_which_arguments_are_one_object():
    x, y, known = SimpleNamespace(), SimpleNamespace(), {0: (SimpleNamespace, None), 1: (SimpleNamespace, None)}
    ask = lambda numbers, *given: (
        lambda like: like.function(dict(zip("ab", given, strict=True)), like.constants)
    )(Likeness({n: ("known", i) for n, i in zip("ab", numbers, strict=True)}, known, frozenset(), (), []))  # fmt: skip
    assert ask((0, 0), x, x) == [] == ask((0, 1), x, y)
    assert ask((0, 0), x, y) == "argument 'b'"
    assert ask((0, 1), x, x) == "identity of arguments"


def test_a_number_or_truth_of_values_that_is_handed_on():
    likeness = Likeness({"x": ("int", 0)}, {}, frozenset(), (), [])
    for value in (3, True, False, 0.5):
        assert likeness.function({"x": value}, likeness.constants) == []
    for value in (None, "3", torch.zeros(())):
        assert likeness.function({"x": value}, likeness.constants) == "argument 'x'"


def test_types_are_told_from_arguments():
    x = torch.zeros(2)
    likeness = Likeness({"x": ("tensor", 0)}, {}, frozenset(), (0,), [(x.dtype, x.device)])
    asked = lambda value: likeness.function({"x": value}, likeness.constants)
    assert asked(x)[0] is x and asked(x.double()) == "types" and asked(x.to("meta")) == "types"
    assert asked(None) == "argument 'x'"
    free = Likeness({"x": ("tensor", 0)}, {}, frozenset({0}), (), [])
    assert free.function({"x": None}, free.constants) == []


def test_equal_calls_are_told_by_one_function():
    a, b = (Likeness({"x": ("const", str, word)}, {}, frozenset(), (), []) for word in "ab")
    assert a.function is b.function and a.constants != b.constants
