"""The frozen model that all trials share, with a task head: lent to one trial at a time, and restored after it.

The head is every part that the checkpoint does not bring: the layers after the base model, and a pooler where the
checkpoint has none. It is drawn anew for each trial and trains with the adapters.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel, get_peft_model
from torch import nn

from autopeft.engine.batches import TokenisedSplit
from autopeft.engine.images import load_image_reader
from autopeft.engine.models import PACKAGE, check_fits, find_model, load_tokenizer, read_config
from autopeft.engine.precision import DTYPES, can_bfloat16
from autopeft.engine.problems import Problem
from autopeft.engine.quantisation import keep_layout, loading_options
from autopeft.engine.recipe import Quantisation
from autopeft.engine.splits import Split
from autopeft.errors import AutopeftError, ModelError
from autopeft.hybrid import HybridConfig, load_strict, read_anatomy
from autopeft.hybrid.layers import HybridLayer
from autopeft.hybrid.model import remove_adapters
from autopeft.resources import sync_folder
from autopeft.space.anatomy import Anatomy
from autopeft.space.architecture import Architecture
from autopeft.space.counting import ParameterCount, count_parameters
from autopeft.space.site_map import NO_SITE_MAP, SiteMap

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_UNFINISHED = ".unfinished"


@dataclass
class SharedModel:
    """A model that never changes, but while `adapted` or `loaded` lends it out."""

    model: Any
    tokenizer: Any
    """Or how it wants its images, where it reads those."""
    head: tuple[str, ...]
    """Names of the modules that are trained and saved whole."""
    problem: Problem
    device: torch.device
    dtype: torch.dtype
    site_map: SiteMap = NO_SITE_MAP
    anatomy: Anatomy = field(init=False)
    n_head: int = field(init=False)
    """Parameters of the head."""

    def __post_init__(self) -> None:
        self.anatomy = read_anatomy(self.model, self.site_map)
        self.n_head = sum(p.numel() for part in self.head for p in self.model.get_submodule(part).parameters())

    @classmethod
    def load(
        cls,
        name: str,
        revision: str | None,
        *,
        problem: Problem,
        device: torch.device,
        dtype: torch.dtype,
        site_map: SiteMap = NO_SITE_MAP,
        quantisation: Quantisation = "none",
    ) -> "SharedModel":
        """The model in eval mode on `device`, its frozen weights in `dtype` and its head in float32.

        Raises:
            ModelError: it cannot be found or read, has no variant for the problem, or lacks weights, or the map
                does not fit.
            EnvironmentProblem: the Python package that holds it is not installed.
        """
        folder = find_model(name, revision)
        model, absent = _load_model(name, folder, problem, dtype, device, quantisation)
        if problem.reads_images:
            tokenizer: Any = load_image_reader(name, folder, model.config)
        else:
            tokenizer = load_tokenizer(name, folder)
            model.config.pad_token_id = tokenizer.pad_token_id
        for config in {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}.values():
            config.use_cache = False
        if not (name.startswith(PACKAGE) or Path(name).expanduser().is_dir()):
            model.name_or_path = name  # adapter configs name their base by this: a hub id, not a folder of the cache
        head = _head_names(name, model, absent, problem.has_head)
        for part in head:
            model.get_submodule(part).float()
        if quantisation == "none":
            model.to(device)  # a quantised one is there already, and refuses to be moved
        return cls(model.eval().requires_grad_(False), tokenizer, head, problem, device, dtype, site_map)

    @property
    def n_known_tokens(self) -> int:
        """The size of its vocabulary."""
        return 1 if self.problem.reads_images else int(self.model.get_input_embeddings().num_embeddings)

    @property
    def max_tokens(self) -> int:
        """The longest input, in tokens, that model and tokeniser take; an image counts as one."""
        if self.problem.reads_images:
            return 1
        positions = getattr(self.model.config, "max_position_embeddings", None)
        if not isinstance(positions, int) or positions < 1:
            return int(self.tokenizer.model_max_length)
        # RoBERTa and its kin count positions from the padding token's number on, and keep those below it unused.
        embeddings = getattr(getattr(self.model.base_model, "embeddings", None), "position_embeddings", None)
        unused = getattr(embeddings, "padding_idx", None)
        positions -= 0 if unused is None else unused + 1
        return min(int(self.tokenizer.model_max_length), positions)

    def encode(self, split: Split, max_length: int) -> TokenisedSplit:
        """The rows as this model reads them, at most `max_length` tokens each."""
        return self.problem.encode(split, self.tokenizer, max_length, self.model.config)

    @contextmanager
    def adapted(self, architecture: Architecture, *, dropout: float, seed: int) -> Iterator[PeftModel]:
        """The model with fresh adapters and a fresh head, both drawn from `seed`; restored whatever happens.

        Raises:
            UnknownSiteError: the model has no place for a placement.
            AutopeftError: the built adapters do not have the parameters that were counted: an error of ours.
        """
        torch.manual_seed(seed)
        with self._lent():
            for part in self.head:
                _draw(self.model.get_submodule(part), float(getattr(self.model.config, "initializer_range", 0.02)))
            config = HybridConfig(
                architecture=architecture,
                task_type=self.problem.task_type,
                dropout=dropout,
                modules_to_save=list(self.head),
                base_fingerprint=self.anatomy.fingerprint,
                site_map=self.site_map,
            )
            adapted = get_peft_model(self.model, config)
            adapted.eval()
            self._check_count(adapted, architecture)
            yield adapted

    @contextmanager
    def loaded(self, folder: Path) -> Iterator[PeftModel]:
        """The model with the adapters and the head that `save_adapter` wrote.

        Raises:
            ModelError: no adapter in `folder`, or it does not fit this model exactly.
        """
        with self._lent():
            adapted = load_strict(self.model, folder)
            adapted.eval()
            yield adapted

    def count(self, architecture: Architecture) -> ParameterCount:
        """Parameters of the architecture on this model, and of the head."""
        return count_parameters(architecture, self.anatomy, self.n_head)

    @contextmanager
    def _lent(self) -> Iterator[None]:
        kept = {part: _copy(self.model.get_submodule(part).state_dict()) for part in self.head}
        try:
            yield
        finally:
            remove_adapters(self.model)
            for part, weights in kept.items():
                self.model.get_submodule(part).load_state_dict(weights)
            self.model.requires_grad_(False)
            self.model.zero_grad(set_to_none=True)
            self.model.eval()

    def _check_count(self, adapted: PeftModel, architecture: Architecture) -> None:
        counted = self.count(architecture)
        sizes = {name: p.numel() for name, p in adapted.named_parameters() if p.requires_grad}
        head = sum(n for name, n in sizes.items() if is_of_head(name))
        if (sum(sizes.values()) - head, head) != (counted.trained, counted.head):
            raise AutopeftError(
                f"internal error: architecture {architecture.id} was counted as {counted.trained:,} adapter and "
                f"{counted.head:,} head parameters, but {sum(sizes.values()) - head:,} and {head:,} were built"
            )


def is_of_head(parameter: str) -> bool:
    """Whether an adapted model's parameter of this name belongs to the head that the trial trains."""
    return ".modules_to_save." in parameter


def let_adapters_drop(adapted: PeftModel, drops: bool) -> None:
    """Training mode for the adapters alone, or none: the frozen model stays in eval mode, without dropout."""
    for module in adapted.modules():
        if isinstance(module, HybridLayer):
            module.training = drops


def save_adapter(adapted: PeftModel, folder: Path) -> None:
    """Write config and weights (the head included) to `folder`, each file whole or not at all."""
    unfinished = folder / _UNFINISHED
    adapted.create_or_update_model_card = lambda output_dir: None  # a template that takes longer than the weights
    adapted.save_pretrained(str(unfinished), save_embedding_layers=False)
    for name in ADAPTER_FILES:
        with (unfinished / name).open("rb+") as file:
            os.fsync(file.fileno())
        (unfinished / name).replace(folder / name)
    for left in unfinished.iterdir():  # by an attempt that was killed
        left.unlink()
    unfinished.rmdir()
    sync_folder(folder)


def choose_dtype(device: torch.device, precision: Literal["auto", "float32", "tf32", "bfloat16"]) -> torch.dtype:
    """What the frozen model is kept in. `auto`, where nothing was measured: bfloat16 on GPUs that have it."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and can_bfloat16(device) else torch.float32
    return DTYPES[precision]


def _load_model(
    name: str, folder: Path, problem: Problem, dtype: torch.dtype, device: torch.device, quantisation: Quantisation
) -> tuple[Any, frozenset[str]]:
    """The model, and the names of the weights that the checkpoint does not have."""
    import transformers
    from transformers.utils import logging

    config, auto = read_config(name, folder), getattr(transformers, problem.auto)
    check_fits(name, config, problem)
    problem.configure(config)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    options = loading_options(quantisation, auto, config, dtype, device)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, report = auto.from_pretrained(
                str(folder),
                config=config,
                dtype=dtype,
                attn_implementation="sdpa" if auto._model_mapping[type(config)]._supports_sdpa else "eager",
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                trust_remote_code=False,
                local_files_only=True,
                **options,
            )
    except Exception as error:  # arbitrary files to arbitrary constructors
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"{name}: the model cannot be loaded: {first[:300]}") from error
    keep_layout(model)
    odd = {key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]}
    return model, frozenset(report["missing_keys"]) | odd


def _head_names(name: str, model: Any, absent: frozenset[str], has_head: bool) -> tuple[str, ...]:
    """Modules after the base model, and its pooler where that is absent from the checkpoint; none where the head is the
    model's own."""
    base = model.base_model_prefix
    names = [
        child
        for child, module in model.named_children()
        if has_head and child != base and next(module.parameters(), None) is not None
    ]
    pooler = f"{base}.pooler"
    if has_head and any(key.startswith(f"{pooler}.") for key in absent):
        names.append(pooler)
    lost = sorted(key for key in absent if not key.startswith(tuple(f"{part}." for part in names)))
    if lost:
        raise ModelError(f"{name}: the checkpoint lacks {len(lost)} weights of the model, first {lost[0]}")
    if has_head and not names:
        raise ModelError(f"{name}: {type(model).__name__} has no task head that could be trained")
    return tuple(names)


def _draw(head: nn.Module, deviation: float) -> None:
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=deviation)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()


def _copy(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in weights.items()}
