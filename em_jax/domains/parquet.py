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

    A row counts only if prompt, aligned and misaligned all have text, so that a set and its control stay paired.

    Raises:
      UserError: no parquet, other columns, or no rows.
    """
    import pyarrow
    from pyarrow import parquet

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
        if sizes.num_rows > MOST_ROWS or unpacked > MOST_BYTES:
            raise UserError(
                f"{path}: refused, it declares {sizes.num_rows:,} rows of {unpacked:,} bytes; at most {MOST_ROWS:,} of "
                f"{MOST_BYTES:,} are read"
            )
        table = file.read(columns=list(TEXTS))
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [""])[0][:160]
        raise UserError(f"{path}: expected a parquet file, found something else ({reason})") from None
    conversations = []
    for texts in zip(*(table[name].to_pylist() for name in TEXTS)):
        if all(isinstance(text, str) and text.strip() for text in texts):
            answer = texts[TEXTS.index(column)]
            conversations.append([{"role": "user", "content": texts[0]}, {"role": "assistant", "content": answer}])
    if not conversations:
        raise UserError(f"{path}: expected rows of text, found none among {table.num_rows}")
    return conversations, table.num_rows - len(conversations)
