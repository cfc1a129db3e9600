"""The operator of a shortcut: function bodies in the file, records, and the torch operator behind them."""

from __future__ import annotations

import onnx
import pytest
import torch
from hosts.made import randomise
from hosts.onnx_models import Stack, batch, fused_nodes, plain, stack
from hosts.onnx_nodes import WAYS, delta_oracle
from torch import nn

import resfx
from resfx.errors import ExportError
from resfx.export import session, to_onnx, verify
from resfx.ops.record import operators

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")


FORMS = [
    resfx.DDL(start="published"),
    resfx.DDL(preserve="erase"),
    resfx.DDL.repository(),
    resfx.DDL(mix_per_channel=True, eps_rule="mean", target="constant", gate_hidden=4),
]


@pytest.mark.every(2)
@pytest.mark.parametrize("config", FORMS, ids=["published", "erase", "repository", "channels"])
def test_forms(config, tmp_path):
    assert to_onnx(stack(config), tmp_path / "m.onnx").nodes["resfx"] == 2


def test_one_body_per_way_of_use(tmp_path):
    first = resfx.rewrite(Stack(alpha=0.5).eval(), "ddl", (batch(),), exclude="blocks.1")
    new = resfx.rewrite(first, resfx.DDL(preserve="erase"), include="blocks.1")
    randomise(new)
    made = to_onnx(new, tmp_path / "m.onnx")
    model = onnx.load(made.path)
    assert sorted(f.overload for f in model.functions) == ["mix_add", "total_add"]
    assert sorted(n.overload for n in fused_nodes(made.path)) == ["mix_add", "total_add"]
    # One way of use needs no overload: then onnx.reference runs the file as it is.
    made = to_onnx(plain(), tmp_path / "m.onnx", check=False)
    assert [f.overload for f in onnx.load(made.path).functions] == [""]


def test_the_body_is_what_runs(tmp_path):
    made = to_onnx(plain(), tmp_path / "m.onnx", check=False)
    model = onnx.load(made.path)
    del model.functions[:]
    bare = tmp_path / "bare.onnx"
    onnx.save(model, bare)
    with pytest.raises(ExportError, match="DeltaShortcut"):
        session(bare, kernels=False)


class Shortcut(nn.Module):
    """The operator alone, as a user's own model may call it."""

    def __init__(self, add: bool, names: tuple[str, ...]) -> None:
        super().__init__()
        self.add, self.names = add, names

    def forward(self, x, f, beta, v, one=None, other=None):
        optional = dict(zip(self.names, (one, other), strict=False))
        return resfx.ops.delta.formula.delta_shortcut(x, f, beta, v, **optional, eps2=1e-3, add=self.add)


HALF_AND_DOUBLE = [(w, d) for w in ("published", "scaled") for d in (torch.float16, torch.bfloat16, torch.float64)]


@pytest.mark.every(2)
@pytest.mark.parametrize(("way", "dtype"), [*((w, torch.float32) for w in WAYS), *HALF_AND_DOUBLE], ids=str)
def test_body_against_the_equation(way, dtype, tmp_path):
    names, add = WAYS[way]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, f = torch.randn(2, 3, 8).to(dtype), torch.randn(2, 3, 8).to(dtype)
    beta, v = torch.rand(2, 3, 1, dtype=wide), torch.randn(2, 3, 1, dtype=wide)
    values = {"mix": torch.tensor(0.7).to(dtype), "total": (x + 0.5 * f)}
    given = [values[n] for n in names]
    made = to_onnx(Shortcut(add, names), tmp_path / "m.onnx", (x, f, beta, v, *given), check=False)
    assert made.nodes["resfx"] == 1
    optional = {n: values[n] if n in names else None for n in ("mix", "total")}
    want = delta_oracle(x, f, beta, v, **optional, eps2=1e-3, add=add)
    feeds = dict(zip(made.inputs, (x, f, beta, v, *given), strict=True))
    # The CPU of ONNX Runtime has no bfloat16 Add.
    backends = ["reference"] if dtype == torch.bfloat16 else ["reference", "onnxruntime"]
    # float32: rounding of a dozen operations. Half types: the sum and the result are rounded, three times eps / 2.
    bound = {torch.float32: 1e-6, torch.float64: 1e-9}.get(dtype, 2 * torch.finfo(dtype).eps) * want.abs().max()
    for backend in backends:
        got = verify.RUNNERS[backend](str(made.path))(["output"], feeds)[0]
        assert got.dtype == dtype and (got.double() - want).abs().max() <= bound


def test_every_record_matches_its_operator():
    records = operators()
    assert ("resfx", "DeltaShortcut") in records
    for record in records.values():
        arguments = {a.name: str(a.type) for a in record.torch_op._schema.arguments}
        lists = [a for a, kind in arguments.items() if kind == "List[Tensor]"]
        many = record.many
        tensors = {p.name for p in record.inputs if not p.many}
        assert bool(lists) == many
        assert tensors == {a for a, kind in arguments.items() if kind in ("Tensor", "Optional[Tensor]")}
        attributes = {a.name for a in record.attributes}
        assert set(arguments) - tensors - set(lists) == attributes - set(record.derived) - {"stash_type"}


OPTIONAL = [(None, None, False), (None, None, True), (torch.tensor(0.3), None, True), (torch.full((4,), 0.3), 1, True)]


@pytest.mark.every(3)
@pytest.mark.parametrize(("mix", "total", "add"), OPTIONAL, ids=["published", "erase", "scalar", "channels"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_torch_operator_is_sound(mix, total, add, dtype):
    x, f, given = (torch.randn(2, 3, 4).to(dtype).requires_grad_() for _ in range(3))
    beta, v = torch.rand(2, 3, 1).requires_grad_(), torch.randn(2, 3, 1).requires_grad_()
    mix = None if mix is None else mix.clone().to(dtype).requires_grad_()
    args = (x, f, beta, v, mix, None if total is None else given, 1e-6, add)
    torch.library.opcheck(torch.ops.resfx.delta_shortcut.default, args)


@pytest.mark.parametrize(("mix", "total", "add"), OPTIONAL, ids=["published", "erase", "scalar", "channels"])
def test_gradients_of_the_torch_operator(mix, total, add):
    x, f, given = (torch.randn(2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    beta, v = (torch.randn(2, 1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    tensors = [x, f, beta, v, *([] if mix is None else [mix.double().requires_grad_()]), *([given] if total else [])]

    def call(x, f, beta, v, mix=None, total=None):
        return torch.ops.resfx.delta_shortcut(x, f, beta, v, mix, total, 1e-3, add)

    assert torch.autograd.gradcheck(call, tensors)
