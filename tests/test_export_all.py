"""Every public function with its gradient, for all platforms and any batch, in one artifact."""

import export_cases
import pytest
from public_calls import CALLS


@pytest.mark.slow
def test_every_function_survives_and_the_page_says_so(tmp_path):
    found = export_cases.survey(tmp_path)
    assert set(CALLS) <= set(found)
    failed = {name: one.failed for name, one in found.items() if one.failed}
    assert not failed
    assert export_cases.table(found) == export_cases.held()
