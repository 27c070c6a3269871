"""The two losses of stage 3, as pure functions of embeddings and scores.

    anchors, candidates, labels --contrast--> L              multi-positive contrast, eq. 1-3
    teacher tokens --Scores, Sinkhorn--> targets
    student tokens, targets --patch_loss--> L                masked patches, iBOT

Neither keeps more than a block of similarities at a time, nor does its gradient. What is done to a
block is a plain function of tensors; `fused` compiles these functions, so that a block is read as
often as it is summed and nothing of its size is written but the gradient of the scores. Uncompiled
they are the reference, and what a CPU runs.

Shapes: A anchors, C candidates, E embedding, M masked patches of this rank, P prototypes, K width
of their space, r rows of a block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from synclr_cli.learning.runtime import Runtime

# Similarities of one block, and bytes of scores that are kept instead of multiplied again.
BLOCK, KEPT = 1 << 24, 1 << 26
BLOCK_ON_GPU, KEPT_ON_GPU = 1 << 26, 1 << 32
CACHED = 1 << 19  # of a block, what a CPU works on at a time: 2 MB of float32
FEWEST_ROWS = 16  # fewer make slow products


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True)


def _pick(function: Callable[..., Any], *, fused: bool) -> Callable[..., Any]:
    return _compiled(function) if fused else function


def _block_size(device: torch.device) -> int:
    return BLOCK if device.type == "cpu" else BLOCK_ON_GPU


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return float32, or float64 for float64: what sums are taken in."""
    return torch.promote_types(dtype, torch.float32)


def contrast(
    anchors: Tensor,
    candidates: Tensor,
    anchor_labels: Tensor,
    candidate_labels: Tensor,
    own: Tensor | None,
    temperature: float,
    *,
    both: bool = False,
    fused: bool = False,
) -> Tensor:
    """Return the mean over anchors of the multi-positive cross entropy H(p, q).

    q is the softmax of a.b / temperature over the candidates, p uniform over the candidates of the
    anchor's label (eq. 1-3); both sides are normalised to length 1 here. The loss of an anchor
    without a positive is 0. Gradient flows to the candidates only if `both` sides are trained.

    Args:
        anchors: [A, E].
        candidates: [C, E].
        anchor_labels, candidate_labels: [A], [C].
        own: [A], the candidate that is no candidate for this anchor (its own image); None: all.
        temperature: of the softmax.
        both: train the candidates too.
        fused: compile what is done to a block of similarities.
    """
    a = F.normalize(anchors.to(_wide(anchors.dtype)), dim=-1)
    b = F.normalize((candidates if both else candidates.detach()).to(a.dtype), dim=-1)
    return _Contrast.apply(a, b, anchor_labels, candidate_labels, own, temperature, fused)


class _Contrast(torch.autograd.Function):
    """The cross entropy by blocks of rows: the gradient is made with the loss, logits never kept.

    With s = a.b / temperature: dL/da = (1 / A) sum_j (q_j - p_j) b_j / temperature, and dL/db_j the
    sum over anchors of (q_j - p_j) a / (A temperature).
    """

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        a_labels: Tensor,
        b_labels: Tensor,
        own: Tensor | None,
        temperature: float,
        fused: bool,
    ) -> Tensor:
        piece = _pick(contrast_block, fused=fused)
        losses, gradient = [], torch.empty_like(a)
        of_b = torch.zeros_like(b) if ctx.needs_input_grad[1] else None
        size = max(1, _block_size(a.device) // len(b))
        for start in range(0, len(a), size):
            rows = slice(start, min(start + size, len(a)))
            own_rows = None if own is None else own[rows]
            loss, of_logits = piece(a[rows], b, a_labels[rows], b_labels, own_rows, temperature)
            losses.append(loss)
            gradient[rows] = of_logits @ b
            if of_b is not None:
                of_b += of_logits.T @ a[rows]
        scale = 1 / (len(a) * temperature)
        ctx.save_for_backward(gradient * scale, None if of_b is None else of_b * scale)
        return torch.cat(losses).mean()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        gradient, of_b = ctx.saved_tensors
        of_b = None if of_b is None else upstream * of_b
        return upstream * gradient, of_b, None, None, None, None, None


def contrast_block(
    a: Tensor,
    b: Tensor,
    a_labels: Tensor,
    b_labels: Tensor,
    own: Tensor | None,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Return H(p, q) of some anchors, [r], and its gradient q - p at their logits, [r, C].

    Args:
        a, b: unit vectors [r, E] and [C, E].
        a_labels, b_labels, own: as of `contrast`, of these anchors.
        temperature: of the softmax.
    """
    s = a @ b.T / temperature  # [r, C]
    positive = a_labels[:, None] == b_labels  # [r, C]
    if own is not None:
        itself = own[:, None] == torch.arange(len(b), device=b.device)  # [r, C]
        s = s.masked_fill(itself, float("-inf"))
        positive = positive & ~itself
    count = positive.sum(1, keepdim=True)  # [r, 1]
    weight = (count > 0).to(s.dtype)  # [r, 1]; 0 without a positive
    p = positive / count.clamp(min=1).to(s.dtype)  # [r, C]
    log_q = s.log_softmax(1)  # [r, C]
    loss = -torch.where(positive, p * log_q, 0).sum(1)  # [r]
    return loss, weight * log_q.exp() - p


class Scores:
    """The scores of M tokens against P prototypes, by blocks of rows.

    All of them together are kept only while they are few; else a block is multiplied again each
    time it is needed, so that memory does not grow with tokens x prototypes.
    """

    def __init__(
        self,
        tokens: Tensor,
        prototypes: Tensor,
        dtype: torch.dtype | None = None,
        *,
        fused: bool = False,
    ):
        """Take tokens [M, K] and prototypes [P, K].

        Args:
            tokens, prototypes: whose products the scores are.
            dtype: what they are multiplied in, and the scores are stored in; sums in between are
                float32 at least.
            fused: compile what is done to a block.
        """
        self.tokens = tokens if dtype is None else tokens.to(dtype)
        self.prototypes = prototypes if dtype is None else prototypes.to(dtype)
        self.fused, self.dtype = fused, _wide(self.prototypes.dtype)
        is_cpu = tokens.device.type == "cpu"
        bytes_ = len(tokens) * len(prototypes) * self.tokens.element_size()
        kept = bytes_ <= (KEPT if is_cpu else KEPT_ON_GPU)
        self._kept = self.tokens @ self.prototypes.T if kept else None  # [M, P]

    def groups(self) -> list[list[slice]]:
        """Return the rows of each block, those whose gradient may be held at once together."""
        together = at_once = max(1, _block_size(self.tokens.device) // len(self.prototypes))
        if self.tokens.device.type == "cpu":
            at_once = min(together, max(FEWEST_ROWS, CACHED // len(self.prototypes)))
        starts = range(0, len(self.tokens), together)
        ends = [min(i + together, len(self.tokens)) for i in starts]
        return [
            [slice(j, min(j + at_once, end)) for j in range(i, end, at_once)]
            for i, end in zip(starts, ends, strict=True)
        ]

    def blocks(self) -> list[slice]:
        """Return the rows of each block; there may be none."""
        return [block for group in self.groups() for block in group]

    def __getitem__(self, block: slice) -> Tensor:
        """Return the scores of a block, [r, P]; they must not be written to."""
        if self._kept is None:
            return self.tokens[block] @ self.prototypes.T  # [r, P]
        return self._kept[block]

    def per_prototype(self, value: float) -> Tensor:
        """Return one value for each prototype, [P]."""
        p = self.prototypes
        return torch.full((len(p),), value, dtype=self.dtype, device=p.device)


class Sinkhorn:
    """The teacher's targets: rows sum to 1, and prototypes are used nearly alike over all ranks.

    Sinkhorn-Knopp on exp(scores / temperature): per iteration the prototypes' totals are made equal
    first, then the tokens'. Only the logarithms of the prototypes' scaling are kept, [P]: with them
    the tokens' scaling is that of a softmax, and the targets are softmax(scores / temperature -
    offset). An iteration adds the logarithm of the targets' column sums to the offset. Nothing
    overflows or vanishes, whatever the scores: after the first iteration no prototype's largest
    target is below 1 / (M P).
    """

    def __init__(self, scores: Scores, temperature: float, iterations: int, runtime: Runtime):
        """Iterate on scores [M, P] of the teacher; M may differ between ranks."""
        self.scores = scores
        self.temperature = torch.full(
            (), temperature, dtype=scores.dtype, device=scores.prototypes.device
        )
        self.offset = self._first_offset(runtime)  # [P]
        for _ in range(iterations - 1):
            total, add = scores.per_prototype(0), _pick(add_targets, fused=scores.fused)
            for block in scores.blocks():
                total = add(total, scores[block], self.temperature, self.offset)
            self.offset = self.offset + runtime.sum(total).log()

    def _first_offset(self, runtime: Runtime) -> Tensor:
        """Return the logarithm of the sums over all ranks' tokens of exp(s / temperature), [P]."""
        highest = self.scores.per_prototype(-torch.inf)  # [P]
        total, add = self.scores.per_prototype(0), _pick(add_exponentials, fused=self.scores.fused)
        for block in self.scores.blocks():
            highest, total = add(highest, total, self.scores[block], self.temperature)
        highest_of_all = runtime.gather(highest[None]).amax(0)  # [P]
        return highest_of_all + runtime.sum(total * (highest - highest_of_all).exp()).log()

    def used(self) -> Tensor:
        """Return how many tokens of this rank have each prototype as their first, [P]."""
        counts = self.scores.per_prototype(0)
        for block in self.scores.blocks():
            first = self[block].argmax(1)  # [r]
            counts += torch.bincount(first, minlength=len(counts)).to(counts)
        return counts

    def __getitem__(self, block: slice) -> Tensor:
        """Return the targets of a block of tokens, [r, P]."""
        return targets(self.scores[block], self.temperature, self.offset)


def targets(scores: Tensor, temperature: Tensor, offset: Tensor) -> Tensor:
    """Return softmax(scores / temperature - offset) in float32 or better, [r, P]."""
    return scores.to(offset.dtype).div(temperature).sub_(offset).softmax(1)


def add_exponentials(
    highest: Tensor, total: Tensor, scores: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the running maximum and sum over tokens of exp(s / temperature - maximum), [P] each.

    Args:
        highest, total: of the tokens before, [P]; -inf and 0 at first.
        scores: of more tokens, [r, P].
        temperature: of the exponentials.
    """
    z = scores.to(total.dtype).div(temperature)  # [r, P]
    now = torch.maximum(highest, z.amax(0))  # [P]
    return now, total * (highest - now).exp() + z.sub_(now).exp_().sum(0)


def add_targets(total: Tensor, scores: Tensor, temperature: Tensor, offset: Tensor) -> Tensor:
    """Return the sum over tokens of their targets, with those of more tokens, [P]."""
    return total + targets(scores, temperature, offset).sum(0)


def patch_loss(
    tokens: Tensor,
    prototypes: Tensor,
    targets: Sinkhorn,
    temperature: float,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the sum over tokens of H(targets, softmax(tokens @ prototypes / temperature)).

    Args:
        tokens: [M, K] of the student; gradient flows to them and to the prototypes.
        prototypes: [P, K] of the student.
        targets: of the same M tokens.
        temperature: of the student.
        dtype: what tokens and prototypes are multiplied in.
    """
    return _PatchLoss.apply(tokens, prototypes, targets, temperature, dtype)


class _PatchLoss(torch.autograd.Function):
    """The cross entropy by blocks of tokens: the gradients are made with the loss.

    With z = t.c / temperature: dL/dz = softmax(z) - target.
    """

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        prototypes: Tensor,
        targets: Sinkhorn,
        temperature: float,
        dtype: torch.dtype,
    ) -> Tensor:
        scores = Scores(tokens, prototypes, dtype, fused=targets.scores.fused)
        piece = _pick(patch_block, fused=scores.fused)
        loss = scores.per_prototype(0).sum()
        of_tokens, of_prototypes = torch.zeros_like(tokens), torch.zeros_like(prototypes)
        for group in scores.groups():
            rows, parts = slice(group[0].start, group[-1].stop), []
            for block in group:
                of_block, of_scores = piece(
                    scores[block], targets.scores[block], temperature, targets.temperature,
                    targets.offset,
                )  # fmt: skip
                loss += of_block
                parts.append(of_scores)
            of_scores = parts[0] if len(parts) == 1 else torch.cat(parts)  # [rows, P]
            of_tokens[rows] = (of_scores @ scores.prototypes).to(tokens.dtype)
            of_prototypes += (of_scores.T @ scores.tokens[rows]).to(of_prototypes)
        ctx.save_for_backward(of_tokens / temperature, of_prototypes / temperature)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        of_tokens, of_prototypes = ctx.saved_tensors
        return (
            (upstream * of_tokens).to(of_tokens.dtype),
            (upstream * of_prototypes).to(of_prototypes.dtype),
            None,
            None,
            None,
        )


def patch_block(
    scores: Tensor,
    teacher_scores: Tensor,
    temperature: float,
    teacher_temperature: Tensor,
    offset: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the sum over tokens of H(target, softmax(z)), and its gradient at z in their dtype.

    Args:
        scores, teacher_scores: of the same tokens, [r, P].
        temperature: of the student; z = scores / temperature.
        teacher_temperature, offset: what makes targets of the teacher's scores.
    """
    target = targets(teacher_scores, teacher_temperature, offset)  # [r, P]
    z = scores.to(target.dtype).div(temperature)  # [r, P]
    log_sum = z.logsumexp(1, keepdim=True)  # [r, 1]
    loss = log_sum.sum() - (target * z).sum()
    return loss, z.sub_(log_sum).exp_().sub_(target).to(scores.dtype)
