"""Which Linears stay in 16 bits: those that the user names, and those that 4 bits hurt most."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..errors import SVDQuantError
from .one_layer import PartReport
from .spec import PRECISIONS

KEEP = "16"  # behind the = of a pattern
EXAMPLES = 3  # names that a message shows


@dataclass(frozen=True)
class Overrides:
    """Exceptions from quantization. None of them changes what becomes of another layer.

    Args:
        keep: patterns of host module names with * and ?, as "double_blocks.0.*" or "*.linear2".
        worst: how many of the layers with the largest errors stay in 16 bits as well.
        error_limit: relative output error above which a layer stays in 16 bits as well; 0: no limit.
        precisions: (pattern, precision) of layers that get another one than the rest; the first that matches counts.
    """

    keep: tuple[str, ...] = ()
    worst: int = 0
    error_limit: float = 0.0
    precisions: tuple[tuple[str, str], ...] = ()

    @staticmethod
    def parse(text: str, worst: int = 0, error_limit: float = 0.0) -> "Overrides":
        """Patterns from a text, separated by commas, spaces or lines; "*.linear2=int8" names another precision.

        Raises:
            SVDQuantError: worst or error_limit is negative, or a precision is not known.
        """
        if worst < 0 or error_limit < 0:
            raise SVDQuantError(f"worst {worst}, error limit {error_limit}: expected 0 (off) or more.")
        keep, precisions = [], []
        for word in dict.fromkeys(text.replace(",", " ").split()):
            pattern, equals, precision = word.partition("=")
            if not equals or precision == KEEP:
                keep.append(pattern)
            elif precision in PRECISIONS:
                precisions.append((pattern, precision))
            else:
                raise SVDQuantError(f"{word!r}: expected {', '.join(PRECISIONS)} or {KEEP} behind the =.")
        return Overrides(tuple(keep), worst, error_limit, tuple(precisions))

    def precision(self, layers: Iterable[str], usual: str) -> str:
        """Of layers that are quantized as one: that of the first pattern that names one of them."""
        names = list(layers)
        return next((p for pattern, p in self.precisions if any(fnmatchcase(n, pattern) for n in names)), usual)

    def check(self, layers: Sequence[str]) -> None:
        """Raise SVDQuantError where a pattern matches none of the Linears that would be quantized."""
        for pattern in (*self.keep, *(pattern for pattern, _ in self.precisions)):
            if not any(fnmatchcase(name, pattern) for name in layers):
                raise SVDQuantError(
                    f"{pattern!r} matches no layer of this model. Layers are called "
                    f"{', '.join(layers[:EXAMPLES])}, ...; * stands for anything."
                )

    def names(self, layer: str) -> bool:
        """Whether the user named this layer."""
        return any(fnmatchcase(layer, pattern) for pattern in self.keep)

    def choose(self, reports: Iterable[PartReport]) -> dict[str, str]:
        """Layer -> why it stays in 16 bits, by what came out. Modulation layers, of which only the weights' error is
        known, never do.

        Args:
            reports: of all quantized parts.
        """
        errors = layer_errors(reports)
        ranked = sorted(errors, key=lambda name: (-errors[name], name))
        chosen = {
            name: f"{name}: stays in 16 bits, its error of {errors[name]:.4f} is above {self.error_limit:g}."
            for name in ranked
            if self.error_limit and errors[name] > self.error_limit
        }
        for place, name in enumerate(ranked[: self.worst], start=1):
            chosen.setdefault(name, f"{name}: stays in 16 bits, its error of {errors[name]:.4f} is number {place}.")
        return chosen


def layer_errors(reports: Iterable[PartReport]) -> dict[str, float]:
    """Layer -> relative output error of its worst part; modulation layers left out."""
    errors: dict[str, float] = {}
    for report in reports:
        if report.scheme != "awq":
            errors[report.layer] = max(errors.get(report.layer, 0.0), report.relative_error)
    return errors
