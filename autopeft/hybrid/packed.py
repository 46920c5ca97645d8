"""Several adapters in one forward pass of a model: each acts on its own rows, the base model runs on all rows once.

The model itself holds no adapter. While a pack is installed, modules at which its members have parts run a `forward`
that is made here; each kind of adapter acts through its own part, on the slice of its member, except where many members
have maps of one form (`autopeft.hybrid.stacked`). Whatever the members are, rows never mix, so a member gets what it
would get alone but for rounding, and a NaN stays where it arose.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

from autopeft.errors import ModelError
from autopeft.hybrid.attention import KeysValues, attend
from autopeft.hybrid.detached import DetachedAdapter, Parts
from autopeft.hybrid.modules.base import InputPart, LayerScope, OutputPart, Own, Part, Pass
from autopeft.hybrid.modules.bottleneck import ParallelStart
from autopeft.hybrid.prompts import PromptHost
from autopeft.hybrid.rows import Pieces, Rows, together
from autopeft.hybrid.stacked import StackedMaps, form_of

ATTENTION = "autopeft_packed"
_OWNER = "autopeft_packed"

Forward = Callable[..., Any]


class Pack:
    """Adapters that run together.

    Raises:
        ModelError: one of several members has a prompt: it would make the others' sequences longer, too.
    """

    def __init__(self, model: nn.Module, members: Sequence[DetachedAdapter]) -> None:
        if len(members) > 1 and any(member.prompts for member in members):
            raise ModelError("prompt: makes the sequence longer, so it cannot be packed with other adapters")
        self.rows = Rows()
        self._training = False
        """Whether adapters drop."""
        self._model = model
        self._members = members
        self._entered: dict[str, tuple[tuple[int, ...], LayerScope]] = {}
        self._outputs = {path: _PackedOutput(self, path, parts) for path, parts in self._by_module("outputs").items()}

    def begin(self, sizes: dict[int, int], training: bool) -> None:
        """A forward pass with so many rows of each member; `training`: whether adapters drop."""
        self.rows.begin(sizes)
        self._training = training
        # What is before the attention of its layer, such as a norm, must not find what entered in the last pass.
        for _, scope in self._entered.values():
            scope.true_tokens = scope.attention_input = None
        self._entered.clear()

    def forwards(self, path: str, forward: Forward) -> Forward:
        """What the module of this path runs in place of its own `forward`."""
        heads = {k: member.heads[path] for k, member in enumerate(self._members) if path in member.heads}
        if heads:
            return self._head(heads)
        return self._outputs[path].around(forward) if path in self._outputs else forward

    @property
    def paths(self) -> tuple[str, ...]:
        """Modules that run something else."""
        return (*self._outputs, *dict.fromkeys(path for member in self._members for path in member.heads))

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Within it, attention takes prefixes, prompts enter, and layers remember what parts read."""
        attention = self._by_module("attention")
        handles = []
        undo: list[Callable[[], None]] = []
        try:
            for path, scope in self._scopes().items():
                hook = self._entering(path, scope)
                handles.append(self._model.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True))
            for path, parts in attention.items():
                undo.append(_PackedAttention(self, path, parts).install(self._model.get_submodule(path)))
            for member in self._members:
                for path, vectors in member.prompts.items():
                    owner = self._model.get_submodule(path)
                    handles += _LonePrompt(owner, owner, LayerScope()).with_parts(vectors).handles
            yield
        finally:
            for handle in handles:
                handle.remove()
            for back in undo:
                back()
            self._entered.clear()

    def hand_out_gradients(self, members: Sequence[int]) -> None:
        """Give each of these members' parameters its gradient, after the backward pass of a step they took part in."""
        for output in self._outputs.values():
            output.hand_out(members)

    def at(self, member: int, path: str, base: Any) -> Pass:
        """What the member's parts at the module read besides their parameters."""
        return Pass(base, self._scope(member, path), self._training)

    def prefixes(self, member: int, path: str, parts: Parts) -> list[KeysValues]:
        """The member's keys and values at an attention module."""
        if not parts:
            return []
        scope = self._scope(member, path)
        hidden, batch = scope.attention_input, self.rows.sizes[member]
        return [part.keys_values(own, batch, hidden, scope) for part, own in parts]  # type: ignore[attr-defined]

    def _scope(self, member: int, path: str) -> LayerScope:
        own = self._members[member]
        place = own.scope_of[path]
        if place not in self._entered:
            return LayerScope()
        present, scope = self._entered[place]
        kept = own.scopes[place]

        def mine(value: Tensor | None, is_kept: bool) -> Tensor | None:
            if value is None or not is_kept:
                return None
            is_shared = value.shape[0] == 1 and len(present) > 1  # a mask that all rows have in common
            return value if is_shared else self.rows.narrow(value, (member,), present)

        return LayerScope(
            true_tokens=mine(scope.true_tokens, kept.keeps_tokens),
            attention_input=mine(scope.attention_input, kept.keeps_input),
        )

    def _scopes(self) -> dict[str, LayerScope]:
        """What must be remembered at which module for any of the members."""
        found: dict[str, LayerScope] = {}
        for member in self._members:
            for path, scope in member.scopes.items():
                if scope.hook is not None:
                    own = found.setdefault(path, LayerScope(mask_at=scope.mask_at))
                    own.keeps_input |= scope.keeps_input
                    own.keeps_tokens |= scope.keeps_tokens
        return found

    def _entering(self, path: str, scope: LayerScope) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            scope.enter_attention(module, args, kwargs)
            self._entered[path] = self.rows.present, scope

        return enter

    def _head(self, heads: Mapping[int, nn.Module]) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            def of(member: int) -> Any:
                own_args, own_kwargs = self.rows.narrowed((args, kwargs), (member,))
                return heads[member](*own_args, **own_kwargs)

            return together(of, self.rows.present)

        return forward

    def _by_module(self, field: str) -> dict[str, dict[int, Parts]]:
        found: dict[str, dict[int, Parts]] = {}
        for k, member in enumerate(self._members):
            for path, parts in getattr(member, field).items():
                found.setdefault(path, {})[k] = parts
        return found

    @property
    def size(self) -> int:
        return len(self._members)

    def module(self, path: str) -> nn.Module:
        """A module of the base model."""
        return self._model.get_submodule(path)


class _PackedOutput:
    """A linear map or a norm, and what the members put on its output."""

    def __init__(self, pack: Pack, path: str, parts: Mapping[int, Parts]) -> None:
        self._pack = pack
        self._path = path
        self._base = _bare(pack.module(path))
        self._entering = {
            k: [(part, own) for part, own in mine if isinstance(part, InputPart)] for k, mine in parts.items()
        }
        self._steps = [
            (members, StackedMaps(pack.size, members) if len(members) > 1 else None) for members in _in_steps(parts)
        ]

    def around(self, forward: Forward) -> Forward:
        """The packed forward around that of the module, or of what stands in for it."""

        def packed(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            rows = self._pack.rows
            inputs = Pieces(rows, x)
            for member in rows.present:
                for entering, own in self._entering.get(member, ()):
                    inputs[member] = entering.enter(own, inputs[member])
            y: Tensor = forward(inputs.whole, *args, **kwargs)
            outputs = Pieces(rows, y)
            for members, stack in self._steps:
                present = [member for member in members if member in rows.present]
                if stack is not None and rows.are_even and len(present) > 1 and 2 * len(present) >= len(rows.present):
                    self._together(stack, members, inputs, outputs)
                    continue
                for member in present:
                    part, own = members[member]
                    assert isinstance(part, OutputPart)
                    at = self._pack.at(member, self._path, self._base)
                    outputs[member] = part.forward(own, inputs[member], outputs[member], at)
            return outputs.whole.to(y.dtype)

        return packed

    def _together(
        self, stack: StackedMaps, members: Mapping[int, tuple[Part, Own]], inputs: Pieces, outputs: Pieces
    ) -> None:
        first, _ = next(iter(members.values()))
        present = list(self._pack.rows.present)
        x = (outputs if first.kind == "serial" else inputs).whole
        update = stack.update(x.reshape(len(present), -1, x.shape[-1]), present)
        update = update.view(*x.shape[:-1], update.shape[-1])
        if not isinstance(first, ParallelStart):
            outputs.whole = outputs.whole + update
            return
        pieces = Pieces(self._pack.rows, update)
        for member, (part, _) in members.items():
            if member in present:
                part.mailbox.put(pieces[member])  # type: ignore[attr-defined]

    def hand_out(self, members: Sequence[int]) -> None:
        for _, stack in self._steps:
            if stack is not None:
                stack.hand_out(members)


def _in_steps(parts: Mapping[int, Parts]) -> list[dict[int, tuple[Part, Own]]]:
    """All parts on the output in steps, each of one part or of several that can be stacked; each member's own order is
    kept."""
    queues = {k: [(p, own) for p, own in mine if isinstance(p, OutputPart)] for k, mine in parts.items()}
    steps = []
    while any(queues.values()):
        heads = {k: queue[0] for k, queue in queues.items() if queue}
        forms: dict[Any, dict[int, tuple[Part, Own]]] = {}
        for k, (part, own) in heads.items():
            form = form_of(part)
            forms.setdefault(k if form is None else form, {})[k] = part, own
        # A part that runs alone goes first: what can be stacked may then meet more of its form.
        alone = next((step for form, step in forms.items() if isinstance(form, int)), None)
        step = alone or max(forms.values(), key=len)
        for k in step:
            queues[k].pop(0)
        steps.append(step)
    return steps


class _PackedAttention:
    """An attention module in which some members have a prefix: each of these goes through attention on its own."""

    def __init__(self, pack: Pack, path: str, parts: Mapping[int, Parts]) -> None:
        self._pack = pack
        self._path = path
        self._parts = parts
        self._config: Any = None

    def install(self, module: Any) -> Callable[[], None]:
        """Take over the module's attention function; what is given undoes it."""
        self._config = module.config
        AttentionInterface.register(ATTENTION, _attention)
        module.__dict__[_OWNER] = self
        module.config = copy.copy(module.config)
        object.__setattr__(module.config, "_attn_implementation_internal", ATTENTION)

        def undo() -> None:
            module.config = self._config
            del module.__dict__[_OWNER]

        return undo

    def attend(self, module: nn.Module, *tensors: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        rows = self._pack.rows
        implementation = self._config._attn_implementation or "eager"
        results = []
        for members in self._runs(rows.present):
            prefixes = [
                pair
                for member in members
                for pair in self._pack.prefixes(member, self._path, self._parts.get(member, ()))
            ]
            own_tensors, own_kwargs = rows.narrowed((tensors, kwargs), members)
            query, key, value, mask, *others = own_tensors
            results.append(attend(module, implementation, prefixes, query, key, value, mask, *others, **own_kwargs))
        outputs = [output for output, _ in results]
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)), None

    def _runs(self, present: Sequence[int]) -> list[list[int]]:
        """Members that go through attention together: neighbours that have no prefix."""
        runs: list[list[int]] = []
        for member in present:
            if runs and member not in self._parts and runs[-1][-1] not in self._parts:
                runs[-1].append(member)
            else:
                runs.append([member])
        return runs


class _LonePrompt(PromptHost):
    """The prompts of a pack of one, hooked to the owner of the stack and held by nobody else."""

    def with_parts(self, parts: Parts) -> "_LonePrompt":
        self._lone = parts
        return self

    def active(self) -> Iterator[tuple[Any, Own]]:
        yield from self._lone


def _attention(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return module.__dict__[_OWNER].attend(module, *args, **kwargs)


def _bare(module: nn.Module) -> nn.Module:
    """The module with its weights and its own `forward`, whatever is put in the place of that."""
    bare = copy.copy(module)
    bare.__dict__.pop("forward", None)
    return bare
