"""The optional CPU kernels for ONNX Runtime, in ``cpp``: built once per machine by ``python -m resfx kernels``."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from resfx.errors import ExportError

SOURCE = Path(__file__).with_name("cpp") / "kernels.cpp"
# No flag here changes arithmetic: -ffast-math, linked into a library, would flush denormals in the whole process.
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math")
COMPILERS = ("c++", "g++", "clang++")


def kernels_path(native: bool = True) -> Path:
    """Where the kernels of this version for this processor lie, built or not.

    In ``$RESFX_CACHE``, else ``$XDG_CACHE_HOME/resfx``, else ``~/.cache/resfx``. The name holds a digest of the source,
    the flags and, with ``native``, the processor's features: a home shared by machines holds one file for each kind.
    """
    cache = os.environ.get("RESFX_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "resfx"
    )
    key = hashlib.sha256(
        b"".join(f.read_bytes() for f in sorted(SOURCE.parent.iterdir()) if f.suffix in (".cpp", ".h"))
    )
    key.update(" ".join((*FLAGS, platform.system(), platform.machine(), *((_features(),) if native else ()))).encode())
    return Path(cache) / f"kernels-{key.hexdigest()[:16]}.so"


def built_kernels() -> Path | None:
    """The kernels that are built and up to date: those for this processor, else the portable ones."""
    return next((p for p in (kernels_path(), kernels_path(native=False)) if p.is_file()), None)


def build_kernels(path: str | os.PathLike[str] | None = None, *, native: bool = True) -> Path:
    """Build the kernels with the system's C++ compiler (``$CXX``, else ``c++``, ``g++`` or ``clang++``).

    Args:
        path: the library to write; default: :func:`kernels_path`, where :func:`resfx.export.session` looks.
        native: use every instruction of this processor (``-march=native``); else any of its architecture.

    Raises:
        ExportError: if there is no compiler, or it fails; an older file is then left as it was.
    """
    asked = "cannot build the kernels for ONNX Runtime"
    if platform.system() == "Windows":
        raise ExportError(asked, "Windows is not supported", "models run without them, through function bodies")
    compiler = os.environ.get("CXX") or next((c for c in COMPILERS if shutil.which(c)), None)
    if compiler is None or shutil.which(compiler.split()[0]) is None:
        raise ExportError(
            asked, f"no C++ compiler: {compiler or ', '.join(COMPILERS)} not found",
            "install one (apt install g++), or name it in CXX; models run without kernels too",
        )  # fmt: skip
    target = kernels_path(native) if path is None else Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".kernels") as folder:
        draft = Path(folder) / "kernels.so"
        command = [*compiler.split(), *FLAGS, *(["-march=native"] if native else []), str(SOURCE), "-o", str(draft)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ExportError(
                asked, f"{' '.join(command)} failed:\n{done.stderr.strip()[-2000:]}", "native=False, or another CXX"
            )
        os.replace(draft, target)
    return target


def _features() -> str:
    """What tells kinds of processors apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
