"""The process that measures the runs of a study in turns.

``python -m composer_attn.runs.study.timing_process OUTPUT`` reads the runs from standard input.
"""

import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import yaml

from composer_attn.runs.components.project_imports import import_modules
from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.training.step_times import measure


def main() -> None:
    """Measure what standard input describes; write the times as JSON."""
    started = time.process_time()  # mostly imports, which every run has to do
    asked = yaml.safe_load(sys.stdin)
    import_modules(asked["imports"])
    configs = [RunConfig(**values) for values in asked["configs"]]
    times = [
        replace(each, building_seconds=each.building_seconds + started)
        for each in measure(configs, asked["seconds"])
    ]
    Path(sys.argv[1]).write_text(json.dumps([asdict(each) for each in times]), encoding="utf-8")


if __name__ == "__main__":
    main()
