"""The kinds of adapter modules, under the names of `autopeft.space.modules`, where their facts are.

A new kind is one file here with its parts and an `attach` function, and one line below.
"""

from collections.abc import Mapping
from types import MappingProxyType

from autopeft.hybrid.modules.base import Attach
from autopeft.hybrid.modules.bitfit import attach_bitfit
from autopeft.hybrid.modules.bottleneck import attach_parallel, attach_serial
from autopeft.hybrid.modules.compacter import attach_compacter
from autopeft.hybrid.modules.ia3 import attach_ia3
from autopeft.hybrid.modules.kronecker import attach_kronecker
from autopeft.hybrid.modules.layernorm import attach_layernorm
from autopeft.hybrid.modules.lora import attach_lora
from autopeft.hybrid.modules.multihead import attach_multihead
from autopeft.hybrid.modules.prefix import attach_prefix
from autopeft.hybrid.modules.prompt import attach_prompt
from autopeft.hybrid.modules.vera import attach_vera

MODULES: Mapping[str, Attach] = MappingProxyType(
    {
        "lora": attach_lora,
        "serial": attach_serial,
        "parallel": attach_parallel,
        "prefix": attach_prefix,
        "bitfit": attach_bitfit,
        "ia3": attach_ia3,
        "layernorm": attach_layernorm,
        "vera": attach_vera,
        "kronecker": attach_kronecker,
        "compacter": attach_compacter,
        "multihead": attach_multihead,
        "prompt": attach_prompt,
    }
)
