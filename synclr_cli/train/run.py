"""`synclr train`: images of captions -> a backbone.

    images/ --batches--> crops --objective--> loss --learner--> student and teacher --> backbone

What is written is told in `run_folder.py` and `outputs.py`. The backbone is the teacher's: it is
the smoother of the two, and the momentum's end at 1 makes it the average that the run converges to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from synclr_cli import config as configs, console
from synclr_cli.config import TrainConfig
from synclr_cli.data import artifacts
from synclr_cli.data.artifacts import Header
from synclr_cli.errors import SynclrError
from synclr_cli.learning import runtime
from synclr_cli.learning.backbone import Backbone
from synclr_cli.learning.run_folder import RunFolder
from synclr_cli.learning.runtime import Runtime
from synclr_cli.learning.stopping import StopFlag
from synclr_cli.train import batches, init, knn, masks, outputs, trackers
from synclr_cli.train.batches import Batch
from synclr_cli.train.image_index import ImageIndex, open_images, require_trainable
from synclr_cli.train.learner import Diverged, Learner, step_values
from synclr_cli.train.metrics import Monitor, shown


def run(config: TrainConfig, images: Path, out: Path, *, overwrite: bool = False) -> Path:
    """Train a backbone on an images folder; the same call again resumes where it stopped.

    Returns:
        `out`; its backbone is there, unless `stop_after_minutes` were up before.

    Raises:
        DataError: the images are missing, damaged, too few, or one a caption; what was trained
            by then is saved.
        UsageError: `out` holds another run; sizes that the patches do not divide.
        EngineError: a tracker's package is not installed; a loader process was killed.
        DivergedError: the loss is not finite, more often than may be skipped.
        KeyboardInterrupt: on SIGINT or SIGTERM, after a checkpoint was saved.
    """
    index, header, start = _inputs(config, images)
    keep = config.keep_checkpoints
    with (
        runtime.started(config.precision) as rt,
        RunFolder(out, "train", header, rt, overwrite=overwrite, keep=keep) as folder,
    ):
        if folder.finished():
            return out
        trackers.require(config.trackers)
        grader = knn.open_grader(config)
        require_trainable(index, config, images, rt.world)
        learner = _learner(config, rt, index, start)
        done = _claim(folder, learner)  # only now: what is refused leaves nothing behind
        monitor = Monitor(config, rt, learner)
        ahead = _load(config, index, learner, done)
        damage = batches.Damage(index, images, partial(outputs.list_damaged, folder.work))
        ahead = damage.watch(monitor.timed(ahead), rt)

        def every(n: int, *, last: bool = True) -> bool:
            return n > 0 and (done % n == 0 or (last and done == config.steps))

        with (
            StopFlag(config.stop_after_minutes) as stop,
            trackers.open_trackers(config.trackers, out, header, rt, done) as track,
            console.progress("train", config.steps, done=done, unit="steps") as bar,
        ):
            for step in range(done, config.steps):
                # ----------------------------------------------------------------- one step
                try:
                    batch = next(ahead)
                    values = step_values(step, config)
                    update = learner.update(batch, values)
                except SynclrError as e:  # on every rank alike, before the step changed anything
                    folder.save(e.step if isinstance(e, Diverged) else step, learner.groups())
                    raise
                done = step + 1
                # --------------------------------------------------------------------------

                bar.advance()
                monitor.add(batch, update)
                for skip in learner.skips():  # on a GPU told one step later
                    monitor.skip()
                    folder.log(asdict(skip), outputs.SKIPPED_FILE)
                if every(config.log_steps) or (grader and every(config.knn_steps)):
                    line = monitor.line(done, values)
                    if grader and every(config.knn_steps):
                        line["knn_top1"] = monitor.aside(partial(grader.grade, learner, rt))
                    folder.log(line)
                    track(line)
                    bar.say(**shown(line))
                if every(config.backbone_steps, last=False):
                    outputs.keep_backbone(folder, learner, len(index), done)
                stopping = rt.any(stop.requested)
                if stopping or every(config.checkpoint_steps):
                    folder.save(done, learner.groups())
                if stopping:
                    break
        if rt.any(stop.signalled):
            raise KeyboardInterrupt
        if done == config.steps:
            outputs.finish(folder, learner, len(index), done)
        else:
            console.note(f"stopped after {done} of {config.steps} steps; run it again to continue")
    return out


def _inputs(config: TrainConfig, images: Path) -> tuple[ImageIndex, Header, Backbone | None]:
    """Open the images and the weights to start from, and describe the run to be."""
    dataset = open_images(images)  # its list of parts is not kept
    start = init.open_start(config)
    parent = artifacts.parent(images, dataset.header, dataset.digest)
    parents = [parent, *([init.parent(start)] if start else [])]
    header = Header("backbone", configs.recipe(config), seed=config.seed, parents=tuple(parents))
    return ImageIndex(dataset), header, start


def _learner(
    config: TrainConfig, rt: Runtime, index: ImageIndex, start: Backbone | None
) -> Learner:
    """Build the learner, and refuse masks that hide nothing of its patches."""
    classes = index.classes(config.positives) if config.objective != "contrast" else 0
    learner = Learner(config, rt, classes, init.fit(start) if start else None)
    masks.require(config, learner.patches)
    return learner


def _claim(folder: RunFolder, learner: Learner) -> int:
    """Take the folder, and put the learner where the newest checkpoint left it.

    Returns:
        The updates done by then.
    """
    folder.claim()
    saved = folder.resume()
    if saved is None:
        return 0
    skipped = [int(line["step"]) for line in folder.lines(outputs.SKIPPED_FILE)]
    learner.restore(saved, skipped)
    return saved.step


def _load(config: TrainConfig, index: ImageIndex, learner: Learner, done: int) -> Iterator[Batch]:
    """Return this rank's batches from update `done` on."""
    rt = learner.runtime
    source = batches.Batches(index, config, learner.patches, rt.rank, rt.world)
    return batches.load(source, range(done, config.steps), config.workers, rt.device)
