"""Releases of an encoder line: the smallest variant that passed, with its probes and what was measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from compile.data.rows import read_splits, spread
from compile.errors import CompileError
from compile.evaluate.judge import VariantResult
from compile.evaluate.texts import read_measured
from compile.findings import Findings
from compile.line import REFERENCE
from compile.lines.encoder import EncoderParts, engine_of, evaluated
from compile.lines.encoder_work import tensorrt_tokens
from compile.lines.onnx_release import package_graphs
from compile.lines.release import Described
from compile.onnx.export import TOKENIZER
from compile.recipe.encoder import ClassifyRecipe
from compile.steps import Cache
from models.digest import Digest
from models.manifest import Engine, Probe
from models.probes import label_answer, vector_answer


def package(line: EncoderParts, cache: Cache, findings: Findings, out: Path) -> dict[str, Path]:
    """Write the chosen variant's release. Raises ``CompileError`` when nothing can be probed."""
    exported, section = cache.folder(line.exported), line.recipe.tensorrt
    tokenizer = exported / TOKENIZER
    read = engine_of(exported).model_copy(update={"tokenizer": Digest.of(tokenizer.read_bytes())})

    def describe(one: VariantResult, on_device: bool) -> Described:
        engine = read
        if on_device and section is not None and engine.text is not None:
            longest = tensorrt_tokens(section, exported)[2]
            engine = read.model_copy(update={"text": engine.text.model_copy(update={"max_tokens": longest})})
        return Described(engine, _probes(line, cache, one, engine), {TOKENIZER: tokenizer})

    return package_graphs(line, cache, findings, describe, out)


def _probes(line: EncoderParts, cache: Cache, chosen: VariantResult, engine: Engine) -> tuple[Probe, ...]:
    """Measured texts with the variant's own answers; of a classifier the surest right ones, of as many
    labels as there are."""
    recipe, labels = line.recipe, engine.labels
    rows = evaluated(recipe, read_splits(cache.folder(line.data)))
    whole = _read_whole(cache.folder(line.exported), engine, [row.text for row in rows])
    answers = read_measured(cache.folder(line.variants[chosen.name].measured)).answers
    theirs = read_measured(cache.folder(line.variants[REFERENCE].measured)).answers
    if not isinstance(recipe, ClassifyRecipe):
        picked = list(spread(whole, recipe.release.probes))
        said: Mapping[int, str] = {at: vector_answer(answers[at].tolist()) for at in picked}
    else:
        right = [
            at
            for at in whole
            if labels[answers[at].argmax()] == labels[theirs[at].argmax()] == rows[at].label
        ]
        right.sort(key=lambda at: -float(answers[at].max()))
        first = {rows[at].label: at for at in reversed(right)}
        picked = [*first.values(), *(at for at in right if at not in first.values())][: recipe.release.probes]
        said = {at: label_answer(labels, answers[at].tolist()) for at in picked}
    if not picked:
        raise CompileError(
            "of the measured texts that are read whole, the chosen variant gets none right: nothing to probe"
        )
    return tuple(
        Probe(text=rows[at].text, expected=said[at], tolerance=recipe.release.tolerance) for at in picked
    )


def _read_whole(exported: Path, engine: Engine, texts: Sequence[str]) -> list[int]:
    """Which texts fit the model: measuring cuts the others, a device refuses them."""
    from tokenizers import Tokenizer

    needs = engine.text
    tokenizer = Tokenizer.from_file(str(exported / TOKENIZER))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    read = tokenizer.encode_batch(list(texts))
    return [at for at, one in enumerate(read) if needs is None or len(one.ids) <= needs.max_tokens]
