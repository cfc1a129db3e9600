"""How the new modules of every method start: by ``reset_parameters`` alone, again and again, whatever the host does."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
from torch import nn

import resfx
from resfx.methods.base import Place, methods
from resfx.methods.depth.base import DepthMethod, DepthPlace
from resfx.methods.learned import CopiedNorm, Learned, copied_norm, set_values
from resfx.methods.route.base import RouteMethod, RoutePlace

CPU = torch.device("cpu")
PLACE = {"width": 12, "context_width": 12, "kind": "mlp", "dtype": torch.float32, "device": CPU, "rank": 3}
FORMS = {
    **{name: cls() for name, cls in methods().items()},
    "ddl published": resfx.DDL(start="published", target_bias=True, gate_hidden=6),
    "ddl erase": resfx.DDL(preserve="erase", gate_hidden=6),
    "ddl features": resfx.DDL.repository(mix_per_channel=True),
    "ddl channels": resfx.DDL(value_channels=3),
    "ddl tokens": resfx.DDL(value_channels=2, compress="token", start="published"),
    "hyper static": resfx.HyperConnections(n=3, dynamic=False, readout="learned"),
    "frac static": resfx.FracConnections(m=2, dynamic=False),
    "mhc permutation": resfx.MHC(n=3, mixing="permutation"),
    "mhc orthogonal": resfx.MHC(mixing="orthogonal"),
    "altup same": resfx.AltUp(n=3, choose="same", readout="learned"),
    "altup gemma": resfx.AltUp.gemma3n(start="published"),
    "mhc published": resfx.MHC(start="published", readout="learned"),
    "attnres published": resfx.AttnRes(start="published", block=2),
    "attnres normalized": resfx.AttnRes(normalized=True),
    "lambdas published": resfx.Lambdas(start="published", skips=((0, 2), (1, 2))),
    "delta null": resfx.DeltaAttnRes(null=True, query="normal", start="published"),
    "denseformer published": resfx.DenseFormer(start="published"),
    "elc base": resfx.ELC(variant="base"),
    "elc base published": resfx.ELC(variant="base", start="published"),
    "mudd prepost": resfx.MUDD(prepost=True),
    "mudd published": resfx.MUDD(start="published"),
    "dca printed": resfx.DCA(form="printed", start="published", w_std=0.1),
    "vertical content": resfx.VerticalAttention(routing="content"),
    "read shared": resfx.DepthRead(shared=True),
    "layer scale published": resfx.LayerScale(start="published"),
    "laurel features": resfx.LAuReL(per_feature=True, bound="softmax"),
    "value residual shared": resfx.ValueResidual(form="shared", per_head=True),
    "value residual published": resfx.ValueResidual(start="published", form="dense"),
    "lime published": resfx.LIMe(start="published"),
    "value residual numbers": resfx.ValueResidual(start="published", learned=False),
    "value embedding published": resfx.ValueEmbedding(start="published", gate="scalar"),
    "canon identity": resfx.Canon(residual=False),
    "short conv published": resfx.ShortConv(start="published", bias=True),
    "short swa published": resfx.ShortSWA(start="published"),
}


def built(method, device=CPU):
    """All the modules that a method makes of two places."""
    facts = {**PLACE, "device": device}
    if method.scope == "wide":
        stream = method.build_stream([Place(depth=i, **facts) for i in range(3)])
        return nn.ModuleList(m for m in (stream.expand, *stream.reads, *stream.writes, stream.collapse) if m)
    if isinstance(method, DepthMethod):
        facts |= {"sources": len(method.sources(2, False)), "outputs": len(method.targets(False))}
        place = DepthPlace(depth=0, read=2, last=False, sublayers=2, **facts)
        parts = [method.build(place), method.build_source(place)]
        return nn.ModuleList(m for m in parts if m)
    if isinstance(method, RouteMethod):
        facts |= {"context_width": 40, "sources": len(method.sources(3, 4))}
        place = RoutePlace(depth=0, heads=3, head_dim=4, layer=3, layers=4, vocabulary=7, **facts)
        return nn.ModuleList([method.build(place)])
    norm = copied_norm(trained_norm().to(device)) if method.scope == "sequence" else None
    return nn.ModuleList([method.build(Place(depth=0, heads=2, norm=norm, **facts))])


def trained_norm():
    norm = nn.LayerNorm(12)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 1.5, 12))
    return norm


def owners(module):
    return [m for m in module.modules() if [*m.parameters(recurse=False), *m.buffers(recurse=False)]]


def assert_same_start(again, first):
    """The same tables bit for bit; what is drawn, of the same distribution."""
    for (name, a), b in zip(again.state_dict().items(), first.state_dict().values(), strict=True):
        assert a.isfinite().all(), name
        if torch.equal(a, b):
            continue
        assert b.unique().numel() > 0.5 * b.numel() and bool(b.count_nonzero()), f"{name}: a table, not a draw"
        for size in (torch.Tensor.norm, lambda t: t.abs().max()):
            assert a.numel() == 1 or 0.25 < float(size(a) / size(b)) < 4, name


@pytest.mark.parametrize("name", FORMS)
def test_a_module_starts_again_by_reset_parameters(name):
    torch.manual_seed(0)
    module = built(FORMS[name])
    first = copy.deepcopy(module)
    buffers = [b.clone() for b in module.buffers()]
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
    for owner in owners(module):
        assert isinstance(owner, (Learned, CopiedNorm)), type(owner).__name__
        owner.reset_parameters()
    assert_same_start(module, first)
    assert all(torch.equal(a, b) for a, b in zip(module.buffers(), buffers, strict=True))
    assert not [n for n, p in module.named_parameters() if p.ndim == 0], "sharding refuses scalars"


@pytest.mark.parametrize("name", methods())
def test_as_many_parameters_as_the_table_says(name):
    """The texts are formulas up to the first word in small print: products are written side by side."""
    config = FORMS[name]
    formula = re.split(r",| at | for | a block", config.parameters)[0].replace("^", "**")
    formula = re.sub(r"(?<=[\w)]) (?=[\w(])", "*", formula)
    channels = getattr(config, "n", 4) if config.scope == "wide" else 3
    known = {"d": 12, "n": channels, "m": 4, "l": 3, "i": 2, "t": 3, "C": 4, "K": 12, "heads": 3, "kernel": 4,
             "width": 12, "kv_width": 12, "kv_heads": 3, "vocabulary": 7, "rank": 16}  # fmt: skip
    module = built(config)
    if config.scope == "wide":
        stream = config.build_stream([Place(depth=i, **PLACE) for i in range(3)])
        module = nn.ModuleList([stream.reads[1], stream.writes[1]])
    norms = {id(p) for m in module.modules() if isinstance(m, CopiedNorm) for p in m.parameters()}
    assert sum(p.numel() for p in module.parameters() if id(p) not in norms) == eval(formula, known)


@pytest.mark.parametrize("name", FORMS)
def test_a_module_built_on_meta_starts_after_to_empty(name):
    torch.manual_seed(0)
    want = built(FORMS[name])
    module = built(FORMS[name], torch.device("meta"))
    assert all(p.is_meta for p in module.parameters())
    module.to_empty(device="cpu")
    for owner in owners(module):
        if isinstance(owner, CopiedNorm):  # as the host does with its own, by then
            owner._original = (trained_norm(),)
        owner.reset_parameters()
    assert_same_start(module, want)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_a_save_is_all_that_a_module_without_values_needs(name, assign):
    want = built(FORMS[name])
    module = copy.deepcopy(want).to("meta") if assign else copy.deepcopy(want)
    if not assign:
        torch.use_deterministic_algorithms(True)  # empty tensors are full of NaN then
        try:
            module.to_empty(device="cpu")
        finally:
            torch.use_deterministic_algorithms(False)
    module.load_state_dict(want.state_dict(), assign=assign)
    for (key, a), b in zip(module.named_buffers(), want.buffers(), strict=True):
        alone = a.is_meta and next(module.get_submodule(key.rpartition(".")[0]).parameters(), None) is None
        assert alone or torch.equal(a, b), key  # what has nothing but constants says itself that it is on meta


@pytest.mark.parametrize("name", FORMS)
def test_constants_are_cast_as_what_starts_with_them(name):
    module = built(FORMS[name])
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        want = [b.to(dtype) if b.is_floating_point() else b for b in module.buffers()]
        module.to(dtype)
        assert all(torch.equal(a, b) for a, b in zip(module.buffers(), want, strict=True))
    for owner in owners(module):
        owner.reset_parameters()
    for a, b in zip(module.buffers(), built(FORMS[name]).to(torch.float64).buffers(), strict=True):
        assert torch.allclose(a, b, atol=1e-7)


@pytest.mark.parametrize("name", FORMS)
def test_initialisers_of_hosts_leave_new_modules_alone(name):
    transformers = pytest.importorskip("transformers")
    host = transformers.LlamaModel(transformers.LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8))  # fmt: skip
    module = copy.deepcopy(built(FORMS[name])).to(torch.float32)
    before = copy.deepcopy(module.state_dict())
    for part in module.modules():
        host._init_weights(part)
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_copied_norm_is_the_host_s_with_parameters_of_its_own():
    host = trained_norm()
    norm, x = copied_norm(host), torch.randn(3, 12)
    assert isinstance(norm, nn.LayerNorm) and torch.equal(norm(x), host(x)) and list(norm.children()) == []
    assert norm.state_dict().keys() == host.state_dict().keys()
    with torch.no_grad():
        host.weight.add_(1)
    assert not torch.equal(norm(x), host(x))
    norm.reset_parameters()
    assert torch.equal(norm(x), host(x))
    for other in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm)), norm.to(torch.bfloat16)):
        assert type(other) is type(norm) and all(p._is_hf_initialized for p in other.parameters())
    both = copy.deepcopy(nn.ModuleList([host, copied_norm(host)]))
    assert both[1]._original[0] is both[0], "a copy of the whole follows its own host"


def test_scalars_of_older_saves_are_taken():
    place = Place(width=4, context_width=4, kind="mlp", depth=0, dtype=torch.float32, device=CPU)
    site = resfx.DDL().build(place)
    site.load_state_dict({**site.state_dict(), "mix": torch.tensor(0.7)})
    assert torch.equal(site.mix.detach(), torch.tensor([0.7]))


def test_a_folder_with_scalars_loads(tmp_path):
    from safetensors.torch import load_file, save_file

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.layer = nn.LayerNorm(4), nn.Linear(4, 4)

        def forward(self, x):
            return x + torch.tanh(self.layer(self.norm(x)))

    model, x = Net(), torch.randn(2, 3, 4)
    new = resfx.rewrite(model, "ddl", args=(x,))
    with torch.no_grad():
        new.get_parameter("resfx.ddl.add0.mix").fill_(0.7)
    resfx.save(new, tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.safetensors")
    save_file({k: v.squeeze() if k.endswith("mix") else v for k, v in load_file(file).items()}, file)
    torch.testing.assert_close(resfx.load(tmp_path / "saved", model, args=(x,))(x), new(x))


def test_values_are_set_in_shards_too(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        shard = nn.Parameter(distribute_tensor(torch.zeros(3, 2), init_device_mesh("cpu", (1,)), [Shard(0)]))
        set_values(shard, torch.arange(6).view(3, 2))
        assert torch.equal(shard.full_tensor(), torch.arange(6.0).view(3, 2))
    finally:
        torch.distributed.destroy_process_group()
