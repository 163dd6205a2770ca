"""How far a LoRA on a quantized model is from one on ComfyUI's dense model of the same weights, per family.

    COMFYUI_PATH=... python tests/families/lora_margins.py [FAMILY ...]     prints the table of docs/compatibility.md

Every quantized layer of a tiny model gets a LoRA under one of the names that ComfyUI knows; float32, w4a16, relative to
the largest value of the dense model's result. "effect" is how much the LoRA changes that result.
"""

import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ("flux1", "flux2", "chroma", "zimage", "krea2", "qwen_image", "minimax_h3", "sdxl", "ernie", "pixart")
SEEDS = (5, 6)


def main(names: tuple[str, ...]) -> int:
    sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]
    import svdquant_pack  # noqa: F401, I001  (before what imports the pack)
    from in_process_host import make_importable

    make_importable(Path(os.environ["COMFYUI_PATH"]), Path(tempfile.mkdtemp(prefix="svdquant-host-")), "cpu", "")
    import comfy.lora
    import comfy.sd
    import torch
    from families.models import forward
    from families.test_forward import Pair, lora_of_all_dialects
    from sampling import relative_error

    sys.stdout.write("| family | LoRA on 4 bits against LoRA on the dense model | its effect |\n|---|---|---|\n")
    for name in names or FAMILIES:
        with torch.inference_mode():
            pair = Pair(name)
            keys, worst, effect = comfy.lora.model_lora_keys_unet(pair.ours.model, {}), 0.0, 0.0
            for seed in SEEDS:
                file, _ = lora_of_all_dialects(pair, keys, seed)
                patched = [
                    comfy.sd.load_lora_for_models(m, None, dict(file), 0.7, 0)[0] for m in (pair.ours, pair.dense)
                ]
                ours, dense = (forward(name, model) for model in patched)
                worst, effect = (
                    max(worst, relative_error(ours, dense)),
                    max(effect, relative_error(dense, pair.expected)),
                )
        sys.stdout.write(f"| {name} | {worst:.1e} | {effect:.2f} |\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(tuple(sys.argv[1:])))
