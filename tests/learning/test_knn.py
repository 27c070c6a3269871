"""k nearest neighbours against a loop."""

import math

import torch

from synclr_cli.learning import knn


def test_votes_are_weighted_by_cosine_as_in_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(40, 6, generator=generator)
    labels = torch.randint(0, 3, (40,), generator=generator)
    asked = torch.randn(15, 6, generator=generator)
    found = knn.predict(known, labels, asked, classes=3, k=7)
    for q in range(15):
        cosines = []
        for i in range(40):
            dot = sum(float(a) * float(b) for a, b in zip(asked[q], known[i], strict=True))
            cosines.append((dot / float(asked[q].norm()) / float(known[i].norm()), int(labels[i])))
        votes = [0.0, 0.0, 0.0]
        for cosine, label in sorted(cosines, reverse=True)[:7]:
            votes[label] += math.exp(cosine / 0.07)
        assert int(found[q]) == votes.index(max(votes))


def test_a_known_image_is_its_own_nearest_neighbour():
    known = torch.eye(5)
    labels = torch.tensor([4, 3, 2, 1, 0])
    found = knn.predict(known, labels, known * 3, classes=5, k=1)
    assert found.tolist() == labels.tolist()


def test_fewer_images_than_neighbours_is_fine():
    known, labels = torch.eye(3), torch.tensor([0, 1, 1])
    assert knn.predict(known, labels, known, classes=2, k=20).tolist() == [0, 1, 1]
