"""The embedded broker's rule book, on packets as bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_hub.mqtt_packets import MAX_PACKET, NOT_AUTHORIZED, Gate, read_connect, split
from sync.errors import InvalidMessage


def string(text):
    return len(text.encode()).to_bytes(2, "big") + text.encode()


def varint(value):
    out = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)


def packet(first, body):
    return bytes([first]) + varint(len(body)) + body


def connect(client_id="dev-a", will=None, version=5, user=None):
    flags = 0x02 | (0x04 if will else 0) | (0x80 if user else 0)
    body = string("MQTT") + bytes([version, flags]) + b"\x00\x1e" + b"\x00" + string(client_id)
    if will:
        body += b"\x05\x18\x00\x00\x00\x05" + string(will) + string("gone")
    return packet(0x10, body + (string(user) if user else b""))


def publish(topic, alias=None, qos=1):
    properties = b"" if alias is None else b"\x23" + alias.to_bytes(2, "big")
    number = b"\x00\x07" if qos else b""
    return packet(0x30 | qos << 1, string(topic) + number + varint(len(properties)) + properties + b"payload")


def connected(name="dev-a"):
    gate = Gate(name, ("front", "secret"))
    assert gate.receive(connect(name)).forward
    return gate


@given(st.lists(st.binary(max_size=400), max_size=8), st.integers(1, 50))
def test_packets_are_the_same_however_the_stream_is_cut(bodies, step):
    packets = [packet(0x30, body) for body in bodies]
    stream, buffer, found = b"".join(packets), bytearray(), []
    for at in range(0, len(stream), step):
        buffer += stream[at : at + step]
        found += split(buffer)
    assert found == packets
    assert not buffer


@pytest.mark.parametrize("head", [b"\x30\xff\xff\xff\xff\x01", b"\x30" + varint(MAX_PACKET + 1)])
def test_an_endless_packet_is_refused_before_its_body_comes(head):
    with pytest.raises(InvalidMessage):
        split(bytearray(head))


def test_a_connect_goes_on_with_the_fronts_credentials_in_place_of_its_own():
    gate = Gate("dev-a", ("front", "secret"))
    forwarded = gate.receive(connect(will="outpost/v1/dev-a/status", user="mallory")).forward
    assert forwarded.endswith(string("gone") + string("front") + string("secret"))
    assert b"mallory" not in forwarded
    read = read_connect(forwarded)
    assert (read.client_id, read.will_topic, read.flags & 0xC0) == ("dev-a", "outpost/v1/dev-a/status", 0xC0)


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (connect("dev-b"), 0x85),
        (connect("hub"), 0x85),
        (connect(will="outpost/v1/dev-b/status"), 0x87),
        (connect(version=4), 0x84),
        (connect()[:-3], 0x81),
        (publish("outpost/v1/dev-a/status"), None),
    ],
)
def test_a_connection_that_begins_wrongly_ends(first, reason):
    gate = Gate("dev-a", ("front", "secret"))
    if first[0] == 0x10 and reason == 0x81:
        first = packet(0x10, first[2:])
    verdict = gate.receive(first)
    assert verdict.close
    assert verdict.forward is None
    assert (verdict.answer and verdict.answer[3]) == reason


def test_publishing_elsewhere_is_refused_with_an_acknowledgement_that_says_so():
    gate = connected()
    assert gate.receive(publish("outpost/v1/dev-a/reported")).forward
    for topic in ("outpost/v1/dev-b/reported", "outpost/v1/dev-a/desired", "other", "outpost/v1/+/reported"):
        verdict = gate.receive(publish(topic))
        assert verdict.answer == bytes([0x40, 4, 0, 7, NOT_AUTHORIZED, 0])
        assert not verdict.forward
    assert gate.receive(publish("other", qos=0)).forward is None


def test_a_topic_alias_cannot_smuggle_a_topic():
    gate = connected()
    assert gate.receive(publish("", alias=3)).close
    gate = connected()
    assert gate.receive(publish("outpost/v1/dev-a/reported", alias=3)).forward
    assert gate.receive(publish("", alias=3)).forward
    assert gate.receive(publish("outpost/v1/dev-b/reported", alias=3)).close


def test_one_forbidden_filter_refuses_the_subscription():
    gate = connected()
    allowed, forbidden = string("outpost/v1/dev-a/desired") + b"\x01", string("outpost/v1/#") + b"\x01"
    assert gate.receive(packet(0x82, b"\x00\x09\x00" + allowed)).forward
    verdict = gate.receive(packet(0x82, b"\x00\x09\x00" + allowed + forbidden))
    assert verdict.answer == packet(0x90, b"\x00\x09\x00" + bytes([NOT_AUTHORIZED] * 2))
    assert not verdict.forward
    assert connected("hub").receive(packet(0x82, b"\x00\x09\x00" + forbidden)).forward


@given(st.binary(max_size=60), st.sampled_from([0x10, 0x30, 0x32, 0x82, 0xF0]))
def test_garbage_is_judged_and_never_raises(body, first):
    for gate in (Gate("dev-a", ("u", "p")), connected()):
        gate.receive(packet(first, body))
