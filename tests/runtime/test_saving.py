"""Saving over what is there: only our own files, whole or not at all; and all that a model computes with comes back."""

from __future__ import annotations

import copy
import json
import os
import shutil
import stat

import pytest
import torch
from hosts.made import randomise
from hosts.small import Net, batch, net
from torch import nn

import resfx
from resfx.errors import OptionError, SaveError
from resfx.runtime.saved.folder import refuse_unwritable, replacing


@pytest.fixture(scope="module")
def made():
    return resfx.rewrite(net(), "ddl", batch())


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("recipe", ['{"learning_rate": 1}', "[]", "not json", '{"format": "other"}', None])
def test_a_folder_of_somebody_else_is_left_alone(made, recipe, tmp_path):
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "optimizer.pt").write_text("mine")
    if recipe is not None:
        (folder / "recipe.json").write_text(recipe)
    before = contents(tmp_path)
    with pytest.raises(SaveError, match="cannot save to"):
        resfx.save(made, folder)
    assert contents(tmp_path) == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SaveError, match="it is a file"):
        resfx.save(made, tmp_path / "file")


def test_files_beside_a_save_stay(made, tmp_path):
    resfx.save(made, tmp_path / "s")
    (tmp_path / "s" / "notes.txt").write_text("mine")
    (tmp_path / "s" / "logs").mkdir()
    new = copy.deepcopy(made)
    randomise(new)
    resfx.save(new, tmp_path / "s")
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [
        "logs",
        "notes.txt",
        "recipe.json",
        "weights.safetensors",
    ]
    assert torch.equal(resfx.load(tmp_path / "s", net())(batch()), new(batch()))


@pytest.mark.parametrize("step", ["write", "sync", "first move", "second move", "every move", "no links"])
def test_a_failure_at_any_step_keeps_the_last_save(made, step, tmp_path, monkeypatch):
    resfx.save(made, tmp_path / "s")
    before = contents(tmp_path)
    new = copy.deepcopy(made)
    randomise(new)
    moves, replace = [], os.replace

    def move(source, target):
        moves.append(target)
        if step == "every move" or len(moves) == (1 if step == "first move" else 2):
            raise OSError(28, "No space left on device")
        replace(source, target)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    if step == "write":
        monkeypatch.setattr("safetensors.torch.save_file", full)
    elif step == "sync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(os, "replace", move)
    if step == "no links":
        monkeypatch.setattr(os, "link", full)
    with pytest.raises(OSError, match="No space left"):
        resfx.save(new, tmp_path / "s")
    with pytest.raises(OSError, match="No space left"):
        moves.clear()
        resfx.save(new, tmp_path / "a" / "b" / "fresh")
    monkeypatch.undo()
    assert contents(tmp_path) == before and [p.name for p in tmp_path.iterdir()] == ["s"]
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["recipe.json", "weights.safetensors"]


def test_the_second_move_fails_and_so_does_moving_back(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).write_text("old")
    moves, replace = [], os.replace

    def move(source, target):
        moves.append(target)
        if len(moves) > 1:
            raise OSError("refused")
        replace(source, target)

    monkeypatch.setattr(os, "replace", move)
    with pytest.raises(OSError, match="refused"), replacing(tmp_path, "b") as draft:
        for name in ("a", "b"):
            (draft / name).write_text("new")
    assert contents(tmp_path) == {"a": b"old", "b": b"old"}


def test_permissions_are_those_of_any_new_file(made, tmp_path):
    before = os.umask(0o027)
    try:
        resfx.save(made, tmp_path / "s")
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "s").iterdir()}
    assert modes == {"recipe.json": 0o640, "weights.safetensors": 0o640}
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o750


def test_a_path_that_cannot_be_written_is_refused_before_any_work(made, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    work = []
    monkeypatch.setattr("resfx.export.lowering.flatten_model", lambda *a: work.append(a))
    for path in (tmp_path, f"{tmp_path}/new/", tmp_path / "file" / "m.onnx"):
        with pytest.raises(OptionError, match="cannot write"):
            refuse_unwritable(path)
        with pytest.raises(OptionError, match="cannot write"):
            resfx.export.to_onnx(made, path)
        with pytest.raises(OptionError, match="cannot write"):
            resfx.compare(made, made, json=path)
    refuse_unwritable(tmp_path / "new" / "m.onnx")
    refuse_unwritable(tmp_path / "file")
    assert not work and sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_arguments_the_wrong_way_round_and_models_that_are_no_base(made, tmp_path):
    resfx.save(made, tmp_path / "s")
    for args, words in (
        ((net(), tmp_path / "s"), "the folder first"), ((tmp_path / "s", made), "rewritten already"),
        ((tmp_path / "s", 3), "a int as the base model"),
    ):  # fmt: skip
        with pytest.raises(SaveError, match=words):
            resfx.load(*args)
    with pytest.raises(OptionError, match="'new' or 'all'"):
        resfx.save(made, tmp_path / "t", weights="some")
    assert not (tmp_path / "t").exists()


class Statistics(Net):
    """Buffers of both kinds: running statistics, and a table that no ``state_dict`` holds."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(5)
        self.register_buffer("table", torch.ones(8), persistent=False)

    def forward(self, x):
        return self.norm(super().forward(x)) * self.table


def trained():
    model = net(Statistics)
    new = resfx.rewrite(model, "ddl", batch()).train()
    randomise(new)
    for step in range(3):
        new(batch() + step).sum().backward()
    return model, new.eval()


@pytest.mark.parametrize("weights", ["new", "all"])
def test_running_statistics_come_back(weights, tmp_path):
    model, new = trained()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    resfx.save(new, tmp_path / "s", weights=weights)
    again = resfx.load(tmp_path / "s", model)
    assert torch.equal(again(batch()), new(batch())) and int(again.norm.num_batches_tracked) == 3
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "the base keeps its own"


def test_buffers_that_are_not_saved_are_compared(tmp_path):
    model, new = trained()
    resfx.save(new, tmp_path / "s")
    model.table.mul_(2)
    with pytest.warns(UserWarning, match=r"beside other buffers, not in any state_dict \(table\)"):
        resfx.load(tmp_path / "s", model)


def test_a_save_without_buffers_is_told(tmp_path):
    from safetensors.torch import load_file, save_file

    model, new = trained()
    resfx.save(new, tmp_path / "s")
    path = tmp_path / "s" / "weights.safetensors"
    save_file({k: v for k, v in load_file(path).items() if k.startswith("resfx.")}, path)  # as the first version did
    with pytest.warns(UserWarning, match=r"saved without buffers[\s\S]*norm\.running_mean"):
        resfx.load(tmp_path / "s", model)


def test_a_model_without_values_is_not_saved(tmp_path):
    with torch.device("meta"):
        new = resfx.rewrite(net(), "ddl", batch().to("meta"))
    with pytest.raises(SaveError, match="on the meta device"):
        resfx.save(new, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_shallow_copy_shares_everything(made):
    twin = copy.copy(made)
    assert twin is not made and type(twin) is type(made) and torch.equal(twin(batch()), made(batch()))
    assert all(a is b for a, b in zip(twin.parameters(), made.parameters(), strict=True))


def test_a_save_moves_with_its_folder(made, tmp_path):
    resfx.save(made, tmp_path / "s")
    shutil.move(tmp_path / "s", tmp_path / "t")
    assert json.loads((tmp_path / "t" / "recipe.json").read_text())["format"] == "resfx"
    assert torch.equal(resfx.load(str(tmp_path / "t"), net())(batch()), made(batch()))
