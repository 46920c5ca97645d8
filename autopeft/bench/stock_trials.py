"""A trial as it is run today: the HF Trainer on a model that PEFT has adapted, in three ways from careless to careful.

LoRA is PEFT's own. Other kinds are this package's modules, put into the model by PEFT: what differs from our engine is
everything around them. `python -m autopeft.bench.stock_trials` runs one trial in a fresh process, for `b0`.
"""

import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from autopeft.bench.laws import Configuration
from autopeft.engine.batches import MEGA
from autopeft.engine.data import TaskData
from autopeft.engine.models import find_model, load_tokenizer, read_config
from autopeft.engine.optimising import rate_at
from autopeft.engine.recipe import TrialRecipe
from autopeft.engine.splits import Split
from autopeft.errors import AutopeftError
from autopeft.export.plain_lora import is_plain_lora
from autopeft.hybrid import HybridConfig, find_sites


@dataclass(frozen=True)
class Way:
    """How a trial is run."""

    title: str
    fresh_process: bool = False
    pads_to_max: bool = False
    dropout: bool = True
    """As the model's config has it, in all layers; else none."""
    by_length: bool = False


WAYS: Mapping[str, Way] = MappingProxyType(
    {
        "b0": Way("HF Trainer + PEFT, a fresh process a trial, padded to the longest", True, True),
        "b1": Way("HF Trainer + PEFT in one process, dynamic padding, default dropout"),
        "b2": Way("as b1, grouped by length, dropout 0", dropout=False, by_length=True),
    }
)


@dataclass(frozen=True)
class StockTask:
    """What a trial trains on, picklable; only its train and validation are looked at."""

    model: str
    revision: str | None
    recipe: TrialRecipe
    data: TaskData
    head: tuple[str, ...]
    """Modules that are trained whole, with the adapters."""
    device: str

    def __reduce__(self) -> tuple[type["StockTask"], tuple[Any, ...]]:
        data = replace(self.data, splits=dict(self.data.splits))  # a mapping proxy cannot be pickled
        return type(self), (self.model, self.revision, self.recipe, data, self.head, self.device)


@dataclass(frozen=True)
class Course:
    """A training that is to be the same as another one: its first weights, and the rows of each of its steps."""

    weights: Mapping[str, Tensor]
    """All that trains, by its name in our adapted model."""
    steps: Sequence[Tensor]
    n_scheduled: int
    """Steps of the learning rate's schedule."""
    on_loss: Callable[[float], None]


class StockTrials:
    """Runs trials; the tokenised data stay in memory, the model is loaded for each."""

    def __init__(self, task: StockTask, way: Way) -> None:
        self._task, self._way = task, way
        self._folder = find_model(task.model, task.revision)
        self._tokenizer = load_tokenizer(task.model, self._folder)
        positions = getattr(read_config(task.model, self._folder), "max_position_embeddings", None) or 10**9
        self._longest = min(task.recipe.training.max_length, positions)
        self._rows = {name: self._tokenise(task.data.splits[name]) for name in ("train", "validation")}

    def train(
        self,
        configuration: Configuration,
        seed: int,
        course: Course | None = None,
        clock: Callable[[], float] = time.process_time,
    ) -> float:
        """Train and evaluate after each epoch; the seconds of all epochs by `clock`. With a course, its steps alone.

        Raises:
            AutopeftError: the model has other weights to train than the course.
        """
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        spec, way = self._task.recipe.training, self._way
        is_cpu = self._task.device == "cpu"
        torch.manual_seed(seed)
        model = self._adapted(configuration)
        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=spec.batch_size,
                per_device_eval_batch_size=spec.batch_size,  # rows come as they stand: larger batches are padding
                num_train_epochs=spec.epochs,
                max_steps=-1 if course is None else len(course.steps),
                learning_rate=spec.learning_rate,
                lr_scheduler_type="linear",
                warmup_steps=spec.warmup_fraction,
                weight_decay=spec.weight_decay,
                max_grad_norm=spec.gradient_clip,
                eval_strategy="epoch" if course is None else "no",
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=is_cpu,
                bf16=not is_cpu and spec.precision != "float32" and torch.cuda.is_bf16_supported(),
                dataloader_pin_memory=not is_cpu,
                seed=seed,
            )
            pads = transformers.default_data_collator
            if not way.pads_to_max:
                pads = transformers.DataCollatorWithPadding(self._tokenizer)
            made = _trainer_of(way, course)(
                model=model,
                args=arguments,
                train_dataset=self._rows["train"],
                eval_dataset=self._rows["validation"],
                data_collator=pads,
                processing_class=self._tokenizer,
                compute_metrics=_accuracy,
                optimizers=(None, None) if course is None else _as_ours(model, self._task.recipe, course),
            )
            made.remove_callback(transformers.PrinterCallback)
            times: list[float] = []
            made.add_callback(_timing(times, clock))
            made.train()
        return times[-1] - times[0]

    def _tokenise(self, split: Split) -> list[dict[str, Any]]:
        columns = [list(column) for column in zip(*split.texts, strict=True)]
        padding = "max_length" if self._way.pads_to_max else False
        encoded = self._tokenizer(*columns, truncation=True, max_length=self._longest, padding=padding)
        return [
            {**{name: values[i] for name, values in encoded.items()}, "labels": label}
            for i, label in enumerate(split.labels)
        ]

    def _adapted(self, configuration: Configuration) -> Any:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForSequenceClassification

        config = read_config(self._task.model, self._folder)
        config.num_labels = self._task.data.n_labels
        config.pad_token_id = self._tokenizer.pad_token_id
        if not self._way.dropout:
            for name, value in list(vars(config).items()):
                if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
                    setattr(config, name, 0.0)
        model = AutoModelForSequenceClassification.from_pretrained(
            str(self._folder), config=config, use_safetensors=True, dtype=torch.float32, local_files_only=True
        )
        architecture, head = configuration.architecture, list(self._task.head)
        if not is_plain_lora(architecture):
            hybrid = HybridConfig(architecture=architecture, task_type="SEQ_CLS", modules_to_save=head)
            return get_peft_model(model, hybrid)
        sites = find_sites(model)
        one = architecture.placements[0]
        return get_peft_model(
            model,
            LoraConfig(
                task_type="SEQ_CLS",
                modules_to_save=head,
                r=one.size,
                lora_alpha=float(one.option("alpha")),
                target_modules=[sites.of(p).linears[p.role] for p in architecture.placements],
            ),
        )


def fresh_process(
    task: StockTask, way: Way, configuration: Configuration, seed: int, on_cpu: bool
) -> tuple[float, float]:
    """Run one trial in a process of its own; its seconds, and those of its epochs: processor time on a CPU, else all
    that passes.

    Raises:
        AutopeftError: the process failed; says how.
    """
    given = pickle.dumps((task, way, configuration, seed, torch.get_num_threads(), on_cpu))
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "TOKENIZERS_PARALLELISM": "false"}
    start = time.perf_counter()
    command = [sys.executable, "-m", "autopeft.bench.stock_trials"]
    ran = subprocess.run(command, input=given, capture_output=True, env=environment, check=False)
    if ran.returncode != 0:
        last = ran.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise AutopeftError(f"b0: a fresh process failed: {last[:300]}")
    passed = time.perf_counter() - start
    of_all, of_epochs = map(float, ran.stdout.split()[-2:])
    return (of_all if on_cpu else passed), of_epochs


def _timing(times: list[float], clock: Callable[[], float]) -> Any:
    from transformers import TrainerCallback

    class Timing(TrainerCallback):  # type: ignore[misc]
        """Looks at the clock where an epoch begins, and where its evaluation ends."""

        def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
            times.append(clock())

        def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(clock())

        def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
            times.append(clock())

    return Timing()


def _accuracy(predicted: Any) -> dict[str, float]:
    return {"accuracy": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())}


def _trainer_of(way: Way, course: Course | None) -> Any:
    from transformers import Trainer

    if course is not None:
        return _on_course(Trainer, course)
    return _by_length(Trainer) if way.by_length else Trainer


def _by_length(trainer: Any) -> Any:
    """Sorts as many batches together as our engine does: its own number, a quarter of all and at most 50, would be two
    or one with the few rows of a benchmark, and waste what it does not with those of a task."""
    from torch.utils.data import Sampler
    from transformers.trainer_pt_utils import get_length_grouped_indices

    class Sorted(Sampler[int]):
        def __init__(self, rows: Any, batch_size: int) -> None:
            self._lengths = [len(row["input_ids"]) for row in rows]
            self._batch_size = batch_size

        def __len__(self) -> int:
            return len(self._lengths)

        def __iter__(self) -> Iterator[int]:
            return iter(get_length_grouped_indices(self._lengths, self._batch_size, MEGA))

    class ByLength(trainer):  # type: ignore[misc]
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return Sorted(self.train_dataset if train_dataset is None else train_dataset, self.args.train_batch_size)

        def _get_eval_sampler(self, eval_dataset: Any) -> Any:
            return Sorted(eval_dataset, self.args.eval_batch_size)

    return ByLength


def _on_course(trainer: Any, course: Course) -> Any:
    class OnCourse(trainer):  # type: ignore[misc]
        """Takes the rows of each step from the course, and tells the losses."""

        def get_train_dataloader(self) -> Any:
            rows: Any = self.train_dataset
            return [self.data_collator([rows[i] for i in step.tolist()]) for step in course.steps]

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            result = super().compute_loss(*args, **kwargs)
            loss = result[0] if isinstance(result, tuple) else result
            course.on_loss(float(loss.detach()))
            return result

    return OnCourse


def _as_ours(model: Any, recipe: TrialRecipe, course: Course) -> tuple[Any, Any]:
    """The course's weights are put into the model; AdamW and our schedule of the learning rate."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    weights = {name.replace(".autopeft_lora_", ".lora_"): value for name, value in course.weights.items()}
    if not any(".autopeft_" not in name and ".lora_" in name for name in trained):
        weights = dict(course.weights)
    if set(weights) != set(trained):
        raise AutopeftError(f"the two models train different weights: {sorted(set(weights) ^ set(trained))[:4]}")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(weights[name])
    spec = recipe.training
    optimiser = torch.optim.AdamW(trained.values(), lr=spec.learning_rate, weight_decay=spec.weight_decay)

    def share(done: int) -> float:
        return rate_at(min(done + 1, course.n_scheduled), course.n_scheduled, spec.warmup_fraction)

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, share)


def _in_fresh_process() -> None:
    task, way, configuration, seed, threads, on_cpu = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(threads)
    clock = time.process_time if on_cpu else time.perf_counter
    of_epochs = StockTrials(task, way).train(configuration, seed, clock=clock)
    sys.stdout.write(f"{time.process_time()} {of_epochs}\n")


if __name__ == "__main__":
    _in_fresh_process()
