"""Dynamic VRAM of the host in this process, as its main.py starts it: a step before torch is imported, one after."""

import os

import comfy_aimdo.control


def before_torch() -> None:
    """Choose torch's allocator and load the library that watches it."""
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "backend:cudaMallocAsync")  # as the host's cuda_malloc.py does
    if not comfy_aimdo.control.init(simple_vram_headroom=None, nvml_pressure=True):
        raise SystemExit("comfy-aimdo was not loaded; dynamic VRAM needs an NVIDIA GPU on Linux or Windows.")


def after_torch() -> None:
    """Take every GPU and make the host build models of this kind; before anything loads one."""
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher

    devices = comfy.model_management.get_all_torch_devices()
    if not comfy_aimdo.control.init_devices((device.index, 0) for device in devices):
        raise SystemExit("comfy-aimdo did not start; dynamic VRAM needs an NVIDIA GPU.")
    comfy_aimdo.control.set_log_warning()
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True
