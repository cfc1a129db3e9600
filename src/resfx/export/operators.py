"""Fused operators in ONNX: one node in the project's own domain each, with its body attached as a function.

Files ``resfx/ops/*/onnx.py`` set ``OPERATOR``, to a record or several. A node whose body is attached runs in any
session; where a library registers a kernel for the node, the kernel wins. The body of a function cannot ask which
optional inputs are there, nor how many make up a list, so each way a model uses an operator gets a body of its own,
told apart by the node's ``overload`` (empty where a model has one way only, which is all that ``onnx.reference``
understands).
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from resfx._torch import schema_of
from resfx.errors import require

DOMAIN, VERSION = "resfx", 1

_PURPOSE = "ONNX export"
_FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(double)"]
_INTEGERS = ["tensor(int64)", "tensor(int32)", "tensor(bool)"]
_SCALARS = {"float": float, "int": int, "bool": bool, "str": str, "SymInt": int}


@dataclass(frozen=True)
class FusedOperator:
    """One fused operator.

    Attributes:
        torch_name: the ``torch.library`` operator. Its tensors are the node's inputs, by name; lists of them, one after
            the other, its variadic input; its numbers the node's attributes.
        schema: the ``onnx.defs.OpSchema`` of the node. An attribute ``stash_type`` that the torch operator lacks is
            filled with the type to accumulate in: float for inputs ``T`` of half types.
        body: ``body(op, *inputs, **attributes)`` builds the function of standard operators with
            ``op.Add(...)`` and the like. Absent inputs are ``None``; attributes are references, flags numbers.
        flags: integer attributes that the body branches on.
        derived: attributes that the torch operator lacks, as functions of its arguments by name.
    """

    torch_name: str
    schema: Any
    body: Callable[..., Any]
    flags: tuple[str, ...] = ()
    derived: Mapping[str, Callable[[Mapping[str, Any]], Any]] = field(default_factory=dict)

    @property
    def torch_op(self) -> Any:
        """The overload that appears in exported programs."""
        space, name = self.torch_name.split("::")
        return getattr(getattr(torch.ops, space), name).default


@dataclass(frozen=True)
class Reference:
    """In a body: an attribute of the node, whatever its value."""

    name: str
    kind: Any


class _Builder:
    """Builds the nodes of a body; lets references stand for attributes."""

    def __init__(self, op: Any) -> None:
        self._op = op

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        refer = require("onnx_ir", "onnx", _PURPOSE).RefAttr
        return lambda *inputs, **attributes: getattr(self._op, op_type)(
            *inputs, **{n: refer(n, a.name, a.kind) if isinstance(a, Reference) else a for n, a in attributes.items()}
        )


def operator_schema(
    name: str, doc: str, inputs: Sequence[Any], outputs: Sequence[Any], attributes: Sequence[Any]
) -> Any:
    """The schema of a node in the project's domain; type variables that start with ``I`` are integers."""
    defs = require("onnx.defs", "onnx", _PURPOSE)
    variables = dict.fromkeys(p.type_str for p in [*inputs, *outputs])
    types = [(v, _INTEGERS if v.startswith("I") else _FLOATS, "") for v in variables]
    return defs.OpSchema(
        name, DOMAIN, VERSION, doc, inputs=list(inputs), outputs=list(outputs), type_constraints=types,
        attributes=list(attributes),
    )  # fmt: skip


def tensor(name: str, variable: str, doc: str, optional: bool = False, many: bool = False) -> Any:
    """An input of a schema; ``many``, of the last one, for any number of them."""
    schema = require("onnx.defs", "onnx", _PURPOSE).OpSchema
    options = schema.FormalParameterOption
    option = options.Variadic if many else options.Optional if optional else options.Single
    return schema.FormalParameter(name, variable, doc, param_option=option)


output = tensor


def attribute(name: str, kind: type, doc: str) -> Any:
    """A required attribute of a schema."""
    schema = require("onnx.defs", "onnx", _PURPOSE).OpSchema
    kinds = {float: schema.AttrType.FLOAT, int: schema.AttrType.INT, str: schema.AttrType.STRING}
    return schema.Attribute(name, kinds[kind], doc)


def fused_operators() -> dict[tuple[str, str], FusedOperator]:
    """Every record of :mod:`resfx.ops`, by domain and name of its node."""
    package = importlib.import_module("resfx.ops")
    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        if info.ispkg:
            record = importlib.import_module(f"resfx.ops.{info.name}.onnx").OPERATOR
            for one in record if isinstance(record, (list, tuple)) else [record]:
                found[one.schema.domain, one.schema.name] = one
    return found


def translation_table(records: dict[tuple[str, str], FusedOperator]) -> dict[Any, Callable[..., Any]]:
    """``custom_translation_table`` of ``torch.onnx.export``: each torch operator becomes its node."""
    return {record.torch_op: _translation(record) for record in records.values()}


def _translation(record: FusedOperator) -> Callable[..., Any]:
    values = require("onnxscript.values", "onnx", _PURPOSE)
    node = values.Op(values.Opset(record.schema.domain, VERSION), record.schema.name, record.schema)
    arguments = schema_of(record.torch_op).arguments
    scalars = {a.name: _scalar(a) for a in arguments if "Tensor" not in str(a.type)}

    def translate(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        numbers = {n: int(v) if isinstance(v, bool) else v for n, v in given.items() if n in scalars}
        numbers |= {n: derive(given) for n, derive in record.derived.items()}
        if "stash_type" in record.schema.attributes and "stash_type" not in numbers:
            numbers["stash_type"] = _stash_type(next(_main(record, given)))
        inputs, count = _inputs(record, given), len(record.schema.inputs)
        if record.schema.inputs[-1].option == _variadic(record):
            # By name: the exporter takes all positions for a variadic input, those of other inputs too.
            numbers[record.schema.inputs[-1].name] = tuple(inputs[count - 1 :])
            del inputs[count - 1 :]
        return node(*inputs, **numbers)

    # The exporter reads the signature to sort tensors from numbers, and passes every argument.
    parameters = [
        inspect.Parameter(
            a.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=a.default_value if a.has_default_value() else None,
            annotation=scalars.get(a.name, inspect.Parameter.empty),
        )
        for a in arguments
    ]  # fmt: skip
    signature = inspect.Signature(parameters)
    translate.__name__ = record.schema.name
    translate.__signature__ = signature  # type: ignore[attr-defined]
    translate.__annotations__ = scalars
    return translate


def _inputs(record: FusedOperator, given: Mapping[str, Any]) -> list[Any]:
    """Arguments as the node's inputs: by name, then the lists."""
    lists = [v for value in given.values() if isinstance(value, (list, tuple)) for v in value]
    single = [given[p.name] for p in record.schema.inputs if p.option != _variadic(record)]
    return [*single, *lists]


def _variadic(record: FusedOperator) -> Any:
    return record.schema.FormalParameterOption.Variadic


def _main(record: FusedOperator, given: Mapping[str, Any]) -> Iterator[Any]:
    """The tensors that the schema calls ``T``."""
    for value, parameter in zip(_inputs(record, given), _parameters(record), strict=False):
        if parameter.type_str == "T" and value is not None:
            yield value


def _parameters(record: FusedOperator) -> Iterator[Any]:
    """A parameter for each input; the variadic one again and again."""
    for parameter in record.schema.inputs:
        yield parameter
    while parameter.option == _variadic(record):
        yield parameter


def _scalar(argument: Any) -> type:
    return _SCALARS[str(argument.type).removeprefix("Optional[").removesuffix("]")]


def _stash_type(value: Any) -> int:
    ir = require("onnx_ir", "onnx", _PURPOSE)
    half = value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    return int(ir.DataType.FLOAT if half else value.dtype)


def attach_bodies(
    model: Any,
    records: dict[tuple[str, str], FusedOperator],
    opset: int,
    choose: Callable[[Any], tuple[Any, Mapping[str, int]] | None] = lambda node: None,
) -> None:
    """Give every fused node of an ``onnx_ir.Model`` a function body. Has to come last: optimisers inline bodies.

    Args:
        choose: see :func:`resfx.export.builtin.choose`; by default every body is the standard one.
    """
    uses: dict[tuple[str, str], dict[_Way, list[Any]]] = {}
    for node in model.graph.all_nodes():
        record = records.get((node.domain, node.op_type))
        if record is not None:
            node.resize_inputs(max(len(record.schema.inputs), len(node.inputs)))
            given = tuple(value is not None for value in node.inputs)
            flags = tuple(node.attributes[f].as_int() for f in record.flags)
            builtin, static = choose(node) or (None, {})
            way = _Way(given, flags, None if builtin is None else builtin.body, tuple(sorted(static.items())))
            uses.setdefault((node.domain, node.op_type), {}).setdefault(way, []).append(node)
    for key, ways in uses.items():
        for number, (way, nodes) in enumerate(ways.items()):
            overload = _overload(records[key], way) if len(ways) > 1 else ""
            if any(f.overload == overload and (f.domain, f.name) == key for f in model.functions.values()):
                overload = f"{overload}_{number}"  # ways that differ in shapes alone
            function = _function(records[key], way, overload, opset)
            model.functions[function.identifier()] = function
            for domain in function.opset_imports:
                model.opset_imports.setdefault(domain, 1)
            for node in nodes:
                node.overload = overload
        model.opset_imports[key[0]] = VERSION


@dataclass(frozen=True)
class _Way:
    """One way of using an operator: which inputs are there, its flags, and a body of its own if it has one."""

    given: tuple[bool, ...]
    flags: tuple[int, ...]
    body: Callable[..., Any] | None = None
    static: tuple[tuple[str, int], ...] = ()


def _overload(record: FusedOperator, way: _Way) -> str:
    """A name for one way of use: optional inputs that are there, how many make up a list, flags that are not zero."""
    optional = record.schema.FormalParameterOption.Optional
    inputs = [p.name for p, here in zip(record.schema.inputs, way.given, strict=False) if here and p.option == optional]
    if record.schema.inputs[-1].option == _variadic(record):
        inputs.append(f"of{len(way.given) - len(record.schema.inputs) + 1}")
    raised = [f if v == 1 else f"{f}{v}" for f, v in zip(record.flags, way.flags, strict=True) if v]
    return "_".join(inputs + raised + (["builtin"] if way.body else [])) or "plain"


def _function(record: FusedOperator, way: _Way, overload: str, opset: int) -> Any:
    ir, onnxscript = require("onnx_ir", "onnx", _PURPOSE), require("onnxscript", "onnx", _PURPOSE)
    kinds = {name: ir.AttributeType[a.type.name] for name, a in record.schema.attributes.items()}
    references = {name: Reference(name, kind) for name, kind in kinds.items()}
    attributes = {**references, **dict(zip(record.flags, way.flags, strict=True))}
    body = functools.partial(way.body, **dict(way.static)) if way.body else record.body
    names = [p.name if p.option != _variadic(record) else f"{p.name}_{i}" for i, p in
             zip(range(len(way.given)), _parameters(record), strict=False)]  # fmt: skip
    inputs = [ir.Value(name=name) if here else None for name, here in zip(names, way.given, strict=True)]
    function = onnxscript.build_function(
        lambda op, *values: body(_Builder(op), *values, **attributes), inputs, domain=record.schema.domain,
        name=record.schema.name, attributes={n: ir.Attr(n, k, None) for n, k in kinds.items()},
        opset_imports={"": opset, **({"com.microsoft": 1} if way.body else {})},
    )  # fmt: skip
    function.overload = overload
    return function
