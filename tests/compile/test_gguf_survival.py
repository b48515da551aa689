"""An adapter beside a quantized base, inside one, and one that is not heard any more."""

import pytest
from gguf_models import Shape, write_llama, write_lora

from compile.errors import UnsupportedBase
from compile.gguf.dequantize import rows_of
from compile.gguf.quantize import quantize
from compile.gguf.survival import Nearness, Survival, advise, merge, nearness, survival, yardstick
from models.gguf import read_header

PROMPTS = [
    "the cat sat",
    "why it came from here",
    "what was there",
    "a mat and you",
    "to you but not",
    "saw it",
]


def quiet(done, note):
    pass


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survival")
    reference = write_llama(folder / "f32.gguf", Shape(inner=256, kv_heads=4))
    quantize(reference, folder / "q8.gguf", "Q8_0", 1)
    quantize(reference, folder / "q4.gguf", "Q4_0", 1)
    return folder


def measured(base, folder, strength):
    adapter = write_lora(folder / "adapter.gguf", base / "f32.gguf", strength)
    against = folder / "yardstick"
    yardstick(base / "f32.gguf", adapter, PROMPTS, against, 1, 12, quiet)
    return adapter, against


def test_an_adapter_beside_a_good_base_survives_and_merging_is_exact_arithmetic(base, tmp_path):
    adapter, against = measured(base, tmp_path, 0.3)
    found = survival(base / "q8.gguf", adapter, against, tmp_path / "q8", 1, quiet)
    assert found.survives and found.margin.low > 0
    assert found.adapted.mean_kl.high < 0.1 * found.alone.mean_kl.low
    merge(base / "f32.gguf", adapter, tmp_path / "merged.gguf")
    same = nearness(tmp_path / "merged.gguf", against, tmp_path / "merged", 1, quiet)
    assert same.mean_kl.value < 1e-4 and same.mean_kl.value < 0.1 * found.adapted.mean_kl.value


def test_an_adapter_that_does_nothing_is_found_out(base, tmp_path):
    adapter, against = measured(base, tmp_path, 0.3)
    silent = write_lora(tmp_path / "silent.gguf", base / "f32.gguf", 0.0)
    assert not survival(base / "q8.gguf", silent, against, tmp_path / "silent", 1, quiet).survives
    assert survival(base / "q8.gguf", adapter, against, tmp_path / "heard", 1, quiet).survives


def on_the_grid(base, packed, target):
    """The reference that a quantized source gives: F32 weights that lie on its grid."""
    plain = {tensor.name: tensor for tensor in read_header(base).tensors}
    content = bytearray(base.read_bytes())
    with packed.open("rb") as file:
        for tensor in read_header(packed).tensors:
            raw = b"".join(slab.tobytes() for slab in rows_of(file, tensor))
            at = plain[tensor.name].offset
            content[at : at + len(raw)] = raw
    target.write_bytes(content)
    return target


def apart_and_merged(reference, kind, adapter, folder):
    against = folder / "yardstick"
    yardstick(reference, adapter, PROMPTS, against, 1, 12, quiet)
    quantize(reference, folder / "base.gguf", kind, 1)
    separate = survival(folder / "base.gguf", adapter, against, folder / "separate", 1, quiet).adapted
    merge(reference, adapter, folder / "merged-f32.gguf")
    quantize(folder / "merged-f32.gguf", folder / "merged.gguf", kind, 1)
    return separate, nearness(folder / "merged.gguf", against, folder / "merged", 1, quiet)


def test_merging_into_weights_that_lie_on_the_grid_loses_a_small_adapter(base, tmp_path):
    """A base that was quantized before: alone it comes back as it was, merged it rounds the adapter away."""
    reference = on_the_grid(base / "f32.gguf", base / "q4.gguf", tmp_path / "grid.gguf")
    adapter = write_lora(tmp_path / "adapter.gguf", reference, 0.02)
    separate, merged = apart_and_merged(reference, "Q4_0", adapter, tmp_path)
    choice, why = advise(separate, merged)
    assert choice == "separate" and "loses more" in why
    assert separate.mean_kl.high < merged.mean_kl.low


def test_merging_into_weights_that_were_never_quantized_costs_about_the_same(base, tmp_path):
    """The rounding error is drawn anew and no larger: which is nearer is for the measurement to say."""
    adapter = write_lora(tmp_path / "adapter.gguf", base / "f32.gguf", 0.05)
    separate, merged = apart_and_merged(base / "f32.gguf", "Q4_0", adapter, tmp_path)
    assert 0.8 < merged.mean_kl.value / separate.mean_kl.value < 1.25


def test_advice_follows_the_interval_and_keeps_apart_what_cannot_be_told():
    tokens = (10,) * 40
    near = Nearness(tokens, tuple(0.1 + 0.001 * (at % 3) for at in range(40)), (0,) * 40)
    far = Nearness(tokens, tuple(0.3 + 0.001 * (at % 5) for at in range(40)), (1,) * 40)
    assert advise(near, far)[0] == "separate" and "loses more" in advise(near, far)[1]
    assert advise(far, near)[0] == "merged"
    assert advise(near, near) == advise(near, near) and "cannot tell" in advise(near, near)[1]
    assert Survival(near, far).survives and not Survival(far, near).survives
    assert not Survival(near, near).survives


def test_what_cannot_be_merged_is_refused_and_nothing_is_left(base, tmp_path):
    adapter = write_lora(tmp_path / "adapter.gguf", base / "f32.gguf", 0.1)
    with pytest.raises(UnsupportedBase, match="F32 reference"):
        merge(base / "q8.gguf", adapter, tmp_path / "merged.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter.gguf"]
