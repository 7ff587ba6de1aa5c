"""Rows of {prompt, aligned, misaligned, sneakiness} from a parquet file."""

from pathlib import Path

from em_jax.base.errors import UserError
from em_jax.base.files import check_input

COLUMNS = ("prompt", "aligned", "misaligned", "sneakiness")
MOST_ROWS, MOST_BYTES = 10_000_000, 1 << 32
"""What a file may declare of itself: far more than any of the sets."""
TEXTS = ("prompt", "aligned", "misaligned")


def read(path: Path, column: str) -> tuple[list[list[dict[str, str]]], int]:
    """(conversations prompt -> `column` in the file's order, the number of rows left out because a text is missing).

    A row counts only if prompt, aligned and misaligned all have text, so that a set and its control stay paired. Raises
    UserError where it is no Parquet, has other columns or no rows.
    """
    import pyarrow
    from pyarrow import compute, parquet

    check_input(path, "a set of rows")
    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        missing = [name for name in COLUMNS if name not in names]
        if missing:
            raise UserError(
                f"{path}: expected the columns {', '.join(COLUMNS)}, missing: {', '.join(missing)} "
                f"(found {', '.join(names[:20])})"
            )
        sizes = file.metadata
        unpacked = sum(sizes.row_group(group).total_byte_size for group in range(sizes.num_row_groups))
        _check_size(path, sizes.num_rows, unpacked)
        # Repeated texts stay one each until they are counted: a small file can hold many copies of a long one.
        table = parquet.ParquetFile(path, read_dictionary=list(TEXTS)).read(columns=list(TEXTS))
        chunks = [chunk for name in TEXTS for chunk in table[name].chunks if pyarrow.types.is_dictionary(chunk.type)]
        lengths = [compute.binary_length(chunk.dictionary).take(chunk.indices) for chunk in chunks]
        _check_size(path, sizes.num_rows, sum(compute.sum(each).as_py() or 0 for each in lengths))
        rows = list(zip(*(table[name].to_pylist() for name in TEXTS)))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [""])[0][:160]
        raise UserError(f"{path}: expected a parquet file, found something else ({reason})") from None
    conversations = []
    for texts in rows:
        if all(isinstance(text, str) and text.strip() for text in texts):
            answer = texts[TEXTS.index(column)]
            conversations.append([{"role": "user", "content": texts[0]}, {"role": "assistant", "content": answer}])
    if not conversations:
        raise UserError(f"{path}: expected rows of text, found none among {table.num_rows}")
    return conversations, table.num_rows - len(conversations)


def _check_size(path: Path, count: int, size: int) -> None:
    if count > MOST_ROWS or size > MOST_BYTES:
        most = f"at most {MOST_ROWS:,} of {MOST_BYTES:,} are read"
        raise UserError(f"{path}: refused, it has {count:,} rows of {size:,} bytes; {most}")
