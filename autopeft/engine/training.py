"""Real trials: hybrid adapters and a task head on a frozen transformer, trained by a loop of our own.

The model, the tokenised data and their device are shared by all trials of a worker. The frozen model stays in eval
mode, so that a trial has no randomness but its head, its adapters, the order of its batches and, where asked for,
dropout within the adapters; on a CPU the same job gives the same numbers in every process with as many threads.
"""

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autopeft.config import Frozen
from autopeft.engine.batches import TokenisedSplit
from autopeft.engine.classifier import (
    SharedClassifier,
    choose_device,
    choose_dtype,
    let_adapters_drop,
    save_adapter,
)
from autopeft.engine.data import TaskData
from autopeft.engine.metrics import METRICS, interval
from autopeft.engine.recipe import TrainingSpec, TrialRecipe
from autopeft.engine.trial import EpochRecord, Evaluation, NotFiniteError, TrialJob, TrialResult
from autopeft.engine.worker import peak_memory_bytes
from autopeft.space.modules import Scalar
