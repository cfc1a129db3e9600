"""What ``torch.compile`` knows of the code that it traces, while it traces it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def at_compile_time() -> Callable[[Callable[[Any], None]], None]:
    """What calls a function while the code at hand is compiled, with what the compiler knows at that place."""
    from torch._dynamo.comptime import comptime

    return comptime


def local_object(context: Any, name: str) -> Any:
    """The object that is a local variable of the code that is compiled. What the trace does to it is not done yet."""
    return _variable(context, name).realize().value


def local_value(context: Any, name: str) -> Any:
    """A local variable of the code that is compiled; tensors have no values.

    Raises:
        LookupError: where there is more in it than tensors, constants, lists, tuples and dicts of such.
    """
    return _value(_variable(context, name))


def _variable(context: Any, name: str) -> Any:
    return context.get_local(name)._i_will_not_complain_if_bc_breaks_VariableTracker()


def _value(variable: Any) -> Any:
    from torch._dynamo.variables import ConstDictVariable, ListVariable, TensorVariable, TupleVariable

    variable = variable.realize()
    kind = type(variable)
    if kind is TensorVariable:
        return variable.as_proxy().node.meta["example_value"]
    if kind in (TupleVariable, ListVariable):
        return variable.python_type()([_value(item) for item in variable.items])
    if kind is ConstDictVariable:
        return {_value(key.vt): _value(item) for key, item in variable.items.items()}
    try:
        return variable.as_python_constant()
    except NotImplementedError:
        raise LookupError(f"what a {kind.__name__} is") from None
