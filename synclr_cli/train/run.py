"""`synclr train`: pictures of captions -> a backbone.

    images/ --batches--> crops --objective--> loss --learner--> student and teacher --> backbone

What is written is told in `folder.py`. The backbone is the teacher's: it is the smoother of the
two, and the momentum's end at 1 makes it the average that the run converges to.
"""

from __future__ import annotations

from pathlib import Path

from synclr_cli import config as configs, console
from synclr_cli.config import TrainConfig
from synclr_cli.data import artifacts
from synclr_cli.data.artifacts import Header
from synclr_cli.errors import DataError, DivergedError
from synclr_cli.learning import runtime
from synclr_cli.train import batches, init, knn, masks, trackers
from synclr_cli.train.folder import Folder
from synclr_cli.train.image_index import Corpus, open_corpus, require_trainable
from synclr_cli.train.learner import Learner, NotFinite, step_values
from synclr_cli.train.metrics import Monitor
from synclr_cli.train.report import collapse


def run(config: TrainConfig, images: Path, out: Path, *, overwrite: bool = False) -> Path:
    """Train a backbone on an images/1 folder; the same call again goes on where it stopped.

    Returns:
        `out`; its backbone is there, unless `stop_after_minutes` were up before.

    Raises:
        DataError: the pictures are missing, damaged, too few, or one a caption; what was trained
            by then is saved.
        UsageError: `out` holds another run; sizes that the patches do not divide.
        EngineError: a tracker's package is not installed.
        DivergedError: the loss is not finite, more often than `skip_nonfinite` allows.
        KeyboardInterrupt: on SIGINT or SIGTERM, after a checkpoint was saved.
    """
    parts, parent, digest = artifacts.open_images(images)
    start = init.open_start(config)
    header = Header(
        schema="backbone",
        config=configs.recipe(config),
        seed=config.seed,
        parents=(
            artifacts.parent(images, parent, digest),
            *([init.parent(start)] if start else []),
        ),
    )
    with runtime.started(config.precision) as rt:
        folder = Folder(out, header, rt)
        if folder.is_finished(overwrite=overwrite):
            return out
        trackers.require(config.trackers)
        grader = knn.open_neighbourhood(config)
        corpus = open_corpus(parts)
        require_trainable(corpus, config, images, rt.world)

        learner = Learner(
            config,
            rt,
            classes=corpus.classes(config.positives) if config.objective != "contrast" else 0,
            start=init.fit(start) if start else None,
        )
        masks.require(config, learner.patches)
        folder.claim(overwrite=overwrite)  # only now: what is refused leaves nothing behind
        saved = folder.newest()
        if saved:
            learner.restore(saved)
        done = saved.step if saved else 0

        source = batches.Batches(
            corpus, config, patches=learner.patches, rank=rt.rank, world=rt.world
        )
        ahead = batches.load(
            source, range(done, config.steps), workers=config.workers, device=rt.device
        )
        damage = batches.Damage(corpus, images)
        monitor = Monitor(config, rt, learner)
        n = config.captions_per_batch * config.views * config.global_crops
        collapsed = damaged = False

        with (
            runtime.StopFlag(config.stop_after_minutes) as stop,
            folder.saving(),
            trackers.open_trackers(config.trackers, out, header, rt, done) as tracked,
            console.progress("train", config.steps * n, done=done * n, unit="img") as bar,
        ):
            for step in range(done, config.steps):
                unread: DataError | None = None
                try:
                    with monitor.waiting():
                        batch = next(ahead)
                    folder.list_damaged(damage.add(batch))
                    damage.require_few()
                except DataError as e:
                    unread = e
                if rt.any(unread is not None):
                    folder.save(step, learner, keep=config.keep_checkpoints)
                    raise unread or DataError("another rank could not read its pictures")
                monitor.replace(len(batch.damaged))
                now = step_values(step, config)
                for _ in range(2):  # a step before this one may have failed, and is told now
                    try:
                        monitor.add(learner.update(batch, now))
                        if done + 1 == config.steps:
                            learner.settle()
                        break
                    except NotFinite as failure:
                        if folder.skips() >= config.skip_nonfinite:
                            folder.save(failure.step, learner, keep=config.keep_checkpoints)
                            raise _diverged(failure, out) from None
                        folder.skip(failure.step, failure.lr, failure.caption_ids)
                        monitor.skip(late=learner.late)
                        if failure.step == step:
                            break
                done = step + 1
                bar.advance(n)
                graded = grader and (done % config.knn_steps == 0 or done == config.steps)
                if graded or done % config.log_steps == 0 or done == config.steps:
                    line = monitor.line(done, now)
                    if grader and graded:
                        with monitor.aside():
                            line["knn_top1"] = grader.grade(learner, rt)
                    folder.log(line)
                    tracked.log(line)
                    bar.say(**monitor.shown(line))
                    if collapse(line) and not collapsed:
                        console.warn(collapse(line))
                    collapsed = bool(collapse(line))
                    if "damaged" in line and not damaged:
                        console.warn(
                            f"{line['damaged']:.0f} pictures did not decode and were replaced; see"
                            f" {folder.damaged}"
                        )
                        damaged = True
                if config.backbone_steps and done % config.backbone_steps == 0:
                    folder.keep_backbone(learner, _facts(config, corpus, done))
                stopping = rt.any(stop.requested)
                if stopping or done % config.checkpoint_steps == 0 or done == config.steps:
                    folder.save(done, learner, keep=config.keep_checkpoints)
                if stopping:
                    break
        if rt.any(stop.signalled):
            raise KeyboardInterrupt
        if done < config.steps:
            console.note(
                f"stopped after {done} of {config.steps} steps, {config.stop_after_minutes:g}"
                " minutes being up; the same command continues"
            )
            return out

        folder.finish(learner, _facts(config, corpus, done))
    return out


def _facts(config: TrainConfig, corpus: Corpus, done: int) -> dict[str, object]:
    weights = "teacher" if config.teacher else "student"
    return {"steps": done, "captions": len(corpus), "weights": weights}


def _diverged(failure: NotFinite, out: Path) -> DivergedError:
    ids = ", ".join(map(str, failure.caption_ids[:16]))
    count = len(failure.caption_ids)
    more = f" and {count - 16} more" if count > 16 else ""
    return DivergedError(
        f"the loss of step {failure.step} is not finite, at learning rate {failure.lr:.3g} and"
        f" captions {ids}{more}",
        do=f"go on with --set train.skip_nonfinite=10, or lower train.peak_lr or set"
        f" train.clip_grad=1 and add --overwrite; {out} has a checkpoint from before",
    )
