"""What the fuzz tests share: how many examples hypothesis makes of damaged and hostile input.

`pytest -m fuzz` runs them alone; `ARTFUSION_FUZZ_EXAMPLES=5000 pytest -m fuzz` for longer, and then each time with
other examples.
"""

import os

from hypothesis import HealthCheck, settings

VARIABLE = "ARTFUSION_FUZZ_EXAMPLES"  # a number of examples for each test, in place of its own


def examples(default: int) -> settings:
    """The settings of a test that takes this many examples, the same at every run unless more are asked for."""
    number = os.environ.get(VARIABLE)
    return settings(
        max_examples=int(number or default),
        derandomize=number is None,
        deadline=None,
        database=None,
        # a test's folder may serve all its examples, and damaged input is often thrown away
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,
            HealthCheck.filter_too_much,
            HealthCheck.too_slow,
        ],
    )
