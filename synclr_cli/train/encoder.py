"""The encoder of student and teacher: a ViT with heads, of whose tokens only some are read.

    images --embed--> tokens --blocks--> tokens --last block, for the tokens that are read--> read
    masks on the host --Reading.of--> which rows these are

Everything that is decided (masks, which rows are read, which layers are dropped) comes in as
tensors, so that a forward pass is one graph without a break, and a GPU is never waited for.

Shapes: B crops of a view, N patches, T = 1 + N tokens, M masked patches, D width, R rows of tokens
of all views, W of them read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from timm.models import VisionTransformer
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn
from torch.nn import functional as F

from synclr_cli.config import TrainConfig
from synclr_cli.errors import UsageError
from synclr_cli.learning import backbone
from synclr_cli.learning.runtime import Runtime
from synclr_cli.train import cpu_blocks
from synclr_cli.train.heads import PrototypeHead, contrast_head
from synclr_cli.train.reading import Reading

# Graphs that one compiled function may have: two views, with and without a gradient, of student
# and teacher, and as many for the last piece of a batch.
GRAPHS = 32


class Encoder(nn.Module):
    """A ViT with a projector and, where patches are predicted, prototypes."""

    mask_token: Tensor

    def __init__(self, config: TrainConfig, runtime: Runtime):
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
        is_cpu = runtime.device.type == "cpu"
        if is_cpu:
            for block in self.vit.blocks:
                block.attn.fused_attn = False  # several times slower than plain products there
        # On a GPU timm's modules are as fast, with its fused attention.
        self.written_out = is_cpu and all(map(cpu_blocks.is_plain, self.vit.blocks))
        self._product_dtype = runtime.amp_dtype
        self._cast: list[cpu_blocks.Weights] | None = None
        self._embed_ = embed
        self._block: Callable[..., Tensor] = run_block
        self._last: Callable[..., Tensor] = run_last

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile what runs as modules, block by block; names of weights stay what they are."""
        if self.written_out:
            return
        torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)

        def compiled(function: Callable[..., Any], **options: Any) -> Any:
            return torch.compile(function, backend=backend, fullgraph=True, **options)

        self._embed_ = compiled(embed, dynamic=False)
        self._block = compiled(run_block, dynamic=False)
        self._last = compiled(run_last)  # how many crops are masked changes from step to step
        if self.prototypes is not None:
            forward = compiled(self.prototypes.forward)
            self.prototypes.forward = forward  # type: ignore[method-assign]

    def shard(self, runtime: Runtime) -> None:
        """Keep a share of the weights on each rank: block by block, head by head, and the rest.

        Called after `compile_blocks`. The blocks then run as modules, on a CPU, too.
        """
        self.written_out = False
        *blocks, last = list(self.vit.blocks)
        for block in blocks:
            block.forward = partial(self._block, block)
        last.forward = partial(self._last, last)
        self._block = self._last = _call
        heads = [head for name, head in self.named_children() if name != "vit"]
        methods = {} if self.prototypes is None else {"prototypes": self.prototypes}
        runtime.shard([*self.vit.blocks, *heads, self], methods)

    @contextmanager
    def cast(self) -> Iterator[None]:
        """Cast the blocks' weights once for all that is encoded inside; they must not change."""
        self._cast = self._weights() if self.written_out else None
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

    def encode(
        self, images: Tensor, masks: Tensor | None = None, kept: Tensor | None = None
    ) -> Tensor:
        """Return the tokens after the final norm, [B, T, D], the cls token first.

        Args:
            images: [B, 3, S, S], normalised; S any multiple of the patch size.
            masks: [B, N], True where the mask token replaces the patch's embedding.
            kept: what each block's two branches are multiplied by, [blocks, 2, B]; None: 1.
        """
        x = embed(self.vit, images, masks, self._mask_token(masks))  # [B, T, D]
        for i, block in enumerate(self.vit.blocks):
            x = run_block(block, x, None if kept is None else kept[i])
        return self.vit.norm(x)

    def forward(
        self,
        images: Sequence[Tensor],
        masks: Sequence[Tensor | None],
        reading: Reading,
        kept: Tensor | None = None,
    ) -> list[tuple[Tensor, Tensor]]:
        """Return each view's cls tokens [B, D] and read patches' tokens [M, D], as of `encode`.

        The last block is run for these tokens alone; nobody reads what it makes of the others.

        Args:
            images: of each view, [B, 3, S, S], normalised.
            masks: of each view, as of `encode`.
            reading: the tokens to return, on the device.
            kept: as of `encode`, for the crops of all views in order.
        """
        tokens = [
            self._embed_(self.vit, x, m, self._mask_token(m))
            for x, m in zip(images, masks, strict=True)
        ]  # [B, T, D] each
        shapes = [(x.shape[0], x.shape[1]) for x in tokens]
        run = self._run_written_out if self.written_out else self._run_modules
        rows = run(tokens, shapes, kept)  # [R, D]
        last = None if kept is None else kept[-1]
        read = self._last(self.vit.blocks[-1], self.vit.norm, rows, shapes, reading, last)  # [W, D]
        pairs = zip(reading.cls, reading.patches, strict=True)
        return [(read.index_select(0, cls), read.index_select(0, at)) for cls, at in pairs]

    def _mask_token(self, masks: Tensor | None) -> Tensor | None:
        return None if masks is None else self.mask_token

    def _run_modules(
        self, tokens: list[Tensor], shapes: list[cpu_blocks.Shape], kept: Tensor | None
    ) -> Tensor:
        """Return what all blocks but the last make of the tokens, [R, D], view by view."""
        views = kept.split([n for n, _ in shapes], dim=2) if kept is not None else None
        results = []
        for view, x in enumerate(tokens):
            for i, block in enumerate(self.vit.blocks[:-1]):
                x = self._block(block, x, None if views is None else views[view][i])
            results.append(x.flatten(0, 1))
        return torch.cat(results)

    def _run_written_out(
        self, tokens: list[Tensor], shapes: list[cpu_blocks.Shape], kept: Tensor | None
    ) -> Tensor:
        """Do as `_run_modules`, with the crops of all views at once."""
        rows = torch.cat([x.flatten(0, 1) for x in tokens])  # [R, D]
        weights, of_rows = self._weights(), None
        if kept is not None:
            lengths = torch.tensor([t for n, t in shapes for _ in range(n)])  # [crops]
            of_rows = kept.repeat_interleave(lengths, dim=2)[..., None]  # [blocks, 2, R, 1]
            of_rows = of_rows.to(weights[0].dtype) if weights else of_rows
        for i, (block, own) in enumerate(zip(self.vit.blocks, weights, strict=False)):
            branches = (None, None) if of_rows is None else (of_rows[i, 0], of_rows[i, 1])
            rows = cpu_blocks.run(block, own, rows, shapes, branches)
        return rows


def embed(
    vit: VisionTransformer, images: Tensor, masks: Tensor | None, mask_token: Tensor | None
) -> Tensor:
    """Return the first block's input, [B, T, D]; arguments as of `Encoder.encode`."""
    x = vit.patch_embed(images.to(vit.pos_embed.dtype))  # [B, S / patch, S / patch, D]
    side = x.shape[1]
    x = x.flatten(1, 2)  # [B, N, D]
    if masks is not None and mask_token is not None:
        x = torch.where(masks[..., None], mask_token.to(x.dtype), x)
    table = positions(vit.pos_embed, side)  # [1, T, D]
    x = torch.cat([vit.cls_token.expand(len(x), -1, -1), x], dim=1) + table  # [B, T, D]
    return vit.norm_pre(x)


def run_block(block: Block, x: Tensor, kept: Tensor | None) -> Tensor:
    """Return what a block makes of tokens [B, T, D], its branches multiplied by `kept` [2, B].

    timm's own `DropPath` draws from the global generator: the crops dropped would then depend on
    how the batch is split over ranks and micro-batches.
    """
    branch = block.ls1(block.attn(block.norm1(x)))
    x = x + _scaled(branch, None if kept is None else kept[0, :, None, None])
    branch = block.ls2(block.mlp(block.norm2(x)))
    return x + _scaled(branch, None if kept is None else kept[1, :, None, None])


def run_last(
    block: Block,
    norm: nn.Module,
    rows: Tensor,
    shapes: list[cpu_blocks.Shape],
    reading: Reading,
    kept: Tensor | None,
) -> Tensor:
    """Run the last block and the final norm for the tokens that are read.

    Args:
        block: the last one.
        norm: the ViT's.
        rows: what the other blocks made of the tokens, [R, D].
        shapes: of the crops they belong to, view by view.
        reading: the tokens to read.
        kept: what the branches are multiplied by, [2, crops]; None: 1.

    Returns:
        [W, D].
    """
    attention, normed = block.attn, block.norm1(rows)  # [R, D]
    weight, bias = attention.qkv.weight, attention.qkv.bias
    heads, width = attention.num_heads, attention.num_heads * attention.head_dim
    q = F.linear(normed.index_select(0, reading.rows), weight[:width], bias[:width])  # [W, D]
    kv = F.linear(normed, weight[width:], bias[width:])  # [R, 2 D]
    of_views = kv.split([n * t for n, t in shapes])
    parts, start = [], 0
    for group in reading.groups:
        m, k = group.crops.shape[0], group.tokens
        own = of_views[group.view].view(*shapes[group.view], 2, heads, -1)
        if not group.whole:
            own = own.index_select(0, group.crops)
        keys, values = own.permute(2, 0, 3, 1, 4).contiguous()  # [m, heads, T, d]
        queries = q[start : start + m * k].view(m, k, heads, -1).transpose(1, 2).contiguous()
        if attention.fused_attn:
            out = F.scaled_dot_product_attention(queries, keys, values)
        else:
            out = (queries * attention.scale @ keys.transpose(-2, -1)).softmax(-1) @ values
        parts.append(out.transpose(1, 2).reshape(m * k, -1))  # [m k, D]
        start += m * k
    attended = F.pad(torch.cat(parts), (0, 0, 0, q.shape[0] - start))  # [W, D]
    of_rows = None if kept is None else kept[:, reading.crops, None]  # [2, W, 1]
    x = rows.index_select(0, reading.rows)  # [W, D]
    branch = block.ls1(attention.proj(attended))
    x = x + _scaled(branch, None if of_rows is None else of_rows[0])
    branch = block.ls2(block.mlp(block.norm2(x)))
    return norm(x + _scaled(branch, None if of_rows is None else of_rows[1]))


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


def _call(module: nn.Module, *args: Any) -> Tensor:
    result: Tensor = module(*args)
    return result


def _scaled(branch: Tensor, kept: Tensor | None) -> Tensor:
    return branch if kept is None else branch * kept.to(branch.dtype)


def require_plain(vit: VisionTransformer, config: TrainConfig) -> None:
    """Refuse ViTs that `Encoder` would not run as they are, and crops the patches do not divide.

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
    """Return whether `run_last` computes what this block does."""
    if type(block) is not Block or type(block.attn) is not Attention:
        return False
    attention: Any = block.attn
    optional = ("q_norm", "k_norm", "norm", "gate")  # some of them newer than others
    without = all(isinstance(getattr(attention, o, None), nn.Identity | None) for o in optional)
    return without and attention.qkv.bias is not None
