"""The environment check as a node: the report is its output and stands on the node."""

import pytest


@pytest.fixture
def node(host):
    return host.nodes.NODE_CLASS_MAPPINGS["SVDQuantEnvironmentCheck"]


def test_the_report_is_output_and_shown(node):
    result = node.execute()
    assert result.result[0].startswith("SVDQuant environment check")
    assert result.ui.as_dict()["text"] == (result.result[0],)
    assert "svdq-int4_r32-flux.1-dev.safetensors" in result.result[0]


def test_it_looks_anew_each_time(node):
    assert node.fingerprint_inputs() != node.fingerprint_inputs()
