"""Scripts to start one's own training from: the found architecture in the HF Trainer, or in TRL's SFTTrainer.

Each reads `autopeft_spec.json` beside it, takes model and data as options, and runs as it is written.
"""

from pathlib import Path

from autopeft.export.spec import AdapterSpec
from autopeft.export.target import causal_anatomy, refuse_other_problems, write_spec
from autopeft.resources import atomic_write

SCRIPT = "train.py"

_TRAINER = '''\
"""Trains the architecture in autopeft_spec.json with the HF Trainer: python train.py --data train.jsonl"""

import argparse
import json
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding
from transformers import Trainer, TrainingArguments

import autopeft
from autopeft.engine.data import load_data
from autopeft.engine.recipe import TrialRecipe

here = Path(__file__).parent
spec = json.loads((here / "autopeft_spec.json").read_text(encoding="utf-8"))
recipe = TrialRecipe.model_validate_json(json.dumps(spec["recipe"]))

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=spec["base_model"]["name"])
parser.add_argument("--data", default=recipe.task.dataset, required=recipe.task.dataset is None)
parser.add_argument("--out", default=str(here / "out"))
parser.add_argument("--epochs", type=float, default=recipe.training.epochs)
parser.add_argument("--seed", type=int, default=0)
given = parser.parse_args()

folder = str(autopeft.find_model(given.model))
tokenizer = AutoTokenizer.from_pretrained(folder)
data = load_data(recipe.task, None if given.data == recipe.task.dataset else given.data)
regression = recipe.task.problem == "regression"


def split(name):
    rows = data.splits[name]
    columns = [list(column) for column in zip(*rows.texts)]
    tokens = tokenizer(*columns, truncation=True, max_length=recipe.training.max_length)
    return Dataset.from_dict({**tokens, "labels": list(rows.labels)})


def score(prediction):
    if regression:
        return {"pearson": float(np.corrcoef(prediction.predictions.squeeze(-1), prediction.label_ids)[0, 1])}
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=data.n_labels)
if regression:
    model.config.problem_type = "regression"
model.config.pad_token_id = tokenizer.pad_token_id
model = autopeft.apply(model, spec, task_type="SEQ_CLS", dropout=recipe.training.dropout)
model.print_trainable_parameters()

trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir=given.out,
        num_train_epochs=given.epochs,
        per_device_train_batch_size=recipe.training.batch_size,
        per_device_eval_batch_size=recipe.training.eval_batch_size,
        learning_rate=spec["training"].get("learning_rate", recipe.training.learning_rate),
        weight_decay=recipe.training.weight_decay,
        max_grad_norm=recipe.training.gradient_clip,
        lr_scheduler_type="linear",
        warmup_steps=recipe.training.warmup_fraction,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        save_total_limit=1,
        seed=given.seed,
        report_to=[],
    ),
    train_dataset=split("train"),
    eval_dataset=split("validation"),
    data_collator=DataCollatorWithPadding(tokenizer),
    compute_metrics=score,
)
trainer.train()
print(json.dumps(trainer.evaluate(split("test"), metric_key_prefix="test")))
model.save_pretrained(Path(given.out) / "adapter")
'''

_TRL = '''\
"""Trains the architecture in autopeft_spec.json with TRL: python train.py --data train.jsonl (rows with a text)"""

import argparse
import json
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import autopeft

here = Path(__file__).parent
spec = json.loads((here / "autopeft_spec.json").read_text(encoding="utf-8"))
training = {**spec["recipe"].get("training", {}), **spec["training"]}

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=spec["base_model"]["name"])
parser.add_argument("--data", required=True, help="JSONL with text, prompt and completion, or messages")
parser.add_argument("--out", default=str(here / "out"))
parser.add_argument("--epochs", type=float, default=training.get("epochs", 3))
parser.add_argument("--seed", type=int, default=0)
given = parser.parse_args()

folder = str(autopeft.find_model(given.model))
tokenizer = AutoTokenizer.from_pretrained(folder)
if tokenizer.pad_token is None:
    tokenizer.pad_token = tokenizer.eos_token
model = autopeft.apply(
    AutoModelForCausalLM.from_pretrained(folder), spec, task_type="CAUSAL_LM", dropout=training.get("dropout", 0.0)
)
model.print_trainable_parameters()

trainer = SFTTrainer(
    model=model,
    args=SFTConfig(
        output_dir=given.out,
        num_train_epochs=given.epochs,
        per_device_train_batch_size=training.get("batch_size", 8),
        learning_rate=training.get("learning_rate", 1e-3),
        weight_decay=training.get("weight_decay", 0.0),
        max_grad_norm=training.get("gradient_clip", 1.0),
        max_length=training.get("max_length", 512),
        lr_scheduler_type="linear",
        warmup_steps=training.get("warmup_fraction", 0.06),
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        seed=given.seed,
        report_to=[],
    ),
    train_dataset=load_dataset("json", data_files=given.data, split="train"),
    processing_class=tokenizer,
)
trainer.train()
model.save_pretrained(Path(given.out) / "adapter")
'''


def write_trainer(source: Path, spec: AdapterSpec, folder: Path) -> None:
    """train.py for the HF Trainer, and the spec.

    Raises:
        ExportError: the adapter is not for classification or regression of texts.
    """
    refuse_other_problems(spec, "the script for the HF Trainer", "classification", "regression")
    atomic_write(folder / SCRIPT, _TRAINER)
    write_spec(source, spec, folder)


def write_trl(source: Path, spec: AdapterSpec, folder: Path) -> None:
    """train.py for TRL, and the spec.

    Raises:
        ExportError: the base model is not causal.
        ModelError: the base model's config cannot be read.
    """
    causal_anatomy(spec, "TRL's SFTTrainer")
    atomic_write(folder / SCRIPT, _TRL)
    write_spec(source, spec, folder)
