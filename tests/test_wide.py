"""Widened streams on real architectures: an exact start, float64 references, what is wide and what is not."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import wide_references
from conftest import randomise, rewritten
from hosts import BY_NAME, HOSTS, LAYERS, VOCAB, WIDTH, tokens
from torch import nn

import resfx
from resfx import DDL, MHC, HyperConnections
from resfx.errors import ConflictError, NoSitesError, VariantError
from resfx.passes.check import tensors_of

CC, TC = DDL(value_channels=4), DDL(value_channels=4, compress="token", embed_conv=True)
METHODS = {
    "mhc": MHC(),
    "hyper": HyperConnections(),
    "channel": CC,
    "token": TC,
    "mhc 2": MHC(n=2, sinkhorn_iterations=5, sinkhorn_newton=0),
    "mhc 3": MHC(n=3, readout="learned"),
    "static": HyperConnections(n=3, dynamic=False),
    "linear": HyperConnections(n=2, tanh=False, norm="rms", readout="learned"),
    "erase": DDL(value_channels=2, preserve="erase", share_compressor="sublayer"),
    "write": DDL(value_channels=3, write_only=True, embed_conv=True),
    "repository": DDL.repository(value_channels=4, compress="token"),
}
DEFAULT = [("mhc", "gpt2"), ("hyper", "llama"), ("channel", "t5"), ("token", "vit"), ("mhc", "bert")]
ALL = [(m, h.name) for m in METHODS for h in HOSTS]
REFERENCED = ["gpt2", "llama", "qwen3", "gpt_neox", "vit", "t5", "bert", "nanogpt"]
REFERENCES = [(m, h) for m in METHODS if m not in ("mhc 3", "static", "linear") for h in REFERENCED]


def both(default, everything):
    """The default cases now; all the others in the matrix."""
    rest = [c for c in everything if c not in default]
    return [pytest.param(*c, id="-".join(c)) for c in default] + [
        pytest.param(*c, id="-".join(c), marks=pytest.mark.matrix) for c in rest
    ]


def equal(a, b) -> bool:
    left, right = tensors_of(a), tensors_of(b)
    return len(left) == len(right) > 0 and all(torch.equal(x, y) for x, y in zip(left, right, strict=True))


def loss_of(output):
    floats = [t for t in tensors_of(output) if t.is_floating_point() and t.requires_grad]
    return sum((t * torch.cos(torch.arange(t.numel()) + 1.0).view(t.shape).to(t)).sum() for t in floats)


@pytest.mark.parametrize(("method", "host"), both(DEFAULT, ALL))
def test_start_is_exact_and_each_stream_is_one_run(method, host):
    model, new, inputs = rewritten(host, METHODS[method])
    assert equal(model(**inputs), new(**inputs))
    other = BY_NAME[host].inputs(3, 5)
    captured = len(new.variants)
    assert equal(model(**other), new(**other))
    assert len(new.variants) == captured, "batch and sequence are dynamic"
    assert [s.method for s in new.report.sites] == [METHODS[method].name] * BY_NAME[host].sites
    names = [n for n, _ in new.named_modules()]
    assert sum(n.endswith(".expand") for n in names) == BY_NAME[host].streams
    assert sum(n.endswith(".collapse") for n in names) == BY_NAME[host].streams


@pytest.mark.parametrize(("method", "host"), both([("mhc", "llama"), ("token", "gpt2")], ALL))
def test_start_is_exact_in_bfloat16(method, host):
    model = BY_NAME[host].make().bfloat16()
    inputs = {k: v.bfloat16() if torch.is_tensor(v) and v.is_floating_point() else v
              for k, v in BY_NAME[host].inputs(2, 6).items()}  # fmt: skip
    new = resfx.rewrite(model, METHODS[method], kwargs=inputs)
    assert {p.dtype for p in new.new_parameters().values()} == {torch.bfloat16}
    assert equal(model(**inputs), new(**inputs))


@pytest.mark.parametrize(("method", "host"), both([("hyper", "gpt2"), ("channel", "t5")], ALL))
def test_start_is_exact_in_training_with_the_same_seed(method, host):
    model, new, inputs = rewritten(host, METHODS[method])
    model.train(), new.train()
    try:
        torch.manual_seed(3)
        want = model(**inputs)
        torch.manual_seed(3)
        got = new(**inputs)
        assert equal(want, got)
        names = [n for n, p in model.named_parameters() if p.requires_grad]
        before = torch.autograd.grad(loss_of(want), [model.get_parameter(n) for n in names], allow_unused=True)
        after = torch.autograd.grad(loss_of(got), [new.get_parameter(n) for n in names], allow_unused=True)
    finally:
        model.eval(), new.eval()
    for key, a, b in zip(names, before, after, strict=True):
        assert (a is None) == (b is None), key
        # Equal channels share a gradient that is summed in another order: rounding, no more.
        assert a is None or (a - b).abs().max() <= 2e-5 * a.abs().max() + 1e-6, key


def paths_by_stream(new):
    paths: dict[int, list[str]] = {}
    for site in new.report.changed:
        paths.setdefault(site.stream, []).append(f"resfx.{new._resfx.applications[0].key}.{site.owner}.add{site.order}")
    return paths


def by_reference(config, host, model, inputs, new):
    streams, finish = wide_references.take_apart(host, model, inputs)
    reference_weights = dict(new.new_parameters())
    paths, outs = paths_by_stream(new), []
    for i, stream in enumerate(streams):
        x, sublayers = stream(outs)
        reference = wide_references.reference_for(config, reference_weights)
        outs.append(wide_references.run_stream(reference, x, sublayers, paths[i]))
    return finish(outs)


@pytest.mark.parametrize(
    ("method", "host"),
    both([("mhc", "gpt2"), ("hyper", "vit"), ("channel", "bert"), ("token", "t5"), ("hyper", "gpt_neox"),
          ("mhc", "llama"), ("write", "qwen3")], REFERENCES),
)  # fmt: skip
def test_forward_and_every_gradient_against_the_papers_in_float64(method, host):
    config = METHODS[method]
    model = BY_NAME[host].make().double()
    inputs = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v
              for k, v in BY_NAME[host].inputs(2, 6).items()}  # fmt: skip
    new = resfx.rewrite(model, config, kwargs=inputs)
    randomise(new, 0.3)
    got, want = tensors_of(new(**inputs))[0], by_reference(config, host, model, inputs, new)
    assert (got - tensors_of(model(**inputs))[0]).abs().max() > 1e-3, "the rewrite must act"
    # Root-mean-square norms of these hosts run in float32, whatever the model's type.
    tolerance = 1e-6 if host in ("llama", "qwen3", "t5") else 1e-12
    assert (got - want).abs().max() <= tolerance * want.abs().max()
    parameters = dict(new.named_parameters())
    a = torch.autograd.grad(loss_of(got), list(parameters.values()), allow_unused=True)
    b = torch.autograd.grad(loss_of(want), list(parameters.values()), allow_unused=True)
    largest = max(float(g.abs().max()) for g in b if g is not None)
    for key, x, y in zip(parameters, a, b, strict=True):
        x, y = (torch.zeros_like(parameters[key]) if g is None else g for g in (x, y))
        assert (x - y).abs().max() <= 10 * tolerance * largest, key
        assert not key.startswith("resfx.") or x.abs().max() > 0, key


def train(new, inputs, steps=20):
    target = torch.randint(0, VOCAB, (2, 7), generator=torch.Generator().manual_seed(5))
    optimizer = torch.optim.Adam(new.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        logits = tensors_of(new(**inputs))[0].float()
        if logits.dim() == 3:
            loss = nn.functional.cross_entropy(logits[:, : target.shape[1]].flatten(0, 1), target.flatten())
        else:
            loss = nn.functional.cross_entropy(logits, target[:, 0] % logits.shape[-1])
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def spread_at_exit(new, inputs):
    """How far apart the channels are where a stream collapses, relative to their size."""
    seen = []
    collapse = next(m for n, m in new.named_modules() if n.endswith(".collapse"))
    handle = collapse.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    new(**inputs)
    handle.remove()
    return float(seen[0].std(-2).mean() / seen[0].abs().mean())


@pytest.mark.parametrize(
    ("method", "host"),
    both([("mhc", "gpt2"), ("hyper", "gpt2"), ("channel", "gpt2"), ("token", "vit")], ALL),
)
def test_training_lowers_the_loss_and_separates_the_channels(method, host):
    model, kept, inputs = rewritten(host, METHODS[method])
    new = copy.deepcopy(kept)
    assert spread_at_exit(new, inputs) == 0
    frozen = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses = train(new, inputs)
    for name, value in frozen.items():  # the parameters are the original's; other tests want them as they were
        model.get_parameter(name).data.copy_(value)
    assert losses[-1] < 0.9 * losses[0]
    assert spread_at_exit(new, inputs) > 1e-4


@pytest.mark.parametrize("method", ["mhc", "hyper", "channel", "token"])
def test_a_token_does_not_see_later_ones(method):
    new = copy.deepcopy(rewritten("gpt2", METHODS[method])[1])
    randomise(new, 0.3)
    ids = tokens(2, 9)
    changed = ids.clone()
    changed[:, 5] = (changed[:, 5] + 1) % VOCAB
    a, b = (tensors_of(new(input_ids=x, use_cache=False))[0] for x in (ids, changed))
    assert torch.equal(a[:, :5], b[:, :5])
    assert (a[:, 5:] - b[:, 5:]).abs().amax((0, 2)).min() > 0


@pytest.mark.parametrize("method", [pytest.param("mhc", marks=pytest.mark.matrix), "token"])
def test_generate_with_its_cache(method):
    model, kept, _ = rewritten("llama", METHODS[method])
    ids = tokens(2, 6)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0  # left padding
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": mask, "eos_token_id": None}
    assert torch.equal(model.generate(ids, **options), kept.generate(ids, **options))
    new = copy.deepcopy(kept)
    randomise(new, 2.0 if method == "mhc" else 0.5)
    cached = new.generate(ids, use_cache=True, **options)
    assert torch.equal(cached, new.generate(ids, use_cache=False, **options))
    assert not torch.equal(cached, model.generate(ids, **options))


def test_hidden_states_handed_out_are_collapsed():
    host = BY_NAME["gpt2"]
    model = host.make()
    inputs = {**host.inputs(2, 7), "output_hidden_states": True}
    new = resfx.rewrite(model, MHC(), kwargs=inputs)
    want, got = model(**inputs).hidden_states, new(**inputs).hidden_states
    assert len(got) == len(want) == LAYERS + 1
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
    randomise(new, 0.3)
    states = []
    for name, module in new.named_modules():
        if name.endswith(".write"):
            module.register_forward_hook(lambda _, args, out: states.append(out))
    got = new(**inputs).hidden_states
    assert (got[1] - states[1].mean(-2)).abs().max() < 1e-6
    assert (got[1] - want[1]).abs().max() > 1e-3


def test_an_add_left_out_stays_a_plain_add_between_two_wide_streams():
    host = BY_NAME["gpt2"]
    model, inputs = host.make(), host.inputs(2, 7)
    new = resfx.rewrite(model, MHC(), kwargs=inputs, include="transformer.h.*")
    assert len(new.report.changed) == 4
    three = nn.Sequential(*[Mlp(False) for _ in range(5)]).eval()
    x = torch.randn(2, 6, WIDTH)
    part = resfx.rewrite(three, HyperConnections(), args=(x,), exclude="2")
    assert [bool(s.method) for s in part.report.sites] == [True, True, False, True, True]
    entries = [n for n, _ in part.named_modules() if n.endswith(".expand")]
    assert entries == ["resfx.hyper_connections.0.add0.expand", "resfx.hyper_connections.3.add0.expand"]
    randomise(part, 0.3)
    randomised = {k: v.double() for k, v in part.new_parameters().items()}
    y = x.double()
    for pair in (("0", "1"), ("2",), ("3", "4")):
        layers = [three[int(i)].double() for i in pair]
        subs = [wide_references.Sublayer(m.norm, m.branch) for m in layers]
        if pair == ("2",):
            y = y + subs[0].branch(subs[0].norm(y))
            continue
        reference = wide_references.reference_for(HyperConnections(), randomised)
        y = wide_references.run_stream(reference, y, subs, [f"resfx.hyper_connections.{i}.add0" for i in pair])
    three.float()
    assert (part(x) - y).abs().max() < 1e-5


class Mlp(nn.Module):
    """Parallel branches ``(x + f) + g`` through one norm or two, or one branch; a scaled shortcut."""

    def __init__(self, parallel, shared=True, scale=1.0):
        super().__init__()
        self.parallel, self.scale = parallel, scale
        self.norm = nn.LayerNorm(WIDTH)
        self.second = self.norm if shared else nn.LayerNorm(WIDTH)
        self.branch = nn.Sequential(nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, WIDTH))
        self.other = nn.Sequential(nn.Linear(WIDTH, 48), nn.Tanh(), nn.Linear(48, WIDTH))

    def forward(self, x):
        if self.parallel:
            c = self.norm(x)
            return (x + self.branch(c)) + self.other(c if self.second is self.norm else self.second(x))
        x = x if self.scale == 1 else x * self.scale
        return x + self.branch(self.norm(x))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("config", [MHC(), HyperConnections(n=3), CC], ids=["mhc", "hyper", "channel"])
def test_parallel_branches_added_one_after_the_other_are_one_site(config, shared):
    torch.manual_seed(0)
    model = nn.Sequential(*[Mlp(True, shared) for _ in range(2)]).double().eval()
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    new = resfx.rewrite(model, config, args=(x,))
    assert [s.form for s in new.report.changed] == ["identity", "parallel"] * 2
    assert torch.equal(model(x), new(x))
    randomise(new, 0.3)
    reference = wide_references.reference_for(config, dict(new.new_parameters()))
    key = new._resfx.applications[0].key
    X = reference.enter(x, f"resfx.{key}.0.add0")
    for i, block in enumerate(model):
        first, second = (f"resfx.{key}.{i}.add{j}" for j in (0, 1))
        h, memo = reference.read(X, first, i == 0)
        c = block.norm(h)
        f, g = block.branch(c), block.other(block.second(h))
        if isinstance(config, DDL):
            X = reference.write(X, f, h, c, first, memo)
            X = reference.write(X, g, h, block.second(h), second, memo)
        else:
            X = reference.write(X, f + g, h, c, first, memo)
    want = reference.leave(X, f"resfx.{key}.1.add1")
    assert (new(x) - want).abs().max() < 1e-12


def test_a_scaled_shortcut_scales_every_channel():
    torch.manual_seed(0)

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Mlp(False) for _ in range(3))

        def forward(self, x):
            for layer in self.layers:
                x = 0.7 * x + layer.branch(layer.norm(x))
            return x

    model, x = Scaled().double().eval(), torch.randn(2, 5, WIDTH, dtype=torch.float64)
    new = resfx.rewrite(model, MHC(), args=(x,))
    assert [s.form for s in new.report.changed] == ["scaled"] * 3
    assert torch.equal(model(x), new(x))
    assert sum(n.endswith(".expand") for n, _ in new.named_modules()) == 1
    randomise(new, 0.3)
    reference = wide_references.reference_for(MHC(), dict(new.new_parameters()))
    paths = [f"resfx.mhc.(root).add{i}".replace("(root).", "") for i in range(3)]
    X = reference.enter(x, paths[0])
    for i, (layer, path) in enumerate(zip(model.layers, paths, strict=True)):
        h, memo = reference.read(X, path, i == 0)
        X = reference.write(0.7 * X, layer.branch(layer.norm(h)), h, None, path, memo)
    assert (new(x) - X.mean(-2)).abs().max() < 1e-12


def test_what_stands_between_two_adds_runs_on_every_channel():
    """A norm written out, a reshape and an activation between the adds: at once, or channel by channel."""
    torch.manual_seed(0)

    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Mlp(False) for _ in range(3))
            self.gain = nn.Parameter(torch.rand(WIDTH) + 0.5)

        def tidy(self, x, i):
            if i == 0:
                return self.gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
            return torch.relu(x.reshape(x.shape[0], -1).view(x.shape))

        def forward(self, x):
            for i, layer in enumerate(self.layers):
                x = self.tidy(x + layer.branch(x), i)
            return x

    model, x = Between().double().eval(), torch.randn(2, 5, WIDTH, dtype=torch.float64)
    new = resfx.rewrite(model, HyperConnections(), args=(x,))
    assert len(new.report.changed) == 3
    assert sum(n.endswith(".expand") for n, _ in new.named_modules()) == 1
    assert torch.equal(model(x), new(x))
    randomise(new, 0.3)
    reference = wide_references.reference_for(HyperConnections(), dict(new.new_parameters()))
    subs = [wide_references.Sublayer(lambda h: h, layer.branch, lambda h, i=i: model.tidy(h, i))
            for i, layer in enumerate(model.layers)]  # fmt: skip
    want = wide_references.run_stream(reference, x, subs, [f"resfx.hyper_connections.add{i}" for i in range(3)])
    assert (new(x) - want).abs().max() < 1e-12


def test_streams_that_cannot_be_widened_say_why():
    class Conv(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            return x + self.conv(self.norm(x))

    model, x = nn.Sequential(Conv(), Conv()).eval(), torch.randn(2, 8, 6, 6)
    with pytest.raises(NoSitesError, match="last axis"):
        resfx.rewrite(model, MHC(), args=(x,))
    flat = nn.Sequential(Mlp(False), Mlp(False))
    with pytest.raises(NoSitesError, match="tokens"):
        resfx.rewrite(flat, TC, args=(torch.randn(5, WIDTH),))
    new = resfx.rewrite(flat, CC, args=(torch.randn(5, WIDTH),))
    with pytest.raises(ConflictError, match="ddl rewrote it already"):
        resfx.rewrite(new, MHC())


def test_a_wide_stream_leaves_no_room_for_reads_over_depth_or_later_mixers():
    host = BY_NAME["gpt2"]
    _, wide, inputs = rewritten("gpt2", MHC())
    with pytest.raises(ConflictError, match="mhc rewrote it already"):
        resfx.rewrite(wide, "denseformer")
    with pytest.raises(ConflictError, match="denseformer rewrote it already"):
        resfx.rewrite(host.make(), ["denseformer", MHC()], kwargs=inputs)
    with pytest.raises(VariantError, match="in one call"):
        resfx.rewrite(wide, "short_swa")
    assert equal(wide(**inputs), host.make()(**inputs))


def test_convolutions_over_tokens_continue_from_the_cache():
    from transformers import DynamicCache

    model, kept, _ = rewritten("llama", TC)
    new = copy.deepcopy(kept)
    randomise(new, 0.3)
    ids = tokens(2, 9)
    cache, parts = DynamicCache(config=model.config), []
    for piece in ids.split((4, 1, 1, 3), 1):
        parts.append(new(piece, past_key_values=cache, use_cache=True).logits)
    whole = new(ids, use_cache=False).logits
    assert (torch.cat(parts, 1) - whole).abs().max() < 1e-5 * whole.abs().max()
    state = [t for layer in cache.layers if type(layer).__name__ == "ShortState" for t in layer.tensors]
    # The entry, a read at each add and the read-out; each three vectors of one channel.
    assert [tuple(t.shape) for t in state] == [(2, 3, WIDTH)] * (1 + 2 * LAYERS + 1)


def test_mixers_over_positions_are_branches_of_the_wide_stream():
    from resfx import ShortSWA

    host = BY_NAME["gpt2"]
    model, inputs = host.make(), host.inputs(2, 7)
    new = resfx.rewrite(model, [ShortSWA(), MHC()], kwargs=inputs)
    assert equal(model(**inputs), new(**inputs))
    names = [n for n, _ in new.named_modules()]
    assert sum(n.endswith(".expand") for n in names) == 1
    assert sum(n.endswith(".write") for n in names) == 3 * LAYERS
    randomise(new, 0.3)
    ids = tokens(2, 6)
    options = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(ids), "eos_token_id": None}
    cached = new.generate(ids, use_cache=True, **options)
    assert torch.equal(cached, new.generate(ids, use_cache=False, **options))


@pytest.mark.parametrize(
    "method", ["mhc 2", "token", *(pytest.param(m, marks=pytest.mark.matrix) for m in ("mhc", "hyper", "channel"))]
)
def test_compiles_whole(method):
    new = copy.deepcopy(rewritten("nanogpt", METHODS[method])[1])
    randomise(new, 0.3)
    idx = tokens(2, 7)
    run = torch.compile(new, backend="aot_eager", fullgraph=True)
    want, got = new(idx), run(idx)
    assert (want - got).abs().max() <= 1e-5 * want.abs().max()
    parameters = list(new.new_parameters().values())
    a = torch.autograd.grad(loss_of(want), parameters)
    b = torch.autograd.grad(loss_of(got), parameters)
    assert all((x - y).abs().max() <= 1e-4 * x.abs().max() + 1e-6 for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("method", ["mhc", "token"])
def test_save_and_load(method, tmp_path):
    model, kept, inputs = rewritten("gpt2", METHODS[method])
    new = copy.deepcopy(kept)
    randomise(new, 0.3)
    resfx.save(new, tmp_path / "saved")
    again = resfx.load(tmp_path / "saved", model)
    assert again._resfx.applications[0].method == METHODS[method]
    assert equal(new(**inputs), again(**inputs))


@pytest.mark.parametrize("config", [MHC(), HyperConnections(), CC, TC], ids=["mhc", "hyper", "channel", "token"])
def test_recompute_changes_no_number_and_keeps_less(config):
    torch.manual_seed(0)
    model, x = nn.Sequential(Mlp(False), Mlp(False)).bfloat16(), torch.randn(2, 9, WIDTH, dtype=torch.bfloat16)
    results, kept = [], []
    for recompute in (False, True):
        torch.manual_seed(1)
        new = resfx.rewrite(model, dataclasses.replace(config, recompute=recompute), args=(x,))
        randomise(new, 0.3)
        saved = {}

        def keep(t, saved=saved):
            saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            output = new(x)
        kept.append(sum(saved.values()))
        results.append([output, *torch.autograd.grad(loss_of(output), list(new.new_parameters().values()))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert kept[1] < kept[0]


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.parametrize(
    "config",
    [MHC(n=2, sinkhorn_iterations=2), pytest.param(HyperConnections(), marks=pytest.mark.matrix),
     pytest.param(TC, marks=pytest.mark.matrix), pytest.param(CC, marks=pytest.mark.matrix)],
)  # fmt: skip
def test_onnx_runtime_computes_the_same(config, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(2, 6, WIDTH)
    new = resfx.rewrite(nn.Sequential(Mlp(False), Mlp(False)).eval(), config, args=(x,))
    randomise(new, 0.3)
    exported = resfx.export.to_onnx(new, tmp_path / "wide.onnx", args=(x,))
    assert set(exported.differences) == {"onnxruntime", "reference"}
    assert max(exported.differences.values()) < 1e-4
