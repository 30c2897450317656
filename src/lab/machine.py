"""What this machine has, and every refusal of what it lacks: devices, data files, room for the output.

Known without importing torch.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lab import compose, paths
from lab.errors import Refusal
from lab.signature.checks import Part

if TYPE_CHECKING:
    from omegaconf import DictConfig


def check_machine(cfg: DictConfig, *, nodes: int = 1, elsewhere: bool = False) -> None:
    """Refuse what this machine cannot do: devices, batches over them, data files, the output folder.

    Args:
        cfg: composed.
        nodes: how many machines like this one the run may spread over.
        elsewhere: other machines will execute it, so only what does not depend on the machine is held.
    """
    config = compose.plain(cfg)
    if not elsewhere:
        _check_nodes(config["trainer"], nodes)
        _check_devices(config["trainer"])
        _check_files(config["data"], config["model"])
        cores = len(usable_cores())
        if config["threads"] > cores:
            raise Refusal(f"threads={config['threads']} is not allowed: 1..{cores}, the cores of this machine")
    _check_batches("data", config["data"], world_size(cfg), getattr(Part(config["data"]), "n", None))
    run_dir = config.get("run_dir")
    shown = f"run_dir={run_dir}" if run_dir else "run_dir=null (outputs/<experiment>/<id>)"
    check_output(shown, run_dir or paths.OUTPUTS)


def accelerator(cfg: DictConfig) -> Literal["cpu", "cuda", "mps"]:
    """The kind of device that `trainer.accelerator` means here; `auto` is CUDA where there is such a device."""
    return device_kind(cfg.trainer.get("accelerator", "auto"))


def device_kind(chosen: Any) -> Any:
    """The kind of device that a value of `trainer.accelerator` means here."""
    if chosen == "auto":
        return "cuda" if visible_gpus() else "cpu"
    if chosen == "gpu":
        return "mps" if sys.platform == "darwin" else "cuda"
    return chosen


def world_size(cfg: DictConfig) -> int:
    """How many processes train together on all nodes, one a device."""
    nodes: int = cfg.trainer.get("num_nodes", 1)
    return nodes * ranks_per_node(cfg)


def ranks_per_node(cfg: DictConfig) -> int:
    """How many processes train together on one node. `auto` is one process on a CPU and every GPU otherwise."""
    devices = cfg.trainer.get("devices", "auto")
    if devices == "auto":
        devices = max(1, visible_gpus()) if accelerator(cfg) == "cuda" else 1
    return devices if isinstance(devices, int) else len(devices)


@cache
def visible_gpus() -> int:
    """CUDA devices that torch would see, without importing it; 0 where torch was built without CUDA."""
    if not _torch_has_cuda():
        return 0
    present = _nvml_count()
    if present is None:
        folder = Path("/proc/driver/nvidia/gpus")
        present = len(list(folder.iterdir())) if folder.is_dir() else 0
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not present:
        return present
    count = 0
    for device in chosen.split(","):  # as the driver reads it: up to the first that does not exist
        device = device.strip()
        if not device.startswith(("GPU-", "MIG-")) and not (device.isdigit() and int(device) < present):
            break
        count += 1
    return count


def _torch_has_cuda() -> bool:
    """Whether the installed torch is a CUDA build, read from its version file."""
    spec = importlib.util.find_spec("torch")
    version = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    if version is None or not version.is_file():
        return True
    return re.search(r"^cuda\b.*=\s*'", version.read_text(), re.MULTILINE) is not None


def _nvml_count() -> int | None:
    """GPUs according to NVIDIA's management library, which creates no CUDA context; None without the library."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        count = ctypes.c_uint(0)
        if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return None
        nvml.nvmlShutdown()
    except (OSError, AttributeError):
        return None
    return count.value


def usable_cores() -> list[int]:
    """Cores this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _check_nodes(trainer: dict[str, Any], nodes: int) -> None:
    asked = trainer.get("num_nodes", 1)
    if asked == nodes:
        return
    if nodes == 1:
        raise Refusal(
            f"trainer.num_nodes={asked} is not allowed on one machine: submit the run with hydra/launcher=slurm"
        )
    raise Refusal(f"trainer.num_nodes={asked}, but the job has {nodes} nodes; submit it again with the lab")


def _check_devices(trainer: dict[str, Any]) -> None:
    """Refuse an accelerator or a device count that does not exist here."""
    kind, devices = trainer.get("accelerator", "auto"), trainer.get("devices", "auto")
    gpus = visible_gpus() if kind in ("auto", "gpu", "cuda") else 0
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    if (kind in ("gpu", "cuda") and not gpus and not (apple and kind == "gpu")) or (kind == "mps" and not apple):
        raise Refusal(
            f"trainer.accelerator={kind} is not allowed: torch can use no such device here; allowed: cpu, auto"
        )
    if devices == "auto":
        return
    most, unit = (gpus, "GPUs") if gpus else (1, "GPU") if kind in ("mps", "gpu") else (len(usable_cores()), "cores")
    if isinstance(devices, list):
        wrong = [index for index in devices if index >= gpus]
        if not gpus or wrong or not devices or len(set(devices)) < len(devices):
            allowed = (
                f"different indices of 0..{gpus - 1}, the GPUs of this machine" if gpus else f"a number of 1..{most}"
            )
            raise Refusal(f"trainer.devices={devices} is not allowed: {allowed}")
    elif devices > most:
        raise Refusal(f"trainer.devices={devices} is not allowed: 1..{most}, the {unit} of this machine")


def _check_batches(key: str, node: Any, processes: int, most: int | None) -> None:
    """Every global batch below `key` splits evenly over the processes; `most` is the largest there can be."""
    match node:
        case dict():
            for name, value in node.items():
                if name == "batch_size" and isinstance(value, int) and value % processes:
                    below, above = value // processes * processes, -(-value // processes) * processes
                    near = [size for size in (below, above) if 0 < size <= (most or above)]
                    allowed = " or ".join(map(str, near)) or "null, the full batch"
                    raise Refusal(
                        f"{key}.{name}={value} does not divide over {processes} processes "
                        f"(trainer.devices); the nearest allowed: {allowed}"
                    )
                _check_batches(f"{key}.{name}", value, processes, most)
        case list():
            for position, value in enumerate(node):
                _check_batches(f"{key}[{position}]", value, processes, most)


def needs_files(data: Mapping[Any, Any]) -> bool:
    """Whether data are read from files that do not come with the lab: from below a root, or from a path."""
    return "root" in data or "path" in data


def _check_files(data: dict[str, Any], model: dict[str, Any]) -> None:
    if "root" in data:
        from lab.data.sources import require

        require(data["source"], Path(data["root"]))
    if "path" in data:
        from lab.data.sources import require_text

        text, net = Part(data), getattr(Part(model), "net", None)
        require_text(data["path"], text.share, text.context, getattr(net, "vocabulary", None))


_LEAST_FREE = 50 * 2**20


def check_output(shown: str, folder: Path | str) -> None:
    """Refuse unless a folder can be made and written; leaves nothing behind.

    Args:
        shown: what the user said, such as `run_dir=<path>`.
        folder: need not exist.
    """
    existing = Path(folder).absolute()
    try:
        while not existing.exists() and not existing.is_symlink():
            existing = existing.parent
        if not existing.is_dir():
            raise Refusal(f"{shown} is not allowed: {existing} is not a folder")
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise Refusal(f"{shown} is not allowed: {error.strerror}") from None
        raise Refusal(f"{shown} cannot be written: no file can be made in {existing} ({error.strerror})") from None
    free = shutil.disk_usage(existing).free
    if free < _LEAST_FREE:
        raise Refusal(f"{shown} has too little room: {free / 2**20:.0f} MB free, a run needs {_LEAST_FREE // 2**20} MB")
