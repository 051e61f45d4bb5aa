"""What pruning removes is what the record says, to the unit."""

from __future__ import annotations

import json

import pytest
from golden import CONFIGS, NORMALIZERS, RECORD, Recorded
from stack import derivatives, require

EXPECTED = json.loads(RECORD.read_text())


@pytest.fixture(scope='module', params=sorted(EXPECTED))
def case(request):
    if request.param in CONFIGS:
        # the quickstart's classifier inherits from MMPretrain's
        classifier = request.param == 'resnet18'
        require('mmpretrain' if classifier else 'mmdet')
    return Recorded(request.param)


@pytest.mark.parametrize('cut_to', [1, 8])
@pytest.mark.parametrize('normalize_by', NORMALIZERS)
def test_removals_are_those_of_the_record(case, normalize_by, cut_to):
    expected = EXPECTED[case.name][normalize_by]
    with derivatives():
        removals = case.removals(normalize_by, cut_to)
    assert removals == expected
