"""What is asked of the machine: with time limits, and never raising."""

import subprocess
import types

import pytest
import torch

from svdquant_pack.svdq_core import gpu_machine as machine
from svdquant_pack.svdq_core.gpu_machine import describe_gpu, state_folder


def test_the_driver_is_asked_with_a_time_limit(monkeypatch):
    def stuck(*_, **options):
        raise subprocess.TimeoutExpired("nvidia-smi", options["timeout"])

    monkeypatch.setattr(machine.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(machine.subprocess, "run", stuck)
    assert machine.nvidia_driver() == ""


@pytest.mark.parametrize(("system", "variable"), [("Linux", "XDG_CACHE_HOME"), ("Windows", "LOCALAPPDATA")])
def test_state_lies_in_the_users_folder(system, variable, monkeypatch, tmp_path):
    monkeypatch.setattr(machine.platform, "system", lambda: system)
    monkeypatch.setattr(machine.sys, "platform", system.lower())
    monkeypatch.setenv(variable, str(tmp_path))
    assert state_folder() == tmp_path / "comfyui-svdquant"
    monkeypatch.delenv(variable)
    assert state_folder().name == "comfyui-svdquant"


def test_a_gpu_is_described_without_its_user(monkeypatch):
    properties = types.SimpleNamespace(name="Some GPU", gcnArchName="")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 9))
    monkeypatch.setattr(machine, "nvidia_driver", lambda: "580.65")
    describe_gpu.cache_clear()
    found = describe_gpu(torch.device("cuda", 0))
    describe_gpu.cache_clear()
    assert (found["gpu"], found["chip"], found["driver"]) == ("Some GPU", "sm_89", "580.65")
    assert set(found) == {"gpu", "chip", "driver", "system", "torch", "triton", "comfy-kitchen", "pack"}
    assert found["torch"] == torch.__version__ and found["pack"]
