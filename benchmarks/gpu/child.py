"""The process of one part."""

from __future__ import annotations

import argparse
import json
import traceback
import warnings

from .parts import parts
from .record import LostDeviceError, Record, Writer, told
from .settings import Settings, facts, prepare

LOST_STATUS = 3


def settings_of(given: argparse.Namespace) -> Settings:
    """What the command line says."""
    return Settings(given.out, given.dry, given.rounds, given.authors)


def tell(given: argparse.Namespace) -> int:
    """Print what the device and the versions are, as JSON: the driver itself never starts CUDA."""
    import torch

    if not (given.dry or torch.cuda.is_available()):
        print(json.dumps({"missing": f"torch {torch.__version__} finds no CUDA device"}))
        return 0
    print(json.dumps(facts(settings_of(given))))
    return 0


def run(given: argparse.Namespace, machine: str = "") -> int:
    """Make the rows of a part that are not there yet.

    Returns:
        0 when all are there, ``LOST_STATUS`` after an error that took the device from this process, 1 if the part
        itself failed.
    """
    warnings.filterwarnings("ignore")  # of compilers, about themselves
    machine = machine or (given.out / "machine").read_text()
    settings = settings_of(given)
    prepare(settings)
    part = parts()[given.part]
    record = Record(given.out, part.name).load(machine)
    try:
        part.run(Writer(record, machine), settings)
    except LostDeviceError:
        return LOST_STATUS
    except Exception as error:  # beside its rows, which keep their own
        traceback.print_exc()
        record.note = told(error)
        record.save(machine)
        return 1
    record.done = bool(record.rows) or not record.note  # what was not run for want of a package may be, the next time
    record.save(machine)
    return 0
