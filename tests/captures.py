"""Architectures that are hard to trace, as a table: ``python -m tests.captures`` writes ``docs/captures.md``."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch

import resfx
from resfx.errors import ResfxError
from resfx.passes.find.reasons import UNTRACED

from .zoo.entry import expected
from .zoo.table import BY_NAME

PAGE = Path(__file__).parents[1] / "docs" / "captures.md"
HARD = (
    "MixtralForCausalLM MixtralForCausalLM:eager Qwen2MoeForCausalLM:eager Qwen3MoeForCausalLM"
    " Qwen3MoeForCausalLM:eager DeepseekV3ForCausalLM:eager OlmoeForCausalLM:eager GraniteMoeForCausalLM"
    " JambaForCausalLM NllbMoeModel SwitchTransformersModel LongcatFlashForCausalLM OpenAIPrivacyFilterModel"
    " LongformerModel LEDModel BigBirdForCausalLM BigBirdPegasusModel ReformerModelWithLMHead FunnelModel IBertModel"
    " Wav2Vec2Model:train Wav2Vec2ConformerModel Wav2Vec2BertModel AutoformerModel InformerModel MambaForCausalLM"
    " Zamba2ForCausalLM FSMTModel ViltModel MimiModel"
).split()
"""Names of the zoo; behind a colon, ``eager``: experts in a loop, ``train``: in training, with layers left out."""

HEAD = f"""# What can be captured

Architectures whose code is hard to trace: loops over experts by value, chunks by value, layers left out at random. The
tracer follows their code or, where it cannot, takes a module as it is: one that adds to no stream, in one piece
(*taken as it is*: these classes). A whole model is refused where neither works. Made by `python -m tests.captures`
(torch {torch.__version__.split("+")[0]}); every architecture that was tried is in [zoo.md](zoo.md).

| architecture | expected | found | taken as it is | why not captured |
|---|---|---|---|---|
"""


def row(name: str) -> str:
    """One line of the table."""
    entry, way = BY_NAME[name.partition(":")[0]], name.partition(":")[2]
    model, call = entry.make()
    if way == "eager":
        model.set_experts_implementation("eager")
    model.train(way == "train")
    want = expected(model, entry.blocks).total()
    label = {"": entry.name, "eager": f"{entry.name}, experts in a loop", "train": f"{entry.name} in training"}[way]
    try:
        report = resfx.scan(model, kwargs=call)
    except ResfxError as error:
        return f"| {label} | {want} | - | - | {_text(error.found)} |\n"
    whole = {type(model.get_submodule(s.owner)).__name__ for s in report.skips if s.reason.startswith(UNTRACED)}
    return f"| {label} | {want} | {len(report.sites)} | {', '.join(sorted(whole)) or '-'} | |\n"


def _text(found: str) -> str:
    short = re.sub(r"\S*/site-packages/", "", found).partition(" (")[0]
    return " ".join(short.replace("|", "/").split())


def main() -> None:
    """Write the page."""
    torch.set_num_threads(1)
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in HARD:
            rows.append(row(name))
            print(rows[-1], end="", flush=True)
    PAGE.write_text(HEAD + "".join(rows))


if __name__ == "__main__":
    main()
