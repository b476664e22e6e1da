"""Whether this machine has an NVIDIA GPU: `python3 -m tests.gpu.check.device`.

Standard library only: it is asked before gigabytes are installed for a GPU. It asks the driver, not torch.
"""

import shutil
import subprocess
import sys
from pathlib import Path

TIMEOUT_S = 20.0
DRIVER = Path("/proc/driver/nvidia/gpus")
MISSING = (
    "gpu-check: this machine has no NVIDIA GPU (neither nvidia-smi nor /proc/driver/nvidia shows one). Run "
    "it on a GPU node; on a CPU, `python -m tests.gpu.check --device cpu` runs the steps that can run there."
)


def gpus() -> list[str]:
    """Name, driver and memory of each GPU as nvidia-smi says; addresses where only the driver's files are."""
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        try:
            done = subprocess.run(query, check=False, capture_output=True, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return []
        if done.returncode == 0:
            return [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return sorted(path.name for path in DRIVER.iterdir()) if DRIVER.is_dir() else []


def main() -> int:
    """Returns 0 with a GPU; without one says so and returns 1."""
    if found := gpus():
        print("; ".join(found))
        return 0
    print(MISSING, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
