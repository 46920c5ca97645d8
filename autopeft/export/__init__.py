"""From a study to files for others: the adapter spec, and folders that PEFT loads. Studies are read, never written."""

from autopeft.export.spec import SPEC_FILE, AdapterSpec, spec_of
from autopeft.export.targets import TARGETS, export, export_adapter

__all__ = ["SPEC_FILE", "TARGETS", "AdapterSpec", "export", "export_adapter", "spec_of"]
