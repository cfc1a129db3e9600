"""Deep Delta Learning with a matrix state: oracles that need no model."""

from __future__ import annotations

import pytest
import torch

from resfx import DDL
from resfx.methods.base import Place
from resfx.methods.wide.ddl_wide import ChannelCompressor, EmbedConv, TokenCompressor
from resfx.ops.delta.formula import delta_shortcut

WIDTH, N = 12, 4


def place(block="b", **changes):
    settings = {"width": WIDTH, "context_width": WIDTH, "kind": "mlp", "dtype": torch.float64, "rank": 3, "depth": 0}
    return Place(device=torch.device("cpu"), block=block, **{**settings, **changes})


def randomised(module, std=0.5):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(std * torch.randn(parameter.shape, generator=generator).to(parameter))
    return module


def inputs(n=N, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype)
    return draw(2, 6, n, WIDTH), draw(2, 6, WIDTH), draw(2, 6, WIDTH), draw(2, 6, WIDTH)


def whole(compress, X, **kwargs):
    """A compressor and, where it has one, what follows it."""
    out = compress(X)
    return compress.over_tokens()(out, **kwargs) if hasattr(compress, "over_tokens") else out


def written(config, gates=None):
    """``(X, f, X', beta, v)`` of one write with random gates."""
    X, f, x, c = inputs(config.value_channels)
    write = randomised(config.build_stream([place()]).writes[0])
    return X, f, write(X, f, x, c, None), *write.gates(x, f, c)


def along(f, X):
    return torch.einsum("btd,btnd->btn", f / f.norm(dim=-1, keepdim=True), X)


def test_a_write_is_one_scalar_update_per_channel_with_a_shared_gate():
    X, f, out, beta, v = written(DDL(value_channels=N, start="published"))
    assert v.shape == (2, 6, N) and beta.shape == (2, 6, 1)
    for j in range(N):
        alone = delta_shortcut(X[:, :, j], f, beta, v[..., j : j + 1], add=False)
        assert (out[:, :, j] - alone).abs().max() < 1e-14


def test_the_readout_error_shrinks_by_one_minus_beta_and_the_rest_stays():
    X, f, out, beta, v = written(DDL(value_channels=N, start="published", eps=1e-12))
    assert ((along(f, out) - v) - (1 - beta) * (along(f, X) - v)).abs().max() < 1e-12
    k = (f / f.norm(dim=-1, keepdim=True)).unsqueeze(-2)
    rest = lambda Y: Y - (Y * k).sum(-1, keepdim=True) * k
    assert (rest(out) - rest(X)).abs().max() < 1e-12


def test_write_only_adds_and_erases_nothing():
    X, f, out, beta, v = written(DDL(value_channels=N, start="published", eps=1e-12, write_only=True))
    assert (along(f, out) - along(f, X) - beta * v).abs().max() < 1e-12
    moved = written(DDL(value_channels=N, start="published", eps=1e-12))[2]
    assert (out - moved).abs().max() > 0.1
    count = lambda c: sum(p.numel() for p in c.build_stream([place()]).writes[0].parameters())
    assert count(DDL(value_channels=N, write_only=True)) == count(DDL(value_channels=N))


def test_only_the_direction_of_the_branch_counts():
    config = DDL(value_channels=N, start="published", eps=1e-12)
    X, f, x, c = inputs()
    write = randomised(config.build_stream([place()]).writes[0])
    assert (write(X, f, x, c, None) - write(X, 7.5 * f, x, c, None)).abs().max() < 1e-12


def test_interpolation_ends_at_the_published_write():
    X, f, x, c = inputs()
    kept = DDL(value_channels=N).build_stream([place()]).writes[0]
    published = DDL(value_channels=N, start="published").build_stream([place()]).writes[0]
    published.load_state_dict({k: v for k, v in kept.state_dict().items() if k != "mix"})
    assert torch.equal(kept(X, f, x, c, None), X + f.unsqueeze(-2))
    with torch.no_grad():
        kept.mix.fill_(1)
    assert (kept(X, f, x, c, None) - published(X, f, x, c, None)).abs().max() < 1e-14


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_convolution_and_read_are_one_weighting_of_the_channels(n):
    compress = randomised(ChannelCompressor(DDL(value_channels=n), place()))
    X = inputs(n)[0]
    left = (n - 1) // 2
    rows = torch.nn.functional.pad(X.transpose(-1, -2).reshape(-1, WIDTH, n), (left, n - 1 - left))
    conv = torch.nn.functional.conv1d(rows, compress.kernel.unsqueeze(1), groups=WIDTH)
    want = torch.einsum("rdn,n->rd", conv, compress.read).view(2, 6, WIDTH)
    assert (compress(X) - want).abs().max() < 1e-13
    weights = torch.stack(compress.weights(torch.float64), -1)
    assert (torch.einsum("dn,btnd->btd", weights, X) - want).abs().max() < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("compress", [ChannelCompressor, TokenCompressor])
def test_a_compressor_starts_as_the_identity_on_equal_channels(compress, n, dtype):
    module = compress(DDL(value_channels=n), place(dtype=dtype))
    x = torch.randn(2, 9, WIDTH, dtype=dtype)
    assert torch.equal(whole(module, x.unsqueeze(-2).expand(2, 9, n, WIDTH)), x)
    entry = EmbedConv(DDL(value_channels=n, embed_conv=True), place(dtype=dtype))
    assert torch.equal(entry(x), x.unsqueeze(-2).expand(2, 9, n, WIDTH))


def test_convolutions_over_tokens_are_causal_with_four_taps():
    module = randomised(TokenCompressor(DDL(value_channels=N), place()))
    entry = randomised(EmbedConv(DDL(value_channels=N, embed_conv=True), place()))
    pulse = torch.zeros(1, 12, WIDTH, dtype=torch.float64)
    pulse[:, 5] = 1
    for out in (whole(module, pulse.unsqueeze(-2).expand(1, 12, N, WIDTH)), entry(pulse).flatten(-2)):
        touched = out.abs().sum(-1)[0] > 0
        assert touched.tolist() == [5 <= t <= 8 for t in range(12)]


@pytest.mark.parametrize("pieces", [(1,) * 9, (2, 1, 5, 1), (7, 2)])
def test_tokens_in_pieces_give_what_the_whole_gives(pieces):
    module = randomised(TokenCompressor(DDL(value_channels=N), place()))
    entry = randomised(EmbedConv(DDL(value_channels=N, embed_conv=True), place()))
    x = torch.randn(2, sum(pieces), WIDTH, dtype=torch.float64)
    mask = torch.ones(2, sum(pieces))
    mask[1, :3] = 0  # left padding
    X, parts = entry(x, mask), []
    total, state, kept, start = module.over_tokens(), None, None, 0
    for size in pieces:
        now = slice(start, start + size)
        wide, state = entry(x[:, now], mask[:, : start + size], state, keep=True)
        assert (wide - X[:, now]).abs().max() < 1e-14
        out, kept = total(module(wide), mask[:, : start + size], kept, keep=True)
        parts.append(out)
        assert kept[0].shape == state[0].shape == (2, 3, WIDTH), "one channel is kept, not the state"
        start += size
    want = whole(module, X, mask=mask)
    assert (torch.cat(parts, 1) - want).abs().max() < 1e-13
    assert (want[1, 3:] - whole(module, entry(x[1:, 3:]))[0]).abs().max() < 1e-13, "as if it were not padded"


@pytest.mark.parametrize("compress", ["channel", "token"])
def test_sharing_and_parameter_counts(compress):
    places = [place("one"), place("one"), place("two"), place("two")]
    config = DDL(value_channels=N, compress=compress, start="published")
    stream = config.build_stream(places)
    assert [r is None for r in stream.reads] == [False, True, False, True]
    count = lambda module: sum(p.numel() for p in module.parameters())
    taps = 1 if compress == "channel" else config.token_kernel
    assert count(stream.reads[0]) == count(stream.collapse) == taps * WIDTH * N + N
    assert count(stream.writes[0]) == (N + 1) * WIDTH + 1
    each = DDL(value_channels=N, compress=compress, share_compressor="sublayer").build_stream(places)
    assert all(r is not None for r in each.reads)
    assert count(EmbedConv(DDL(value_channels=N, embed_conv=True), place())) == 4 * WIDTH * N


def test_published_compressors_are_random_and_reads_average():
    compress = ChannelCompressor(DDL(value_channels=N, start="published"), place(width=4096))
    assert (compress.read == 0.25).all()
    assert abs(float(compress.kernel.detach().std()) - 0.5 / 64) < 5e-4


def test_scope_follows_the_channels():
    assert DDL().scope == "site" and DDL(value_channels=2).scope == "wide"
    assert DDL(value_channels=2).name == "ddl"
    recipe = DDL(value_channels=2, compress="token").to_dict()
    recipe.pop("method")
    assert DDL(**recipe) == DDL(value_channels=2, compress="token")
    assert DDL(**recipe).over_tokens and not DDL(value_channels=2, embed_conv=False).over_tokens


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"value_channels": 0}, "value_channels"), ({"value_channels": 2.0}, "value_channels"),
        ({"compress": "token"}, "value_channels of at least 2"), ({"write_only": True}, "value_channels of at least 2"),
        ({"value_channels": 2, "compress": "both"}, "compress"),
        ({"value_channels": 2, "token_kernel": 1}, "token_kernel"),
        ({"value_channels": 2, "target": "constant"}, "never differ"),
        ({"value_channels": 2, "share_compressor": "model"}, "share_compressor"),
    ],
)  # fmt: skip
def test_bad_settings_say_what_is_allowed(settings, message):
    with pytest.raises(ValueError, match=message):
        DDL(**settings)
