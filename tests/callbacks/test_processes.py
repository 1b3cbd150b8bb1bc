"""Two processes compute the same as one: figures of training, and means by class at evaluation."""

import json

import numpy as np
import pytest

from composer_attn.callbacks import excitations
from tests.callbacks.two_processes import EVAL_BATCHES, EVALUATED, run
from tests.commands import ROOT, launch


def test_two_processes_see_what_one_sees(tmp_path):
    done = launch(2, "-m", "tests.callbacks.two_processes", str(tmp_path), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1))
    assert first == second
    alone = run(tmp_path / "alone", eval_batch=EVALUATED)
    assert set(first) == set(alone)
    assert len(alone) == 2 * 6
    for key, values in alone.items():
        assert len(values) == 3
        assert first[key] == pytest.approx(values, rel=1e-4, abs=1e-7)
    expected = excitations.read(tmp_path / "alone")
    assert expected.samples[-1] == EVALUATED
    for eval_batch in EVAL_BATCHES:
        kept = excitations.read(tmp_path / str(eval_batch))
        assert kept.samples.tolist() == expected.samples.tolist()
        for mine, theirs in zip(kept.layers, expected.layers, strict=True):
            assert mine.name == theirs.name
            np.testing.assert_allclose(mine.mean, theirs.mean, rtol=1e-4)
            np.testing.assert_allclose(mine.std, theirs.std, rtol=1e-3, atol=1e-6)
