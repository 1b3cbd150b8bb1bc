"""The results of a benchmark: tables in a terminal, and a folder with a CSV file and a picture."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from composer_attn.extras import naming_the_extra
from composer_attn.runs.benchmark.measure import Row
from composer_attn.runs.report.csv_file import write_csv
from composer_attn.runs.training.checkpoint_saver import saving

CSV, PICTURE = "benchmark.csv", "benchmark.png"


def check_library() -> None:
    """Check that the library that draws the picture is installed.

    Raises:
        MissingExtraError: it is not.
    """
    with naming_the_extra("a benchmark's picture"):
        import matplotlib  # noqa: F401


def show(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print the rows of one batch size as a table."""
    console = console or Console()
    table = Table(title=f"batch {rows[0].batch}", title_justify="left", box=None)
    table.add_column("network", no_wrap=True)
    for column in ("median, ms", "quartiles", "images/s", "ratio to plain\n(quartiles)"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.variant, *_figures(row))
    console.print(table)
    for row in rows:
        if row.note:
            console.print(f"{row.variant}: {row.note}", markup=False)


def write_results(rows: Sequence[Row], settings: Mapping[str, Any], output: Path) -> None:
    """Write ``benchmark.csv`` and ``benchmark.png`` to a folder.

    Raises:
        SaveError: the folder cannot be written.
    """
    from composer_attn.runs.benchmark.picture import draw

    with saving(output):
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=output) as folder:
            table, picture = Path(folder, CSV), Path(folder, PICTURE)
            write_csv(table, [dict(settings) | row.as_record() for row in rows])
            draw(rows, settings, picture)
            for each in (table, picture):
                os.replace(each, output / each.name)


def _figures(row: Row) -> tuple[str, ...]:
    if row.median_ms is None:
        return ("-",) * 4
    return (
        f"{row.median_ms:,.2f}",
        f"{row.lower_quartile_ms:,.2f} to {row.upper_quartile_ms:,.2f}",
        f"{row.images_per_second:,.1f}",
        f"{row.ratio:.2f} ({row.ratio_lower_quartile:.2f} to {row.ratio_upper_quartile:.2f})",
    )
