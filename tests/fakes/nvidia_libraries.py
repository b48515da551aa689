"""NVIDIA's libraries as far as they are asked who they are: a GPU of SM 8.7, TensorRT 10.3.0.30."""

import subprocess
from pathlib import Path

SIMULATOR = Path(__file__).with_name("tensorrt_simulator")

_SOURCES = {
    "libcuda.so.1": """
        int cuInit(unsigned flags) { return 0; }
        int cuDeviceGet(int *device, int number) { *device = 0; return 0; }
        int cuDeviceGetAttribute(int *value, int which, int device) {
            *value = which == 75 ? 8 : 7;
            return 0;
        }
        int cuDeviceTotalMem_v2(unsigned long *bytes, int device) { *bytes = 8000000000ul; return 0; }
    """,
    "libnvidia-ml.so.1": """
        int nvmlInit_v2(void) { return 0; }
        int nvmlSystemGetDriverVersion(char *text, unsigned size) {
            for (const char *from = DRIVER; (*text++ = *from++);) {}
            return 0;
        }
    """,
    "libnvinfer.so.10": """
        int getInferLibMajorVersion(void) { return 10; }
        int getInferLibMinorVersion(void) { return 3; }
        int getInferLibPatchVersion(void) { return 0; }
        int getInferLibBuildVersion(void) { return 30; }
    """,
    "libnvinfer_plugin.so.10": "int plugin;",
    "libnvonnxparser.so.10": "int parser;",
}


def build_libraries(folder: Path, driver: str = "540.4.0", without: tuple[str, ...] = ()) -> dict[str, str]:
    """Compile them into ``folder``; the environment in which they and the simulator are found."""
    folder.mkdir()
    for name, source in _SOURCES.items():
        if name not in without:
            command = [
                "cc",
                "-shared",
                "-fPIC",
                f'-DDRIVER="{driver}"',
                "-x",
                "c",
                "-",
                "-o",
                str(folder / name),
            ]
            subprocess.run(command, input=source, text=True, check=True)
    return {
        "LD_LIBRARY_PATH": str(folder),
        "PYTHONPATH": str(SIMULATOR),
        "SIMULATED_BUILDS": str(folder / "builds.jsonl"),
    }
