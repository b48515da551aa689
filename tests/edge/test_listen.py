"""The listening socket: what is written in pieces leaves at once."""

import asyncio
import socket

from edge_agent.server import Door, listen


async def test_an_answer_in_pieces_is_not_held_back() -> None:
    seen = asyncio.get_running_loop().create_future()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        own = writer.get_extra_info("socket")
        seen.set_result(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    with listen(Door(port=0)) as listening:
        server = await asyncio.start_server(connected, sock=listening)
        async with server, asyncio.timeout(10):
            _, writer = await asyncio.open_connection(*listening.getsockname())
            assert await seen != 0
            writer.close()
