"""The bytes of what is stored or carried by hand: a change here breaks devices that are out there.

Run this file as a program to write the golden files anew.
"""

from pathlib import Path

from models.digest import Digest
from models.manifest import AdapterFacts, Engine, File, Kind, Manifest, Probe, Quality
from models.profiles import Machine
from sync.identity import EnrolmentToken
from sync.protocol import Assignment, Desired, Figures, ReleaseReport, Reported, State

GOLDEN = Path(__file__).parent.parent / "golden" / "ship"
ONE, TWO = Digest.of(b"one"), Digest.of(b"two")
MANIFEST = Manifest(
    kind=Kind.ADAPTER,
    name="tickets",
    version="1.2.3",
    format="gguf",
    precision="f16",
    files=(File(path="adapter.gguf", sha256=Digest.of(b"bytes"), size=5, chunks=(Digest.of(b"bytes"),)),),
    engine=Engine(output_schema={"type": "object"}, system_prompt="Antworte knapp. 简短回答。"),
    adapter=AdapterFacts(
        base_name="tiny", trained_on=ONE, checked_against=(ONE, TWO), rank=8, targets=("q",)
    ),
    lineage={"dataset": ONE},
    quality=(Quality(metric="f1", reference=0.5, value=0.75, ci95=(0.1, 0.4), budget=-0.05, passed=True),),
    probes=(Probe(messages=({"role": "user", "content": "x"},), max_tokens=8, expected="{}", tolerance=0.9),),
    license="Apache-2.0",
)
TOKEN = EnrolmentToken(hub_url="https://hub.example:8443", secret="s3cret", ca=ONE, root=TWO)
DESIRED = Desired(
    device="press-4",
    version=7,
    issued_at=1_790_000_000.25,
    assignments=(
        Assignment(
            kind=Kind.ADAPTER,
            name="tickets",
            version="1.2.3",
            release=MANIFEST.digest,
            target_path=MANIFEST.target_path,
        ),
    ),
)
REPORTED = Reported(
    device="press-4",
    session="5e55",
    sequence=3,
    desired_version=7,
    releases=(
        ReleaseReport(
            kind=Kind.MODEL,
            name="tiny",
            version="1.0.0",
            release=ONE,
            state=State.COMMITTED,
            attempts=1,
            at={State.COMMITTED: 1_790_000_100.5},
            figures=Figures(
                format="gguf",
                precision="q8_0",
                parameters=134_515_008,
                weight_bytes=144_811_584,
                kv_bytes=23_040,
                context_tokens=2048,
                sequences=4,
                computes="int8",
                threads=1,
                load_seconds=0.75,
                decode_per_second=41.5,
                prefill_per_second=130.25,
                peak_ram_bytes=452_000_000,
            ),
        ),
        ReleaseReport(kind=Kind.ADAPTER, name="tickets", version="1.2.3", release=TWO, state=State.OFFERED),
    ),
    at=1_790_000_200.0,
    machine=Machine("x86-64-avx2", 2, 8_000_000_000),
)
EARLIER = REPORTED.model_copy(
    update={
        "machine": None,
        "releases": tuple(each.model_copy(update={"figures": None}) for each in REPORTED.releases),
    }
)
"""The same from a device that measures nothing yet."""
FILES = {
    "release.json": MANIFEST.to_bytes(),
    "enrolment-token.txt": TOKEN.encode().encode(),
    "desired.json": DESIRED.to_bytes(),
    "reported.json": REPORTED.to_bytes(),
}


def test_stored_and_carried_bytes_do_not_change():
    assert {name: (GOLDEN / name).read_bytes() for name in FILES} == FILES


def test_golden_bytes_are_read_back():
    assert Manifest.parse((GOLDEN / "release.json").read_bytes()) == MANIFEST
    assert EnrolmentToken.decode((GOLDEN / "enrolment-token.txt").read_text()) == TOKEN
    assert Desired.from_bytes((GOLDEN / "desired.json").read_bytes()) == DESIRED
    assert Reported.from_bytes((GOLDEN / "reported.json").read_bytes()) == REPORTED


def test_reports_of_devices_that_measure_nothing_are_read():
    assert Reported.from_bytes((GOLDEN / "reported-without-figures.json").read_bytes()) == EARLIER


if __name__ == "__main__":
    for name, data in FILES.items():
        (GOLDEN / name).write_bytes(data)
