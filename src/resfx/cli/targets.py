"""Models named on a command line: an import path, a Hugging Face config, or a captured program. No downloads."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resfx.errors import CaptureError, ResfxError, require
from resfx.runtime.huggingface import from_config


@dataclass(frozen=True)
class Target:
    """A model and the call to capture it with; ``None`` where the library finds inputs itself.

    Attributes:
        model: a module, an ``ExportedProgram``, or anything else that ``resfx.scan`` takes.
        note: what the user should know about how it was made.
    """

    model: Any
    args: tuple[Any, ...] | None = None
    kwargs: dict[str, Any] | None = None
    note: str = ""

    def module(self) -> nn.Module:
        """The model as a module that runs."""
        return self.model.module() if isinstance(self.model, torch.export.ExportedProgram) else self.model


def load_target(text: str, batch: int = 2, length: int = 16) -> Target:
    """The model that a command-line argument names.

    Args:
        text: ``package.module:factory``, a config folder or ``config.json``, or a ``.pt2`` file.
        batch, length: sizes of the inputs made for a config.

    Raises:
        CaptureError: if there is no such model, or it cannot be built; says why.
        MissingPackageError: for a config without transformers.
    """
    path = Path(text)
    if path.suffix == ".pt2":
        return _program(path)
    if path.is_dir() or path.suffix == ".json":
        return _config(path, batch, length)
    if ":" not in text:
        raise CaptureError(
            f"cannot find a model at {text!r}", "it is no file or folder, and no import path",
            "package.module:factory, a folder with a config.json, or a .pt2 file",
        )  # fmt: skip
    return _import_path(text)


def _program(path: Path) -> Target:
    if not path.is_file():
        raise CaptureError(f"cannot load {path}", "there is no such file", "torch.export.save writes one")
    try:
        return Target(torch.export.load(path))
    except Exception as error:
        raise CaptureError(f"cannot load {path}", _line(error), "save it with torch.export.save") from error


def _import_path(text: str) -> Target:
    module_name, _, attribute = text.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise CaptureError(f"cannot import {module_name}", _line(error), "run where Python finds it") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [n for n, v in vars(found).items() if callable(v) and not n.startswith("_")]
            raise CaptureError(f"cannot find {attribute!r} in {module_name}", f"no {part!r}", f"one of: {_few(names)}")
        found = getattr(found, part)
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise CaptureError(f"cannot use {text}", f"it is a {type(found).__name__}",
                               "a module, or a callable that returns one")  # fmt: skip
        found = _built(text, found)
    parts = tuple(found) if isinstance(found, (tuple, list)) else (found,)
    if not 1 <= len(parts) <= 3 or (len(parts) == 3 and not isinstance(parts[2], dict)):
        raise CaptureError(f"cannot use what {text} returns", f"{len(parts)} values",
                           "return a model, (model, args) or (model, args, kwargs)")  # fmt: skip
    args = parts[1] if len(parts) > 1 else None
    if isinstance(args, dict):
        return Target(parts[0], (), args)
    if isinstance(args, torch.Tensor):
        args = (args,)
    return Target(parts[0], tuple(args) if args is not None else None, parts[2] if len(parts) == 3 else None)


def _built(text: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except ResfxError:
        raise
    except Exception as error:
        raise CaptureError(
            f"cannot build the model of {text}", _line(error), "a callable without arguments that returns a model"
        ) from error


def _config(path: Path, batch: int, length: int) -> Target:
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise CaptureError(f"cannot read {path}", f"there is no {file}", "a folder with a Hugging Face config.json")
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers = require("transformers", "hf", "a Hugging Face config")
    try:
        config = transformers.AutoConfig.from_pretrained(str(file), local_files_only=True)
        torch.manual_seed(0)
        cls, note = _class(transformers, config, file)
        if any(file.parent.glob("*.safetensors")):
            model = cls.from_pretrained(str(file.parent), local_files_only=True)
        else:
            model = from_config(cls, config)
    except ResfxError:
        raise
    except Exception as error:
        raise CaptureError(
            f"cannot build a model from {file}", _line(error),
            "a config that transformers knows, without remote code; or package.module:factory",
        ) from error  # fmt: skip
    return Target(model.eval(), (), example_inputs(model, batch, length), note)


def _class(transformers: Any, config: Any, file: Path) -> tuple[Any, str]:
    """The class that a config names; else the base model of its type, and a word that says so."""
    named = list(config.architectures or ())
    for name in named:
        if hasattr(transformers, name):
            return getattr(transformers, name), ""
    if named:
        raise CaptureError(
            f"cannot build a model from {file}", f"this transformers has no {' or '.join(named)}",
            "another version of transformers, or package.module:factory for code of your own",
        )  # fmt: skip
    base = transformers.MODEL_MAPPING[type(config)]
    base = base[0] if isinstance(base, (tuple, list)) else base
    stem = base.__name__.removesuffix("Model")
    heads = sorted(n for n in dir(transformers) if n.startswith((f"{stem}For", f"{stem}LMHead")))
    remedy = f'; for one with a head add "architectures": ["..."] to it: {_few(heads)}' if heads else ""
    return base, f"{file} names no architectures: taking the base model {base.__name__}{remedy}"


def example_inputs(model: Any, batch: int, length: int) -> dict[str, Any]:
    """Random inputs for a transformers model, from its config.

    Raises:
        CaptureError: for a kind of input that cannot be made up.
    """
    config, name = model.config, model.main_input_name
    parts = [config, *(getattr(config, n, None) for n in ("text_config", "vision_config", "audio_config"))]

    def setting(*names: str) -> Any:
        return next((v for n in names for p in parts if (v := getattr(p, n, None)) is not None), None)

    torch.manual_seed(0)
    inputs: dict[str, Any] = {}
    if name == "input_ids":
        inputs[name] = _tokens(setting("vocab_size"), batch, length)
    elif name == "pixel_values":
        size, channels = setting("image_size") or 224, setting("num_channels") or 3
        height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
        inputs[name] = torch.randn(batch, channels, height, width)
    elif name == "input_features" and setting("num_mel_bins"):
        frames = 2 * setting("max_source_positions") if setting("max_source_positions") else length
        inputs[name] = torch.randn(batch, setting("num_mel_bins"), frames)
    elif name == "input_values":
        inputs[name] = torch.randn(batch, 16000)
    else:
        raise CaptureError(
            f"cannot make inputs for {type(model).__name__}", f"it takes {name!r}",
            "package.module:factory that returns (model, args, kwargs)",
        )  # fmt: skip
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = _tokens(setting("vocab_size"), batch, length)
    if setting("use_cache") is not None:
        inputs["use_cache"] = False
    return inputs


def _tokens(vocabulary: int, batch: int, length: int) -> torch.Tensor:
    # The ends of a vocabulary hold special tokens, and padding would mask positions.
    return torch.randint(min(10, vocabulary // 2), max(vocabulary - 10, vocabulary // 2 + 1), (batch, length))


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).strip().splitlines()[:1])}"


def _few(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "none is there"
