"""Other trainers, whose own parsers read what we export: installed in folders beside the environment, without what they
depend on. Their pins contradict ours and each other's, but their parsers run with our packages.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(sys.prefix) / "peers"

PACKAGES = {
    "trainers": (
        *("axolotl==0.19.0", "llamafactory==0.9.5", "ms-swift==4.6.0"),
        # what their parsers import and we do not have
        *("addict==2.4.0", "certifi==2026.10.19.post1", "cffi==2.1.1", "cryptography==50.0.2", "distro==1.9.0"),
        *("json-repair==0.64.6", "modelscope==1.40.2", "modelscope-hub==0.5.1", "omegaconf==2.4.0", "pillow==13.0.0"),
        *("posthog==7.91.1", "requests==2.34.2", "urllib3==2.8.0"),
    ),
    "adapters": (
        *("adapters==1.3.0", "transformers==4.57.6", "huggingface-hub==0.36.2", "tokenizers==0.22.2"),
        *("certifi==2026.10.19.post1", "requests==2.34.2", "urllib3==2.8.0"),
    ),
}
"""Folder → packages in it."""


def install() -> bool:
    """Make the folders that are not there; whether all are."""
    for name, packages in PACKAGES.items():
        if not (ROOT / name / ".complete").is_file():
            command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "-t", str(ROOT / name)]
            if subprocess.run([*command, *packages], check=False).returncode != 0:
                return False
            (ROOT / name / ".complete").touch()
    return True
