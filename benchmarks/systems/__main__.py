"""``python -m benchmarks.systems [counted] [measured]`` makes those figures anew, then the page of all there are."""

from __future__ import annotations

import argparse
import importlib
import json
import warnings
from collections.abc import Callable
from typing import Any

import torch

from .page import DATA, page

PARTS = ("counted", "measured")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; none: the page alone")
    parser.add_argument("--realtime", action="store_true",
                        help="measured: before this machine's other work (SCHED_RR); the page says so")  # fmt: skip
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(unknown)}")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    DATA.mkdir(exist_ok=True)
    for part in options.parts:
        make: Callable[..., Any] = getattr(importlib.import_module(f"benchmarks.systems.{part}"), part)
        found = make(realtime=options.realtime) if part == "measured" else make()
        (DATA / f"{part}.json").write_text(json.dumps(found, indent=1) + "\n")
    page()


if __name__ == "__main__":
    main()
