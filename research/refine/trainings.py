"""What is compared: formats, and the ways to refine what `best` made of them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A number format and the compute mode that it is drawn in."""

    precision: str
    activations: str

    @property
    def name(self) -> str:
        return f"{self.precision}_{self.activations}"


@dataclass(frozen=True)
class Training:
    """One way to refine.

    Args:
        name: for options and tables.
        whole: the whole model towards its velocity; otherwise one block after the other towards its outputs.
        steps: of Adam, in each block or in all.
        rate: largest learning rate.
        bits: of the activations while training; None: 16.
        aim: of blocks: "same" (what the full-precision block makes of the same input) or "dense" (what it makes of the
            full-precision model's own input).
        inputs: "teacher" (states on the full-precision model's way), "own" (half of them on the quantized model's),
            or "noise" (as the quantizer draws inputs where nothing was recorded).
        weigh: how much a state counts: "even", or "step": by the square of the sampler's step from there.
        after: the recipe that it goes on from; "": from `best`.
    """

    name: str
    whole: bool = False
    steps: int = 1000
    rate: float = 3e-4
    bits: int | None = None
    aim: str = "dense"
    inputs: str = "teacher"
    weigh: str = "even"
    after: str = ""


TARGETS = (Target("int4", "w4a8"), Target("nvfp4", "w4a4"), Target("int4", "w4a4"))
TRAININGS = (
    Training("blocks"),
    Training("blocks_same", aim="same"),
    Training("blocks_8bit", bits=8),
    Training("blocks_noise", inputs="noise"),
    Training("blocks_fast_rate", rate=1e-3),
    Training("model", whole=True, steps=2000),
    Training("model_8bit", whole=True, steps=2000, bits=8),
    Training("model_step", whole=True, steps=2000, weigh="step"),
    Training("model_own", whole=True, steps=2000, inputs="own"),
    Training("model_fast_rate", whole=True, steps=2000, rate=1e-3),
    Training("model_noise", whole=True, steps=2000, inputs="noise"),
    Training("model_after_blocks", whole=True, steps=2000, after="blocks"),
)
