"""A rewritten model as a folder: the recipe as versioned JSON, the new weights as safetensors. Nothing is pickled.

``recipe.json`` holds what was done (methods, filters, the adds claimed) and a fingerprint of the base model;
``weights.safetensors`` holds the new parameters, or all of them with ``weights="all"``. The rewritten model has buffers
of its own, so the persistent ones (running statistics) are always saved; of the others, which no ``state_dict`` holds
either, a digest is kept and compared at load. A folder of ``save_pretrained`` (``pretrained.py``) is read here, too.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import nn

from resfx.api import Model, rewrite_by
from resfx.errors import InputError, ModelError, OptionError, ResfxError, SaveError, path_of
from resfx.methods.base import Method
from resfx.methods.learned import upgrade_all
from resfx.methods.options import refuse_wrong_arguments
from resfx.passes import source_of
from resfx.passes.capture.inputs import Named, Positional, outside_inference_mode
from resfx.runtime.huggingface import from_folder
from resfx.runtime.module import Rewritten

from . import recipe as recipes
from .fingerprint import digests, fingerprint, is_new, persistent_buffers
from .folder import replacing
from .pretrained import digest_of, keep_types, new_tensors, weight_files
from .recipe import PRETRAINED, RECIPE, Recipe

WEIGHTS = "weights.safetensors"
BUFFERS = "buffers"  # what the digests of unsaved buffers are called in the notes of the weights' file


def save(module: Any, folder: str | os.PathLike[str], *, weights: Literal["new", "all"] = "new") -> None:
    """Write a rewritten module to ``folder``: ``recipe.json`` and ``weights.safetensors``, both or none.

    Args:
        module: what :func:`resfx.rewrite` returned.
        folder: made if missing. An earlier save in it is replaced once the new one is on disk, and stays as it was if
            anything fails before; files of other names are left alone.
        weights: ``"new"`` saves the parameters that the rewrite added and the buffers, to be used with the same base
            model; ``"all"`` saves every parameter and buffer.

    Raises:
        SaveError: if the module is not a rewritten one or holds what cannot be saved, or ``folder`` holds something
            that this library did not write.
        OptionError: for other ``weights``.
        OSError: if the disk refuses.
    """
    from safetensors.torch import save_file

    if not isinstance(module, Rewritten):
        raise SaveError(f"cannot save a {type(module).__name__}", "it is not a rewritten module",
                        "pass what resfx.rewrite returned; torch.save(module.state_dict()) for others")  # fmt: skip
    if weights not in ("new", "all"):
        raise OptionError("weights must be 'new' or 'all'", f"{weights!r}", "weights='new'")
    target = path_of(folder, "cannot save")
    recipes.refuse_foreign(target, weights)
    text = json.dumps(recipes.to_dict(module, weights, fingerprint(module)), indent=1)  # type: ignore[arg-type]
    tensors = _untied(_chosen(module, weights))  # type: ignore[arg-type]
    with replacing(target, RECIPE) as draft:
        save_file(tensors, draft / WEIGHTS, metadata={BUFFERS: json.dumps(digests(module))})  # type: ignore[arg-type]
        (draft / RECIPE).write_text(text)


def _chosen(module: nn.Module, weights: str) -> dict[str, torch.Tensor]:
    """The tensors to save by name."""
    chosen: dict[str, Any] = {n: v for n, v in module.state_dict().items() if weights == "all" or is_new(n)}
    chosen |= persistent_buffers(module)
    for name, value in chosen.items():
        asked = f"cannot save {name} of this {type(module).__name__}"
        if not isinstance(value, torch.Tensor):
            raise SaveError(asked, f"a {type(value).__name__}, not a tensor", "weights='new'")
        if value.is_meta:
            raise SaveError(asked, "it is on the meta device and has no values", "load or initialise the model first")
    return chosen


@overload
def load(
    folder: str | os.PathLike[str], model: Model, args: Positional | None = ..., kwargs: Named | None = ..., *,
    custom: Mapping[str, type[Method]] | None = ...,
) -> Model: ...  # fmt: skip
@overload
def load(
    folder: str | os.PathLike[str], model: None = ..., args: Positional | None = ..., kwargs: Named | None = ..., *,
    custom: Mapping[str, type[Method]] | None = ..., cls: Any = ..., **options: Any,
) -> Any: ...  # fmt: skip
def load(
    folder: str | os.PathLike[str],
    model: Any = None,
    args: Positional | None = None,
    kwargs: Named | None = None,
    *,
    custom: Mapping[str, type[Method]] | None = None,
    cls: Any = None,
    **options: Any,
) -> Any:
    """Rewrite ``model`` by a saved recipe and give it the saved weights. Nothing in the folder is executed.

    A folder that a rewritten model's ``save_pretrained`` wrote holds the model itself: ``resfx.load(folder)``.

    Args:
        folder: what :func:`save` or ``save_pretrained`` wrote.
        model: the base model, of the architecture it was saved from. Not changed. Left out for a folder that
            ``save_pretrained`` wrote.
        args, kwargs: example inputs; by default zeros of the shapes it was saved with.
        custom: your own methods by name, where the recipe uses any.
        cls: class of the model in the folder; by default the one of transformers that its config names.
        options: for that class's ``from_pretrained``: ``dtype=``, ``variant=``, ``attn_implementation=``.

    Raises:
        SaveError: for a damaged or foreign folder, another version, or another base model.
        OptionError: for ``cls`` or options beside a model, or where ``custom`` is not of classes by name.
        InputError: if the inputs come in a form that is not taken, or do not fit ``forward``.
        ModelError: if the model itself raises on them.

    Warns:
        UserWarning: if the base model has other weights, or other buffers of those that are not saved, than when it
            was saved; if something else wrote weights into the folder since.
    """
    if model is not None and (cls is not None or options):
        names = ", ".join([*(["cls"] if cls is not None else []), *options])
        raise OptionError(f"load takes no {names} beside a model", f"a {type(model).__name__}",
                          "leave them out, or leave the model out where save_pretrained wrote the folder")  # fmt: skip
    _refuse_other(folder, model)
    path = path_of(folder, "cannot load a save")
    refuse_wrong_arguments(load, custom=custom)
    recipe = _read_recipe(path, custom or {})
    if (recipe.weights == PRETRAINED) != (model is None):
        raise SaveError(f"cannot load {path}", "it holds the new weights alone, written by resfx.save"
                        if model is None else "it holds the whole model, written by save_pretrained",
                        "resfx.load(folder, model)" if model is None else "resfx.load(folder)")  # fmt: skip
    content = None
    if model is None:
        files = weight_files(path, options.get("variant"))
        tensors, kept, content = new_tensors(files), None, digest_of(files)
        model = _host(path, cls, options)
    found = fingerprint(model, content)
    if found["structure"] != recipe.base["structure"]:
        raise SaveError(
            f"the save in {path} does not belong to this {type(model).__name__}",
            f"it was made from {recipe.cls} with {recipe.base['parameters']} parameters in"
            f" {recipe.base['tensors']} tensors; this one has {found['parameters']} in {found['tensors']}",
            "build the model from the same config" if content is None else "resfx.load(folder, cls=...)",
        )
    if content is None:
        tensors, kept = _read_weights(path / WEIGHTS)
    if recipe.weights != "all" and found["content"] != recipe.base["content"]:
        warnings.warn(
            f"{path} was saved beside other base weights; the new parameters were trained with those"
            if content is None
            else f"the weights in {path} are not those its {RECIPE} was written for: something else wrote there since",
            stacklevel=2,
        )
    typed = content is not None and not {"dtype", "torch_dtype"} & set(options)  # nobody asked for another type
    if typed:
        keep_types(model, tensors, recipe.buffers or {})
    new = _rewritten(model, recipe, args, kwargs, path)
    if typed:
        keep_types(new, tensors, {})
        kept = {n: digest for n, (_, digest) in (recipe.buffers or {}).items()}
    _fill(new, tensors, recipe.weights, path, buffers=content is None and kept is not None)
    if content is None or typed:
        _compare_buffers(new, kept, path)
    return new


def _host(path: Path, cls: Any, options: dict[str, Any]) -> nn.Module:
    """The model in a folder that ``save_pretrained`` wrote, without its methods."""
    asked = f"cannot load {path}"
    if (path / "adapter_config.json").exists():
        raise SaveError(asked, "an adapter lies beside the model, and would be put into it before its methods are",
                        "move it to a folder of its own, and put it on what resfx.load returns")  # fmt: skip
    try:
        return from_folder(path, cls, options)
    except ResfxError:
        raise
    except Exception as error:  # whatever from_pretrained finds wrong with its files or options
        raise SaveError(
            asked, f"from_pretrained: {type(error).__name__}: {error}", "mend that, or save it again"
        ) from error


def _rewritten(model: nn.Module, recipe: Recipe, args: Any, kwargs: Any, path: Path) -> Any:
    """The model with the recipe's methods at the recipe's adds."""
    remedy = "use the versions of torch and of the model's library it was saved with"
    own = args is None and kwargs is None and recipe.example is not None
    if own:
        args, kwargs, remedy = (), recipe.example, f"load(..., args=...), or {remedy}"
    try:
        source = source_of(model, args, kwargs)
        source.as_eager = recipe.as_eager
        with outside_inference_mode():
            new = rewrite_by(source, source.model, list(recipe.applications), source.example, check=False)
    except Exception as error:  # a file may ask for anything: more memory than there is, arguments nobody takes
        if not own and isinstance(error, (InputError, ModelError)):  # the inputs given are the user's, not the file's
            raise
        known = isinstance(error, ResfxError)
        reason = f"{error.asked}: {error.found}" if known else f"{type(error).__name__}: {error}"  # type: ignore[attr-defined]
        found = f"{RECIPE}: its {'example or ' if own else ''}applications do not fit this model: {reason}"
        raise SaveError(f"cannot load {path}", found, remedy) from error
    for names, application in zip(recipe.names, new._resfx.applications, strict=True):
        if [place.name for place in application.claimed] != list(names):
            raise SaveError(f"cannot load {path}", "the residual adds found differ from those it was saved with",
                            remedy)  # fmt: skip
    return new


def _refuse_other(folder: Any, model: Any) -> None:
    """Raise where :func:`load` is given its arguments the wrong way round, or a model that is no base model."""
    asked = "cannot load a save"
    if isinstance(folder, nn.Module) or isinstance(model, (str, os.PathLike)):
        raise SaveError(asked, f"load({type(folder).__name__}, {type(model).__name__})",
                        "resfx.load(folder, model): the folder first")  # fmt: skip
    if isinstance(model, Rewritten):
        raise SaveError(asked, "the model given is rewritten already",
                        "the base model, as it was before resfx.rewrite; a save of two methods holds both")  # fmt: skip
    if model is not None and not isinstance(model, nn.Module):
        raise SaveError(asked, f"a {type(model).__name__} as the base model", "an nn.Module of the architecture saved")


def _compare_buffers(new: nn.Module, kept: dict[str, str] | None, path: Path) -> None:
    if kept is None:
        if names := [n for n in persistent_buffers(new) if not is_new(n)]:
            warnings.warn(f"{path} was saved without buffers: those of the model given are used ({_few(names)})",
                          stacklevel=3)  # fmt: skip
        return
    found = digests(new)
    if names := sorted(n for n in found.keys() | kept.keys() if found.get(n) != kept.get(n)):
        warnings.warn(f"{path} was saved beside other buffers, not in any state_dict ({_few(names)}): the model given"
                      " may compute otherwise", stacklevel=3)  # fmt: skip


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


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
        raise SaveError(
            f"cannot load {path}", f"there is no {RECIPE}",
            "pass what resfx.save or save_pretrained of a rewritten model wrote; others have their own from_pretrained",
        )  # fmt: skip
    try:
        text = (path / RECIPE).read_text()
    except (OSError, ValueError) as error:
        raise SaveError(f"cannot load {path}", f"{RECIPE} is damaged: {error}", "save it again") from error
    return recipes.from_text(text, custom, str(path))


def _read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str] | None]:
    """The tensors by name, and the digests of the buffers that are not saved; ``None`` in a file that has none."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(path, framework="pt") as file:
            notes = (file.metadata() or {}).get(BUFFERS)
        kept = None if notes is None else dict(json.loads(notes))
        return load_file(path), kept
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise SaveError(f"cannot load {path}", f"the file is missing or damaged: {error}", "save it again") from error


def _fill(new: nn.Module, tensors: dict[str, torch.Tensor], weights: str, path: Path, buffers: bool) -> None:
    state = new.state_dict()
    upgrade_all(new, tensors)
    want = {k for k in state if weights == "all" or is_new(k)} | (set(persistent_buffers(new)) if buffers else set())
    shapes = {k: tuple(tensors[k].shape) for k in want & set(tensors)}
    wrong = sorted(want ^ set(tensors)) or [k for k, s in shapes.items() if s != tuple(state[k].shape)]
    if wrong:
        raise SaveError(f"cannot load {path}", f"weights do not fit the recipe: {', '.join(wrong[:4])}",
                        "save it again")  # fmt: skip
    if weights == "all":  # the base model keeps its own values
        from resfx.runtime.module import own_parameters

        own_parameters(new, copy=True)
    new.load_state_dict(tensors, strict=False)
