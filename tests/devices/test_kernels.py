"""The compiled Triton kernels on a GPU, against the reference."""

import pytest
import torch

from tests.ops.interpreted import table


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_compiled_kernels_agree_with_the_reference():
    torch.manual_seed(0)
    found = table("cuda")
    assert len(found) > 200
    assert {name: e for name, (e, allowed) in found.items() if not e <= allowed} == {}
