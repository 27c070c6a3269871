"""Batches of crops from an images/1 folder: a pure function of (seed, step, rank).

Each epoch is a new permutation of the captions (`order`), cut into whole batches; a batch takes
`views` images of each of its captions. Nothing depends on the number of loader processes, and the
union over ranks does not depend on the number of ranks.

    step --order--> captions --views--> images --decode--> Uncut --crops--> Batch, uint8

With `global_crops` an image stands in the batch that many times, under as many ids, each time with
crops of its own.

Shapes: C captions of this rank, V views, G global crops of an image, B = C x V x G, L local crops
with each, S pixels of the global crop, s of a local one, N patches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synclr_cli import rng
from synclr_cli.config import TrainConfig
from synclr_cli.errors import DataError, SynclrError
from synclr_cli.learning import loader
from synclr_cli.learning.runtime import Runtime, send
from synclr_cli.train import crops, masks
from synclr_cli.train.image_index import ImageIndex
from synclr_cli.train.image_reader import ImageReader, decode
from synclr_cli.train.order import Order

DAMAGED_SHARE = 0.01  # of the images read; more stop the run
DAMAGED_FROM = 2000  # images read before the share is taken literally


@dataclass
class Batch:
    """One rank's part of a step's batch."""

    step: int
    globals: Tensor  # [B, 3, S, S] uint8
    locals: Tensor  # [B x L, 3, s, s] uint8, crop after crop of image after image
    masks: Tensor  # [B, N] bool, True where the student sees the mask token
    ids: Tensor  # [B] int64, of the crops; random draws of the model are keyed by them
    labels: Tensor  # [B] int64, equal for positives
    caption_ids: list[int]  # [C]
    damaged: list[tuple[int, int, str]]  # caption id, view and what is wrong

    def to(self, device: torch.device) -> Batch:
        """Move to the device what is worked on there; masks and ids are looked at by the host."""
        for name in ("globals", "locals", "labels"):
            setattr(self, name, send(getattr(self, name), device))
        return self


@dataclass
class Uncut:
    """A batch whose images are decoded, and whose crops are drawn but not yet cut."""

    images: Sequence[Tensor] | Tensor  # B of [1, 3, H, W] uint8, or all of them as [B, 3, H, W]
    plan: crops.Plan
    rest: Batch  # without crops

    def pin_memory(self) -> Uncut:
        """Pin the tensors, the images as one; DataLoader calls this where there is a GPU."""
        self.images = crops.together(self.images).pin_memory()
        self.rest.labels = self.rest.labels.pin_memory()
        return self

    def cut(self, config: TrainConfig, device: torch.device) -> Batch:
        """Cut and recolour the crops on the device, and move there what else is in the batch."""
        batch, images = self.rest.to(device), self.images
        if device.type != "cpu":
            images = send(crops.together(images), device)  # [B, 3, H, W]
        batch.globals, batch.locals = crops.cut_and_recolour(config, images, self.plan)
        return batch


class Batches:
    """Step number -> this rank's part of that step's batch."""

    def __init__(
        self, index: ImageIndex, config: TrainConfig, patches: int, rank: int = 0, world: int = 1
    ):
        self.index, self.config, self.patches = index, config, patches
        self.rank, self.world = rank, world
        self._order: Order | None = None
        self._reader = ImageReader(
            index.path, "concept" if config.positives == "concept" else "caption"
        )

    def captions(self, step: int) -> NDArray[np.int64]:
        """Return the captions of a step's whole batch, by their numbers in the index."""
        order, start = self._order_at(step)
        return order.at(np.arange(start, start + self.config.captions_per_batch))

    def _order_at(self, step: int) -> tuple[Order, int]:
        """Return the order of a step's epoch, and where in it the batch starts."""
        config = self.config
        epoch, batch = divmod(step, len(self.index) // config.captions_per_batch)
        if self._order is None or self._order.epoch != epoch:
            self._order = Order(self.index, config.shuffle, config.seed, epoch)
        return self._order, batch * config.captions_per_batch

    def images(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Return the views of a step's whole batch: which of each caption, and their ids.

        Views are drawn without replacement and come in random order, each of them G times.

        Returns:
            [captions, V x G] numbers of views, and [captions x V x G] ids.
        """
        return self._views(step, self.captions(step))

    def _views(
        self, step: int, captions: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        located = self.index.locate(captions)
        most = int(located.views.max())
        every = np.arange(most)
        ids = rng.key("train.picture", located.caption_id[:, None], every)  # [captions, most]
        lots = rng.uniform("train.views", self.config.seed, step, ids)  # [captions, most]
        lots[every >= located.views[:, None]] = 2  # not there: comes last
        views = lots.argsort(axis=1, kind="stable")[:, : self.config.views]  # [captions, V]
        ids = np.take_along_axis(ids, views, axis=1)  # [captions, V]
        again = [rng.key("train.again", ids, i) for i in range(1, self.config.global_crops)]
        ids = np.stack([ids, *again], axis=2)  # [captions, V, G]
        return views.repeat(self.config.global_crops, axis=1), ids.reshape(-1)

    def make(self, step: int) -> Batch:
        """Return this rank's part of a step's batch, made on this machine's CPU."""
        return self.read(step).cut(self.config, torch.device("cpu"))

    def read(self, step: int) -> Uncut:
        """Return this rank's part of a step's batch, decoded and drawn but not yet cut."""
        config = self.config
        views, ids = self.images(step)
        share = config.captions_per_batch // self.world
        own_captions = slice(self.rank * share, (self.rank + 1) * share)
        of_caption = views.shape[1]
        own = slice(own_captions.start * of_caption, own_captions.stop * of_caption)
        damaged: list[tuple[int, int, str]] = []
        decoded = [
            self._whole(step, place, views[place], damaged)
            for place in range(own_captions.start, own_captions.stop)
        ]
        captions = np.array([caption for caption, _, _ in decoded])  # [C]
        labels = self._labels(captions, np.stack([row for _, row, _ in decoded]))  # [C, V x G]
        images = [image for *_, of_one in decoded for image in of_one]  # B x [1, 3, H, W]
        plan = crops.plan(
            config, step, ids[own], np.array([p.shape[-2:] for p in images], np.int64)
        )
        nothing = torch.empty(0, dtype=torch.uint8)
        rest = Batch(
            step=step,
            globals=nothing,
            locals=nothing,
            masks=torch.from_numpy(
                masks.draw(
                    config.seed,
                    step,
                    ids,
                    own,
                    patches=self.patches,
                    probability=config.mask_probability if config.patch_weight else 0.0,
                    ratio=config.mask_ratio,
                    of_caption=of_caption if config.mask_first else 0,
                )
            ),
            ids=torch.from_numpy(ids[own].view(np.int64).copy()),
            labels=torch.from_numpy(labels.reshape(-1).copy()),
            caption_ids=self.index.locate(captions).caption_id.tolist(),
            damaged=damaged,
        )
        return Uncut(images, plan, rest)

    def _labels(self, captions: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the classes of views [C, V x G]: numbers from 0 where a classifier counts them.

        Else any number will do, and a hash of the text needs no look at the other captions.
        """
        index, positives = self.index, self.config.positives
        if self.config.objective != "contrast" or positives == "image":
            return index.labels(positives, captions, views)
        located = index.locate(captions)
        rows = zip(located.part.tolist(), located.row.tolist(), strict=True)
        texts = [self._reader.text(part, row) for part, row in rows]
        hashes = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
        labels = np.frombuffer(b"".join(hashes), np.int64)  # [C]
        return np.broadcast_to(labels[:, None], views.shape)

    def _whole(
        self,
        step: int,
        place: int,
        views: NDArray[np.int64],
        damaged: list[tuple[int, int, str]],
    ) -> tuple[int, NDArray[np.int64], list[Tensor]]:
        """Return the caption at a place of the batch, its views [V x G] and their images.

        If none of its images decodes, the caption one batch further on in the epoch takes its
        place, and so on. Two places never meet, so that ranks need not tell each other, and what
        was drawn for the place (ids, masks) stays.
        """
        order, start = self._order_at(step)
        for further in range(place, len(order), self.config.captions_per_batch):
            caption = int(order.at(np.array([(start + further) % len(order)]))[0])
            if further > place:
                (views,), _ = self._views(step, np.array([caption]))
            decoded = []
            for view in views.tolist():
                taken = self._image(caption, view, damaged)
                if taken is None:
                    break
                decoded.append(taken)
            else:
                return (
                    caption,
                    np.array([view for view, _ in decoded]),
                    [p for _, p in decoded],
                )
        caption_id = self.index.locate(order.at(np.array([start + place]))).caption_id[0]
        raise DataError(
            f"no image of caption {caption_id} decodes, nor of"
            " any caption that could take its place",
            do="render the images again",
        )

    def _image(
        self, caption: int, view: int, damaged: list[tuple[int, int, str]]
    ) -> tuple[int, Tensor] | None:
        """Return a view, or the caption's next whole one if it is damaged: its number and pixels.

        [1, 3, H, W] uint8.
        """
        at = self.index.locate(np.array([caption]))
        part, first, views = int(at.part[0]), int(at.row[0]), int(at.views[0])
        for i in range(views):
            other = (view + i) % views
            data = self._reader.image(part, first + other)
            where = f"{self.index.path(part).name} row {first + other}"
            try:
                return other, decode(data, where)
            except DataError as e:
                damage = (int(at.caption_id[0]), other, str(e))
                if damage not in damaged:  # a crop of the same image was asked for before
                    damaged.append(damage)
        return None


DamagedImage = tuple[int, int, str]  # caption id, view and what is wrong


class Damage:
    """Counts the images that did not decode, lists them, and stops the run at too many."""

    def __init__(
        self, index: ImageIndex, where: Path, log: Callable[[Sequence[DamagedImage]], None]
    ):
        """Take the images' folder, for messages, and what lists those not known yet."""
        self._where, self._log = where, log
        self._patience = min(index.images, DAMAGED_FROM)
        self._read = self._damaged = 0
        self._known: set[tuple[int, int]] = set()

    def watch(self, ahead: Iterator[Batch], rt: Runtime) -> Iterator[Batch]:
        """Yield the batches; what one rank cannot read ends all of them in the same step.

        Raises:
            DataError: more than one in a hundred images read are damaged, or one cannot be read.
            EngineError: a loader process was killed.
        """
        while True:
            batch: Batch | None = None
            error: SynclrError | None = None
            try:
                batch = next(ahead, None)
                if batch is not None:
                    self.add(batch)
            except SynclrError as e:
                error = e
            rt.raise_any(error)
            if batch is None:
                return
            yield batch

    def add(self, batch: Batch) -> None:
        """Count a batch and list its damaged images.

        Raises:
            DataError: there are too many of them by now.
        """
        self._read += len(batch.ids)
        self._damaged += len(batch.damaged)
        new = [d for d in batch.damaged if d[:2] not in self._known]
        self._known |= {d[:2] for d in new}
        self._log(new)
        if batch.damaged and self._damaged > DAMAGED_SHARE * max(self._read, self._patience):
            raise DataError(
                f"{self._where}: images that do not decode",
                got=f"{self._damaged} of {self._read} read ({batch.damaged[-1][2]})",
                expected=f"at most {DAMAGED_SHARE:.0%}",
                do="render them again",
            )


def load(
    batches: Batches, steps: range, workers: int, device: torch.device | None = None
) -> Iterator[Batch]:
    """Yield the batches of the steps, made ahead in `workers` processes.

    A GPU cuts and recolours the crops itself; for a CPU the loader processes do.
    """
    device = device or torch.device("cpu")
    here = device.type == "cpu"
    ahead = loader.load(
        batches.make if here else batches.read,
        [[step] for step in steps],
        workers=workers,
        collate=_only,
        pin=device.type == "cuda",
    )
    for batch in ahead:
        yield batch if here else batch.cut(batches.config, device)


def _only(batches: list[Any]) -> Any:
    (batch,) = batches
    return batch
