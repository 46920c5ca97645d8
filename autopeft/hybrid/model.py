"""The PEFT tuner of hybrid adapters: puts the modules of an architecture into a model and takes them out again."""

from collections.abc import Iterable, Mapping
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from autopeft.errors import ConfigError, ModelError
from autopeft.hybrid.anatomy import read_anatomy
from autopeft.hybrid.attention import CHILD, AdaptedAttention, host_of, release
from autopeft.hybrid.config import HybridConfig
from autopeft.hybrid.layers import PREFIX, AdaptedOutput, HybridLayer
from autopeft.hybrid.modules import MODULES
from autopeft.hybrid.modules.base import (
    Attachment,
    HostedPart,
    KeyValuePart,
    LayerScope,
    PromptPart,
    mask_parameter,
)
from autopeft.hybrid.probe import usable_sites
from autopeft.hybrid.prompts import prompt_host, release_prompts
from autopeft.hybrid.sites import Sites
from autopeft.hybrid.weights import adapter_keys, check_weights, with_current_names
from autopeft.space.architecture import Architecture

_SCOPE = "hybrid_scope"


def resolve(architecture: Architecture, sites: Sites, dropout: float = 0.0) -> dict[str, list[Attachment]]:
    """What goes to which module: attachments by module name.

    Raises:
        UnknownSiteError: the model has no place for a placement; names stack, layer and role.
        ConfigError: gate `mean` in a causal stack.
    """
    causal = [p for p in architecture.placements if p.stack == "decoder" and p.all_options.get("gate") == "mean"]
    if causal:
        raise ConfigError(
            f"{p.stack} layer {p.layer}, {p.module} at {p.role}: gate 'mean' would let a token see later ones. "
            "In a causal stack use gate 'token' or 'none'"
            for p in causal
        )
    plan: dict[str, list[Attachment]] = {}
    for placement in architecture.placements:
        for attachment in MODULES[placement.module](placement, sites.of(placement), dropout):
            plan.setdefault(attachment.module, []).append(attachment)
    return plan


class HybridModel(BaseTuner):
    """The tuner behind `get_peft_model(model, HybridConfig(architecture=...))`.

    Unlike in PEFT, `unload()` gives back the base with its own task head, not the trained copy, so that many trials can
    share one base; `merge_and_unload()` keeps the trained head, as in PEFT.
    """

    prefix = PREFIX
    tuner_layer_cls = HybridLayer
    target_module_mapping: Mapping[str, list[str]] = {}

    _plan: dict[str, list[Attachment]]
    """Of the adapter that is being injected."""

    # -- putting modules in ------------------------------------------------------------------------------------------

    def _prepare_adapter_config(self, peft_config: HybridConfig, model_config: dict[str, Any]) -> HybridConfig:
        if not peft_config.parsed_architecture():
            peft_config.target_modules = DUMMY_TARGET_MODULES  # PEFT's way to say that no module need match
        return peft_config

    def _prepare_model(self, peft_config: HybridConfig, model: nn.Module) -> None:
        if peft_config.base_fingerprint is not None:
            anatomy = read_anatomy(model, peft_config.parsed_site_map())
            if anatomy.fingerprint != peft_config.base_fingerprint:
                raise ModelError(
                    f"this adapter was made for a model of fingerprint {peft_config.base_fingerprint}, but this "
                    f"{anatomy.model_type} model ({anatomy.n_layers} layers, hidden {anatomy.hidden}, "
                    f"{anatomy.n_parameters:,} parameters) has {anatomy.fingerprint}. Load the base model it names"
                )
        sites, _ = usable_sites(model, peft_config.parsed_site_map())
        self._plan = resolve(peft_config.parsed_architecture(), sites, float(peft_config.dropout))
        for attachment in (a for attachments in self._plan.values() for a in attachments):
            _scope_of(model, attachment)

    def _check_target_module_exists(self, peft_config: PeftConfig, key: str) -> bool:
        return key in self._plan

    def _create_and_replace(
        self,
        peft_config: HybridConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        attachments = self._plan[current_key]
        scope = _scope_of(self.model, attachments[0])
        parts = [a.part.stored if peft_config.is_stored else a.part for a in attachments]
        key_values = [part for part in parts if isinstance(part, KeyValuePart)]
        prompts = [part for part in parts if isinstance(part, PromptPart)]
        hosted = [part for part in parts if isinstance(part, HostedPart)]
        if key_values:
            linears = attachments[0].sites.linears
            key_linear = self.model.get_submodule(
                next(linears[r] for r in ("attn.k", "attn.qkv", "attn.q") if r in linears)
            )
            inside = key_linear.get_base_layer() if isinstance(key_linear, HybridLayer) else key_linear
            host_of(target, inside, scope).add(adapter_name, key_values)
        if prompts:
            owner = self.model.get_submodule(attachments[0].sites.owner or "")
            prompt_host(target, owner, scope).add(adapter_name, prompts)
        if hosted:
            if not isinstance(target, AdaptedOutput):
                host = AdaptedOutput(target, scope)
                self._replace_module(parent, target_name, host, target)
                target = host
            target.add(adapter_name, hosted)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's own also moves adapters to the base's device, which `HybridLayer.add` has done, and fails on heads that
        # have no weight of their own (RoBERTa's) when they come back at unloading.
        setattr(parent, child_name, new_module)

    # -- switching and taking out ------------------------------------------------------------------------------------

    def delete_adapter(self, adapter_name: str) -> None:
        active = [name for name in self.active_adapters if name != adapter_name]
        super().delete_adapter(adapter_name)
        # Layers choose a successor each on their own, and an adapter may stand in some of them only: agree on one.
        successors = active or list(self.peft_config)[:1]
        if successors:
            self.set_adapter(successors)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """As in PEFT, for ungated LoRA and what else is a change of weights and biases.

        Raises:
            ModelError: the adapter holds modules that cannot be merged; names them. Nothing was changed.
        """
        self._refuse_merge(adapter_names)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def _refuse_merge(self, adapter_names: Iterable[str] | None) -> None:
        names = tuple(self.active_adapters if adapter_names is None else adapter_names)
        found: dict[str, list[str]] = {}
        for key, module in self.model.named_modules():
            if isinstance(module, HybridLayer):
                merged = set(module.merged_adapters) | set(names)
                for obstacle in (o for name in names for o in module.merge_obstacles(name, len(merged) > 1)):
                    found.setdefault(obstacle, []).append(key)
        if found:
            named = "; ".join(f"{obstacle} at {len(keys)} modules, first {keys[0]}" for obstacle, keys in found.items())
            raise ModelError(
                f"cannot merge adapter {', '.join(names)}: {named}. "
                "Only ungated lora, vera, kronecker, ia3, layernorm and bitfit merge"
            )

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge:
            self._refuse_merge(adapter_names)
        else:
            for module in self.model.modules():
                if isinstance(module, HybridLayer):
                    module.unmerge()
            _restore_heads(self.model)
        _release_hosts(self.model)
        return super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)

    # -- loading -----------------------------------------------------------------------------------------------------

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """PEFT's translation of keys; strict, where PEFT would only warn.

        Raises:
            ModelError: keys are missing or unexpected, or shapes differ.
        """
        for host in (module for module in model.modules() if isinstance(module, AdaptedAttention)):
            host.drop_mlp(adapter_name)  # what is saved has none
        remapped = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, with_current_names(state_dict)
        )
        there = model.state_dict()
        expected = {key: there[key] for key in adapter_keys(model, adapter_name)}
        # What is in the model and not the adapter's (task head, embeddings) is PEFT's business. PEFT's own prefix is in
        # the keys, but not in a model into which transformers has put the adapter.
        others = there.keys() | {f"base_model.model.{key}" for key in there}
        given = {key: value for key, value in remapped.items() if key in expected or key not in others}
        check_weights(expected, given, f"adapter '{adapter_name}'")
        return remapped


def remove_adapters(model: nn.Module) -> None:
    """Take all adapters out of a base model, merged weights not undone: for a load that failed half-way."""
    _release_hosts(model)
    _restore_heads(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, AdaptedOutput):
            model.set_submodule(name, module.base_layer)
    if hasattr(model, "peft_config"):
        del model.peft_config


def _restore_heads(model: nn.Module) -> None:
    """Put the base's own modules back in place of `modules_to_save`. PEFT would leave the trained copies behind."""
    for name, module in list(model.named_modules()):
        if isinstance(module, AuxiliaryTrainingWrapper):
            model.set_submodule(name, module.original_module)


def scope_in(layer: nn.Module) -> LayerScope | None:
    """The scope that adapters have made at this module; None where there is none."""
    found: LayerScope | None = layer.__dict__.get(_SCOPE)
    return found


def _scope_of(model: nn.Module, attachment: Attachment) -> LayerScope:
    """The scope of the attachment's layer, made at the first call, with the hook that fills it where one is needed."""
    layer = model.get_submodule(attachment.sites.attention or attachment.sites.name)
    scope = scope_in(layer)
    if scope is None:
        scope = layer.__dict__[_SCOPE] = LayerScope()
    part = attachment.part
    needs_input = isinstance(part, KeyValuePart) and part.needs_input
    needs_tokens = attachment.gate == "mean"
    if (needs_input or needs_tokens) and scope.hook is None and attachment.sites.attention is not None:
        scope.mask_at = mask_parameter(layer)
        scope.hook = layer.register_forward_pre_hook(scope.enter_attention, with_kwargs=True)
    scope.keeps_input |= needs_input
    scope.keeps_tokens |= needs_tokens
    return scope


def _release_hosts(model: nn.Module) -> None:
    for module in list(model.modules()):
        scope: LayerScope | None = module.__dict__.pop(_SCOPE, None)
        if scope is not None and scope.hook is not None:
            scope.hook.remove()
        if isinstance(getattr(module, CHILD, None), AdaptedAttention):
            release(module)
        release_prompts(module)
