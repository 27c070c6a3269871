"""What is drawn for a row: a pure function of (seed, caption_id), never of order or batch.

    (seed, caption_id) --draws--> uniforms --> concept, template, companion, demonstrations, noise

N rows, K demonstrations, C concepts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from synclr_cli import rng
from synclr_cli.captions import backgrounds
from synclr_cli.captions.concepts import Pool
from synclr_cli.captions.prompts import Bank


def noise_seeds(seed: int, ids: np.ndarray, attempt: int) -> np.ndarray:
    """Return the seed [N] of each row's sampling noise at its n-th attempt, from 0 to 2^63 - 1."""
    return rng.seeds("captions.noise", seed, attempt, ids)


def without_replacement(uniforms: np.ndarray, size: int) -> np.ndarray:
    """Return K different numbers below `size` per row: [N, K] from uniforms [N, K], in draw order.

    Each draw is a rank among the numbers still there, so every ordered selection is as likely.
    """
    count = uniforms.shape[1]
    if count > size:
        raise ValueError(f"cannot draw {count} of {size} without replacement")
    picks = np.empty(uniforms.shape, dtype=np.int64)
    for k in range(count):
        rank = np.minimum((uniforms[:, k] * (size - k)).astype(np.int64), size - k - 1)
        for earlier in np.sort(picks[:, :k], axis=1).T:  # skip what is taken, lowest first
            rank += rank >= earlier
        picks[:, k] = rank
    return picks


@dataclass(frozen=True)
class Rows:
    """The draw of N rows."""

    ids: np.ndarray  # [N] caption ids
    concepts: np.ndarray  # [N] numbers in the pool
    templates: list[str]  # c | c_bg | c_rel
    companions: list[str]
    banks: list[str]  # of prompts.Bank: which demonstrations
    examples: np.ndarray  # [N, K] demonstration ids


class RowSampler:
    """Draws rows from a pool of concepts and a bank of demonstrations."""

    def __init__(
        self,
        pool: Pool,
        bank: Bank,
        *,
        seed: int,
        shares: tuple[float, float, float],
        demonstrations: int,
        block: int,
        listed: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    ):
        """Keep what every draw needs.

        Args:
            shares: of c, c_bg and c_rel among captions of objects.
            demonstrations: K, per prompt.
            block: as many consecutive ids share the demonstrations of each template, so that an
                engine computes that part of the prompt once; 1 draws other ones for every row.
            listed: backgrounds by concept that come before the hand-written ones of its domain.
        """
        self.pool, self.bank, self.seed = pool, bank, seed
        self.template_edges = np.cumsum(shares)[:2]
        self.demonstrations, self.block, self.listed = demonstrations, block, listed
        self._is_object = np.array([kind == "object" for kind in pool.kinds])
        self._backgrounds: dict[int, tuple[str, ...]] = {}

    def rows(self, ids: np.ndarray) -> Rows:
        """Draw the rows of these caption ids."""
        seed, pool = self.seed, self.pool
        concepts, number = self._concepts_and_templates(ids)
        templates = [("c", "c_bg", "c_rel")[n] for n in number.tolist()]
        numbers = concepts.tolist()
        banks = [
            pool.kinds[c] if t == "c" else "background" if t == "c_bg" else "relation"
            for c, t in zip(numbers, templates, strict=True)
        ]
        companions = [
            self._companion(t, c, u)
            for t, c, u in zip(
                templates,
                numbers,
                rng.uniform("captions.companion", seed, ids).tolist(),
                strict=True,
            )
        ]
        return Rows(ids, concepts, templates, companions, banks, self._examples(ids, banks))

    def needing_backgrounds(self, ids: np.ndarray) -> list[int]:
        """Return the concepts these rows draw with a background, but those with a list of theirs.

        A list of one's own is the concept file's, or that of a whole fine-grained source.
        """
        concepts, number = self._concepts_and_templates(ids)
        pool = self.pool
        numbers = np.unique(concepts[number == 1]).tolist()
        return [c for c in numbers if not pool.backgrounds[c] and not pool.domains[c]]

    def _concepts_and_templates(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seed = self.seed
        concepts = self.pool.draw(
            rng.uniform("captions.source", seed, ids),
            rng.uniform("captions.concept", seed, ids),
        )
        # Places and textures get only c -> caption.
        lots = rng.uniform("captions.template", seed, ids)
        number = np.searchsorted(self.template_edges, lots, side="right")
        return concepts, np.where(self._is_object[concepts], number, 0)

    def _companion(self, template: str, concept: int, u: float) -> str:
        if template == "c":
            return ""
        if template == "c_rel":
            return RELATIONS[int(u * len(RELATIONS))]
        fitting = self._backgrounds.get(concept)
        if fitting is None:
            pool = self.pool
            name = pool.names[concept]
            fitting = backgrounds.of_concept(
                name,
                pool.glosses[concept],
                pool.backgrounds[concept] or self.listed.get(name, ()),
                pool.domains[concept],
            )
            self._backgrounds[concept] = fitting
        return fitting[int(u * len(fitting))]

    def _examples(self, ids: np.ndarray, banks: list[str]) -> np.ndarray:
        blocks = ids // self.block
        chosen = np.empty((len(ids), self.demonstrations), dtype=np.int32)  # [N, K]
        names = np.array(banks)
        for name in self.bank.names:
            here = names == name
            if not here.any():
                continue
            places = np.arange(self.demonstrations)
            uniforms = rng.uniform(
                f"captions.demonstrations of {name}", self.seed, blocks[here][:, None], places
            )  # [n, K]
            first, size = self.bank.span(name)
            chosen[here] = first + without_replacement(uniforms, size)
        return chosen


RELATIONS = (
    "in", "on", "next to", "behind", "in front of", "over", "under", "above", "below", "besides",
)  # fmt: skip
