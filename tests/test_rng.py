"""The counter-based generator: uniform in every bit, one stream a name, no state; none besides."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

import synclr_cli
from synclr_cli import rng

PACKAGE = Path(synclr_cli.__file__).parent

# Calls that draw from a global generator or make one. (`nn.init` draws first weights from torch's,
# after runtime.seed_everything or in a block of runtime.seeded.)
TORCH = {
    "manual_seed", "rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial",
    "rand_like", "randn_like", "seed", "Generator",
}  # fmt: skip
METHODS = {"manual_seed", "bernoulli_", "exponential_", "geometric_", "random_", "seed_all"}
# Where such a call may stand, and why. No entry may be left that nothing needs.
ALLOWED = {
    "rng.py": "makes numpy's and torch's generators from a name and numbers",
    "learning/runtime.py": "seeds the global generators for libraries that take no other",
    "cluster.py": "the name of a temporary file",
    "data/storage.py": "names of temporary files, which nobody may guess; they are in no result",
    "train/student_teacher.py": "the mask token's first weights, after runtime.seed_everything",
}
# Their generators are seeded by rng's seed of the view (the engines' contract), or constant tables.
ENGINES = ("render/engines/", "captions/engines/")


def drawing_calls(source: str) -> list[int]:
    """Return the lines of calls that draw from numpy's, Python's or torch's random numbers."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name = ast.unparse(node.func)
        head, _, last = name.rpartition(".")
        if any(k.arg == "generator" for k in node.keywords):
            continue  # where it comes from is seen where it is made
        if (
            head in ("np.random", "numpy.random", "random", "torch.random", "secrets")
            or (head == "torch" and last in TORCH)
            or last in METHODS
        ):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize(
    "line",
    [
        "np.random.default_rng(0)", "np.random.seed(0)", "random.shuffle(x)", "torch.randn(3)",
        "torch.manual_seed(0)", "torch.Generator().manual_seed(0)", "x.bernoulli_(0.5)",
    ],
)  # fmt: skip
def test_a_call_that_draws_is_seen(line: str) -> None:
    assert drawing_calls(line) == [1] or drawing_calls(line) == [1, 1]


def test_types_and_draws_from_a_given_generator_are_none() -> None:
    assert drawing_calls("def f(x: np.random.Generator): rng.uniform('a', x)") == []
    assert drawing_calls("torch.randn(3, generator=rng.torch_generator('a', 1))") == []


def test_all_randomness_goes_through_rng() -> None:
    drawing = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith(ENGINES) and (
            lines := drawing_calls(path.read_text(encoding="utf-8"))
        ):
            drawing[name] = lines
    assert {n: lines for n, lines in drawing.items() if n not in ALLOWED} == {}
    assert ALLOWED.keys() <= drawing.keys()


def test_the_bits_are_uniform_and_streams_seeds_and_neighbours_do_not_agree() -> None:
    ids = np.arange(20_000)
    a, b = rng.key("a", 0, ids), rng.key("b", 0, ids)
    for x in (a, b, a ^ b, rng.key("a", 1, ids) ^ a, a[1:] ^ a[:-1]):
        for bit in range(64):
            ones = int(((x >> np.uint64(bit)) & np.uint64(1)).sum())
            assert abs(ones - len(x) / 2) < 4.5 * np.sqrt(len(x)) / 2, bit
    assert len(np.unique(a)) == len(ids)


def test_a_number_is_the_same_alone_and_in_a_block() -> None:
    block = rng.uniform("a", 3, np.arange(5)[:, None], np.arange(4))
    assert block.shape == (5, 4)
    assert all(rng.uniform("a", 3, i, k) == block[i, k] for i in range(5) for k in range(4))
    assert ((block >= 0) & (block < 1)).all()


def test_the_order_of_the_coordinates_counts() -> None:
    assert rng.seed("a", 1, 2) != rng.seed("a", 2, 1)
    assert rng.seed("a", 1) != rng.seed("a", 1, 0)


def test_seeds_fit_a_signed_word_and_the_numbers_never_change() -> None:
    many = rng.seeds("a", np.arange(10_000))
    assert many.min() >= 0
    # What is drawn is part of every artifact: a change here needs a `### Numerics` entry.
    assert rng.seed("render.view", 0, 1, 2, 0) == 7091426051511588727


def test_generators_are_functions_of_their_numbers() -> None:
    assert rng.generator(3, 1).permutation(8).tolist() == [2, 1, 4, 0, 5, 7, 6, 3]
    drawn = rng.torch_generator("a", 3).initial_seed()
    assert drawn == rng.seed("a", 3) != rng.torch_generator("b", 3).initial_seed()


def test_a_permutation_that_is_not_held_shows_each_position_once() -> None:
    for size in (*range(1, 70), 255, 256, 257, 4096, 99_991, 250_000):
        for epoch in (0, 1):
            landed = rng.permuted("test", np.arange(size), size, 7, epoch)
            assert (np.sort(landed) == np.arange(size)).all(), size


def test_a_permutation_that_is_not_held_is_the_same_in_pieces_and_far_beyond_32_bits() -> None:
    size = 10**12 + 39
    positions = np.array([0, 1, 2, size // 2, size - 1])
    landed = rng.permuted("test", positions, size, 3)
    assert ((landed >= 0) & (landed < size)).all() and len(set(landed.tolist())) == 5
    for position, place in zip(positions, landed, strict=True):
        assert rng.permuted("test", np.array([position]), size, 3) == [place]
    assert (rng.permuted("test", positions, size, 4) != landed).all()


def test_permutations_that_are_not_held_are_uniform() -> None:
    """Chi-square over where a position lands, over keys; and over pairs, for small sizes."""
    keys = 6000
    for size in (5, 7):
        counts = np.zeros((size, size, size))  # first, last and middle position together
        for number in range(keys):
            landed = rng.permuted("test", np.array([0, size // 2, size - 1]), size, number)
            counts[tuple(landed)] += 1
        expected = keys / (size * (size - 1) * (size - 2))
        cells = counts[counts > 0]
        freedom = size * (size - 1) * (size - 2) - 1
        assert len(cells) == freedom + 1
        square = ((cells - expected) ** 2 / expected).sum()
        assert abs(square - freedom) < 4 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("size", [2**20 + 1, 153_540_000])
def test_a_permutation_that_is_not_held_leaves_no_trace_of_the_order(size: int) -> None:
    n = 200_000
    landed = rng.permuted("test", np.arange(n), size, 0, 1)
    counts = np.bincount(landed * 1000 // size, minlength=1000)
    # Drawn without replacement: the variance of a cell is less by the share that is drawn.
    square = ((counts - n / 1000) ** 2 / (n / 1000)).sum() / (1 - n / size)
    assert abs(square - 999) < 4 * np.sqrt(2 * 999)
    bits = landed & 1023  # the low ones
    square = ((np.bincount(bits, minlength=1024) - n / 1024) ** 2 / (n / 1024)).sum()
    assert abs(square / (1 - n / size) - 1023) < 4 * np.sqrt(2 * 1023)
    other = rng.permuted("test", np.arange(n), size, 0, 2)
    for x, y in (
        (landed[1:], landed[:-1]), (landed[16:], landed[:-16]), (landed[1024:], landed[:-1024]),
        (landed, np.arange(n)), (landed, other),
    ):  # fmt: skip
        assert abs(np.corrcoef(x, y)[0, 1]) < 4 / np.sqrt(len(x))
