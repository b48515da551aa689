"""How variants are measured: on held-out text, in their answers, and in what is left of the adapter.

Everything goes through the engine that will serve, in processes of their own (``compile.evaluate.measure``).
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from compile.data.rows import Row, read_splits
from compile.errors import Refused
from compile.evaluate.measure import measure
from compile.evaluate.tokens import readings
from compile.forecast import Forecast
from compile.gguf.files import vocabulary
from compile.line import versions
from compile.lines.language import (
    ADAPTER,
    BASE_PROBE,
    BASE_PROBE_TOKENS,
    GENAI,
    GENAI_ADAPTER,
    HF,
    REFERENCE_FILE,
    SURVIVAL,
    VariantSteps,
    answer_fields,
    before_rows,
    chat,
    template_of,
    test_rows,
)
from compile.lines.language_cases import text_ids
from compile.lines.language_sources import Sources
from compile.recipe.language import LanguageVariant
from compile.steps import Report, Step
from compile.training.examples import load_tokenizer
from models.gguf import read_header

Folders = Mapping[str, Path]


class Measurer:
    """Makes the steps that measure. ``root`` and ``data`` are those of the line."""

    def __init__(self, sources: Sources, root: Step, data: Step | None) -> None:
        self._sources, self._root, self._data = sources, root, data
        self._recipe, self._threads = sources.recipe, sources.workshop.threads

    def variant(
        self,
        name: str,
        model: Step,
        file: str,
        against: Step | None,
        adapter: Step | None,
        kind: LanguageVariant | None,
        yardstick: Step | None,
    ) -> VariantSteps:
        """All that is measured of one variant; ``against`` is the fidelity of what it is held against."""
        fidelity = self.fidelity(name, model, file, against, kind)
        alone = self.alone(name, model, file, kind) if adapter is not None else None
        answers = self._answers(name, model, file, adapter, kind) if self._data is not None else None
        survival = None
        if yardstick is not None and kind is not None:
            survival = self._survival(name, model, file, None if kind.merged else adapter, yardstick, kind)
        return VariantSteps(model, file, fidelity, alone, answers, adapter, against, survival)

    def fidelity(
        self,
        name: str,
        model: Step,
        file: str,
        against: Step | None,
        kind: LanguageVariant | None,
    ) -> Step:
        """Perplexity and divergence on held-out text, token ids, speed.

        Knows no data: a base is measured once, whatever adapters are made for it, and stays one release.
        """
        evaluate = self._recipe.evaluate

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            known = vocabulary(read_header(inputs["root"] / REFERENCE_FILE))
            tokenizer = load_tokenizer(inputs["root"] / HF)
            job = self._job(inputs, file, folder) | {
                "adapter": None,
                "probe": template_of(inputs["root"]).render(({"role": "user", "content": BASE_PROBE},)),
                "probe_tokens": BASE_PROBE_TOKENS,
                "text": {
                    "path": str(self._sources.text),
                    "tokens": evaluate.text_tokens,
                    "window": evaluate.window,
                    "ids": text_ids(tokenizer, self._sources.text, evaluate.text_tokens),
                },
                "against": str(inputs["against"]) if "against" in inputs else None,
                "tokens": readings(tokenizer, known.bos if known.add_bos else None),
            }
            differ = measure(job, report)["tokens_differ"]
            if differ and against is None:  # nothing can be held against it; a variant is judged
                raise Refused(f"{name}: {differ}")

        linked = {"model": model, "root": self._root}
        linked |= {"against": against} if against is not None else {}
        forecast = self._forecast(file, kind)
        heavy = self._sources.base_bytes / 540e6
        return Step(
            f"fidelity-{name}",
            {
                "text": self._sources.digests["text"],
                **self._stated(file, {"text_tokens", "window", "speed_repeats"}),
            },
            linked,
            self._tools(file),
            work,
            seconds=forecast.seconds + heavy * evaluate.text_tokens / 200,
            disk_bytes=self._logits(evaluate.text_tokens) if against is None else 1 << 20,
            ram_bytes=forecast.ram_bytes,
            alone=True,
        )

    def alone(self, name: str, model: Step, file: str, kind: LanguageVariant | None) -> Step | None:
        """What a model says to some of the data as it is, with no adapter; None where there is no data."""
        recipe = self._recipe
        if self._data is None:
            return None

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            rows = before_rows(recipe, read_splits(inputs["data"]))
            job = self._job(inputs, file, folder) | {
                "adapter": None,
                "prompts": self._prompts(inputs, rows),
                "wanted": self._wanted(inputs, rows),
                "speed_repeats": 0,
            }
            measure(job, report)

        forecast = self._forecast(file, kind, False, self._held())
        return Step(
            f"alone-{name}",
            self._asked(file, {"before_rows", "test_rows", "max_tokens"}),
            {"model": model, "root": self._root, "data": self._data},
            self._tools(file),
            work,
            seconds=forecast.seconds + recipe.evaluate.before_rows * 0.5 * self._sources.base_bytes / 540e6,
            ram_bytes=forecast.ram_bytes,
        )

    def yardstick(self, root: Step, adapter: Step) -> Step:
        """The reference's own answers with the adapter, and its distributions along them."""
        recipe = self._recipe

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.gguf.survival import yardstick

            yardstick(
                inputs["root"] / REFERENCE_FILE,
                inputs["adapter"] / ADAPTER,
                self._prompts(inputs, before_rows(recipe, read_splits(inputs["data"]))),
                folder,
                self._threads,
                recipe.evaluate.max_tokens,
                report,
            )

        forecast = self._forecast(REFERENCE_FILE, None, True, recipe.evaluate.max_tokens)
        return Step(
            "yardstick",
            self._asked(REFERENCE_FILE, {"before_rows", "test_rows", "max_tokens"}),
            {"root": root, "adapter": adapter} | ({"data": self._data} if self._data else {}),
            versions("llama-cpp-python") | {"outpost-survival": "1"},
            work,
            seconds=forecast.seconds + recipe.evaluate.before_rows * self._sources.base_bytes / 540e6,
            disk_bytes=self._logits(recipe.evaluate.before_rows * recipe.evaluate.max_tokens),
            ram_bytes=forecast.ram_bytes,
        )

    def _survival(
        self,
        name: str,
        model: Step,
        file: str,
        adapter: Step | None,
        yardstick: Step,
        kind: LanguageVariant,
    ) -> Step:
        """How near to the yardstick: with the adapter and without; of a merged model, as it is."""
        rider = GENAI_ADAPTER if file == GENAI else ADAPTER

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.gguf.survival import nearness, survival

            weights, against = inputs["model"] / file, inputs["yardstick"]
            if "adapter" in inputs:
                found = survival(
                    weights, inputs["adapter"] / rider, against, scratch / "measured", self._threads, report
                )
                stored = {"adapted": vars_of(found.adapted), "alone": vars_of(found.alone)}
            else:
                near = nearness(weights, against, scratch / "measured", self._threads, report)
                stored = {"adapted": vars_of(near)}
            (folder / SURVIVAL).write_text(json.dumps(stored), encoding="utf-8")

        vars_of = dataclasses.asdict
        forecast = self._forecast(file, kind, adapter is not None, self._recipe.evaluate.max_tokens)
        return Step(
            f"survival-{name}",
            {"threads": self._threads},
            {"model": model, "yardstick": yardstick} | ({"adapter": adapter} if adapter else {}),
            self._tools(file) | {"outpost-survival": "1"},
            work,
            seconds=forecast.seconds
            + self._recipe.evaluate.before_rows * 1.2 * self._sources.base_bytes / 540e6,
            ram_bytes=forecast.ram_bytes,
        )

    def _answers(
        self, name: str, model: Step, file: str, adapter: Step | None, kind: LanguageVariant | None
    ) -> Step:
        recipe = self._recipe
        rider = GENAI_ADAPTER if file == GENAI else ADAPTER

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            splits = read_splits(inputs["data"])
            job = self._job(inputs, file, folder) | {
                "adapter": str(inputs["adapter"] / rider) if "adapter" in inputs else None,
                "prompts": self._prompts(inputs, test_rows(recipe, splits)),
                "wanted": self._wanted(inputs, before_rows(recipe, splits)),
            }
            measure(job, report)

        linked = {"model": model, "root": self._root}
        linked |= {"data": self._data} if self._data is not None else {}
        linked |= {"adapter": adapter} if adapter is not None else {}
        forecast = self._forecast(file, kind, adapter is not None, self._held())
        return Step(
            f"answers-{name}",
            self._asked(file, {"test_rows", "max_tokens", "speed_repeats"}),
            linked,
            self._tools(file),
            work,
            seconds=forecast.seconds
            + (recipe.evaluate.test_rows or 96) * 0.45 * self._sources.base_bytes / 540e6,
            ram_bytes=forecast.ram_bytes,
            alone=True,
        )

    def _prompts(self, inputs: Folders, rows: tuple[Row, ...]) -> list[str]:
        template = template_of(inputs["root"])
        return [template.render(chat(self._recipe, row)) for row in rows]

    def _wanted(self, inputs: Folders, rows: tuple[Row, ...]) -> list[tuple[str, str]]:
        """Prompts and the answers that are wanted, with the end of their turn; a structured one is scored."""
        if answer_fields(self._recipe):
            return []
        known = vocabulary(read_header(inputs["root"] / REFERENCE_FILE))
        wanted = [row.answer + known.tokens[known.eos] for row in rows]
        return list(zip(self._prompts(inputs, rows), wanted, strict=True))

    def _job(self, inputs: Folders, file: str, folder: Path) -> dict[str, object]:
        evaluate = self._recipe.evaluate
        return {
            "model": str(inputs["model"] / file),
            "folder": str(folder),
            "threads": self._threads,
            "max_tokens": evaluate.max_tokens,
            "speed_repeats": evaluate.speed_repeats,
            "window": evaluate.window,
        }

    def _stated(self, file: str, keys: set[str]) -> dict[str, object]:
        """What decides a measurement besides its inputs."""
        chosen = self._recipe.evaluate.model_dump(mode="json", include=keys)
        return {"file": file, "threads": self._threads, **chosen}

    def _asked(self, file: str, keys: set[str]) -> dict[str, object]:
        """The same where rows of the data are asked."""
        return {"system": self._recipe.prompt.system, **self._stated(file, keys)}

    def _held(self) -> int:
        """Free answers are scored too: the distributions of one are held at a time, of so many tokens."""
        return 0 if answer_fields(self._recipe) else self._recipe.evaluate.max_tokens

    def _tools(self, file: str) -> dict[str, str]:
        engine = "onnxruntime-genai" if file == GENAI else "llama-cpp-python"
        return versions(engine) | {"outpost-measure": "3"}

    def _logits(self, tokens: int) -> int:
        """Bytes of the distributions of so many tokens, as float16."""
        return 2 * tokens * self._sources.facts.vocabulary

    def _forecast(
        self,
        file: str,
        kind: LanguageVariant | None,
        adapted: bool = False,
        window: int | None = None,
    ) -> Forecast:
        engine = "measure-genai" if file == GENAI else f"measure-gguf{'-adapter' if adapted else ''}"
        return self._sources.forecast(engine, kind.type if kind is not None else None, window=window)
