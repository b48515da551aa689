"""What is loaded on a device: an engine per base release, the adapters attached to it, and how they answer.

Owns: starting engines beside each other, attaching every adapter release under a key of its own (so that an
old and a new release of one adapter live side by side over the same weights), replaying probes, and letting
go of what nobody needs. Refuses: deciding what serves, and anything durable
(``edge_agent.updates.activation``).
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from edge_agent.catalog import Catalog, EncoderEngine, Served
from edge_agent.engines.encoder_probes import answer_of, call_of
from edge_agent.engines.files import EngineFiles, check_served, of_release, projector_of, weights_of
from edge_agent.errors import ProbeFailed, UnfitRelease
from edge_agent.updates.figures import Timed, Weigh, figures_of
from edge_agent.updates.releases import Need
from edge_agent.updates.state import Release, verified
from models import canonical
from models.digest import Digest
from models.engines.base import EncoderFacts, Event, GenerateRequest, ModelFacts, Sampling, Usage
from models.engines.onnx_encoder import probe_file
from models.errors import EngineError, InvalidRequest, InvalidTemplate
from models.manifest import Manifest, Probe
from models.probes import judge
from models.prompts import ChatTemplate
from models.store import BlobStore
from sync.protocol import Figures


class TextEngine(Protocol):
    """A loaded base model that takes adapters: an engine process, or anything that behaves like one."""

    @property
    def facts(self) -> ModelFacts:
        """What was loaded."""

    @property
    def pid(self) -> int | None:
        """The process that holds it, None for none."""

    def generate(self, request: GenerateRequest) -> AsyncIterator[Event]:
        """See ``edge_agent.catalog.TextEngine``."""

    async def attach(self, key: str, path: Path) -> None:
        """Load an adapter beside the base. Raises ``EngineError``, ``UnsafeFile``."""

    async def detach(self, key: str) -> None:
        """Drop an adapter when its requests have ended."""

    async def close(self) -> None:
        """Unload everything."""


class Encoder(EncoderEngine, Protocol):
    """A loaded encoder or vision model."""

    @property
    def pid(self) -> int | None:
        """The process that holds it, None for none."""

    async def close(self) -> None:
        """Unload everything."""


Engine = TextEngine | Encoder

StartEngine = Callable[[EngineFiles], Awaitable[Engine]]
"""Loads a model. Raises ``EngineError``, ``UnsafeFile``."""


@dataclass(slots=True)
class _Base:
    engine: Engine
    files: EngineFiles
    precision: str
    template: ChatTemplate | None
    folder: Path | None  # where its files lie under their names, if they do
    load_seconds: float
    adapters: set[Digest] = field(default_factory=set)

    def text_engine(self) -> TextEngine:
        """The engine of a base that takes adapters. Raises ``UnfitRelease``."""
        if isinstance(self.engine.facts, EncoderFacts):
            raise UnfitRelease("an adapter cannot ride on a model that does not generate text")
        return self.engine


class Stage:
    """Engines and adapters in memory.

    ``needs`` forecasts how many bytes an engine will take, ``free_memory`` tells how many it may, ``weigh``
    what one has taken.
    """

    def __init__(
        self,
        store: BlobStore,
        catalog: Catalog,
        start: StartEngine,
        needs: Callable[[EngineFiles], int],
        free_memory: Callable[[], int],
        weigh: Weigh,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._start = start
        self._needs = needs
        self._free_memory = free_memory
        self._weigh = weigh
        self._bases: dict[Digest, _Base] = {}
        self._retired: list[Served] = []

    @property
    def engines(self) -> dict[Digest, Engine]:
        """The engines that run now, by base release."""
        return {digest: base.engine for digest, base in self._bases.items()}

    @property
    def waiting(self) -> bool:
        """Whether something replaced still answers requests, so that ``collect`` has to come again."""
        return bool(self._retired)

    async def load_base(self, release: Release) -> Served:
        """Start the engine of a base release unless it runs; returns how it would be served.

        Raises ``UnfitRelease`` for a verdict, ``EngineError`` or ``UnsafeFile`` from the engine.
        """
        manifest = verified(release)
        if release.digest not in self._bases:
            files, folder = await asyncio.to_thread(self._files, release.digest, manifest)
            if self._bases:  # the first may try its luck: there is nothing that it could take down
                needed, free = await asyncio.to_thread(self._needs, files), self._free_memory()
                if needed > free:
                    raise EngineError(
                        f"no memory to load {manifest.name} {manifest.version} beside what runs: "
                        f"it needs about {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free"
                    )
            began = _clock()
            engine = await self._start(files)
            seconds = _clock() - began
            try:
                template = _template(manifest, engine.facts)
            except UnfitRelease:
                await engine.close()
                raise
            self._bases[release.digest] = _Base(engine, files, manifest.precision, template, folder, seconds)
        return self._served(manifest, manifest.name, release.digest, None)

    async def load_adapter(self, release: Release, base: Release) -> Served:
        """Attach an adapter release to a base that is loaded or gets loaded. Raises as ``load_base`` does."""
        manifest = verified(release)
        await self.load_base(base)
        loaded = self._bases[base.digest]
        if release.digest not in loaded.adapters:
            weights = self._store.path(weights_of(manifest).sha256)
            await loaded.text_engine().attach(release.digest.hex, weights)
            loaded.adapters.add(release.digest)
        name = f"{verified(base).name}:{manifest.name}"
        return self._served(manifest, name, base.digest, release.digest)

    async def replay(self, served: Served, manifest: Manifest) -> Figures | None:
        """Ask every probe of a staged release; what it took, None where that cannot be told.

        Raises ``ProbeFailed``, ``UnfitRelease``, ``EngineError``.
        """
        timed = []
        for number, probe in enumerate(manifest.probes):
            answer, one = await self._ask(served, f"probe-{served.model_id}-{number}", probe)
            timed.append(one)
            verdict = judge(probe, answer)
            if not verdict.passed:
                raise ProbeFailed(
                    f"{served.model_id}, probe {number + 1} of {len(manifest.probes)}: similarity "
                    f"{verdict.similarity:.2f}, needed {probe.tolerance:.2f}; answered {answer[:80]!r}"
                )
        return await self._figures(served, timed)

    def publish(self, served: Served) -> None:
        """Let ``served`` answer from now on; what it replaces finishes its requests."""
        self._retire(self._catalog.publish(served))

    def withdraw(self, model_id: str) -> None:
        """Let nothing answer to ``model_id``."""
        self._retire(self._catalog.withdraw(model_id))

    async def collect(self, needs: Collection[Need]) -> None:
        """Unload what is not needed and answers no request any more. Raises ``EngineError``."""
        self._retired = [served for served in self._retired if self._catalog.in_flight(served)]
        busy = {(id(served.engine), served.adapter_key) for served in self._retired}
        for digest, base in list(self._bases.items()):
            needed = {need.adapter for need in needs if need.base == digest}
            running = {key for engine, key in busy if engine == id(base.engine)}
            if not needed and not running:
                del self._bases[digest]
                await base.engine.close()
                continue
            for adapter in [a for a in base.adapters if a not in needed and a.hex not in running]:
                await base.text_engine().detach(adapter.hex)
                base.adapters.discard(adapter)

    async def close(self) -> None:
        """Stop every engine."""
        while self._bases:
            _, base = self._bases.popitem()
            await base.engine.close()

    def _files(self, release: Digest, manifest: Manifest) -> tuple[EngineFiles, Path | None]:
        """What is loaded of a base. One file is loaded where it lies; several are laid out first."""
        check_served(manifest)
        if manifest.format == "gguf":
            weights, projector = weights_of(manifest).sha256, projector_of(manifest)
            sight = self._store.path(projector.sha256) if projector else None
            path = self._store.path(weights)
            return EngineFiles("gguf", path, weights=weights, projector=sight), None
        folder = self._store.lay_out(release, manifest.files)
        return of_release(folder, manifest), folder

    async def _figures(self, served: Served, timed: Sequence[Timed]) -> Figures | None:
        base = self._bases.get(served.release) if served.release is not None else None
        if base is None:
            return None
        engine = base.engine
        footprint = await asyncio.to_thread(self._weigh, base.files, base.precision, engine.facts, engine.pid)
        return figures_of(footprint, timed, base.load_seconds if served.adapter_release is None else None)

    async def _ask(self, served: Served, request_id: str, probe: Probe) -> tuple[str, Timed]:
        if served.task is None:
            return await _ask_for_text(served, request_id, probe)
        folder = self._bases[served.release].folder if served.release is not None else None
        if folder is None:
            raise UnfitRelease(f"{served.model_id} has probes, and its files are not laid out")
        data = None if probe.text is not None else await asyncio.to_thread(probe_file, folder, probe)
        return await _ask_encoder(served, probe, data)

    def _retire(self, served: Served | None) -> None:
        if served is not None:
            self._retired.append(served)

    def _served(self, manifest: Manifest, model_id: str, base: Digest, adapter: Digest | None) -> Served:
        loaded = self._bases[base]
        facts, system_prompt = loaded.engine.facts, manifest.engine.system_prompt
        if isinstance(facts, EncoderFacts):
            return Served(
                model_id=model_id,
                engine=loaded.engine,
                adapter_key=None,
                template=None,
                context_tokens=facts.max_tokens,
                release=base,
                task=facts.task,
            )
        source = loaded.template.source if loaded.template is not None else None
        return Served(
            model_id=model_id,
            engine=loaded.engine,
            adapter_key=None if adapter is None else adapter.hex,
            template=loaded.template,
            context_tokens=facts.context_tokens,
            made_for_tokens=facts.context_length,
            takes=facts.takes,
            release=base,
            adapter_release=adapter,
            output_schema=manifest.engine.output_schema,
            system_prompt=system_prompt,
            prompt_version=Digest.of(canonical.encode({"template": source, "system_prompt": system_prompt})),
        )


def _template(manifest: Manifest, facts: ModelFacts | EncoderFacts) -> ChatTemplate | None:
    if isinstance(facts, EncoderFacts):
        return None
    promised = manifest.engine.chat_template
    if facts.chat_template is None:
        if promised is not None:
            raise UnfitRelease(f"{manifest.name} promises a chat template and its file holds none")
        return None
    if promised is not None and Digest.of(facts.chat_template.encode()) != promised:
        raise UnfitRelease(f"the chat template of {manifest.name} is not the one of its manifest")
    try:
        return ChatTemplate(facts.chat_template, facts.bos, facts.eos, facts.control_tokens)
    except InvalidTemplate as error:
        raise UnfitRelease(str(error)) from error


def _clock() -> float:
    """Seconds, for durations."""
    return asyncio.get_running_loop().time()


async def _ask_encoder(served: Served, probe: Probe, data: bytes | None) -> tuple[str, Timed]:
    """One answer as ``models.probes`` judges it, asked as the API would ask it, and how long it took."""
    engine = served.encoder()
    began = _clock()
    try:
        answer = await engine.ask(call_of(probe, data))
    except InvalidRequest as error:
        raise UnfitRelease(f"a probe cannot be asked: {error}") from error
    timed = Timed(item_seconds=_clock() - began)
    return answer_of(answer, engine.facts.task, engine.facts.labels), timed


async def _ask_for_text(served: Served, request_id: str, probe: Probe) -> tuple[str, Timed]:
    """One greedy answer, asked as ``/v1/chat/completions`` would ask it, and how long its parts took.

    The prompt has been read when the first token is chosen.
    """
    if served.template is None:
        raise UnfitRelease(f"{served.model_id} has probes and no chat template to ask them with")
    chat = list(probe.messages)
    if served.system_prompt is not None and all(message.get("role") != "system" for message in chat):
        chat.insert(0, {"role": "system", "content": served.system_prompt})
    text: list[str] = []
    usage, began, first = Usage(), _clock(), None
    try:
        prompt = served.template.prompt(chat)
        sampling = Sampling(probe.max_tokens)
        request = GenerateRequest(request_id, prompt.text, sampling, served.adapter_key, prompt.literal)
        async for event in served.text_engine().generate(request):
            if event.error is not None:
                raise event.error
            text.append(event.text)
            usage = event.usage
            if first is None and (usage.completion_tokens or event.done):
                first = _clock()
    except (InvalidTemplate, InvalidRequest) as error:
        raise UnfitRelease(f"a probe cannot be asked: {error}") from error
    read = began if first is None else first
    return "".join(text), Timed(
        prompt=usage.prompt_tokens - usage.cached_tokens,
        prompt_seconds=read - began,
        answer=max(0, usage.completion_tokens - 1),
        answer_seconds=_clock() - read,
    )
