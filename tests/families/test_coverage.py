"""The page that says what is quantized of every model says what the plans say."""

import re

import pytest
from families.coverage import PAGE, TITLES, row
from families.registry import FAMILIES

LINES = {line.split(" | ")[0].removeprefix("| "): line for line in PAGE.read_text("utf-8").splitlines() if "|" in line}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_page_is_what_the_plan_is(name, host):
    assert LINES[TITLES[name]] == row(name), "run: python tests/families/coverage.py"


def test_shares_add_up():
    for title in TITLES.values():
        cells = LINES[title].split("|")
        told = [float(number) for number in re.findall(r" (\d+\.\d)%(?:;| $)", cells[7])]
        assert abs(float(cells[3]) + float(cells[4]) + sum(told) - 100) < 0.1 * len(told) + 0.1, title
