"""Node: MODEL + rows of (on, LoRA file, strength) -> MODEL and a report."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from comfy_api.latest import io, ui

from ..svdq_core.errors import LoraError
from .checked_inputs import checked
from .host import files
from .host.lora.lora_file import apply_lora_file

MOST_ROWS = 10
NONE = "None"  # what a row without a file holds


class Row(NamedTuple):
    """A row that is switched on and has a file."""

    number: int
    name: str
    strength: float


class SVDQuantLoraStack(io.ComfyNode):
    """Several LoRAs in one node. The page draws each row on one line (web/lora_rows.js)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SVDQuantLoraStack",
            display_name="Apply LoRAs (SVDQuant)",
            category="SVDQuant",
            description="Applies several LoRAs to a model, SVDQuant or not, each with a switch and a strength. "
            "Changing any of them never reloads the model.",
            search_aliases=["Nunchaku FLUX LoRA Stack", "lora stack", "multi lora", "power lora"],
            inputs=[
                io.Model.Input("model", tooltip="An SVDQuant model, or any other that takes the LoRAs."),
                io.Combo.Input(
                    "loras",
                    options=[str(count) for count in range(1, MOST_ROWS + 1)],
                    default="1",
                    optional=True,
                    tooltip="How many rows the page shows. Every row that is on and has a file counts.",
                ),
                *(widget for number in range(1, MOST_ROWS + 1) for widget in cls._row_inputs(number)),
            ],
            outputs=[
                io.Model.Output(),
                io.String.Output(display_name="report", tooltip="Layers matched, and keys of the files without one."),
            ],
        )

    @staticmethod
    def _row_inputs(number: int) -> list[io.Input]:
        """The widgets of a row, under the names that they had while a choice of "loras" brought them along."""
        return [
            io.Boolean.Input(
                f"loras.on_{number}", default=True, optional=True, tooltip="Off: as if the row were not there."
            ),
            io.Combo.Input(
                f"loras.lora_{number}",
                options=[NONE, *files.list_loras()],
                default=NONE,
                optional=True,
                tooltip="A file in models/loras, or None.",
            ),
            io.Float.Input(
                f"loras.strength_{number}",
                default=1.0,
                min=-100.0,
                max=100.0,
                step=0.01,
                optional=True,
                tooltip="How strongly it changes the model; may be negative.",
            ),
        ]

    @classmethod
    def validate_inputs(cls, **inputs) -> bool:
        """Takes the choice of files out of the host's hands: a file that is gone is no fault in a row that is off."""
        return True

    @classmethod
    def fingerprint_inputs(cls, model=None, **inputs) -> str:
        known = set(files.list_loras())
        return "".join(
            (files.fingerprint(files.lora_path(row.name)) if row.name in known else row.name) + str(row.strength)
            for row in active_rows(inputs)
        )

    @classmethod
    @checked
    def execute(cls, model, **inputs) -> io.NodeOutput:
        rows, lines, known = active_rows(inputs), [], set(files.list_loras())
        absent = [row for row in rows if row.name not in known]
        if absent:
            raise LoraError(
                "; ".join(f"row {row.number}: {row.name} is not in models/loras" for row in absent)
                + ". Put the file there, choose another one, or switch the row off."
            )
        for row in rows:
            try:
                model, report = apply_lora_file(model, files.lora_path(row.name), row.strength)
            except LoraError as error:
                raise LoraError(f"row {row.number}: {error}") from error
            lines.append(report.text())
        text = "\n".join(lines) or "no LoRA is switched on"
        return io.NodeOutput(model, text, ui=ui.PreviewText(text))


def active_rows(inputs: Mapping[str, Any]) -> list[Row]:
    """The rows that are switched on and have a file, in order.

    Args:
        inputs: of the node: loras.on_i, loras.lora_i, loras.strength_i; a row that is not there is empty.
    """
    rows = []
    for number in range(1, MOST_ROWS + 1):
        name = inputs.get(f"loras.lora_{number}") or NONE
        if name != NONE and inputs.get(f"loras.on_{number}", True):
            if not isinstance(name, str):  # the host leaves the lists of this node to it
                raise LoraError(f"row {number}: {type(name).__name__} is no name of a file. Choose one from the list.")
            strength = inputs.get(f"loras.strength_{number}")
            rows.append(Row(number, name, 1.0 if strength is None else float(strength)))
    return rows
