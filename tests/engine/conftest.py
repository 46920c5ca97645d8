"""What several modules of tests of the engine use."""

import gc
from collections.abc import Iterator

import pytest

from autopeft.engine.worker import let_garbage_be_found_fast


@pytest.fixture(scope="module")
def garbage_found_fast() -> Iterator[None]:
    """As in a worker: each trial ends with a search for garbage."""
    let_garbage_be_found_fast()
    yield
    gc.unfreeze()
