# SPDX-License-Identifier: Apache-2.0
"""Looking into vLLM's engine while it runs: the same rows in other company, module by module."""
