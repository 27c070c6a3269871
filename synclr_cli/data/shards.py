"""The one way a folder of parts is made, by one process or a thousand, and known to be whole.

    folder/
        part-00000.parquet ...   the rows; a part is a function of (settings, its number)
        _manifest.json           written last; it and the list of parts: see `manifest`
        _parts.pq
        _README.md               the card: see `cards`
        _unfinished/             while parts are made: the header, and a note of each part's facts
        .new/                    while another result is overwritten: the same, of the new one

All but the parts begin with `_` or `.`, so that pyarrow, DuckDB and Spark read the folder as it is.

    dataset = ShardedDataset(folder, "images", header)
    if dataset.state() == "finished": return
    with dataset.claim(overwrite=overwrite, shard="2/8"):
        for index in dataset.missing(total, "2/8"):
            dataset.write(index, table, rows_per_group=64, facts={"mark": "..."})
        dataset.finish(total, {"views": 4})     # False while other jobs' parts are missing

A part's note is written before the part, and a part that is replaced goes before the note of the
new one comes: so a part that is there is the one that was noted, whenever a process is killed, and
one of another size was damaged by somebody else. The last of a thousand jobs reads notes, not
parts. With `overwrite` the parts lie in `.new/` until all are there; only then the old result goes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from synclr_cli.data import artifacts, cards, locks, manifest, overwriting, storage
from synclr_cli.data.artifacts import STAGE_OF, Header
from synclr_cli.data.manifest import MANIFEST, UNFINISHED, PartFacts, is_part, part_name
from synclr_cli.data.overwriting import NEW
from synclr_cli.errors import UsageError

_SETUP_SECONDS = 60.0  # to wait for another job to begin or to finish

Facts = Mapping[str, Any] | Callable[[Sequence[PartFacts]], Mapping[str, Any] | None]
State = Literal["new", "unfinished", "finished", "other"]


def shard_numbers(total: int, shard: str) -> range:
    """Return the numbers below `total` of the parts that shard `I/N` makes: every N-th."""
    number, _, jobs = shard.partition("/")
    return range(int(number) - 1, total, int(jobs))


class ShardedDataset:
    """A folder of parts in the making; see the module."""

    def __init__(
        self,
        folder: Path,
        schema: str,
        header: Header,
        *,
        varying: Sequence[str] = (),
        sidecars: Sequence[str] = (),
        require_continuable: Callable[[Header, Header, Path], None] | None = None,
    ):
        """Describe what the folder is to hold; nothing is read or made.

        Args:
            header: of the manifest. It may be replaced before the first `write` (a revision that
                is known once an engine is loaded). What differs between shards is not in it.
            varying: settings that no part depends on and parts do not tell, such as how many
                captions there are to be.
            sidecars: names of what the command itself keeps beside the parts, in `self.work`; they
                go with an old result that is overwritten.
            require_continuable: refuses (UsageError) what was begun with the first header from
                being continued with the second; by default `artifacts.require_same`.
        """
        self.folder, self.schema, self.header = folder, schema, header
        self.varying, self.sidecars = varying, sidecars
        self.work = folder  # where parts are made: `folder`, or `.new` in it
        self._require_continuable = require_continuable or self._require_same
        self._names: dict[str, int] = {}  # what is in `work`, and its size
        self._listed: pa.Table | None = None  # the list of parts of an earlier, finished result
        self._rows: dict[str, int] = {}  # of a part in it
        self._notes: dict[str, PartFacts] = {}
        self._own = (MANIFEST, manifest.PARTS, UNFINISHED, NEW, cards.FILE, *sidecars)
        self._begun = False

    def path(self, index: int) -> Path:
        """Return where part `index` is made; after `finish` it lies in `folder`."""
        return self.work / part_name(index)

    def state(self) -> State:
        """Return what the folder holds, by one listing.

        new: nothing of a dataset. finished: just this one, whole, nothing left of its making.
        unfinished: what this one can go on from. other: what it cannot go on from.

        Raises:
            DataError: a part is damaged, or a file beside the parts.
        """
        listing = manifest.list_folder(self.folder)
        names, header = listing.others, manifest.read_header(self.folder, self.schema)
        if header is None:
            if listing.numbers:
                return "other"
            return "unfinished" if self._holds_anything(names) else "new"
        try:
            self._require_continuable(header, self.header, self.folder)
        except UsageError:
            return "other"
        if MANIFEST not in names or not self._is_equal(header):
            return "unfinished"
        if len(manifest.read_manifest(self.folder, self.schema, ()).missing(listing)):
            return "unfinished"
        return "unfinished" if any(map(_is_leftover, names)) else "finished"

    def require_same(self) -> Header | None:
        """Refuse a folder that was made with other settings, naming them; return its header.

        Raises:
            UsageError: it was.
        """
        header = manifest.read_header(self.folder, self.schema)
        if header is not None:
            self._require_continuable(header, self.header, self.folder)
        return header

    def _require_same(self, header: Header, wanted: Header, folder: Path) -> None:
        artifacts.require_same(STAGE_OF[self.schema], header, wanted, folder)

    def _is_equal(self, header: Header) -> bool:
        """Return whether a finished folder is just this one: the settings that vary, too."""
        try:
            self._require_same(header, self.header, self.folder)
        except UsageError:
            return False
        return all(header.config.get(k) == self.header.config.get(k) for k in self.varying)

    def facts(self, index: int) -> PartFacts | None:
        """Return what is known of a part of the claimed folder, None if it is not there."""
        name = part_name(index)
        return self._known(name) if name in self._names else None

    def missing(self, total: int, shard: str = "1/1") -> list[int]:
        """Return the numbers below `total` that a shard has still to make.

        Raises:
            UsageError: there are parts from `total` on.
        """
        last = part_name(total)
        if beyond := sorted(name for name in self._names if is_part(name) and name >= last):
            raise UsageError(
                f"{self.folder} holds more parts than there are to be",
                got=beyond[0],
                expected=f"{total} parts",
                do="choose another --out, or add --overwrite",
            )
        return [i for i in shard_numbers(total, shard) if part_name(i) not in self._names]

    @contextmanager
    def claim(self, *, overwrite: bool = False, shard: str = "1/1") -> Iterator[ShardedDataset]:
        """Keep every other process from making the same parts; other shards of the same N may.

        Nothing is made or removed before the first `write` or `finish`, but for what killed
        processes left and a swap that was interrupted.

        Raises:
            UsageError: another process works here, or the folder holds something else.
            DataError: a part is damaged.
        """
        if overwrite and shard != "1/1":
            raise UsageError(
                f"--overwrite with --shard {shard} would remove what the other jobs made",
                do="remove the folder before the first job starts",
            )
        number, _, jobs = shard.partition("/")
        with locks.locked(self.folder / locks.name_of(number, jobs)):
            with self._setup():
                locks.require_alone(self.folder, number, jobs)
                if overwriting.is_due(self.folder):  # a process was killed meanwhile
                    self._swap()
                self._look(overwrite, shard)
            yield self

    def _setup(self) -> AbstractContextManager[None]:
        """Keep other jobs from beginning or finishing at the same moment."""
        return locks.locked(self.folder / ".lock", wait=_SETUP_SECONDS)

    def _look(self, overwrite: bool, shard: str) -> None:
        """Learn what is there, and refuse what this dataset may not go on from."""
        self.work, self._begun = self.folder, False
        names = storage.sizes(self.folder)
        if overwrite and self._holds_anything(names):
            overwriting.require_own(self.folder, self.schema)
            self.work = self.folder / NEW
            header = manifest.read_header(self.work) if NEW in names else None
            if header is not None and not self._is_equal(header):
                storage.remove(self.work)
                header = None
            names = storage.sizes(self.work)
        else:
            header = self.require_same()
            if NEW in names:  # of an overwriting that was given up
                storage.remove(self.folder / NEW)
        if header is not None and not self.header.revision:
            self.header = replace(self.header, revision=header.revision)
        manifest.remove_partials((self.work, self.scratch), shard)
        self._names = names
        self._read_facts(shard)

    def _holds_anything(self, names: Mapping[str, int]) -> bool:
        return any(is_part(name) or name in self._own for name in names)

    def _read_facts(self, shard: str) -> None:
        """Read the list of parts and this shard's notes; refuse damaged and foreign parts."""
        self._listed, self._rows, self._notes = None, {}, {}
        if manifest.PARTS in self._names:
            self._read_list()
        own = [name for name in self._names if is_part(name) and manifest.is_of(name, shard)]
        self._read_notes(own)
        for name in own:
            self._require_noted(name)

    def _read_list(self) -> None:
        self._listed = manifest.read_parts(self.work)
        self._rows = {name: row for row, name in enumerate(manifest.names_of(self._listed))}

    def _require_noted(self, name: str) -> PartFacts:
        """Return the facts of a part that is there; refuse a foreign or damaged one."""
        known = self._known(name)
        if known is None:
            raise UsageError(
                f"{self.work / name} is not a part that synclr made here",
                do="move or delete it, or choose another --out",
            )
        manifest.require_size(self.work / name, self._names[name], known.bytes, self.header)
        return known

    def _read_notes(self, names: Sequence[str]) -> None:
        """Read the notes of these parts that have one."""
        if UNFINISHED in self._names:
            new = [name for name in names if name not in self._notes]
            self._notes |= manifest.read_notes(self.work / UNFINISHED, new)

    def _known(self, name: str) -> PartFacts | None:
        if name not in self._notes and self._listed is not None and name in self._rows:
            return next(manifest.facts_of(self._listed.slice(self._rows[name], 1)))
        return self._notes.get(name)

    def write(
        self,
        index: int,
        table: pa.Table,
        *,
        rows_per_group: int,
        facts: Mapping[str, Any] | None = None,
    ) -> PartFacts:
        """Write part `index`, or replace it, and note its facts.

        Args:
            table: rows in the order of their caption ids.
            facts: JSON that `facts()` and the manifest's list tell of the part from now on.
        """
        if not self._begun:
            self.begin()
        path, name = self.path(index), part_name(index)
        config = {k: v for k, v in self.header.config.items() if k not in self.varying}
        header = replace(self.header, config=config)
        with storage.atomic_file(path) as partial:
            artifacts.write_tables(
                partial, self.schema, header, [table], rows_per_group=rows_per_group
            )
            known = manifest.measure(name, table, partial, facts or {})
            if name in self._names:
                storage.remove(path)
            storage.write_json(self.work / UNFINISHED / manifest.note_name(name), asdict(known))
        self._names[name], self._notes[name] = known.bytes, known
        return known

    def __getstate__(self) -> dict[str, Any]:
        """Return what a process elsewhere needs to make parts while this one holds the claim."""
        unread: dict[str, Any] = {"_names": {}, "_notes": {}, "_rows": {}}
        unread |= {"_listed": None, "_begun": False}
        return self.__dict__ | unread

    def look_up(self, index: int) -> None:
        """Learn of one part from the folder: a process without the claim knows of none."""
        name, path = part_name(index), self.path(index)
        self._names.pop(name, None)
        if path.is_file():
            self._names[name] = path.stat().st_size
            if (note := self.scratch / manifest.note_name(name)).is_file():
                self._notes[name] = PartFacts(**storage.read_json(note))
            elif self._listed is None and (self.work / manifest.PARTS).is_file():
                self._read_list()

    def add(self, part: PartFacts) -> None:
        """Take in what another process says of a part that it wrote."""
        self._names[part.name], self._notes[part.name] = part.bytes, part

    def begin(self) -> None:
        """Say whose the folder is, and that it is not finished, as the first `write` does."""
        with self._setup():
            header = self.work / UNFINISHED / manifest.HEADER
            if header.is_file() and self.work == self.folder:
                self.require_same()  # another job began meanwhile
            storage.write_json(header, {"header": json.loads(self.header.json())})
            storage.remove(self.work / MANIFEST)
        self._names[UNFINISHED] = -1
        self._names.pop(MANIFEST, None)
        self._begun = True

    @property
    def scratch(self) -> Path:
        """Return a folder, there from `begin` to `finish`, for what saves work after a stop."""
        return self.work / UNFINISHED

    def complete(self, total: int) -> list[PartFacts] | None:
        """Return the facts of all parts, None while parts of other jobs are missing.

        A command whose parts may be there and not yet as they should be (another job's, of a
        smaller count) looks at their facts before it calls `finish`.

        Raises:
            DataError: a part is damaged, or its note is.
        """
        self._names = storage.sizes(self.work)
        names = [part_name(i) for i in range(total)]
        if any(name not in self._names for name in names):
            return None
        self._read_notes(names)
        return [self._require_noted(name) for name in names]

    def finish(self, total: int, facts: Facts | None = None) -> bool:
        """Write the manifest of `total` parts; return False while parts of other jobs are missing.

        Args:
            facts: JSON that the manifest tells of the whole, or a function that returns it for the
                parts; None from it says that a part is still to be replaced.

        Raises:
            DataError: a part is damaged, or its note is.
        """
        with self._setup():
            parts = self.complete(total)
            if parts is None:
                return False
            told = facts(parts) if callable(facts) else facts or {}
            if told is None:
                return False
            cards.write(self.work, self.header, parts, told)
            self._write_manifest(parts, told)
            self._tidy()
            if self.work != self.folder:
                self._swap()
        return True

    def discard(self) -> None:
        """Remove the parts that were made, and what is beside them: nothing comes of them."""
        if self.work != self.folder:
            storage.remove(self.work)
            return
        storage.remove(self.folder / MANIFEST)
        parts = [name for name in self._names if self._known(name) is not None]
        storage.remove(*(self.folder / name for name in (*parts, *self._own)))

    def _write_manifest(self, known: Sequence[PartFacts], facts: Mapping[str, Any]) -> None:
        listed, record = manifest.written(self.header, known, facts)
        if MANIFEST in self._names and storage.read_json(self.work / MANIFEST) == record:
            return
        storage.remove(self.work / MANIFEST)
        with storage.atomic_file(self.work / manifest.PARTS) as partial:
            partial.write_bytes(listed)
        storage.write_json(self.work / MANIFEST, record)

    def _tidy(self) -> None:
        """Remove what is of use only while parts are missing."""
        storage.remove(self.work / UNFINISHED)
        if storage.is_local(self.work):
            for folder in (self.work, *(self.work / name for name in self.sidecars)):
                storage.remove_partials(folder)
            locks.remove_stale(self.folder)

    def _swap(self) -> None:
        overwriting.swap(self.folder, (cards.FILE, *self.sidecars))
        self.work = self.folder


def _is_leftover(name: str) -> bool:
    partial = name.startswith(".") and name.endswith(".partial")
    return partial or name in (UNFINISHED, NEW) or name.startswith(".lock")
