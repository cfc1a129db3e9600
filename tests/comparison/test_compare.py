"""Before and after: how the clock is used, what is left unchanged, what is said when a backend cannot."""

from __future__ import annotations

import json
import random
import sys

import numpy as np
import pytest
import torch
from hosts.made import rewritten
from torch import nn

import resfx
from resfx import Comparison, compare
from resfx.comparison.measure import Inputs, Runner, differ, interleave, operator_count, peak_memory, quartiles
from resfx.comparison.result import Measured, Row, comparison_text
from resfx.comparison.runners import loss_of, runner_on

QUICK = {"repeats": 3, "warmup": 1, "progress": False}
MIB = 2**20


SEEN: list[tuple[bool, bool]] = []


class Noisy(nn.Module):
    """Everything that a step can disturb: dropout, running statistics, Python's and NumPy's generators."""

    def __init__(self):
        super().__init__()
        self.into, self.norm, self.drop = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.register_buffer("steps", torch.zeros(()))
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        SEEN.append((self.training, torch.is_grad_enabled()))
        self.steps += 1
        random.random()
        np.random.rand()
        return x + self.drop(self.norm(self.into(x)))


def runner(name, log):
    return Runner(lambda: log.append(name), lambda: log.append(f"ready {name}"))


def clock(run):
    run.ready()
    run.step()
    return 1.0


def test_rounds_are_interleaved_and_swap_who_goes_first():
    log: list[str] = []
    a, b = interleave(runner("A", log), runner("B", log), clock, repeats=4, warmup=2)
    steps = [x for x in log if not x.startswith("ready")]
    assert "".join(steps) == "AB" + "BA" + "AB" + "BA" + "AB" + "BA"
    assert all(log[i - 1] == f"ready {x}" for i, x in enumerate(log) if not x.startswith("ready"))
    assert len(a) == len(b) == 4


def test_a_time_limit_stops_after_three_rounds_at_the_earliest():
    a, b = interleave(runner("A", []), runner("B", []), clock, repeats=1000, warmup=0, seconds=0.0)
    assert len(a) == len(b) == 3


def test_compare_interleaves_the_models_it_is_given():
    order = []
    models = [nn.Linear(2, 2), nn.Linear(2, 2)]
    for name, model in zip("AB", models, strict=True):
        model.register_forward_pre_hook(lambda m, x, name=name: order.append(name))
    compare(*models, (torch.zeros(1, 2),), backends=("eager",), modes=("forward",), repeats=4, warmup=0, progress=False)
    timed = "".join(order)
    assert "ABBAABBA" in timed and timed.count("A") == timed.count("B")


def test_a_difference_below_the_spread_is_not_claimed():
    steady, slower = [1.0, 1.01, 0.99, 1.0], [1.5, 1.51, 1.49, 1.5]
    assert differ(steady, slower) and differ(slower, steady)
    assert not differ(steady, steady)
    assert not differ([1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0])
    assert not differ([1.0], [9.0])  # one sample has no known spread
    assert not differ([1.0, 1.0, 1.0, 5.0, 5.0, 5.0], [5.6, 5.6, 5.6, 5.6])  # apart, but less than one is wide
    noise = Row("eager", "forward", Measured(steady, 0.1), Measured([1.0, 1.02, 1.0, 1.01], 0.1))
    real = Row("eager", "train", Measured(steady, 0.1), Measured(slower, 0.1))
    text = comparison_text(Comparison(("A", "B"), (10, 11), None, [noise, real], SETTING))
    lines = [line for line in text.splitlines() if " after " in line]
    assert "within noise" in lines[0] and "within noise" not in lines[1] and "1.50" in lines[1]


SETTING = {"inputs": ["float32[1]"], "device": "cpu", "threads": 1, "torch": "2", "memory": "cpu allocator"}


def test_quartiles_are_numpys():
    samples = list(np.random.default_rng(0).random(17))
    assert np.allclose(quartiles(samples), np.percentile(samples, [25, 50, 75]))
    assert quartiles([2.0]) == (2.0, 2.0, 2.0)


def test_both_models_are_left_as_they_were():
    SEEN.clear()
    model, other = Noisy(), Noisy()
    model.norm.eval()
    model.into.weight.grad = torch.ones(8, 8)
    given = torch.randn(4, 8, requires_grad=True)
    before = {k: v.clone() for m in (model, other) for k, v in m.state_dict(prefix=f"{id(m)}").items()}
    grads = [
        (p, p.grad, None if p.grad is None else p.grad.clone()) for p in (*model.parameters(), *other.parameters())
    ]
    buffers = [b for m in (model, other) for b in m.buffers()]
    flags = [m.training for top in (model, other) for m in top.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()

    result = compare(model, other, (given,), backends=("eager", "compiled:nothing"), **QUICK)

    assert [bool(r.after) for r in result.rows] == [True, True, False, False]
    assert set(SEEN) == {(False, False), (True, True)}  # it did run, in eval and in training mode
    assert model.seen == other.seen == []
    after = {k: v for m in (model, other) for k, v in m.state_dict(prefix=f"{id(m)}").items()}
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(p.grad is g and (g is None or torch.equal(g, copy)) for p, g, copy in grads)
    assert all(a is b for a, b in zip(buffers, [b for m in (model, other) for b in m.buffers()], strict=True))
    assert flags == [m.training for top in (model, other) for m in top.modules()]
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
    assert states[2] == np.random.get_state()[1].tolist()
    assert given.grad is None


def test_a_train_step_really_goes_backward():
    model = nn.Linear(4, 4)
    grads = []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: grads.append(p.grad.abs().sum().item()))
    with runner_on("eager", model, Inputs((torch.randn(2, 4),), {}), "train") as run:
        seen = len(grads)
        run.step()
    assert len(grads) == seen + 2 and all(g > 0 for g in grads)
    assert all(p.grad is None for p in model.parameters())


def test_the_loss_is_the_models_own_where_it_has_one():
    x = torch.ones(3, requires_grad=True)
    own = (x * 2).sum()
    assert loss_of({"logits": x * 1, "loss": own}, {}) is own
    assert loss_of((x * 1, own), {}) is own
    weights: dict[int, torch.Tensor] = {}
    value = loss_of((x * 1, torch.zeros(2), x * 2), weights)
    expected = torch.cos(torch.arange(3.0))
    assert torch.allclose(value, 3 * expected.sum()) and len(weights) == 2
    with pytest.raises(resfx.errors.ExportError, match="no output"):
        loss_of(torch.zeros(3), {})


def test_peak_memory_and_operators_of_a_known_step():
    x = torch.zeros(1024, 1024)  # 4 MiB

    def step():
        a = x + 1.0
        b = a * a
        del a
        return (b - x).sum()

    cpu = torch.device("cpu")
    assert 8 * MIB <= peak_memory(Runner(step), cpu) < 8 * MIB + 4096
    assert operator_count(Runner(step)) == 4


def test_caches_are_fresh_in_every_step():
    class Cache:
        def __init__(self):
            self.seen = [torch.zeros(1)]

    cache = Cache()
    inputs = Inputs((torch.ones(1),), {"cache": cache})
    inputs.kwargs["cache"].seen.append(torch.ones(1))
    inputs.renew()
    assert len(inputs.kwargs["cache"].seen) == len(cache.seen) == 1
    assert inputs.args[0] is not inputs.tensors[0]


@pytest.fixture(scope="module")
def nano_result(tmp_path_factory):
    model, new, inputs = rewritten("nanogpt")
    folder = tmp_path_factory.mktemp("compare")
    files = {"json": folder / "c.json", "plot": folder / "c.png"}
    return compare(model, new, kwargs=inputs, backends=("eager", "compiled:eager"), **QUICK, **files), files


def test_a_comparison_of_a_rewrite(nano_result):
    result, _ = nano_result
    _, new, inputs = rewritten("nanogpt")
    assert [(r.backend, r.mode) for r in result.rows] == [
        (b, m) for b in ("eager", "compiled:eager") for m in ("forward", "train")
    ]
    assert result.parameters[1] - result.parameters[0] == sum(p.numel() for p in new.new_parameters().values())
    assert result.tokens == inputs["idx"].numel()
    assert result.names == ("NanoGPT", "NanoGPT + ddl")
    for row in result.rows:
        assert row.reason == "" and row.ratio > 0
        for measured in (row.before, row.after):
            assert len(measured.samples) == 3 and min(measured.samples) > 0 and measured.first > 0
            assert measured.memory > 0 and measured.nodes > 0
        assert row.after.nodes > row.before.nodes  # a delta shortcut is more than an add
    forward, train = result.rows[0], result.rows[1]
    assert train.before.nodes > forward.before.nodes and train.before.memory > forward.before.memory
    text = str(result)
    assert "tokens/s" in text and "peak MiB" in text and "NanoGPT -> NanoGPT + ddl" in text and "3 rounds" in text


def test_json_round_trip(nano_result):
    result, files = nano_result
    data = json.loads(files["json"].read_text())
    assert data == result.to_dict()
    assert str(Comparison.from_dict(data)) == str(result)
    with pytest.raises(ValueError, match="version"):
        Comparison.from_dict({**data, "version": 99})


def test_plots(nano_result, tmp_path):
    result, files = nano_result
    assert files["plot"].read_bytes()[:4] == b"\x89PNG"
    result.plot(tmp_path / "c.svg")
    text = (tmp_path / "c.svg").read_text()
    assert text.count("<svg") == 1 and "compiled" in text
    Comparison(("a", "b"), (1, 1), None, [Row("eager", "forward", reason="broken")], SETTING).plot(
        tmp_path / "none.png"
    )
    assert (tmp_path / "none.png").exists()


def test_without_matplotlib_the_error_says_what_to_install(nano_result, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(resfx.errors.MissingPackageError, match=r"resfx\[bench\]"):
        nano_result[0].plot("never.png")


class Stubborn(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        if self.training:
            raise RuntimeError("no training today\nsecond line")
        return x + self.linear(x)


def test_what_fails_costs_its_own_row_and_says_why():
    x = torch.zeros(1, 2)
    result = compare(nn.Linear(2, 2), Stubborn(), (x,), backends=("eager", "compiled:no_such_backend"), **QUICK)
    good, training, compiled, _ = result.rows
    assert good.after is not None
    assert training.after is None and training.reason == "after: RuntimeError: no training today"
    assert compiled.after is None and "no_such_backend" in compiled.reason
    text = str(result)
    assert "not measured" in text and "no training today" in text
    assert result.to_dict()["rows"][1]["ratio"] is None


def test_without_onnxruntime_the_row_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    x = torch.zeros(1, 2)
    forward, train = compare(nn.Linear(2, 2), nn.Linear(2, 2), (x,), backends=("onnxruntime",), **QUICK).rows
    assert "onnxruntime" in forward.reason and "resfx[onnx]" in forward.reason
    assert "inference only" in train.reason


def test_onnxruntime_is_measured():
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))
    (row,) = compare(model, model, (torch.randn(3, 8),), backends=("onnxruntime",), modes=("forward",), **QUICK).rows
    assert row.reason == "" and row.after.nodes == row.before.nodes > 0
    assert row.after.memory is None and row.after.first > row.after.median


@pytest.mark.matrix
def test_inductor_is_measured_with_its_compile_time_apart():
    model, new = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.GELU())
    (row,) = compare(model, new, (torch.randn(3, 8),), backends=("compiled",), modes=("forward",), **QUICK).rows
    assert row.reason == ""
    assert row.after.first > 10 * row.after.median and (row.before.nodes, row.after.nodes) == (1, 2)


def test_inputs_come_from_the_rewrite_when_none_are_given():
    model, new, inputs = rewritten("nanogpt")
    result = compare(model, new, backends=("eager",), modes=("forward",), **QUICK)
    assert result.setting["inputs"] == [f"int64{list(inputs['idx'].shape)}"]
    with pytest.raises(resfx.errors.ExportError, match="without inputs"):
        compare(nn.Linear(2, 2), nn.Linear(2, 2))


def test_images_have_no_tokens():
    net = nn.Conv2d(3, 3, 1)
    result = compare(net, net, (torch.zeros(1, 3, 4, 4),), backends=("eager",), modes=("forward",), **QUICK)
    assert result.tokens is None and "tokens/s" not in str(result)


@pytest.mark.parametrize(
    "bad", [{"backends": ("tpu",)}, {"backends": "eager"}, {"modes": ("infer",)}, {"modes": ()}, {"repeats": 0}]
)
def test_bad_options_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        compare(nn.Linear(2, 2), nn.Linear(2, 2), (torch.zeros(1, 2),), **bad)


def test_progress_is_one_line_per_step_on_the_error_stream(capfd):
    net, x = nn.Linear(2, 2), torch.zeros(1, 2)
    options = {"backends": ("eager",), "modes": ("forward",), "repeats": 3, "warmup": 0}
    compare(net, net, (x,), **options)
    out, err = capfd.readouterr()
    assert out == "" and [line.split(": ")[1].split(",")[0] for line in err.splitlines()][:3] == [
        "preparing before", "preparing after", "measuring",
    ]  # fmt: skip
    assert len(err.splitlines()) == 4 and " ms -> " in err
    compare(net, net, (x,), **options, progress=False)
    assert capfd.readouterr() == ("", "")
