"""Student and teacher: a ViT with heads, and a slowly following copy of it.

    crops, masks --encode--> tokens --> cls features, masked patch features --heads--> ...

The student also has a mask token and a predictor, which the teacher lacks; only the student drops
layers. The teacher is never trained: it follows the student as a moving average of its parameters.

Shapes: B crops, N patches, M masked patches, D width, E embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from timm.models import VisionTransformer
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn
from torch.nn import functional as F

from synclr_cli import rng
from synclr_cli.config import TrainConfig
from synclr_cli.errors import UsageError
from synclr_cli.learning import backbone
from synclr_cli.learning.runtime import Runtime
from synclr_cli.train import cpu_blocks
from synclr_cli.train.heads import PrototypeHead, contrast_head, linear

# A product of fewer rows is summed in another order by some libraries (MKL: fewer than four a
# thread), and what a picture gives would then depend on how many are worked on with it.
FEWEST_ROWS = 16


class StochasticDepth(nn.Module):
    """Drops a residual branch for some crops; `keep` says for which, and is set before the call.

    timm's own layer draws from the global generator: the crops dropped would then depend on how
    the batch is split over ranks and micro-batches.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.keep: Tensor | None = None  # [B] bool; None: all

    def forward(self, branch: Tensor) -> Tensor:
        """Return the branch [B, T, D], zero for dropped crops and scaled up for the others."""
        if self.keep is None:
            return branch
        return branch * (self.keep.to(branch.dtype) / (1 - self.rate))[:, None, None]

    def of_rows(self, crops: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Return what rows of tokens are multiplied by, [R, 1]; None: 1.

        Args:
            crops: of each row, [R].
        """
        if self.keep is None:
            return None
        return (self.keep.to(dtype) / (1 - self.rate))[crops, None]

    @contextmanager
    def only(self, rows: Tensor | slice) -> Iterator[None]:
        """Take the branches inside the block for those of some crops."""
        whole = self.keep
        self.keep = None if whole is None else whole[rows]
        yield
        self.keep = whole


@dataclass(frozen=True)
class View:
    """Crops of one size, and which of their tokens are asked for."""

    images: Tensor  # [B, 3, S, S], normalised; S any multiple of the patch size
    # [B, N], True where the mask token replaces the patch's embedding; on the host
    masks: Tensor | None = None
    # [B, N], the patches whose tokens to return: equally many of each picture that has any;
    # on the host
    wanted: Tensor | None = None


@dataclass(frozen=True)
class Group:
    """Crops of one view of which equally many tokens are read."""

    view: int
    crops: Tensor  # [m], of the view; on the host
    tokens: int  # of each


@dataclass(frozen=True)
class Reading:
    """Which of the R rows of all views' tokens are read, [W]: group by group, crop by crop.

    Worked out on the host, where the masks are: a GPU is not waited for.
    """

    groups: list[Group]
    rows: Tensor  # [W], of the R
    crops: Tensor  # [W], the crop of all views whose row it is
    cls: list[Tensor]  # of each view, which of the W are its crops' cls tokens, [B]
    patches: list[Tensor]  # of each view, which of the W are its wanted patches, [M]

    @staticmethod
    def of(wanted: Sequence[Tensor | None], shapes: Sequence[cpu_blocks.Shape]) -> Reading:
        """Read each crop's cls token and the wanted patches, [B, N] of each view or None.

        Never fewer than `FEWEST_ROWS`: the first row is read again if need be, and no one asks.
        """
        groups, rows, crops, cls, patches = [], [], [], [], []
        first_row = first_crop = read = 0
        for view, (asked, (n, tokens)) in enumerate(zip(wanted, shapes, strict=True)):
            has = torch.zeros(n, dtype=torch.bool) if asked is None else asked.any(1)  # [B]
            cls.append(torch.empty(n, dtype=torch.long))
            patches.append(torch.empty(0, dtype=torch.long))
            for own in (has.nonzero()[:, 0], (~has).nonzero()[:, 0]):  # [m]
                if not len(own):
                    continue
                places = torch.zeros(len(own), 1, dtype=torch.long)
                if asked is not None and has[own[0]]:
                    of_patches = 1 + asked[own].nonzero()[:, 1].view(len(own), -1)  # [m, k]
                    places = torch.cat([places, of_patches], dim=1)  # [m, 1 + k]
                here = torch.arange(read, read + places.numel()).view_as(places)
                cls[view][own] = here[:, 0]
                if places.shape[1] > 1:
                    patches[view] = here[:, 1:].flatten()
                groups.append(Group(view, own, places.shape[1]))
                rows.append((first_row + own[:, None] * tokens + places).flatten())
                crops.append((first_crop + own).repeat_interleave(places.shape[1]))
                read += places.numel()
            first_row, first_crop = first_row + n * tokens, first_crop + n
        if read < FEWEST_ROWS:
            rows.append(rows[0][:1].expand(FEWEST_ROWS - read))
            crops.append(crops[0][:1].expand(FEWEST_ROWS - read))
        return Reading(groups, torch.cat(rows), torch.cat(crops), cls, patches)


class Encoder(nn.Module):
    """A ViT with a projector and, where patches are predicted, prototypes."""

    def __init__(self, config: TrainConfig, runtime: Runtime, *, drop_path: float = 0.0):
        super().__init__()
        self.vit = backbone.build(
            config.arch,
            image_size=config.image_size,
            patch_size=config.patch_size,
            depth=config.depth,
        )
        require_plain(self.vit, config)
        width = self.vit.embed_dim
        self.projector = (
            contrast_head(3, width, config.head_hidden, config.head_out, config.head_norm, runtime)
            if config.objective == "contrast"
            else None
        )
        self.prototypes = (
            PrototypeHead(
                width, config.patch_head_hidden, config.patch_head_bottleneck, config.prototypes
            )
            if config.patch_weight
            else None
        )
        rates = np.linspace(0, drop_path, len(self.vit.blocks)).tolist()  # rising with depth
        for block, rate in zip(self.vit.blocks, rates, strict=True):
            if rate:
                block.drop_path1, block.drop_path2 = StochasticDepth(rate), StochasticDepth(rate)
            if runtime.device.type == "cpu":
                block.attn.fused_attn = False  # several times slower than plain products there
        # On a GPU timm's modules are as fast, with its fused attention.
        self.written_out = runtime.device.type == "cpu" and all(
            map(cpu_blocks.is_plain, self.vit.blocks)
        )
        self._product_dtype = runtime.amp_dtype
        self._cast: list[cpu_blocks.Weights] | None = None

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile the blocks where they run as modules; names of weights stay what they are."""
        if not self.written_out:
            for block in self.vit.blocks[:-1]:
                block.compile(backend=backend)

    @contextmanager
    def cast(self) -> Iterator[None]:
        """Cast the blocks' weights once for all that is encoded inside; they must not change."""
        self._cast = self._weights()
        try:
            yield
        finally:
            self._cast = None

    def _weights(self) -> list[cpu_blocks.Weights]:
        if self._cast is not None:
            return self._cast
        own = self.vit.pos_embed.dtype
        return [
            cpu_blocks.Weights.cast(b, self._product_dtype or own) for b in self.vit.blocks[:-1]
        ]

    def encode(self, images: Tensor, masks: Tensor | None = None) -> Tensor:
        """Return the tokens after the final norm, [B, 1 + N, D], the cls token first.

        Args:
            images: [B, 3, S, S], normalised; S any multiple of the patch size.
            masks: [B, N], True where the mask token replaces the patch's embedding.
        """
        x = self._embed(images, masks)  # [B, 1 + N, D]
        for block in self.vit.blocks:
            x = block(x)
        return self.vit.norm(x)

    def features(self, *views: View) -> list[tuple[Tensor, Tensor]]:
        """Return each view's cls tokens [B, D] and wanted patches' tokens [M, D], as of `encode`.

        The last block is run for these tokens alone; nobody reads what it makes of the others.
        Layers are dropped for the crops of all views in order.
        """
        every = [self._embed(v.images, v.masks) for v in views]  # [B, 1 + N, D]
        shapes = [(x.shape[0], x.shape[1]) for x in every]
        rows = (self._run_written_out if self.written_out else self._run_modules)(every, shapes)
        reading = Reading.of([v.wanted for v in views], shapes)
        read = self._finish(rows, shapes, reading)  # [W, D]
        pairs = zip(reading.cls, reading.patches, strict=True)
        here = {"device": read.device, "non_blocking": True}
        return [tuple(read.index_select(0, at.to(**here)) for at in pair) for pair in pairs]

    def _run_modules(self, every: list[Tensor], shapes: list[cpu_blocks.Shape]) -> Tensor:
        """Return what all blocks but the last make of the tokens, [R, D], view by view."""
        ends = np.cumsum([n for n, _ in shapes])
        done = []
        for x, (n, _), end in zip(every, shapes, ends, strict=True):
            for block in self.vit.blocks[:-1]:
                with _only(block, slice(end - n, end)):
                    x = block(x)
            done.append(x.flatten(0, 1))
        return torch.cat(done)

    def _run_written_out(self, every: list[Tensor], shapes: list[cpu_blocks.Shape]) -> Tensor:
        """Do as `_run_modules`, with the crops of all views at once."""
        rows = torch.cat([x.flatten(0, 1) for x in every])  # [R, D]
        tokens = torch.tensor([t for n, t in shapes for _ in range(n)])  # [crops]
        crops = torch.arange(len(tokens)).repeat_interleave(tokens)  # [R]
        for block, weights in zip(self.vit.blocks, self._weights(), strict=False):
            rows = cpu_blocks.run(block, weights, rows, shapes, _kept(block, crops, weights.dtype))
        return rows

    def _finish(self, rows: Tensor, shapes: list[cpu_blocks.Shape], reading: Reading) -> Tensor:
        """Run the last block and the final norm for the tokens that are read.

        Args:
            rows: what the other blocks made of the tokens, [R, D].
            shapes: of the crops they belong to, view by view.

        Returns:
            [W, D].
        """
        block, device = self.vit.blocks[-1], rows.device
        at, crops = (t.to(device, non_blocking=True) for t in (reading.rows, reading.crops))
        attention, normed = block.attn, block.norm1(rows)  # [R, D]
        weight, bias = attention.qkv.weight, attention.qkv.bias
        heads, width = attention.num_heads, attention.num_heads * attention.head_dim
        q = F.linear(normed.index_select(0, at), weight[:width], bias[:width])  # [W, D]
        kv = F.linear(normed, weight[width:], bias[width:])  # [R, 2 D]
        of_views = kv.split([n * t for n, t in shapes])
        parts, start = [], 0
        for group in reading.groups:
            m, k = group.crops.shape[0], group.tokens
            own = of_views[group.view].view(*shapes[group.view], 2, heads, -1)
            if m < len(own):
                own = own.index_select(0, group.crops.to(device, non_blocking=True))
            keys, values = own.permute(2, 0, 3, 1, 4).contiguous()  # [m, heads, 1 + N, d]
            asked = q[start : start + m * k].view(m, k, heads, -1).transpose(1, 2).contiguous()
            if attention.fused_attn:
                out = F.scaled_dot_product_attention(asked, keys, values)
            else:
                out = (asked * attention.scale @ keys.transpose(-2, -1)).softmax(-1) @ values
            parts.append(out.transpose(1, 2).reshape(m * k, -1))  # [m k, D]
            start += m * k
        attended = F.pad(torch.cat(parts), (0, 0, 0, len(at) - start))  # [W, D]
        kept = _kept(block, crops, attended.dtype)
        x = rows.index_select(0, at)  # [W, D]
        x = x + _scaled(block.ls1(attention.proj(attended)), kept[0])
        x = x + _scaled(block.ls2(block.mlp(block.norm2(x))), kept[1])
        return self.vit.norm(x)

    def _embed(self, images: Tensor, masks: Tensor | None) -> Tensor:
        """Return the first block's input, [B, 1 + N, D]."""
        vit = self.vit
        x = vit.patch_embed(images.to(vit.pos_embed.dtype))  # [B, S / patch, S / patch, D]
        side = x.shape[1]
        x = x.flatten(1, 2)  # [B, N, D]
        if masks is not None:
            masks = masks.to(x.device, non_blocking=True)
            x = torch.where(masks[..., None], self.mask_token.to(x.dtype), x)
        table = positions(vit.pos_embed, side)  # [1, 1 + N, D]
        x = torch.cat([vit.cls_token.expand(len(x), -1, -1), x], dim=1) + table  # [B, 1 + N, D]
        return vit.norm_pre(x)


class Student(Encoder):
    """The encoder that is trained."""

    def __init__(self, config: TrainConfig, runtime: Runtime, classes: int = 0):
        """Build it; `classes` are those of a cross entropy, which has no projector."""
        super().__init__(config, runtime, drop_path=config.drop_path)
        width, hidden, out = self.vit.embed_dim, config.head_hidden, config.head_out
        self.predictor = self.classifier = None
        if config.objective == "cross-entropy":
            self.classifier = linear(width, classes)
        elif config.teacher:  # without one both sides go through the projector alone
            self.predictor = contrast_head(2, out, hidden, out, config.head_norm, runtime)
        if config.patch_weight:
            self.mask_token = nn.Parameter(torch.randn(1, 1, self.vit.embed_dim) * 0.02)

    def set_depth(self, seed: int, step: int, ids: ArrayLike | None, crop: ArrayLike = 0) -> None:
        """Draw which layers the next crops drop: a function of (seed, step, picture, crop).

        Args:
            ids: of the pictures of the crops to come, [B]; None: drop nothing.
            crop: the number of each crop in its picture, [B] or one for all; the global one is 0.
        """
        for number, block in enumerate(self.vit.blocks):
            for branch, layer in enumerate((block.drop_path1, block.drop_path2)):
                if not isinstance(layer, StochasticDepth):
                    continue
                layer.keep = None
                if ids is not None:
                    lots = rng.uniform("train.depth", seed, step, ids, crop, number, branch)  # [B]
                    device = self.vit.pos_embed.device
                    layer.keep = torch.from_numpy(lots >= layer.rate).to(device)


class Teacher(Encoder):
    """The encoder that follows."""

    def __init__(self, config: TrainConfig, runtime: Runtime, student: Student):
        super().__init__(config, runtime)
        own = self.state_dict()
        self.load_state_dict({k: v for k, v in student.state_dict().items() if k in own})
        self.requires_grad_(False)
        followed = dict(student.named_parameters())
        self._pairs = [(p, followed[name]) for name, p in self.named_parameters()]

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the parameters: teacher <- momentum x teacher + (1 - momentum) x student."""
        mine, students = [list(side) for side in zip(*self._pairs, strict=True)]
        torch._foreach_lerp_(mine, students, 1 - momentum)


def positions(table: Tensor, side: int) -> Tensor:
    """Return the position table for side x side patches, [1, 1 + side^2, D].

    Bicubic at the given scale (side + 0.1) / own side, as pre-training in the released code; not at
    the ratio of the sizes, and not antialiased.
    """
    own = round((table.shape[1] - 1) ** 0.5)
    if own == side:
        return table
    grid = table[:, 1:].unflatten(1, (own, own)).permute(0, 3, 1, 2)  # [1, D, own, own]
    scale = (side + 0.1) / own
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    assert grid.shape[-1] == side, (grid.shape, side)
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def _kept(block: nn.Module, crops: Tensor, dtype: torch.dtype) -> cpu_blocks.Kept:
    """Return what the two branches of rows are multiplied by; `crops` are theirs, [R]."""
    first, second = (
        layer.of_rows(crops, dtype) if isinstance(layer, StochasticDepth) else None
        for layer in (block.drop_path1, block.drop_path2)
    )
    return first, second


def _scaled(branch: Tensor, kept: Tensor | None) -> Tensor:
    return branch if kept is None else branch * kept


@contextmanager
def _only(block: nn.Module, crops: Tensor | slice) -> Iterator[None]:
    """Drop the block's branches inside for those of some crops."""
    with ExitStack() as stack:
        for layer in (block.drop_path1, block.drop_path2):
            if isinstance(layer, StochasticDepth):
                stack.enter_context(layer.only(crops))
        yield


def require_plain(vit: VisionTransformer, config: TrainConfig) -> None:
    """Refuse ViTs that `encode` would not run as they are, and crops the patches do not divide.

    Raises:
        UsageError: names the sizes that would do.
    """
    table = vit.pos_embed
    plain = table is not None and table.shape[1] == 1 + vit.patch_embed.num_patches
    if not plain or vit.num_prefix_tokens != 1 or not all(map(_is_plain, vit.blocks)):
        raise UsageError(
            f"train.arch {config.arch}",
            got="a ViT with other tokens, positions or blocks",
            expected="one with a cls token, a learned position table and ordinary blocks",
            do="try vit_base_patch16_224",
        )
    patch = int(vit.patch_embed.patch_size[0])
    sizes = {"image_size": config.image_size}
    if config.local_crops:
        sizes["local_size"] = config.local_size
    for name, size in sizes.items():
        if size % patch:
            below, above = size // patch * patch, (size // patch + 1) * patch
            fitting = f"{below} or {above}" if below else f"{above}"
            raise UsageError(
                f"train.{name}",
                got=size,
                expected=f"a multiple of the patch size {patch}",
                do=f"add --set train.{name}={fitting.split()[0]} (or {above})"
                if below
                else f"add --set train.{name}={above}",
            )


def _is_plain(block: nn.Module) -> bool:
    """Return whether `Encoder._finish` computes what this block does."""
    if type(block) is not Block or type(block.attn) is not Attention:
        return False
    attention = block.attn
    optional = ("q_norm", "k_norm", "norm", "gate")  # some of them newer than others
    without = all(isinstance(getattr(attention, o, None), nn.Identity | None) for o in optional)
    return without and attention.qkv.bias is not None
