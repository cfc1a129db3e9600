"""Kernel or plain torch, by the table of the cards: an entry changes what runs. Run by ``test_triton.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hosts.triton_kernels import inside

from resfx.ops import choice
from resfx.ops.choice import ANY, TABLE, Choice, chosen, operator_of
from resfx.ops.delta.formula import delta_shortcut
from resfx.ops.register import kernels_for
from resfx.ops.sinkhorn.formula import sinkhorn


def kernel_modules():
    """Every module of kernels, by its name in ``resfx.ops``."""
    ops = Path(choice.__file__).parent
    files = (p for p in ops.rglob("triton*.py") if "def supported(" in p.read_text())
    return [".".join(p.relative_to(ops).with_suffix("").parts) for p in files]


def test_every_operator_with_kernels_has_its_line():
    assert sorted(TABLE) == sorted(map(operator_of, kernel_modules()))
    assert all(ANY in lines for lines in TABLE.values())


def test_a_form_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="inductor"):
        Choice(small="inductor")


def test_a_card_of_its_own_line_goes_before_any_other(monkeypatch):
    monkeypatch.setitem(TABLE, "delta", {ANY: Choice("torch", "torch"), "sm_90": Choice("triton", "torch")})
    small, large = torch.empty(8, 8), torch.empty(2**10, 2**10)
    monkeypatch.setattr(choice, "family", lambda device: "sm_90")
    assert [chosen("delta.triton", [small]), chosen("delta.triton", [small, large])] == ["triton", "torch"]
    monkeypatch.setattr(choice, "family", lambda device: "sm_80")
    assert chosen("delta.triton", [small]) == "torch"
    assert chosen("weighted_sum.triton", [small]) == "triton"


@pytest.mark.skipif(torch.version.hip is not None, reason="of CUDA")
def test_a_family_is_a_compute_capability(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert choice.family.__wrapped__(torch.device("cuda", 0)) == "sm_90"
    assert choice.family(torch.device("cpu")) == ANY


def site(rows):
    x, f = torch.randn(rows, 16), torch.randn(rows, 16)
    return [t.requires_grad_() for t in (x, f, torch.rand(rows, 1), torch.randn(rows, 1), torch.tensor(0.3))]


@inside
def test_an_entry_changes_the_form_that_runs(kernels, monkeypatch):
    from resfx.ops.delta import triton

    launched = []
    for name in ("forward", "gradients"):
        run = getattr(triton, name)
        monkeypatch.setattr(triton, name, lambda *args, name=name, run=run: launched.append(name) or run(*args))
    args = site(4)

    def step():
        launched.clear()
        out = delta_shortcut(*args)
        return [out, *torch.autograd.grad(out.sum(), args)]

    by_kernel = step()
    assert launched == ["forward", "gradients"]
    monkeypatch.setitem(TABLE, "delta", {ANY: Choice(small="torch")})
    by_torch = step()
    assert not launched
    torch.testing.assert_close(by_kernel, by_torch)
    monkeypatch.setattr(choice, "SMALL", 4 * 16)
    step()
    assert launched == ["forward", "gradients"], "a call of 64 elements is a large one now"


@inside
def test_an_entry_holds_for_the_operator_and_for_kernels_called_elsewhere(kernels, monkeypatch):
    args = [a.detach() for a in site(4)]
    call = (*args, None, 1e-10, True)
    assert kernels_for("delta.triton", call) and kernels_for("sinkhorn.triton", (torch.randn(2, 4, 4), 20, 0))
    for operator in ("delta", "sinkhorn"):
        monkeypatch.setitem(TABLE, operator, {ANY: Choice("torch", "torch")})
    want = torch.ops.resfx.delta_shortcut(*call)
    assert kernels_for("delta.triton", call) is None and torch.allclose(delta_shortcut(*args), want)
    assert kernels_for("sinkhorn.triton", (torch.randn(2, 4, 4), 20, 0)) is None
    assert sinkhorn(torch.randn(2, 4, 4)).shape == (2, 4, 4)
