"""The error of the text of tiny text encoders, by method and group.

COMFYUI_PATH=... python tests/encoder_errors.py [ENCODER ...]     prints the table of docs/quantizing.md
"""

import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENCODERS = ("T5-XXL", "Qwen3 0.6B", "Gemma 2 2B", "Qwen2.5-VL 7B")


def main(titles: tuple[str, ...]) -> int:
    sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]
    import svdquant_pack  # noqa: F401, I001  (before what imports the pack)
    from in_process_host import InProcessHost, make_importable

    folder = Path(tempfile.mkdtemp(prefix="svdquant-host-"))
    make_importable(Path(os.environ["COMFYUI_PATH"]), folder, "cpu", "")
    import encoder_models
    import torch
    from safetensors.torch import save_file

    from svdquant_pack.nodes.host.quantize.encoder_run import quantize_text_encoder
    from svdquant_pack.svdq_core.quantize.prompts import RECORDED

    InProcessHost(folder)
    columns = [(prompts, group) for prompts in (None, RECORDED) for group in (64, 128)]
    words = [f"`{'fast' if prompts is None else 'best'}`, {group}" for prompts, group in columns]
    sys.stdout.write(f"| tiny encoder, random weights, eight prompts | {' | '.join(words)} |\n|---|{'---|' * 4}\n")
    for title in titles or ENCODERS:
        encoder, errors = encoder_models.ENCODERS[title], []
        with encoder_models.tiny(encoder), torch.inference_mode():
            save_file(encoder_models.draw_file(encoder), folder / "source.safetensors")
            for prompts, group in columns:
                run = quantize_text_encoder(
                    folder / "source.safetensors",
                    folder / "quantized.safetensors",
                    group=group,
                    prompts=prompts,
                    compare=True,
                )
                errors.append(sum(run.errors.values()) / len(run.errors))
        sys.stdout.write(f"| {title}, {encoder.layers} layers | {' | '.join(f'{e:.3f}' for e in errors)} |\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tuple(sys.argv[1:])))
