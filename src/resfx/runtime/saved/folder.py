"""Files on disk: a set of them replaced whole or not at all, and no other file touched."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from resfx.errors import OptionError, path_of


def refuse_unwritable(path: str | os.PathLike[str]) -> None:
    """Say before any work that a file cannot be written.

    Raises:
        OptionError: if ``path`` is a folder, lies under a file, or its folder may not be written to.
    """
    target = path_of(path, "cannot write a file")
    asked, text = f"cannot write {path}", os.fspath(path)
    if target.is_dir() or text.endswith(("/", os.sep)):
        raise OptionError(asked, "it is a folder", "the name of a file, in it or elsewhere")
    above = next(p for p in target.absolute().parents if p.exists())
    if not above.is_dir():
        raise OptionError(asked, f"{above} is a file, not a folder", "a path in a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise OptionError(asked, f"no permission to write in {above}", "a folder of your own")


@contextlib.contextmanager
def replacing(folder: Path, last: str) -> Iterator[Path]:
    """Write files aside, then put them into ``folder`` over older ones of the same names.

    All that the body writes into the folder it is given is on disk before anything is replaced. If the body or a step
    after it fails, the older files are as they were, and nothing new is left: no file, no folder. Permissions are
    those that a file or folder made by the process gets anyway (umask).

    Args:
        folder: made if missing, with the folders above.
        last: the file to replace last: whoever finds it new finds the others new.
    """
    made = [p for p in [folder, *folder.parents] if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        aside = Path(tempfile.mkdtemp(prefix=".resfx-", dir=folder))
        try:
            (aside / "new").mkdir()
            (aside / "old").mkdir()
            yield aside / "new"
            _swap(aside, folder, last)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _swap(aside: Path, folder: Path, last: str) -> None:
    """Move new files over old ones; on failure the old ones are there again."""
    names = sorted([p.name for p in (aside / "new").iterdir()], key=lambda name: name == last)
    (aside / "plain").touch()
    mode = (aside / "plain").stat().st_mode & 0o777  # whoever wrote a file may have made it private
    for name in names:
        os.chmod(aside / "new" / name, mode)
        _to_disk(aside / "new" / name)
        if (folder / name).exists():
            _second_name(folder / name, aside / "old" / name)
    done: list[str] = []
    try:
        for name in names:
            os.replace(aside / "new" / name, folder / name)
            done.append(name)
        _to_disk(folder)
    except BaseException:
        for name in done:
            if (aside / "old" / name).exists():
                _put_back(aside / "old" / name, folder / name)
            else:
                (folder / name).unlink()
        raise


def _second_name(file: Path, name: Path) -> None:
    try:
        os.link(file, name)
    except OSError:  # a file system without links
        shutil.copy2(file, name)


def _put_back(old: Path, file: Path) -> None:
    try:
        os.replace(old, file)
    except OSError:
        shutil.copyfile(old, file)


def _to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some file systems cannot do it for folders
            raise
    finally:
        os.close(handle)
