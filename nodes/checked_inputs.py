"""Values that come over wires, held to what the widgets allow.

The host checks what a widget holds, and nothing that a wire brings: another pack's switch hands over nothing at all, a
number node a million tokens. Here both are checked alike, where a node begins.
"""

import math
from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..svdq_core.errors import SVDQuantError

SHOWN = 80  # letters of a value in a message
SHOWN_OPTIONS = 8


def checked(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """Decorates the execute of a node, below @classmethod: its inputs are checked and numbers converted before.

    A list of choices is left to nodes that have a validate_inputs of their own, as the host does.

    Raises:
        SVDQuantError: a value is none that the widget could hold; the message says which input, and what it takes.
    """

    names = list(signature(execute).parameters)[1:]

    @wraps(execute)
    def check_and_execute(cls, *args: Any, **inputs: Any) -> io.NodeOutput:
        inputs |= zip(names, args, strict=False)
        own_lists = cls.validate_inputs.__func__ is not io.ComfyNode.validate_inputs.__func__
        for widget in cls.define_schema().inputs:
            if widget.id not in inputs:
                continue
            if widget.optional and inputs[widget.id] is None:  # as if nothing were connected
                inputs[widget.id] = getattr(widget, "default", None)
            else:
                inputs[widget.id] = _check(widget, inputs[widget.id], own_lists)
        return execute(cls, **inputs)

    return check_and_execute


def _check(widget: Any, value: Any, own_lists: bool) -> Any:
    kind, name = widget.get_io_type(), widget.id
    if kind in ("INT", "FLOAT"):
        return _number(widget, value, kind)
    if kind == "BOOLEAN":
        if not isinstance(value, (bool, int, float)):
            raise _refused(name, value, "yes or no")
        return bool(value)
    if kind == "STRING":
        if not isinstance(value, (str, int, float)):
            raise _refused(name, value, "a text")
        return str(value)
    if kind == "COMBO" and not own_lists and value not in _texts(widget.options, value):
        options = ", ".join(map(str, widget.options[:SHOWN_OPTIONS])) + (
            ", ..." if len(widget.options) > SHOWN_OPTIONS else ""
        )
        raise _refused(name, value, f"one of its list: {options or 'nothing, the list is empty'}. Refresh the page")
    if kind == "MODEL" and not (hasattr(value, "model") and hasattr(value, "clone")):
        raise _refused(name, value, "a MODEL; is the node in front of it muted or bypassed?")
    if kind == "SVDQUANT_CALIBRATION" and not isinstance(value, str):
        raise _refused(name, value, "what Save Calibration gives")
    if kind == "LATENT" and not (isinstance(value, dict) and isinstance(value.get("samples"), Tensor)):
        raise _refused(name, value, "a LATENT")
    if kind == "IMAGE" and not isinstance(value, Tensor):
        raise _refused(name, value, "an IMAGE")
    return value


def _texts(options: list, value: Any) -> list:
    """The options that a value can be compared with: comparing a tensor gives no yes or no."""
    return options if isinstance(value, str) else []


def _number(widget: Any, value: Any, kind: str) -> int | float:
    """A number within the widget's limits."""
    least, most = widget.min, widget.max
    wanted = f"a {'whole ' if kind == 'INT' else ''}number from {least:g} to {most:g}"
    if isinstance(value, (str, bytes)):
        raise _refused(widget.id, value, wanted)
    try:
        number = float(value)
        if kind == "INT" and math.isfinite(number):
            number = int(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise _refused(widget.id, value, wanted) from error
    if not least <= number <= most:  # NaN, too
        raise _refused(widget.id, value, wanted)
    return number


def _refused(name: str, value: Any, wanted: str) -> SVDQuantError:
    if value is None or isinstance(value, (str, int, float, bytes)):
        text = str(value)  # a text that holds an object would take its time to be spelled out
        shown = text if len(text) <= SHOWN and text.isprintable() else repr(text[:SHOWN]) + "..."
    else:
        shown = f"a {type(value).__name__}"
    return SVDQuantError(f"{name} is {shown}, and takes {wanted}.")
