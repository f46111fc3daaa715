# SPDX-License-Identifier: Apache-2.0
"""Verify: numerics, batch invariance, certificates."""
