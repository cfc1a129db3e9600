"""The whole way, on a GPT-2 of 124 M parameters with random weights: scan, rewrite, train, compile, export, compare.

Run it with ``make demo``. Nothing is downloaded: the architecture comes from its configuration, the text from the
Python documentation that ships with the interpreter. Results go to ``demo/``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

import resfx
from resfx.report.progress import duration

OUT = Path("demo")
BATCH, LENGTH, STEPS = 2, 128, 12

# What is done, and how long it usually takes on two cores of a laptop.
PLAN = (
    ("What would be rewritten", 10),
    ("Rewrite with Deep Delta Learning", 20),
    ("The same function until the new parameters learn", 25),
    (f"Train {STEPS} steps on the Python documentation, byte by byte", 45),
    ("torch.compile", 75),
    ("ONNX", 75),
    ("Before and after", 150),
)


def main() -> None:
    """Run every step of the plan, saying what it does and how long it usually takes."""
    quiet()
    OUT.mkdir(exist_ok=True)
    torch.manual_seed(0)
    print(f"Seven steps, about {duration(sum(usual for _, usual in PLAN))} in all; nothing is downloaded.\n")
    model = GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)).eval()
    total = sum(p.numel() for p in model.parameters())
    print(f"The model: GPT-2 as published, 12 blocks, {total / 1e6:.0f} million parameters with random weights.")
    text = corpus()
    ids = batch(text, 0)
    inputs = {"input_ids": ids, "use_cache": False}
    clock = Clock()

    clock.step()
    print(resfx.scan(model, kwargs=inputs))

    clock.step()
    new = resfx.rewrite(model, mode="ddl", kwargs=inputs)
    added = sum(p.numel() for p in new.new_parameters().values())
    print(
        f"{len(new.report.changed)} residual adds became delta updates, with {added:,} new parameters"
        f" ({100 * added / total:.3f} % more)."
    )
    print(f"The class is still {type(new).__name__}, and the weights are the model's own.")
    new.report.draw(OUT / "stream.svg")
    resfx.page(new, OUT / "report.html")
    print(f"A picture of the stream: {OUT / 'stream.svg'}; a page to click through: {OUT / 'report.html'}")

    clock.step()
    with torch.no_grad():
        before, after = model(**inputs).logits, new(**inputs).logits
    print(f"logits are equal bit for bit: {yes(torch.equal(before, after))}")
    prompt = ids[:1, :16]
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(prompt), "pad_token_id": 0}
    same = torch.equal(model.generate(prompt, **options), new.generate(prompt, **options))
    print(f"generate(), with its cache, gives the same tokens: {yes(same)}")

    clock.step()
    losses = train(new, text)
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}")
    mixes = [float(p.detach().abs().max()) for n, p in new.new_parameters().items() if n.endswith(".mix")]
    print(f"{sum(m > 0 for m in mixes)} of {len(mixes)} adds have left the plain sum, by up to {max(mixes):.3f}")
    resfx.save(new, OUT / "ddl")
    print(f"recipe and new weights: {OUT / 'ddl'}")

    clock.step()
    new.eval()
    with torch.no_grad():
        eager, compiled = new(**inputs).logits, torch.compile(new)(**inputs).logits
    print(f"compiled and eager logits differ by at most {float((compiled - eager).abs().max()):.1e}")

    clock.step()
    print(resfx.export.to_onnx(new, OUT / "gpt2-ddl.onnx", kwargs=inputs))

    clock.step()
    files = {"plot": OUT / "compare.png", "json": OUT / "compare.json"}
    print(resfx.compare(model, new, kwargs=inputs, modes=("forward",), repeats=5, **files))
    print("\none training step, eager:")
    print(resfx.compare(model, new, kwargs=inputs, backends=("eager",), modes=("train",), repeats=3))
    print(f"\nas a chart: {files['plot']}; all figures: {files['json']}")
    clock.end()


class Clock:
    """Announces the steps of the plan one after another."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.plan = iter(enumerate(PLAN, 1))

    def step(self) -> None:
        number, (what, usual) = next(self.plan)
        print(f"\n== {number} of {len(PLAN)}. {what} (about {duration(usual)})", flush=True)

    def end(self) -> None:
        assert next(self.plan, None) is None, "the plan has a step that was not run"
        print(f"\n== Done after {duration(time.perf_counter() - self.started)}; the files are in {OUT}/")


def yes(held: bool) -> str:
    return "yes" if held else "NO"


def quiet() -> None:
    """Keep the chatter of other libraries away: what is printed here is meant to be read."""
    logging.set_verbosity_error()


def corpus() -> torch.Tensor:
    """Bytes of the reference manual that Python carries for ``help()``."""
    from pydoc_data.topics import topics

    return torch.tensor(list("\n".join(topics[k] for k in sorted(topics)).encode()), dtype=torch.long)


def batch(text: torch.Tensor, step: int) -> torch.Tensor:
    """Windows of the text, other ones at every step."""
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(0, len(text) - LENGTH, (BATCH,), generator=generator)
    return torch.stack([text[i : i + LENGTH] for i in starts.tolist()])


def train(model: torch.nn.Module, text: torch.Tensor) -> list[float]:
    """A short run: AdamW on everything, a larger rate for the few new parameters."""
    fresh = list(model.new_parameters().values())
    known = {id(p) for p in fresh}
    rest = [p for p in model.parameters() if id(p) not in known]
    optimizer = torch.optim.AdamW([{"params": rest, "lr": 3e-4}, {"params": fresh, "lr": 1e-2}], weight_decay=0.0)
    model.train()
    losses = []
    for step in range(STEPS):
        ids = batch(text, step)
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        print(f"  step {step + 1:2d}  loss {losses[-1]:.3f}", file=sys.stderr, flush=True)
    return losses


if __name__ == "__main__":
    main()
