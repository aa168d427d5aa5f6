"""Compile the Triton kernels for GPUs that need not be here and tell what they take; run by tests/test_fused.py.

    python tests/compile_kernels.py

Prints a line a kernel; fails where one does not compile or where registers spill into memory.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ARCHITECTURES, SIZES = (80, 90), (251, 1021)


def main() -> int:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compile_source

    from thermoclaw.measure import fused, kernels, pieces

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    spilled = False
    for size in SIZES:
        lanes = pieces.lanes(size)
        work: list[tuple[Any, str, dict[str, Any], int]] = [
            (
                kernels.sketch_pieces,
                "*i64 *i64 *i32 *u8 *fp32 *fp64",
                {"SIZE": size, "ROWS": pieces.ROWS_AT_ONCE, "LANES": lanes, "STRIDED": strided},
                max(lanes // 32, 1),
            )
            for strided in (False, True)
        ]
        work += [
            (
                kernels.add_up,
                "*fp32 *fp64 *i32 *fp32 *fp32 *fp64 i32",
                {"SIZE": size, "ROWS": fused._REDUCE_ROWS, "LANES": fused._REDUCE_LANES},
                4,
            ),
            (
                kernels.make_row,
                "*fp32 *fp64 *fp32 *i64 *fp32 *fp64",
                {"SIZE": size, "BLOCK": 8 * lanes},
                max(lanes // 32, 1),
            ),
        ]
        for kernel, kinds, constants, num_warps in work:
            names = [p.name for p in kernel.params]
            signature = dict(zip(names, [*kinds.split(), *["constexpr"] * len(constants)], strict=True))
            aligned = [p.num for p in kernel.params if signature[p.name][0] == "*" and not p.do_not_specialize]
            source = ASTSource(
                kernel,
                signature,
                {(names.index(name),): value for name, value in constants.items()},
                {(place,): [["tt.divisibility", 16]] for place in aligned},
            )
            for architecture in ARCHITECTURES:
                compiled = compile_source(
                    source,
                    target=GPUTarget("cuda", architecture, 32),
                    options={"num_warps": num_warps, "enable_fp_fusion": True},
                )
                usage = _usage(tool, compiled.asm["cubin"])
                spilled |= usage.get("STACK", 0) > 64
                print("compiled", kernel.__name__, constants, f"sm_{architecture}", usage)
    return int(spilled)


def _usage(tool: Path, binary: bytes) -> dict[str, int]:
    if not tool.exists():  # Triton was built without it
        return {}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {name: int(n) for name, n in re.findall(r"\b(REG|STACK|SHARED):(\d+)", told)}


if __name__ == "__main__":
    sys.exit(main())
