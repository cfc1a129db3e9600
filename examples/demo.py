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

import resfx

OUT = Path("demo")
BATCH, LENGTH, STEPS = 2, 128, 12


def main() -> None:
    started = time.perf_counter()
    OUT.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)).eval()
    text = corpus()
    ids = batch(text, 0)

    heading("1. What would be rewritten", started)
    print(resfx.scan(model, kwargs={"input_ids": ids, "use_cache": False}))

    heading("2. Rewrite with Deep Delta Learning", started)
    new = resfx.rewrite(model, mode="ddl", kwargs={"input_ids": ids, "use_cache": False})
    added = sum(p.numel() for p in new.new_parameters().values())
    total = sum(p.numel() for p in model.parameters())
    print(f"{len(new.report.changed)} residual adds rewritten, {added:,} new parameters ({100 * added / total:.3f} %)")

    heading("3. The same function until the new parameters learn", started)
    with torch.no_grad():
        before = model(ids, use_cache=False).logits
        after = new(ids, use_cache=False).logits
    print(f"logits equal bit for bit: {torch.equal(before, after)}")
    prompt = ids[:1, :16]
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(prompt), "pad_token_id": 0}
    same = torch.equal(model.generate(prompt, **options), new.generate(prompt, **options))
    print(f"generate() with its cache gives the same tokens: {same}")

    heading(f"4. Train {STEPS} steps on the Python documentation, byte by byte", started)
    losses = train(new, text)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    moved = max(float(p.detach().abs()) for n, p in new.new_parameters().items() if n.endswith(".mix"))
    print(f"largest interpolation towards the delta shortcut so far: {moved:.4f}")
    resfx.save(new, OUT / "ddl")
    print(f"recipe and new weights saved to {OUT / 'ddl'}")

    heading("5. torch.compile and ONNX Runtime", started)
    new.eval()
    with torch.no_grad():
        eager = new(ids, use_cache=False).logits
        compiled = torch.compile(new)(ids, use_cache=False).logits
    print(f"compiled agrees with eager to {float((compiled - eager).abs().max()):.2e}")
    exported = resfx.export.to_onnx(new, OUT / "gpt2-ddl.onnx", kwargs={"input_ids": ids, "use_cache": False})
    print(exported)

    heading("6. Before and after", started)
    files = {"plot": OUT / "compare.png", "json": OUT / "compare.json"}
    inputs = {"input_ids": ids, "use_cache": False}
    print(resfx.compare(model, new, kwargs=inputs, modes=("forward",), repeats=5, **files))
    print("one training step, eager:")
    print(resfx.compare(model, new, kwargs=inputs, backends=("eager",), modes=("train",), repeats=3))
    heading(f"Done; files are in {OUT}/", started)


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


def heading(text: str, started: float) -> None:
    print(f"\n== {text}   [{time.perf_counter() - started:.0f} s]", flush=True)


if __name__ == "__main__":
    main()
