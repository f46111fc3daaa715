# SPDX-License-Identifier: Apache-2.0
"""What is offered. Not batch-invariant: up to N = 256 Liger takes another kernel from 32768 rows on."""

PACK = {
    "api": 1,
    "name": "liger",
    "implementations": [
        {
            "op": "rms_norm",
            "provider": "liger",
            "impl": "ir_liger.rms_norm:rms_norm",
            "requires": "sm>=8.0",  # its kernels cannot run in Triton's interpreter
            "supports_args": "ir_liger.rms_norm:supports",
            "batch_invariant": False,
            "opaque": True,
            "sources": ["liger_kernel.ops.rms_norm", "liger_kernel.ops.utils"],
        },
    ],
}
