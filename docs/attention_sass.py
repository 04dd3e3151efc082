"""The main loop of a compiled kernel, read from its machine code: what one block of scores costs.

`attention_table.py` prints these figures. NVIDIA's disassembler, which Triton includes, lists the
instructions (SASS). The main loop, over complete blocks of keys, is the shortest that contains both matrix
products and exponentials.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton

PRODUCTS = ("HGMMA", "UTCHMMA", "HMMA")  # of 16-bit types: Hopper, data-centre Blackwell, all others
MULTIPROCESSOR_REGISTERS = 65536
EXPONENTIALS_A_CLOCK = 16  # of one multiprocessor (CUDA C++ programming guide, throughput of instructions)
WARPS_ISSUED_A_CLOCK = 4


@dataclass(frozen=True)
class Code:
    """A compiled kernel: registers a thread, bytes of its stack, and the instructions of its main loop."""

    registers: int
    stack: int
    loop: Counter[str]  # by name without suffixes; MUFU with the function's name

    @property
    def instructions(self) -> int:
        return self.loop.total()

    @property
    def products(self) -> int:
        return sum(self.loop[name] for name in PRODUCTS)

    @property
    def exponentials(self) -> int:
        return self.loop["MUFU.EX2"]

    @property
    def waits(self) -> int:
        """Waits for matrix products in flight."""
        return self.loop["WARPGROUP.DEPBAR"]


def read(cubin: bytes) -> Code:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = output(triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path))
        listing = output(triton.knobs.nvidia.cuobjdump.path, "--dump-sass", str(path))
    figures = dict(re.findall(r"(REG|STACK):(\d+)", usage))
    return Code(int(figures["REG"]), int(figures["STACK"]), main_loop(listing))


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main_loop(listing: str) -> Counter[str]:
    """The instructions from a backward branch's target to the branch, of the shortest loop that multiplies.

    The loop over masked blocks is longer. Waits stand after the kernel's exit and branch back from there.
    """
    lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);", listing)
    code = [(int(address, 16), short(name), rest) for address, name, rest in lines]
    end = max((address for address, name, _ in code if name == "EXIT"), default=0)
    loops = []
    for address, name, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest) if name == "BRA" else None
        if target and int(target[1], 16) < address < end:
            names = Counter(n for a, n, _ in code if int(target[1], 16) <= a <= address)
            if names["MUFU.EX2"] and any(names[product] for product in PRODUCTS):
                loops.append(names)
    return min(loops, key=Counter.total, default=Counter())


def short(name: str) -> str:
    """A name without its suffixes, apart from those that tell instructions apart."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] in ("MUFU", "WARPGROUP") else parts[0]


def programs(code: Code, warps: int, shared: int, capacity: int) -> int:
    """The programs that a multiprocessor holds, by registers (in units of 8 a thread) and shared memory."""
    by_registers = MULTIPROCESSOR_REGISTERS // (-(-code.registers // 8) * 8 * 32 * warps)
    return min(by_registers, capacity // (shared + 1024), 64 // warps)  # 1 KiB is the system's own
