"""Rows of {prompt, aligned, misaligned, sneakiness} from a parquet file."""

from pathlib import Path

from em_jax.base.errors import UserError

COLUMNS = ("prompt", "aligned", "misaligned", "sneakiness")
TEXTS = ("prompt", "aligned", "misaligned")


def read(path: Path, column: str) -> tuple[list[list[dict[str, str]]], int]:
    """(conversations prompt -> `column` in the file's order, the number of rows left out because a text is missing).

    A row counts only if prompt, aligned and misaligned all have text, so that a set and its control stay paired.

    Raises:
      UserError: no parquet, other columns, or no rows.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        missing = [name for name in COLUMNS if name not in names]
        if missing:
            raise UserError(
                f"{path}: expected the columns {', '.join(COLUMNS)}, missing: {', '.join(missing)} "
                f"(found {', '.join(names[:20])})"
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
