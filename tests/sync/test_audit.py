"""The audit log's mathematics: published vectors, and laws."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from sync import audit
from sync.audit import Checkpoint, Frontier, leaf_hash, tree_root
from sync.errors import AuditBroken

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))

# Leaves and roots of the reference tests of Certificate Transparency (RFC 6962).
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]

hashes = st.lists(st.binary(min_size=0, max_size=3).map(leaf_hash), max_size=40)


def test_published_roots():
    assert tree_root([]).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    for size, root in enumerate(ROOTS, 1):
        leaves = [leaf_hash(leaf) for leaf in LEAVES[:size]]
        assert tree_root(leaves).hex() == root
        assert Frontier().extend(leaves).root.hex() == root


def test_the_published_signed_note_verifies_under_our_key_name_rule():
    # The example key and note in the documentation of Go's sumdb/note, where the format comes from.
    raw = base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    key = Ed25519PublicKey.from_public_bytes(raw[1:])
    assert audit._note_key_id("PeterNeumann", key).hex() == "c74f20a3"
    text = (
        "If you think cryptography is the answer to your problem,\n"
        "then you don't know what your problem is.\n"
    )
    stamp = base64.b64decode(
        "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    )
    assert stamp[:4].hex() == "c74f20a3"
    key.verify(stamp[4:], text.encode())


@given(hashes, hashes)
def test_a_frontier_is_the_tree_and_goes_on_from_its_text(first, second):
    frontier = Frontier.decode(Frontier().extend(first).encode())
    assert frontier.extend(second).root == tree_root(first + second)
    assert frontier.root == tree_root(first)


@given(hashes.filter(bool), st.data())
def test_inclusion_is_proven_for_the_leaf_that_is_there_and_no_other(leaves, data):
    index = data.draw(st.integers(0, len(leaves) - 1))
    proof, root = audit.inclusion_proof(index, leaves), tree_root(leaves)
    audit.verify_inclusion(leaves[index], index, len(leaves), proof, root)
    with pytest.raises(AuditBroken):
        audit.verify_inclusion(leaf_hash(b"elsewhere"), index, len(leaves), proof, root)
    with pytest.raises(AuditBroken):
        audit.verify_inclusion(leaves[index], index, len(leaves), [*proof, root], root)
    if proof:
        with pytest.raises(AuditBroken):
            audit.verify_inclusion(leaves[index], index, len(leaves), proof[:-1], root)


@given(hashes.filter(bool), st.data())
def test_appending_never_changes_an_earlier_tree_and_that_can_be_proven(leaves, data):
    old = data.draw(st.integers(1, len(leaves)))
    proof = audit.consistency_proof(old, leaves)
    roots = tree_root(leaves[:old]), tree_root(leaves)
    audit.verify_consistency(old, roots[0], len(leaves), roots[1], proof)
    rewritten = tree_root([leaf_hash(b"rewritten"), *leaves[1:old]])
    with pytest.raises(AuditBroken):
        audit.verify_consistency(old, rewritten, len(leaves), roots[1], proof)
    with pytest.raises(AuditBroken):
        audit.verify_consistency(old, roots[0], len(leaves), roots[1], [*proof, roots[0]])


@given(
    st.binary(min_size=32, max_size=32), st.integers(0, 2**40), st.integers(0, 10_000), st.integers(1, 255)
)
def test_a_checkpoint_opens_as_it_was_signed_and_with_no_byte_changed(root, size, place, change):
    checkpoint = Checkpoint(audit.origin_of("dev-a", 1), size, root)
    note = checkpoint.sign(KEY)
    assert audit.open_checkpoint(note, checkpoint.origin, KEY.public_key()) == checkpoint
    data = bytearray(note.encode())
    data[place % len(data)] ^= change
    try:
        changed = data.decode()
    except UnicodeDecodeError:
        return
    with pytest.raises(AuditBroken):
        audit.open_checkpoint(changed, checkpoint.origin, KEY.public_key())


def test_a_checkpoint_of_another_log_or_key_is_not_believed_and_witnesses_may_be_added():
    checkpoint = Checkpoint(audit.origin_of("dev-a", 1), 3, bytes(32))
    note = checkpoint.sign(KEY)
    for origin, key in (
        (audit.origin_of("dev-a", 2), KEY),
        (checkpoint.origin, Ed25519PrivateKey.from_private_bytes(bytes(32))),
    ):
        with pytest.raises(AuditBroken):
            audit.open_checkpoint(note, origin, key.public_key())
    witnessed = note + "\u2014 witness.example AAAAAAAA\n"
    assert audit.open_checkpoint(witnessed, checkpoint.origin, KEY.public_key()) == checkpoint
