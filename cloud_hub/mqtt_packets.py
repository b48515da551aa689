"""The few MQTT 5 packets that the embedded broker's front must understand, and its rule book.

Owns: cutting a byte stream into packets, reading CONNECT, PUBLISH and SUBSCRIBE as far as a decision
needs them, and the decision. Refuses: everything else of MQTT, which passes as it is. Pure: no I/O.

Format: MQTT 5.0, OASIS Standard, sections 2.1 (fixed header), 2.2.2 (properties), 3.1, 3.3, 3.8.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from sync import protocol
from sync.errors import InvalidMessage

MAX_PACKET = protocol.MAX_PAYLOAD + 4096
"""Bytes; the largest payload of the protocol, with room for its topic and properties."""

CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, SUBSCRIBE, SUBACK, DISCONNECT = 1, 2, 3, 4, 5, 8, 9, 14
_FROM_CLIENT = frozenset({PUBLISH, PUBACK, PUBREC, 6, 7, SUBSCRIBE, 10, 12, DISCONNECT})
"""What a connected client may send; 6, 7, 10, 12 are PUBREL, PUBCOMP, UNSUBSCRIBE, PINGREQ."""

MALFORMED, PROTOCOL_ERROR, UNSUPPORTED_VERSION = 0x81, 0x82, 0x84
BAD_CLIENT_ID, NOT_AUTHORIZED, TOPIC_ALIAS_INVALID = 0x85, 0x87, 0x94

_ONE, _TWO, _FOUR, _VARINT, _BLOB, _PAIR = range(6)
_PROPERTIES = {
    **dict.fromkeys((0x01, 0x17, 0x19, 0x24, 0x25, 0x28, 0x29, 0x2A), _ONE),
    **dict.fromkeys((0x13, 0x21, 0x22, 0x23), _TWO),
    **dict.fromkeys((0x02, 0x11, 0x18, 0x27), _FOUR),
    0x0B: _VARINT,
    **dict.fromkeys((0x03, 0x08, 0x09, 0x12, 0x15, 0x16, 0x1A, 0x1C, 0x1F), _BLOB),
    0x26: _PAIR,
}
_TOPIC_ALIAS = 0x23


def split(buffer: bytearray) -> list[bytes]:
    """Take the whole packets from the front of ``buffer``; what is incomplete stays in it.

    Raises ``InvalidMessage`` for a length that is malformed or over ``MAX_PACKET``.
    Law: however a stream is cut into buffers, the packets are the same.
    """
    packets: list[bytes] = []
    start = 0
    while len(buffer) - start >= 2:
        length, size = 0, 1
        while True:
            if size > 4:
                raise InvalidMessage("a packet's length takes more than four bytes")
            if start + size >= len(buffer):
                length = -1
                break
            byte = buffer[start + size]
            length |= (byte & 0x7F) << (7 * (size - 1))
            size += 1
            if not byte & 0x80:
                break
        if length > MAX_PACKET:
            raise InvalidMessage(f"a packet of {length} bytes; the most is {MAX_PACKET}")
        if length < 0 or len(buffer) - start < size + length:
            break
        packets.append(bytes(buffer[start : start + size + length]))
        start += size + length
    del buffer[:start]
    return packets


@dataclass(frozen=True, slots=True)
class Connect:
    """What a CONNECT says of the client, and where its credentials would begin in the body."""

    client_id: str
    will_topic: str | None
    flags: int
    credentials_at: int


@dataclass(frozen=True, slots=True)
class Publish:
    """Where a PUBLISH goes. ``topic`` is empty when ``alias`` stands for it."""

    topic: str
    alias: int | None
    qos: int
    packet_id: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with one packet: pass it on, answer it, end the connection."""

    forward: bytes | None = None
    answer: bytes | None = None
    close: bool = False


@dataclass(slots=True)
class Gate:
    """The rules for one connection whose certificate names ``name``.

    The client id is the name; a device publishes and subscribes only where ``sync.protocol`` lets it,
    its will included; the hub may do all. ``credentials`` (user, password) are put into the CONNECT so
    that the broker behind accepts nobody who came another way.
    """

    name: str
    credentials: tuple[str, str]
    _connected: bool = False
    _aliases: dict[int, str] = field(default_factory=dict)

    def receive(self, packet: bytes) -> Verdict:
        """Judge one packet from the client. Never raises."""
        try:
            return self._judge(packet)
        except InvalidMessage:
            if not self._connected:
                return Verdict(answer=connack(MALFORMED), close=True)
            return Verdict(answer=disconnect(MALFORMED), close=True)

    def _judge(self, packet: bytes) -> Verdict:
        kind = packet[0] >> 4
        if not self._connected:
            if kind != CONNECT:
                return Verdict(close=True)
            return self._connect(packet)
        if kind not in _FROM_CLIENT:
            return Verdict(answer=disconnect(PROTOCOL_ERROR), close=True)
        if kind == PUBLISH:
            return self._publish(packet)
        if kind == SUBSCRIBE:
            packet_id, filters = read_subscribe(packet)
            if not all(self._allows(protocol.may_subscribe, one) for one in filters):
                return Verdict(answer=suback(packet_id, [NOT_AUTHORIZED] * len(filters)))
        return Verdict(forward=packet)

    def _connect(self, packet: bytes) -> Verdict:
        connect = read_connect(packet)
        if connect is None:
            return Verdict(answer=connack(UNSUPPORTED_VERSION), close=True)
        if connect.client_id != self.name:
            return Verdict(answer=connack(BAD_CLIENT_ID), close=True)
        if connect.will_topic is not None and not self._allows(protocol.may_publish, connect.will_topic):
            return Verdict(answer=connack(NOT_AUTHORIZED), close=True)
        self._connected = True
        return Verdict(forward=_with_credentials(packet, connect, *self.credentials))

    def _publish(self, packet: bytes) -> Verdict:
        publish = read_publish(packet)
        topic = publish.topic
        if publish.alias is not None:
            if topic:
                self._aliases[publish.alias] = topic
            topic = self._aliases.get(publish.alias, "")
        if not topic:
            return Verdict(answer=disconnect(TOPIC_ALIAS_INVALID), close=True)
        if self._allows(protocol.may_publish, topic):
            return Verdict(forward=packet)
        if publish.alias is not None:
            # The broker behind never saw this alias; later uses of it could not be told apart.
            return Verdict(answer=disconnect(NOT_AUTHORIZED), close=True)
        return Verdict(answer=_refusal(publish))

    def _allows(self, rule: Callable[[str, str], bool], topic: str) -> bool:
        return self.name == protocol.HUB or rule(self.name, topic)


def read_connect(packet: bytes) -> Connect | None:
    """A CONNECT of MQTT 5, or None when it is of another version. Raises ``InvalidMessage``."""
    body = _Cursor(packet)
    if body.blob() != b"MQTT":
        raise InvalidMessage("not MQTT")
    if body.number(1) != 5:
        return None
    flags = body.number(1)
    if flags & 1:
        raise InvalidMessage("a reserved flag is set")
    body.number(2)
    body.properties()
    client_id = body.text()
    will_topic = None
    if flags & 0x04:
        body.properties()
        will_topic = body.text()
        body.blob()
    return Connect(client_id, will_topic, flags, body.at)


def read_publish(packet: bytes) -> Publish:
    """The destination of a PUBLISH. Raises ``InvalidMessage``."""
    qos = packet[0] >> 1 & 3
    body = _Cursor(packet)
    topic = body.text()
    packet_id = body.number(2) if qos else 0
    alias = body.properties().get(_TOPIC_ALIAS)
    if qos == 3 or alias == 0:
        raise InvalidMessage("a QoS or topic alias that does not exist")
    return Publish(topic, alias, qos, packet_id)


def read_subscribe(packet: bytes) -> tuple[int, list[str]]:
    """Packet id and topic filters of a SUBSCRIBE. Raises ``InvalidMessage``."""
    body = _Cursor(packet)
    packet_id = body.number(2)
    body.properties()
    filters = []
    while body.at < len(packet):
        filters.append(body.text())
        body.number(1)
    return packet_id, filters


def connack(reason: int) -> bytes:
    """A CONNACK that refuses."""
    return bytes((CONNACK << 4, 3, 0, reason, 0))


def disconnect(reason: int) -> bytes:
    """A DISCONNECT with its reason."""
    return bytes((DISCONNECT << 4, 2, reason, 0))


def suback(packet_id: int, reasons: list[int]) -> bytes:
    """A SUBACK with one reason per filter."""
    body = packet_id.to_bytes(2, "big") + b"\x00" + bytes(reasons)
    return bytes((SUBACK << 4,)) + _varint(len(body)) + body


def _refusal(publish: Publish) -> bytes | None:
    if publish.qos == 0:
        return None
    kind = PUBACK if publish.qos == 1 else PUBREC
    return bytes((kind << 4, 4)) + publish.packet_id.to_bytes(2, "big") + bytes((NOT_AUTHORIZED, 0))


def _with_credentials(packet: bytes, connect: Connect, user: str, password: str) -> bytes:
    """The same CONNECT with these credentials in place of whatever it carried."""
    start = _Cursor(packet).at
    flags_at = start + 7  # after the protocol name (2 + 4 bytes) and the version
    body = bytearray(packet[start : connect.credentials_at])
    body[flags_at - start] = connect.flags | 0xC0
    for text in (user, password):
        encoded = text.encode()
        body += len(encoded).to_bytes(2, "big") + encoded
    return packet[:1] + _varint(len(body)) + bytes(body)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while True:
        value, byte = value >> 7, value & 0x7F
        encoded.append(byte | (0x80 if value else 0))
        if not value:
            return bytes(encoded)


class _Cursor:
    """Reads the body of a whole packet. Every read past the end raises ``InvalidMessage``."""

    def __init__(self, packet: bytes) -> None:
        self._data = packet
        self.at = 1
        self.varint()

    def take(self, size: int) -> bytes:
        if self.at + size > len(self._data):
            raise InvalidMessage("a packet ends before its fields do")
        self.at += size
        return self._data[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def varint(self) -> int:
        value = 0
        for shift in (0, 7, 14, 21):
            byte = self.number(1)
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                return value
        raise InvalidMessage("a variable byte integer of more than four bytes")

    def blob(self) -> bytes:
        return self.take(self.number(2))

    def text(self) -> str:
        try:
            return self.blob().decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidMessage(f"not UTF-8: {error}") from error

    def properties(self) -> dict[int, int]:
        """The properties that hold fixed-size numbers, by identifier; the others are skipped."""
        end = self.varint() + self.at
        numbers: dict[int, int] = {}
        while self.at < end:
            identifier = self.varint()
            shape = _PROPERTIES.get(identifier)
            if shape in (_ONE, _TWO, _FOUR):
                numbers[identifier] = self.number({_ONE: 1, _TWO: 2, _FOUR: 4}[shape])
            elif shape == _VARINT:
                self.varint()
            elif shape == _BLOB:
                self.blob()
            elif shape == _PAIR:
                self.blob()
                self.blob()
            else:
                raise InvalidMessage(f"no property has the identifier {identifier}")
        if self.at != end:
            raise InvalidMessage("properties do not end where they say")
        return numbers
