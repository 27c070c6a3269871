"""Artifacts: whole or not there, and they say where they came from."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from synclr_cli import config as configs
from synclr_cli.data import artifacts, describe, locks, storage
from synclr_cli.data.artifacts import Header
from synclr_cli.errors import DataError, EngineError, UsageError


def captions_table(n: int = 3) -> pa.Table:
    rows = {
        "caption_id": range(n),
        "caption": [f"a photo of a cat {i}" for i in range(n)],
        "concept": ["cat"] * n,
        "source": ["in1k"] * n,
        "template": ["c"] * n,
        "companion": [""] * n,
        "engine": ["template:"] * n,
        "seed": range(n),
        "examples": [[1, 2, 3]] * n,
        "weight": [1.0] * n,
    }
    schema = artifacts.arrow_schema("captions")
    return pa.table({k: list(v) for k, v in rows.items()}, schema=schema)


def header(**changes: object) -> Header:
    config = configs.flatten(configs.CaptionsConfig())
    return Header(**{"schema": "captions", "config": config, "engine": "template:", **changes})


def test_a_parquet_artifact_tells_its_schema_and_settings(tmp_path):
    path = tmp_path / "captions.parquet"
    artifacts.write_parquet(path, "captions", header(), [captions_table()], rows_per_group=2)
    file, found = artifacts.open_parquet(path, "captions")
    assert file.metadata.num_rows == 3 and file.metadata.num_row_groups == 2
    assert (found.schema, found.version, found.engine) == ("captions", 2, "template:")
    assert found.config["engine.temperature"] == 0.8
    features = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    assert features["caption"] == {"dtype": "string", "_type": "Value"}


def test_writing_the_same_twice_gives_the_same_bytes(tmp_path):
    for name in ("a.parquet", "b.parquet"):
        artifacts.write_parquet(
            tmp_path / name, "captions", header(), [captions_table()], rows_per_group=2
        )
    assert storage.digest(tmp_path / "a.parquet") == storage.digest(tmp_path / "b.parquet")


def test_a_failing_write_leaves_nothing_and_the_old_file_stays(tmp_path):
    path = tmp_path / "x.json"
    storage.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), storage.atomic_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert storage.read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_process_killed_while_writing_leaves_no_artifact(tmp_path):
    script = (
        "import sys, os, signal\nfrom pathlib import Path\nfrom synclr_cli.data import storage\n"
        f"with storage.atomic_file(Path({str(tmp_path / 'x.bin')!r})) as p:\n"
        "    p.write_bytes(b'half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script])
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "x.bin").exists()
    storage.remove_partials(tmp_path)  # as whoever claims the folder next does
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_name_is_new_each_time_and_keeps_the_modes_of_new_files(tmp_path):
    (tmp_path / "plain").touch()
    names = set()
    for _ in range(2):
        with storage.atomic_file(tmp_path / "x.bin") as partial:
            names.add(partial.name)
            with pytest.raises(FileExistsError):  # it was made by us alone: nobody planted a link
                os.open(partial, os.O_CREAT | os.O_EXCL)
            partial.write_bytes(b"whole")
            partial.chmod(0o600)  # as safetensors does
    assert len(names) == 2
    assert (tmp_path / "x.bin").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_two_writers_of_one_folder_do_not_meet(tmp_path):
    target = tmp_path / "export"
    with storage.atomic_folder(target) as one:
        with storage.atomic_folder(target) as other:
            (other / "x").write_text("other")
        (one / "x").write_text("one")
    assert (target / "x").read_text() == "one" and [p.name for p in tmp_path.iterdir()] == [
        "export"
    ]


def test_an_atomic_folder_replaces_the_old_one_whole(tmp_path):
    target = tmp_path / "step-1"
    for text in ("old", "new"):
        with storage.atomic_folder(target) as partial:
            (partial / text).write_text(text)
    assert [p.name for p in target.iterdir()] == ["new"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_a_full_disk_is_one_line_with_exit_code_4(tmp_path):
    refused = pytest.raises(EngineError, match="no space left to write")
    with refused as e, storage.disk_errors(tmp_path / "x"), open("/dev/full", "wb") as f:
        f.write(b"x" * 100_000)
    assert e.value.exit_code == 4
    with pytest.raises(EngineError), storage.disk_errors(tmp_path / "x"):
        raise OSError(errno.EDQUOT, "quota")


def test_a_disk_that_is_full_of_weights_is_one_line_too(tmp_path):
    script = """
        import resource, signal, sys
        from pathlib import Path
        import torch
        from synclr_cli.data import artifacts
        from synclr_cli.errors import EngineError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            artifacts.write_tensors(
                Path(sys.argv[1]), {"w": torch.zeros(100_000)}, artifacts.Header("model", {})
            )
        except EngineError as e:
            print(e)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "w.safetensors")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.startswith("no space left to write") and not list(tmp_path.iterdir())


def test_a_store_that_cannot_be_reached_is_one_line_and_our_own_faults_are_not(tmp_path):
    unreachable = type("EndpointConnectionError", (Exception,), {"__module__": "botocore.errors"})
    refused = pytest.raises(EngineError, match="EndpointConnectionError: no route")
    with refused as e, storage.disk_errors(tmp_path):
        raise unreachable("no route")
    assert e.value.exit_code == 4 and "credentials" in str(e.value)
    with pytest.raises(KeyError), storage.disk_errors(tmp_path):
        raise KeyError("ours")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-40]), "truncated"),
        (lambda p: p.write_bytes(b""), "not a Parquet file"),
        (lambda p: p.unlink(), "no file"),
        (lambda p: pq.write_table(captions_table().replace_schema_metadata({}), p), "no synclr"),
    ],
)
def test_a_damaged_parquet_is_refused(tmp_path, damage, says):
    path = tmp_path / "captions.parquet"
    artifacts.write_parquet(path, "captions", header(), [captions_table()], rows_per_group=9)
    damage(path)
    with pytest.raises(DataError, match=says):
        artifacts.open_parquet(path, "captions")


def test_a_missing_column_is_named(tmp_path):
    path = tmp_path / "captions.parquet"
    table = captions_table().drop_columns(["concept", "weight"])
    metadata = {"synclr": header().json()}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(DataError, match="lacks column concept, weight"):
        artifacts.open_parquet(path, "captions")


def test_an_unknown_schema_version_is_refused(tmp_path):
    newer = json.loads(header().json()) | {"version": 9}
    with pytest.raises(DataError, match="got 9, expected 2"):
        Header.parse(json.dumps(newer), tmp_path)
    strange = json.loads(header().json()) | {"schema": "sounds"}
    with pytest.raises(DataError, match="got 'sounds'"):
        Header.parse(json.dumps(strange), tmp_path)


def test_parts_that_are_there_are_not_made_again_and_other_settings_are_refused(tmp_path):
    parts = artifacts.Parts(tmp_path, "captions", header())
    assert parts.missing(3) == [0, 1, 2]
    parts.write(1, captions_table(), rows_per_group=3)
    assert parts.missing(3) == [0, 2]
    other = configs.flatten(configs.CaptionsConfig(seed=7, share_c=0.5, share_c_bg=0.39))
    with pytest.raises(UsageError, match=r"captions.seed, captions.share_c, captions.share_c_bg"):
        artifacts.Parts(tmp_path, "captions", header(config=other)).missing(3)
    running = configs.flatten(
        configs.CaptionsConfig(engine=configs.CaptionEngineConfig(batch_size=3))
    )
    assert artifacts.Parts(tmp_path, "captions", header(config=running)).missing(3) == [0, 2]


def test_another_input_is_refused(tmp_path):
    before = header(parents=({"name": "words.txt", "digest": "sha256:1", "header": None},))
    after = header(parents=({"name": "words.txt", "digest": "sha256:2", "header": None},))
    with pytest.raises(UsageError, match=r"the input words\.txt"):
        artifacts.require_same("captions", before, after, tmp_path)


def test_tensors_come_back_with_their_header(tmp_path):
    path = tmp_path / "x.safetensors"
    artifacts.write_tensors(path, {"w": torch.arange(4.0)}, header(schema="checkpoint"))
    tensors, found = artifacts.read_tensors(path, "checkpoint")
    assert torch.equal(tensors["w"], torch.arange(4.0)) and found.engine == "template:"
    with pytest.raises(DataError, match="expected backbone"):
        artifacts.read_tensors(path, "backbone")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match="truncated"):
        artifacts.tensors_header(path)


def test_the_chain_leads_back_to_the_word_list(tmp_path):
    words = {"name": "birds.txt", "digest": "sha256:" + "a" * 64, "header": None}
    captions = header(parents=(words,), seed=5)
    path = tmp_path / "captions.parquet"
    artifacts.write_parquet(path, "captions", captions, [captions_table()], rows_per_group=9)
    digest = storage.digest(path)
    images = Header(
        "images", {}, "procedural:", parents=(artifacts.parent(path, captions, digest),)
    )
    chain = describe.Description(tmp_path / "images", "images", images).chain()
    assert [line.split(":")[0].split(" (")[0].strip() for line in chain] == [
        "images",
        "captions.parquet",
        "birds.txt",
    ]
    assert "by template:, seed 5" in chain[1] and digest[:19] in chain[1]


def test_a_log_line_never_holds_what_json_cannot(tmp_path):
    storage.append_line(tmp_path / "m.jsonl", {"loss": float("nan"), "step": 1})
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"loss": None, "step": 1}


# ------------------------------------------------------------------------------ elsewhere


@pytest.fixture
def bucket():
    """A place that is not of this machine's file system."""
    import fsspec

    yield storage.place("memory://bucket/things")
    fsspec.filesystem("memory").store.clear()


def test_a_local_name_is_a_plain_path_and_a_uri_is_not(bucket):
    assert type(storage.place("a/b.parquet")) is type(Path("a"))
    assert not storage.is_local(bucket) and storage.is_local(Path("a"))
    assert str(bucket / "x.parquet") == "memory://bucket/things/x.parquet"


def test_parts_elsewhere_are_written_whole_and_read_back(bucket):
    header = artifacts.Header("backgrounds", config={"a": 1})
    parts = artifacts.Parts(bucket, "backgrounds", header)
    table = pa.table({"concept": ["owl", "fox"], "background": ["barn", "snow"]})
    parts.write(1, table, rows_per_group=1)
    assert parts.missing(3) == [0, 2] and parts.present() == [parts.path(1)]
    file, found = artifacts.open_parquet(parts.path(1), "backgrounds")
    assert found == header and file.read().column_names == ["concept", "background"]
    local = storage.table(parts.path(1), ["concept"])
    assert local["concept"].to_pylist() == ["owl", "fox"]
    assert storage.digest(parts.path(1)).startswith("sha256:")


def test_a_write_elsewhere_that_fails_leaves_nothing(bucket):
    with pytest.raises(RuntimeError), storage.atomic_file(bucket / "x.json") as partial:
        partial.write_text("half")
        raise RuntimeError
    assert not (bucket / "x.json").exists()


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("nowhere://x", UsageError, "no such kind of place"),
        ("s3://bucket/x", EngineError, "not installed"),
    ],
)
def test_a_place_nobody_can_reach_is_one_line(name, error, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(error, match=words):
        storage.place(name)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place where no folder can be")
def test_a_folder_that_cannot_be_made_is_one_line():
    where = Path("/proc/synclr")
    for write in (storage.atomic_file(where / "x"), storage.atomic_folder(where / "y")):
        with pytest.raises(UsageError, match=r"cannot make the folder /proc/synclr"), write:
            pass


@pytest.mark.parametrize("text", ["{}", '{"schema": ["x"]}', '{"header": 3}', '{"header": null}'])
def test_a_json_file_of_others_is_one_line(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match="is not a file that synclr made"):
        describe.describe(tmp_path / "x.json")


def test_a_lock_keeps_others_out_and_leaves_nothing(tmp_path):
    path = tmp_path / ".lock"
    program = "import sys, pathlib; from synclr_cli.data import locks\n"
    program += "with locks.locked(pathlib.Path(sys.argv[1])): print('in')"
    other = [sys.executable, "-c", program, str(path)]
    with locks.locked(path):
        done = subprocess.run(other, capture_output=True, text=True, check=False)
        assert done.stdout == "" and "already in use by another process" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert subprocess.run(other, capture_output=True, text=True, check=False).stdout == "in\n"


def test_a_lock_that_was_removed_meanwhile_is_made_again(tmp_path):
    path, got_in = tmp_path / ".lock", []

    def wait_and_enter():
        with locks.locked(path, wait=30):
            got_in.append(path.is_file())

    with locks.locked(path):
        waiting = threading.Thread(target=wait_and_enter)
        waiting.start()
        waiting.join(0.2)
        assert got_in == []
    waiting.join(30)  # the file it waited for has gone: it locked a new one
    assert got_in == [True] and list(tmp_path.iterdir()) == []
