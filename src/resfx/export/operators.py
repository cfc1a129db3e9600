"""Fused operators in ONNX: one node in the project's own domain each, with its body attached as a function.

What the operators are, their records say (:mod:`resfx.ops.record`). A node whose body is attached runs in any session;
where a library registers a kernel for the node, the kernel wins. The body of a function cannot ask which optional
inputs are there, nor how many make up a list, so each way a model uses an operator gets a body of its own, told apart
by the node's ``overload`` (empty where a model has one way only, which is all that ``onnx.reference`` understands).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from resfx._torch import schema_of as operator_schema
from resfx.errors import require
from resfx.ops.onnx import RUNTIME
from resfx.ops.record import DOMAIN, VERSION, Builtin, Operator, Port

Records = Mapping[tuple[str, str], Operator]
Choose = Callable[[Any], tuple[Builtin, Mapping[str, int]] | None]

_PURPOSE = "ONNX export"
_FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(double)"]
_INTEGERS = ["tensor(int64)", "tensor(int32)", "tensor(bool)"]
_SCALARS = {"float": float, "int": int, "bool": bool, "str": str, "SymInt": int}


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


def schema_of(record: Operator) -> Any:
    """The ``onnx.defs.OpSchema`` of a node."""
    schema = require("onnx.defs", "onnx", _PURPOSE).OpSchema
    options = schema.FormalParameterOption
    kinds = {float: schema.AttrType.FLOAT, int: schema.AttrType.INT, str: schema.AttrType.STRING}

    def formal(port: Port) -> Any:
        option = options.Variadic if port.many else options.Optional if port.optional else options.Single
        return schema.FormalParameter(port.name, port.kind, port.doc, param_option=option)

    variables = dict.fromkeys(port.kind for port in (*record.inputs, record.output))
    return schema(
        record.name, DOMAIN, VERSION, record.doc, inputs=[formal(p) for p in record.inputs],
        outputs=[formal(record.output)],
        type_constraints=[(v, _INTEGERS if v.startswith("I") else _FLOATS, "") for v in variables],
        attributes=[schema.Attribute(a.name, kinds[a.type], a.doc) for a in record.attributes],
    )  # fmt: skip


def translation_table(records: Records) -> dict[Any, Callable[..., Any]]:
    """``custom_translation_table`` of ``torch.onnx.export``: each torch operator becomes its node."""
    return {record.torch_op: _translation(record) for record in records.values()}


def _translation(record: Operator) -> Callable[..., Any]:
    values = require("onnxscript.values", "onnx", _PURPOSE)
    node = values.Op(values.Opset(DOMAIN, VERSION), record.name, schema_of(record))
    arguments = operator_schema(record.torch_op).arguments
    scalars = {a.name: _scalar(a) for a in arguments if "Tensor" not in str(a.type)}

    def translate(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        numbers = {n: int(v) if isinstance(v, bool) else v for n, v in given.items() if n in scalars}
        numbers |= {n: derive(given) for n, derive in record.derived.items()}
        inputs, count = _inputs(record, given), len(record.inputs)
        if "stash_type" in {a.name for a in record.attributes} - set(numbers):
            main = (value for i, value in enumerate(inputs) if value is not None and record.port(i).kind == "T")
            numbers["stash_type"] = _stash_type(next(main))
        if record.many:
            # By name: the exporter takes all positions for a variadic input, those of other inputs too.
            numbers[record.inputs[-1].name] = tuple(inputs[count - 1 :])
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
    translate.__name__ = record.name
    translate.__signature__ = signature  # type: ignore[attr-defined]
    translate.__annotations__ = scalars
    return translate


def _inputs(record: Operator, given: Mapping[str, Any]) -> list[Any]:
    """Arguments as the node's inputs: by name, then the lists."""
    lists = [v for value in given.values() if isinstance(value, (list, tuple)) for v in value]
    return [*(given[p.name] for p in record.inputs if not p.many), *lists]


def _scalar(argument: Any) -> type:
    return _SCALARS[str(argument.type).removeprefix("Optional[").removesuffix("]")]


def _stash_type(value: Any) -> int:
    ir = require("onnx_ir", "onnx", _PURPOSE)
    half = value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    return int(ir.DataType.FLOAT if half else value.dtype)


def attach_bodies(
    model: Any,
    records: Records,
    opset: int,
    builtin_for: Choose = lambda node: None,
) -> None:
    """Give every fused node of an ``onnx_ir.Model`` a function body. Has to come last: optimisers inline bodies.

    Args:
        builtin_for: see :func:`resfx.export.builtin.builtin_for`; by default every body is the standard one.
    """
    uses: dict[tuple[str, str], dict[_Way, list[Any]]] = {}
    for node in model.graph.all_nodes():
        record = records.get((node.domain, node.op_type))
        if record is not None:
            node.resize_inputs(max(len(record.inputs), len(node.inputs)))
            given = tuple(value is not None for value in node.inputs)
            flags = tuple(node.attributes[f].as_int() for f in record.flags)
            builtin, static = builtin_for(node) or (None, {})
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


def _overload(record: Operator, way: _Way) -> str:
    """A name for one way of use: optional inputs that are there, how many make up a list, flags that are not zero."""
    inputs = [p.name for p, here in zip(record.inputs, way.given, strict=False) if here and p.optional]
    if record.many:
        inputs.append(f"of{len(way.given) - len(record.inputs) + 1}")
    raised = [f if v == 1 else f"{f}{v}" for f, v in zip(record.flags, way.flags, strict=True) if v]
    return "_".join(inputs + raised + (["builtin"] if way.body else [])) or "plain"


def _function(record: Operator, way: _Way, overload: str, opset: int) -> Any:
    ir, onnxscript = require("onnx_ir", "onnx", _PURPOSE), require("onnxscript", "onnx", _PURPOSE)
    types = {int: ir.AttributeType.INT, float: ir.AttributeType.FLOAT, str: ir.AttributeType.STRING}
    kinds = {a.name: types[a.type] for a in record.attributes}
    references = {name: Reference(name, kind) for name, kind in kinds.items()}
    attributes = {**references, **dict(zip(record.flags, way.flags, strict=True))}
    body = functools.partial(way.body, **dict(way.static)) if way.body else record.body
    ports = [record.port(i) for i in range(len(way.given))]
    names = [f"{p.name}_{i}" if p.many else p.name for i, p in enumerate(ports)]
    inputs = [ir.Value(name=name) if here else None for name, here in zip(names, way.given, strict=True)]
    function = onnxscript.build_function(
        lambda op, *values: body(_Builder(op), *values, **attributes), inputs, domain=DOMAIN,
        name=record.name, attributes={n: ir.Attr(n, k, None) for n, k in kinds.items()},
        opset_imports={"": opset, **({RUNTIME: 1} if way.body else {})},
    )  # fmt: skip
    function.overload = overload
    return function
