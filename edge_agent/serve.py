"""``outpost-edge serve --model``: any GGUF, ONNX folder or release, at once, without a hub or a home."""

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from edge_agent.admission import Limits
from edge_agent.catalog import Catalog, Served
from edge_agent.engines.encoder_process import EncoderProcess
from edge_agent.engines.files import (
    EngineFiles,
    check_served,
    describes_itself,
    of_path,
    of_release,
    weights_of,
)
from edge_agent.engines.residence import Residence
from edge_agent.engines.settings import EngineSettings
from edge_agent.engines.start import start_engine
from edge_agent.engines.text_process import EngineProcess
from edge_agent.errors import UnfitRelease, WrongUse
from edge_agent.rest.api import create_app
from edge_agent.server import Door, listen, serve_until_signal, url_of
from models import canonical
from models.digest import Digest
from models.engines.onnx_files import missing_beside
from models.manifest import MANIFEST_FILE, Kind, Manifest
from models.prompts import ChatTemplate
from models.store import digest_of, read_release, verify_files

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Source:
    """A name, and the weights to serve under it; with manifest and identity when they are of a release.

    ``files`` say how a model is loaded; an adapter is only its ``weights``.
    """

    name: str
    weights: Path
    manifest: Manifest | None = None
    release: Digest | None = None
    files: EngineFiles | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What ``serve`` was asked for: models, and adapters by the name of their base."""

    models: tuple[Source, ...]
    adapters: tuple[tuple[str, Source], ...]


def read_plan(models: Sequence[str], adapters: Sequence[str], projectors: Sequence[str] = ()) -> Plan:
    """The plan of ``NAME=PATH`` arguments; release folders are verified file by file.

    A projector has its model's name. An adapter is ``NAME=PATH`` beside one model, else ``BASE:NAME=PATH``.
    Raises ``WrongUse`` that names the flag, ``InvalidManifest``, ``DigestMismatch``, and ``UnfitRelease`` for
    a release that is no such thing or that was never checked against its base.
    """
    asked = [_asked("--model", text) for text in models]
    names = {one.name for one in asked}
    if not asked:
        raise WrongUse("--model NAME=PATH is needed at least once")
    if len(names) != len(asked):
        raise WrongUse("--model: a name is given twice")
    riders: list[tuple[str, _Asked]] = []
    for text in adapters:
        base, colon, rest = text.partition("=")[0].rpartition(":")
        if not colon and len(asked) > 1:
            raise WrongUse(f"--adapter {text}: several models are served; write BASE:{rest}=PATH")
        base = base if colon else asked[0].name
        if base not in names:
            raise WrongUse(f"--adapter {text}: no --model is called {base!r}")
        riders.append((base, _asked("--adapter", text.removeprefix(f"{base}:"))))
    if len({(base, one.name) for base, one in riders}) != len(riders):
        raise WrongUse("--adapter: a name is given twice")
    sights = [_asked("--projector", text) for text in projectors]
    if len({sight.name for sight in sights}) != len(sights):
        raise WrongUse("--projector: a name is given twice")
    for sight in sights:
        if sight.name not in names:
            raise WrongUse(f"{sight.said}: no --model is called {sight.name!r}")
    # How it was called is right; only now is any file read.
    bases = {one.name: _source(one, Kind.MODEL) for one in asked}
    bases |= {sight.name: _with_projector(bases[sight.name], sight) for sight in sights}
    ridden = [(base, _adapter(bases[base], one)) for base, one in riders]
    return Plan(tuple(bases.values()), tuple(ridden))


class _Asked(NamedTuple):
    """One ``NAME=PATH``, and how it was ``said``."""

    name: str
    path: Path
    said: str


def _asked(flag: str, text: str) -> _Asked:
    name, equals, place = text.partition("=")
    said = f"{flag} {text!r}"
    if not equals or not place:
        raise WrongUse(f"{said}: expected NAME=PATH")
    if not _NAME.fullmatch(name):
        raise WrongUse(f"{said}: a name is letters, digits, dots, dashes and underscores")
    if not Path(place).exists():
        raise WrongUse(f"{said}: there is no {place}")
    return _Asked(name, Path(place), said)


def _source(asked: _Asked, kind: Kind) -> Source:
    name, path, said = asked
    if not (path / MANIFEST_FILE).is_file():
        return _bare(said, name, path, kind)
    manifest, data = read_release(path)
    verify_files(path, manifest)
    if manifest.kind is not kind:
        raise UnfitRelease(f"{said}: the release is of kind {manifest.kind}, not {kind}")
    if kind is Kind.ADAPTER:
        check_served(manifest)
        return Source(name, path / weights_of(manifest).path, manifest, Digest.of(data))
    files = of_release(path, manifest)
    return Source(name, files.path, manifest, Digest.of(data), files)


def _with_projector(base: Source, asked: _Asked) -> Source:
    files = base.files
    if files is None or files.format != "gguf" or files.encoder is not None or base.release is not None:
        raise WrongUse(f"{asked.said}: {base.name!r} is no bare GGUF file that generates text")
    return replace(base, files=replace(files, projector=asked.path))


def _adapter(base: Source, asked: _Asked) -> Source:
    if base.files is not None and base.files.encoder is not None:
        raise WrongUse(f"{asked.said}: {base.name!r} does not generate text and takes no adapter")
    adapter = _source(asked, Kind.ADAPTER)
    _check_pair(base, adapter)
    return adapter


def _bare(asked: str, name: str, path: Path, kind: Kind) -> Source:
    """A file or folder that is no release."""
    if path.is_dir() and (kind is Kind.ADAPTER or not describes_itself(path)):
        raise WrongUse(
            f"{asked}: neither a GGUF file nor a folder with {MANIFEST_FILE}"
            + (", a model.onnx or a genai_config.json" if kind is Kind.MODEL else "")
        )
    if path.suffix.lower() == ".onnx":
        raise WrongUse(f"{asked}: {missing_beside(path)}")
    if kind is Kind.ADAPTER:
        return Source(name, path)
    files = of_path(path)
    return Source(name, files.path, files=files)


def _check_pair(base: Source, adapter: Source) -> None:
    if base.release is None or adapter.manifest is None or adapter.manifest.adapter is None:
        return  # a bare file makes no promise that could be checked; its shapes are, by the engine
    if base.release not in adapter.manifest.adapter.checked_against:
        raise UnfitRelease(
            f"adapter {adapter.name!r} was never checked against this release of {base.name!r}"
        )


async def serve(
    plan: Plan, door: Door, settings: EngineSettings, residence: Residence, say: Callable[[str], None]
) -> None:
    """Load everything once, serve until a signal. ``say`` is told what a person should know.

    Raises what ``listen``, ``Door`` and ``EngineProcess.start`` raise.
    """
    tls, hosts, keys = door.tls(), door.hosts(), door.key_ring(time.monotonic)
    catalog = Catalog()
    async with AsyncExitStack() as stack:
        server = listen(door)
        stack.callback(server.close)
        for source in plan.models:
            say(f"loading {source.name} from {source.weights}")
            riders = {a.name: a for base, a in plan.adapters if base == source.name}
            sized = replace(settings, contexts=min(settings.contexts, 1 + len(riders)))
            files = await asyncio.to_thread(_files, source, sized)
            engine = await start_engine(files, sized, residence)
            stack.push_async_callback(engine.close)
            if isinstance(engine, EncoderProcess):
                catalog.publish(_served_encoder(source, engine, int(time.time())))
                continue
            if engine.facts.context_tokens < settings.context_tokens:
                say(f"{source.name} was made for {engine.facts.context_tokens} tokens and gets no more")
            for adapter in riders.values():
                await engine.attach(adapter.name, adapter.weights)
            for rider in (None, *riders.values()):
                catalog.publish(_served(source, rider, engine, int(time.time())))
        app = create_app(
            catalog,
            journal=None,
            egress=None,
            now=time.time,
            monotonic=time.monotonic,
            new_id=lambda: secrets.token_hex(12),
            limits=Limits(running=settings.max_sequences),
            hosts=hosts,
            keys=keys,
        )
        watch = asyncio.create_task(residence.watch(), name="residence")
        stack.callback(watch.cancel)
        names = ", ".join(served.model_id for served in catalog.list())
        say(f"serving {names} at {url_of(server, tls is not None)}/v1 (no hub, no audit; Ctrl-C ends)")
        await serve_until_signal(app, server, tls, door.patience)


def _files(source: Source, settings: EngineSettings) -> EngineFiles:
    """What is loaded. What is kept of prompts is kept for these weights alone, so it takes their digest."""
    files = source.files or of_path(source.weights)
    keeps = settings.prefixes is not None and files.format == "gguf" and files.encoder is None
    return replace(files, weights=digest_of(files.path)) if keeps and files.weights is None else files


def _served_encoder(source: Source, engine: EncoderProcess, created: int) -> Served:
    return Served(
        model_id=source.name,
        engine=engine,
        adapter_key=None,
        template=None,
        context_tokens=engine.facts.max_tokens,
        release=source.release,
        created=created,
        task=engine.facts.task,
    )


def _served(source: Source, adapter: Source | None, engine: EngineProcess, created: int) -> Served:
    facts = engine.facts
    # What an adapter was trained to answer to, and to answer, is in the adapter's release.
    speaker = (adapter or source).manifest
    system_prompt = speaker.engine.system_prompt if speaker else None
    return Served(
        model_id=source.name if adapter is None else f"{source.name}:{adapter.name}",
        engine=engine,
        adapter_key=None if adapter is None else adapter.name,
        template=(
            ChatTemplate(facts.chat_template, facts.bos, facts.eos, facts.control_tokens)
            if facts.chat_template
            else None
        ),
        context_tokens=facts.context_tokens,
        made_for_tokens=facts.context_length,
        takes=facts.takes,
        release=source.release,
        adapter_release=None if adapter is None else adapter.release,
        output_schema=speaker.engine.output_schema if speaker else None,
        system_prompt=system_prompt,
        prompt_version=Digest.of(
            canonical.encode({"template": facts.chat_template, "system_prompt": system_prompt})
        ),
        created=created,
    )
