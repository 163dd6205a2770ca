"""A small PTX interpreter in numpy: runs compiled kernels where there is no GPU.

One block at a time, all its threads in lock step; only the instructions that the INT4 kernel compiles to, and it
stops at any other. Copies to shared memory land either at once or as late as wait_group allows, so that a wrong stage
or a missing wait shows in one of the two modes. Threads in lock step cannot show a missing barrier.
"""

import re

import numpy as np
import torch
from ptx_mma import multiply

U16, U32, U64, I32, I64, F32 = np.uint16, np.uint32, np.uint64, np.int32, np.int64, np.float32
TYPES = {"b16": U16, "u16": U16, "b32": U32, "u32": U32, "s32": I32, "b64": U64, "u64": U64, "s64": I64, "f32": F32}
COMPARISONS = {"gt": np.greater, "lt": np.less, "eq": np.equal, "ne": np.not_equal}
COMPARISONS |= {"ge": np.greater_equal, "le": np.less_equal}
ARITHMETIC = {
    "add": np.add,
    "sub": np.subtract,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "min": np.minimum,
    "max": np.maximum,
    "div": lambda x, y: np.trunc(x / y).astype(x.dtype),
    "rem": np.fmod,
    "shl": lambda x, y: x << y.astype(x.dtype),
    "shr": lambda x, y: x >> y.astype(x.dtype),
    "mul": np.multiply,
}
DIRECTIVES = (".loc", ".reg", ".file", ".section", ".b8", ".b32", ".b64", ".pragma")


def _halves(values: np.ndarray, bfloat16: bool) -> np.ndarray:
    """float32 -> the bits of 16-bit floats, nearest even."""
    if bfloat16:
        return torch.from_numpy(values.copy()).bfloat16().view(torch.int16).numpy().view(U16)
    return values.astype(np.float16).view(U16)


class PtxMachine:
    """The first kernel of a PTX module.

    Args:
        ptx: the module.
        late_copies: asynchronous copies land when a wait needs them; otherwise at once.
    """

    def __init__(self, ptx: str, late_copies: bool):
        self.late_copies = late_copies
        self.threads = int(re.search(r"\.reqntid (\d+)", ptx).group(1))
        self.program, self.labels = [], {}
        asm_block = 0
        for line in re.sub(r"//[^\n]*", "", ptx[ptx.index("\n{") + 2 :]).splitlines():
            text = line.strip()
            label = re.match(r"(\$L__\w+):$", text)
            if label:
                self.labels[label.group(1)] = len(self.program)
            elif text == "{":
                asm_block += 1  # inline assembly: its own registers
            elif text.endswith(";") and not text.startswith(DIRECTIVES):
                self.program.append(self._parse(text[:-1].strip(), asm_block))
            elif text.startswith(".") and not text.startswith(DIRECTIVES):
                break

    @staticmethod
    def _parse(text: str, asm_block: int):
        """(predicate, its value to skip on), opcode parts, operands: names, lists of names or (name, offset)."""
        predicate = None
        guarded = re.match(r"@(!?)(%p\d+)\s+(.*)", text)
        if guarded:
            predicate, text = (guarded.group(2), bool(guarded.group(1))), guarded.group(3)
        opcode, _, rest = text.replace("\t", " ").partition(" ")

        def local(name: str) -> str:
            return f"block{asm_block}.{name}" if re.fullmatch(r"[cd]\d?", name) else name

        operands = []
        for operand in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", rest):
            if operand[0] == "{":
                operands.append([local(name.strip()) for name in operand[1:-1].split(",")])
            elif operand[0] == "[":
                name, _, offset = operand[1:-1].replace(" ", "").partition("+")
                operands.append((name, int(offset or 0)))
            else:
                operands.append(local(operand))
        return predicate, opcode.split("."), operands

    def read(self, operand: str, dtype=U32) -> np.ndarray:
        """The value of a register, a constant or a special register in every thread."""
        if operand in self.registers:
            value = self.registers[operand]
            same_size = value.dtype.itemsize == np.dtype(dtype).itemsize
            return value.view(dtype) if same_size else value.astype(dtype)
        if operand == "%tid.x":
            return np.arange(self.threads).astype(dtype)
        if operand == "%ctaid.x":
            return np.full(self.threads, self.block).astype(dtype)
        if operand == "global_smem":
            return np.zeros(self.threads, dtype)
        if operand.startswith("0f"):
            return np.full(self.threads, int(operand[2:], 16), U32).view(dtype)
        return np.full(self.threads, int(operand, 0), I64).astype(dtype)  # ValueError: a register nobody wrote

    def write(self, name: str, value: np.ndarray, dtype=None) -> None:
        """Set a register in the threads that the predicate lets through."""
        value = np.asarray(value)
        value = value if dtype is None or value.dtype == dtype else value.astype(dtype)
        if self.mask is not None and name in self.registers:
            value = np.where(self.mask, value, self.registers[name].view(value.dtype))
        self.registers[name] = value

    def run(self, memory: np.ndarray, parameters: list[int], blocks: int, shared_bytes: int) -> None:
        """Run `blocks` blocks over memory (bytes); addresses are offsets in it."""
        self.memory, self.parameters = memory, parameters
        for block in range(blocks):
            self.block = block
            self.shared = np.full(shared_bytes, 0xFE, np.uint8)
            self.registers, self.pending, self.groups = {}, [], []
            self._run_block()

    def _run_block(self) -> None:
        counter = 0
        while True:
            predicate, opcode, operands = self.program[counter]
            counter += 1
            self.mask = None if predicate is None else self.registers[predicate[0]] ^ predicate[1]
            if self.mask is not None and not self.mask.any():
                continue
            if opcode[0] == "bra":
                assert self.mask is None or self.mask.all(), "threads take different branches"
                counter = self.labels[operands[0]]
            elif opcode[0] == "ret":
                return
            else:
                getattr(self, "_" + self._family(opcode))(opcode, operands)

    @staticmethod
    def _family(opcode: list[str]) -> str:
        if opcode[0] in ARITHMETIC:
            return "multiply" if opcode[0] == "mul" and opcode[1] in ("lo", "wide") else "arithmetic"
        names = {"mad": "multiply", "fma": "fma", "bar": "nothing", "ld": "load", "st": "store", "cp": "copy"}
        return names.get(opcode[0], opcode[0])

    def _nothing(self, opcode, operands):
        pass

    def _mov(self, opcode, operands):
        target, source = operands
        if opcode[1] == "pred":
            known = source in self.registers
            self.registers[target] = self.registers[source] if known else np.full(self.threads, int(source) != 0)
        elif isinstance(target, list):
            wide, narrow, bits = (U64, U32, 32) if opcode[1] == "b64" else (U32, U16, 16)
            value = self.read(source, wide)
            self.write(target[0], value & wide((1 << bits) - 1), narrow)
            self.write(target[1], value >> wide(bits), narrow)
        elif isinstance(source, list):
            wide, narrow, bits = (U64, U32, 32) if opcode[1] == "b64" else (U32, U16, 16)
            low, high = (self.read(name, narrow).astype(wide) for name in source)
            self.write(target, low | (high << wide(bits)))
        else:
            self.write(target, self.read(source, TYPES[opcode[1]]))

    def _arithmetic(self, opcode, operands):
        target, *sources = operands
        if opcode[1] == "pred":
            self.registers[target] = ARITHMETIC[opcode[0]](*(self.registers[name] for name in sources))
            return
        dtype = TYPES[opcode[-1]]
        with np.errstate(all="ignore"):
            second = U32 if opcode[0] in ("shl", "shr") else dtype
            self.write(target, ARITHMETIC[opcode[0]](self.read(sources[0], dtype), self.read(sources[1], second)))

    def _multiply(self, opcode, operands):
        target, *sources = operands
        dtype = TYPES[opcode[2]]
        product = self.read(sources[0], dtype).astype(I64) * self.read(sources[1], dtype).astype(I64)
        if opcode[1] == "wide":
            added = self.read(sources[2], I64) if opcode[0] == "mad" else 0
            self.write(target, (product + added).view(U64))
        else:
            added = self.read(sources[2], dtype).astype(I64) if opcode[0] == "mad" else 0
            self.write(target, ((product + added) & 0xFFFFFFFF).astype(U32))

    def _fma(self, opcode, operands):
        assert opcode == ["fma", "rn", "f32"], opcode
        x, y, z = (self.read(name, F32).astype(np.float64) for name in operands[1:])
        self.write(operands[0], (x * y + z).astype(F32))

    def _bfe(self, opcode, operands):
        start, count = int(operands[2]), int(operands[3])
        field = (self.read(operands[1], U32).astype(I64) >> start) & ((1 << count) - 1)
        if opcode[1] == "s32":
            field = np.where(field >> (count - 1), field - (1 << count), field)
        self.write(operands[0], (field & 0xFFFFFFFF).astype(U32))

    def _setp(self, opcode, operands):
        dtype = TYPES[opcode[2]]
        self.registers[operands[0]] = COMPARISONS[opcode[1]](
            self.read(operands[1], dtype), self.read(operands[2], dtype)
        )

    def _selp(self, opcode, operands):
        target, yes, no, predicate = operands
        self.write(target, np.where(self.registers[predicate], self.read(yes), self.read(no)))

    def _cvt(self, opcode, operands):
        name = ".".join(opcode)
        if name in ("cvt.rn.f16x2.f32", "cvt.rn.bf16x2.f32"):
            high, low = (_halves(self.read(source, F32), "bf16x2" in opcode).astype(U32) for source in operands[1:])
            self.write(operands[0], (high << U32(16)) | low)
        elif name in ("cvt.rn.f16.f32", "cvt.rn.bf16.f32"):
            self.write(operands[0], _halves(self.read(operands[1], F32), "bf16" in opcode))
        elif name == "cvt.f32.f16":
            self.write(operands[0], self.read(operands[1], U16).view(np.float16).astype(F32))
        elif name == "cvt.f32.bf16":
            self.write(operands[0], (self.read(operands[1], U16).astype(U32) << U32(16)).view(F32))
        elif name in ("cvt.u32.u64", "cvt.u64.u32", "cvt.s64.s32"):
            self.write(operands[0], self.read(operands[1], TYPES[opcode[2]]), TYPES[opcode[1]])
        else:
            raise NotImplementedError(name)

    def _load(self, opcode, operands):
        if opcode[1] == "param":
            index, dtype = int(re.search(r"param_(\d+)", operands[1][0]).group(1)), TYPES[opcode[-1]]
            self.write(operands[0], np.full(self.threads, self.parameters[index], U64).astype(dtype))
            return
        self._load_elements(self._space(opcode), TYPES[opcode[-1]], operands)

    def _space(self, opcode) -> np.ndarray:
        """The memory that a load or store is to; Triton 3.8 writes shared::cta for shared."""
        return {"shared": self.shared, "shared::cta": self.shared, "global": self.memory}[opcode[1]]

    def _load_elements(self, memory, dtype, operands):
        name, offset = operands[1]
        targets = operands[0] if isinstance(operands[0], list) else [operands[0]]
        address = self.read(name, U64).astype(I64) + offset
        active = np.ones(self.threads, bool) if self.mask is None else self.mask
        size = np.dtype(dtype).itemsize
        assert (address[active] % (size * len(targets)) == 0).all(), "a load is not aligned"
        index = np.where(active, address // size, 0)
        for i, target in enumerate(targets):
            self.write(target, memory.view(dtype)[index + i])

    def _store(self, opcode, operands):
        memory = self._space(opcode)
        dtype, (name, offset) = TYPES[opcode[-1]], operands[0]
        sources = operands[1] if isinstance(operands[1], list) else [operands[1]]
        active = np.ones(self.threads, bool) if self.mask is None else self.mask
        address = (self.read(name, U64).astype(I64) + offset)[active]
        size = np.dtype(dtype).itemsize
        assert (address % (size * len(sources)) == 0).all(), "a store is not aligned"
        for i, source in enumerate(sources):
            memory.view(dtype)[address // size + i] = self.read(source, dtype)[active]

    def _copy(self, opcode, operands):
        if opcode[2] == "commit_group":
            self.groups.append(self.pending)
            self.pending = []
        elif opcode[2] == "wait_group":
            while len(self.groups) > int(operands[0]):
                waited_for = self.groups.pop(0)
                if self.late_copies:
                    self._land(waited_for)
        else:
            assert int(operands[2], 0) == 16, "copies are of 16 bytes"
            active = np.ones(self.threads, bool) if self.mask is None else self.mask
            sizes = self.read(operands[3])[active] if len(operands) > 3 else np.full(active.sum(), 16)
            target, source = (self.read(name, U64).astype(I64)[active] + offset for name, offset in operands[:2])
            copies = list(zip(target, source, sizes, strict=True))
            self.pending += copies
            if not self.late_copies:
                self._land(copies)

    def _land(self, copies):
        for target, source, size in copies:
            assert target % 16 == 0 and source % 16 == 0 and size in (0, 16), "a copy is not aligned"
            assert 0 <= target <= self.shared.size - 16, "a copy leaves shared memory"
            assert size == 0 or 0 <= source <= self.memory.size - 16, "a copy reads outside of the tensors"
            self.shared[target : target + 16] = self.memory[source : source + 16] if size else 0

    def _ldmatrix(self, opcode, operands):
        targets = operands[0] if isinstance(operands[0], list) else [operands[0]]
        name, offset = operands[1]
        address = (self.read(name, U64).astype(I64) + offset).reshape(-1, 32)
        for i, target in enumerate(targets):
            rows = self.shared.view(U16)[address[:, 8 * i : 8 * i + 8, None] // 2 + np.arange(8)]
            rows = rows.transpose(0, 2, 1) if "trans" in opcode else rows
            pairs = np.ascontiguousarray(rows).reshape(len(rows), 32, 2).astype(U32)
            self.write(target, (pairs[..., 0] | (pairs[..., 1] << U32(16))).reshape(-1))

    def _mma(self, opcode, operands):
        targets, *sources = operands
        registers = [[self.read(name).reshape(-1, 32) for name in names] for names in sources]
        for target, value in zip(targets, multiply(opcode, *registers), strict=True):
            self.write(target, value.reshape(-1))
