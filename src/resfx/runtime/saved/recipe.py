"""What it takes to do a rewrite again, as plain data: methods, the adds they claimed, an example call, the base model.

Version 2 names each add by where it stands in the model's source; version 1, by its number alone, is still read.
Every field is checked before anything is made of it: a file is whatever somebody left in a folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from resfx.errors import SaveError
from resfx.methods.base import Method, methods
from resfx.passes.find.site import FORMS
from resfx.passes.find.standing import Standing
from resfx.passes.scopes.application import Application

from .fields import Field, config_of

FORMAT, VERSION = "resfx", 2
RECIPE = "recipe.json"
PRETRAINED = "pretrained"
"""The ``weights`` of a recipe beside which the model's own ``save_pretrained`` wrote them all."""
_LARGEST = 2**30
"""Elements of an example tensor; a larger one is not made of a file."""


@dataclass(frozen=True)
class Recipe:
    """One saved rewrite.

    Attributes:
        cls: class name of the model.
        weights: which weights lie beside it: those that are new, all, or all as ``save_pretrained`` writes them.
        applications: what was done, in order; those of version 1 do not know their adds yet.
        names: per application the names of the adds it claimed.
        example: keyword arguments of a call: tensors of zeros, and plain values; ``None`` if it was not saved.
        base: the fingerprint of the base model: digests of its ``structure`` and ``content``, how many ``parameters``
            in how many ``tensors``.
        as_eager: see :class:`resfx.passes.capture.source.Source`.
        buffers: type and digest of each that no ``state_dict`` holds; only where ``save_pretrained`` wrote the rest.
    """

    cls: str
    weights: Literal["new", "all", "pretrained"]
    applications: tuple[Application, ...]
    names: tuple[tuple[str, ...], ...]
    example: dict[str, Any] | None
    base: dict[str, Any]
    as_eager: bool
    buffers: dict[str, tuple[str, str]] | None


def to_dict(
    module: Any, weights: str, base: Mapping[str, Any], buffers: Mapping[str, tuple[str, str]] | None = None
) -> dict[str, Any]:
    """The recipe of a rewritten module as plain data.

    Args:
        weights: what is saved beside it.
        base: the fingerprint of its base model.
    """
    runtime = module._resfx
    rest = {} if buffers is None else {"buffers": {name: list(pair) for name, pair in buffers.items()}}
    return {
        "format": FORMAT, "version": VERSION, "class": type(module).__name__, "weights": weights,
        "applications": [_application_to_dict(a) for a in runtime.applications],
        "example": _example_to_dict(runtime.source), "base": dict(base), "as_eager": runtime.source.as_eager,
        **rest,
    }  # fmt: skip


def _application_to_dict(application: Application) -> dict[str, Any]:
    return {
        "method": application.method.to_dict(), "include": list(application.include),
        "exclude": list(application.exclude), "forms": list(application.forms), "key": application.key,
        "claimed": [_standing_to_dict(place) for place in application.claimed or ()],
    }  # fmt: skip


def _standing_to_dict(place: Standing) -> dict[str, Any]:
    return {
        "owner": place.owner, "order": place.order, "lines": list(place.lines), "calls": list(place.calls),
        "same": list(place.same), "on_lines": place.on_lines, "alike": list(place.alike),
    }  # fmt: skip


def _example_to_dict(source: Any) -> dict[str, Any] | None:
    if source.example is None:
        return None
    described: dict[str, Any] = {}
    for name, value in source.signature.bind(*source.example[0], **source.example[1]).arguments.items():
        if isinstance(value, torch.Tensor) and value.numel() <= _LARGEST:
            described[name] = {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        elif value is None or isinstance(value, (bool, int, float, str)):
            described[name] = {"value": value}
        else:
            return None
    return described


def refuse_foreign(target: Path, weights: str) -> None:
    """Raise where a save would write over what somebody else wrote, or over a save of the other kind.

    Args:
        target: the folder.
        weights: those of the recipe to be written. ``save_pretrained`` writes beside whatever there is; a save of our
            own wants a folder of its own.
    """
    asked, remedy, whole = f"cannot save to {target}", "another folder", weights == PRETRAINED
    if not target.exists():
        return
    if not target.is_dir():
        raise SaveError(asked, "it is a file", remedy)
    if not (target / RECIPE).exists():
        if not whole and any(target.iterdir()):
            raise SaveError(asked, "it exists and is not a save of this library", remedy)
        return
    try:
        recipe = json.loads((target / RECIPE).read_text())
    except (OSError, ValueError) as error:
        raise SaveError(
            asked, f"there is a {RECIPE} that cannot be read: {error}", f"remove it, or {remedy}"
        ) from error
    if not isinstance(recipe, dict) or recipe.get("format") != FORMAT:
        raise SaveError(asked, f"there is a {RECIPE} that this library did not write", remedy)
    if (recipe.get("weights") == PRETRAINED) != whole:
        raise SaveError(asked, f"it holds a save by {'resfx.save' if whole else 'save_pretrained'}", remedy)


def from_text(text: str, custom: Mapping[str, type[Method]], where: str) -> Recipe:
    """The recipe in a text of JSON.

    Args:
        custom: methods beside the library's own, by name.
        where: whose recipe it is, for errors.

    Raises:
        SaveError: naming the field that is wrong.
    """
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        Field(None, "", where).fail(f"it is damaged: {error}")
    whole = Field(data, "", where)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        whole.fail("it is not a recipe of this library", "pass a folder written by resfx.save")
    version = data.get("version")
    if type(version) is not int or version not in (1, VERSION):
        whole.fail(f"it has version {version!r}, this library reads 1 and {VERSION}",
                   "install the version of resfx it was saved with")  # fmt: skip
    optional = ("as_eager",) if version == 1 else ()
    entries = ("format", "version", "class", "weights", "applications", "example", "base", "as_eager")
    fields = whole.entries([e for e in entries if e not in optional], (*optional, "buffers"))
    applications = [_application(a, custom, version) for a in fields["applications"].items(least=1)]
    keys = [application.key for application, _ in applications]
    if len(set(keys)) < len(keys):
        fields["applications"].fail(f"two of them have one key: {', '.join(keys)}")
    return Recipe(
        fields["class"].text(), fields["weights"].one_of("new", "all", PRETRAINED),  # type: ignore[arg-type]
        tuple(a for a, _ in applications), tuple(names for _, names in applications),
        _example(fields["example"]), _base(fields["base"]),
        fields["as_eager"].flag() if "as_eager" in fields else False,
        _buffers(fields["buffers"]) if "buffers" in fields else None,
    )  # fmt: skip


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _application(field: Field, custom: Mapping[str, type[Method]], version: int) -> tuple[Application, tuple[str, ...]]:
    """An application and the names of its adds."""
    fields = field.entries(("method", "include", "exclude", "forms", "key", "claimed"))
    known: dict[str, type[Method]] = {**methods(), **custom}
    method = config_of(fields["method"], known, strict=version > 1)
    include, exclude = (tuple(g.text() for g in fields[name].items()) for name in ("include", "exclude"))
    forms = tuple(f.one_of(*FORMS, "outer") for f in fields["forms"].items(least=1))
    application = Application(method, include, exclude, forms, fields["key"].name_of_module())
    claimed = fields["claimed"].items(least=1)
    if version == 1:
        names = tuple(c.text() for c in claimed)
    else:
        application.claimed = tuple(_standing(c) for c in claimed)
        names = tuple(place.name for place in application.claimed)
    if len(set(names)) < len(names):
        fields["claimed"].fail("an add is named twice")
    return application, names


def _standing(field: Field) -> Standing:
    fields = field.entries(("owner", "order", "lines", "calls", "same", "on_lines", "alike"))
    return Standing(
        fields["owner"].text(), fields["order"].number(0), tuple(x.text() for x in fields["lines"].items()),
        tuple(x.text() for x in fields["calls"].items()), _which(fields["same"]), fields["on_lines"].number(1),
        _which(fields["alike"]),
    )  # fmt: skip


def _which(field: Field) -> tuple[int, int]:
    pair = field.items(least=2, most=2)
    return pair[0].number(0, pair[1].number(1) - 1), pair[1].number(1)


def _base(field: Field) -> dict[str, Any]:
    fields = field.entries(("structure", "content", "parameters", "tensors"))
    digests = {name: fields[name].digest() for name in ("structure", "content")}
    return {**digests, **{name: fields[name].number(0, 2**62) for name in ("parameters", "tensors")}}


def _buffers(field: Field) -> dict[str, tuple[str, str]]:
    pairs = {name: entry.items(least=2, most=2) for name, entry in field.any_entries().items()}
    return {name: (_dtype(kind), digest.digest()) for name, (kind, digest) in pairs.items()}


def _dtype(field: Field) -> str:
    if not isinstance(getattr(torch, field.text(), None), torch.dtype):
        field.fail(f"torch has no type {field.value!r}")
    return field.text()


def _example(field: Field) -> dict[str, Any] | None:
    if field.value is None:
        return None
    return {name: _value(entry) for name, entry in field.any_entries().items()}


def _value(field: Field) -> Any:
    if "value" in field.any_entries():
        return field.entries(("value",))["value"].plain()
    fields = field.entries(("shape", "dtype"))
    sizes, total = [], 1
    for size in fields["shape"].items(most=16):
        sizes.append(size.number(0, _LARGEST))
        total *= max(1, sizes[-1])
    if total > _LARGEST:
        fields["shape"].fail(f"{total:,} elements are too many for an example")
    kind = _dtype(fields["dtype"])
    try:
        return torch.zeros(sizes, dtype=getattr(torch, kind))
    except (RuntimeError, NotImplementedError) as error:
        fields["dtype"].fail(f"no tensor of {fields['dtype'].value} can be made: {error}")
