# SPDX-License-Identifier: Apache-2.0
"""Proof without a GPU: compile what the launcher can choose, for any NVIDIA target, and check the compiled output."""
