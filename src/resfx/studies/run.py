"""One row of a study in one seed: built, trained and kept in a folder of its own."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from resfx.api import rewrite
from resfx.errors import CheckError, OptionError
from resfx.methods.base import Method

from .sizes import Size, build_host
from .tokens import Order, Tokens
from .training import Progress, Recipe, held_out_loss, train, write_whole

Setting = Literal["scratch", "graft"]
STARTS: dict[Setting, Literal["published", "preserve"]] = {"scratch": "published", "graft": "preserve"}
CURVE, FINAL = 64, 256  # held-out windows for a point of the curve, and for the last one
PLAIN = "plain"
CONTROLS = ("parameters", "time")


@dataclass(frozen=True)
class Bench:
    """What all runs of a study have in common.

    Attributes:
        out: the study's folder.
        host: ``llama`` or ``gpt2``.
        device: where models are trained.
    """

    out: Path
    host: str
    size: Size
    tokens: Tokens
    device: str


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        label: what the row is called.
        method: its config, or ``None`` for the plain model.
        setting: ``"scratch"``, with ``start="published"``, or ``"graft"``, onto the plain model that was trained from
            scratch with this seed, with ``start="preserve"``.
        seed: of weights and of the order of the data.
        recipe: how it is trained.
        inner: features inside an MLP of the host.
        base: the run whose weights a graft begins with.
    """

    label: str
    method: Method | None
    setting: Setting
    seed: int
    recipe: Recipe
    inner: int
    base: Run | None = None

    def folder(self, out: Path) -> Path:
        """Where it is kept."""
        name = re.sub(r"[^\w.=]+", "-", self.label)
        return out / self.setting / name / f"seed-{self.seed}-rate-{self.recipe.rate:g}"

    def facts(self, bench: Bench) -> dict[str, Any]:
        """Everything that its result depends on beside the machine, as plain data."""
        method = None if self.method is None else self.method.to_dict() | {"start": STARTS[self.setting]}
        return {
            "label": self.label, "setting": self.setting, "seed": self.seed, "method": method, "host": bench.host,
            "size": dataclasses.asdict(bench.size), "inner": self.inner, "recipe": dataclasses.asdict(self.recipe),
            "text": bench.tokens.digest, "base": self.base.facts(bench) if self.base else None,
        }  # fmt: skip

    def result(self, bench: Bench) -> dict[str, Any] | None:
        """What it came to, if it was finished before.

        Raises:
            OptionError: if its folder holds another run.
        """
        folder, facts = self.folder(bench.out), json.loads(json.dumps(self.facts(bench)))
        for name in ("result.json", "run.json"):
            if (folder / name).exists():
                kept = json.loads((folder / name).read_text())
                if self.method is not None and kept.get("method"):  # an option added since had its default's meaning
                    kept["method"] = type(self.method)().to_dict() | kept["method"]
                other = [n for n in facts if kept.get(n) != facts[n]]
                if other:
                    raise OptionError(
                        f"{folder} is to go on with a run", f"it holds one with another {' and '.join(other)}",
                        "another out=, or the options it was begun with",
                    )  # fmt: skip
                return kept if name == "result.json" else None
        return None


def execute(run: Run, bench: Bench, told: Callable[[Progress], None], every: float = 60.0) -> dict[str, Any]:
    """Do a run, or what is left of it, and return its result.

    Raises:
        CheckError: if a graft does not begin with the plain model's loss, bit for bit.
        OptionError: if its folder holds another run.
    """
    if (kept := run.result(bench)) is not None:
        return kept
    folder, facts = run.folder(bench.out), run.facts(bench)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "run.json", lambda path: path.write_text(json.dumps(facts, indent=1)))
    length, device = bench.size.length, bench.device
    order = Order(bench.tokens.windows("train", length, device), bench.size.batch, run.seed)
    held, tune = (_whole(bench.tokens.windows(p, length, device), bench.size.batch) for p in ("held", "tune"))
    model = build(run, bench, order.at(run.recipe.first), held)
    progress = train(model, run.recipe, order, held[:CURVE], folder / "checkpoint.pt", every, told)
    loss, chosen = (held_out_loss(model, windows, bench.size.batch) for windows in (held, tune))
    write_whole(folder / "weights.pt", lambda path: torch.save(model.state_dict(), path))
    result = {
        **facts, "loss": loss, "tuning_loss": chosen, "points": progress.points,
        "parameters": sum(p.numel() for p in model.parameters()),
        "new_parameters": sum(p.numel() for n, p in model.named_parameters() if n.startswith("resfx.")),
        "seconds": progress.seconds, "torch": torch.__version__, "threads": torch.get_num_threads(), "device": device,
        "machine": machine(device),
    }  # fmt: skip
    write_whole(folder / "result.json", lambda path: path.write_text(json.dumps(result, indent=1)))
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return result


def build(run: Run, bench: Bench, ids: torch.Tensor, held: torch.Tensor) -> Any:
    """The model of a run before its first step. A graft is held against the plain model: one loss, bit for bit, on the
    first batch ``ids`` and on ``held``.

    Raises:
        CheckError: if it has another.
    """
    torch.manual_seed(run.seed)
    host = build_host(bench.host, bench.size, run.inner).to(bench.device)
    if run.base is not None:
        host.load_state_dict(torch.load(run.base.folder(bench.out) / "weights.pt", weights_only=True))
    if run.method is None:
        return host
    torch.manual_seed(run.seed)
    method = dataclasses.replace(run.method, start=STARTS[run.setting])
    # Whether a preserving start is one is checked below, on more than an example.
    new = rewrite(host, method, kwargs={"input_ids": ids, "labels": ids}, check=False)
    if run.setting == "graft":
        for rows in (ids, held[:CURVE]):
            before, after = (held_out_loss(model, rows, bench.size.batch) for model in (host, new))
            if before != after:
                raise CheckError(
                    f"a graft of {run.label} must begin with the plain model's loss", f"{after!r}, not {before!r}",
                    "a method with start='preserve'",
                )  # fmt: skip
    return new


def control_label(control: str, label: str) -> str:
    """What the plain model is called that has the parameters, or the time, of a row."""
    return f"{PLAIN}, {control} of {label}"


def seconds_per_step(result: dict[str, Any]) -> float:
    """Of the processor on a CPU, which does not count what else the machine does; by the clock elsewhere."""
    return result["seconds"][0 if result["device"] == "cpu" else 1] / result["recipe"]["steps"]


def machine(device: str) -> str:
    """What a model was trained on, in words."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _whole(windows: torch.Tensor, batch: int) -> torch.Tensor:
    """As many windows as make whole batches, :data:`FINAL` at most; all where there are fewer than one batch."""
    count = min(len(windows), FINAL)
    return windows[: count - count % batch or count]
