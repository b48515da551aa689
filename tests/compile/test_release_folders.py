"""Packaging, inspecting and the command line on small GGUF files written here."""

import json
from functools import partial

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGUFWriter

from compile.cli import main
from compile.evaluate.tokens import CORPUS, first_difference, readings
from compile.gguf.files import fallbacks, precision
from compile.package import adapter_facts, package_release
from models.digest import Digest
from models.errors import InvalidManifest, UnsafeFile
from models.gguf import read_header
from models.manifest import AdapterFacts, Kind, Manifest, Probe
from models.store import verify_release

PROBE = Probe(messages=({"role": "user", "content": "hi"},), max_tokens=4, expected="{}", tolerance=0.9)


def write_gguf(path, tensors, adapter=False):
    writer = GGUFWriter(path, "llama")
    if adapter:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def adapter_file(tmp_path):
    tensors = {
        "blk.1.attn_q.weight.lora_a": np.ones((4, 32), dtype=np.float16),
        "blk.1.attn_q.weight.lora_b": np.ones((32, 4), dtype=np.float16),
        "blk.1.ffn_up.weight.lora_a": np.ones((4, 32), dtype=np.float16),
        "blk.1.ffn_up.weight.lora_b": np.ones((64, 4), dtype=np.float16),
    }
    return write_gguf(tmp_path / "lora.gguf", tensors, adapter=True)


def template(**changes) -> Manifest:
    facts = AdapterFacts(
        base_name="base",
        trained_on=Digest.of(b"b"),
        checked_against=(Digest.of(b"b"),),
        rank=4,
        targets=("x",),
    )
    fields = {
        "kind": Kind.ADAPTER,
        "name": "tickets",
        "version": "1.0.0",
        "format": "gguf",
        "precision": "F16",
        "files": (),
        "adapter": facts,
        "license": "Apache-2.0",
    }
    return Manifest(**fields | changes)


def test_the_ledger_lists_matrices_of_another_type_and_leaves_vectors_alone(tmp_path):
    tensors = {
        "output_norm.weight": np.ones(32, dtype=np.float32),
        "blk.0.attn_q.weight": np.ones((32, 32), dtype=np.float16),
        "token_embd.weight": np.ones((64, 32), dtype=np.float32),
    }
    header = read_header(write_gguf(tmp_path / "model.gguf", tensors))
    (entry,) = fallbacks(header, "F16")
    assert (entry.tensor, entry.asked, entry.got) == ("token_embd.weight", "F16", "F32")
    assert precision(header) == "F32"


def test_an_adapter_release_is_whole_and_names_rank_and_targets_as_shipped(tmp_path, adapter_file):
    facts = adapter_facts(adapter_file, "base", Digest.of(b"b"), [Digest.of(b"b"), Digest.of(b"c")])
    assert facts.rank == 4 and facts.targets == ("attn_q", "ffn_up")
    files = {"adapter.gguf": adapter_file}
    manifest = package_release(tmp_path / "out", template(adapter=facts, probes=(PROBE,)), files)
    assert verify_release(tmp_path / "out") == manifest
    assert manifest.probes == (PROBE,) and manifest.adapter.checked_against == facts.checked_against
    again = package_release(tmp_path / "other", manifest, files)
    assert again.digest == manifest.digest


def test_packaging_refuses_what_is_no_adapter(tmp_path, adapter_file):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(adapter_file.read_bytes()[:200])
    with pytest.raises(UnsafeFile):
        adapter_facts(broken, "base", Digest.of(b"b"), [])
    unsound = template().model_copy(update={"adapter": None})
    with pytest.raises(InvalidManifest):
        package_release(tmp_path / "out", unsound, {"adapter.gguf": adapter_file})
    assert not (tmp_path / "out" / "release.json").exists()


def test_inspect_names_what_it_sees_and_refuses_a_pickle(tmp_path, adapter_file):
    done = CliRunner().invoke(main, ["inspect", str(adapter_file), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["what"] == "GGUF adapter"
    pickle = tmp_path / "weights.pth"
    pickle.write_bytes(b"x")
    done = CliRunner().invoke(main, ["inspect", str(pickle)])
    assert done.exit_code == 1 and "pickle" in done.stderr
    huge = tmp_path / "huge.safetensors"
    huge.write_bytes((2 << 30).to_bytes(8, "little") + b"{}")
    done = CliRunner().invoke(main, ["inspect", str(huge)])
    assert done.exit_code == 1 and "a header of 2147483648 bytes" in done.stderr


def test_a_changed_byte_is_refused_by_verify(tmp_path, adapter_file):
    package_release(tmp_path / "out", template(probes=(PROBE,)), {"adapter.gguf": adapter_file})
    weights = tmp_path / "out" / "adapter.gguf"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    done = CliRunner().invoke(main, ["verify", str(tmp_path / "out")])
    assert done.exit_code == 3 and "adapter.gguf" in done.stderr


def test_a_wrong_recipe_ends_with_2_and_its_line(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base: {}\nfinetun: {}\n")
    done = CliRunner().invoke(main, ["plan", str(recipe)])
    assert done.exit_code == 2 and "line 2: unknown key 'finetun'; did you mean 'finetune'?" in done.stderr


class WordIds:
    """A tokenizer whose ids are the code points."""

    class Encoded:
        def __init__(self, text):
            self.ids = [ord(letter) for letter in text]

    def encode(self, text, add_special_tokens):
        return self.Encoded(text)


def test_one_other_token_id_or_a_missing_bos_is_found():
    def engine(text, special, parsed, bos=(), other=None):
        ids = [ord(letter) for letter in text]
        return [*(bos if special else ()), *(ids if text != other else [*ids[:-1], 7])]

    plain, begun = readings(WordIds(), None), readings(WordIds(), 1)
    assert not first_difference(plain, engine)
    assert not first_difference(begun, partial(engine, bos=[1]))
    assert "at its beginning: from token 1 on" in first_difference(begun, engine)
    found = first_difference(plain, partial(engine, other=CORPUS[3]))
    assert repr(CORPUS[3])[:20] in found and f"from token {len(CORPUS[3])} on the engine has [7]" in found
