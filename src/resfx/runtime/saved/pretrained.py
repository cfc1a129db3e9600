"""The model's own ``save_pretrained`` with our recipe beside its files, and what reads such a folder back.

All weights, the new ones among them, lie in the files that ``save_pretrained`` writes, in its layout: one or shards.
``recipe.json`` is that of :func:`resfx.save`; its digest of the base's content is one of these files.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resfx._torch import held_buffers
from resfx.errors import SaveError
from resfx.runtime.huggingface import writes_here

from . import recipe as recipes
from .fingerprint import digests, fingerprint, is_new, types_of
from .folder import replacing
from .recipe import PRETRAINED, RECIPE

SUFFIX = ".safetensors"


def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
    """The user's own, and the recipe beside what it wrote."""
    own = type(self)._resfx_before.save_pretrained
    given = inspect.signature(own).bind(self, *args, **kwargs).arguments
    given = {**given.pop("kwargs", {}), **given}
    target = Path(given["save_directory"])
    recipes.refuse_foreign(target, PRETRAINED)
    result = own(self, *args, **kwargs)
    if not writes_here(self, given.get("is_main_process", True)):
        return result
    new = {n for n in self.state_dict() if is_new(n)}
    try:
        files = weight_files(target, given.get("variant"), new)
    except SaveError as error:
        warnings.warn(f"{target} cannot be loaded again with what resfx.rewrite did: {error.found}", stacklevel=2)
        return result
    kept = digests(self)
    types = types_of(self, kept)
    recipe = recipes.to_dict(
        self, PRETRAINED, fingerprint(self, digest_of(files)), {n: (types[n], kept[n]) for n in kept}
    )
    with replacing(target, RECIPE) as draft:
        (draft / RECIPE).write_text(json.dumps(recipe, indent=1))
    late = f"; {RECIPE} was not pushed: upload it, too" if given.get("push_to_hub") else ""
    warnings.warn(
        f"resfx.load({str(target)!r}) is the rewritten model again; a plain from_pretrained builds it without its"
        f" methods and only reports resfx.* as unexpected{late}",
        stacklevel=2,
    )
    return result


def weight_files(folder: Path, variant: str | None, new: set[str] | None = None) -> dict[str, Path]:
    """In which file each tensor of a ``save_pretrained`` lies.

    Args:
        variant: as ``save_pretrained`` was given it.
        new: names of new weights, all of which must be there; by default, any.

    Raises:
        SaveError: if no such file has them, or a shard is missing or damaged.
    """
    asked, seen = f"cannot load {folder}", False
    for path in sorted(p for p in folder.glob(f"*{SUFFIX}*") if _is_whole(p, variant)):
        files = _of_index(path) if path.suffix == ".json" else dict.fromkeys(_names(path), path)
        found = {n for n in files if is_new(n)}
        if found and found >= (new or set()):
            return files
        seen = True
    pickled = any(folder.glob("*.bin"))
    found_text = (
        "its files hold none or not all of the new weights: an adapter alone, a state_dict without them, or another"
        " model saved over this one"
        if seen
        else f"it has no {SUFFIX} file of the whole model" + (", only pickled ones" if pickled else "")
    )
    raise SaveError(asked, found_text, "save the rewritten model again, all of it, as safetensors")


def _is_whole(path: Path, variant: str | None) -> bool:
    """Whether a file is all weights of a variant, or the index of its shards."""
    if path.name.endswith(".json"):
        return path.name.endswith(f"{SUFFIX}.index.{variant}.json" if variant else f"{SUFFIX}.index.json")
    stem = path.name.removesuffix(SUFFIX)
    return path.suffix == SUFFIX and "-of-" not in stem and stem.partition(".")[2] == (variant or "")


def _of_index(path: Path) -> dict[str, Path]:
    asked = f"cannot load {path.parent}"
    try:
        entries = json.loads(path.read_text())["weight_map"]
        names = {str(n): str(f) for n, f in entries.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise SaveError(asked, f"{path.name} is damaged: {error!r}", "save it again") from error
    if outside := [f for f in names.values() if Path(f).name != f]:
        raise SaveError(asked, f"{path.name} names a file outside of the folder, {outside[0]!r}", "save it again")
    there = {f: set(_names(path.parent / f)) for f in sorted(set(names.values()))}
    if lost := [n for n, f in names.items() if n not in there[f]]:
        raise SaveError(asked, f"{names[lost[0]]} does not hold {lost[0]}", "save it again")
    return {n: path.parent / f for n, f in names.items()}


def _names(path: Path) -> list[str]:
    return list(_read(path, lambda file: file.keys()))


def _read(path: Path, what: Any) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return what(file)
    except (OSError, SafetensorError, ValueError) as error:
        raise SaveError(
            f"cannot load {path.parent}", f"{path.name} is missing or damaged: {error}", "save it again"
        ) from error


def new_tensors(files: dict[str, Path]) -> dict[str, torch.Tensor]:
    """The new weights by name."""
    new = {n: path for n, path in files.items() if is_new(n)}
    found: dict[str, torch.Tensor] = {}
    for path, names in _by_file(new):
        found |= _read(path, lambda file, names=names: {n: file.get_tensor(n) for n in names})
    return found


def digest_of(files: dict[str, Path]) -> str:
    """A digest of names, shapes and some rows of every tensor: little is read of a large file."""
    digest = hashlib.sha256()
    for path, names in _by_file(files):
        digest.update(_read(path, lambda file, names=names: b"".join(_sample(file, n) for n in names)))
    return digest.hexdigest()


def _by_file(files: dict[str, Path]) -> list[tuple[Path, list[str]]]:
    """Each file, in order, with the names of its tensors: it is opened once for all of them."""
    return [(path, sorted(n for n in files if files[n] == path)) for path in sorted(set(files.values()))]


def _sample(file: Any, name: str) -> bytes:
    part = file.get_slice(name)
    shape = part.get_shape()
    if shape:
        rows = [part[i : i + 1] for i in sorted({0, shape[0] // 2, shape[0] - 1}) if i >= 0]
    else:
        rows = [file.get_tensor(name)]
    values = b"".join(row.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for row in rows)
    return f"{name} {part.get_dtype()} {tuple(shape)}\n".encode() + hashlib.sha256(values).digest()


def keep_types(model: nn.Module, tensors: dict[str, torch.Tensor], buffers: dict[str, tuple[str, str]]) -> None:
    """Give new parameters, and buffers that no file holds, the types that they had when the model was saved."""
    for name, parameter in model.named_parameters():
        if name in tensors and parameter.dtype != tensors[name].dtype:
            parameter.data = parameter.data.to(tensors[name].dtype)
    for name, value in list(model.named_buffers()):
        if name in buffers and value.dtype != (kind := getattr(torch, buffers[name][0])):
            owner, _, last = name.rpartition(".")
            held_buffers(model.get_submodule(owner))[last] = value.to(kind)
