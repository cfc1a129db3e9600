"""A slice of the ecosystem's table (``make ecosystem``): each kind of tool, on rewritten models of every scope."""

from __future__ import annotations

import itertools

import pytest

from .ecosystem.tool import MODES, Make, tools

CHEAP = (
    "wrapped_block", "removed", "appended", "patched", "seen", "patching", "temporary", "from_meta",
    "functional", "flops", "accelerate_state", "wrapper", "averaged", "copies",
)  # fmt: skip
"""Functions of tools that are tried in every mode."""

ONE = {
    "swapped": "attnres", "parametrized": "ddl", "parametrized_new": "mhc", "backward": "mhc",
    "torchao_weight": "short_swa",
    "accelerate_bf16": "mhc", "per_example": "ddl", "lora": "mhc", "export_saved": "ddl", "jit": "ddl",
    "trainer": "ddl", "first_call": "short_swa", "offload": "attnres", "states": "mhc",
}  # fmt: skip
"""Functions of tools that are tried in one mode."""

CELLS = [pytest.param(*c, marks=pytest.mark.every(5)) for c in itertools.product(CHEAP, MODES)] + list(ONE.items())
REFUSED = {("removed", "attnres"), ("removed", "mhc"), ("jit", "ddl")}
"""What is refused by name."""


@pytest.mark.parametrize(("name", "mode"), CELLS)
@pytest.mark.filterwarnings("ignore")  # of the tools' own
def test_a_tool_acts_on_a_rewritten_model(name, mode):
    from resfx.errors import ResfxError

    found = [one for one in tools(name).values() if one.run.__name__ == name]
    assert found
    for one in found:
        if lacks := one.lacks():
            pytest.skip(lacks)
        if (name, mode) in REFUSED:
            with pytest.raises(ResfxError):
                one.run(Make(mode))
        else:
            one.run(Make(mode))


def test_tools_say_what_they_do():
    assert all(one.name and one.seconds for one in tools().values())
    assert len({one.kind for one in tools().values()}) >= 8
