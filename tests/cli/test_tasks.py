"""A whole search for every kind of problem on the command line, and what comes out of it in another process."""

import json
from pathlib import Path

import pytest

from tests.cli.test_light import run
from tests.engine.checkpoints import checkpoint
from tests.engine.tasks import TASKS, image_folder, write
from tests.models import tiny
