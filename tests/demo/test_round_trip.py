"""Each way of a model through a file is compared by itself."""

import pytest

from svdquant_pack.demo import round_trip
from svdquant_pack.demo.client import Client


def run(server):
    return round_trip.run(Client(server), lambda line: None)


def test_every_precision_goes_every_way(fake_server):
    files, checks = run(fake_server())
    assert [file.precision for file in files] == ["int4", "nvfp4"]
    assert all(file.path.exists() and file.exported.exists() and file.path != file.exported for file in files)
    assert len(checks) == 4
    assert all(check.passed for check in checks)


@pytest.mark.parametrize("precision", ["int4", "nvfp4"])
def test_an_export_that_loses_something_is_found(fake_server, monkeypatch, precision):
    server = fake_server()
    good = server._latent

    def lossy(node, how, kinds):
        is_exported = "exported" in node["model"].get("model_name", "")
        return good(node, how, kinds) + (1e-3 if is_exported and how.startswith(precision) else 0)

    monkeypatch.setattr(server, "_latent", lossy)
    _, checks = run(server)
    assert [check.statement for check in checks if not check.passed] == [
        f"{precision}: quantized in the graph = exported to nunchaku layout and loaded"
    ]
