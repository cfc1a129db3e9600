"""The command line: scan, rewrite, export, bench (a model); study; methods, kernels, doctor."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from resfx import __version__, export
from resfx.api import rewrite, scan
from resfx.comparison.compare import BACKENDS, MODES, compare
from resfx.comparison.result import Comparison
from resfx.errors import CaptureError, ExportError, ResfxError
from resfx.methods.base import Method, methods
from resfx.passes.scopes.filters import DEFAULT_FORMS, FORMS
from resfx.report.page.page import page
from resfx.report.report import Report
from resfx.report.text import methods_table
from resfx.runtime.module import of
from resfx.runtime.saved import saving

from .doctor import diagnose
from .settings import SettingError, config_of
from .study import run_study, study_config, study_options
from .targets import Target, load_target

MODEL = """a model: package.module:factory (a module, or a callable that returns a model or (model, args, kwargs)),
a Hugging Face config folder or config.json (random weights unless the folder holds them), or a .pt2 file;
nothing is downloaded"""

EPILOG = """exit codes: 0 done; 1 nothing found or rewritten, or an error; 2 wrong usage

examples:
  resfx scan my_package.models:tiny_gpt
  resfx rewrite ./llama-config --method ddl --set beta_init=0.5 --include 'model.layers.*' --out rewritten
  resfx export ./llama-config --method short_swa --out model.onnx
  resfx bench my_package.models:tiny_gpt --method ddl --backends eager compiled --plot bench.png"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    Raises:
        SystemExit: from argparse, with code 2 for wrong usage.
    """
    parser = make_parser()
    options = parser.parse_args(argv)
    options.given = list(sys.argv[2:] if argv is None else argv[1:])
    try:
        if options.command == "study":
            options.config = {text: study_config(text) for text in options.methods}
        else:
            rewrites = options.command in ("rewrite", "export", "bench")
            options.config = config_of(options.method, options.set, options.start) if rewrites else None
    except SettingError as error:
        parser.error(str(error))
    try:
        return int(COMMANDS[options.command](options))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        elif isinstance(error, ResfxError):
            print(f"resfx: {error}", file=sys.stderr)
        else:
            print(f"resfx: {type(error).__name__}: {error}\n  try:   --debug shows where", file=sys.stderr)
        return 1


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("resfx", description=__doc__, epilog=EPILOG, formatter_class=plain)
    parser.add_argument("--version", action="version", version=f"resfx {__version__} (torch {torch.__version__})")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _scan_options(_common(commands.add_parser("scan", help="list residual adds, and why other adds are none")))
    save = _rewriting(_common(commands.add_parser("rewrite", help="rewrite, check and save")))
    save.add_argument("--out", metavar="FOLDER", help="save recipe and new weights here (resfx.load reads them)")
    _looking(save)
    onnx = _rewriting(_common(commands.add_parser("export", help="rewrite and write an ONNX file")))
    onnx.add_argument("--out", metavar="FILE.onnx", required=True)
    bench = _rewriting(_common(commands.add_parser("bench", help="time the model before and after")))
    bench.add_argument("--backends", nargs="+", default=list(BACKENDS), metavar="NAME", help=", ".join(BACKENDS))
    bench.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    bench.add_argument("--repeats", type=_at_least(1), default=20, help="rounds (default 20)")
    bench.add_argument("--warmup", type=_at_least(0), default=3, help="rounds before those (default 3)")
    bench.add_argument("--seconds", type=float, help="stop a row after this long")
    bench.add_argument("--out", metavar="FILE.json", help="write the figures here")
    bench.add_argument("--plot", metavar="FILE", help="draw them here (.png, .svg, .pdf)")
    _looking(bench)
    bench.add_argument("--quiet", action="store_true", help="no progress lines")
    study_options(commands.add_parser("study", help="train the plain model and methods side by side"))
    listing = commands.add_parser("methods", help="list the methods")
    listing.add_argument("--markdown", action="store_true", help="as the table of the README")
    listing.set_defaults(debug=False)
    kernels = commands.add_parser("kernels", help="build the CPU kernels for ONNX Runtime with the C++ compiler")
    kernels.add_argument("--out", metavar="FILE.so", help="default: the cache folder, where sessions find them")
    kernels.add_argument("--portable", action="store_true", help="for any processor of this architecture")
    kernels.set_defaults(debug=False)
    doctor = commands.add_parser("doctor", help="what is installed, built and within reach, and how to get the rest")
    doctor.add_argument("--json", action="store_true", help="print JSON instead of text")
    doctor.set_defaults(debug=False)
    return parser


def _common(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("model", help=MODEL)
    command.add_argument("--batch", type=_at_least(1), default=2, help="batch of the inputs made for a config")
    command.add_argument("--length", type=_at_least(1), default=16, help="tokens of the inputs made for a config")
    command.add_argument("--json", action="store_true", help="print JSON instead of text")
    command.add_argument("--debug", action="store_true", help="show where an error was raised")
    return command


def _scan_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", metavar="FILE.json", help="write the report here as JSON")
    _looking(command)


def _looking(command: argparse.ArgumentParser) -> None:
    command.add_argument("--draw", metavar="FILE.svg", help="a picture of the streams")
    command.add_argument("--html", metavar="FILE.html", help="a page of the streams to click through, in one file")


def _rewriting(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("--method", choices=list(methods()), default="ddl", help="(default ddl)")
    command.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of its config")
    command.add_argument("--start", choices=("preserve", "published"), help="(default: the config's, preserve)")
    command.add_argument("--include", action="append", default=[], metavar="GLOB", help="owners to rewrite")
    command.add_argument("--exclude", action="append", default=[], metavar="GLOB", help="owners to leave alone")
    command.add_argument("--no-check", action="store_true", help="do not hold the result against the original")
    command.add_argument("--forms", nargs="+", default=DEFAULT_FORMS, choices=FORMS, metavar="FORM",
                         help=", ".join(FORMS))  # fmt: skip
    return command


def _at_least(least: int) -> Any:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}")
        return int(text)

    return number


def _show(options: argparse.Namespace, result: Any) -> None:
    print(json.dumps(result.to_dict(), indent=1) if options.json else result)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _scan(options: argparse.Namespace) -> int:
    target = _target(options)
    with _inputs_wanted(target):
        report = scan(target.model, target.args, target.kwargs)
    _show(options, report)
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump(report.to_dict(), file, indent=1)
    _look(options, report)
    return 0 if report.sites else 1


def _rewrite(options: argparse.Namespace) -> int:
    new = _rewritten(options, _target(options))
    _show(options, of(new).report)
    if options.out:
        saving.save(new, options.out)
        _say(f"saved to {options.out}")
    _look(options, new)
    return 0


def _export(options: argparse.Namespace) -> int:
    target = _target(options)
    new = _rewritten(options, target)
    with _inputs_wanted(target):
        written = export.to_onnx(new, options.out, target.args, target.kwargs, check=not options.no_check)
    _show(options, of(new).report)
    _say(f"wrote {written}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    target = _target(options)
    new = _rewritten(options, target)
    with _inputs_wanted(target):
        result = compare(
            target.module(), new, target.args, target.kwargs, backends=options.backends, modes=options.modes,
            repeats=options.repeats, warmup=options.warmup, seconds=options.seconds, progress=not options.quiet,
            plot=options.plot, json=options.out,
        )  # fmt: skip
    _show(options, result)
    _look(options, new, result)
    return 0 if any(r.after for r in result.rows) else 1


def _methods(options: argparse.Namespace) -> int:
    print(methods_table(options.markdown))
    return 0


def _kernels(options: argparse.Namespace) -> int:
    print(export.build_kernels(options.out, native=not options.portable))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    diagnosis = diagnose()
    _show(options, diagnosis)
    return 0 if diagnosis.healthy else 1


def _target(options: argparse.Namespace) -> Target:
    target = load_target(options.model, options.batch, options.length)
    if target.note:
        _say(target.note)
    return target


@contextmanager
def _inputs_wanted(target: Target) -> Iterator[None]:
    """Where the library asks for ``args=``, say how a command line gives them."""
    try:
        yield
    except (CaptureError, ExportError) as error:
        if target.args is None and target.kwargs is None and "args=" in error.try_:
            remedy = "let the callable return (model, args) or (model, args, kwargs): a model and inputs it can run on"
            raise type(error)(error.asked, error.found, remedy) from error
        raise


def _rewritten(options: argparse.Namespace, target: Target) -> Any:
    config: Method = options.config
    with _inputs_wanted(target):
        new = rewrite(target.model, config, target.args, target.kwargs, include=options.include,
                      exclude=options.exclude, forms=tuple(options.forms), check=not options.no_check)  # fmt: skip
    if new._resfx.source.example is None and not options.no_check:
        _say("not checked against the original: the callable gives a model without inputs")
    return new


def _look(options: argparse.Namespace, shown: Any, comparison: Comparison | None = None) -> None:
    """The picture and the page of a report or of a rewritten model, where they are asked for."""
    if options.draw:
        report = shown if isinstance(shown, Report) else of(shown).report
        report.draw(options.draw)
        _say(f"drew {options.draw}")
    if options.html:
        page(shown, options.html, comparison=comparison)
        _say(f"wrote {options.html}")


COMMANDS = {"scan": _scan, "rewrite": _rewrite, "export": _export, "bench": _bench, "methods": _methods,
            "kernels": _kernels, "doctor": _doctor, "study": run_study}  # fmt: skip
