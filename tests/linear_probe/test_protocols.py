"""knn, few-shot and sgd, and the floor of raw pixels."""

import functools
import json

import killing
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from synclr_cli.data import labelled
from synclr_cli.errors import DataError, UsageError
from synclr_cli.learning import backbone as backbones, features as backbone_features
from synclr_cli.learning.run_folder import RunFolder
from synclr_cli.linear_probe import sgd
from synclr_cli.linear_probe.run import run

BACKBONE = "random:vit_tiny_patch16_224"
FAST = {"protocol": "sgd", "sgd_batch_size": 12, "epochs": 4, "precision": "float32"}


def test_neighbours_alone_beat_chance(small, stripes, tmp_path):
    report = run(small(protocol="knn", neighbours=5), BACKBONE, str(stripes), tmp_path)
    assert report["protocol"] == "knn"
    assert report["top1"] > 50


def test_few_shots_are_graded_for_each_draw(small, stripes, tmp_path):
    report = run(
        small(protocol="few-shot", shots=4, repeats=2, penalties=3),
        BACKBONE,
        str(stripes),
        tmp_path,
    )
    assert len(report["by_draw"]) == 2
    assert report["value"] == pytest.approx(np.mean(report["by_draw"]), abs=1e-3)
    assert report["interval"][0] <= report["value"] <= report["interval"][1]
    assert report["value"] > 45


def test_more_shots_than_images_are_refused(small, stripes, tmp_path):
    with pytest.raises(DataError, match="class level: got 12, expected at least"):
        run(small(protocol="few-shot", shots=13), BACKBONE, str(stripes), tmp_path)


def test_sgd_learns_and_reports_the_last_epoch_beside_the_chosen_one(small, stripes, tmp_path):
    config = small(**{**FAST, "epochs": 10}, batch_norm=True)
    report = run(config, BACKBONE, str(stripes), tmp_path)
    assert report["top1"] > 45
    assert {"top1_last", "base_lr", "selected_epoch", "validation"} <= set(report)
    assert not (tmp_path / "checkpoints").exists()


@pytest.fixture
def trained(small, stripes, tmp_path, monkeypatch):
    """Train classifiers for some rates and return the last weights of both kinds, [R, D, K]."""

    def train(*rates):
        seen = []
        conclude = sgd._conclude

        def keep(case, model, state):
            heads = state.modules.items()
            seen.append({name: layers.weight.detach().clone() for name, layers in heads})
            return conclude(case, model, state)

        with monkeypatch.context() as patch:
            patch.setattr(sgd, "_conclude", keep)
            out = tmp_path / "-".join(map(str, rates))
            run(small(**FAST, base_lrs=list(rates)), BACKBONE, str(stripes), out)
        return seen[0]

    return train


def test_the_batch_norm_adds_a_millionth_to_the_variance():
    heads = sgd.Heads(1, 4, 2, batch_norm=True, seed=0).train()
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) * 1e-3  # variance 1e-6
    mean, variance = x.double().mean(0), x.double().var(0, correction=0)
    expected = (x.double() - mean) / (variance + 1e-6).sqrt() @ heads.weight[0].double()
    torch.testing.assert_close(heads(x)[0].double(), expected, rtol=1e-4, atol=1e-6)


def test_training_all_rates_at_once_is_training_each_alone(trained):
    together = trained(0.01, 0.5)["result"]
    assert torch.allclose(together[1], trained(0.5)["result"][0], atol=1e-6)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


@pytest.mark.parametrize("kind", ["result", "choosing"])
def test_the_updates_are_those_of_torchs_sgd(trained, stripes, kind):
    """Repeat the run with nn.Linear, torch.optim.SGD and the schedule written out."""
    found = trained(0.2)[kind][0]
    opened = backbones.open_backbone(BACKBONE, image_size=32)
    model = opened.model.eval()
    data = labelled.open_data(str(stripes), validation_share=0.2, seed=0)
    n, train = 36 + 18, 36  # images of train and validation together, and of train
    layer = nn.Linear(192, 3)
    start = sgd.Heads(1, 192, 3, batch_norm=False, seed=0).weight[0]
    layer.weight.data, layer.bias.data = start.T.detach().clone(), torch.zeros(3)
    peak = 0.2 * 12 / 256
    optimizer = torch.optim.SGD(layer.parameters(), lr=peak, momentum=0.9)
    keys = sgd.loader.EpochOrder(n, 12, seed=0, start=0, steps=16, rank=0, world=1)
    for step, batch in enumerate(keys):
        learnt_from = [(epoch, i) for epoch, i in batch if kind == "result" or i < train]
        items = [sgd.training_item(data, opened, 0, key) for key in learnt_from]
        assert all(
            held == (i >= train) for (_, i), (*_, held) in zip(learnt_from, items, strict=True)
        )
        with torch.no_grad():
            x = backbones.cls_features(model, torch.stack([view for view, *_ in items]))
        optimizer.param_groups[0]["lr"] = peak * 0.5 * (1 + np.cos(np.pi * step / 16))
        optimizer.zero_grad()
        F.cross_entropy(layer(x), torch.tensor([label for _, label, _ in items])).backward()
        optimizer.step()
    assert torch.allclose(found.T, layer.weight, atol=1e-5)


def test_a_killed_sgd_run_continues_to_the_same_grade(small, stripes, tmp_path, monkeypatch):
    whole = run(small(**FAST), BACKBONE, str(stripes), tmp_path / "whole")

    class Killed(Exception):
        pass

    save = RunFolder.save

    def save_then_die(self, step, *rest):
        save(self, step, *rest)
        if step == 8:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", save_then_die)
        with pytest.raises(Killed):
            run(small(**FAST), BACKBONE, str(stripes), tmp_path / "cut")
    cut = run(small(**FAST), BACKBONE, str(stripes), tmp_path / "cut")
    for key in ("top1", "top1_last", "confusion", "base_lr", "validation"):
        assert cut[key] == whole[key]


def test_a_training_view_depends_on_seed_epoch_and_image_alone(stripes):
    data = labelled.open_data(str(stripes), validation_share=0.2, seed=0)
    opened = backbones.open_backbone(BACKBONE, image_size=32)
    one, label, _ = sgd.training_item(data, opened, 0, (3, 20))
    torch.manual_seed(99)
    again, *_ = sgd.training_item(data, opened, 0, (3, 20))
    other, *_ = sgd.training_item(data, opened, 0, (4, 20))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert label == data.splits["train"].labels[20]


def test_a_batch_larger_than_the_train_split_is_refused(small, stripes, tmp_path):
    config = small(**{**FAST, "sgd_batch_size": 55})
    with pytest.raises(DataError, match="54 images to train on, expected"):
        run(config, BACKBONE, str(stripes), tmp_path)


def test_raw_pixels_are_the_floor(small, stripes, tmp_path):
    report = run(small(protocol="knn"), "pixels:8", str(stripes), tmp_path)
    assert report["backbone"]["name"] == "pixels-8"
    opened = backbone_features.open_any("pixels:32", image_size=0, seed=0)
    view = torch.rand(2, 3, 32, 32)
    assert torch.equal(backbones.cls_features(opened.model, view), view.reshape(2, -1))


def test_pixels_without_a_size_are_refused():
    with pytest.raises(UsageError, match="pixels:SIDE"):
        backbone_features.open_any("pixels:", image_size=0, seed=0)


@pytest.mark.parametrize("protocol", ["lbfgs", "sgd"])
def test_killed_before_every_write_it_comes_to_the_same_report(small, stripes, tmp_path, protocol):
    config = small(**{**FAST, "protocol": protocol})
    whole = run(config, BACKBONE, str(stripes), tmp_path / "whole")
    out = tmp_path / "killed"
    job = functools.partial(run, config, BACKBONE, str(stripes), out)
    assert killing.kill_before_every_write(job) >= 3
    found = json.loads((out / "report.json").read_text())
    for key in ("value", "validation", "confusion"):
        assert found[key] == whole[key]
    left = sorted(p.name for p in out.iterdir())
    assert left == sorted(p.name for p in (tmp_path / "whole").iterdir())
