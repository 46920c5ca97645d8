"""Hybrid adapters on HF PEFT: the modules of an `Architecture` in a transformers model.

    model = get_peft_model(base, HybridConfig(architecture=architecture, task_type="SEQ_CLS"))

Importing this package registers the PEFT type AUTOPEFT: without it `PeftModel.from_pretrained` does not know an
adapter of ours (there is no plug-in mechanism in PEFT).
"""

from autopeft.hybrid.anatomy import anatomy_of, read_anatomy
from autopeft.hybrid.config import HybridConfig
from autopeft.hybrid.loading import load_strict
from autopeft.hybrid.model import HybridModel
from autopeft.hybrid.registration import register
from autopeft.hybrid.sites import find_sites
from autopeft.space.site_map import SiteMap, load_site_map

register()

__all__ = [
    "HybridConfig",
    "HybridModel",
    "SiteMap",
    "anatomy_of",
    "find_sites",
    "load_site_map",
    "load_strict",
    "read_anatomy",
    "register",
]
