"""``python -m resfx study``: the options of a study on the command line."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence

from resfx.errors import nearest
from resfx.methods.base import Method, methods
from resfx.studies.run import CONTROLS, STARTS
from resfx.studies.sizes import HOSTS, SIZES

from .settings import SettingError, config_of

SHORT = {"d_v": "value_channels"}  # as the papers call them
WORDS = {"blocks": "block=4", "two phases": "two_phase=true"}

EPILOG = """methods are given as on the other commands, options behind commas: ddl "ddl, d_v=4" "short_swa, window=16"

a study goes on where it stopped when the same command is given again; --seconds 0 only gathers what is finished"""


def study_options(command: argparse.ArgumentParser) -> None:
    """The options of this command, given to its parser."""
    command.epilog, command.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    command.add_argument("--methods", nargs="+", default=["ddl"], metavar="METHOD", help="(default ddl)")
    command.add_argument("--out", default="study", metavar="FOLDER", help="where the runs are kept (default study)")
    command.add_argument("--seeds", type=int, default=3, help="how many (default 3)")
    command.add_argument("--size", choices=list(SIZES), default="tiny", help="1, 10 or 124 M parameters (default tiny)")
    command.add_argument("--settings", nargs="+", choices=list(STARTS), default=list(STARTS), help="(default both)")
    command.add_argument("--host", choices=HOSTS, default=HOSTS[0], help=f"(default {HOSTS[0]})")
    command.add_argument("--text", metavar="PATH", help="a folder or a file; by default Python's own documentation")
    command.add_argument("--tokens", type=int, help="of a run from scratch (default: the size's)")
    command.add_argument("--rate", type=float, help="largest learning rate of every row (default: the size's)")
    command.add_argument("--rates", nargs="+", type=float, default=[], metavar="RATE", help="choose one for each row")
    command.add_argument(
        "--controls", nargs="+", choices=CONTROLS, default=[], help="plain models of equal size or time"
    )
    command.add_argument("--device", default="cpu", help="of torch (default cpu)")
    command.add_argument("--seconds", type=float, help="begin no run after so long")
    command.add_argument("--page", metavar="FILE.md", help="write the page, with figures in a folder beside it")
    command.add_argument("--json", action="store_true", help="print JSON instead of the table")
    command.add_argument("--quiet", action="store_true", help="no line for each run")
    command.add_argument("--debug", action="store_true", help="show where an error was raised")


def study_config(text: str) -> Method:
    """The config that ``"name, field=value, ..."`` means.

    Raises:
        SettingError: for a method, a field or a value that does not exist.
    """
    name, *settings = (part.strip() for part in text.split(","))
    if name not in methods():
        raise SettingError(f"there is no method {name!r}; there are: {', '.join(nearest(name, methods()))}")
    spelt = []
    for setting in settings:
        field, equals, value = WORDS.get(setting, setting).partition("=")
        spelt.append(f"{SHORT.get(field.strip(), field)}{equals}{value}")
    return config_of(name, spelt)


def _lasting(given: Sequence[str]) -> list[str]:
    """The options on which a study depends: all but how long to go on this time."""
    return [word for i, word in enumerate(given) if "--seconds" not in (word, given[i - 1] if i else "")]


def run_study(options: argparse.Namespace) -> int:
    """The command itself."""
    from resfx.studies.study import study

    say = None if options.quiet else lambda line: print(line, file=sys.stderr, flush=True)
    results = study(
        options.config, out=options.out, seeds=options.seeds, size=options.size, settings=options.settings,
        host=options.host, text=options.text, tokens=options.tokens, rate=options.rate, rates=options.rates,
        controls=options.controls, device=options.device, seconds=options.seconds, say=say,
    )  # fmt: skip
    if options.page and results.runs:
        from resfx.studies.page import write_page

        write_page(results, options.page, shlex.join(["python", "-m", "resfx", "study", *_lasting(options.given)]))
    print(json.dumps(results.to_dict(), indent=1) if options.json else results)
    return 0 if results.runs else 1
