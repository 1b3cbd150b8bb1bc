"""Training with attention at the end of residual branches, and resuming without repeating it."""

import pytest

from composer_attn import attended_modules
from tests.algorithms.training import ALGORITHMS, assert_same, each_algorithm, trainer, weights
from tests.algorithms.training import losses as losses_of

SITES = [f"module.layer{stage}.0.bn2" for stage in (1, 2, 3, 4)]


@each_algorithm
def test_a_run_with_a_placement_resumes_without_the_algorithm_passed(key, tmp_path):
    options = {"network": "resnet", "save_interval": "2ba", "max_duration": "4ba"}
    algorithm = ALGORITHMS[key](placement="residual")
    assert "placement='residual'" in repr(algorithm)
    whole = trainer([algorithm], save_folder=str(tmp_path / "whole"), **options)
    assert list(attended_modules(whole.state.model)) == SITES
    before = weights(whole.state.model)
    whole.fit()
    whole.close()
    after = weights(whole.state.model)
    assert all((after[k] != before[k]).any() for k in after if ".bn2.attention." in k)

    with pytest.warns(UserWarning, match="Automatically adding required_on_load algorithm"):
        resumed = trainer([], load_path=str(tmp_path / "whole" / "ep0-ba2-rank0.pt"), **options)
    assert list(attended_modules(resumed.state.model)) == SITES
    resumed.fit()
    resumed.close()
    assert losses_of(resumed) == losses_of(whole)[2:]
    assert_same(weights(resumed.state.model), after)
