"""The node Quantize Model in tests, with small settings."""

SETTINGS = {
    "precision": "int4",
    "activations": "w4a8",
    "rank": 16,
    "method": "fast",
    "filename_prefix": "mine",
    "overwrite": True,
    "seed": 0,
}


def quantize(host, model, **changes):
    """MODEL, path, report and plot."""
    return host.call("SVDQuantQuantizeModel", model=model, **(SETTINGS | changes))
