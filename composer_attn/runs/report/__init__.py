"""A page that compares runs, from their files."""

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from composer_attn.errors import ConfigError
from composer_attn.runs.config.config_errors import Mistake

__all__ = ["check_libraries", "write_report"]

_LIBRARIES = ("jinja2", "matplotlib", "scipy")


def check_libraries() -> None:
    """Check that the libraries that draw the page are installed.

    Raises:
        ConfigError: one is not.
    """
    missing = [name for name in _LIBRARIES if find_spec(name) is None]
    if missing:
        message = f"needs {' and '.join(missing)}: pip install 'composer-attn[report]'"
        raise ConfigError(Mistake("report", message))


def write_report(folders: Sequence[Path], out: Path, title: str | None = None) -> Path:
    """Compare runs; write ``report.html``, ``plots/``, ``results.csv`` and ``results.json``.

    Args:
        folders: folders of runs, or folders that contain them.
        out: output folder.
        title: title of the page; by default from the variants, the network and the data.

    Returns:
        The path of the page.

    Raises:
        ConfigError: a library is missing, there is no run, or ``out`` cannot be written.
    """
    check_libraries()
    from composer_attn.runs.report.compare import compare
    from composer_attn.runs.report.heat_maps import draw_heat_maps
    from composer_attn.runs.report.page import render
    from composer_attn.runs.report.plots import draw
    from composer_attn.runs.report.records import find_records
    from composer_attn.runs.report.results import write_results

    comparison = compare(find_records(folders))
    try:
        out.mkdir(parents=True, exist_ok=True)
        plots = draw(comparison, out / "plots")
        heat_maps, told = draw_heat_maps(comparison, out / "plots")
        comparison = replace(comparison, notices=(*comparison.notices, *told))
        write_results(comparison, out)
        page = out / "report.html"
        page.write_text(render(comparison, [*plots, *heat_maps], title), encoding="utf-8")
    except OSError as error:
        raise ConfigError(Mistake("--out", f"cannot be written: {error}")) from error
    return page
