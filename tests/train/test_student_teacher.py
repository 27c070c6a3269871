"""Student and teacher: the same ViT as timm's, masks, positions, dropped layers, the average."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import reference
import torch

from synclr_cli import rng
from synclr_cli.errors import UsageError
from synclr_cli.learning.runtime import Runtime
from synclr_cli.train.encoder import Encoder, positions, run_block
from synclr_cli.train.heads import BatchNorm, contrast_head
from synclr_cli.train.reading import Reading
from synclr_cli.train.student_teacher import Student, Teacher

ALONE = Runtime(torch.device("cpu"), None)


@pytest.fixture
def student(small: Callable) -> Student:
    torch.manual_seed(0)
    return Student(small(), ALONE).train()


def images(n: int, size: int) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def features(
    model: Encoder,
    *views: tuple[torch.Tensor, torch.Tensor | None],
    kept: torch.Tensor | None = None,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return what is read of views (images, masks): the tokens of the masked patches."""
    shapes = [(len(x), 1 + (x.shape[-1] // 8) ** 2) for x, _ in views]
    reading = Reading.of([None if m is None else m.numpy() for _, m in views], shapes)
    return model([x for x, _ in views], [m for _, m in views], reading, kept)


def test_without_masks_the_encoder_is_timms_own(student: Student) -> None:
    x = images(3, 32)
    torch.testing.assert_close(student.encode(x), student.vit.forward_features(x))


@pytest.mark.parametrize("way", ["written out", "modules", "compiled modules"])
def test_features_are_the_wanted_tokens_of_the_encoder(student: Student, way: str) -> None:
    student.written_out = way == "written out"
    for block in student.vit.blocks:
        block.attn.fused_attn = not student.written_out
    kept = student.kept(0, 1, rng.key("image", np.arange(6)))
    x = images(6, 32)
    masks = torch.zeros(6, 16, dtype=torch.bool)
    for row, patches in ((1, [2, 5, 9]), (4, [0, 1, 15]), (5, [3, 4, 8])):
        masks[row, patches] = True
    tokens = student.encode(x, masks, kept)
    if way == "compiled modules":
        student.compile_blocks(backend="eager")  # what is traced, without a C++ compiler
    ((cls, patches),) = features(student, (x, masks), kept=kept)
    torch.testing.assert_close(cls, tokens[:, 0])
    torch.testing.assert_close(patches, tokens[:, 1:][masks])
    ((cls, patches),) = features(student, (x, None), kept=kept)
    torch.testing.assert_close(cls, student.encode(x, kept=kept)[:, 0])
    assert patches.shape == (0, 192)


def test_few_images_give_the_features_that_many_give(student: Student) -> None:
    """To the bit, in float32 on a CPU: products of few rows are not summed in another way."""
    x, local = images(6, 32), images(12, 16)
    masks = torch.zeros(6, 16, dtype=torch.bool)
    masks[[0, 3, 4], 5:8] = True
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            whole = features(student, (x, masks), (local, None))
            ones = [
                features(student, (x[[i]], masks[[i]]), (local[2 * i : 2 * i + 2], None))
                for i in range(6)
            ]
            alone = features(student, (x[:1], None))[0][0]
            again = features(student, (x, None))[0][0]
    finally:
        torch.set_num_threads(threads)
    for view in range(2):
        for part in range(2):
            assert torch.equal(torch.cat([one[view][part] for one in ones]), whole[view][part])
    assert torch.equal(alone, again[:1])


def test_a_masked_patch_does_not_show_its_pixels(student: Student) -> None:
    masks = torch.zeros(2, 16, dtype=torch.bool)
    masks[:, 5] = True  # row 1, column 1 of 4 x 4 patches of 8 px
    x = images(2, 32)
    other = x.clone()
    other[:, :, 8:16, 8:16] = 7.0
    assert torch.equal(student.encode(x, masks), student.encode(other, masks))
    assert not torch.equal(student.encode(x), student.encode(other))


def test_the_mask_token_comes_before_the_positions(student: Student) -> None:
    """All patches masked: what tells the tokens apart is their position alone."""
    tokens = student.encode(images(1, 32), torch.ones(1, 16, dtype=torch.bool))[0, 1:]
    assert torch.pdist(tokens.detach()).min() > 1e-4
    with torch.no_grad():
        student.vit.pos_embed.zero_()
    tokens = student.encode(images(1, 32), torch.ones(1, 16, dtype=torch.bool))[0, 1:]
    assert torch.pdist(tokens.detach()).max() < 1e-4


@pytest.mark.parametrize(("own", "side"), [(14, 6), (8, 4), (4, 2), (5, 3)])
def test_positions_of_smaller_crops_are_sampled_at_the_given_scale(own: int, side: int) -> None:
    table = torch.randn(1, 1 + own * own, 3, dtype=torch.float64)
    ours = positions(table, side)
    grid = table[0, 1:].reshape(own, own, 3).numpy()
    theirs = reference.resize_positions(grid, side).reshape(-1, 3)
    np.testing.assert_allclose(ours[0, 1:].numpy(), theirs, rtol=1e-9, atol=1e-12)
    assert torch.equal(ours[:, :1], table[:, :1])


def test_positions_of_the_own_size_are_the_table() -> None:
    table = torch.randn(1, 17, 3)
    assert positions(table, 4) is table


def test_dropped_layers_are_a_function_of_the_image(student: Student) -> None:
    ids, x = rng.key("image", np.arange(8)), images(8, 32)
    whole = student.encode(x, kept=student.kept(0, 3, ids))
    kept = student.kept(0, 3, ids[4:])
    torch.testing.assert_close(student.encode(x[4:], kept=kept), whole[4:])
    assert not torch.allclose(student.encode(x, kept=student.kept(0, 4, ids)), whole)
    torch.testing.assert_close(student.encode(x), student.vit.forward_features(x))


def test_layers_are_dropped_at_their_rate_and_the_mean_is_kept(small: Callable) -> None:
    student = Student(small(drop_path=0.4), ALONE)
    kept = student.kept(0, 0, rng.key("image", np.arange(20_000)))
    assert kept.shape == (2, 2, 20_000)
    assert kept[0].unique().tolist() == [1.0]  # the rate rises from 0
    for branch in kept[1]:
        assert branch.unique().tolist() == [0.0, pytest.approx(1 / 0.6)]
        assert branch.mean().item() == pytest.approx(1, abs=4 * 0.82 / 20_000**0.5)
    assert Student(small(drop_path=0.0), ALONE).kept(0, 0, np.arange(4)) is None


def test_a_block_whose_branches_are_dropped_changes_nothing(student: Student) -> None:
    block, x = student.vit.blocks[1], torch.randn(3, 5, 192)
    kept = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 0.0]])
    y = run_block(block, x, kept)
    assert torch.equal(y[0], x[0])
    torch.testing.assert_close(y[1], block(x)[1])
    torch.testing.assert_close(y[2], x[2] + 2 * block.attn(block.norm1(x))[2])


def test_the_teacher_starts_as_a_copy_and_never_drops_layers(
    student: Student, small: Callable
) -> None:
    teacher = Teacher(small(), ALONE, student).train()
    x = images(4, 32)
    torch.testing.assert_close(teacher.encode(x), student.encode(x))
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not hasattr(teacher, "mask_token") and not hasattr(teacher, "predictor")


def test_the_teacher_follows_as_the_moving_average(student: Student, small: Callable) -> None:
    student = student.double()
    teacher = Teacher(small(), ALONE, student).double()
    start = {n: p.detach().numpy().copy() for n, p in teacher.named_parameters()}
    seen: dict[str, list[np.ndarray]] = {n: [] for n in start}
    momenta = [0.9, 0.994, 1.0, 0.5]
    for momentum in momenta:
        with torch.no_grad():
            for name, p in student.named_parameters():
                p.add_(torch.randn_like(p))
                if name in seen:
                    seen[name].append(p.detach().numpy().copy())
        teacher.follow(momentum)
    for name, p in teacher.named_parameters():
        theirs = reference.moving_average(start[name], seen[name], momenta)
        np.testing.assert_allclose(p.numpy(), theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"local_size": 20}, r"local_size: got 20, expected a multiple of the patch size 8.*=16"),
        ({"image_size": 60}, r"image_size: got 60.*train.image_size=56 \(or 64\)"),
        ({"local_size": 5}, r"train.local_size=8"),
        ({"arch": "vit_small_patch14_reg4_dinov2"}, r"got a ViT with other tokens"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(small: Callable, change: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Student(small(**change), ALONE)


def test_a_local_size_that_is_not_used_is_not_checked(small: Callable) -> None:
    Student(small(local_crops=0, local_size=5), ALONE)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_heads_end_in_a_norm_without_weights(norm: str) -> None:
    head = contrast_head(3, 8, 16, 4, norm, ALONE)
    z = head(torch.randn(64, 8))
    dim = 0 if norm == "batch" else 1
    torch.testing.assert_close(z.mean(dim), torch.zeros_like(z.mean(dim)), atol=1e-5, rtol=0)
    assert not list(head[-1].parameters())
    linear = [m for m in head if isinstance(m, torch.nn.Linear)]
    biases = [m.bias is not None for m in linear]
    assert biases == ([False] * 3 if norm == "batch" else [True, True, False])


def test_the_batch_norm_is_torchs() -> None:
    x = torch.randn(10, 6, dtype=torch.float64)
    ours, theirs = BatchNorm(6, ALONE, affine=True).double(), torch.nn.BatchNorm1d(6).double()
    torch.testing.assert_close(ours(x), theirs(x))
