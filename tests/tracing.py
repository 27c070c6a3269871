"""A GPU that is not there: fake tensors on `cuda:0`, forward and backward.

    with fake_gpu() as device:
        model = build(Model)          its weights are there already
        loss(model).backward()        walks the graph; no number is ever computed

Fake tensors have shape, dtype and device, and no values. What mixes devices fails, as does
whatever looks at a value (`if`, `.item()`, `nonzero`), where a GPU would have to be waited for.
torch's own engine asks the driver for streams, so the graph is walked here, node by node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("cuda:0")
PRODUCTS = [getattr(torch.ops.aten, n) for n in ("mm", "addmm", "bmm", "baddbmm", "convolution")]
_PINNED: list[Tensor] = []  # of this block


@contextmanager
def fake_gpu() -> Iterator[torch.device]:
    """Let tensors in the block be fake ones, a GPU's where `device` says so."""
    true: Callable[..., bool] = lambda *_, **__: True  # noqa: E731
    false: Callable[..., bool] = lambda *_, **__: False  # noqa: E731
    _PINNED.clear()
    with ExitStack() as stack:
        for owner, name, value in (
            (torch.autograd, "_engine_run_backward", _run_backward),
            (torch.cuda, "is_bf16_supported", true),  # asked by autocast
            (torch.cuda, "get_device_name", lambda *_: "none"),
            (torch.cuda.amp.common, "amp_definitely_not_available", false),
            (nn.Module, "to", _require_there),
            (Tensor, "pin_memory", lambda x: _PINNED.append(x) or x),
            (Tensor, "numpy", _look_at_real(Tensor.numpy)),
            (timm, "create_model", _build_real(timm.create_model)),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield DEVICE


class Strict(TorchDispatchMode):
    """Refuses what fake tensors let by and a GPU does not, or only slowly.

    Copies that its host waits for (from memory that is not pinned, and back), products of two
    dtypes, and float64.
    """

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        tensors = [x for x in args if isinstance(x, Tensor)]
        if func in (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default):
            source = tensors[-1]
            ends = source.device.type, result.device.type
            is_free = ends == ("cpu", "cuda") and any(source is p for p in _PINNED)
            assert ends[0] == ends[1] or is_free, f"a copy {' -> '.join(ends)} that is waited for"
        if func.overloadpacket in PRODUCTS:
            dtypes = {x.dtype for x in tensors}
            assert len(dtypes) == 1, f"{func} of dtype {dtypes}"
        for x in result if isinstance(result, tuple | list) else [result]:
            is_double = isinstance(x, Tensor) and x.dtype == torch.float64
            assert not (is_double and x.device.type == "cuda"), f"{func} gives dtype float64"
        return result


def build(make: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Return what `make` builds, every tensor without a device of its own being the GPU's."""
    with DEVICE:
        return make(*arguments, **named)


def move(module: nn.Module) -> nn.Module:
    """Give a module of real weights fake ones on the GPU, in place."""
    for part in module.modules():
        for name, p in list(part._parameters.items()):
            if p is not None:
                there = torch.empty_like(p, device=DEVICE)
                part._parameters[name] = nn.Parameter(there, p.requires_grad)
        for name, b in list(part._buffers.items()):
            if b is not None:
                part._buffers[name] = torch.empty_like(b, device=DEVICE)
    return module


def _build_real(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Return a builder that looks at values, as timm does, for models on the GPU."""

    def build_and_move(*arguments: Any, **named: Any) -> nn.Module:
        with unset_fake_temporarily(), torch.device("cpu"):
            module = make(*arguments, **named)
        return move(module)

    return build_and_move


def _look_at_real(numpy: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """Return what shows the values of a tensor that is the host's; a fake one has none to show."""

    def look(x: Tensor) -> Any:
        with unset_fake_temporarily():
            return numpy(x)

    return look


def _require_there(module: nn.Module, *to: Any, **named: Any) -> nn.Module:
    """Stand in for `Module.to`, which cannot move fake weights: dtypes alone are changed."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.device != DEVICE:
            raise AssertionError(f"{name} was built on {tensor.device}")
    dtypes = [x for x in (*to, *named.values()) if isinstance(x, torch.dtype)]
    for part in module.modules() if dtypes else ():
        for name, p in list(part._parameters.items()):
            if p is not None:
                part._parameters[name] = nn.Parameter(p.detach().to(dtypes[0]), p.requires_grad)
    return module


@torch.no_grad()
def _run_backward(
    outputs: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    _keep_graph: bool = False,
    _create_graph: bool = False,
    inputs: Sequence[Tensor] = (),
    *_: Any,
    **__: Any,
) -> list[Tensor | None]:
    """Send gradients back through the graph to its leaves, or return those of inputs."""
    received: dict[Any, list[Tensor | None]] = {}
    waiting: Counter[Any] = Counter()  # edges into a node that have not been walked
    roots, edges = [], [torch.autograd.graph.get_gradient_edge(x)[:2] for x in inputs]
    captured: dict[Any, list[Tensor | None]] = {}

    def receive(node: Any, place: int, gradient: Tensor | None) -> None:
        slots = received.setdefault(node, [None] * len(node._input_metadata))
        if gradient is not None:
            known = node._input_metadata[place]
            assert gradient.device == known.device, (node.name(), gradient.device, known.device)
            gradient = gradient.sum_to_size(list(known.shape))  # fails where they do not broadcast
            gradient = gradient.to(known.dtype)  # as torch does
            before = slots[place]
            slots[place] = gradient if before is None else before + gradient

    for output, gradient in zip(outputs, gradients, strict=True):
        node, place = torch.autograd.graph.get_gradient_edge(output)[:2]
        receive(node, place, torch.ones_like(output) if gradient is None else gradient)
        roots.append(node)
    seen, todo = set(roots), list(dict.fromkeys(roots))
    while todo:
        for node, _place in todo.pop().next_functions:
            if node is None:
                continue
            waiting[node] += 1
            if node not in seen:
                seen.add(node)
                todo.append(node)
    ready = [node for node in dict.fromkeys(roots) if not waiting[node]]
    while ready:
        node = ready.pop()
        slots = received.pop(node, [None] * len(node._input_metadata))
        if any(node is end for end, _ in edges):
            captured[node] = slots
            if hasattr(node, "variable"):
                continue
        sent = _apply(node, slots)
        for (further, place), gradient in zip(node.next_functions, sent, strict=True):
            if further is None:
                continue
            receive(further, place, gradient)
            waiting[further] -= 1
            if not waiting[further]:
                ready.append(further)
    return [captured[node][place] if node in captured else None for node, place in edges]


def _apply(node: Any, slots: list[Tensor | None]) -> list[Tensor | None]:
    """Return what a node sends along each of its edges."""
    if hasattr(node, "variable"):  # a leaf
        (gradient,), leaf = slots, node.variable
        assert gradient is not None
        assert gradient.dtype == leaf.dtype, (leaf.shape, gradient.dtype)
        leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
        return []
    if all(slot is None for slot in slots):
        return [None] * len(node.next_functions)
    written_out = hasattr(node, "needs_input_grad")  # a torch.autograd.Function of ours
    sent = node.apply(*slots) if written_out else node(*slots)
    sent = list(sent) if isinstance(sent, tuple | list) else [sent]
    if not written_out:
        return sent
    # It also has an answer for arguments that are no tensors, which no edge belongs to.
    trained = iter([g for g, needed in zip(sent, node.needs_input_grad, strict=True) if needed])
    return [None if further is None else next(trained) for further, _ in node.next_functions]
