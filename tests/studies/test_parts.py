"""The parts of a study: text, tokens, order, recipe, sizes, statistics and what the page says of them."""

from __future__ import annotations

import math

import pytest
import torch

from resfx.errors import InputError, OptionError
from resfx.studies.page import _words
from resfx.studies.results import Row, paired
from resfx.studies.sizes import SIZES, build_host, wider
from resfx.studies.text import Corpus, corpus_of, part_of, python_documentation
from resfx.studies.tokens import Order, tokenized
from resfx.studies.training import Recipe, optimizer_of


def test_a_document_belongs_where_its_name_puts_it():
    parts = {name: part_of(name) for name in map(str, range(2000))}
    shares = {part: list(parts.values()).count(part) / 2000 for part in ("train", "tune", "held")}
    assert 0.87 < shares["train"] < 0.93 and 0.03 < shares["tune"] < 0.07 and 0.03 < shares["held"] < 0.07
    one, more = (Corpus("", {str(i): str(i) for i in range(count)}) for count in (200, 400))
    assert set(one.part("held")) <= set(more.part("held"))  # other documents move none
    assert one.digest != more.digest


def test_text_of_a_folder_a_file_and_rows(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.md").write_text("one")
    (tmp_path / "c.txt").write_text("\n\n".join(["x" * 3000, "y" * 2000, "z"]))
    (tmp_path / "d.bin").write_text("no text")
    assert corpus_of(tmp_path).documents.keys() == {"a/b.md", "c.txt"}
    assert list(corpus_of(tmp_path / "c.txt").documents.values()) == ["x" * 3000 + "\n\n" + "y" * 2000, "z"]
    assert corpus_of([{"text": "one"}, {"text": " "}]).documents == {"row 0": "one"}
    for wrong in (tmp_path / "none", [{"words": "one"}], 3):
        with pytest.raises(InputError):
            corpus_of(wrong)
    with pytest.raises(InputError, match="must divide"):
        corpus_of([{"text": "one"}]).part("held")


def test_python_ships_text(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "spam.py").write_text('"""Eggs."""')
    (tmp_path / "sums.py").write_text('"""Adds."""\n\ndef add(a, b):\n    """Both."""\n    return a + b\n')
    corpus = python_documentation(tmp_path)
    assert "Python" in corpus.source and len(corpus.documents["topics/assert"]) > 100
    assert corpus.documents["sums.py"] == "Adds.\n\nadd: Both."
    assert not any("test" in name.split("/") for name in corpus.documents)


ROWS = [{"text": f"the {i}th of the rows"} for i in range(100)]


def test_bytes_come_back(tmp_path):
    corpus = corpus_of(ROWS)
    tokens = tokenized(corpus, 256, tmp_path)
    assert bytes(tokens.parts["held"].tolist()).split(b"\0")[:-1] == [t.encode() for t in corpus.part("held")]
    assert tokens.windows("train", 16).shape == (len(tokens.parts["train"]) // 16, 16)
    kept = tokenized(corpus, 256, tmp_path)
    assert all(torch.equal(kept.parts[part], row) for part, row in tokens.parts.items())
    with pytest.raises(OptionError, match="another text or vocabulary"):
        tokenized(corpus, 300, tmp_path)


def test_a_vocabulary_knows_the_training_part_only(tmp_path):
    held = next(f"h{i}" for i in range(100) if part_of(f"h{i}") == "held")
    tune = next(f"t{i}" for i in range(100) if part_of(f"t{i}") == "tune")
    train = next(f"r{i}" for i in range(100) if part_of(f"r{i}") == "train")
    corpus = Corpus("", {train: "abab abab abab " * 9, held: "zqzq zqzq zqzq " * 9, tune: "abab"})
    tokens = tokenized(corpus, 264, tmp_path)
    assert len(tokens.parts["train"]) < 9 * 15 / 3  # merged
    assert len(tokens.parts["held"]) >= 9 * 12  # not merged
    assert tokens.bytes_per_token == pytest.approx(9 * 15 / len(tokens.parts["held"]))


def test_an_order_takes_each_window_once_and_depends_on_seed_and_step_only():
    windows = torch.arange(24).reshape(12, 2)
    order = Order(windows, 4, seed=1)
    epochs = [torch.cat([order.at(step)[:, 0] for step in range(3 * e, 3 * e + 3)]) for e in range(2)]
    assert all(sorted(e.tolist()) == list(range(0, 24, 2)) for e in epochs) and not torch.equal(*epochs)
    assert torch.equal(Order(windows, 4, seed=1).at(5), order.at(5)) and torch.equal(order.at(0), order.at(0))
    assert not torch.equal(Order(windows, 4, seed=2).at(0), order.at(0))
    uneven = Order(windows[:10], 4, seed=1)  # a step may take the end of one epoch and the beginning of the next
    rows = torch.cat([uneven.at(step)[:, 0] for step in range(5)]).tolist()
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(0, 20, 2))


def test_a_recipe_warms_up_and_falls_to_a_tenth():
    recipe = Recipe(steps=100, rate=1.0)
    assert recipe.rate_at(0) == pytest.approx(0.1) and recipe.rate_at(9) == recipe.rate_at(10) == 1.0
    assert recipe.rate_at(100) == pytest.approx(0.1) and recipe.rate_at(55) == pytest.approx(0.55)
    assert [step for step in range(1, 101) if recipe.is_point(step)] == list(range(10, 101, 10))
    assert [step for step in range(1, 4) if Recipe(steps=3, rate=1.0).is_point(step)] == [1, 2, 3]


def test_weight_decay_is_for_the_hosts_matrices():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "resfx": torch.nn.Linear(2, 2)})
    decayed, rest = optimizer_of(model, Recipe(1, 1.0)).param_groups
    assert [id(p) for p in decayed["params"]] == [id(model["a"].weight)] and decayed["weight_decay"] == 0.1
    assert len(rest["params"]) == 3 and rest["weight_decay"] == 0


@pytest.mark.parametrize("host", ["llama", "gpt2"])
def test_a_wider_plain_model_has_the_parameters_asked_for(host):
    size = SIZES["tiny"]
    count = lambda inner: sum(p.numel() for p in build_host(host, size, inner).parameters())
    plain, feature = count(size.inner), count(size.inner + 1) - count(size.inner)
    assert abs(count(wider(host, size, 100_000)) - plain - 100_000) <= feature / 2
    assert wider(host, size, 3) == size.inner
    assert 0.7e6 < plain < 1.3e6


def test_paired_differences_by_hand():
    found = paired({0: 4.0, 1: 6.0, 2: 8.0, 7: 0.0}, {0: 3.0, 1: 4.0, 2: 5.0})
    assert (found.mean, found.seeds) == (2.0, 3)
    assert found.half == pytest.approx(4.303 / math.sqrt(3)) and not found.is_clear
    one = paired({0: 1.0}, {0: 3.0})
    assert (one.mean, one.half, one.is_clear, str(one)) == (-2.0, math.inf, False, "-2.0000")
    assert paired({0: 1.0}, {1: 1.0}) is None


def row(label, losses, plain=(3.0, 3.1, 3.2)):
    results = {seed: {"loss": loss} for seed, loss in enumerate(losses)}
    return Row(label, "scratch", results, {seed: {"loss": loss} for seed, loss in enumerate(plain)})


def test_the_page_says_what_the_intervals_say():
    rows = [row("plain", (3.0, 3.1, 3.2)), row("better", (2.9, 3.0, 3.1001)), row("worse", (3.1, 3.2, 3.3001)),
            row("noise", (2.9, 3.2, 3.2)), row("alone", (1.0,))]  # fmt: skip
    said = _words(rows, rows[1:])
    assert "One seed only of `alone`" in said and "(better than plain) for `better`;" in said
    assert "(worse) for `worse`;" in said and "zero for `noise`." in said and "0.2000 apart" in said
