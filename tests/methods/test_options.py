"""Options of a method: unknown names and wrong types are refused with the nearest that would do."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pickle
import typing
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
from hosts.small import batch, net

import resfx
from resfx.errors import OptionError
from resfx.methods.base import methods
from resfx.methods.options import fits


@pytest.mark.parametrize(("make", "words"), [
    (lambda: resfx.DDL(gate_hiden=4),
     r"DDL has no option 'gate_hiden'[\s\S]*: gate_hidden, [\s\S]*DDL\(gate_hidden=...\)"),
    (lambda: resfx.MHC(channels=4), r"MHC has no option 'channels'[\s\S]*sinkhorn_iterations"),
    (lambda: resfx.DDL(4), "takes its options by name"),
    (lambda: resfx.DDL(value_channels="4"), "value_channels must be a whole number, not '4'"),
    (lambda: resfx.DDL(value_channels=True), "must be a whole number, not True"),
    (lambda: resfx.DDL(value_channels=2.0), r"must be a whole number, not 2\.0"),
    (lambda: resfx.DDL(eps="1e-5"), "eps must be a number"), (lambda: resfx.DDL(eps=None), "eps must be a number"),
    (lambda: resfx.DDL(float32=1), "float32 must be true or false"),
    (lambda: resfx.DDL(target="strem"), r"target must be one of \('context', [\s\S]*target='stream'"),
    (lambda: resfx.AttnRes(block="2"), "block must be a whole number or None"),
    (lambda: resfx.Canon(at=3), "at must be a text"), (lambda: resfx.DDL(start="warm"), "start must be one of"),
])  # fmt: skip
def test_wrong_options(make, words):
    with pytest.raises(OptionError, match=words):
        make()


def test_what_fits_is_taken_and_numbers_become_plain():
    config = resfx.DDL(value_channels=np.int64(4), eps=np.float32(0.5), beta_init=1)
    assert type(config.value_channels) is int and type(config.eps) is float and config.beta_init == 1
    assert dataclasses.replace(config, eps=0.25).eps == 0.25
    assert pickle.loads(pickle.dumps(config)) == config
    assert all(cls() == cls(**{f.name: f.default for f in dataclasses.fields(cls)}) for cls in methods().values())


def test_types():
    for value, kind in ((1, int | None), (None, int | None), ((1, 2), tuple[int, ...]), ([1], list[int]), ("a", Any),
                        ((1, "a"), tuple[int, str]), ("a", Literal["a"]), ({}, dict)):  # fmt: skip
        assert fits(value, kind)
    for value, kind in (("1", int | None), ((1, "a"), tuple[int, ...]), ([1], tuple[int, ...]), ((1,), tuple[int, str]),
                        (1, Literal[True]), (1, str), (object(), dict)):  # fmt: skip
        assert not fits(value, kind)


def test_a_users_own_method_is_held_to_its_own_types():
    @dataclass(frozen=True, kw_only=True)
    class Mine(resfx.Method):
        size: int = 3

    assert Mine(size=4).size == 4  # its annotations are texts of this function: they cannot be read, so none is held
    with pytest.raises(OptionError, match="Mine has no option 'sise'"):
        Mine(sise=4)


@pytest.mark.parametrize(("options", "words"), [
    ({"mode": []}, "mode names no method"), ({"mode": resfx.DDL}, r"the class DDL[\s\S]*mode=DDL\(\)"),
    ({"mode": 3}, "3, a int"), ({"mode": ["ddl", None]}, "None, a NoneType"),
    ({"mode": "hyperconnections"}, r"unknown mode[\s\S]*: hyper_connections,[\s\S]*mode='hyper_connections'"),
    ({"gate_hidden": 128}, r"an option of DDL[\s\S]*mode=resfx\.DDL\(gate_hidden=128\)"),
    ({"inclde": "a"}, r"no argument 'inclde'[\s\S]*include='a'"), ({"zzz": 1}, "go to its config"),
    ({"forms": ("identty",)}, r"unknown form 'identty'[\s\S]*forms=\('identity',\)"), ({"forms": ()}, "forms must be"),
    ({"forms": 3}, "forms must be"), ({"include": 3}, "include must be a glob"),
    ({"exclude": [None]}, "exclude must be"), ({"exclude": ["block.1"]}, r"exclude='block\.1' matches nothing"),
    ({"include": ["blocks.0", "block.1"]}, r"include='block\.1' matches no residual add[\s\S]*blocks\.1, blocks\.0"),
    ({"include": ["blocks.0", "inp"]}, "own no residual add"),
])  # fmt: skip
def test_arguments_of_rewrite(options, words):
    model = net()
    with pytest.raises(OptionError, match=words):
        resfx.rewrite(model, args=batch(), **options)
    assert not any("resfx" in n for n, _ in model.named_modules())


def test_globs_that_do_something():
    for options in ({"forms": "identity"}, {"include": ["blocks.1", "blocks.[0-9]"]}, {"exclude": ["blocks.0", "out"]}):
        assert resfx.rewrite(net(), args=batch(), check=False, **options).report.changed


def test_what_an_editor_completes_is_what_rewrite_takes():
    want = [n for n in inspect.signature(resfx.rewrite).parameters if n != "unknown"]
    forms = typing.get_overloads(resfx.rewrite)
    assert len(forms) == 2 and all(list(inspect.signature(form).parameters) == want for form in forms)
    loads = typing.get_overloads(resfx.load)  # onto a model of the user's; from a folder that holds the model too
    assert inspect.signature(forms[0]).return_annotation == "Model" == inspect.signature(loads[0]).return_annotation


def test_pairs_come_back_from_json():
    config = resfx.Lambdas(skips=((0, 1), (1, 2)))
    data = json.loads(json.dumps(config.to_dict()))
    assert resfx.Lambdas(**{k: v for k, v in data.items() if k != "method"}) == config
    for wrong in (((2, 1),), ((0, 1), (0, 1)), ((0, "1"),), (1,)):
        with pytest.raises(ValueError, match="skip"):
            resfx.Lambdas(skips=wrong)


@pytest.mark.parametrize(("method", "options", "words"), [
    (resfx.ValueResidual, {"first": 2.0}, "first is the published start"),
    (resfx.ValueResidual, {"own": 1.0}, "own is the published start"),
    (resfx.ValueResidual, {"own": 1.0, "form": "shared", "start": "published"}, "form='shared' has none"),
    (resfx.LayerScale, {"init": 0.1}, "init is the published start"),
    (resfx.DeltaAttnRes, {"query": "normal"}, "query is the published start"),
    (resfx.DDL, {"mix_per_channel": True, "start": "published"}, "mix_per_channel needs"),
    (resfx.DDL, {"mix_per_channel": True, "preserve": "erase"}, "mix_per_channel needs"),
    (resfx.DDL, {"target": "constant", "target_bias": True}, "target_bias is of a target that is read"),
    (resfx.DDL, {"target": "constant", "target_sigmoid": True}, "target_sigmoid is of a target that is read"),
    (resfx.DDL, {"target": "constant", "target_scale": 2.0}, "target_scale is of a target that is read"),
])  # fmt: skip
def test_what_would_do_nothing_is_refused(method, options, words):
    with pytest.raises(OptionError, match=words):
        method(**options)
