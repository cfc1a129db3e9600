"""One command for a GPU: ``make gpu``, or ``PYTHONPATH=src python -m benchmarks.gpu`` where torch and triton are.

Checks every Triton kernel, forward and backward, against float64; then times operators, whole models, ONNX Runtime and
launch parameters, the most valuable first, until ``--minutes`` are spent. Each part is a process of its own and leaves
a file in ``--out``: a run that was cut short goes on where it was, and a part that fails stops no other. The page
``gpu-<card>.md`` in ``--results`` is written anew after each part. No network is used.

The exit status is 0 if all checks that were asked for held, 1 if not, 2 if there is no device.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--minutes", type=float, default=25.0, help="for all of it (default 25)")
    parser.add_argument("--out", type=Path, help="a file for each part (default build/gpu, build/gpu-dry)")
    parser.add_argument("--results", type=Path, help="the page and its figures (default benchmarks/results, of a dry"
                        " run --out)")  # fmt: skip
    parser.add_argument("--only", nargs="+", metavar="PART", help="parts, or the beginnings of their names")
    parser.add_argument("--again", action="store_true", help="also what is done already")
    parser.add_argument("--list", action="store_true", help="name the parts and end")
    parser.add_argument("--rounds", type=int, help="measured rounds of each group (default 30, of a dry run 2)")
    jobs = max(1, min(8, (os.cpu_count() or 2) // 2))
    parser.add_argument("--jobs", type=int, default=jobs, help=f"checks that run at a time (default here {jobs})")
    parser.add_argument("--authors", nargs="+", default=[], metavar="FOLDER", help="see benchmarks/authors.py")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU, under Triton's interpreter")
    parser.add_argument("--here", action="store_true", help="parts in this process, one after the other")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # the process of a part
    parser.add_argument("--facts", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.out = (given.out or ROOT / "build" / ("gpu-dry" if given.dry else "gpu")).resolve()
    given.results = (given.results or (given.out if given.dry else ROOT / "benchmarks" / "results")).resolve()
    given.rounds = given.rounds or (2 if given.dry else 30)
    return given


def environment(dry: bool) -> None:
    """What must be set before Triton and torch are imported, here and in the processes of parts."""
    paths = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in paths if p)
    sys.path[:0] = [p for p in paths[:2] if p not in sys.path]
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["RESFX_NATIVE"] = "0"  # this is about kernels of the device
    os.environ["RESFX_PROGRESS"] = "0"
    if dry:
        os.environ["TRITON_INTERPRET"] = "1"
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    else:
        os.environ.pop("TRITON_INTERPRET", None)
        os.environ.setdefault("TRITON_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"resfx-triton-{os.getuid()}"))


def main() -> int:
    """Run what was asked for."""
    given = arguments()
    environment(given.dry)
    try:
        from . import child, driver  # after the environment: torch and triton are imported by them
    except (ImportError, AttributeError) as error:
        print(f"Not with the packages that are installed here: {type(error).__name__}: {error}", file=sys.stderr)
        return 2

    if given.facts:
        return child.tell(given)
    if given.part:
        return child.run(given)
    return driver.run(given)


if __name__ == "__main__":
    sys.exit(main())
