"""One training step on this machine: ours against the same step written the plain way with timm.

    OMP_NUM_THREADS=2 python benchmarks/train_step.py [--rounds 5] [--captions 4]
        [--precision auto | float32 | bfloat16]

The plain step is what a port in an afternoon looks like: timm's `forward_features` on all tokens,
heads and losses (under autocast in bfloat16), Sinkhorn by exponentials, AdamW and the average
tensor by tensor. It starts from the same weights and batch, and its loss must be ours. Each variant
is a process of its own, and they take turns, so that a machine shared with others treats them
alike; the figure of each is the median round. `matrix_products` is the share of the step that is
spent inside products of matrices: what is left to gain is the rest.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import time
from multiprocessing.connection import Connection

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from synclr_cli import rng
from synclr_cli.config import PRECISIONS, TrainConfig
from synclr_cli.learning import runtime
from synclr_cli.learning.runtime import Runtime
from synclr_cli.train import masks
from synclr_cli.train.batches import Batch
from synclr_cli.train.encoder import positions
from synclr_cli.train.learner import Learner, step_values
from synclr_cli.train.objective import moments, normalise


class Plain:
    """The step without any care for speed, on copies of a learner's modules."""

    def __init__(
        self,
        learner: Learner,
        amp: torch.dtype | None,
        *,
        fused: bool,
        teacher_temperature: float,
    ):
        self.config, self.teacher_temperature = learner.config, teacher_temperature
        self.student, self.teacher = copy.deepcopy((learner.student, learner.teacher))
        for model in (self.student, self.teacher):
            for block in model.vit.blocks:
                block.attn.fused_attn = fused
        self.amp = amp
        decayed = [p for p in self.student.parameters() if p.ndim > 1]
        others = [p for p in self.student.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed}, {"params": others, "weight_decay": 0.0}], lr=1e-4
        )

    def __call__(self, batch: Batch) -> float:
        config, student, teacher = self.config, self.student, self.teacher
        masked = batch.masks
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.amp is not None):
            with torch.no_grad():
                taught = self.encode(teacher, batch.globals)
                candidates = F.normalize(teacher.projector(taught[:, 0]).float(), dim=1)
                hidden = teacher.prototypes(taught[:, 1:][masked])
                q = F.linear(hidden, teacher.prototypes.prototypes()).float()
                q = torch.exp(q / self.teacher_temperature)
                q /= q.sum()
                for _ in range(config.sinkhorn_iterations):
                    q /= q.sum(0, keepdim=True) * q.shape[1]
                    q /= q.sum(1, keepdim=True) * q.shape[0]
                q *= q.shape[0]
            tokens = self.encode(student, batch.globals, masked)
            local = self.encode(student, batch.locals)
            z = student.predictor(student.projector(torch.cat([tokens[:, 0], local[:, 0]])))
            hidden = student.prototypes(tokens[:, 1:][masked])
            scores = F.linear(hidden, student.prototypes.prototypes())
        z, n = F.normalize(z.float(), dim=1), len(tokens)
        s = z @ candidates.T / config.temperature
        labels = batch.labels
        eye = torch.eye(n, dtype=torch.bool)
        same = labels[:, None] == labels
        of_globals = self.cross_entropy(s[:n].masked_fill(eye, -torch.inf), same & ~eye)
        of_locals = self.cross_entropy(s[n:], same.repeat_interleave(config.local_crops, 0))
        log_p = F.log_softmax(scores.float() / config.student_temperature, dim=1)
        loss = of_globals + of_locals - (q * log_p).sum(1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            followed = dict(student.named_parameters())
            for name, p in teacher.named_parameters():
                p.mul_(0.994).add_(followed[name], alpha=0.006)
        return loss.item()

    @staticmethod
    def encode(model, images: Tensor, masked: Tensor | None = None) -> Tensor:
        vit = model.vit
        x = vit.patch_embed(normalise(images, moments(images.device))).flatten(1, 2)
        side = int(x.shape[1] ** 0.5)
        if masked is not None:
            x = torch.where(masked[..., None], model.mask_token.to(x.dtype), x)
        x = torch.cat([vit.cls_token.expand(len(x), -1, -1), x], 1)
        x = x + positions(vit.pos_embed, side)
        for block in vit.blocks:
            x = block(x)
        return vit.norm(x)

    @staticmethod
    def cross_entropy(s: Tensor, positive: Tensor) -> Tensor:
        p = positive / positive.sum(1, keepdim=True)
        return -(p * F.log_softmax(s, 1).masked_fill(~positive, 0)).sum(1).mean()


def random_batch(config: TrainConfig, patches: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    n = config.captions_per_batch * config.views
    ids = rng.key("picture", np.arange(n))
    drawn = masks.draw(
        0,
        0,
        ids,
        slice(None),
        patches=patches,
        probability=config.mask_probability,
        ratio=config.mask_ratio,
    )

    def pixels(count: int, size: int) -> Tensor:
        return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)

    return Batch(
        step=0,
        globals=pixels(n, config.image_size),
        locals=pixels(n * config.local_crops, config.local_size),
        masks=torch.from_numpy(drawn),
        ids=torch.from_numpy(ids.view(np.int64)),
        labels=torch.arange(config.captions_per_batch).repeat_interleave(config.views),
        caption_ids=list(range(config.captions_per_batch)),
        damaged=[],
    )


VARIANTS = {  # precision of the products; plain: timm's fused attention or an explicit one
    "ours, bfloat16": (torch.bfloat16, None),
    "plain, bfloat16, explicit attention": (torch.bfloat16, False),
    "plain, bfloat16, timm's default attention": (torch.bfloat16, True),
    "ours, float32": (None, None),
    "plain, float32, explicit attention": (None, False),
    "plain, float32, timm's default attention": (None, True),
}
PRODUCTS = (
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "mkldnn_convolution",
    "convolution_backward",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
)


def work(name: str, config: TrainConfig, pipe: Connection) -> None:
    """Do a step each time it is asked for, and say what it took."""
    amp, fused = VARIANTS[name]
    if fused is None:
        runtime.keep_freed_memory()  # as every `synclr train` does
    learner = Learner(config, Runtime(torch.device("cpu"), amp))
    batch, now = random_batch(config, learner.patches), step_values(1000, config)
    if fused is None:

        def step() -> float:
            return learner.update(batch, now).losses.total.item()

    else:
        temperature = now.teacher_temperature
        plain = Plain(learner, amp, fused=fused, teacher_temperature=temperature)
        del learner

        def step() -> float:
            return plain(batch)

    while (asked := pipe.recv()) != "end":
        if asked == "profile":
            with torch.profiler.profile() as profile:
                step()
            rows = {r.key: r.self_cpu_time_total for r in profile.key_averages()}
            products = sum(rows.get(f"aten::{product}", 0) for product in PRODUCTS)
            pipe.send(products / sum(rows.values()))
            continue
        start, start_cpu = time.perf_counter(), time.process_time()
        loss = step()
        pipe.send((loss, time.perf_counter() - start, time.process_time() - start_cpu))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="vit_small_patch16_224")
    parser.add_argument("--captions", type=int, default=4)
    parser.add_argument("--prototypes", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="auto", choices=PRECISIONS)
    given = parser.parse_args()
    config = TrainConfig(
        arch=given.arch,
        captions_per_batch=given.captions,
        prototypes=given.prototypes,
        drop_path=0.0,
    )
    amp = runtime.amp_dtype(given.precision, torch.device("cpu"))
    # Where bfloat16 is no faster nobody would take it; where it is, float32 is a port's worst.
    names = [n for n, (dtype, _) in VARIANTS.items() if dtype == amp]
    if amp is not None:
        names.append("plain, float32, timm's default attention")
    context, pipes = multiprocessing.get_context("spawn"), {}
    for name in names:
        pipes[name], theirs = context.Pipe()
        context.Process(target=work, args=(name, config, theirs), daemon=True).start()
    losses, wall, cpu_s, share = {}, {}, {}, {}
    for round_ in range(given.rounds + 2):  # two to warm up
        for name, pipe in pipes.items():
            pipe.send("step")
            loss, taken, taken_cpu = pipe.recv()
            losses.setdefault(name, loss)
            if round_ > 1:
                wall.setdefault(name, []).append(taken)
                cpu_s.setdefault(name, []).append(taken_cpu)
    for name, pipe in pipes.items():
        pipe.send("profile")
        share[name] = pipe.recv()
        pipe.send("end")
    images = config.captions_per_batch * config.views
    ours_wall, ours_cpu = (np.median(x[names[0]]) for x in (wall, cpu_s))
    for name in names:
        median, median_cpu = np.median(wall[name]), np.median(cpu_s[name])
        print(
            json.dumps(
                {
                    "step": name,
                    "images_per_s": round(images / median, 2),
                    "ours_is_faster_by": round(median / ours_wall, 2),
                    "cpu_ms_per_image": round(1000 * median_cpu / images, 1),
                    "ours_is_cheaper_by": round(median_cpu / ours_cpu, 2),
                    "matrix_products": round(share[name], 2),
                    "first_loss": round(losses[name], 5),
                    "threads": torch.get_num_threads(),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
