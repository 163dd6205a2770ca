"""Puts the demo's models and nodes where the host that the demo starts will look for them."""

import shutil
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
