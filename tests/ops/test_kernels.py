"""The Triton kernels under Triton's interpreter, which needs no GPU, against the reference."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.commands import ROOT

pytest.importorskip("triton")


def test_the_interpreted_kernels_agree_with_the_reference():
    # The interpreter is chosen when triton is imported.
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.interpreted"], capture_output=True, text=True,
        env=os.environ | {"TRITON_INTERPRET": "1"}, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) > 60
    assert {name: error for name, (error, allowed) in found.items() if not error <= allowed} == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_compiled_kernels_agree_with_the_reference_on_a_gpu():
    from tests.ops.interpreted import table

    assert {name: e for name, (e, allowed) in table("cuda").items() if not e <= allowed} == {}
