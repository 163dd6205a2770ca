"""Node: MODEL + rows of (on, LoRA file, strength) -> MODEL and a report."""

from comfy_api.latest import io

from ..svdq_core.errors import LoraError
from .host import files
from .host.lora.lora_file import apply_lora_file

MOST_ROWS = 10


class SVDQuantLoraStack(io.ComfyNode):
    """Several LoRAs in one node; its rows grow with the number chosen at the top."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        rows = [cls._row_inputs(number) for number in range(1, MOST_ROWS + 1)]
        options = [
            io.DynamicCombo.Option(str(count), [widget for row in rows[:count] for widget in row])
            for count in range(1, MOST_ROWS + 1)
        ]
        return io.Schema(
            node_id="SVDQuantLoraStack",
            display_name="Apply LoRAs (SVDQuant)",
            category="SVDQuant",
            description="Applies several LoRAs to a model, SVDQuant or not, each with a switch and a strength. "
            "Changing any of them never reloads the model.",
            search_aliases=["Nunchaku FLUX LoRA Stack", "lora stack", "multi lora", "power lora"],
            inputs=[
                io.Model.Input("model", tooltip="An SVDQuant model, or any other that takes the LoRAs."),
                io.DynamicCombo.Input("loras", options=options, tooltip="How many rows the node has."),
            ],
            outputs=[
                io.Model.Output(),
                io.String.Output(display_name="report", tooltip="Layers matched, and keys of the files without one."),
            ],
        )

    @staticmethod
    def _row_inputs(number: int) -> list[io.Input]:
        return [
            io.Boolean.Input(f"on_{number}", default=True, tooltip="Off: as if the row were not there."),
            io.Combo.Input(f"lora_{number}", options=files.list_loras(), tooltip="A file in models/loras."),
            io.Float.Input(
                f"strength_{number}",
                default=1.0,
                min=-100.0,
                max=100.0,
                step=0.01,
                tooltip="How strongly it changes the model; may be negative.",
            ),
        ]

    @classmethod
    def fingerprint_inputs(cls, model=None, loras: dict | None = None) -> str:
        rows = active_rows(loras or {})
        return "".join(files.fingerprint(files.lora_path(name)) + str(strength) for name, strength in rows)

    @classmethod
    def execute(cls, model, loras: io.DynamicCombo.Type) -> io.NodeOutput:
        lines = []
        for number, (name, strength) in enumerate(active_rows(loras), start=1):
            try:
                model, report = apply_lora_file(model, files.lora_path(name), strength)
            except LoraError as error:
                raise LoraError(f"row {number} of those that are on: {error}") from error
            lines.append(report.text())
        return io.NodeOutput(model, "\n".join(lines) or "no LoRA is switched on")


def active_rows(loras: dict) -> list[tuple[str, float]]:
    """(file, strength) of each row that is switched on.

    Args:
        loras: the node's dynamic input: the number of rows under "loras", and on_i, lora_i, strength_i.

    Raises:
        LoraError: the number is none that the node offers, or a row is missing: the graph is not of this version.
    """
    count = str(loras.get("loras", 0))
    if not (count.isascii() and count.isdecimal() and len(count) < 4 and int(count) <= MOST_ROWS):
        raise LoraError(f"{count[:20]!r} is no number of rows that this node has. Choose one from 1 to {MOST_ROWS}.")
    found = []
    for i in range(1, int(count) + 1):
        row = [loras.get(f"{name}_{i}") for name in ("on", "lora", "strength")]
        if None in row:
            raise LoraError(f"row {i} of {count} is not in the graph. Choose the number of rows again.")
        if row[0]:
            found.append((row[1], row[2]))
    return found
