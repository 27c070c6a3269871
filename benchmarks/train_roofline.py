"""Bytes and FLOP of one training step on a GPU, by part, counted without one: before and after.

    git show 09090ba:synclr_cli/train/losses.py > /tmp/before.py
    python benchmarks/train_roofline.py --before /tmp/before.py [--preset vitb] [--ranks 32]

The step is that of one of `--ranks` GPUs. Every part of it is run on fake tensors on `cuda:0` in
bfloat16 autocast, forward and backward, and counted twice:

- eager: each operation reads its inputs and writes its outputs once; views are free.
- compiled: the same graph (forward and backward as one) goes through Inductor's own lowering and
  scheduler for an H100, which fuses it into kernels; each kernel reads its inputs and writes its
  outputs once. Rows that a kernel walks over twice are taken to stay in the caches.

"Before" is `--before`, a losses.py of another commit, and everything else eager; "after" is what
`compile = true` compiles, and the rest eager. Attention is flash attention in both. The bound is
the larger of FLOP / peak and bytes / bandwidth of each part, added up: an estimate, not a
measurement.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._inductor import scheduler
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.nn.utils import stateless
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import tracing

from synclr_cli import presets
from synclr_cli.config import TrainConfig
from synclr_cli.learning.runtime import Runtime
from synclr_cli.train import encoder, losses
from synclr_cli.train.reading import Reading
from synclr_cli.train.student_teacher import Student, Teacher

PEAK_FLOPS, BANDWIDTH = 989e12, 3.35e12  # of an H100 SXM: dense bfloat16, and bytes a second
H100 = DeviceProperties(
    type="cuda", index=0, multi_processor_count=132, cc=90, major=9, warp_size=32,
    regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, max_threads_per_block=1024,
)  # fmt: skip
NO_MEMORY = (
    "_unsafe_view", "detach", "empty", "empty_like", "empty_strided", "new_empty", "lift_fresh",
    "alias",
)  # fmt: skip


class Traffic(TorchDispatchMode):
    """Adds up what operations read and write on the GPU, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        moves = func.namespace == "aten" and func.overloadpacket.__name__ not in NO_MEMORY
        if moves and not func.is_view:
            read = {id(x): _size(x) for x in tree_leaves((args, kwargs))}
            self.bytes += sum(read.values()) + sum(_size(x) for x in tree_leaves(result))
            if func._schema.is_mutable and result is None:  # lists that are written in place
                self.bytes += sum(_size(x) for x in tree_leaves(args[0]))
        return result


def _size(x: object) -> int:
    if not isinstance(x, Tensor) or x.device.type != "cuda":
        return 0
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


@contextmanager
def h100() -> Iterator[None]:
    """Let Inductor's scheduler take the machine for one with an H100."""
    with ExitStack() as stack:
        for owner, name, value in (
            (DeviceProperties, "create", classmethod(lambda *_: H100)),
            (torch.cuda, "get_device_capability", lambda *_: (9, 0)),
            (torch.cuda, "get_device_properties", lambda *_: H100),
            (scheduler, "has_triton", lambda *_: True),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        yield


@dataclass(frozen=True)
class Cost:
    """What a part of the step takes."""

    flops: float
    eager: float  # bytes
    compiled: float  # bytes

    def __mul__(self, times: float) -> Cost:
        return Cost(self.flops * times, self.eager * times, self.compiled * times)

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops, self.eager + other.eager, self.compiled + other.compiled
        )


def cost(
    function: Callable[..., Any], inputs: Sequence[Tensor], module: nn.Module | None = None
) -> Cost:
    """Count a function of tensors and a module's weights, with its gradient if any needs one."""
    names = [n for n, _ in module.named_parameters()] if module is not None else []
    weights = [p for _, p in module.named_parameters()] if module is not None else []
    arguments = [*weights, *inputs]
    trained = [i for i, x in enumerate(arguments) if x.requires_grad]

    def whole(*flat: Tensor) -> list[Tensor]:
        with ExitStack() as stack:
            if module is not None:
                own = dict(zip(names, flat, strict=False))
                stack.enter_context(stateless._reparametrize_module(module, own))
            stack.enter_context(torch.autocast("cuda", dtype=torch.bfloat16))
            stack.enter_context(torch.set_grad_enabled(bool(trained)))
            results = tree_leaves(function(*flat[len(weights) :]))
        if not trained:
            return results
        upstream = [torch.ones_like(y) for y in results]
        leaves = [flat[i] for i in trained]
        return [*results, *torch.autograd.grad(results, leaves, upstream)]

    with Traffic() as traffic, FlopCounterMode(display=False) as counter:
        whole(*arguments)
    # Without a gradient in-place operations remain, which Inductor's front end takes out.
    traced = whole if trained else torch.func.functionalize(whole)
    graph_module = make_fx(traced, decomposition_table=select_decomp_table())(*arguments)
    graph_module.graph.set_codegen(torch.fx.graph.CodeGen())
    graph_module.recompile()
    mode = next(x.fake_mode for x in arguments)
    graph = GraphLowering(graph_module)
    with V.set_graph_handler(graph), V.set_fake_mode(mode), V.set_debug_handler(DebugContext()):
        graph.run(*arguments)
        graph._update_scheduler()
        compiled, *_ = graph.count_bytes()
    return Cost(counter.get_total_flops(), traffic.bytes, compiled)


def eagerly(function: Callable[[], Any]) -> Cost:
    """Count what is compiled neither before nor after."""
    with Traffic() as traffic, FlopCounterMode(display=False) as counter:
        function()
    return Cost(counter.get_total_flops(), traffic.bytes, traffic.bytes)


@dataclass(frozen=True)
class Case:
    """One rank's share of the step."""

    config: TrainConfig
    images: int  # of this rank
    candidates: int  # of all ranks
    masked: int  # of this rank's images
    student: Student
    teacher: Teacher

    @property
    def patches(self) -> int:
        return int(self.student.vit.patch_embed.num_patches)

    @property
    def tokens(self) -> int:
        """Return how many masked tokens are read."""
        return self.masked * int(self.patches * self.config.mask_ratio)


def vit(case: Case) -> dict[str, Cost]:
    """Return the costs of the two ViTs."""
    config, width = case.config, case.student.vit.embed_dim
    patch = int(case.student.vit.patch_embed.patch_size[0])
    local = config.local_crops * case.images
    shapes = [(case.images, 1 + case.patches), (local, 1 + (config.local_size // patch) ** 2)]
    sizes = [config.image_size, config.local_size]
    of_embed, of_blocks = [], []
    for model, views in ((case.student, 2 if local else 1), (case.teacher, 1)):
        for view in range(views):
            n, tokens = shapes[view]
            grad = model is case.student
            images = torch.empty(n, 3, sizes[view], sizes[view], device=tracing.DEVICE)
            x = torch.empty(n, tokens, width, device=tracing.DEVICE, requires_grad=grad)
            kept = torch.empty(2, n, device=tracing.DEVICE)
            first, blocks = model.vit.blocks[0], len(model.vit.blocks) - 1
            dropped = [kept] if grad and config.drop_path else []

            def block(x: Tensor, *kept: Tensor, first: Any = first) -> Tensor:
                return encoder.run_block(first, x, kept[0] if kept else None)

            def embed(images: Tensor, vit: Any = model.vit) -> Tensor:
                return encoder.embed(vit, images, None, None)

            of_blocks.append(cost(block, [x, *dropped], first) * blocks)
            of_embed.append(cost(embed, [images], model.vit))
    masks = np.zeros((case.images, case.patches), bool)
    masks[: case.masked, : int(case.patches * config.mask_ratio)] = True
    of_last = []
    for model, views in ((case.student, 2 if local else 1), (case.teacher, 1)):
        reading = Reading.of([masks, None][:views], shapes[:views])
        reading = reading.to(Runtime(tracing.DEVICE, torch.bfloat16))
        total = sum(n * tokens for n, tokens in shapes[:views])
        grad = model is case.student
        rows = torch.empty(total, width, device=tracing.DEVICE, requires_grad=grad)
        pair = nn.ModuleList([model.vit.blocks[-1], model.vit.norm])

        def last(rows: Tensor, pair: Any = pair, reading: Any = reading, views: int = views):
            return encoder.run_last(pair[0], pair[1], rows, shapes[:views], reading, None)

        of_last.append(cost(last, [rows], pair))
    return {"ViTs: blocks": _sum(of_blocks), "ViTs: patches": _sum(of_embed),
            "ViTs: last block": _sum(of_last)}  # fmt: skip


def _sum(costs: Sequence[Cost]) -> Cost:
    total = Cost(0, 0, 0)
    for own in costs:
        total = total + own
    return total


def heads(case: Case) -> dict[str, Cost]:
    """Return the costs of the heads, of which the prototypes' are compiled."""
    device, width = tracing.DEVICE, case.student.vit.embed_dim
    crops = case.images * (1 + case.config.local_crops)

    def contrast() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            x = torch.empty(crops, width, device=device, requires_grad=True)
            z = case.student.predictor(case.student.projector(x))
            with torch.no_grad():
                case.teacher.projector(torch.empty(case.images, width, device=device))
        z.backward(torch.empty_like(z))

    of_patches = []
    for model in (case.student, case.teacher):
        grad = model is case.student
        x = torch.empty(case.tokens, width, device=device, requires_grad=grad)
        of_patches.append(cost(lambda x, model=model: model.prototypes(x), [x], model.prototypes))
    return {"heads of the contrast": eagerly(contrast), "head of the patches": _sum(of_patches)}


def of_losses(case: Case, before: ModuleType | None) -> dict[str, Cost]:
    """Return the costs of contrast and patch loss; `before` is counted eagerly."""
    device, config = tracing.DEVICE, case.config
    rt = Runtime(device, torch.bfloat16)
    crops, e = case.images * config.local_crops, config.head_out
    k, p = config.patch_head_bottleneck, config.prototypes

    def empty(*shape: int, grad: bool = False) -> Tensor:
        return torch.empty(*shape, device=device, requires_grad=grad)

    def contrast(module: ModuleType, **fused: bool) -> None:
        for n, own in ((case.images, torch.arange(case.images, device=device)), (crops, None)):
            labels = torch.zeros(n, dtype=torch.int64, device=device)
            others = torch.zeros(case.candidates, dtype=torch.int64, device=device)
            z = empty(n, e, grad=True)
            module.contrast(
                z, empty(case.candidates, e), labels, others, own, config.temperature, **fused
            ).backward()

    def patches(module: ModuleType, **fused: bool) -> None:
        with torch.no_grad():
            scores = module.Scores(empty(case.tokens, k), empty(p, k), rt.amp_dtype, **fused)
            targets = module.Sinkhorn(scores, 0.05, config.sinkhorn_iterations, rt)
        module.patch_loss(
            empty(case.tokens, k, grad=True), empty(p, k, grad=True), targets,
            config.student_temperature, rt.amp_dtype,
        ).backward()  # fmt: skip

    results = {}
    for name, work in (("contrast", contrast), ("prototype scores", patches)):
        now = _with_pieces(lambda work=work: work(losses, fused=True))
        then = now if before is None else eagerly(lambda work=work: work(before))
        results[name] = Cost(now.flops, then.eager, now.compiled)
    return results


def _with_pieces(work: Callable[[], None]) -> Cost:
    """Count work whose pieces are compiled, each by itself; what is around them is eager."""
    known: dict[Any, Cost] = {}
    inside: list[Cost] = []

    def stand_in(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            tensors = [x.detach() for x in arguments if isinstance(x, Tensor)]
            key = function, tuple((x.shape, x.dtype) for x in tensors)
            if key not in known:
                with _paused():

                    def flat(*own: Tensor) -> Any:
                        rest = iter(own)
                        return function(
                            *(next(rest) if isinstance(x, Tensor) else x for x in arguments)
                        )

                    known[key] = cost(flat, tensors)
            inside.append(known[key])
            return function(*arguments)

        return call

    with mock.patch.object(losses, "_compiled", stand_in):
        outside = eagerly(work)
    pieces = _sum(inside)
    return Cost(outside.flops, outside.eager, outside.eager - pieces.eager + pieces.compiled)


@contextmanager
def _paused() -> Iterator[None]:
    """Leave the counting modes that are on; the fake tensors' stays."""
    with _disable_current_modes() as modes, ExitStack() as stack:
        for mode in modes:
            if isinstance(mode, FakeTensorMode):
                stack.enter_context(mode)
        yield


def weights(case: Case) -> dict[str, Cost]:
    """Return the costs of AdamW and of the teacher's average."""
    trained = list(case.student.parameters())
    optimizer = torch.optim.AdamW(trained, fused=True)
    for p in trained:
        p.grad = torch.empty_like(p)
    optimizer.step()  # makes the moments
    finite = torch.ones((), device=tracing.DEVICE)
    costs = {
        "AdamW": eagerly(optimizer.step),
        "teacher's average": eagerly(lambda: case.teacher.follow(0.99, finite)),
    }
    optimizer.zero_grad()
    return costs


def flash(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
    """Attend as a GPU does; without one torch takes the plain products."""
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]


def count(config: TrainConfig, ranks: int, before: ModuleType | None) -> dict[str, Cost]:
    """Return the costs of one rank's step, by part."""
    everything = config.captions_per_batch * config.views * config.global_crops
    images = everything // ranks
    with (
        h100(),
        mock.patch.object(F, "scaled_dot_product_attention", flash),
        tracing.fake_gpu() as device,
    ):
        rt = Runtime(device, torch.bfloat16)
        student = tracing.build(Student, config, rt)
        teacher = tracing.build(Teacher, config, rt, student)
        masked = int(images * config.mask_probability)
        case = Case(config, images, everything, masked, student, teacher)
        return vit(case) | heads(case) | of_losses(case, before) | weights(case)


def per_score(case_costs: dict[str, Cost], config: TrainConfig, ranks: int) -> tuple[float, float]:
    """Return the bytes of a prototype score, before and after."""
    images = config.captions_per_batch * config.views * config.global_crops // ranks
    patch = 16 if not config.patch_size else config.patch_size
    tokens = int((config.image_size // patch) ** 2 * config.mask_ratio)
    scores = int(images * config.mask_probability) * tokens * config.prototypes
    own = case_costs["prototype scores"]
    return own.eager / scores, own.compiled / scores


def load(path: Path) -> ModuleType:
    """Import a losses.py of another commit."""
    spec = importlib.util.spec_from_file_location("before", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--preset", default="vitb")
    parser.add_argument("--ranks", type=int, default=32)
    given = parser.parse_args()
    config = presets.resolve("train", preset=given.preset).config
    assert isinstance(config, TrainConfig)
    costs = count(config, given.ranks, load(given.before) if given.before else None)
    costs["step"] = _sum(list(costs.values()))
    for name, own in costs.items():
        print(
            json.dumps(
                {
                    "part": name,
                    "tflop": round(own.flops / 1e12, 2),
                    "gb_before": round(own.eager / 1e9, 1),
                    "gb_after": round(own.compiled / 1e9, 1),
                    "less_by": round(own.eager / own.compiled, 2),
                }
            )
        )
    images = config.captions_per_batch * config.views * config.global_crops // given.ranks
    parts = [own for name, own in costs.items() if name != "step"]
    for name in ("eager", "compiled"):
        seconds = sum(max(c.flops / PEAK_FLOPS, getattr(c, name) / BANDWIDTH) for c in parts)
        mfu = costs["step"].flops / PEAK_FLOPS / seconds
        bound = {"images_per_s_bound": round(images / seconds), "mfu_bound": round(mfu, 3)}
        print(json.dumps({"bound": {"eager": "before", "compiled": "after"}[name], **bound}))
    then, now = per_score(costs, config, given.ranks)
    print(json.dumps({"bytes_per_score_before": round(then, 1), "after": round(now, 1)}))


if __name__ == "__main__":
    main()
