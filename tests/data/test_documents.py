from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from herd.data.documents import RAW, Writer, document_id, identity, read_rows


def table(day: date = date(2024, 1, 1), content: bytes = b"text") -> pa.Table:
    rows = [
        {"id": str(n), "source": "s", "path": f"p{n}", "kind": "docs", "media": "text", "licence": "MIT"}
        | {"retrieved": day, "content": content}
        for n in range(5)
    ]
    return pa.Table.from_pylist(rows, schema=RAW)


def test_retrieval_date_is_not_part_of_identity() -> None:
    assert identity(table()) == identity(table(day=date(2025, 6, 7)))


def test_identity_sees_every_other_change_and_no_chunking() -> None:
    whole = table()
    assert identity(whole) != identity(table(content=b"text."))
    assert identity(pa.concat_tables([whole.slice(0, 2), whole.slice(2)])) == identity(whole)
    assert identity(whole.slice(1)) != identity(whole)


def test_values_moved_between_rows_change_the_identity() -> None:
    one = pa.table({"path": ["ab", "c"]})
    other = pa.table({"path": ["a", "bc"]})
    assert identity(one) != identity(other)


def test_written_rows_come_back_in_order(tmp_path: Path) -> None:
    rows = table().to_pylist()
    with Writer(tmp_path / "d.parquet", RAW, weigh="content") as writer:
        for row in rows:
            writer.write(row)
    assert list(read_rows(tmp_path / "d.parquet")) == rows
    assert pq.read_schema(tmp_path / "d.parquet").equals(RAW)


def test_ids_depend_on_source_and_path_without_ambiguity() -> None:
    assert document_id("a", "b/c") != document_id("a/b", "c")
    assert len(document_id("a", "b")) == 16
