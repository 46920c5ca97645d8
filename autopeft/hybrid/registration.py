"""Makes HF PEFT and transformers know hybrid adapters: `PeftType.AUTOPEFT`, and the attention function for prefixes.

PEFT accepts a method only if the enum `PeftType` has its name, and has no way to add one; transformers asks a PEFT
type for its `value`, so a plain text will not do. Hence the enum is extended.
"""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils.peft_types import PeftType, register_peft_method

from autopeft.hybrid.config import PEFT_TYPE


def peft_type() -> PeftType:
    """`PeftType.AUTOPEFT`."""
    return PeftType[PEFT_TYPE]


def register() -> None:
    """Register the method with PEFT and transformers; a second call does nothing."""
    if PEFT_TYPE in PeftType.__members__ and peft_type() in PEFT_TYPE_TO_CONFIG_MAPPING:
        return
    from autopeft.hybrid.attention import register_attention
    from autopeft.hybrid.config import HybridConfig
    from autopeft.hybrid.model import HybridModel

    _extend_enum(PEFT_TYPE)
    register_attention()
    register_peft_method(name=PEFT_TYPE.lower(), config_cls=HybridConfig, model_cls=HybridModel)


def _extend_enum(name: str) -> None:
    if name in PeftType.__members__:
        return
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType._member_names_)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
