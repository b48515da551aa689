"""Exports by GenAI's model builder: right, small, honest about what is lost, closed to misfits."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from genai_folders import MAX_RANK, TARGETS, exported, hf_folder, quiet, work, write_peft
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from compile.errors import BadRecipe, UnsupportedBase
from compile.evaluate.tokens import first_difference, readings
from compile.onnx.genai import GenaiSettings, export, export_adapter, ledger
from compile.recipe.language import LanguageVariant
from models.engines.onnx_genai import GenaiEngine, check_folder, lora_slots, parameters_of
from models.engines.onnx_genai import GenaiSettings as EngineSettings
from models.errors import UnsafeFile
from models.manifest import AdapterSlots
from models.onnx import read_model

pytestmark = [pytest.mark.model, pytest.mark.slow]


def reference_logits(ids: list[int], adapter: Path | None = None) -> np.ndarray:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(hf_folder(), local_files_only=True)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


@pytest.fixture(scope="module")
def fp32() -> GenaiEngine:
    return GenaiEngine(exported("fp32", slots=True), EngineSettings(context_tokens=256))


def test_the_exported_model_computes_what_the_original_does(fp32: GenaiEngine) -> None:
    ids = fp32.tokenize("The prime minister said the fires were under control on Tuesday.", False, True)
    assert len(ids) > 10
    np.testing.assert_allclose(fp32.score(ids), reference_logits(ids), atol=2e-4)


def test_token_ids_are_those_of_the_reference_tokenizer(fp32: GenaiEngine) -> None:
    known = readings(Tokenizer.from_file(str(hf_folder() / "tokenizer.json")), None)
    assert not first_difference(known, fp32.tokenize)


def test_an_adapter_computes_what_peft_does_and_leaves_the_base_alone(
    fp32: GenaiEngine, tmp_path: Path
) -> None:
    ids = fp32.tokenize("The prime minister said the fires were under control", False, True)
    before = fp32.score(ids)
    peft = write_peft(tmp_path / "peft", seed=1)
    facts = export_adapter(peft, exported("fp32", slots=True), tmp_path / "a.onnx_adapter")
    assert facts == AdapterSlots(max_rank=4, targets=tuple(sorted(TARGETS)))
    fp32.attach("a", tmp_path / "a.onnx_adapter")
    adapted = fp32.score(ids, adapter="a")
    assert np.abs(adapted - before).max() > 0.5
    np.testing.assert_allclose(adapted, reference_logits(ids, peft), atol=2e-3)
    np.testing.assert_array_equal(fp32.score(ids), before)


def test_an_adapter_of_some_layers_leaves_the_others_alone(fp32: GenaiEngine, tmp_path: Path) -> None:
    """As LoRA that begins at a later layer (`first_layer`) makes it."""
    peft = write_peft(tmp_path / "peft", seed=2)
    file = peft / "adapter_model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if ".layers.0." not in name}
    assert kept.keys() < load_file(file).keys()
    save_file(kept, file)
    export_adapter(peft, exported("fp32", slots=True), tmp_path / "some.onnx_adapter")
    fp32.attach("some", tmp_path / "some.onnx_adapter")
    ids = fp32.tokenize("The prime minister said the fires were under control", False, True)
    adapted = fp32.score(ids, adapter="some")
    assert np.abs(adapted - fp32.score(ids)).max() > 0.5
    np.testing.assert_allclose(adapted, reference_logits(ids, peft), atol=2e-3)


def test_one_adapter_attaches_to_every_base_with_the_same_slots(tmp_path: Path) -> None:
    base = exported("int4", slots=True)
    export_adapter(
        write_peft(tmp_path / "peft", seed=1), exported("fp32", slots=True), tmp_path / "a.onnx_adapter"
    )
    engine = GenaiEngine(base, EngineSettings(context_tokens=256))
    engine.attach("a", tmp_path / "a.onnx_adapter")
    ids = engine.tokenize("fires in Sydney", False, True)
    assert np.abs(engine.score(ids, adapter="a") - engine.score(ids)).max() > 0.5


def test_slots_travel_with_the_graph() -> None:
    slots = lora_slots(read_model(exported("fp32", slots=True) / "model.onnx"))
    assert slots is not None
    assert slots.max_rank == MAX_RANK
    assert slots.targets == tuple(sorted(TARGETS))
    assert lora_slots(read_model(exported("int8") / "model.onnx")) is None


def test_sizes_and_ledger() -> None:
    counted = {
        parameters_of(check_folder(exported(name, slots=name != "int8")).model)
        for name in ("fp32", "int8", "int4")
    }
    assert len(counted) == 1, "packing does not change how many there are"
    weights = {
        name: (exported(name, slots=name != "int8") / "model.onnx.data").stat().st_size
        for name in ("fp32", "int8", "int4")
    }
    assert weights["int8"] < 0.32 * weights["fp32"]
    assert weights["int4"] < 0.20 * weights["fp32"]
    int8 = read_model(exported("int8") / "model.onnx")
    assert ledger(int8, GenaiSettings("int8")) == ()
    asked_four = ledger(int8, GenaiSettings("int4"))
    assert {one.got for one in asked_four} == {"int8"}
    assert any("lm_head" in one.tensor for one in asked_four)


def test_what_a_recipe_keeps_at_eight_bits_is_no_fallback(tmp_path: Path) -> None:
    said = {"algorithm": "rtn", "block_size": 64, "eight_bits": ["lm_head", "layers.0/mlp/down_proj"]}
    one = LanguageVariant.model_validate({"name": "g4", "type": "genai-int4", "genai": said})
    settings = GenaiSettings(one.genai_precision, **one.genai_settings)
    export(hf_folder(), settings, tmp_path, work() / "scratch", quiet)
    model = read_model(tmp_path / "model.onnx")
    quantized = {tensor.name for tensor in model.initializers if "MatMul.weight_Q" in tensor.name}
    packed = {name for name in quantized if not name.endswith(("_scale", "_zp"))}
    eight = {name for name in packed if "_Q8G" in name}
    assert eight == {"lm_head.MatMul.weight_Q8G64", "model.layers.0.mlp.down_proj.MatMul.weight_Q8G64"}
    assert all(name.endswith("_Q4G64") for name in packed - eight) and packed > eight
    assert ledger(model, settings) == ()
    assert {one.tensor for one in ledger(model, GenaiSettings("int4"))} == eight


@pytest.mark.parametrize(
    ("type_", "said", "why"),
    [
        ("Q8_0", {"block_size": 64}, "genai says how genai-int8 and genai-int4"),
        ("genai-fp32", {"block_size": 64}, "genai says how genai-int8 and genai-int4"),
        ("genai-int8", {"eight_bits": ["lm_head"]}, "no others to spare"),
        ("genai-int4", {"block_size": 48}, "block_size"),
    ],
)
def test_a_recipe_says_nothing_of_the_builder_that_it_would_not_do(type_: str, said: dict, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        LanguageVariant.model_validate({"name": "g", "type": type_, "genai": said})


def test_the_same_export_gives_the_same_bytes(tmp_path: Path) -> None:
    export(hf_folder(), GenaiSettings("int8", algorithm="rtn"), tmp_path, work() / "scratch", quiet)
    for path in sorted(exported("int8").iterdir()):
        ours = hashlib.sha256(path.read_bytes()).hexdigest()
        assert ours == hashlib.sha256((tmp_path / path.name).read_bytes()).hexdigest(), path.name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias=all"),
        ({"peft_type": "PREFIX_TUNING"}, "no LoRA"),
        ({"r": MAX_RANK + 1}, f"at most {MAX_RANK}"),
        ({"r": 2}, "shape"),
    ],
)
def test_an_adapter_that_would_lose_something_is_refused(change: dict, message: str, tmp_path: Path) -> None:
    peft = write_peft(tmp_path / "peft", seed=1)
    config = json.loads((peft / "adapter_config.json").read_text())
    (peft / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(UnsupportedBase, match=message):
        export_adapter(peft, exported("fp32", slots=True), tmp_path / "a.onnx_adapter")
    assert not (tmp_path / "a.onnx_adapter").exists()


def test_an_adapter_for_another_target_is_refused(tmp_path: Path) -> None:
    peft = write_peft(tmp_path / "peft", seed=1, targets=("q_proj", "o_proj"))
    with pytest.raises(UnsupportedBase, match=r"no slot for .*o_proj"):
        export_adapter(peft, exported("fp32", slots=True), tmp_path / "a.onnx_adapter")
    with pytest.raises(UnsupportedBase, match="without slots"):
        export_adapter(peft, exported("int8"), tmp_path / "a.onnx_adapter")


def test_sources_that_are_not_safe_are_refused_before_anything_runs(tmp_path: Path) -> None:
    source = tmp_path / "hf"
    shutil.copytree(hf_folder(), source, ignore=shutil.ignore_patterns("text"))
    (source / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(UnsafeFile, match=r"pytorch_model\.bin"):
        export(source, GenaiSettings("int4"), tmp_path, tmp_path, quiet)
    (source / "pytorch_model.bin").unlink()
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "x.Y"}}))
    with pytest.raises(UnsupportedBase, match="code of its own"):
        export(source, GenaiSettings("int4"), tmp_path, tmp_path, quiet)
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadRecipe, match="no c_attn"):
        slots = AdapterSlots(max_rank=4, targets=("c_attn", "q_proj"))
        export(source, GenaiSettings("int4", slots=slots), tmp_path, tmp_path, quiet)


def test_settings_that_cannot_be_had_are_refused() -> None:
    for wrong in ({"block_size": 48}, {"accuracy_level": 2}):
        with pytest.raises(BadRecipe):
            GenaiSettings("int4", **wrong)
    with pytest.raises(BadRecipe, match="no four-bit weights"):
        GenaiSettings("int8", eight_bits=("lm_head",))
