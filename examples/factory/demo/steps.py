"""The eight steps of the demo. Each does one thing as its user would, then checks what it saw."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import spoil
from fleet import DEVICES, HEAVY_TOKENS, Fleet
from processes import at_once, run, run_json, wait_until
from story import Story, attempt
from traffic import Load, ask

from models.digest import Digest
from models.manifest import Manifest

CANARIES = {"restricted": "CANARY-7f3a-restricted", "internal": "CANARY-9b1e-internal"}
"""Strings that occur nowhere else, one for each data class."""


@dataclass(frozen=True)
class Compiled:
    """What step 1 leaves behind: release folders, their manifests, and what was measured."""

    base_folder: Path
    upstream_folder: Path
    adapter_folder: Path
    next_adapter_folder: Path
    base: Manifest
    adapter: Manifest
    next_adapter: Manifest
    report: dict[str, Any]
    tickets: list[str]
    figures: dict[str, str] = field(default_factory=dict)


def compile_releases(story: Story, recipe: Path, following: Path, work: Path, cache: Path) -> Compiled:
    """Step 1: fine-tune, quantize, measure, gate, package; both versions of the adapter."""
    with story.step(
        1,
        "Compile",
        "A base model is fine-tuned on maintenance tickets and shrunk; what misses its budget is refused.",
    ):
        first = run_json("outpost-compile", "run", recipe, "--out", work / "v1", "--cache", cache, show=True)
        second = run_json(
            "outpost-compile", "run", following, "--out", work / "v2", "--cache", cache, show=True
        )
        folders = {name: work / "v1" / folder for name, folder in first["releases"].items()}
        base, adapter = _manifest(folders[first["chosen"]]), _manifest(folders["adapter"])
        next_folder = work / "v2" / second["releases"]["adapter"]
        for variant in first["variants"]:
            if not variant["pass"]:
                story.event(f"refused {variant['name']}: {variant['refusal']}")
        story.check(
            "a variant meets its budget at the pessimistic end of the interval",
            any(v["name"] == first["chosen"] and v["pass"] for v in first["variants"]),
            f"{first['chosen']}, {base.files[0].size / 1e6:.0f} MB",
        )
        story.check(
            "every release verifies: files re-hashed, probes replayed",
            not any(attempt(partial(run, "outpost-compile", "verify", one)) for one in folders.values()),
            ", ".join(folders),
        )
        story.check("the Q8_0 base for the upstream met its budget too", "q8_0" in folders)
        story.check(
            "the adapter was checked on the base that ships",
            adapter.adapter is not None and base.digest in adapter.adapter.checked_against,
            base.digest[:23],
        )
        effect = _chosen(first)["quality"]["adapter_effect"]
        story.check(
            "the adapter still changes the answers on the base that ships",
            effect["pass"] and effect["value"] > 0,
            f"class accuracy {effect['value']:+.2f} against the base alone",
        )
        return Compiled(
            folders[first["chosen"]],
            folders["q8_0"],
            folders["adapter"],
            next_folder,
            base,
            adapter,
            _manifest(next_folder),
            first,
            _tickets(adapter, first),
            _figures(first, second),
        )


def sign_and_publish(story: Story, fleet: Fleet, compiled: Compiled) -> None:
    """Step 2: keys on a machine that is not the hub; the releases signed there; the hub publishes."""
    with story.step(
        2,
        "Sign and publish",
        "Two of three offline keys sign what was compiled. The hub hands it out; it could not have made it.",
    ):
        fleet.make_keys_and_hub()
        fleet.sign(compiled.base_folder)
        fleet.sign(compiled.adapter_folder)
        said = fleet.publish(compiled.next_adapter_folder, expect=3)
        story.check("the hub refuses a release that nobody signed", "not signed" in said, _last_line(said))
        fleet.publish(compiled.base_folder)
        fleet.publish(compiled.adapter_folder)
        story.event(f"published {compiled.base.name} and {compiled.adapter.name} {compiled.adapter.version}")


def ship(story: Story, fleet: Fleet, compiled: Compiled) -> None:
    """Step 3: enrol, connect, receive desired state, fetch, verify, probe, activate."""
    with story.step(
        3, "Ship", "Two devices make their own keys, enrol, and fetch what two signatures agree on."
    ):
        fleet.start_upstream(compiled.upstream_folder, compiled.adapter_folder)
        fleet.start_hub()
        story.event("hub and broker are up")
        at_once(*(partial(fleet.enroll, device) for device in DEVICES))
        for device in DEVICES:
            fleet.start_agent(device)
        story.event("both devices enrolled and started")
        fleet.roll_out(compiled.base)
        fleet.roll_out(compiled.adapter)
        for device in DEVICES:
            wait_until(
                f"{device} activates base and adapter",
                lambda d=device: fleet.runs(d, compiled.base) and fleet.runs(d, compiled.adapter),
                120,
            )
            story.event(f"{device} is active")
        for device in DEVICES:
            story.check(
                f"{device} negotiated TLS 1.3 with the broker",
                fleet.link_facts(device)["tls"] == "TLSv1.3",
                fleet.link_facts(device)["tls"],
            )
            story.check(
                f"{device}: the bytes of the adapter came over MQTT, those of the base over HTTPS",
                fleet.carried(device, compiled.adapter) == {"mqtt"}
                and fleet.carried(device, compiled.base) == {"https"},
            )
        story.check(
            "broker and device listener refuse whoever shows no client certificate",
            fleet.refuses_strangers(fleet.broker) and fleet.refuses_strangers(fleet.devices),
        )
        story.check("the broker was spoken to in MQTT 5", "broker" in fleet.received("\0\4MQTT\5"))


def serve(story: Story, fleet: Fleet, compiled: Compiled) -> None:
    """Step 4: tickets answered at the device; a heavy request answered by the hub's upstream."""
    with story.step(
        4,
        "Serve",
        "The openai client asks each device; a heavy request goes through the hub to a Q8_0 agent.",
    ):
        for device in DEVICES:
            plain = ask(fleet.client(device), fleet.model, fleet.system, compiled.tickets[0])
            streamed = ask(fleet.client(device), fleet.model, fleet.system, compiled.tickets[0], stream=True)
            story.check(f"{device} answers a ticket with JSON", plain.as_json is not None, plain.text)
            story.check("a streamed answer is the same answer", streamed.text == plain.text)
            story.check(
                "the receipt names base, adapter and audit record",
                plain.receipt.get("release") == compiled.base.digest
                and plain.receipt.get("adapter") == compiled.adapter.digest
                and plain.receipt.get("audit") is not None,
            )
        heavy = ask(
            fleet.client("edge-a"),
            fleet.model,
            fleet.system,
            compiled.tickets[1],
            data_class="internal",
            max_tokens=HEAVY_TOKENS,
        )
        bigger = _manifest(compiled.upstream_folder)
        story.check(
            "a heavy request is answered by the hub's upstream: a third agent with the Q8_0 base",
            heavy.receipt.get("served_by") == "hub"
            and bigger.precision == "Q8_0"
            and bigger.digest in json.dumps(heavy.receipt),
            heavy.text,
        )
        person = ask(fleet.gateway(), fleet.model, fleet.system, compiled.tickets[2])
        story.check("a person with a token asks the gateway", person.as_json is not None, person.text)


def cut(story: Story, fleet: Fleet, compiled: Compiled) -> None:
    """Step 5: restricted content stays; without hub and broker the devices keep answering."""
    with story.step(
        5, "Cut the link", "First: what left the device? Then hub and broker vanish, and a device restarts."
    ):
        answers = {
            data_class: ask(
                fleet.client("edge-a"),
                fleet.model,
                fleet.system,
                f"{canary}: {compiled.tickets[3]}",
                data_class=data_class,
                max_tokens=HEAVY_TOKENS,
            )
            for data_class, canary in CANARIES.items()
        }
        story.check(
            "the same heavy request runs at the hub when internal, on the device when restricted",
            (answers["internal"].receipt["served_by"], answers["restricted"].receipt["served_by"])
            == ("hub", "edge"),
        )
        wait_until("the audit trail drains", lambda: fleet.drained("edge-a"), 60)
        story.check(
            "the search sees into what the broker carried: it finds a signed report there",
            "broker" in fleet.received("desired_version"),
        )
        internal = fleet.received(CANARIES["internal"])
        story.check(
            "it finds the internal canary in what hub and upstream received",
            {"devices", "upstream"} <= internal,
            ", ".join(sorted(internal)),
        )
        restricted = fleet.received(CANARIES["restricted"])
        story.check(
            "it finds the restricted canary nowhere in what hub, broker and upstream received",
            not restricted,
            ", ".join(sorted(restricted)) or f"{fleet.tapped_bytes() / 1e6:.1f} MB searched",
        )
        fleet.stop_hub()
        story.event("hub and broker are gone")
        before = {device: fleet.audit(device)["size"] for device in DEVICES}
        fleet.restart_agent("edge-a")
        wait_until("edge-a answers after a restart without a network", lambda: fleet.ready("edge-a"), 60)
        story.event("edge-a restarted offline and serves")
        for device in DEVICES:
            for ticket in compiled.tickets[:3]:
                ask(fleet.client(device), fleet.model, fleet.system, ticket)
            trail = fleet.audit(device)
            story.check(
                f"offline, {device} answers and its trail grows by an intent and a result each",
                trail["size"] == before[device] + 6 and trail["acknowledged"] <= before[device],
                f"{trail['size'] - trail['acknowledged']} records wait",
            )


def heal(story: Story, fleet: Fleet, compiled: Compiled) -> None:
    """Step 6: the trail drains against signed receipts; anyone can verify it; a flipped byte shows."""
    with story.step(6, "Heal", "The link returns; the trail drains; an outsider verifies it from files."):
        fleet.start_hub()
        for device in DEVICES:
            wait_until(f"{device}'s trail drains", lambda d=device: fleet.drained(d), 90)
        sizes = {device: fleet.audit(device)["size"] for device in DEVICES}
        exported, keys = fleet.export_audit()
        verified = run_json("outpost-hub", "audit", "verify", *exported, "--device-keys", keys)["verified"]
        story.check(
            "the trails verify from files and public keys, as long as the devices say they are",
            {each["device"]: each["records"] for each in verified} == sizes,
            ", ".join(f"{each['device']}: {each['records']} records" for each in verified),
        )
        withheld = {each["device"]: each["withheld"] for each in verified}
        story.check(
            "the restricted call stands in the trail by its hashes alone",
            withheld == {"edge-a": 2, "edge-b": 0},
            str(withheld),
        )
        broken = exported[0].with_name("flipped.jsonl")
        shutil.copy(exported[0], broken)
        record = spoil.flip_one_byte(broken)
        words = run("outpost-hub", "audit", "verify", broken, "--device-keys", keys, expect=3)
        story.check("one flipped byte is found and its record named", record in words, _last_line(words))
        asked = CANARIES["internal"]
        auditor = fleet.offline / "auditor.pem"
        story.check("the auditor's key opens what was asked", asked in fleet.open_audit(exported[0], auditor))
        opening = [partial(fleet.open_audit, exported[0], key, None) for key in fleet.hub_keys()]
        story.check(
            "no key of the hub opens it, and it is nowhere in the hub's database",
            not any(asked in words for words in at_once(*opening)) and not fleet.hub_database_holds(asked),
            f"{len(opening)} keys tried",
        )


def update_under_load(story: Story, fleet: Fleet, compiled: Compiled) -> None:
    """Step 7: a new adapter while requests run."""
    with story.step(
        7, "Adapter update under load", "Version 1.1.0 of the adapter replaces 1.0.0 while both devices work."
    ):
        fleet.sign(compiled.next_adapter_folder)
        running = {device: fleet.base_processes(device) for device in DEVICES}
        with fleet.load(compiled.tickets) as load:
            time.sleep(1.5)
            published = time.time()
            fleet.publish(compiled.next_adapter_folder)
            fleet.roll_out(compiled.next_adapter)
            seconds = {}
            for device in DEVICES:
                wait_until(f"{device} runs 1.1.0", lambda d=device: fleet.runs(d, compiled.next_adapter), 120)
                seconds[device] = time.time() - published
                story.event(f"{device} runs {compiled.next_adapter.version}")
            _answers_from(load, compiled.next_adapter.digest)
            wait_until(
                "probation ends well",
                lambda: all(fleet.committed(d, compiled.next_adapter) for d in DEVICES),
                120,
            )
        story.check(
            "no request failed",
            not load.failed,
            f"{len(load.answered)} answered, {len(load.failed)} failed {load.failed[:2] or ''}",
        )
        both = [compiled.adapter.digest, compiled.next_adapter.digest]
        story.check(
            "each device answered from the old adapter, then from the new one",
            all(load.releases_seen(device) == both for device in DEVICES),
        )
        shares = [load.valid_share(release) for release in both]
        story.check(
            "both versions answered with JSON",
            min(shares) >= 0.8,
            ", ".join(f"{share:.0%}" for share in shares),
        )
        story.check(
            "no base was reloaded",
            all(fleet.base_processes(device) == running[device] for device in DEVICES),
            ", ".join(f"{d}: process {pid}" for d, engines in running.items() for _, pid, _ in engines),
        )
        fleet.figures["publish to active"] = ", ".join(f"{d} {s:.1f} s" for d, s in seconds.items())
        story.event(f"publish to active: {fleet.figures['publish to active']}")


def bad_releases(story: Story, fleet: Fleet, compiled: Compiled) -> None:
    """Step 8: two bad adapters, properly signed; one fails its probes, one gets worse in use."""
    with story.step(
        8, "A bad release", "Two properly signed adapters are bad: one fails its probes, one degrades in use."
    ):
        broken = spoil.broken_adapter(compiled.next_adapter_folder, fleet.work / "broken", "1.2.0")
        drifting = spoil.drifting_adapter(
            compiled.next_adapter_folder, compiled.base_folder, fleet.work / "drifting", "1.3.0"
        )
        _refused(story, fleet, compiled, broken, "ProbeFailed")
        _refused(story, fleet, compiled, drifting, "broke the output schema")
        for device in DEVICES:
            version = compiled.next_adapter.version
            story.check(f"{device} still runs {version}", fleet.runs(device, compiled.next_adapter))


def _refused(story: Story, fleet: Fleet, compiled: Compiled, folder: Path, word: str) -> None:
    """Publish and roll out a bad release under load; every device gives it up, and the page says why."""
    release = _manifest(folder)
    fleet.sign(folder)
    reasons: list[str] = []
    with fleet.load(compiled.tickets) as load:
        fleet.publish(folder)
        fleet.roll_out(release)
        for device in DEVICES:
            reason = wait_until(
                f"{device} gives {release.version} up", lambda d=device: fleet.rolled_back(d, release), 240
            )
            story.check(f"{device} gives {release.version} up", word in reason, reason)
            reasons.append(reason)
        _answers_from(load, compiled.next_adapter.digest)
    page = fleet.console()
    story.check(
        f"the fleet page gives the devices' reasons for not running {release.version}",
        all(reason in page for reason in reasons),
    )
    story.check(
        f"no request failed while {release.version} came and went",
        not load.failed,
        f"{len(load.answered)} answered {load.failed[:2] or ''}",
    )
    fleet.abort(release)


WALK = (sign_and_publish, ship, serve, cut, heal, update_under_load, bad_releases)


def _answers_from(load: Load, release: Digest) -> None:
    """Wait until every agent under load has answered with ``release`` once more."""
    mark = time.time()
    wait_until(
        "answers after the change",
        lambda: (
            {
                name
                for name, at, answer in load.answered
                if at > mark and answer.receipt.get("adapter") == release
            }
            == set(load.agents)
        ),
        90,
    )


def _manifest(folder: Path) -> Manifest:
    return Manifest.parse((folder / "release.json").read_bytes())


def _chosen(report: dict[str, Any]) -> dict[str, Any]:
    """The variant that ships."""
    return next(variant for variant in report["variants"] if variant["name"] == report["chosen"])


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def _tickets(adapter: Manifest, report: dict[str, Any]) -> list[str]:
    """Tickets that were not trained on: those of the adapter's probes first, then the rest of the test."""
    known = [probe.messages[-1]["content"] for probe in adapter.probes]
    return known + [one["input"] for one in report["cases"] if one["input"] not in known]


def _figures(first: dict[str, Any], second: dict[str, Any]) -> dict[str, str]:
    """The compile stage in a few lines, for the table at the end."""
    found = {}
    for variant in first["variants"]:
        score = variant["quality"]["class_accuracy"]
        verdict = "the reference" if variant["is_reference"] else "ships" if variant["pass"] else "refused"
        size, speed = variant["bytes"] / 1e6, variant["speed"]["tokens_per_second"]
        found[f"{variant['name']}, {size:.0f} MB"] = (
            f"class accuracy {score['value']:.3f}, {speed:.0f} tokens/s, {verdict}"
        )
    for name, scores in first["baselines"].items():
        found[name] = f"class accuracy {scores['class_accuracy']['value']:.3f}"
    after = _chosen(second)["quality"]["class_accuracy"]["value"]
    found["version 2 of the adapter"] = f"class accuracy {after:.3f}"
    return found
