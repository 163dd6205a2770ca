"""Node: MODEL + LoRA file + strength -> MODEL and a report."""

from comfy_api.latest import io, ui

from .checked_inputs import checked
from .host import files
from .host.lora.lora_file import apply_lora_file


class SVDQuantLoraLoader(io.ComfyNode):
    """The stock LoRA loader works on SVDQuant models as well; this one also says what matched."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SVDQuantLoraLoader",
            display_name="Apply LoRA (SVDQuant)",
            category="SVDQuant",
            description="Applies a LoRA to a model, SVDQuant or not, and reports which layers matched. A LoRA that "
            "matches nothing is an error.",
            search_aliases=["Nunchaku FLUX LoRA Loader", "lora", "svdq lora"],
            inputs=[
                io.Model.Input("model", tooltip="An SVDQuant model, or any other that takes the LoRA."),
                io.Combo.Input("lora_name", options=files.list_loras(), tooltip="A file in models/loras."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                    tooltip="How strongly it changes the model; may be negative. Changing it never reloads the model.",
                ),
            ],
            outputs=[
                io.Model.Output(),
                io.String.Output(display_name="report", tooltip="Layers matched, and keys of the file without one."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, model=None, lora_name: str = "", strength: float = 1.0) -> str:
        return files.fingerprint(files.lora_path(lora_name)) + str(strength)

    @classmethod
    @checked
    def execute(cls, model, lora_name: str, strength: float) -> io.NodeOutput:
        patched, report = apply_lora_file(model, files.lora_path(lora_name), strength)
        return io.NodeOutput(patched, report.text(), ui=ui.PreviewText(report.text()))
