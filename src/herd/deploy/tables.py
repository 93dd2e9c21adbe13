"""The tables that a server has open: each an uploaded file in a sandbox session of its own, with its conversation."""

from __future__ import annotations

import re
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from herd.deploy.assistant import Assistant, Conversation
from herd.deploy.protocol import RequestError
from herd.model.dialog import Dialog, Message
from herd.tools.prompts import system_prompt
from herd.tools.sandbox import Sandbox, Session
from herd.tools.table import TableFacts


@dataclass
class Table:
    """One open table. `users`: jobs that use it now."""

    id: str
    facts: TableFacts
    session: Session
    conversation: Conversation
    resources: ExitStack
    users: int = 0


@dataclass
class Tables:
    """At most `limit` tables; opening one more closes the one that was idle longest."""

    assistant: Assistant
    sandbox: Sandbox
    limit: int = 8
    _open: dict[str, Table] = field(default_factory=dict)  # the most recently used last
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return len(self._open)

    def open(self, name: str, file: Path) -> Table:
        """Take a CSV file, which is copied, under the name that its user gave it.

        Raises HerdError saying what is wrong with the file, RequestError where every place is in use.
        """
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="herd-table-")))
            path = file.rename(folder / file_name(name))
            session = stack.enter_context(self.sandbox.session())
            facts = session.open_table(path)
            dialog = Dialog((Message("system", system_prompt(facts)),))
            conversation = Conversation(self.assistant, session, dialog)
            table = Table(f"table-{uuid.uuid4().hex}", facts, session, conversation, stack)
            self._place(table)
            table.resources = stack.pop_all()
        return table

    @contextmanager
    def using(self, id: str) -> Iterator[Table]:
        """A table for the length of a job. Raises RequestError where it is not (or no longer) open."""
        with self._lock:
            table = self._open.pop(id, None)
            if table is None:
                raise not_open()
            self._open[id] = table
            table.users += 1
        try:
            yield table
        finally:
            with self._lock:
                table.users -= 1

    def check(self, id: str) -> Table:
        """The table of this id. Raises RequestError where it is not open."""
        table = self._open.get(id)
        if table is None:
            raise not_open()
        return table

    def close(self, id: str) -> None:
        """Forget a table, its file and its conversation. Raises RequestError where it is not open."""
        with self._lock:
            table = self._open.pop(id, None)
        if table is None:
            raise not_open()
        table.resources.close()

    def close_all(self) -> None:
        for id in list(self._open):
            self.close(id)

    def _place(self, table: Table) -> None:
        with self._lock:
            idle = next((t for t in self._open.values() if not t.users), None)
            evicted = None
            if len(self._open) >= self.limit:
                if idle is None:
                    raise RequestError(429, f"all {self.limit} tables are in use; try again", code="tables_in_use")
                evicted = self._open.pop(idle.id)
            self._open[table.id] = table
        if evicted is not None:
            evicted.resources.close()


def not_open() -> RequestError:
    return RequestError(404, "this table is not open (any more); load the file again", "table", "table_not_open")


def file_name(given: str) -> str:
    """A harmless name for an uploaded file: its last part, letters, digits and a few signs, ending in .csv."""
    stem = re.sub(r"\.(csv|tsv|txt)$", "", re.split(r"[/\\]", given)[-1], flags=re.IGNORECASE)
    return (re.sub(r"[^\w .()-]+", "_", stem).strip(" .")[:80] or "table") + ".csv"
