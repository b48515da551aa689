"""Language models as ONNX for ONNX Runtime GenAI, through its own model builder, and their LoRA adapters.

Owns which weights get how many bits, and the slots through which one base takes many adapters: every target
projection gets two more inputs, ``lora_A`` and ``lora_B``, whose default has rank 0. The base alone pays
next to nothing for them, and an adapter is a file of values for those inputs (``.onnx_adapter``).

Refuses pickles, a target that the model does not have, and a block size that the quantizer would pack
wrongly. The builder runs in a process of its own (``python -m compile.onnx.genai``), offline: it imports
torch and prints without end.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compile.errors import BadRecipe, ToolFailed, UnsupportedBase
from compile.steps import Report
from models import safetensors
from models.engines.onnx_genai import MODEL_FILE, Slots, check_folder, lora_slots
from models.manifest import AdapterSlots, Fallback
from models.onnx import OnnxModel, read_model
from models.pickles import refuse_pickle

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BUILDER_VERSION = "onnxruntime-genai 0.13.2"
_REFUSED = 3  # exit code of the child for what is no fault of the builder's
_EIGHT, _FOUR = 8, 4

Algorithm = Literal["rtn", "k_quant"]
Precision = Literal["fp32", "int8", "int4"]


@dataclass(frozen=True)
class GenaiSettings:
    """How to export.

    ``block_size`` weights share a scale. ``accuracy_level`` 4 computes with int8 activations, 1 with float32.
    ``eight_bits``: parts of names of MatMuls that an int4 model keeps at eight bits (``lm_head``,
    ``layers.0/``, ``down_proj``). ``slots``: the adapters that the base is to take.
    """

    precision: Precision
    algorithm: Algorithm = "k_quant"
    block_size: int = 32
    accuracy_level: int = 4
    eight_bits: tuple[str, ...] = ()
    slots: AdapterSlots | None = None

    def __post_init__(self) -> None:
        if self.block_size not in (16, 32, 64, 128, 256):
            raise BadRecipe(f"block_size: {self.block_size}; 16, 32, 64, 128 or 256 can be had")
        if self.accuracy_level not in (1, 4):
            raise BadRecipe(
                f"accuracy_level: {self.accuracy_level}; 1 (float32) or 4 (int8) can be had on a CPU"
            )
        if self.eight_bits and self.precision != "int4":
            raise BadRecipe(f"eight_bits: a model at {self.precision} has no four-bit weights to spare")

    def as_json(self) -> dict[str, Any]:
        """For step parameters and for the child."""
        return asdict(self) | {"slots": self.slots.model_dump(mode="json") if self.slots else None}


def export(hf_folder: Path, settings: GenaiSettings, target: Path, scratch: Path, report: Report) -> None:
    """Write the model in ``hf_folder`` to ``target`` as GenAI reads it. ``target`` is there and empty.

    Whether it gives the original's token ids is measured through the engine (``compile.evaluate.tokens``).
    Raises ``UnsafeFile``, ``UnsupportedBase``, ``BadRecipe``, ``ToolFailed``.
    """
    weights = _check_source(hf_folder)
    slots_folder = None
    if settings.slots is not None:
        slots_folder = scratch / "slots"
        _write_slots(settings.slots, weights, slots_folder)
    report(0.05, f"building the ONNX graph at {settings.precision}")
    job = {
        "hf": str(hf_folder.resolve()),
        "target": str(target.resolve()),
        "scratch": str(scratch.resolve()),
        "adapter": None if slots_folder is None else str(slots_folder.resolve()),
        "settings": settings.as_json(),
    }
    _run(job)
    report(0.9, "checking the files")
    check_folder(target)
    report(1.0, "exported")


def export_adapter(peft_folder: Path, base: Path, target: Path) -> AdapterSlots:
    """Write a peft LoRA adapter as ``target`` for the slots of the GenAI folder ``base``.

    Returns its rank and targets. Raises ``UnsafeFile``, and ``UnsupportedBase`` for an adapter that does not
    fit or that would lose anything on the way.
    """
    import numpy as np
    from safetensors.numpy import load_file

    config = _peft_config(peft_folder)
    slots = lora_slots(read_model(base / MODEL_FILE))
    file = peft_folder / "adapter_model.safetensors"
    safetensors.read_header(file)
    rank = int(config["r"])
    if slots is None:
        raise UnsupportedBase(f"{base.name} was exported without slots for adapters")
    if rank > slots.max_rank:
        raise UnsupportedBase(f"the adapter has rank {rank}; {base.name} takes at most {slots.max_rank}")
    scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    values: dict[str, npt.NDArray[np.float32]] = {}
    for name, tensor in load_file(file).items():
        slot = _slot_name(name)
        if slot not in slots.shapes:
            raise UnsupportedBase(f"{base.name} has no slot for the adapter's tensor {name}")
        value = tensor.astype(np.float32).T
        if ".lora_B." in slot:
            value = value * np.float32(scale)
        if value.shape != (shape := slots.filled(slot, rank)):
            raise UnsupportedBase(f"the adapter's tensor {name} has the shape {value.shape}, not {shape}")
        values[slot] = np.ascontiguousarray(value)
    if not values:
        raise UnsupportedBase("the adapter holds no tensors")
    targets = tuple(sorted({_module(name) for name in values}))
    # ONNX Runtime takes no adapter that leaves a slot empty; what it does not adapt, nothing is added to.
    empty = slots.shapes.keys() - values.keys()
    values |= {slot: np.zeros(slots.filled(slot, rank), np.float32) for slot in empty}
    write_adapter(values, target)
    return AdapterSlots(max_rank=rank, targets=targets)


def write_adapter(values: "Mapping[str, npt.NDArray[np.float32]]", target: Path) -> None:
    """Write ONNX Runtime's adapter format (version 1) with these parameters."""
    import onnxruntime as ort

    file = ort.AdapterFormat()
    file.set_adapter_version(1)
    file.set_model_version(1)
    file.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in values.items()})
    file.export_adapter(str(target))


def ledger(model: OnnxModel, settings: GenaiSettings) -> tuple[Fallback, ...]:
    """Weight matrices that did not get the asked precision, with what they got. Norms do not count."""
    if settings.precision == "fp32":
        return ()
    found = []
    # A weight has dots where its node, which the parts are of, has slashes.
    kept = [part.replace("/", ".") for part in settings.eight_bits]
    for tensor in model.initializers:
        if (
            len(tensor.shape) < 2
            or ".lora_" in tensor.name
            or tensor.name.endswith(("_scale", "_zp", "_cache"))
        ):
            continue
        asked = "int8" if any(part in f".{tensor.name}" for part in kept) else settings.precision
        got = "int4" if "_Q4G" in tensor.name else "int8" if "_Q8G" in tensor.name else tensor.type
        if got != asked and tensor.elements:
            found.append(Fallback(tensor=tensor.name, asked=asked, got=got))
    return tuple(found)


def _check_source(hf_folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights by name, after every header was checked."""
    config = _read_config(hf_folder, "config.json")
    if not isinstance(config, dict) or config.get("auto_map"):
        raise UnsupportedBase(f"{hf_folder.name} brings code of its own, which is never run")
    files = sorted(hf_folder.glob("*.safetensors"))
    if not files:
        raise UnsupportedBase(f"{hf_folder.name} holds no safetensors")
    return {one.name: one.shape for file in files for one in safetensors.read_header(file).tensors}


def _read_config(folder: Path, name: str) -> Any:
    """The JSON in ``name``, of a folder in which no file is a pickle."""
    for path in sorted(folder.iterdir()):
        if path.is_file():
            refuse_pickle(path)
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedBase(f"{folder.name}/{name} cannot be read: {error}") from error


def _write_slots(slots: AdapterSlots, weights: Mapping[str, Sequence[int]], folder: Path) -> None:
    """A peft adapter of rank 1 whose values are zero: it makes the builder draw the branches."""
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors, found = {}, set()
    for name, shape in weights.items():
        parts = name.split(".")
        if len(shape) != 2 or parts[-1] != "weight" or parts[-2] not in slots.targets:
            continue
        found.add(parts[-2])
        stem = "base_model.model." + ".".join(parts[:-1])
        tensors[f"{stem}.lora_A.weight"] = np.zeros((1, shape[1]), dtype=np.float32)
        tensors[f"{stem}.lora_B.weight"] = np.zeros((shape[0], 1), dtype=np.float32)
    if missing := sorted(set(slots.targets) - found):
        raise BadRecipe(f"adapter targets: the model has no {', '.join(missing)}")
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 1,
        "lora_alpha": 1,
        "target_modules": sorted(found),
        "bias": "none",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def _peft_config(folder: Path) -> dict[str, Any]:
    config = _read_config(folder, "adapter_config.json")
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UnsupportedBase(f"{folder.name} is no LoRA adapter")
    bias = config.get("bias", "none")
    lost = [
        key
        for key in (
            "use_dora",
            "rank_pattern",
            "alpha_pattern",
            "modules_to_save",
            "fan_in_fan_out",
            "use_qalora",
        )
        if config.get(key)
    ]
    if bias != "none" or lost:
        raise UnsupportedBase(f"an ONNX adapter cannot carry {', '.join([*lost, f'bias={bias}'])}")
    return config


def _slot_name(peft_name: str) -> str:
    """The builder's name for a peft tensor, ``...self_attn.q_proj.lora_A.weight``."""
    stem, _, half = peft_name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
    return f"{stem.replace('.self_attn.', '.attn.')}.{half}.MatMul.weight"


def _module(slot: str) -> str:
    return slot.split(".lora_")[0].rpartition(".")[2]


def _run(job: Mapping[str, Any]) -> None:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    }
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "compile.onnx.genai"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        errors="replace",
        env=environment,
        check=False,
    )
    last = done.stderr.strip().rpartition("\n")[2]
    if done.returncode == _REFUSED:
        raise UnsupportedBase(last)
    if done.returncode != 0:
        raise ToolFailed(f"GenAI's model builder failed with {done.returncode}:\n{done.stderr[-2000:]}")


# In the child


def _child(job: Mapping[str, Any]) -> None:
    settings = job["settings"]
    slots = settings["slots"]
    builder, model_class = _builder()
    options: dict[str, Any] = {"hf_token": "false", "hf_remote": "false"}
    if job["adapter"]:
        options["adapter_path"] = job["adapter"]
    if settings["precision"] != "fp32":
        # k-quant writes a zero point per block; told "symmetric", the builder would give none to the shared
        # embedding, and every word would be read wrongly. ``_last`` is what makes a shared head eight-bit.
        eight = _bits("/lm_head/MatMul", settings) == _EIGHT
        options |= {
            "int4_algo_config": settings["algorithm"] + ("_last" if eight else ""),
            "int4_block_size": str(settings["block_size"]),
            "int4_accuracy_level": str(settings["accuracy_level"]),
            "int4_is_symmetric": "false" if settings["algorithm"] == "k_quant" else "true",
        }
    builder.check_extra_options(options, "cpu")
    _prepare_before_saving(model_class, settings, slots["max_rank"] if slots else 0)
    precision = "fp32" if settings["precision"] == "fp32" else "int4"
    cache = Path(job["scratch"]) / "builder"
    builder.create_model(None, job["hf"], job["target"], precision, "cpu", str(cache), **options)


def _builder() -> tuple[Any, Any]:
    """The builder's module and its ``Model``. It lies in a folder of scripts, beside its package."""
    import onnxruntime_genai

    sys.path.insert(0, str(Path(onnxruntime_genai.__file__).parent / "models"))
    try:
        builder = importlib.import_module("builder")
        base = importlib.import_module("builders.base")
    except ImportError as error:
        raise UnsupportedBase(f"the model builder cannot be imported: {error}") from error
    return builder, base.Model


def _prepare_before_saving(model_class: Any, settings: Mapping[str, Any], max_rank: int) -> None:
    """Have the finished graph pass through our hands before it is quantized and saved.

    The builder has no other place where bits per MatMul could be said, or an input be added.
    """
    save = model_class.save_model

    def save_prepared(self: Any, out_dir: str) -> None:
        names = [node.name for node in self.model.graph if node.op_type == "MatMul"]
        branches = [name for name in names if "/lora_A/" in name or "/lora_B/" in name]
        quantization = self.quant_attrs["int4"]
        if settings["precision"] != "fp32":
            bits = {name: _bits(name, settings) for name in names if name not in branches}
            _check_blocks(self.model.graph, bits, settings)
            quantization["nodes_to_exclude"] = branches
            quantization["algo_config"].customized_weight_config = {
                name: {"bits": count} for name, count in bits.items()
            }
        if max_rank:
            _open_slots(self.model.graph, max_rank)
        save(self, out_dir)

    model_class.save_model = save_prepared


def _bits(name: str, settings: Mapping[str, Any]) -> int:
    if settings["precision"] == "int8" or any(part in name for part in settings["eight_bits"]):
        return _EIGHT
    return _FOUR


def _check_blocks(graph: Any, bits: Mapping[str, int], settings: Mapping[str, Any]) -> None:
    """Four-bit zero points are packed in pairs per row; the quantizer pairs them across rows."""
    if settings["algorithm"] != "k_quant":
        return
    for node in graph:
        if bits.get(node.name) == _FOUR:
            rows = node.inputs[1].shape[0]
            if -(-rows // settings["block_size"]) % 2:
                raise UnsupportedBase(
                    f"{node.name}: {rows} rows are an odd number of blocks of {settings['block_size']}, "
                    "which k_quant cannot pack; take a smaller block size, rtn, or eight bits for it"
                )


def _open_slots(graph: Any, max_rank: int) -> None:
    """Make the adapter branches' weights inputs whose default has rank 0."""
    import numpy as np
    import onnx_ir as ir

    for name in _lora_names(graph):
        value = graph.initializers[name]
        rows, columns = value.shape
        is_a = ".lora_A." in name
        empty = np.zeros((rows, 0) if is_a else (0, columns), dtype=np.float32)
        rank = Slots.dimension(max_rank)
        value.const_value = ir.tensor(empty, name=name)
        value.shape = ir.Shape([rows, rank] if is_a else [rank, columns])
        graph.inputs.append(value)


def _lora_names(graph: Any) -> Iterator[str]:
    yield from [name for name in graph.initializers if ".lora_A." in name or ".lora_B." in name]


if __name__ == "__main__":
    try:
        _child(json.load(sys.stdin))
    except UnsupportedBase as refusal:
        sys.stderr.write(f"\n{refusal}")
        sys.exit(_REFUSED)
