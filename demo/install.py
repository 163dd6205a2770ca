"""Puts the demo's small models and nodes into a ComfyUI, where workflows/demo/ui uses them.

python demo/install.py COMFYUI    copies 26 MB of models and three nodes into your own; restart it afterwards

Standard library only.
"""

import argparse
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODELS = HERE / "models"

FLUX = "demo_flux_bf16.safetensors"
ENCODER = "taef1_encoder.safetensors"
DECODER = "taef1_decoder.safetensors"
READER = "scene_reader.safetensors"  # judges pictures; ComfyUI never sees it
LORA = "striped_lora_r16.safetensors"
MODEL_FOLDERS = {
    FLUX: "diffusion_models",
    LORA: "loras",
    ENCODER: "vae_approx",
    DECODER: "vae_approx",
}
NODE_PACK = "svdquant_demo"
NODE_IDS = ("DemoSceneConditioning", "DemoSeededConditioning", "DemoNaiveLoader")


def install_models(base: Path) -> None:
    """Copy the demo's models into BASE/models; a file that is there with the same size and time stays."""
    for name, folder in MODEL_FOLDERS.items():
        source, target = MODELS / name, base / "models" / folder / name
        if not _is_copy(source, target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def install_nodes(base: Path) -> None:
    """Copy the demo's node pack, with scenes.py inside, into BASE/custom_nodes."""
    target = base / "custom_nodes" / NODE_PACK
    target.mkdir(parents=True, exist_ok=True)
    for source in (HERE / "custom_nodes" / NODE_PACK).glob("*.py"):
        shutil.copyfile(source, target / source.name)
    shutil.copyfile(HERE / "scenes.py", target / "scenes.py")


def _is_copy(source: Path, target: Path) -> bool:
    if not target.exists():
        return False
    here, there = source.stat(), target.stat()
    return here.st_size == there.st_size and int(here.st_mtime) == int(there.st_mtime)


def main(argv: list[str]) -> int:
    """Put everything into a ComfyUI that is named; exit code 2 if the folder is none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path, metavar="COMFYUI", help="the folder that holds main.py")
    base = parser.parse_args(argv).comfyui
    if not (base / "main.py").is_file() or not (base / "custom_nodes").is_dir():
        print(f"{base} is not a ComfyUI folder: it has no main.py and custom_nodes.")
        return 2
    install_models(base)
    install_nodes(base)
    for name, folder in MODEL_FOLDERS.items():
        print(f"{base / 'models' / folder / name}")
    print(
        f"{base / 'custom_nodes' / NODE_PACK}\n"
        "Restart ComfyUI, then drag workflows/demo/ui/flux_quantize.json onto its page."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
