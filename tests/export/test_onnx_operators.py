"""Fused ONNX nodes one by one: function body and kernel against float64 renderings of the equations."""

from __future__ import annotations

import math

import onnx
import pytest
import torch
from hosts.onnx_nodes import DTYPES, FLOAT, node, reference, run, tolerance
from packaging.version import Version

from resfx.ops.record import operators

RECENT = Version(onnx.__version__) >= Version("1.23")  # its reference evaluator refused bfloat16 in MatMul before
HALF = (torch.float16, torch.bfloat16)


def held(tmp_path, library, op: str, given, want, dtype, evaluated: bool = True, **attributes) -> None:
    """Body in ONNX Runtime and in the reference evaluator, and kernel, against ``want`` in float64."""
    path, record = tmp_path / f"{op}.onnx", operators()["resfx", op]
    stash = {"stash_type": FLOAT[torch.float64 if dtype == torch.float64 else torch.float32]}
    feeds = node(path, op, given, dtype, **attributes, **stash)
    assert set(attributes) | set(stash) == {a.name for a in record.attributes}
    results = {"kernel": run(path, feeds, kernels=library)[0]}
    if evaluated:
        results["reference"] = reference(path, feeds)[0]
    if dtype != torch.bfloat16:  # the runtime's CPU has few bfloat16 kernels
        results["body"] = run(path, feeds, kernels=False)[0]
    for name, got in results.items():
        assert got.dtype == dtype and got.shape == want.shape, name
        off = (got.double() - want).abs().max()
        assert off <= record.roundings * tolerance(dtype, want), f"{name}: {off}"


def draw(*shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("per_token", [False, True], ids=["static", "per token"])
@pytest.mark.parametrize("based", [False, True], ids=["alone", "on a base"])
def test_weighted_sum(based, per_token, dtype, library, tmp_path):
    for count in (1, 3):
        sources = [draw(2, 5, 33, dtype=dtype) for _ in range(count)]
        weights = draw(*((2, 5) if per_token else ()), count, dtype=wide(dtype))
        base = draw(2, 5, 33, dtype=dtype) if based else None
        want = sum(weights.double()[..., j, None] * s.double() for j, s in enumerate(sources))
        want = want if base is None else base.double() + want
        held(tmp_path, library, "WeightedSum", [weights, base, *sources], want, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["published", "preserve", "gated"])
def test_attention_read(form, dtype, library, tmp_path):
    sources, query = [draw(2, 5, 33, dtype=dtype) for _ in range(3)], 0.3 * draw(33, dtype=dtype)
    base = None if form == "published" else draw(2, 5, 33, dtype=dtype)
    gate = torch.tensor(0.3, dtype=dtype) if form == "gated" else None
    values = torch.stack(sources).double()
    keys = values / (values.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    weights = (keys @ query.double()).softmax(0).unsqueeze(-1)
    if form == "preserve":
        weights = len(sources) * weights - 1
    want = (weights * values).sum(0) * (1 if gate is None else gate.double()) + (0 if base is None else base.double())
    given = [query, base, gate, *sources]
    held(tmp_path, library, "AttentionRead", given, want, dtype, eps=1e-3, relative=int(form == "preserve"))


def test_an_attention_read_keeps_its_start(library, tmp_path):
    """A zero query leaves the base as it is, bit for bit, however many sources there are."""
    for dtype in (torch.float32, torch.bfloat16):
        for count in (2, 3, 7):
            base, sources = draw(4, 33, dtype=dtype), [draw(4, 33, dtype=dtype) for _ in range(count)]
            given = [torch.zeros(33, dtype=dtype), base, None, *sources]
            feeds = node(tmp_path / "m.onnx", "AttentionRead", given, dtype, eps=1e-6, relative=1, stash_type=1)
            assert torch.equal(run(tmp_path / "m.onnx", feeds, kernels=library)[0], base)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_windowed_attention_row(dtype, library, tmp_path):
    q, keys = draw(2, 5, 3, 8, dtype=dtype), [draw(2, 5, 3, 8, dtype=dtype) for _ in range(4)]
    values = [draw(2, 5, 3, 6, dtype=dtype) for _ in range(4)]
    for scale in (0.375, 0.0):
        logits = torch.einsum("...d,n...d->n...", q.double(), torch.stack(keys).double())
        weights = ((scale or 8**-0.5) * logits).softmax(0)
        want = (weights.unsqueeze(-1) * torch.stack(values).double()).sum(0)
        held(tmp_path, library, "WindowedAttentionRow", [q, *keys, *values], want, dtype, scale=scale)


def window_oracle(q, k, v, mask, window: int, causal: bool, chunk: bool, scale: float) -> torch.Tensor:
    """One query at a time, in float64."""
    groups, past = q.shape[1] // k.shape[1], k.shape[2] - q.shape[2]
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=torch.float64)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for t in range(q.shape[2]):
                i = t + past
                low = i // window * window if chunk else i - (window - 1 if causal else window // 2)
                high = i if causal else low + window - 1
                reads = [j for j in range(max(low, 0), min(high + 1, k.shape[2])) if mask is None or mask[b, j]]
                if reads:
                    keys, values = k[b, h // groups, reads].double(), v[b, h // groups, reads].double()
                    out[b, h, t] = (scale * keys @ q[b, h, t].double()).softmax(0) @ values
    return out


WINDOWS = [  # window, causal, chunk, queries, positions, heads, key heads, mask
    (4, 1, 0, 37, 37, 4, 4, False),
    (4, 1, 0, 37, 37, 4, 2, True),
    (20, 1, 0, 45, 45, 2, 1, False),
    (5, 0, 0, 33, 33, 2, 2, True),
    (1, 1, 0, 7, 7, 2, 2, False),
    (6, 1, 0, 1, 6, 2, 2, False),  # one step of decoding
    (6, 1, 0, 3, 20, 2, 2, True),
    (6, 1, 0, 3, 4, 2, 1, False),
    (50, 1, 0, 9, 9, 2, 2, False),
    (4, 1, 1, 18, 18, 2, 1, True),
    (4, 0, 1, 18, 18, 2, 2, False),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", WINDOWS, ids=str)
def test_windowed_attention(case, dtype, library, tmp_path):
    window, causal, chunk, size, length, heads, shared, masked = case
    if dtype in HALF and length > 20:
        pytest.skip("half types are tested on the shorter cases, whose sums round less")
    q = draw(2, heads, size, 8, dtype=dtype)
    k, v = draw(2, shared, length, 8, dtype=dtype), draw(2, shared, length, 6, dtype=dtype)
    mask = torch.rand(2, length) < 0.6 if masked else None
    scale = 0.375 if masked else 0.0  # zero asks for the usual one
    want = window_oracle(q, k, v, mask, window, bool(causal), bool(chunk), scale or 8**-0.5)
    attributes = {"window": window, "causal": causal, "chunk": chunk, "scale": scale}
    evaluated = RECENT or dtype != torch.bfloat16
    held(tmp_path, library, "WindowedAttention", [q, k, v, mask], want, dtype, evaluated, **attributes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["per token", "static", "per feature", "plain", "with unit", "features with unit"])
def test_combine_channels(form, dtype, library, tmp_path):
    n, d, centred = 3, 33, int(form != "plain")
    state, shape = draw(2, 5, n, d, dtype=dtype), {"static": (n, 1)}.get(form, (2, 5, n, 1))
    shape = (n, d) if "feature" in form else shape
    weights = 1 / n + 0.1 * draw(*shape, dtype=wide(dtype))
    unit = None
    if "unit" in form:
        unit = 1 + 0.1 * draw(*((d,) if "feature" in form else (2, 5, 1)), dtype=wide(dtype))
    total, x = weights.double().sum(-2), state.double()
    given_unit = 1 if unit is None else unit.double()
    # What sums to `unit` is taken to sum to one: the excess goes to the first channel.
    want = (weights.double() * x).sum(-2) + centred * (1 - given_unit) * x[..., 0, :]
    assert total.shape[-1] in (1, d)
    held(tmp_path, library, "CombineChannels", [state, weights, unit], want, dtype, centred=centred)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["static", "per token", "unit", "no matrix"])
def test_mix_channels(form, dtype, library, tmp_path):
    n, d = 3, 33
    state, f = draw(2, 5, n, d, dtype=dtype), draw(2, 5, d, dtype=dtype)
    lead = () if form == "static" else (2, 5)
    write, matrix = draw(*lead, n, dtype=wide(dtype)), draw(*lead, n, n, dtype=wide(dtype))
    if form == "unit":
        matrix = matrix.softmax(-1)
    want = write.double().unsqueeze(-1) * f.double().unsqueeze(-2)
    want = want + (state.double() if form == "no matrix" else matrix.double() @ state.double())
    given = [state, f, write, None if form == "no matrix" else matrix]
    held(tmp_path, library, "MixChannels", given, want, dtype, unit=int(form == "unit"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("mixed", "add", "erase"), [("", 0, 1), ("scalar", 1, 1), ("features", 1, 1), ("", 1, 0)])
def test_delta_write(mixed, add, erase, dtype, library, tmp_path):
    n, d = 3, 33
    state, f = draw(2, 5, n, d, dtype=dtype), draw(2, 5, d, dtype=dtype)
    beta, v = torch.rand(2, 5, 1).to(wide(dtype)), draw(2, 5, n, dtype=wide(dtype))
    mix = {"": None, "scalar": torch.tensor(0.7).to(dtype), "features": torch.rand(d).to(dtype)}[mixed]
    direction = f.double() / (f.double().square().sum(-1, keepdim=True) + 1e-3).sqrt()
    change = v.double() - erase * torch.einsum("btd,btnd->btn", direction, state.double())
    update = (beta.double() * change).unsqueeze(-1) * direction.unsqueeze(-2)
    if mix is not None:
        update = mix.double() * (update - f.double().unsqueeze(-2))
    want = state.double() + add * f.double().unsqueeze(-2) + update
    given = [state, f, beta, v, mix]
    held(tmp_path, library, "DeltaWrite", given, want, dtype, eps2=1e-3, add=add, erase=erase)


def sinkhorn_oracle(logits: torch.Tensor, iterations: int, newton: int) -> torch.Tensor:
    """Rounds, then Newton's method with a dense solver, in float64."""
    m = (logits.double() - logits.double().amax((-2, -1), keepdim=True)).clamp_min(-40).exp()
    for _ in range(iterations):
        m = m / m.sum(-2, keepdim=True)
        m = m / m.sum(-1, keepdim=True)
    for _ in range(newton):
        left = torch.diag_embed(m.sum(-2)) - m.transpose(-1, -2) @ m
        right = (1 - m.sum(-2))[..., :-1, None]
        step = torch.linalg.solve(left[..., :-1, :-1], right).squeeze(-1).clamp(-4, 4)
        m = m * torch.nn.functional.pad(step, (0, 1)).exp().unsqueeze(-2)
        m = m / m.sum(-1, keepdim=True)
    return m


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("newton", [0, 3])
def test_sinkhorn(newton, dtype, library, tmp_path):
    for size in (2, 4):
        logits = 2 * draw(2, 5, size, size, dtype=dtype)
        logits[0, 0, 1, 0] = -200 if newton == 0 else 0
        want = sinkhorn_oracle(logits, 6, newton)
        held(tmp_path, library, "Sinkhorn", [logits], want, dtype, iterations=6, newton=newton, size=size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("kernel", "silu", "bias", "based"), [(4, 1, True, True), (4, 0, False, False), (1, 1, False, True)]
)
def test_short_convolution(kernel, silu, bias, based, dtype, library, tmp_path):
    d, size = 33, 11
    x, weight = draw(2, size + kernel - 1, d, dtype=dtype), draw(d, kernel, dtype=dtype) / math.sqrt(kernel)
    offset, base = draw(d, dtype=dtype) if bias else None, draw(2, size, d, dtype=dtype) if based else None
    want = torch.nn.functional.conv1d(
        x.double().transpose(1, 2), weight.double().unsqueeze(1), None if offset is None else offset.double(), groups=d
    ).transpose(1, 2)
    want = torch.nn.functional.silu(want) if silu else want
    want = want if base is None else base.double() + want
    given = [x, weight, offset, base]
    held(tmp_path, library, "ShortConvolution", given, want, dtype, silu=silu, kernel=kernel)


def test_exponentials_and_extremes(library, tmp_path):
    """Scores far apart, infinite or not numbers do in a kernel what they do in the body."""
    k = torch.tensor([0.0, -1e30, 80.0, -90.0, 1e30, -math.inf, math.nan])[:, None, None].expand(-1, 2, 4)
    keys, values = list(k.contiguous().unsqueeze(2)), [draw(2, 1, 4) for _ in range(7)]
    for use in ([0, 1], [0, 3], [2, 4], [0, 2, 3], [0, 5], [1, 5], [0, 6]):
        given = [torch.full((2, 1, 4), 0.25), *[keys[i] for i in use], *[values[i] for i in use]]
        feeds = node(tmp_path / "m.onnx", "WindowedAttentionRow", given, torch.float32, scale=1.0, stash_type=1)
        got, want = (run(tmp_path / "m.onnx", feeds, kernels=lib)[0] for lib in (library, False))
        torch.testing.assert_close(got, want, equal_nan=True)


def test_torch_operators_are_what_they_say():
    """Schema and fake tensors of every operator that is there to be one node; none of them has gradients."""
    x, state, f = torch.randn(2, 7, 6), torch.randn(2, 5, 3, 6), torch.randn(2, 5, 6)
    q = torch.randn(2, 4, 9, 8)
    calls = {
        "windowed_attention_node": (q, q[:, :2], q[:, :2], torch.rand(2, 9) < 0.5, 4, True, False, 0.0),
        "windowed_attention_row_node": (q, [q, q + 1], [q[..., :5], q[..., 3:]], 0.5),
        "short_convolution_node": (x, torch.randn(6, 3), torch.randn(6), torch.randn(2, 5, 6), True),
        "combine_channels": (state, torch.rand(3, 1), None, True),
        "mix_channels": (state, f, torch.rand(3), torch.rand(2, 5, 3, 3), True),
        "delta_write": (state, f, torch.rand(2, 5, 1), torch.rand(2, 5, 3), torch.tensor(0.3), 1e-6, True, True),
        "sinkhorn": (torch.randn(2, 5, 3, 3), 4, 2),
    }

    named = {r.torch_name.split("::")[1] for r in operators().values()}
    assert set(calls) == named - {"delta_shortcut", "weighted_sum", "attention_read"}  # tested with their kernels
    for name, args in calls.items():
        operator = getattr(torch.ops.resfx, name).default
        torch.library.opcheck(operator, args, test_utils=("test_schema", "test_faketensor"))
