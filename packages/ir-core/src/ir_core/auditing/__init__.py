# SPDX-License-Identifier: Apache-2.0
"""Which operation of a model makes its bits depend on the batch.

:func:`audit` runs a model on a batch and on parts of it, and judges every torch operation by itself. The report says
where it begins.
"""

from __future__ import annotations

from ir_core.auditing.place import Place
from ir_core.auditing.recording import compare, record
from ir_core.auditing.report import Finding, Note, Report
from ir_core.auditing.session import audit

__all__ = ["Finding", "Note", "Place", "Report", "audit", "compare", "record"]
