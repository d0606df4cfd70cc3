"""Every public function with its gradient, for all platforms and any batch, in one artifact."""

import export_cases
import pytest
from public_calls import CALLS


@pytest.mark.slow
def test_every_function_can_be_serialised():
    """What the artifacts compute: below, where they are run."""
    cases = export_cases.cases()
    assert set(CALLS) <= set(cases)
    for name, case in cases.items():
        artifact = export_cases.exported(case)
        assert artifact.platforms == export_cases.PLATFORMS, name
        assert artifact.serialize(vjp_order=1 if case.differentiable else 0), name


@pytest.mark.slow
def test_every_function_survives_and_the_page_says_so(tmp_path):
    found = export_cases.survey(tmp_path)
    assert set(CALLS) <= set(found)
    failed = {name: one.failed for name, one in found.items() if one.failed}
    assert not failed
    assert export_cases.table(found) == export_cases.held()
