# SPDX-License-Identifier: Apache-2.0
"""Acme's kernels: an own ``rms_norm``, and the op ``l2_normalize``."""
