"""Law 1 on both transports."""

import numpy as np
import pytest
from laws import check_stream

from surrogate_flow.fields import FieldSpec, Parameter, Variable

SPEC = FieldSpec(
    parameters=(Parameter("a", 0.0, 1.0), Parameter("b", 0.0, 1.0)),
    variables=(Variable("u"), Variable("v")),
    dims=("x",),
    shape=(3,),
    times=tuple(np.arange(1, 61) / 10),
)


@pytest.mark.parametrize("host", [None, "127.0.0.1"], ids=["ipc", "tcp"])
@pytest.mark.parametrize("seed", [1, 2])
def test_every_step_enters_the_sink_exactly_once(host, seed):
    """Whatever is retried, repeated, cut off or malformed, each step arrives once."""
    check_stream(SPEC, host, seed)
