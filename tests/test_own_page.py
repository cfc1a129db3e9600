"""``docs/own.md`` runs word for word: a method of every scope, and every one of them acts and decodes as it should."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import torch
from hosts.made import randomise

import resfx

PAGE = (Path(__file__).parents[1] / "docs/own.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_every_block_runs_and_its_method_acts(monkeypatch):
    monkeypatch.setattr(resfx, "rewrite", functools.partial(resfx.rewrite, check=False))  # the start is held here
    torch.manual_seed(0)
    names: dict = {}
    for block in BLOCKS:
        exec(compile(block, "docs/own.md", "exec"), names)
        if "new" not in names:
            continue
        new, model, ids = names["new"], names["model"], names["ids"]
        with torch.no_grad():
            start = model(ids).logits
            assert torch.equal(new(ids).logits, start)
            randomise(new, 0.3)
            assert new.new_parameters() and not torch.allclose(new(ids).logits, start, atol=1e-5)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    assert torch.equal(new.generate(ids, **options), new.generate(ids, use_cache=False, **options))
    assert "import resfx\n" in BLOCKS[0] and not re.search(r"from resfx\.methods\.", "".join(BLOCKS))
    assert len(BLOCKS) == 7
