"""A rewritten model as a folder: the recipe as versioned JSON, the new weights as safetensors. Nothing is pickled.

``recipe.json`` holds what was done (methods, filters, the adds claimed) and a fingerprint of the base model;
``weights.safetensors`` holds the new parameters, or all of them with ``weights="all"``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from resfx.api import rewrite_by
from resfx.errors import ResfxError, SaveError
from resfx.methods.base import Method
from resfx.methods.learned import upgrade_all
from resfx.passes import source_of

from . import recipe as recipes
from .module import Rewritten
from .recipe import Recipe

RECIPE, WEIGHTS = "recipe.json", "weights.safetensors"


def save(module: Any, folder: str | os.PathLike[str], *, weights: Literal["new", "all"] = "new") -> None:
    """Write a rewritten module to ``folder``; the folder appears whole or not at all.

    Args:
        module: what :func:`resfx.rewrite` returned.
        folder: made if missing; an earlier save in it is replaced.
        weights: ``"new"`` saves the parameters that the rewrite added, to be used with the same base model;
            ``"all"`` saves every parameter and buffer.

    Raises:
        SaveError: if the module is not a rewritten one, or ``folder`` holds something else.
    """
    from safetensors.torch import save_file

    if not isinstance(module, Rewritten):
        raise SaveError(f"cannot save a {type(module).__name__}", "it is not a rewritten module",
                        "pass what resfx.rewrite returned; torch.save(module.state_dict()) for others")  # fmt: skip
    target = Path(folder)
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / RECIPE).exists())):
        raise SaveError(f"cannot save to {target}", "it exists and is not a save of this library", "another folder")
    state = module.state_dict()  # type: ignore[attr-defined]
    chosen = {k: v for k, v in state.items() if weights == "all" or k.startswith("resfx.")}
    recipe = recipes.to_dict(module, weights, fingerprint(module))  # type: ignore[arg-type]
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        save_file(_untied(chosen), part / WEIGHTS)
        (part / RECIPE).write_text(json.dumps(recipe, indent=1))
        if target.exists():
            shutil.rmtree(target)
        os.replace(part, target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def load(
    folder: str | os.PathLike[str],
    model: nn.Module,
    args: tuple[Any, ...] | None = None,
    kwargs: dict[str, Any] | None = None,
    *,
    custom: Mapping[str, type[Method]] | None = None,
) -> Any:
    """Rewrite ``model`` by a saved recipe and give it the saved weights. Nothing in the folder is executed.

    Args:
        folder: what :func:`save` wrote.
        model: the base model, of the architecture it was saved from. Not changed.
        args, kwargs: example inputs; by default zeros of the shapes it was saved with.
        custom: your own methods by name, where the recipe uses any.

    Raises:
        SaveError: for a damaged or foreign folder, another version, or another base model.
    """
    path = Path(folder)
    recipe = _read_recipe(path, custom or {})
    found = fingerprint(model)
    if found["structure"] != recipe.base["structure"]:
        raise SaveError(
            f"the save in {path} does not belong to this {type(model).__name__}",
            f"it was made from {recipe.cls} with {recipe.base['parameters']} parameters in"
            f" {recipe.base['tensors']} tensors; this one has {found['parameters']} in {found['tensors']}",
            "build the model from the same config",
        )
    tensors = _read_weights(path / WEIGHTS)
    if recipe.weights == "new" and found["content"] != recipe.base["content"]:
        warnings.warn(
            f"{path} was saved beside other base weights; the new parameters were trained with those", stacklevel=2
        )
    new = _rewritten(model, recipe, args, kwargs, path)
    _fill(new, tensors, recipe.weights, path)
    return new


def _rewritten(model: nn.Module, recipe: Recipe, args: Any, kwargs: Any, path: Path) -> Any:
    """The model with the recipe's methods at the recipe's adds."""
    remedy = "use the versions of torch and of the model's library it was saved with"
    own = args is None and kwargs is None and recipe.example is not None
    if own:
        args, kwargs, remedy = (), recipe.example, f"load(..., args=...), or {remedy}"
    try:
        source = source_of(model, args, kwargs)
        source.as_eager = recipe.as_eager
        new = rewrite_by(source, source.model, list(recipe.applications), source.example, check=False)
    except Exception as error:  # a file may ask for anything: more memory than there is, arguments nobody takes
        known = isinstance(error, ResfxError)
        reason = f"{error.asked}: {error.found}" if known else f"{type(error).__name__}: {error}"  # type: ignore[attr-defined]
        found = f"{RECIPE}: its {'example or ' if own else ''}applications do not fit this model: {reason}"
        raise SaveError(f"cannot load {path}", found, remedy) from error
    for names, application in zip(recipe.names, new._resfx.applications, strict=True):
        if [place.name for place in application.claimed] != list(names):
            raise SaveError(f"cannot load {path}", "the residual adds found differ from those it was saved with",
                            remedy)  # fmt: skip
    return new


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """What a base model is: its parameters' names and shapes, and a digest of their values."""
    structure, content = hashlib.sha256(), hashlib.sha256()
    count = tensors = 0
    for name, parameter in model.named_parameters():
        if name.startswith("resfx."):
            continue
        structure.update(f"{name} {tuple(parameter.shape)}\n".encode())
        value = parameter.detach().float().flatten()
        sample = value[:: max(1, value.numel() // 4096)].contiguous().cpu()
        content.update(sample.numpy().tobytes())
        count += parameter.numel()
        tensors += 1
    return {"structure": structure.hexdigest(), "content": content.hexdigest(), "parameters": count,
            "tensors": tensors}  # fmt: skip


def _untied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors that share no storage, as safetensors wants them."""
    seen: set[int] = set()
    out = {}
    for name, value in state.items():
        tensor = value.detach().contiguous()
        out[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return out


def _read_recipe(path: Path, custom: Mapping[str, type[Method]]) -> Recipe:
    if not (path / RECIPE).is_file():
        raise SaveError(f"cannot load {path}", f"there is no {RECIPE}", "pass a folder written by resfx.save")
    try:
        text = (path / RECIPE).read_text()
    except (OSError, ValueError) as error:
        raise SaveError(f"cannot load {path}", f"{RECIPE} is damaged: {error}", "save it again") from error
    return recipes.from_text(text, custom, str(path))


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise SaveError(f"cannot load {path}", f"the file is missing or damaged: {error}", "save it again") from error


def _fill(new: nn.Module, tensors: dict[str, torch.Tensor], weights: str, path: Path) -> None:
    state = new.state_dict()
    upgrade_all(new, tensors)
    want = {k for k in state if weights == "all" or k.startswith("resfx.")}
    shapes = {k: tuple(tensors[k].shape) for k in want & set(tensors)}
    wrong = sorted(want ^ set(tensors)) or [k for k, s in shapes.items() if s != tuple(state[k].shape)]
    if wrong:
        raise SaveError(f"cannot load {path}", f"weights do not fit the recipe: {', '.join(wrong[:4])}",
                        "save it again")  # fmt: skip
    if weights == "all":  # the base model keeps its own values
        from .module import own_parameters

        own_parameters(new, copy=True)
    new.load_state_dict(tensors, strict=False)
