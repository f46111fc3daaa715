# SPDX-License-Identifier: Apache-2.0
"""Triton kernels for the ops of ir-core: batch-invariant by construction, in the canonical order."""
