"""What a call does beside its result, in generated code: the attributes that it sets, and what it adds to lists and
dicts that modules hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import fx

from resfx.passes.capture.marking.record import keep
from resfx.passes.capture.structure import Template
from resfx.report.progress import warn

from .plan import Plan
from .region import Region

Compose = Callable[[Template, Callable[[int], str]], str]


def beside(plan: Plan, region: Region, compose: Compose, text: Callable[[fx.Node], str]) -> Iterator[str]:
    """The statements of a region's own code and of the calls that were taken into it.

    Args:
        compose: a value as text, by its template and the text of its leaves.
        text: of a node.
    """
    marks = {n.args[1:]: n for n, home in plan.home.items() if n.target is keep and home is region}
    for call in sorted({region.call, *region.dissolved}, key=lambda c: c.number):
        for write in call.writes:
            if write.value is None:
                warn(
                    f"{region.name} changes {write.name!r} while it is called, and its rewritten code does not: that"
                    " sets numbers, texts and tensors, and adds to lists and dicts"
                )
                continue
            value = compose(write.value, lambda slot, call=call: text(marks[call.number, slot].args[0]))  # type: ignore[misc, arg-type]
            attribute = f"{compose(write.owner, str)}.{write.name}"
            yield f"{attribute}.{write.how}({value})" if write.how else f"{attribute} = {value}"
