"""The kinds of adapter modules, under the names of `autopeft.space.modules`, where their facts are.

A new kind is one file here with its parts and an `attach` function, and one line below.
"""

from collections.abc import Mapping
from types import MappingProxyType

from autopeft.hybrid.modules.base import Attach
from autopeft.hybrid.modules.bitfit import attach_bitfit
from autopeft.hybrid.modules.bottleneck import attach_parallel, attach_serial
from autopeft.hybrid.modules.lora import attach_lora
from autopeft.hybrid.modules.prefix import attach_prefix

MODULES: Mapping[str, Attach] = MappingProxyType(
    {
        "lora": attach_lora,
        "serial": attach_serial,
        "parallel": attach_parallel,
        "prefix": attach_prefix,
        "bitfit": attach_bitfit,
    }
)
