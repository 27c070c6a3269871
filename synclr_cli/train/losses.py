"""The two losses of stage 3, as pure functions of embeddings and scores.

    anchors, candidates, labels --contrast--> L              multi-positive contrast, eq. 1-3
    teacher tokens --Scores, Sinkhorn--> targets
    student tokens, targets --patch_loss--> L                masked patches, iBOT

Neither keeps more than a block of similarities at a time, nor does its gradient.

Shapes: A anchors, C candidates, E embedding, M masked patches of this rank, P prototypes, K width
of their space.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from synclr_cli.learning.runtime import Runtime

LOGITS = 1 << 24  # similarities held at once; rows are worked on in blocks of at most these
CACHED = 1 << 19  # of those, what a CPU works on at a time: 2 MB of float32
FEWEST_ROWS = 16  # fewer make slow products


def contrast(
    anchors: Tensor,
    candidates: Tensor,
    anchor_labels: Tensor,
    candidate_labels: Tensor,
    own: Tensor | None,
    temperature: float,
    *,
    both: bool = False,
) -> Tensor:
    """Return the mean over anchors of the multi-positive cross entropy H(p, q).

    q is the softmax of a.b / temperature over the candidates, p uniform over the candidates of the
    anchor's label (eq. 1-3); both sides are normalised to length 1 here. The loss of an anchor
    without a positive is 0. Gradient flows to the candidates only if `both` sides are trained.

    Args:
        anchors: [A, E].
        candidates: [C, E].
        anchor_labels, candidate_labels: [A], [C].
        own: [A], the candidate that is no candidate for this anchor (its own picture); None: all.
    """
    a = F.normalize(anchors.to(torch.promote_types(anchors.dtype, torch.float32)), dim=-1)
    b = F.normalize((candidates if both else candidates.detach()).to(a.dtype), dim=-1)
    return _Contrast.apply(a, b, anchor_labels, candidate_labels, own, temperature)


class _Contrast(torch.autograd.Function):
    """The cross entropy by blocks of rows: the gradient is made with the loss, logits never kept.

    With s = a.b / temperature: dL/da = (1 / A) sum_j (q_j - p_j) b_j / temperature, and dL/db_j the
    sum over anchors of (q_j - p_j) a / (A temperature).
    """

    @staticmethod
    def forward(ctx, a, b, a_labels, b_labels, own, temperature):
        losses, gradient = [], torch.empty_like(a)
        of_b = torch.zeros_like(b) if ctx.needs_input_grad[1] else None
        for block in torch.arange(len(a), device=a.device).split(max(1, LOGITS // len(b))):
            s = a[block] @ b.T / temperature  # [block, C]
            positive = a_labels[block, None] == b_labels  # [block, C]
            if own is not None:
                s.scatter_(1, own[block, None], float("-inf"))
                positive.scatter_(1, own[block, None], False)
            p = positive.to(s.dtype)  # [block, C]
            p /= p.sum(1, keepdim=True).clamp(min=1)
            log_q = s.log_softmax(1)  # [block, C]
            losses.append(-(p * log_q.masked_fill(~positive, 0)).sum(1))  # [block]
            weight = p.sum(1, keepdim=True)  # 1; 0 without a positive
            of_logits = (weight * log_q.exp() - p).to(b.dtype)  # [block, C]
            gradient[block] = of_logits @ b
            if of_b is not None:
                of_b += of_logits.T @ a[block]
        scale = 1 / (len(a) * temperature)
        ctx.save_for_backward(gradient * scale, None if of_b is None else of_b * scale)
        return torch.cat(losses).mean()

    @staticmethod
    def backward(ctx, upstream):
        gradient, of_b = ctx.saved_tensors
        of_b = None if of_b is None else upstream * of_b
        return upstream * gradient, of_b, None, None, None, None


class Scores:
    """The scores of M tokens against P prototypes, by blocks of rows.

    All of them together are kept only while they are few; else a block is multiplied anew each time
    it is asked for, so that memory does not grow with tokens x prototypes.
    """

    def __init__(self, tokens: Tensor, prototypes: Tensor, dtype: torch.dtype | None = None):
        """Take tokens [M, K] and prototypes [P, K]; `dtype` is what they are multiplied in."""
        self._tokens = tokens if dtype is None else tokens.to(dtype)
        self._prototypes = prototypes if dtype is None else prototypes.to(dtype)
        self._most = max(1, LOGITS // len(prototypes))  # rows held at once
        whole = len(tokens) <= self._most
        self._kept = self._tokens @ self._prototypes.T if whole else None  # [M, P]
        self.dtype = torch.promote_types(self._prototypes.dtype, torch.float32)

    def groups(self) -> list[list[slice]]:
        """Return the rows of each block, those that may be held at once together."""
        size = self._most
        if self._tokens.device.type == "cpu":
            size = min(size, max(FEWEST_ROWS, CACHED // len(self._prototypes)))
        rows = range(0, len(self._tokens), self._most)
        ends = [min(i + self._most, len(self._tokens)) for i in rows]
        return [
            [slice(j, min(j + size, end)) for j in range(i, end, size)]
            for i, end in zip(rows, ends, strict=True)
        ]

    def blocks(self) -> list[slice]:
        """Return the rows of each block; there may be none."""
        return [block for group in self.groups() for block in group]

    def __getitem__(self, block: slice) -> Tensor:
        """Return a copy of the scores of a block, [rows, P], in float32 or better."""
        if self._kept is None:
            return (self._tokens[block] @ self._prototypes.T).to(self.dtype)  # [rows, P]
        return self._kept[block].to(self.dtype, copy=True)

    def per_prototype(self) -> Tensor:
        """Return zeros, [P]."""
        return torch.zeros(len(self._prototypes), dtype=self.dtype, device=self._prototypes.device)


class Sinkhorn:
    """The teacher's targets: rows sum to 1, and prototypes are used nearly alike over all ranks.

    Sinkhorn-Knopp on exp(scores / temperature): per iteration the prototypes' totals are made equal
    first, then the tokens'. Only scaling vectors are iterated. The first prototype scaling is
    taken in the log domain and put into the matrix, after which every row and column of it holds
    a number of ordinary size, so nothing overflows or vanishes, whatever the scores.
    """

    def __init__(self, scores: Scores, temperature: float, iterations: int, runtime: Runtime):
        """Iterate on scores [M, P] of the teacher; M may differ between ranks."""
        self._scores, self._temperature = scores, temperature
        highest = torch.full_like(scores.per_prototype(), -torch.inf)  # [P]
        for block in scores.blocks():
            highest = torch.maximum(highest, scores[block].amax(0))
        highest = runtime.gather(highest[None]).amax(0) / temperature  # [P]
        total = scores.per_prototype()
        for block in scores.blocks():
            total += scores[block].div_(temperature).sub_(highest).exp_().sum(0)
        self._log_prototypes = highest + runtime.sum(total).log()  # [P]
        self._prototypes = torch.ones_like(total)  # [P], what the iterations add
        for _ in range(iterations - 1):
            total = scores.per_prototype()
            for block in scores.blocks():
                matrix = self._matrix(block)  # [rows, P]
                total += (1 / (matrix @ self._prototypes)) @ matrix
            self._prototypes = 1 / runtime.sum(total)

    def used(self) -> Tensor:
        """Return how many tokens of this rank have each prototype as their first, [P]."""
        counts = self._scores.per_prototype()
        for block in self._scores.blocks():
            first = self[block].argmax(1)  # [rows]
            counts += torch.bincount(first, minlength=len(counts)).to(counts)
        return counts

    def _matrix(self, block: slice) -> Tensor:
        logits = self._scores[block].div_(self._temperature)  # [rows, P]
        logits.sub_(self._log_prototypes)
        return logits.sub_(logits.amax(1, keepdim=True)).exp_()

    def __getitem__(self, block: slice) -> Tensor:
        """Return the targets of a block of tokens, [rows, P]."""
        targets = self._matrix(block).mul_(self._prototypes)
        return targets.div_(targets.sum(1, keepdim=True))


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
    def forward(ctx, tokens, prototypes, targets, temperature, dtype):
        scores = Scores(tokens, prototypes, dtype)
        loss = scores.per_prototype().sum()
        of_tokens, of_prototypes = torch.zeros_like(tokens), torch.zeros_like(prototypes)
        for group in scores.groups():
            rows = slice(group[0].start, group[-1].stop)
            shape = (rows.stop - rows.start, len(prototypes))
            of_scores = prototypes.new_empty(shape, dtype=dtype or scores.dtype)  # [rows, P]
            for block in group:
                z, target = scores[block].div_(temperature), targets[block]  # [block, P]
                log_sum = z.logsumexp(1, keepdim=True)  # [block, 1]
                loss += log_sum.sum() - torch.dot(target.view(-1), z.view(-1))
                place = slice(block.start - rows.start, block.stop - rows.start)
                of_scores[place] = z.sub_(log_sum).exp_().sub_(target)
            of_tokens[rows] = (of_scores @ prototypes.to(of_scores.dtype)).to(tokens.dtype)
            of_prototypes += (of_scores.T @ tokens[rows].to(of_scores.dtype)).to(of_prototypes)
        ctx.save_for_backward(of_tokens / temperature, of_prototypes / temperature)
        return loss

    @staticmethod
    def backward(ctx, upstream):
        of_tokens, of_prototypes = ctx.saved_tensors
        return (
            (upstream * of_tokens).to(of_tokens.dtype),
            (upstream * of_prototypes).to(of_prototypes.dtype),
            None,
            None,
            None,
        )
