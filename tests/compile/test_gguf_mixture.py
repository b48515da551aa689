"""The ported rules, held against what llama.cpp writes."""

import pytest
from gguf_models import Shape, calibration_text, write_llama

from compile.errors import BadRecipe, UnsupportedBase
from compile.gguf.files import fallbacks
from compile.gguf.importance import importance
from compile.gguf.mixture import FILE_TYPES, NEED_IMPORTANCE, PORTED, Override, designed, settled, size_of
from compile.gguf.quantize import quantize
from models.gguf import TensorType, read_header

KINDS = sorted(PORTED - {"F32", "F16"})


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """16 layers, so that every rule about "the first eighth" has something to hold for."""
    folder = tmp_path_factory.mktemp("deep")
    source = write_llama(folder / "f32.gguf", Shape(layers=16, heads=8, kv_heads=2, inner=256))
    text = calibration_text(folder / "text.txt", 60)
    importance(source, text, folder / "importance.safetensors", 1, 48, 48)
    return source, folder / "importance.safetensors"


@pytest.mark.parametrize(
    ("kind", "weighted"), [*((kind, False) for kind in KINDS), ("Q4_0", True), ("IQ4_NL", True)]
)
def test_rows_that_divide_get_exactly_the_designed_mixture(deep, tmp_path, kind, weighted):
    source, weights = deep
    quantize(source, tmp_path / "q.gguf", kind, 1, weights if weighted else None)
    header = read_header(tmp_path / "q.gguf")
    wanted = designed(read_header(source), kind, weighted)
    assert {t.name: t.type for t in header.tensors if t.name in wanted} == wanted
    assert all(t.type is TensorType.F32 for t in header.tensors if t.name not in wanted)
    assert fallbacks(header, kind) == ()


@pytest.mark.parametrize(
    ("shape", "kinds"),
    [
        (
            Shape(width=96, inner=256, heads=3, kv_heads=1, tied=True, layers=8),
            ("Q8_0", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS"),
        ),
        (Shape(width=40, inner=48, heads=2, layers=1), ("Q6_K", "IQ4_NL")),
    ],
)
def test_rows_that_do_not_divide_fall_back_as_llama_cpp_does_and_are_listed(tmp_path, shape, kinds):
    source = write_llama(tmp_path / "f32.gguf", shape)
    plain = {tensor.name: tensor for tensor in read_header(source).tensors}
    for kind in kinds:
        quantize(source, tmp_path / "q.gguf", kind, 1)
        header = read_header(tmp_path / "q.gguf")
        wanted = designed(header, kind)
        got = {tensor.name: tensor for tensor in header.tensors}
        assert {name: settled(plain[name], one) for name, one in wanted.items()} == {
            name: got[name].type for name in wanted
        }
        assert all(size_of(plain[name], one) == got[name].size for name, one in wanted.items())
        ledger = {one.tensor: (one.asked, one.got) for one in fallbacks(header, kind)}
        assert ledger == {
            name: (one.name, got[name].type.name) for name, one in wanted.items() if got[name].type is not one
        }


def test_overrides_hold_and_move_nothing_else(deep, tmp_path):
    source, _ = deep
    chosen = (Override("blk.0.ffn_down.weight", TensorType.Q8_0), Override("output.weight", TensorType.Q4_K))
    quantize(source, tmp_path / "q.gguf", "Q4_K_M", 1, overrides=chosen)
    header = read_header(tmp_path / "q.gguf")
    wanted = designed(read_header(source), "Q4_K_M")
    wanted |= {one.tensor: one.type for one in chosen}
    assert {t.name: t.type for t in header.tensors if t.name in wanted} == wanted
    assert fallbacks(header, "Q4_K_M", chosen) == ()
    assert {one.tensor for one in fallbacks(header, "Q4_K_M")} == {one.tensor for one in chosen}


def test_types_that_need_an_importance_matrix_say_so(tmp_path):
    source = write_llama(tmp_path / "f32.gguf", Shape(layers=1, inner=256))
    for kind in sorted(NEED_IMPORTANCE):
        with pytest.raises(BadRecipe, match="importance matrix"):
            quantize(source, tmp_path / "q.gguf", kind, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["f32.gguf"]
    importance(source, calibration_text(tmp_path / "text.txt", 60), tmp_path / "weights", 1, 48, 48)
    quantize(source, tmp_path / "q.gguf", "IQ3_XXS", 1, tmp_path / "weights")
    assert FILE_TYPES["IQ3_XXS"] in {tensor.type for tensor in read_header(tmp_path / "q.gguf").tensors}


def test_what_is_not_known_is_refused_by_name(deep, tmp_path):
    source, _ = deep
    with pytest.raises(BadRecipe, match="Q4_K_M"):
        quantize(source, tmp_path / "q.gguf", "Q4_K_L", 1)
    with pytest.raises(BadRecipe, match=r"blk\.99"):
        quantize(source, tmp_path / "q.gguf", "Q4_0", 1, overrides=[Override("blk.99.w", TensorType.Q8_0)])
    with pytest.raises(BadRecipe, match="not the name"):
        Override(".*", TensorType.Q8_0)
    quantize(source, tmp_path / "q.gguf", "Q8_0", 1)
    with pytest.raises(UnsupportedBase, match="twice"):
        quantize(tmp_path / "q.gguf", tmp_path / "again.gguf", "Q4_0", 1)
