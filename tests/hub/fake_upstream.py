"""An OpenAI-compatible upstream in a few lines: it answers, streams, or breaks off half-way."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

CHUNKS = [b'data: {"choices":[]}\n\n', b"data: [DONE]\n\n"]


@asynccontextmanager
async def upstream(
    streams: bool = False,
    breaks: bool = False,
    body: bytes = b'{"object":"chat.completion"}',
    chunks: Sequence[bytes] = CHUNKS,
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """An HTTP server that answers every request; yields its address and what it received."""
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        received.append(head + await reader.readexactly(length))
        if streams:
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            for chunk in chunks[: 1 if breaks else None]:
                writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            writer.write(b"" if breaks else b"0\r\n\r\n")
        else:
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
            )
            writer.write(body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", received
