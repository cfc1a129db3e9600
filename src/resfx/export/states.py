"""What mixers keep between tokens, as inputs and outputs of one flat graph: decoding where a graph is exported.

The graph of a call with a cache has the tensors of the cache among its inputs and outputs. Each mixer's state becomes
one more layer of that cache, as :mod:`.memory` makes it in the user's own calls. The host never looks at these layers:
it addresses its own by number.

Any module that follows :class:`resfx.methods.sequence.mixer.Mixer` takes part, whichever scope put it into the graph.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import fx, nn

from resfx.errors import VariantError
from resfx.methods.sequence.mixer import Mixer
from resfx.passes.capture.structure import Template
from resfx.passes.capture.trace import Capture
from resfx.passes.find.graph import hint, shape
from resfx.passes.find.mark import mark_of
from resfx.passes.scopes.bank import BANK
from resfx.runtime.huggingface import CACHE_LAYERS, LAYER_KEYS, ShortState


def thread_states(capture: Capture, tree: nn.Module) -> None:
    """Give every mixer of a graph its state from the call's cache, and put the state after the call back into it.

    Raises:
        VariantError: if the cache holds tokens that the mixers have not seen, or is of a kind that cannot carry state.
    """
    mixers = {n: m for n in capture.graph.nodes if n.op == "call_module" and (m := _mixer(tree, n))}
    if not mixers or capture.output is None or capture.inputs is None:
        return
    given = _first_cache(list(_objects(capture.inputs)))
    made = _find_cache(capture.output) if given is None else None
    if given is None and made is None:
        _refuse_unknown_cache(mixers)
        return
    places = [n for n in capture.graph.nodes if n.op == "placeholder"]
    before = _states_of(given[1], places) if given is not None else {}
    if given is not None and _holds_tokens(given[1], places) and any(_name(n) not in before for n in mixers):
        raise VariantError(
            "cannot continue from this cache", "it holds tokens that the inserted mixers have not seen",
            "fill the cache with this model from the first token on",
        )  # fmt: skip
    after = {}
    for node, mixer in mixers.items():
        name = _name(node)
        after[name] = _thread(capture, node, mixer.streams, before[name][1] if name in before else [])
    if given is None:
        capture.output = _map_cache(capture.output, after)[0]
        _order_outputs(capture)
        return
    index = given[0]
    numbers = {name: _number_of(capture.inputs, number) for name, (number, _) in before.items()}
    for name in [n for n in after if n in numbers]:
        capture.states[numbers[name]] = after.pop(name)
    capture.states[index] = _append(capture.states[index], list(after.values()))
    _order_outputs(capture)


def _name(node: fx.Node) -> str:
    """What a mixer is called in the cache, as :func:`.memory.remembering` calls it."""
    return str(node.target).removeprefix(f"{BANK}.")


def _mixer(tree: nn.Module, node: fx.Node) -> Mixer | None:
    module = tree.get_submodule(str(node.target))
    return module if isinstance(module, Mixer) and module.streams else None


def _thread(capture: Capture, node: fx.Node, count: int, state: Sequence[fx.Node]) -> Template:
    """Let one call take and hand on its state; the template of the cache layer that will hold it."""
    graph = capture.graph
    with graph.inserting_after(node):
        pair = graph.call_function(operator.getitem, (node, 1))
        out = graph.call_function(operator.getitem, (node, 0))
    out.meta = dict(node.meta)
    node.replace_all_uses_with(out, delete_user_cb=lambda user: user not in (out, pair))
    node.kwargs = {**node.kwargs, "keep": True, **({"state": tuple(state)} if state else {})}
    with graph.inserting_after(pair):
        kept = [graph.call_function(operator.getitem, (pair, i)) for i in reversed(range(count))][::-1]
    output = graph.output_node()
    leaves = list(output.args[0])  # type: ignore[arg-type]
    first = len(leaves)
    output.args = ((*leaves, *kept),)
    tensors = tuple(("tensor", first + i) for i in range(count))
    return ("object", ShortState, ("name", "tensors"), (("const", str, _name(node)), ("seq", list, tensors)))


# -- templates ---------------------------------------------------------------------------------------------------


def _objects(template: Template) -> Iterator[Template]:
    """Templates of stateful objects, in the order in which a call lists them."""
    if template[0] == "object":
        yield template
    if template[0] in ("seq", "dict", "node", "object"):
        for part in template[-1]:
            yield from _objects(part)


def _layers(template: Template) -> Template | None:
    """The list of layers of a cache."""
    if template[0] != "object" or CACHE_LAYERS not in template[2]:
        return None
    layers = template[3][template[2].index(CACHE_LAYERS)]
    return layers if layers[0] == "seq" else None


def _first_cache(objects: list[Template]) -> tuple[int, Template] | None:
    return next(((i, t) for i, t in enumerate(objects) if _layers(t) is not None), None)


def _find_cache(template: Template) -> Template | None:
    found = _first_cache(list(_objects(template)))
    return found[1] if found else None


def _states_of(cache: Template, places: list[fx.Node]) -> dict[str, tuple[Template, list[fx.Node]]]:
    """The mixers' layers in a cache by name: the layer's template and the graph's inputs."""
    layers = _layers(cache)
    assert layers is not None
    found = {}
    for layer in layers[2]:
        if layer[0] == "object" and layer[1] is ShortState:
            name, tensors = layer[3]
            found[name[2]] = (layer, [places[t[1]] for t in tensors[2]])
    return found


def _number_of(inputs: Template, layer: Template) -> int:
    return next(i for i, t in enumerate(_objects(inputs)) if t is layer)


def _holds_tokens(cache: Template, places: list[fx.Node]) -> bool:
    """Whether a host's layer holds keys. A cache of fixed size that is given whole counts only for single tokens."""
    layers = _layers(cache)
    assert layers is not None
    for layer in layers[2]:
        if layer[0] != "object" or layer[1] is ShortState or LAYER_KEYS not in layer[2]:
            continue
        keys = layer[3][layer[2].index(LAYER_KEYS)]
        if keys[0] == "tensor":
            sizes = shape(places[keys[1]])
            return sizes is not None and len(sizes) == 4 and hint(sizes[-2]) != 0
    return False


def _append(cache: Template, states: list[Template]) -> Template:
    """A cache's template with more layers."""
    at = cache[2].index(CACHE_LAYERS)
    layers = cache[3][at]
    longer = (layers[0], layers[1], (*layers[2], *states))
    return (*cache[:3], (*cache[3][:at], longer, *cache[3][at + 1 :]))


def _map_cache(template: Template, after: dict[str, Template]) -> tuple[Template, bool]:
    """A result's template with the states in its first cache, and whether it has one."""
    if _layers(template) is not None:
        return _append(template, list(after.values())), True
    if template[0] in ("seq", "dict", "node", "object"):
        parts = list(template[-1])
        for i, part in enumerate(parts):
            parts[i], done = _map_cache(part, after)
            if done:
                return (*template[:-1], tuple(parts)), True
    return template, False


def _order_outputs(capture: Capture) -> None:
    """Number the graph's outputs in the order in which the templates name them; unnamed ones go."""
    output = capture.graph.output_node()
    leaves: tuple[Any, ...] = tuple(output.args[0])  # type: ignore[arg-type]
    named: list[Any] = []

    def number(template: Template) -> Template:
        if template[0] in ("tensor", "int"):
            named.append(leaves[template[1]])
            return (template[0], len(named) - 1)
        if template[0] in ("seq", "dict", "node", "object"):
            return (*template[:-1], tuple([number(part) for part in template[-1]]))
        return template

    assert capture.output is not None
    capture.output = number(capture.output)
    capture.states = [number(state) for state in capture.states]
    output.args = (tuple(named),)


def _refuse_unknown_cache(mixers: Iterable[fx.Node]) -> None:
    if any(mark_of(n).longer_keys for n in mixers):
        raise VariantError(
            "cannot decode with this cache", "the attention reads more positions than the call has, and none of the"
            " arguments is a cache with layers", "a transformers Cache, or call without a cache",
        )  # fmt: skip
