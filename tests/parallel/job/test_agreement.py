"""What processes exchange, with a single process; whole jobs are in tests/train/test_jobs.py."""

import jax
import pytest

from resnet_jax.errors import ConfigError
from resnet_jax.parallel.job.agreement import ProcessFlags, all_gather_object, check_consistent
from resnet_jax.parallel.mesh import make_mesh


def test_a_single_process_gets_its_own_flags_documents_and_errors():
    assert jax.process_count() == 1
    assert ProcessFlags(make_mesh()).any_process(False, True) == (False, True)
    assert all_gather_object({"a": 1}) == [{"a": 1}]
    with check_consistent({"a": 1}) as facts:
        assert facts == {"a": 1}
    with pytest.raises(ConfigError, match="mine"), check_consistent({}):
        raise ConfigError("mine")
