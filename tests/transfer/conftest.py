"""One thread: tiny models are fastest so, and results do not depend on the machine."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)
