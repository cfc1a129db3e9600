"""The optional CPU kernels, in ``cpp``: built once per machine by ``python -m resfx kernels``.

ONNX Runtime loads the library (:func:`resfx.export.session`), and small calls in eager mode do (:mod:`.native`): these
through one operator of torch that is built beside it, against torch's stable interface, so that the library itself
needs no torch.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from resfx.errors import ExportError, OptionError, path_of
from resfx.ops.record import Joined, Operator, Port, folders, joined_of, kernel_of, records_of

SOURCE = Path(__file__).with_name("cpp") / "kernels.cpp"
BINDING = SOURCE.with_name("torch.cpp")
# No flag here changes arithmetic: -ffast-math, linked into a library, would flush denormals in the whole process.
FLAGS = ("-std=c++20", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math")
COMPILERS = ("c++", "g++", "clang++")


def kernels_path(native: bool = True) -> Path:
    """Where the kernels of this version for this processor lie, built or not.

    In ``$RESFX_CACHE``, else ``$XDG_CACHE_HOME/resfx``, else ``~/.cache/resfx``. The name holds a digest of the source,
    the flags and, with ``native``, the processor's features: a home shared by machines holds one file for each kind.
    """
    cache = os.environ.get("RESFX_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "resfx"
    )
    headers, lines = operator_sources()
    shared = sorted(f for f in SOURCE.parent.iterdir() if f.suffix in (".cpp", ".h"))
    key = hashlib.sha256(b"".join(f.read_bytes() for f in (*shared, *headers)) + "".join(lines).encode())
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
        OptionError: for a folder as the library, or another ``native`` than true or false.
        ExportError: if there is no compiler, or it fails; an older file is then left as it was.
    """
    asked = "cannot build the kernels for ONNX Runtime"
    if not isinstance(native, bool):
        raise OptionError(asked, f"native={native!r:.60}", "native=True, the default, or False")
    path = None if path is None else path_of(path, asked)
    if path is not None and (path.is_dir() or not path.name):
        raise OptionError(asked, f"{os.fspath(path)!r} is a folder", "the name of a file, such as 'kernels.so'")
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
    torch_at = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".kernels") as folder:
        (Path(folder) / "operators.h").write_text(_operators_header(*operator_sources()), encoding="utf-8")
        where = [f"-I{folder}", f"-I{SOURCE.parent}", *(["-march=native"] if native else [])]
        links = [f"-I{torch_at / 'include'}", f"-L{torch_at / 'lib'}", "-ltorch_cpu", "-lc10"]
        parts: tuple[tuple[Path, Path, list[str], list[str]], ...] = (
            (SOURCE, target, where, []), (BINDING, binding_of(target), links[:1], links[1:]),
        )  # fmt: skip
        for source, built, before, behind in parts:
            draft = Path(folder) / built.name
            command = [*compiler.split(), *FLAGS, *before, str(source), "-o", str(draft), *behind]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ExportError(
                    asked, f"{' '.join(command)} failed:\n{done.stderr.strip()[-2000:]}",
                    "native=False, or another CXX",
                )  # fmt: skip
        for _, built, *_ in parts:
            os.replace(Path(folder) / built.name, built)
    return target


def binding_of(library: Path) -> Path:
    """Where the operator of torch lies that calls the kernels of a library."""
    return library.with_suffix(".torch.so")


def operator_sources() -> tuple[list[Path], list[str]]:
    """The operators' C++ files, and for each kernel in them the line that adds it."""
    headers, lines = [], []
    for folder in folders():
        found = [record for record in records_of(folder) if record.kernel]
        headers += [kernel_of(folder)] if found else []
        lines += [_line(joined_form(record), "true") for record in found]
        lines += [_line(joined, "false") for joined in joined_of(folder)]
    return headers, lines


def joined_form(record: Operator) -> Joined:
    """A node's kernel by what it takes, as kernels that are no nodes say it."""
    reals, wholes = (tuple(a.name for a in record.attributes if a.type is kind and a.name != "stash_type")
                     for kind in (float, int))  # fmt: skip
    return Joined(record.name, "".join(_letter(port) for port in record.inputs), reals, wholes, record.kernel)


def _line(kernel: Joined, node: str) -> str:
    """What the library is to know of a kernel."""
    reals, wholes = ("{" + ", ".join(f'"{name}"' for name in names) + "}" for names in (kernel.reals, kernel.wholes))
    given = f'"{kernel.name}", t, "{kernel.inputs}", {reals}, {wholes}, {kernel.kernel}<T>, {node}'
    return f"  to.push_back(record({given}));\n"


def _letter(port: Port) -> str:
    """``T`` for main tensors, ``n`` for numbers of any floating type, ``b`` for flags; then how many."""
    letter = "T" if port.kind == "T" else "b" if port.kind.startswith("I") else "n"
    return letter + ("*" if port.many else "?" if port.optional else "")


def _operators_header(headers: list[Path], lines: list[str]) -> str:
    included = "".join(f'#include "{header}"\n' for header in headers)
    start = "template <class T>\nvoid add_records(std::vector<Op>& to) {\n  Type t = TypeOf<T>::value;\n"
    return f"{included}\nnamespace {{\n\n{start}{''.join(lines)}}}\n\n}}  // namespace\n"


def _features() -> str:
    """What tells kinds of processors apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
