"""What code does beside its results: attributes, logs, tables and states are as the original leaves them."""

from __future__ import annotations

import collections
import functools
import types
from typing import Any

import pytest
import torch
from hosts.small import Block, Net, batch, net
from torch import Tensor, nn

import resfx

TABLE: dict[int, Tensor] = {}


class Branch(Block):
    def __init__(self):
        super().__init__()
        self.count, self._steps, self.log, self.table = 0, 0, [], {}

    def branch(self, x):
        return self.down(self.act(self.up(self.norm(x))))


class Kept(Branch):
    def forward(self, x):
        f = self.branch(x)
        self.aux = f.square().mean()
        self.size = x.shape[1]
        return x + f


class Counted(Branch):
    def forward(self, x):
        self.count += 1
        self._steps += 2
        return x + self.branch(x) * self.count / self._steps


class Logged(Branch):
    def forward(self, x):
        self.log.append(x)
        return x + self.branch(x)


class Tabled(Branch):
    """A size as the key: one capture for each."""

    def forward(self, x):
        n = x.shape[1]
        if n not in self.table:
            self.table[n] = torch.arange(n, dtype=x.dtype)[:, None] / 10
        return x + self.branch(x + self.table[n])


class Stepping(Branch):
    """In place: a tracer takes what follows for a copy of the buffer onto itself."""

    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        self.steps += 1
        return x + self.branch(x) * self.steps


def host(block: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    model.blocks = nn.ModuleList(block() for _ in range(2))
    return model.eval()


def left(model: nn.Module) -> list[Any]:
    """What the blocks hold after some calls, one of them with gradients."""
    out = [model(batch()), model(batch(2, 3)), model(batch()[:, :1])]
    out[-1].sum().backward()
    for b in model.blocks:
        out += [b.count, b._steps, [x.shape for x in b.log], list(b.table), getattr(b, "aux", None),
                getattr(b, "size", None), *b.log, *b.table.values(), *b.buffers()]  # fmt: skip
    return out


@pytest.mark.every(2)
@pytest.mark.parametrize("block", [Kept, Counted, Logged, Tabled, Stepping])
@pytest.mark.parametrize("mode", ["ddl", "attnres"])
def test_what_a_block_does_beside_its_result_is_done(block, mode):
    new = resfx.rewrite(host(block), mode, args=(batch(),))
    for a, b in zip(left(host(block)), left(new), strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def test_what_cannot_be_done_is_named():
    class Shrinks(Branch):
        def forward(self, x):
            self.log.clear()
            return x + self.branch(x)

    model = host(Shrinks)
    model.blocks[0].log = ["before"]
    with pytest.warns(UserWarning, match=r"blocks\.0 changes 'log'"):
        resfx.rewrite(model, "ddl", args=(batch(),))


class State:
    def __init__(self, x, n=0):
        self.x, self.n = x, n


WRAPS: dict[str, Any] = {
    "object": lambda x, s: State(x, 1 if s is None else s.n + 1), "namespace": lambda x, s: types.SimpleNamespace(x=x),
    "user dict": lambda x, s: collections.UserDict(x=x), "ordered": lambda x, s: collections.OrderedDict(x=x),
    "one object": lambda x, s: State(x) if s is None else (setattr(s, "x", x), setattr(s, "n", s.n + 1), s)[-1],
}  # fmt: skip


@pytest.mark.parametrize("how", WRAPS)
def test_a_state_goes_through_the_blocks(how):
    read = lambda s: s["x"] if hasattr(s, "keys") else s.x

    class Through(Branch):
        def forward(self, s):
            x = read(s)
            return WRAPS[how](x + self.branch(x), s)

    class Host(Net):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Through() for _ in range(2))

        def forward(self, x):
            s = WRAPS[how](self.inp(x), None)
            for block in self.blocks:
                s = block(s)
            return self.out(read(s)), getattr(s, "n", 0)

    new = resfx.rewrite(net(Host), "ddl", args=(batch(),))
    for x in (batch(), batch(2, 3)):
        assert torch.equal(new(x)[0], net(Host)(x)[0]) and new(x)[1] == net(Host)(x)[1]


@functools.cache
def slopes(n: int) -> Tensor:
    return torch.arange(float(n))


class Tables(Branch):
    last: Any = None

    def branch(self, x):
        n = int(x.shape[1])
        if n not in TABLE:
            TABLE[n] = torch.arange(n)[:, None] / 10
        Tables.last = x.detach()
        return super().branch(x) + TABLE[n] + slopes(x.shape[-1])

    def forward(self, x):
        return x + self.branch(x)


def test_no_tensor_of_a_trace_stays_in_a_table_of_the_file():
    def real() -> bool:
        found = [*TABLE.values(), slopes(8), *([] if Tables.last is None else [Tables.last])]
        return all(type(t) is Tensor for t in found)

    new = resfx.rewrite(host(Tables), "ddl", args=(batch(),))
    assert real()
    for x in (batch(2, 7), batch(2, 3)):  # captures that nobody ran before
        TABLE.clear()
        slopes.cache_clear()
        assert torch.equal(new(x), host(Tables)(x)) and real()


def test_attributes_and_generators_are_as_before_a_rewrite():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.generator, self.seen = torch.Generator().manual_seed(1), []

        def forward(self, x):
            self.last = x
            self.seen.append(x)
            return x * torch.rand(x.shape, generator=self.generator)

    models = [net() for _ in range(2)]
    for model in models:
        model.out = Noisy()
    model, twin = models
    new = resfx.rewrite(model, "ddl", args=(batch(),))
    assert new.out.seen == model.out.seen == [] and not hasattr(new.out, "last")
    want = twin(batch())
    assert torch.equal(new(batch()), want) and torch.equal(model(batch()), want)
