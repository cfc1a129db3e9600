"""Generated code of one call: the user's own forward, with the adds replaced, in the user's own signature.

What is left of a region after folding reads like this::

    def forward(self, new, handed, hidden_states, attention_mask=None, **kwargs):
        add0, add1 = new
        input_layernorm = self.input_layernorm(hidden_states)
        self_attn = self.self_attn(hidden_states=input_layernorm, attention_mask=attention_mask)
        hidden_states = add0(hidden_states, self_attn[0], input_layernorm)
"""

from __future__ import annotations

import linecache
from typing import Any

from torch import fx, nn

from resfx.errors import VariantError
from resfx.methods.sequence.mixer import Mixer
from resfx.passes.capture.clone import signature_of
from resfx.passes.capture.marking.record import enter, leave
from resfx.passes.capture.structure import COMPOUND, Template
from resfx.passes.capture.untraced import UNTRACED
from resfx.passes.find.mark import mark_of
from resfx.passes.find.operators import operator_name
from resfx.runtime.told import KEYWORD

from . import values
from .at_hand import AtHand
from .function import Code, NotExpressible, Shared
from .guard import Expected, Form
from .plan import Plan, is_size, known_in, only_handed_on
from .region import Region
from .text import REGIONS, in_regions
from .writes import Modes, beside


class Writer(AtHand):
    """Writes the code of one region."""

    def __init__(self, plan: Plan, region: Region, tree: nn.Module, prefix: str, codes: dict[Region, Code]) -> None:
        super().__init__(plan, region, tree)
        self.prefix, self.codes = prefix, codes
        self.new: dict[str, str] = {}
        self.done: set[Any] = set()
        self.called: set[Region] = set()
        self.modes = Modes(region)
        self.parameters = list(signature_of(self.module).parameters.values())
        self.arguments = values.bound(region.call.given, self.parameters)
        self.owner = {node: inner for inner in region.inner for node in inner.leaves.values()}
        self.owner |= {node: inner for inner in region.inner for node in inner.handed}

    # -- the whole ------------------------------------------------------------------------------------------------

    def write(self, shared: Shared) -> Code:
        """The region's code.

        Raises:
            NotExpressible: naming the call that cannot be made.
        """
        self.shared, self.region.forms = shared, []
        self._begin()
        for item in self._items():
            self._do(item)
        result = self._return()
        head = self._head()
        comma = "," if len(self.new) == 1 else ""
        names = f"    {', '.join(self.new.values())}{comma} = {self.bank}\n" if self.new else ""
        body = "".join(f"    {line}\n" for line in [*in_regions(self.lines), result])
        source = f"def forward({head}):\n{names}{body}"
        key = (source, *sorted((k, id(v)) for k, v in self.scope.items()))
        if key not in shared:
            filename = f"<resfx {self.region.path or 'model'} {len(shared)}>"
            linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
            scope = dict(self.scope)
            exec(compile(source, filename, "exec"), scope)
            shared[key] = scope["forward"]
        return Code(shared[key], tuple(map(self._way, self.new)), source, self._place(), self._expected())

    def _place(self) -> str:
        """The module's path in the whole model."""
        return ".".join(p for p in (self.prefix, self.region.path) if p)

    def _expected(self) -> Expected | None:
        if not self.region.passed_on:
            return None
        free = frozenset(i for i, mark in self.region.enters.items() if only_handed_on(self.plan, mark))
        return Expected(self.arguments, {o.number: o.cls for o in self.plan.capture.objects}, free, {})

    def _form(self, inner: Region) -> Form | None:
        """What is taken for granted of a call's result beside its tensors; ``None`` where it is nothing."""
        result, leaves = inner.call.result, inner.leaves
        wide = {bool(m.meta.get("wide")) for m in (*inner.enters.values(), *leaves.values())}
        axes = {i: m.meta["val"].dim() for i, m in leaves.items() if len(wide) > 1}
        if inner.path is None or not (axes or result[0] in COMPOUND):
            return None
        free = frozenset(i for i, mark in leaves.items() if not axes and only_handed_on(self.plan, mark))
        objects = {o.number: o.cls for o in self.plan.capture.objects}
        name = inner.path.removeprefix(f"{self.region.path}.") if self.region.path else inner.path
        return self.shared.form(Form(name, Expected({"result": result}, objects, free, axes)))

    def _begin(self) -> None:
        """What the arguments, and what is handed beside them, are called."""
        named = {p.name for p in self.parameters}
        self.taken |= named
        self.bank, self.beside = (self._fresh(n) if n in named else n for n in ("new", "handed"))
        for name, template in self.arguments.items():
            self._open(template, name)
        for i, node in enumerate(self.region.taken):
            self.env[node] = f"{self.beside}.given[{i}]"
        for i, number in enumerate(self.region.held):
            self._meet(number, f"{self.beside}.given[{len(self.region.taken) + i}]")

    def _head(self) -> str:
        shown = ["self", self.bank, self.beside]
        starred = False
        for p in self.parameters:
            if p.kind is p.KEYWORD_ONLY and not starred:
                shown.append("*")
                starred = True
            star = "*" if p.kind is p.VAR_POSITIONAL else "**" if p.kind is p.VAR_KEYWORD else ""
            starred = starred or star == "*"
            default = "" if p.default is p.empty else f"={self._constant(p.default, f'default_{p.name}')}"
            shown.append(f"{star}{p.name}{default}")
        return ", ".join(shown)

    def _open(self, template: Any, text: str) -> None:
        """What the parts of an argument or a result are called."""
        if isinstance(template, dict):
            for key, part in template.items():
                self._open(part, f"{text}[{key!r}]")
        elif isinstance(template, list):
            for i, part in enumerate(template):
                self._open(part, f"{text}[{i}]")
        else:
            if template[0] == "owned":
                self.lent |= dict.fromkeys(template[1], text)
            for slot, path in values.leaves(template, text):
                if slot in self.marks:
                    self.env[self.marks[slot]] = path
            for number, path in values.objects(template, text):
                self._meet(number, path)

    @property
    def marks(self) -> dict[int, fx.Node]:
        return self.region.enters

    def _items(self) -> list[Any]:
        """Operators and calls in the order of the graph."""
        return self.plan.items(self.region)

    def _do(self, item: Any) -> None:
        if item in self.done:
            return
        self.done.add(item)
        if isinstance(item, Region):
            try:
                self._call(item)
            except NotExpressible as error:
                error.region = error.region or item
                raise
        else:
            self._operator(item)
            if kind := REGIONS.get(item.target):
                self.lines[-1] = kind(self.lines[-1])

    # -- values ---------------------------------------------------------------------------------------------------

    def _node(self, node: fx.Node) -> str:
        if node in self.env:
            return self.env[node]
        if is_size(node):
            return self._size(node)
        if node.op == "get_attr":
            return self._attribute(node)
        if places := mark_of(node).held:
            return self._in_holding(node, places)
        if mark_of(node).lifted:
            capture = self.plan.capture
            return self._global(capture.constants[capture.lifted.index(node)], "constant")
        if node in self.owner:
            self._do(self.owner[node])
        elif self._in_object(node):
            pass
        elif (home := self.plan.home.get(node)) is self.region and _runs(node):
            self._do(node)
        if node not in self.env:  # what a method took out of the graph has no home
            raise NotExpressible(f"{node} of {home.name}" if home else f"{node}, which a method replaced")
        return self.env[node]

    # -- statements -----------------------------------------------------------------------------------------------

    def _operator(self, node: fx.Node) -> None:
        if not node.users and node.op != "call_module" and not node.is_impure():
            return
        if node.target is UNTRACED:
            raise VariantError(
                f"cannot write the code of {self.region.name}",
                f"{node.args[1]}, whose inside cannot be traced ({node.args[3]}), would have to be written out",
                "another method, or exclude= the modules around it",
            )  # fmt: skip
        text = self._new_call(node) if node.op == "call_module" else self._target(node)
        name = "x" if node.op == "call_module" else operator_name(node).strip("_") or "value"
        # Names say nothing of where in the model this is: equal blocks, equal text.
        self.env[node] = self._set(name, text)

    def _new_call(self, node: fx.Node) -> str:
        path = str(node.target)
        module, full, text = self.tree.get_submodule(path), self.prefix_of(path), self._new_module(path)
        if isinstance(module, Mixer) and module.streams and (cache := self._cache()) is not None:
            text = f"remembering({text}, {full!r}, {cache})"
        given = [*(self._text(a) for a in node.args), *(f"{k}={self._text(v)}" for k, v in node.kwargs.items())]
        return f"{text}({', '.join(given)})"

    def _new_module(self, path: str) -> str:
        full = self.prefix_of(path)
        if full not in self.new:
            self.new[full] = self._fresh(full.rpartition(".")[2])
        return self.new[full]

    def _way(self, full: str) -> tuple[str, ...]:
        """The way to a new module from where its call is, the same for equal blocks."""
        own = self._place()
        key, _, rest = full.partition(".")
        return (key, *rest.removeprefix(f"{own}.").split(".")) if f"{rest}.".startswith(f"{own}.") or not own else (
            "", *full.split("."))  # fmt: skip

    def prefix_of(self, path: str) -> str:
        """A new module's path below the whole model's ``resfx``, whose part this tree may be."""
        key, _, rest = path.removeprefix("resfx.").partition(".")
        return ".".join(p for p in (key, self.prefix, rest) if p)

    def _cache(self) -> str | None:
        number = self.plan.cache
        return None if number is None else self._object(number)

    def _call(self, inner: Region) -> None:
        self.lines += self.modes.until(inner, self._compose)
        if not any(n.graph is self.plan.graph for n in (*inner.enters.values(), *inner.leaves.values())) and (
            values.has_leaves(inner.call.given) or values.has_leaves(inner.call.result)
        ):
            return
        self.called.add(inner)
        args, kwargs = inner.call.given[2]
        given = [self._argument(inner, t) for t in args[2]]
        given += [f"{k}={self._argument(inner, t)}" if k.isidentifier() else f"**{{{k!r}: {self._argument(inner, t)}}}"
                  for k, t in zip(kwargs[1], kwargs[2], strict=True)]  # fmt: skip
        if inner.path is not None:
            text = self._called(inner.path)
            name = next((p for p in reversed(inner.path.split(".")) if not p.isdigit()), "layer")
        else:
            name = inner.call.name
            text = self._global(inner.call.target, name)
        call, handed = text, ""
        if inner.generated and inner.passed_on:
            code = self._global(self.codes[inner], f"code_{name}")
            crossing = [self._text(n) for n in inner.taken] + [self._object(n) for n in inner.held]
            handed = self._set(f"handed_{name}", f"Handed({code}, [{', '.join(crossing)}])")
            if self.plan.beside(inner.path or ""):
                call, given = "call_beside", [text, handed, *given]
            else:
                given.append(f"{KEYWORD}={handed}")
        returns_object = any(True for _ in known_in(inner.call.result))
        used = any(n.users for n in inner.leaves.values()) or bool(inner.handed) or returns_object
        call = f"{call}({', '.join(given)})"
        if not used:
            self.lines.append(call)
            return
        if (form := self._form(inner)) is not None:
            self.region.forms.append(form)
            call = f"{self._global(form, f'form_{name}')}({call})"
        result = self._set(name, call)
        for slot, path in values.leaves(inner.call.result, result):
            if slot in inner.leaves:
                self.env[inner.leaves[slot]] = path
        for number, path in values.objects(inner.call.result, result):
            self._meet(number, path)
        for i, node in enumerate(inner.handed):
            self.env[node] = f"{handed}.made[{i}]"

    def _called(self, path: str) -> str:
        if (text := self._at_hand(path)) is None:
            raise NotExpressible(f"a call of {path}, which is not below {self.region.path}")
        return text

    def _argument(self, inner: Region, template: Template) -> str:
        marks = inner.enters

        def leaf(slot: int) -> str:
            if slot not in marks:
                raise NotExpressible(f"an argument of {inner.call.name}")
            return self._text(marks[slot].args[0])

        return self._compose(template, leaf)

    def _return(self) -> str:
        result = self.region.call.result

        def leaf(slot: int) -> str:
            if slot not in self.region.leaves:
                raise NotExpressible(f"a result of {self.region.call.name or 'the model'}")
            return self._text(self.region.leaves[slot].args[0])

        self.lines += self.modes.until(None, self._compose)
        self.lines += beside(self.plan, self.region, self._compose, self._text)
        handed = [self._text(n) for n in self.region.handed]
        text = self._compose(result, leaf)
        if handed:
            self.lines.append(f"{self.beside}.made = [{', '.join(handed)}]")
        if self.region is self.plan.root and self.plan.mixing and self.plan.cache is not None:
            self.lines.append(f"settle({self._object(self.plan.cache)})")
        return f"return {text}"


def _runs(node: fx.Node) -> bool:
    return node.op.startswith("call") and node.target not in (enter, leave)
