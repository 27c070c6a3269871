"""The two losses of stage 3, as pure functions of embeddings and scores.

    anchors, candidates, labels --contrast--> L              multi-positive contrast, eq. 1-3
    teacher scores --sinkhorn--> targets --patch_loss--> L   masked patches, iBOT

Shapes: A anchors, C candidates, E embedding, M masked patches of this rank, P prototypes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from synclr_cli.learning.runtime import Runtime

LOGITS = 1 << 24  # similarities held at once; rows are worked on in blocks of at most these


def contrast(
    anchors: Tensor,
    candidates: Tensor,
    anchor_labels: Tensor,
    candidate_labels: Tensor,
    own: Tensor | None,
    temperature: float,
) -> Tensor:
    """Return the mean over anchors of the multi-positive cross entropy H(p, q).

    q is the softmax of a.b / temperature over the candidates, p uniform over the candidates of the
    anchor's label (eq. 1-3); both sides are normalised to length 1 here. The loss of an anchor
    without a positive is 0. No gradient flows to the candidates.

    Args:
        anchors: [A, E].
        candidates: [C, E].
        anchor_labels, candidate_labels: [A], [C].
        own: [A], the candidate that is no candidate for this anchor (its own picture); None: all.
    """
    a = F.normalize(anchors.to(torch.promote_types(anchors.dtype, torch.float32)), dim=-1)
    b = F.normalize(candidates.detach().to(a.dtype), dim=-1)
    return _Contrast.apply(a, b, anchor_labels, candidate_labels, own, temperature)


class _Contrast(torch.autograd.Function):
    """The cross entropy by blocks of rows: the gradient is made with the loss, logits never kept.

    With s = a.b / temperature: dL/da = (1 / A) sum_j (q_j - p_j) b_j / temperature.
    """

    @staticmethod
    def forward(ctx, a, b, a_labels, b_labels, own, temperature):
        losses, gradient = [], torch.empty_like(a)
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
            gradient[block] = (weight * log_q.exp() - p).to(b.dtype) @ b
        ctx.save_for_backward(gradient / (len(a) * temperature))
        return torch.cat(losses).mean()

    @staticmethod
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None, None, None, None


def sinkhorn(scores: Tensor, temperature: float, iterations: int, runtime: Runtime) -> Tensor:
    """Return targets [M, P] that sum to 1 over prototypes and nearly alike over all ranks' tokens.

    Sinkhorn-Knopp on exp(scores / temperature): per iteration the prototypes' totals are made equal
    first, then the tokens'. Only scaling vectors are iterated. The first prototype scaling is
    taken in the log domain and put into the matrix, after which every row and column of it holds
    a number of ordinary size, so nothing overflows or vanishes, whatever the scores.

    Args:
        scores: [M, P] of the teacher, on this rank; M may differ between ranks.
        temperature: of the teacher.
    """
    logits = scores.to(torch.promote_types(scores.dtype, torch.float32)) / temperature  # [M, P]
    low = logits.new_full((1, logits.shape[1]), -torch.inf)
    highest = runtime.gather(torch.cat([logits, low]).amax(0, keepdim=True)).amax(0)  # [P]
    total = runtime.sum(torch.exp(logits - highest).sum(0))  # [P]
    logits = logits - highest - total.log()  # prototypes are equal: columns sum to 1
    matrix = torch.exp(logits - logits.amax(1, keepdim=True))  # [M, P]
    tokens = 1 / matrix.sum(1)  # [M]
    prototypes = torch.ones_like(total)  # [P]
    for _ in range(iterations - 1):
        prototypes = 1 / runtime.sum(tokens @ matrix)
        tokens = 1 / (matrix @ prototypes)
    return matrix * prototypes * tokens[:, None]


def patch_loss(scores: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return the sum over tokens of H(targets, softmax(scores / temperature)).

    Args:
        scores: [M, P] of the student.
        targets: [M, P], rows summing to 1; no gradient flows to them.
        temperature: of the student.
    """
    logits = scores.to(torch.promote_types(scores.dtype, torch.float32)) / temperature
    return (logits.logsumexp(1) - (targets.detach() * logits).sum(1)).sum()
