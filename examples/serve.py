"""A rewritten model served by ONNX Runtime: requests join and leave one running batch; no PyTorch in the loop.

    python -m examples.serve --method short_swa --requests 32

Rows are padded on the right: a causal model's answer at the last token of a prompt does not see what is behind it.
"""

import argparse
import queue
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import resfx


@dataclass
class Request:
    """Tokens so far, and how many there are to be; ``done`` is set when they are there."""

    tokens: list[int]
    length: int
    done: threading.Event = field(default_factory=threading.Event)


class Server:
    """Greedy decoding by one thread that owns the session."""

    def __init__(self, session: Any, most: int) -> None:
        self.session, self.most = session, most
        self.waiting: queue.Queue[Request | None] = queue.Queue()
        self.thread = threading.Thread(target=self.serve)

    def __enter__(self) -> "Server":
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.waiting.put(None)
        self.thread.join()

    def ask(self, prompt: list[int], new: int) -> Request:
        request = Request(list(prompt), len(prompt) + new)
        self.waiting.put(request)
        return request

    def serve(self) -> None:
        running: list[Request] = []
        closing = False
        while running or not closing:
            while len(running) < self.most and not closing and not (running and self.waiting.empty()):
                request = self.waiting.get()
                closing = request is None
                running += [] if request is None else [request]
            if running:
                self.step(running)
            for request in (r for r in running if len(r.tokens) >= r.length):
                request.done.set()
            running = [r for r in running if not r.done.is_set()]

    def step(self, running: list[Request]) -> None:
        """One more token for every running request."""
        ids = np.zeros((len(running), max(len(r.tokens) for r in running)), np.int64)
        for row, request in zip(ids, running, strict=True):
            row[: len(request.tokens)] = request.tokens
        (logits,) = self.session.run(None, {"input_ids": ids})
        for row, request in zip(logits, running, strict=True):
            request.tokens.append(int(row[len(request.tokens) - 1].argmax()))


def main(argv: list[str] | None = None) -> list[list[int]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="short_swa", help="a method's name")
    for name, usual in (("width", 128), ("layers", 4), ("requests", 24), ("batch", 8), ("tokens", 24)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    o = parser.parse_args(argv)
    torch.manual_seed(0)
    sizes = GPT2Config(n_embd=o.width, n_layer=o.layers, n_head=4, vocab_size=256, n_positions=128, bos_token_id=None,
                       eos_token_id=None)  # fmt: skip
    inputs = {"input_ids": torch.randint(256, (2, 8)), "use_cache": False}
    model = resfx.rewrite(GPT2LMHeadModel(sizes).eval(), o.method, kwargs=inputs)
    with torch.no_grad():
        for parameter in model.new_parameters().values():  # as if it had been trained
            parameter.add_(0.1 * torch.randn_like(parameter))
    prompts = [torch.randint(1, 256, (int(n),)).tolist() for n in torch.randint(2, 12, (o.requests,))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        print(resfx.export.to_onnx(model, path, kwargs=inputs))
        session = resfx.export.session(path)
        start = time.perf_counter()
        with Server(session, o.batch) as server:
            requests = [server.ask(prompt, o.tokens) for prompt in prompts]
            for request in requests:
                request.done.wait()
        seconds = time.perf_counter() - start
    count = o.requests * o.tokens
    print(f"{count} tokens for {o.requests} requests in {seconds:.2f} s: {count / seconds:,.0f} tokens/s")
    first, known = torch.tensor([requests[0].tokens]), len(prompts[0])
    with torch.no_grad():
        wanted = model(input_ids=first[:, :-1], use_cache=False).logits.argmax(-1)
    print(f"PyTorch chooses the same tokens: {torch.equal(wanted[:, known - 1 :], first[:, known:])}")
    return [r.tokens for r in requests]


if __name__ == "__main__":
    main()
