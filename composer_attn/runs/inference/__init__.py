"""Use of a trained run: load, evaluate, predict and export."""

from composer_attn.extras import naming_the_extra

with naming_the_extra("a trained run", "runs"):
    from composer_attn.runs.inference.load_run import LoadedRun, load_run

__all__ = ["LoadedRun", "load_run"]
