# SPDX-License-Identifier: Apache-2.0
"""What Acme offers, as data. Nothing is imported until ir-core needs it."""

PACK = {
    "api": 1,
    "name": "acme",
    "ops": {"l2_normalize": "acme_kernels.l2_normalize:l2_normalize"},
    "implementations": [
        {
            "op": "rms_norm",
            "provider": "acme",
            "impl": "acme_kernels.rms_norm:rms_norm",
            "requires": "sm>=8.0 | cpu,triton_interpreter",
            "supports_args": "acme_kernels.rms_norm:supports",
            "batch_invariant": True,
            "opaque": True,
        },
        {
            "op": "l2_normalize",
            "provider": "acme",
            "impl": "acme_kernels.l2_normalize:in_canonical_order",
            "batch_invariant": True,
        },
    ],
}
