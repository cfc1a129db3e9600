"""The calls inside a call: what every module of the traced copy was handed and gave back, tied to the graph's nodes.

A trace flattens a model. While it runs, each tensor that enters or leaves a module's call, or one of the functions that
are kept whole, is sent through an identity operator; afterwards those nodes become :func:`enter` and :func:`leave` with
the number of their call. Every later pass looks through them, and ``passes/fold`` folds the graph into calls again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import fx, nn

from resfx._torch import traced_mark
from resfx.passes.capture.structure import Flattener, Template, exchange

from .acts import Acts
from .contents import Contents
from .modes import Modes, is_mode
from .record import CallRecord, Inside, MethodOf, Passed
from .settle import settle
from .watch import Found, Owned, Watch, is_called, kept, owned_in, parts_of, plain, way_to
from .writes import State, Written, replaced

T = TypeVar("T")
_GOES_THROUGH = ("children", "named_children", "modules", "named_modules")


@dataclass(eq=False)
class Recorder:
    """Listens to a trace.

    Attributes:
        calls: in the order in which they began.
        objects: stateful objects in the order in which they were met.
        kept: tensors that must leave the traced graph with its results, for the sake of their marks.
        grad: whether the call that is traced records gradients.
        owned: by identity, where modules of the tree have an object for an attribute (a config): dotted paths.
    """

    calls: list[CallRecord] = field(default_factory=list)
    objects: list[Passed] = field(default_factory=list)
    kept: list[torch.Tensor] = field(default_factory=list)
    grad: bool = field(default_factory=torch.is_grad_enabled)
    owned: dict[int, tuple[str, ...]] = field(default_factory=dict)
    _watch: Watch | None = None
    _acts: Acts | None = None
    _modes: Modes = field(init=False)
    _values: list[Any] = field(default_factory=list)
    _firsts: list[list[Any]] = field(default_factory=list)
    _open: list[CallRecord] = field(default_factory=list)
    _written: list[Written] = field(default_factory=list)
    _events: list[tuple[str, Any, int, bool]] = field(default_factory=list)
    _fence: torch.Tensor | None = None
    _unwatched: dict[int, tuple[Any, Owned]] = field(default_factory=dict)
    _unseen: list[tuple[int, Any, State]] = field(default_factory=list)
    _quiet: bool = False
    _inside: bool = False
    _thread: int = field(default_factory=threading.get_ident)

    def __post_init__(self) -> None:
        self._modes = Modes(self.calls)

    @property
    def current(self) -> CallRecord | None:
        """The innermost call that is being made."""
        return self._open[-1] if self._open else None

    @property
    def innermost(self) -> str:
        """Path of the innermost module that is being called: ``""`` for none but the whole."""
        return next((c.target for c in reversed(self._open) if isinstance(c.target, str)), "")

    def begin(self, target: str | Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, Any]:
        """A call begins; returns its arguments, marked."""
        if self._written:
            self._blame()
        call = CallRecord(len(self.calls), target, self.current)
        self.calls.append(call)
        self._open.append(call)
        self._written.append(Written())
        (args, kwargs), call.given = self._mark("enter", call, (args, kwargs))
        return args, kwargs

    def end(self, result: Any) -> Any:
        """The innermost call ends; returns its result, marked."""
        self._blame()
        call, written = self._open.pop(), self._written.pop()
        self._keep(call, written)
        result, call.result = self._mark("leave", call, result)
        call.done = True
        return result

    def _blame(self) -> None:
        """Note that the code of the innermost call, so far, left values in objects that cannot be watched."""
        for number, _, before in self._unseen:
            if self._quietly(before.altered):
                self._written[-1].lost.append(("known", number))
        self._unseen = [(number, value, State(value)) for number, value, _ in self._unseen]

    def _keep(self, call: CallRecord, written: Written) -> None:
        """Mark what a call did beside its result."""
        flat = _Meeting(self, call)
        call.writes = self._quietly(written.writes, flat)
        if any(write.owner[0] != "owned" for write in call.writes):
            call.replaced = self._quietly(replaced, self._values, self._firsts)
        for around in self._written:
            around.settle(written)
        if flat.leaves:
            marked = self._note("keep", call, flat.leaves)
            self.kept += [x for x in marked if isinstance(x, torch.Tensor)]

    def meet(self, value: Any, call: CallRecord) -> int:
        """The number of an object; its state is kept when it is met for the first time."""
        for number, known in enumerate(self._values):
            if known is value:
                return number
        self._values.append(value)
        returned = call is not self.current
        maker = call if returned or call.outer is None else call.outer
        passed = Passed(len(self.objects), type(value), maker, call.outer is None and not returned)
        passed.inside = next(((n, way) for n, v in enumerate(self._values[:-1]) if (way := way_to(v, value))), None)
        for known, held in zip(self._values, self.objects, strict=False):
            held.held_by += [(passed.number, way)] if (way := way_to(value, known)) else []
        self.objects.append(passed)
        flat = Flattener(known=self._values[:-1])
        passed.first = flat.state(value)
        self._firsts.append(flat.leaves)
        self._note("hold", passed, flat.leaves)
        seen = self._watch is not None and self._watch.add(value, passed) and not isinstance(value, (dict, list))
        passed.unseen = not seen
        if not seen and not isinstance(value, (dict, list)):
            self._unseen.append((passed.number, value, State(value)))
        if self._watch is not None:
            for part, where in parts_of(value):
                if id(part) not in self.owned:
                    self._watch.add(part, Inside(passed.number, where))
        return passed.number

    def _read(self, key: Any, name: str, value: Any) -> None:
        """The model's own Python read an attribute: of a module, of a config, or of an object that passes through."""
        if (call := self.current) is None or self._quiet:
            return
        written = self._written[-1]
        written.read(_place(key), name, value)
        if isinstance(key, (Passed, Inside)):
            call.looked_into.add(key.number)
        elif not (written.has(_place(key), name) or (is_mode(key, name) and call.sets_mode_of(key, len(self.calls)))):
            if plain(value):
                call.reads.setdefault((key, name), kept(value))
            elif is_called(value):
                call.reads.setdefault((key, name), Found.CALLED)
            elif isinstance(value, torch.Tensor):
                call.reads.setdefault((key, name), Found.PRESENT)
            elif self._watch is not None and (held := self._watch.held(value)) is not None:
                call.reads.setdefault((key, name), held)
            elif (contents := self._quietly(Contents.of, value)) is not None:
                call.reads.setdefault((key, name), contents)

    def take(self, value: Any, call: CallRecord) -> tuple[str, ...] | None:
        """The ways to an object that modules hold. What is read of one that cannot be watched is not told: a call that
        is handed it depends on all of it."""
        if (held := self._unwatched.get(id(value))) is not None and plain(value):
            *holder, name = held[1].ways[0]
            call.reads.setdefault((Owned((tuple(holder),)), name), kept(value))
        return self.owned.get(id(value))

    def _wrote(self, value: Any, key: Any, name: str, before: Any) -> None:
        if self.current is None or self._quiet or self._inside:
            return
        if is_mode(key, name) and isinstance(value, nn.Module):
            self._modes.flag(key, value, self.current)
        else:
            self._written[-1].set(value, _place(key), name, before)

    def _method(self, key: Any, bound: MethodType) -> Any:
        """A method of an object that passes through is kept whole where it is handed tensors: a cache takes keys in."""
        if self._quiet or self.current is None or isinstance(key, Inside):
            return bound
        if not isinstance(key, Passed):
            torchs = isinstance(bound.__self__, nn.Module) and hasattr(nn.Module, bound.__name__)
            if not torchs or bound.__name__ in _GOES_THROUGH:
                how = Found.CHILDREN if torchs else Found.METHOD
                self.current.reads.setdefault((key, bound.__name__), how)
            return self._modes.method(key, bound, self.current)

        @functools.wraps(bound)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._inside or not any(isinstance(x, torch.Tensor) for x in (*args, *kwargs.values())):
                return bound(*args, **kwargs)
            self._inside = True
            try:
                args, kwargs = self.begin(MethodOf(bound.__name__), (bound.__self__, *args), kwargs)
                made, before = self._open[-1], self._quietly(State, bound.__self__)
                result = bound(*args[1:], **kwargs)
                if self._quietly(before.altered):
                    made.alters, made.replaced = True, self._quietly(replaced, self._values, self._firsts)
                return self.end(result)
            finally:
                self._inside = False

        return call

    def _quietly(self, do: Callable[..., T], *args: Any) -> T:
        """Read attributes for the trace's own sake: nobody is told."""
        self._quiet = True
        try:
            return do(*args)
        finally:
            self._quiet = False

    def stop_watching(self) -> None:
        """What is read from now on is nobody's."""
        if self._watch is not None:
            self._watch.end()
            self._watch = None

    def _mark(self, side: str, call: CallRecord, value: Any) -> tuple[Any, Template]:
        flat = _Meeting(self, call)
        template = self._quietly(flat.flatten, value)
        if self._acts is not None:
            self._quietly(self._acts.settle, call.outer if side == "enter" else call, flat.leaves)
        if self._fence is None:
            self._fence = next((x for x in flat.leaves if isinstance(x, torch.Tensor)), None)
        marked = self._note(side, call, flat.leaves)
        return exchange(value, template, marked), template

    def _note(self, side: str, subject: Any, leaves: Sequence[Any]) -> list[Any]:
        """Leave a mark for each leaf in the graph, or a fence where there is none; returns what to go on with."""
        fenced = self._fence is not None and not leaves and side not in ("hold", "keep")
        if fenced:
            self.kept.append(traced_mark(self._fence))
        marked = []
        for leaf in leaves:
            if isinstance(leaf, torch.Tensor):
                marked.append(traced_mark(leaf))
            else:  # a size, or a truth of values: read off a tensor of that length
                length = torch.sym_ite(leaf, 3, 2) if isinstance(leaf, torch.SymBool) else leaf
                self.kept.append(traced_mark(torch.empty((length, 0))))
                marked.append(leaf)
            if side == "hold":
                self.kept.append(marked[-1]) if isinstance(leaf, torch.Tensor) else None
        self._events.append((side, subject, len(leaves), fenced))
        return marked

    # -- the trace's tree -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def listening(self, clone: nn.Module, functions: Sequence[tuple[Any, str]]) -> Iterator[None]:
        """Inside, calls of the clone's submodules and of ``functions`` (owner, name) are recorded."""
        self._watch = Watch(self._read, self._method, self._wrote)
        self._acts = Acts(clone, lambda: self.current, self.grad)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._acts.listening())
            stack.callback(self.stop_watching)
            for value, owned in owned_in(clone):
                self.owned[id(value)] = owned.paths
                if not self._watch.add(value, owned):
                    self._unwatched[id(value)] = value, owned
            for name, module in clone.named_modules():
                if name:
                    self._listen(stack, name, module)
            for owner, name in functions:
                function = getattr(owner, name)
                setattr(owner, name, self._recorded(function))
                stack.callback(setattr, owner, name, function)
            yield

    def _listen(self, stack: contextlib.ExitStack, name: str, module: nn.Module) -> None:
        before = module.register_forward_pre_hook(
            lambda _, args, kwargs: self.begin(name, args, kwargs), with_kwargs=True, prepend=True
        )
        after = module.register_forward_hook(lambda _, args, result: self.end(result))
        stack.callback(before.remove)
        stack.callback(after.remove)

    def _recorded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.current is None or threading.get_ident() != self._thread:
                return function(*args, **kwargs)
            depth = len(self._open)
            args, kwargs = self.begin(function, args, kwargs)
            try:
                return self.end(function(*args, **kwargs))
            except BaseException:
                del self._open[depth:], self._written[depth:]
                raise

        return call

    def settle(self, graph: fx.Graph) -> None:
        """Tie the graph's identity operators to the calls; ``graph`` returns what it returned, less :attr:`kept`."""
        settle(graph, self.calls, self._events, len(self.kept))


def _place(key: Any) -> Template:
    """What a watched object is in templates."""
    if isinstance(key, Inside):
        return ("inside", key.number, key.way)
    return ("known", key.number) if isinstance(key, Passed) else ("owned", key.paths)


class _Meeting(Flattener):
    """Takes a value of one call apart; stateful objects are known by identity, dataclasses are values."""

    def __init__(self, recorder: Recorder, call: CallRecord) -> None:
        super().__init__()
        self._recorder, self._call = recorder, call

    def _take(self, value: Any) -> Template:
        if (paths := self._recorder.take(value, self._call)) is not None:
            return ("owned", paths)
        return super()._take(value)

    def _object(self, value: Any) -> Template:
        if dataclasses.is_dataclass(value):
            return super()._object(value)
        return ("known", self._recorder.meet(value, self._call))
