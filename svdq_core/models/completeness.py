"""What a family's description lacks, in words: a half-registered family is found by a test, not by a user."""

from collections.abc import Iterator

from .architecture import Architecture
from .layer_maps import BlockMap, LinearMap


def missing_parts(family: Architecture) -> list[str]:
    """One sentence for each part of a description that is missing or contradicts another; [] where it is complete."""
    return [f"{family.title} ({family.name}): {text}" for text in _missing(family)]


def _missing(family: Architecture) -> Iterator[str]:
    if not family.source_marks:
        yield "no source_marks: files with nunchaku's names are not recognised"
    if not family.host_marks:
        yield "no host_marks: files with ComfyUI's names are not recognised"
    if not any(block.linears for block in family.blocks):
        yield "no Linears in any block: nothing can be read or quantized"
    if family.metadata is None:
        yield "no metadata: no nunchaku file can be written"
    if family.lora is None:
        yield "no lora: names of LoRAs are not described"
    elif family.lora.base_rank:
        several = [m.host for b in family.blocks for m in b.linears if m.stack == "rows" and len(m.sources) > 1]
        for host in several:
            if host not in family.lora.parts:
                yield f"no lora.parts for {host}, which has several sources: nunchaku's LoRAs cannot be read"
    if family.lora is not None and not family.lora.marks:
        yield "no lora.marks: a LoRA of it in another model is not named"
    if not family.published:
        yield "no published: no file can be recommended and no size computed"
    hosts = [block.host for block in family.blocks]
    if len(set(hosts)) < len(hosts):
        yield "two kinds of blocks with one name in ComfyUI's model"
    for block in family.blocks:
        for text in _missing_in_block(block):
            yield f"{block.host}: {text}"
        for model in family.published:
            if block.host not in model.counts:
                yield f"{model.name} does not say how many {block.host} it has"
    for host in family.swapped_halves | family.without_bias:
        if host not in family.modules:
            yield f"{host} has a property and is no module of the family"


def _missing_in_block(block: BlockMap) -> Iterator[str]:
    names = [linear.host for linear in block.linears]
    if len(set(names)) < len(names):
        yield "a Linear is described twice"
    for linear in block.linears:
        yield from _missing_in_linear(block, linear)
    for host in block.modules.keys() - set(names):
        yield f"modules for {host}, which is no Linear of the block"
    if block.native:
        for source in (s for linear in block.linears for s in linear.sources):
            if source not in block.native:
                yield f"{source} has no name in deepcompressor's own output"
    known = {source for linear in block.linears for source in linear.sources}
    known |= {source for host in block.plain for source in block.plain_map(host).sources}
    for older in block.newer.keys() - known:
        yield f"a newer name for {older}, which is no layer of the block"


def _missing_in_linear(block: BlockMap, linear: LinearMap) -> Iterator[str]:
    if linear.stack not in ("rows", "columns"):
        yield f"{linear.host}: stack is {linear.stack!r}, expected rows or columns"
    if len(linear.sources) > 1 and linear.split is None:
        yield f"{linear.host} has several sources and no rule how they split it"
    if any(index >= len(linear.sources) for index in linear.unsigned):
        yield f"{linear.host}: unsigned names a source that it does not have"
    if linear.piece is None:
        return
    siblings = block.siblings(linear)
    if linear.split is None or len(linear.sources) != 1 or linear.swapped:
        yield f"{linear.host} is a piece: it needs one source, a split, and no swap"
    elif [sibling.piece for sibling in siblings] != list(range(len(siblings))):
        yield f"{linear.sources[0]}: its pieces are {[sibling.piece for sibling in siblings]}"
    elif len(linear.split(128 * len(siblings) * 4, 128)) != len(siblings):
        yield f"{linear.sources[0]}: its split does not give {len(siblings)} pieces"
