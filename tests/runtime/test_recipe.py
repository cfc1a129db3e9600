"""Recipes: what an earlier version wrote still loads, and what somebody edited is refused by the name of the field."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from hosts.exact import exact_decoder, exact_ids
from safetensors.torch import load_file, save_file
from torch import nn

import resfx
from resfx.errors import SaveError
from resfx.runtime.saved import recipe

SAVED_V1 = Path(__file__).parent / "saved_v1"


@pytest.mark.every(3)
@pytest.mark.parametrize("name", ["site_sequence", "depth", "wide"])
def test_version_1_still_loads_and_is_saved_as_version_2(name, tmp_path):
    model, ids = exact_decoder(), exact_ids()
    new = resfx.load(SAVED_V1 / name, model)
    answer = load_file(SAVED_V1 / "answers.safetensors")[name]
    torch.testing.assert_close(new(ids), answer, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(answer, model(ids), atol=1e-2)
    resfx.save(new, tmp_path / "save")
    assert json.loads((tmp_path / "save" / "recipe.json").read_text())["version"] == 2
    again = resfx.load(tmp_path / "save", model)
    assert torch.equal(again(ids), new(ids))
    told, want = again.report.to_dict(), new.report.to_dict()
    assert all(told[key] == want[key] for key in ("sites", "streams", "new_parameters"))


def takes_floats() -> bool:
    """Whether torch looks up rows by floats where there are no values, as 2.11 does."""
    try:
        nn.Embedding(3, 2, device="meta")(torch.zeros(2, device="meta"))
    except RuntimeError:
        return False
    return True


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A recipe with two applications."""
    torch.manual_seed(0)
    new = resfx.rewrite(exact_decoder(), ["short_conv", "ddl"], args=(exact_ids(),), include=("layers.*",))
    folder = tmp_path_factory.mktemp("recipe") / "save"
    resfx.save(new, folder)
    return (folder / "recipe.json").read_text()


def parse(data) -> recipe.Recipe:
    return recipe.from_text(data if isinstance(data, str) else json.dumps(data), {}, "there")


def edited(text, path, value):
    data = json.loads(text)
    entry = data
    for part in path[:-1]:
        entry = entry[part]
    entry[path[-1]] = value
    return data


def test_a_recipe_comes_back_as_it_was(text):
    read = parse(text)
    assert (read.cls, read.weights, read.as_eager) == ("ExactDecoder", "new", False)
    assert torch.equal(read.example["ids"], torch.zeros(2, 5, dtype=torch.int64))
    assert read.names == (("layers.0:0", "layers.1:0"), ("layers.0:0", "layers.0:1", "layers.1:0", "layers.1:1"))
    conv, ddl = read.applications
    assert ddl.method == resfx.DDL() and conv.method == resfx.ShortConv() and conv.include == ("layers.*",)
    attention, mlp = ddl.claimed[:2]
    assert attention.calls == ("before", "k", "o", "q", "v") and mlp.calls == ("between", "down", "up")
    assert attention.lines != mlp.lines and attention.lines[0].startswith("exact.py:")


APPLICATION = ("applications", 1)
CLAIM = (*APPLICATION, "claimed", 0)
WRONG = [
    (("applications",), []), (("applications",), {}), (("class",), None), (("weights",), "some"), (("as_eager",), 0),
    (("version",), "2"), (("version",), True), (("version",), 3), (("applications", 0, "key"), "ddl"),
    ((*APPLICATION, "key"), "training"), ((*APPLICATION, "key"), "a.b"), ((*APPLICATION, "key"), ""),
    ((*APPLICATION, "key"), "forward"), ((*APPLICATION, "key"), 3), ((*APPLICATION, "include"), "layers.*"),
    ((*APPLICATION, "exclude"), [1]), ((*APPLICATION, "forms"), ["identty"]), ((*APPLICATION, "forms"), []),
    ((*APPLICATION, "claimed"), []), ((*APPLICATION, "claimed"), ["layers.0:0"]), ((*APPLICATION, "more"), 1),
    ((*APPLICATION, "method", "method"), "dld"), ((*APPLICATION, "method", "method"), ["ddl"]),
    ((*APPLICATION, "method", "start"), "later"), ((*APPLICATION, "method", "eps"), "1e-5"),
    ((*APPLICATION, "method", "value_channels"), 1.5),
    ((*APPLICATION, "method", "value_channels"), 2**40), ((*APPLICATION, "method", "eps"), 10**400),
    ((*APPLICATION, "method", "value_channels"), True),
    ((*APPLICATION, "method", "float32"), 1), ((*APPLICATION, "method", "beta_init"), 7.0),
    ((*APPLICATION, "method", "gate"), 1), ((*CLAIM, "owner"), None), ((*CLAIM, "order"), -1),
    ((*CLAIM, "order"), 1), ((*CLAIM, "lines"), "exact.py:20"), ((*CLAIM, "calls"), [None]), ((*CLAIM, "same"), [1, 1]),
    ((*CLAIM, "same"), [0]), ((*CLAIM, "on_lines"), 0), ((*CLAIM, "alike"), [0, 2**40]), ((*CLAIM, "more"), 0),
    (("example",), []), (("example", "ids"), 3), (("example", "ids", "shape"), [2, -5]),
    (("example", "ids", "more"), 1),
    (("example", "ids", "shape"), [2**20, 2**20]), (("example", "ids", "shape"), [1] * 40),
    (("example", "ids", "shape"), [2.0, 5]), (("example", "ids", "dtype"), "int65"),
    (("example", "ids", "dtype"), "nn"), (("example", "ids", "dtype"), "quint4x2"), (("example", "n"), {"value": []}),
    (("base", "structure"), "abc"), (("base", "parameters"), -1), (("base", "tensors"), "37"), (("base", "more"), 1),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), WRONG, ids=lambda v: str(v)[:40])
def test_an_edit_is_refused_by_the_name_of_its_field(text, path, value):
    with pytest.raises(SaveError) as caught:
        parse(edited(text, path, value))
    assert any(f"{part}" in str(caught.value) for part in path[-3:] if isinstance(part, str))
    assert caught.value.found and caught.value.try_


def leaves(data, path=()):
    yield path
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from leaves(value, (*path, key))


def test_no_edit_gives_anything_but_a_recipe_or_a_save_error(text):
    data = json.loads(text)
    for path in [p for p in leaves(data) if p]:
        for value in (None, True, -1, 2**70, 1.5, "", "training", [], [[]], {}, {"value": 1}):
            try:
                assert isinstance(parse(edited(text, path, value)), recipe.Recipe)
            except SaveError as error:
                assert error.found and error.try_
        without = copy.deepcopy(data)
        entry = without
        for part in path[:-1]:
            entry = entry[part]
        del entry[path[-1]]
        if not isinstance(path[-1], int) and path[:1] != ("example",):
            with pytest.raises(SaveError, match=r"lacks|not a recipe|version None"):
                parse(without)


@pytest.mark.parametrize("broken", ["", "{", "[" * 100_000, '{"format": "resfx", "version": NaN}', "null", "3"])
def test_what_is_no_recipe_says_so(broken):
    with pytest.raises(SaveError, match=r"damaged|not a recipe"):
        parse(broken)


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        ((*CLAIM, "owner"), "layers.7", "not found again"), ((*CLAIM, "calls"), ["up"], "not found again"),
        (("example", "ids", "shape"), [], "example"), (("example", "nobody"), {"value": 1}, "nobody"),
        pytest.param(("example", "ids", "dtype"), "float32", "example", marks=pytest.mark.skipif(
            takes_floats(), reason="an embedding without values takes floats here: the weights are refused instead")),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model_is_refused(text, path, value, match, tmp_path):
    data = edited(text, path, value)
    (tmp_path / "recipe.json").write_text(json.dumps(data))
    save_file({}, tmp_path / "weights.safetensors")
    with pytest.raises(SaveError, match=match):
        resfx.load(tmp_path, exact_decoder())


def test_numbers_of_version_1_fit_vectors_of_one(tmp_path):
    new = resfx.load(SAVED_V1 / "site_sequence", exact_decoder())
    resfx.save(new, tmp_path / "save")
    file = tmp_path / "save" / "weights.safetensors"
    weights = load_file(file)
    assert any(w.shape == (1,) for w in weights.values())
    save_file({n: w.reshape(()) if w.shape == (1,) else w for n, w in weights.items()}, file)
    again = resfx.load(tmp_path / "save", exact_decoder())
    assert torch.equal(again(exact_ids()), new(exact_ids()))
