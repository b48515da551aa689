"""An ASGI application on a real socket, in the event loop of the test."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import ASGIApp

from edge_agent.server import PATIENCE, Door, http_config, listen, url_of


@asynccontextmanager
async def running(app: ASGIApp, patience: float = PATIENCE) -> AsyncIterator[str]:
    """The base URL of ``app`` while the block runs; served as the product does, but for the signals."""
    socket = listen(Door(port=0, patience=patience))
    server = uvicorn.Server(http_config(app, patience, grace=1))
    task = asyncio.create_task(server.serve(sockets=[socket]))
    try:
        yield url_of(socket)
    finally:
        server.should_exit = True
        await task
        socket.close()
