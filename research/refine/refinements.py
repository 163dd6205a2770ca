"""What is compared: formats, and the ways to refine what `best` made of them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RefinedFormat:
    """A number format and the compute mode that it is drawn in."""

    precision: str
    activations: str

    @property
    def name(self) -> str:
        return f"{self.precision}_{self.activations}"


@dataclass(frozen=True)
class Refinement:
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
    aim: str = "same"
    inputs: str = "teacher"
    weigh: str = "even"
    after: str = ""


TARGETS = (RefinedFormat("int4", "w4a8"), RefinedFormat("nvfp4", "w4a4"), RefinedFormat("int4", "w4a4"))
REFINEMENTS = (
    Refinement("blocks"),
    Refinement("blocks_dense", aim="dense"),
    Refinement("blocks_8bit", bits=8),
    Refinement("blocks_noise", inputs="noise"),
    Refinement("blocks_fast_rate", rate=1e-3),
    Refinement("model", whole=True, steps=2000),
    Refinement("model_8bit", whole=True, steps=2000, bits=8),
    Refinement("model_step", whole=True, steps=2000, weigh="step"),
    Refinement("model_own", whole=True, steps=2000, inputs="own"),
    Refinement("model_fast_rate", whole=True, steps=2000, rate=1e-3),
    Refinement("model_noise", whole=True, steps=2000, inputs="noise"),
    Refinement("model_after_blocks", whole=True, steps=2000, after="blocks"),
)
