"""The audit log as mathematics: leaves, Merkle trees, proofs, signed checkpoints.

Owns: the bytes of a leaf, the tree over them, and every rule by which a trail is believed. Refuses:
storing, sending and sealing. Pure: no clock, no randomness, no I/O.

Tree: RFC 6962 section 2.1 with SHA-256 (verification of proofs: RFC 9162 sections 2.1.3.2, 2.1.4.2).
Checkpoint: https://c2sp.org/tlog-checkpoint in a https://c2sp.org/signed-note with an Ed25519 key.
Hashes are 32 raw bytes here and 64 lower-case hex digits in messages.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sync.errors import AuditBroken, InvalidMessage
from sync.protocol import AuditRecord, AuditSegment, DeviceId, Message

TOMBSTONE = "erasure"
"""The kind of a record that says which data keys were destroyed (``facts["key_ids"]``)."""

_HEX = re.compile(r"[0-9a-f]{64}")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_DASH = "\u2014"  # the em dash that the format begins a signature line with
_ED25519 = b"\x01"


def leaf_hash(leaf: bytes) -> bytes:
    """The hash of a leaf: SHA-256(0x00 || leaf)."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node: SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def tree_root(hashes: Sequence[bytes]) -> bytes:
    """The root over leaf hashes: RFC 6962's definition, word for word. Linear in time."""
    if not hashes:
        return hashlib.sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    split = _split(len(hashes))
    return node_hash(tree_root(hashes[:split]), tree_root(hashes[split:]))


@dataclass(frozen=True, slots=True)
class Frontier:
    """All that is needed to go on with a tree: its size and the roots of its perfect subtrees.

    ``peaks`` has one hash per set bit of ``size``, the largest subtree first.
    Law: ``extend(hashes).root == tree_root(hashes)`` from the empty frontier.
    """

    size: int = 0
    peaks: tuple[bytes, ...] = ()

    def append(self, leaf: bytes) -> "Frontier":
        """With one more leaf, given by its hash. Logarithmic in time."""
        peaks, size, node = list(self.peaks), self.size, leaf
        while size & 1:
            node = node_hash(peaks.pop(), node)
            size >>= 1
        return Frontier(self.size + 1, (*peaks, node))

    def extend(self, leaves: Sequence[bytes]) -> "Frontier":
        """With these leaves, given by their hashes, in order."""
        result = self
        for leaf in leaves:
            result = result.append(leaf)
        return result

    @property
    def root(self) -> bytes:
        """The root of the tree so far."""
        if not self.peaks:
            return tree_root(())
        node = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            node = node_hash(peak, node)
        return node

    def encode(self) -> str:
        """One line of text. Law: ``decode(encode(f)) == f``."""
        return ":".join([str(self.size), *(peak.hex() for peak in self.peaks)])

    @classmethod
    def decode(cls, text: str) -> Self:
        """Raises ``InvalidMessage``."""
        size, *peaks = text.split(":")
        if not _SIZE.fullmatch(size) or not all(_HEX.fullmatch(peak) for peak in peaks):
            raise InvalidMessage(f"not a frontier: {text!r:.100}")
        if int(size).bit_count() != len(peaks):
            raise InvalidMessage(f"a frontier of size {size} does not have {len(peaks)} peaks")
        return cls(int(size), tuple(bytes.fromhex(peak) for peak in peaks))


def inclusion_proof(index: int, hashes: Sequence[bytes]) -> list[bytes]:
    """RFC 6962 section 2.1.1: the audit path of leaf ``index`` in the tree over ``hashes``."""
    if not 0 <= index < len(hashes):
        raise IndexError(f"no leaf {index} in a tree of {len(hashes)}")
    if len(hashes) == 1:
        return []
    split = _split(len(hashes))
    if index < split:
        return [*inclusion_proof(index, hashes[:split]), tree_root(hashes[split:])]
    return [*inclusion_proof(index - split, hashes[split:]), tree_root(hashes[:split])]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """RFC 9162 section 2.1.3.2. Raises ``AuditBroken`` unless the leaf hash is at ``index``."""
    broken = AuditBroken(f"record {index}: not proven to be in the tree of {size}")
    if not 0 <= index < size:
        raise broken
    node, last, current = leaf, size - 1, index
    for sibling in proof:
        if last == 0:
            raise broken
        if current & 1 or current == last:
            node = node_hash(sibling, node)
            while not current & 1 and current:
                current, last = current >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        current, last = current >> 1, last >> 1
    if last != 0 or node != root:
        raise broken


def consistency_proof(old_size: int, hashes: Sequence[bytes]) -> list[bytes]:
    """RFC 6962 section 2.1.2: that the tree over the first ``old_size`` leaves begins this one."""
    if not 0 < old_size <= len(hashes):
        raise IndexError(f"no earlier tree of {old_size} in a tree of {len(hashes)}")
    return _subproof(old_size, hashes, whole=True)


def verify_consistency(
    old_size: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]
) -> None:
    """RFC 9162 section 2.1.4.2. Raises ``AuditBroken`` unless the new tree only adds to the old one."""
    broken = AuditBroken(f"the tree of {size} is not proven to extend the tree of {old_size}")
    if not 0 < old_size <= size:
        raise broken
    if old_size == size:
        if proof or old_root != root:
            raise broken
        return
    path = list(proof) if old_size & (old_size - 1) else [old_root, *proof]
    if not path:
        raise broken
    first, second = old_size - 1, size - 1
    while first & 1:
        first, second = first >> 1, second >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if second == 0:
            raise broken
        if first & 1 or first == second:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not first & 1 and first:
                first, second = first >> 1, second >> 1
        else:
            new = node_hash(new, sibling)
        first, second = first >> 1, second >> 1
    if second != 0 or old != old_root or new != root:
        raise broken


def _subproof(old_size: int, hashes: Sequence[bytes], whole: bool) -> list[bytes]:
    if old_size == len(hashes):
        return [] if whole else [tree_root(hashes)]
    split = _split(len(hashes))
    if old_size <= split:
        return [*_subproof(old_size, hashes[:split], whole), tree_root(hashes[split:])]
    return [*_subproof(old_size - split, hashes[split:], whole=False), tree_root(hashes[:split])]


def _split(size: int) -> int:
    """The largest power of two below ``size``, which is at least 2."""
    return 1 << ((size - 1).bit_length() - 1)


class Leaf(Message):
    """What one record commits to, written as canonical JSON. It holds no content and no subject.

    ``at`` is in seconds since the Unix epoch. ``commitment`` is SHA-256(salt || ciphertext) in hex and
    ``key_id`` names the data key of the ciphertext. ``body`` says where the ciphertext went: ``sent``
    with the record, ``kept`` on the device, or ``none`` when there is no body.
    """

    v: Literal[1] = 1
    device: DeviceId
    epoch: int
    seq: int
    kind: str
    request_id: str
    at: float
    data_class: str
    facts: dict[str, Any]
    body: Literal["sent", "kept", "none"]
    key_id: str | None
    commitment: str | None


def erased_keys(leaf: Leaf) -> frozenset[str]:
    """The data keys that a tombstone says were destroyed; none for any other record."""
    listed = leaf.facts.get("key_ids") if leaf.kind == TOMBSTONE else None
    return (
        frozenset(item for item in listed if isinstance(item, str))
        if isinstance(listed, list)
        else frozenset()
    )


def commitment(salt: bytes, ciphertext: bytes) -> str:
    """What a leaf says of its ciphertext, in hex. The salt keeps equal bodies apart."""
    return hashlib.sha256(salt + ciphertext).hexdigest()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A device's word on its whole log: ``root`` (32 bytes) over ``size`` leaves of ``origin``."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """The signed part of the note."""
        return f"{self.origin}\n{self.size}\n{_b64(self.root)}\n"

    def sign(self, key: Ed25519PrivateKey) -> str:
        """The signed note. Its key's name is the origin."""
        text = self.text()
        stamp = _note_key_id(self.origin, key.public_key()) + key.sign(text.encode())
        return f"{text}\n{_DASH} {self.origin} {_b64(stamp)}\n"


def origin_of(device: str, epoch: int) -> str:
    """The name of a log: one per device and epoch."""
    return f"outpost-trail/{device}/{epoch}"


def open_checkpoint(note: str, origin: str, key: Ed25519PublicKey) -> Checkpoint:
    """The checkpoint in a signed note. Raises ``AuditBroken`` unless ``key`` signed it for ``origin``.

    Signatures of other keys are ignored, as the format asks, so that witnesses can be added.
    """
    broken = AuditBroken(f"{origin}: the checkpoint is not signed by the device's key")
    text, separator, signatures = note.rpartition("\n\n")
    lines = text.split("\n")
    if not separator or len(lines) < 3 or lines[0] != origin or not _SIZE.fullmatch(lines[1]):
        raise broken
    expected = _note_key_id(origin, key)
    for line in signatures.splitlines():
        dash, _, rest = line.partition(" ")
        name, _, stamp_text = rest.partition(" ")
        if dash != _DASH or name != origin:
            continue
        stamp = unbase64(stamp_text, broken)
        if stamp[:4] != expected:
            continue
        try:
            key.verify(stamp[4:], f"{text}\n".encode())
        except InvalidSignature:
            raise broken from None
        root = unbase64(lines[2], broken)
        if len(root) != 32:
            raise broken
        return Checkpoint(origin, int(lines[1]), root)
    raise broken


def check_record(record: AuditRecord, device: str, epoch: int, seq: int) -> tuple[bytes, Leaf | None]:
    """The record's leaf hash, and its leaf when it came. Raises ``AuditBroken`` naming the record.

    What is claimed of a record is checked against its hash; that the hash is in the log is shown by
    the checkpoint over all of them.
    """

    def broken(why: str) -> AuditBroken:
        return AuditBroken(f"record {epoch}/{seq} of {device}: {why}")

    if record.seq != seq:
        raise broken(f"{record.seq} stands in its place")
    if not _HEX.fullmatch(record.leaf_hash):
        raise broken("its leaf hash is not 64 hex digits")
    stated = bytes.fromhex(record.leaf_hash)
    if record.leaf is None:
        if record.salt is not None or record.ciphertext is not None:
            raise broken("a body came without its leaf")
        return stated, None
    data = record.leaf.encode()
    if leaf_hash(data) != stated:
        raise broken("its content is not what its leaf hash says")
    try:
        leaf = Leaf.from_bytes(data)
    except InvalidMessage as error:
        raise broken(str(error)) from error
    if (leaf.device, leaf.epoch, leaf.seq) != (device, epoch, seq):
        raise broken(f"its leaf belongs to {leaf.device} {leaf.epoch}/{leaf.seq}")
    if (leaf.body == "sent") != (record.salt is not None) or (record.salt is None) != (
        record.ciphertext is None
    ):
        raise broken("its body is not where its leaf says")
    if record.salt is not None and record.ciphertext is not None:
        salt = unbase64(record.salt, broken("its salt is not base64"))
        ciphertext = unbase64(record.ciphertext, broken("its ciphertext is not base64"))
        if commitment(salt, ciphertext) != leaf.commitment:
            raise broken("its ciphertext is not what its leaf commits to")
    return stated, leaf


def check_segment(
    segment: AuditSegment, before: Frontier, key: Ed25519PublicKey
) -> tuple[Frontier, list[Leaf | None]]:
    """The tree after a segment that continues ``before`` without gap, and the leaves that came.

    The device's checkpoint covers exactly the records up to the segment's last one. Raises
    ``AuditBroken``; nothing of a segment is believed unless all of it is.
    """
    where = f"{segment.device} epoch {segment.epoch}"
    if segment.first_seq != before.size:
        raise AuditBroken(f"{where}: record {before.size} is next, and {segment.first_seq} came")
    if not segment.records:
        raise AuditBroken(f"{where}: a segment without records")
    checked = [
        check_record(record, segment.device, segment.epoch, segment.first_seq + place)
        for place, record in enumerate(segment.records)
    ]
    after = before.extend([stated for stated, _ in checked])
    check_root(segment.checkpoint, segment.device, segment.epoch, after, key, before.size)
    return after, [leaf for _, leaf in checked]


def check_root(
    note: str, device: str, epoch: int, tree: Frontier, key: Ed25519PublicKey, first: int
) -> Checkpoint:
    """The signed checkpoint of exactly this tree. Raises ``AuditBroken`` naming records from ``first``."""
    checkpoint = open_checkpoint(note, origin_of(device, epoch), key)
    if checkpoint.size != tree.size or checkpoint.root != tree.root:
        raise AuditBroken(
            f"records {epoch}/{first} to {epoch}/{tree.size - 1} of {device}: the device signed another "
            f"root (over {checkpoint.size} records)"
        )
    return checkpoint


def unbase64(text: str, error: AuditBroken) -> bytes:
    """Decode the one canonical base64 form; raise ``error`` for any other."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise error from None
    if _b64(data) != text:
        raise error
    return data


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _note_key_id(name: str, key: Ed25519PublicKey) -> bytes:
    """signed-note: the first 4 bytes of SHA-256(name || LF || algorithm || public key)."""
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + raw).digest()[:4]
