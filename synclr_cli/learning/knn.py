"""k nearest neighbours: the grade of features with nothing trained at all.

Shapes: n images known, q asked, D features, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.07  # of the votes: exp(cosine / temperature), as DINO weighs them
ROWS = 1024  # asked at a time


def predict(known: Tensor, labels: Tensor, queries: Tensor, *, classes: int, k: int = 20) -> Tensor:
    """Return the class [q] that the k nearest known features vote for, by cosine similarity.

    Args:
        known: [n, D] with labels [n].
        queries: [q, D].
    """
    known = F.normalize(known, dim=1)
    predicted = []
    for rows in F.normalize(queries, dim=1).split(ROWS):
        similarity, nearest = (rows @ known.T).topk(min(k, len(known)))  # [rows, k]
        votes = torch.zeros(len(rows), classes, device=rows.device)  # [rows, K]
        votes.scatter_add_(1, labels[nearest], (similarity / TEMPERATURE).exp())
        predicted.append(votes.argmax(1))
    return torch.cat(predicted)  # [q]
