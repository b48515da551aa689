"""Whether this device can build TensorRT engines, asked in a process of its own, and which GPU it is then.

NVIDIA's libraries stay out of the agent: one that crashes or hangs costs a verdict, not the device.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

from edge_agent.errors import UnfitRelease
from models.manifest import Manifest
from models.profiles import PROFILES, Machine, gpu_profile
from models.tensorrt_recipe import TensorRtMachine

FORMAT = "tensorrt-recipe"
_PATIENCE = 60.0
"""Seconds for loading the libraries; from slow flash TensorRT's gigabyte takes a while."""

FindTensorRt = Callable[[], TensorRtMachine]
"""Raises ``UnfitRelease`` where there is none."""


def find_tensorrt() -> TensorRtMachine:
    """What engines would be built with here; takes seconds. Raises ``UnfitRelease``: what is missing."""
    command = [sys.executable, "-m", "models.engines.tensorrt_machine"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired as error:
        raise UnfitRelease(f"TensorRT does not answer within {_PATIENCE:.0f} s") from error
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    if done.returncode != 0:
        raise UnfitRelease(f"no TensorRT engine can be built here: {lines[-1] if lines else 'it crashed'}")
    return TensorRtMachine(**json.loads(lines[-1]))  # what libraries print comes before it


def machine_for(manifest: Manifest, machine: Machine, find: FindTensorRt = find_tensorrt) -> Machine:
    """What a release would run on: for TensorRT the GPU, unless the machine is known by it already.

    Raises ``UnfitRelease`` for a release of TensorRT where there is none.
    """
    if manifest.format != FORMAT:
        return machine
    found = find()
    known = PROFILES.get(machine.profile or "")
    if known is not None and known.kind == "jetson":
        return machine
    return replace(machine, profile=gpu_profile(found.sm), memory_bytes=found.memory_bytes)
