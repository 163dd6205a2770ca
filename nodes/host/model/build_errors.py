"""The one place where ComfyUI's errors while it makes a model of a file's tensors become sentences with its name."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ....svdq_core.checkpoint.read_errors import DAMAGED, reason
from ....svdq_core.errors import ArchitectureError

# torch's words for a tensor whose shape is not the module's
_MISMATCH = re.compile(r"size mismatch for (\S+): .*?torch\.Size\((\[.*?\])\).*?torch\.Size\((\[.*?\])\)")


@contextmanager
def building(shown: str) -> Iterator[None]:
    """ComfyUI's errors about the sizes in a file become ArchitectureError; those of a device pass.

    Args:
        shown: name of the file, or of the files.
    """
    try:
        yield
    except ArchitectureError as error:
        raise ArchitectureError(f"{shown}: {error}") from error
    except RuntimeError as error:
        found = _MISMATCH.findall(str(error))
        if not found:
            raise
        name, stored, expected = found[0]
        more = f" ({len(found) - 1} more do not fit either)" if len(found) > 1 else ""
        raise ArchitectureError(
            f"{shown}: {name} has shape {stored}, expected {expected} in ComfyUI's model of these sizes{more}. "
            "The file is damaged or of another model."
        ) from error
    except (AssertionError, LookupError, ArithmeticError, ValueError) as error:
        raise ArchitectureError(f"{shown}: ComfyUI cannot make a model of it ({reason(error)}). {DAMAGED}") from error
