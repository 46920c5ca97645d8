"""Where an adapter can go: every target fills a folder, and refuses by name what it cannot hold."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from autopeft.errors import ExportError, UnknownNameError
from autopeft.export.adapterhub import write_adapters
from autopeft.export.axolotl import write_axolotl
from autopeft.export.card import model_card
from autopeft.export.folders import whole_folder
from autopeft.export.init import write_init
from autopeft.export.llama_factory import write_llama_factory
from autopeft.export.merged import write_merged
from autopeft.export.ms_swift import write_ms_swift
from autopeft.export.plain_lora import is_plain_lora, write_plain_lora
from autopeft.export.reading import read_spec
from autopeft.export.scripts import write_trainer, write_trl
from autopeft.export.spec import SPEC_FILE, AdapterSpec, spec_of
from autopeft.export.target import CONFIG_FILE, WEIGHTS_FILE, Target, weights_of, write_spec
from autopeft.resources import atomic_write
from autopeft.study.layout import trial_folder
from autopeft.study.record import StudyView, TrialRecord, best_trial


def _write_hybrid(source: Path, spec: AdapterSpec, folder: Path) -> None:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(weights_of(source, spec) / name, folder / name)
    atomic_write(folder / "README.md", model_card(spec, is_plain_lora=False))
    write_spec(source, spec, folder)


def _write_peft(source: Path, spec: AdapterSpec, folder: Path) -> None:
    if not is_plain_lora(spec.parsed_architecture):
        _write_hybrid(source, spec, folder)
        return
    write_plain_lora(weights_of(source, spec), spec, folder)
    atomic_write(folder / "README.md", model_card(spec, is_plain_lora=True))
    write_spec(source, spec, folder)


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "autopeft": Target("adapter folder for PEFT (peft_type AUTOPEFT), spec and model card", _write_hybrid),
        "peft": Target("the same; a LoRA-only architecture as a plain LoRA adapter", _write_peft),
        "spec": Target("autopeft_spec.json alone", write_spec),
        "init": Target("untrained adapter folder, for pipelines that only go on with one", write_init),
        "merged": Target("the model with the adapter in its weights (LoRA and BitFit)", write_merged),
        "adapters": Target(
            "AdapterHub `adapters`: one adapter a module and size, as a Stack (BERT, RoBERTa)", write_adapters
        ),
        "trainer": Target("a script that trains the architecture with the HF Trainer", write_trainer),
        "trl": Target("a script that trains it with TRL's SFTTrainer (causal models)", write_trl),
        "axolotl": Target("axolotl YAML; a hybrid through our plugin (causal models)", write_axolotl),
        "llama-factory": Target(
            "LLaMA-Factory YAML and an untrained LoRA adapter (causal models)", write_llama_factory
        ),
        "ms-swift": Target("ms-swift plugin and command (causal models)", write_ms_swift),
    }
)


def export(
    view: StudyView, run: Path, out: Path, target: str = "autopeft", trial: int | None = None, force: bool = False
) -> AdapterSpec:
    """Write the study's best trial, or the one with number `trial`, into the folder `out`; returns its spec.

    Raises:
        UnknownNameError: no such target.
        ExportError: no such trial, it is not complete, its weights are gone, the target cannot hold it, or `out` exists
            and `force` is not given.
    """
    if target not in TARGETS:
        raise UnknownNameError("export target", target, tuple(TARGETS))
    chosen = _choose(view, trial)
    spec = spec_of(view, chosen)
    write_target(target, trial_folder(run, chosen.number), spec, out, force)
    return spec


def export_adapter(adapter: Path, out: Path, target: str = "autopeft", force: bool = False) -> AdapterSpec:
    """Write the adapter in a folder that `export` or `train` has written into the folder `out`; returns its spec.

    Raises:
        UnknownNameError: no such target.
        ExportError: there is no spec in `adapter`, or as in `export`.
    """
    if target not in TARGETS:
        raise UnknownNameError("export target", target, tuple(TARGETS))
    given = read_spec(adapter)
    if given.spec is None:
        raise ExportError(f"{given.name}: an architecture alone. An adapter folder with {SPEC_FILE} is needed")
    write_target(target, adapter, given.spec, out, force)
    return given.spec


def write_target(target: str, source: Path, spec: AdapterSpec, out: Path, force: bool = False) -> None:
    """Write the adapter in `source` into the folder `out`.

    Raises:
        ExportError: the target cannot hold it, weights are missing, or `out` exists and `force` is not given.
    """
    with whole_folder(out, force) as folder:
        TARGETS[target].write(source, spec, folder)


def _choose(view: StudyView, number: int | None) -> TrialRecord:
    if number is None:
        best = best_trial(view.trials)
        if best is None:
            raise ExportError("the study has no completed trial yet")
        return best
    if not 0 <= number < len(view.trials):
        raise ExportError(f"there is no trial {number}; the study has 0 to {len(view.trials) - 1}")
    return view.trials[number]
