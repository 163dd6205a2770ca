"""Where kernels run in these tests: on the GPU if there is one, else in Triton's interpreter on the CPU.

The interpreter computes in numpy what the hardware would, element by element, so shapes stay small there and types are
float16 and integers: it has no bfloat16 products and cuts bfloat16 off instead of rounding it.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import compare
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for problems.py and the PTX interpreter beside the tests

NO_TRITON = "needs Triton: pip install triton"
ON_GPU = torch.cuda.is_available()

_BOTH_16_BIT = "both sides are rounded to 16 bits, 2^-{} each, and torch lets cuBLAS add parts of k in 16 bits"
_BRANCH = "sums in another order, rounded once; torch lets cuBLAS add parts of k in 16 bits"
_LORA = "cuBLAS sums x_down of few tokens; a value of it that rounds otherwise moves a whole row"
_SUMS = "the limit of one sum, three times, as independent errors add up"
_GELU = "the hardware's tanh is off by up to 2^-11"
# Measured on an H200 with K from 1152 to 12288, and in the interpreter with K = 192.
compare.TOLERANCES.update(
    {
        ("16-bit product", torch.bfloat16): (1e-2, _BOTH_16_BIT.format(9)),
        ("16-bit product", torch.float16): (2.5e-3, _BOTH_16_BIT.format(12)),
        ("x_down", torch.bfloat16): (3e-3, _BRANCH),
        ("x_down", torch.float16): (6e-4, _BRANCH),
        ("x_down behind GELU", torch.bfloat16): (3e-3, _GELU),
        ("x_down behind GELU", torch.float16): (6e-4, _GELU),
        ("codes behind GELU", torch.bfloat16): (2e-3, _GELU + ", which moves some codes by one"),
        ("codes behind GELU", torch.float16): (2e-3, _GELU + ", which moves some codes by one"),
        ("gemm_w4a8 and LoRA", torch.bfloat16): (1e-3, _LORA),
        ("gemm_w4a8 and LoRA", torch.float16): (2e-4, _LORA),
        ("gemm_w4a8 in three sums", torch.bfloat16): (8.7e-4, _SUMS),
        ("gemm_w4a8 in three sums", torch.float16): (1.7e-4, _SUMS),
    }
)
# Not measured: an error of 2^-11 of the tanh is 2^-12 of a positive result, which now and then crosses a rounding
# boundary.
compare.TOLERANCES.update(
    {
        ("gemm_w4a8 behind GELU", torch.bfloat16): (3e-3, _GELU),
        ("gemm_w4a8 behind GELU", torch.float16): (6e-4, _GELU),
    }
)


def pytest_ignore_collect(collection_path, config):
    """Without Triton the kernel files cannot be imported; test_reference and the like still run."""
    needs_triton = collection_path.name.startswith(("test_quantize_", "test_unpack_", "test_gem", "test_cross_"))
    return True if needs_triton and find_spec("triton") is None else None


def pytest_terminal_summary(terminalreporter):
    if find_spec("triton") is None:
        terminalreporter.write_line(f"kernel tests skipped: {NO_TRITON}")


def _repair_interpreter() -> None:
    """Two things that the interpreter of Triton 3.6 gets wrong."""
    import numpy as np
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def patch_tensor_for_numpy_2_4(tensor, scope):
        # numpy 2.4 refuses to turn an array of one element into an int
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def fused_multiply_add(self, x, y, z):
        # one rounding as in hardware; the kernels' exactness rests on it
        value = x.data.astype(np.float64) * y.data + z.data
        return interpreter.TensorHandle(value.astype(z.data.dtype), z.dtype.scalar)

    interpreter._patch_lang_tensor = patch_tensor_for_numpy_2_4
    interpreter.InterpreterBuilder.create_fma = fused_multiply_add


if not ON_GPU and find_spec("triton"):
    _repair_interpreter()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run here."""
    return torch.device("cuda", 0) if ON_GPU else torch.device("cpu")


@pytest.fixture(
    params=[torch.float16, torch.bfloat16] if ON_GPU else [torch.float16], ids=["fp16", "bf16"][: 1 + ON_GPU]
)
def dtype(request) -> torch.dtype:
    """float16, and bfloat16 where the kernels run on a GPU."""
    return request.param


@pytest.fixture
def recordings_on_the_cpu(monkeypatch):
    """Records calls on the CPU as on a GPU; launches have to play along."""
    from svdquant_pack.kernels.launching import replay

    monkeypatch.setattr(replay, "records_on", lambda device: True)
    monkeypatch.setattr(replay, "current_stream", lambda index: 7)
    monkeypatch.setattr(replay, "_refused", [])
    replay._thread.known.clear()
    yield
    replay._thread.known.clear()
