"""Which device a worker computes on."""

import torch

from autopeft.errors import EnvironmentProblem


def find_devices(wanted: str = "auto") -> tuple[torch.device, ...]:
    """Those that workers take in turn: `cuda` is all GPUs, `cuda:1` one of them, `auto` the GPUs or else the CPU.

    Raises:
        EnvironmentProblem: torch sees no such device; says which it sees.
    """
    gpus = tuple(torch.device("cuda", index) for index in range(torch.cuda.device_count()))
    cpu = torch.device("cpu")
    if wanted == "auto":
        return gpus or (cpu,)
    has_mps = torch.backends.mps.is_available()
    known = {"cpu": (cpu,), "cuda": gpus, "mps": (torch.device("mps"),) if has_mps else ()}
    known |= {str(gpu): (gpu,) for gpu in gpus}
    if not (found := known.get(wanted, ())):
        seen = ", ".join(name for name, devices in known.items() if devices)
        raise EnvironmentProblem(
            f"--device {wanted}: torch {torch.__version__} sees no such device on this machine. It sees: {seen}"
        )
    return found


def choose_device(worker: int, wanted: str = "auto") -> torch.device:
    """The device of the worker of this number, from 0.

    Raises:
        EnvironmentProblem: there is none of the kind that is wanted.
    """
    devices = find_devices(wanted)
    return devices[worker % len(devices)]


def name_of(device: torch.device) -> str:
    """For people: the model of a GPU, else `cpu` or `mps`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def wait_for(device: torch.device) -> None:
    """Until all that was given to the device is done; at once on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
