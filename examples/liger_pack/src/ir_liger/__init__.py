# SPDX-License-Identifier: Apache-2.0
"""Liger Kernel's RMSNorm, unmodified, as a provider of ir-core's ``rms_norm``."""
