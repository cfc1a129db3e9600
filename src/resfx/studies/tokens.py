"""From text to batches: a tokenizer trained on the training part, and windows in an order that a seed fixes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from resfx.errors import OptionError, require

from .text import PARTS, Corpus, Part

END = "<|end|>"
BYTES = 256


@dataclass(frozen=True, eq=False)
class Tokens:
    """The text as numbers.

    Attributes:
        parts: one long row for each part, int32, documents one after the other with an end mark behind each.
        source, digest: of the text.
        bytes_per_token: of the held-out part: a loss in nats per token over this and ``ln 2`` is bits per byte.
        documents: how many each part has.
    """

    parts: dict[str, Tensor]
    source: str
    digest: str
    bytes_per_token: float
    documents: dict[str, int]

    def windows(self, part: Part, length: int, device: Any = "cpu") -> Tensor:
        """The part cut into rows, ``(rows, length)``, int64; what is left over is dropped."""
        row = self.parts[part]
        count = len(row) // length
        return row[: count * length].reshape(count, length).to(device, torch.int64)


def tokenized(corpus: Corpus, vocabulary: int, folder: Path) -> Tokens:
    """The tokens of a text, made once and kept in a folder: a study that goes on has the same.

    Args:
        vocabulary: entries of a byte-level BPE; 256 for the bytes themselves, the byte 0 as the end mark.

    Raises:
        OptionError: if the folder holds those of another text or vocabulary.
        MissingPackageError: without the package ``tokenizers``, where there is a BPE to train.
    """
    facts, rows = folder / "tokens.json", folder / "tokens.safetensors"
    known = {"digest": corpus.digest, "vocabulary": vocabulary, "source": corpus.source}
    if facts.exists():
        kept = json.loads(facts.read_text())
        if {name: kept[name] for name in known} != known:
            raise OptionError(f"{folder} is to go on with a study", "it was begun with another text or vocabulary",
                              "another out=, or the text it was begun with")  # fmt: skip
        return Tokens(load_file(rows), corpus.source, corpus.digest, kept["bytes_per_token"], kept["documents"])
    if vocabulary < BYTES:
        raise OptionError("vocabulary must be 256 (bytes) or more (a BPE)", f"{vocabulary}", "vocabulary=1024")
    encode = _bytes if vocabulary == BYTES else _trained(corpus, vocabulary, folder)
    parts: dict[str, Tensor] = {p: torch.tensor(encode(corpus.part(p)), dtype=torch.int32) for p in PARTS}
    held = sum(len(text.encode()) for text in corpus.part("held"))
    documents: dict[str, int] = {part: len(corpus.part(part)) for part in PARTS}
    save_file(parts, rows)
    kept = {**known, "bytes_per_token": held / len(parts["held"]), "documents": documents}
    facts.write_text(json.dumps(kept, indent=1))
    return Tokens(parts, corpus.source, corpus.digest, kept["bytes_per_token"], documents)


def _bytes(texts: list[str]) -> list[int]:
    return list(b"".join(text.encode() + b"\0" for text in texts))


def _trained(corpus: Corpus, vocabulary: int, folder: Path) -> Any:
    library = require("tokenizers", "hf", "a BPE vocabulary")
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(corpus.part("train"), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id(END)

    def encode(texts: list[str]) -> list[int]:
        return [i for found in tokenizer.encode_batch(texts) for i in (*found.ids, end)]

    return encode


class Order:
    """Batches of windows in an order of their own for every seed: each window once, then all again in another order.

    Args:
        windows: ``(rows, length)``.
        batch: rows of a step.
    """

    def __init__(self, windows: Tensor, batch: int, seed: int) -> None:
        self.windows, self.batch, self.seed = windows, batch, seed
        self.epochs: dict[int, Tensor] = {}

    def at(self, step: int) -> Tensor:
        """The batch of a step, ``(batch, length)``: it depends on the seed and the step, and on nothing else."""
        count = len(self.windows)
        rows = [self._shuffled(i // count)[i % count] for i in range(step * self.batch, (step + 1) * self.batch)]
        return self.windows[torch.stack(rows).to(self.windows.device)]

    def _shuffled(self, epoch: int) -> Tensor:
        if epoch not in self.epochs:
            generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
            kept = {e: order for e, order in self.epochs.items() if e == epoch - 1}
            self.epochs = {**kept, epoch: torch.randperm(len(self.windows), generator=generator)}
        return self.epochs[epoch]
